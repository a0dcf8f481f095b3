// A read that somebody waits for, and that is silent for longer than nearly all of its kind, is asked for a second time: whichever
// answers first is taken, and the other one is given up. ("The Tail at Scale", Dean and Barroso 2013.)

/** Of each size, the last so many times are remembered; before there are so many of them nothing is asked twice. */
const TIMES_MAX = 512
const TIMES_MIN = 64
const QUANTILE = 0.99
/** Below that a second request gains nothing. */
const SILENCE_MS_MIN = 20
/** Of all reads, so many may be asked for twice; and so many in a row. */
const BUDGET_SHARE = 0.02
const BUDGET_MAX = 8
/** Sizes up to this, and twice, four times... this, are kinds of their own. */
const KIND_BYTES = 64 * 1024

/** Times of one kind of reads. */
class Times {
  readonly #ms: number[] = []
  #next = 0
  #sorted: number[] | null = null

  add(ms: number): void {
    this.#ms[this.#next] = ms
    this.#next = (this.#next + 1) % TIMES_MAX
    if (this.#next % 16 === 0) this.#sorted = null
  }

  /** Nearly all took less; null: there are too few to say. */
  get most(): number | null {
    if (this.#ms.length < TIMES_MIN) return null
    this.#sorted ??= [...this.#ms].sort((one, other) => one - other)
    return this.#sorted[Math.ceil(this.#sorted.length * QUANTILE) - 1]
  }
}

export class Hedge {
  /** Reads that were asked for twice, and those of them of which the second request was the faster one. */
  asked = 0
  won = 0
  readonly #kinds = new Map<number, Times>()
  #budget = BUDGET_MAX
  readonly #now: () => number

  /** `now`: monotonic, ms. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /**
   * `read` is given a signal of its own for each request. Nobody waits for it, and it is not asked for again, until `isAwaited`.
   * Rejects as the last of the requests does.
   */
  async read<T>(
    { bytes, isAwaited, signal }: { bytes: number; isAwaited: () => boolean; signal: AbortSignal },
    read: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const times = this.#timesOf(bytes)
    this.#budget = Math.min(BUDGET_MAX, this.#budget + BUDGET_SHARE)
    const startedMs = this.#now()
    const most = times.most
    const result = await (most === null
      ? read(signal)
      : this.#race({ silenceMs: Math.max(SILENCE_MS_MIN, most), isAwaited, signal }, read))
    times.add(this.#now() - startedMs)
    return result
  }

  #timesOf(bytes: number): Times {
    const kind = Math.max(0, Math.ceil(Math.log2(bytes / KIND_BYTES)))
    let times = this.#kinds.get(kind)
    if (!times) {
      times = new Times()
      this.#kinds.set(kind, times)
    }
    return times
  }

  #race<T>(
    { silenceMs, isAwaited, signal }: { silenceMs: number; isAwaited: () => boolean; signal: AbortSignal },
    read: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const requests: AbortController[] = []
    let failed = 0
    return new Promise<T>((resolve, reject) => {
      const ask = () => {
        const request = new AbortController()
        const which = requests.push(request)
        read(AbortSignal.any([signal, request.signal])).then(
          value => {
            clearInterval(timer)
            if (which === 2) this.won++
            for (const other of requests) if (other !== request) other.abort()
            resolve(value)
          },
          error => {
            clearInterval(timer)
            if (++failed === requests.length) reject(error)
          },
        )
      }
      const timer = setInterval(() => {
        if (!isAwaited() || this.#budget < 1) return
        clearInterval(timer)
        this.#budget -= 1
        this.asked++
        ask()
      }, silenceMs)
      ask()
    })
  }
}
