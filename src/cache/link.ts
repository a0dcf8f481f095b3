// What the line to the remote gives, as its last fetches tell: how long an answer takes, and how many bytes come in a second. From
// these follow how much should be on the way for one who reads on and on, and how large a request should be.
//
// The rate is the largest of the last seconds, and the time the smallest of the last minute, as BBR (draft-ietf-ccwg-bbr) has it: twice the product of
// both fills the line and finds out whether there is more. Who reads slowly measures what he reads, and gets no more than he needs.

/** Rates that are older say nothing any more. */
const MEMORY_MS = 10_000
/** The smallest times are remembered for so many times as long: while more is on the way than the line holds, all of it takes longer. */
const SPELLS = 6
const SAMPLES_MAX = 256
/** Before that there is too little to go by. */
const SAMPLES_MIN = 4
/** On the way, as a multiple of what the line holds. */
const GAIN = 2
const WINDOW_BYTES_MIN = 1024 * 1024
const WINDOW_BYTES_MAX = 32 * 1024 * 1024
const WINDOW_BYTES_UNKNOWN = 1024 * 1024
/** A request takes about so long, once it is answered: then waiting for the answer costs little, and one that is not needed too. */
const REQUEST_MS = 40
const REQUEST_BYTES_MIN = 128 * 1024
const REQUEST_BYTES_UNKNOWN = 256 * 1024

/** A fetch that was begun. */
export interface Begun {
  atMs: number
  delivered: number
}

interface Sample {
  atMs: number
  bytesPerMs: number
}

/** Of ten seconds, the smallest time of each size (a power of two). */
interface Spell {
  atMs: number
  tookMs: Map<number, number>
}

export class Link {
  readonly #now: () => number
  #delivered = 0
  #samples: Sample[] = []
  #spells: Spell[] = []
  /** Of all samples, until there is a new one. */
  #known: { bytesPerMs: number; tookMs: number; requestBytes: number } | null = null

  /** `now`: monotonic, ms. */
  constructor(
    readonly requestBytesMax: number,
    now: () => number = () => performance.now(),
  ) {
    this.#now = now
  }

  begin(): Begun {
    return { atMs: this.#now(), delivered: this.#delivered }
  }

  /** Its bytes are here. */
  end({ atMs, delivered }: Begun, bytes: number): void {
    this.#delivered += bytes
    const nowMs = this.#now()
    const tookMs = Math.max(0.01, nowMs - atMs)
    this.#samples.push({ atMs: nowMs, bytesPerMs: (this.#delivered - delivered) / tookMs })
    if (this.#samples.length > SAMPLES_MAX) this.#samples.shift()
    const { tookMs: times } = this.#spellOf(nowMs)
    const size = Math.floor(Math.log2(Math.max(1, bytes)))
    times.set(size, Math.min(tookMs, times.get(size) ?? tookMs))
    this.#known = null
  }

  #spellOf(nowMs: number): Spell {
    const last = this.#spells.at(-1)
    if (last && nowMs - last.atMs < MEMORY_MS) return last
    const spell: Spell = { atMs: nowMs, tookMs: new Map() }
    this.#spells.push(spell)
    if (this.#spells.length > SPELLS) this.#spells.shift()
    return spell
  }

  /** For one who reads on and on: so much should be on the way, or here before he comes to it. */
  get windowBytes(): number {
    const known = this.#measured()
    if (!known) return WINDOW_BYTES_UNKNOWN
    const wanted = GAIN * (known.bytesPerMs * known.tookMs + known.requestBytes)
    return Math.min(WINDOW_BYTES_MAX, Math.max(WINDOW_BYTES_MIN, wanted))
  }

  get requestBytes(): number {
    return this.#measured()?.requestBytes ?? Math.min(REQUEST_BYTES_UNKNOWN, this.requestBytesMax)
  }

  #measured() {
    const since = this.#now() - MEMORY_MS
    while (this.#samples.length > 0 && this.#samples[0].atMs < since) {
      this.#samples.shift()
      this.#known = null
    }
    if (this.#samples.length < SAMPLES_MIN) return null
    this.#known ??= this.#measure()
    return this.#known
  }

  #measure() {
    const bytesPerMs = Math.max(...this.#samples.map(sample => sample.bytesPerMs))
    const worth = Math.max(REQUEST_BYTES_MIN, bytesPerMs * REQUEST_MS)
    const requestBytes = Math.min(this.requestBytesMax, 2 ** Math.round(Math.log2(worth)))
    // What small ones take says nothing of large ones, of which the line and the server have more to do.
    const all = this.#spells.flatMap(({ tookMs }) => [...tookMs])
    const large = all.filter(([size]) => 2 ** size >= requestBytes / 2)
    const tookMs = Math.min(...(large.length > 0 ? large : all).map(([, ms]) => ms))
    return { bytesPerMs, tookMs, requestBytes }
  }
}
