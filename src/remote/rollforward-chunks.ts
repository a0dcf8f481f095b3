// A blob that is kept chunk by chunk in a store, and takes whole batches. What is staged is put at once where it stays, under a name that
// counts only when a head says so: every byte travels once. A small change is in the intent, and becomes a run when it is applied.
import { inParallel, KeyedMutex } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { Intervals } from '../chunk/intervals.js'
import type { Blob, BlobCapabilities, BlobChange } from './blob.js'
import { compareRuns, neighbours, packedOf, parseRun, RUNS, type Run, RunIndex, runOf, runsOf } from './chunk-runs.js'
import { type ChunkState, type ChunkStore, isCommitted, type Layer } from './chunk-store.js'
import type { Batch, Commits, Outcome } from './commits.js'
import type { IntentRecord } from './intent.js'
import { checkRange } from './path.js'
import { ChainCommits, type Shape, type Turn } from './rollforward-commits.js'
import { Committing } from './rollforward-delegate.js'
import { type RollforwardOptions, withDefaults } from './rollforward-options.js'
import { prefixed } from './rollforward-prefix.js'
import { type StillPending, Views } from './rollforward-view.js'
import { overlay } from './through-bytes.js'
import { HIDDEN } from './tree.js'

/** Staged bytes that wait for neighbours: so many runs. */
const WAITING_RUNS_MAX = 2
const PUTS_AT_ONCE = 4
/** A run of which no more than this is still read is written anew with the batch that replaces the rest. */
const LIVE_SHARE_MIN = 1 / 4
const REQUEST_BYTES_MAX = 64 * 1024 * 1024
/** What is read is replaced and removed under our hands so often at most. */
const READS_MAX = 16

/** The blob that is kept there. It closes the store. */
export const rollforwardChunks = (
  chunks: ChunkStore,
  options: Partial<RollforwardOptions> = {},
): Blob & Commits<BlobChange> => new RollforwardChunks(chunks, withDefaults(options))

class RollforwardChunks extends Committing<BlobChange> implements Blob {
  readonly shape = 'blob'
  readonly url: string
  size: number
  readonly capabilities: BlobCapabilities
  readonly #chunks: ChunkStore
  readonly #shape: ChunkShape
  readonly #options: RollforwardOptions
  readonly #views: Views<BlobChange, ThroughChunks>
  /** As one who does not hold the lease: what was seen last, when, and through which intent. */
  #seen: { state: ChunkState; atMs: number; number: number | null } | null = null

  constructor(chunks: ChunkStore, options: RollforwardOptions) {
    const { store, geometry } = chunks
    const hidden = prefixed(store, `${HIDDEN}/`)
    const base = (at: number, length: number, signal?: AbortSignal) => this.read(at, length, signal)
    const shape = new ChunkShape(chunks, base)
    super(new ChainCommits(shape, hidden, options))
    this.#chunks = chunks
    this.#shape = shape
    this.#options = options
    this.url = `${store.url}${store.url.includes('?') ? '&' : '?'}layout=chunks`
    this.size = chunks.sizeThen
    this.capabilities = {
      ...{ write: true, trim: false },
      alignment: geometry.chunkBytes,
      requestBytesMax: REQUEST_BYTES_MAX,
    }
    this.#views = new Views(
      this.commits.lease,
      (intent, stillPending) => new ThroughChunks(chunks, intent, stillPending),
      options,
    )
  }

  async read(at: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    checkRange({ at, length })
    if (length > REQUEST_BYTES_MAX) throw new FerryError('TOO_LARGE', { detail: `${length} bytes at once` })
    return this.#views.read(async (view, number) => {
      for (let tries = 0; ; tries++) {
        const { index, size } = await this.#state(number, signal)
        if (at + length > size) throw new FerryError('INVALID', { detail: `${length} bytes at ${at} of ${size}` })
        const layer = { index, end: size }
        try {
          return await (view ? view.read(layer, at, length, signal) : this.#chunks.read([layer], at, length, signal))
        } catch (error) {
          if (!isFerryError(error, 'NOT_FOUND')) throw error
          // A run that was replaced by now: by ourselves, or by who has the lease.
          if (this.commits.lease.held) await this.commits.lease.check(signal)
          if (tries === READS_MAX) throw new FerryError('CORRUPT', { cause: error, detail: this.url })
          this.#seen = null
        }
      }
    }, signal)
  }

  async version(signal?: AbortSignal): Promise<string> {
    return this.#views.read(async (view, number) => {
      const { head } = await this.#state(number, signal)
      return view ? view.version : head.replace(/^heads\//, '')
    }, signal)
  }

  /** There is nothing to be flushed: what takes changes are batches. */
  async flush(): Promise<void> {}

  /** With a batch: here it only says that there may be another size. */
  async resize(): Promise<never> {
    return this.write()
  }

  override async settle(signal?: AbortSignal): Promise<Outcome> {
    const outcome = await super.settle(signal)
    await this.#state(null, signal)
    return outcome
  }

  async write(): Promise<never> {
    throw new FerryError('UNSUPPORTED', { detail: `${this.url} is changed by batches only` })
  }

  close(): Promise<void> {
    return this.#chunks.store.close()
  }

  /** Who holds the lease knows by itself; everybody else looks now and then, and when another intent is looked through. */
  async #state(number: number | null, signal?: AbortSignal): Promise<ChunkState> {
    const state = await this.#stateNow(number, signal)
    this.size = state.size
    return state
  }

  async #stateNow(number: number | null, signal?: AbortSignal): Promise<ChunkState> {
    if (this.commits.lease.held) {
      this.#seen = null
      return this.#shape.state()
    }
    const atMs = this.#options.now()
    const seen = this.#seen
    if (seen && seen.number === number && atMs - seen.atMs < this.#options.refreshMs) return seen.state
    const isSame = seen !== null && (await this.#chunks.head(signal)) === seen.state.head
    const state = isSame ? seen.state : await this.#chunks.load(signal)
    this.#seen = { state, atMs, number }
    return state
  }
}

/** What of the batch to come is staged. */
class Staging {
  /** Staged under each id. */
  readonly byId = new Map<string, Intervals>()
  /** Bytes that wait, by chunk, in the order in which they came. */
  readonly waiting = new Map<number, { pieces: { at: number; bytes: Uint8Array }[]; have: Intervals }>()
  waitingBytes = 0
  readonly runs: Run[] = []
  readonly index = new RunIndex()
  /** Chunks of which there may be a run of this batch, be it only by an attempt that failed. */
  readonly touched = new Set<number>()
  number = 0
}

class ChunkShape implements Shape<BlobChange> {
  readonly #chunks: ChunkStore
  /** Bytes as the last committed batch has them. */
  readonly #base: (at: number, length: number, signal?: AbortSignal) => Promise<Uint8Array>
  readonly #stagings = new Map<number, Staging>()
  readonly #turns = new KeyedMutex()
  #state: Promise<ChunkState> | null = null
  readonly #formerHeads: string[] = []

  constructor(chunks: ChunkStore, base: (at: number, length: number, signal?: AbortSignal) => Promise<Uint8Array>) {
    this.#chunks = chunks
    this.#base = base
  }

  /** As the holder of the lease. */
  state(): Promise<ChunkState> {
    this.#state ??= this.#chunks.load().catch(error => {
      this.#state = null
      throw error
    })
    return this.#state
  }

  /** What a former holder puts has the name of its own epoch, and so counts for nothing, or is what it would be anyway. */
  async open(): Promise<boolean> {
    this.#stagings.clear()
    this.#state = null
    return true
  }

  async sweep({ epoch, guard, signal }: Turn): Promise<void> {
    const { epochs, head, index } = await this.state()
    const { store } = this.#chunks
    const heads = await this.#chunks.headsBefore(head, signal)
    await guard()
    await this.#chunks.removeAll([...heads, ...index.takeDead().map(run => run.name)], signal)
    for (let page = await store.list(RUNS, undefined, signal); page.length > 0; ) {
      const left = page.flatMap(({ name }) => {
        const run = parseRun(name)
        return run && run.epoch < epoch && !isCommitted(run, epochs) ? [name] : []
      })
      await guard()
      await this.#chunks.removeAll(left, signal)
      page = await store.list(RUNS, page.at(-1)!.name, signal)
    }
  }

  stage(epoch: number, batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#turns.run('', async () => {
      const staging = this.#stagings.get(batch) ?? new Staging()
      this.#stagings.set(batch, staging)
      const staged = staging.byId.get(id) ?? new Intervals()
      staging.byId.set(id, staged)
      staged.add(at, at + from.byteLength)
      for (const [chunk, pieceAt, bytes] of this.#cut(at, from.slice())) {
        const part = staging.waiting.get(chunk) ?? { pieces: [], have: new Intervals() }
        staging.waiting.set(chunk, part)
        part.pieces.push({ at: pieceAt, bytes })
        part.have.add(pieceAt, pieceAt + bytes.byteLength)
        staging.waitingBytes += bytes.byteLength
      }
      const waitingBytesMax = WAITING_RUNS_MAX * this.#chunks.runBytes
      if (staging.waitingBytes < waitingBytesMax) return
      const whole = [...staging.waiting].filter(([chunk, { have }]) => have.covers(...this.#rangeOf(chunk)))
      await this.#putStaged(
        staging,
        epoch,
        batch,
        whole.map(([chunk]) => chunk),
        signal,
      )
      if (staging.waitingBytes >= waitingBytesMax)
        await this.#putStaged(staging, epoch, batch, [...staging.waiting.keys()], signal)
    })
  }

  complete(epoch: number, { number: batch, changes }: Batch<BlobChange>, signal?: AbortSignal) {
    return this.#turns.run('', async () => {
      const staging = this.#stagings.get(batch) ?? new Staging()
      const named = new Intervals()
      for (const change of changes) {
        if (!('staged' in change)) continue
        const end = change.at + change.length
        if (!staging.byId.get(change.staged)?.covers(change.at, end))
          throw new FerryError('INVALID', { detail: `${change.length} bytes at ${change.at} are not staged` })
        named.add(change.at, end)
      }
      for (const chunk of new Set([...staging.touched, ...staging.waiting.keys()]))
        await this.#leaveOut(staging, chunk, named, signal)
      await this.#putStaged(staging, epoch, batch, [...staging.waiting.keys()], signal)
      return { refused: [], packed: staging.runs.map(packedOf) }
    })
  }

  /** Of a chunk, what was staged and is not named. */
  async #leaveOut(staging: Staging, chunk: number, named: Intervals, signal?: AbortSignal) {
    const [from, to] = this.#rangeOf(chunk)
    const all = [...staging.byId.values()].flatMap(staged => [...staged.within(from, to)])
    if (all.every(([at, end]) => named.covers(at, end))) return
    if (!staging.touched.has(chunk) && !named.overlaps(from, to)) return this.#taken(staging, chunk)
    const staged = await this.#content(staging, chunk, signal)
    const bytes = await this.#baseOf(from, to, signal)
    for (const [at, end] of named.within(from, to)) overlay(bytes, from, staged.subarray(at - from, end - from), at)
    this.#taken(staging, chunk)
    const have = new Intervals()
    have.add(from, to)
    staging.waiting.set(chunk, { pieces: [{ at: from, bytes }], have })
    staging.waitingBytes += bytes.byteLength
  }

  /** As the batch will have it, as far as it is staged. */
  async #content(staging: Staging, chunk: number, signal?: AbortSignal): Promise<Uint8Array> {
    const [from, to] = this.#rangeOf(chunk)
    const part = staging.waiting.get(chunk)
    const isWhole = part?.have.covers(from, to) ?? false
    const bytes = isWhole
      ? new Uint8Array(to - from)
      : staging.index.at(chunk)
        ? await this.#chunks.read([{ index: staging.index, end: to }], from, to - from, signal)
        : await this.#baseOf(from, to, signal)
    for (const piece of part?.pieces ?? []) overlay(bytes, from, piece.bytes, piece.at)
    return bytes
  }

  /** With zeros beyond its end: the batch may have another size. */
  async #baseOf(from: number, to: number, signal?: AbortSignal): Promise<Uint8Array> {
    const { size } = await this.state()
    const bytes = new Uint8Array(to - from)
    if (from < size) bytes.set(await this.#base(from, Math.min(to, size) - from, signal))
    return bytes
  }

  #taken(staging: Staging, chunk: number) {
    for (const { bytes } of staging.waiting.get(chunk)?.pieces ?? []) staging.waitingBytes -= bytes.byteLength
    staging.waiting.delete(chunk)
  }

  async #putStaged(staging: Staging, epoch: number, batch: number, chunks: number[], signal?: AbortSignal) {
    const groups = neighbours(
      chunks.sort((a, b) => a - b),
      this.#chunks.runChunks,
    )
    await inParallel(groups, PUTS_AT_ONCE, async ({ first, count }) => {
      const all = Array.from({ length: count }, (_, n) => first + n)
      const bytes = Buffer.concat(await Promise.all(all.map(chunk => this.#content(staging, chunk, signal))))
      const run = runOf({ first, count, epoch, batch, number: staging.number++, zeros: false })
      for (const chunk of all) staging.touched.add(chunk)
      await this.#chunks.store.put(run.name, bytes, undefined, signal)
      for (const chunk of all) this.#taken(staging, chunk)
      staging.runs.push(run)
      staging.index.lay(run)
    })
  }

  async apply(intent: IntentRecord<BlobChange>, turn: Turn): Promise<Outcome> {
    const { signal } = turn
    const { epoch, batch } = intent
    const state = await this.state()
    if (!isCommitted(intent, state.epochs)) {
      const runs = runsOf(intent.packed)
      const made = await new RunsOfIntent(this.#chunks, intent, runs, state).put(turn)
      const alive = state.index.epochs()
      const epochs = new Map([...state.epochs].filter(([one]) => alive.has(one))).set(epoch, batch)
      await turn.guard()
      const size = sizeAfter(intent.changes, state.size)
      const head = await this.#chunks.putHead(intent, { epochs, size }, signal)
      if (state.head) this.#formerHeads.push(state.head)
      for (const run of [...runs, ...made].sort(compareRuns)) state.index.lay(run)
      this.#state = Promise.resolve({ head, epochs, index: state.index, size })
    }
    return { versions: [], conflicts: [], refused: [] }
  }

  async clear({ batch }: IntentRecord<BlobChange>, signal?: AbortSignal): Promise<void> {
    for (const number of this.#stagings.keys()) if (number <= batch) this.#stagings.delete(number)
    const { index } = await this.state()
    const left = [...index.takeDead().map(run => run.name), ...this.#formerHeads.splice(0)]
    await this.#chunks.removeAll(left, signal)
  }

  /** The last chunk is put whole, with zeros beyond the end. */
  #rangeOf(chunk: number): [from: number, to: number] {
    const { chunkBytes } = this.#chunks.geometry
    return [chunk * chunkBytes, (chunk + 1) * chunkBytes]
  }

  /** Bytes cut where chunks end. */
  *#cut(at: number, bytes: Uint8Array): Generator<[chunk: number, at: number, bytes: Uint8Array]> {
    yield* cutAtChunks(this.#chunks.geometry.chunkBytes, at, bytes)
  }
}

function* cutAtChunks(
  chunkBytes: number,
  at: number,
  bytes: Uint8Array,
): Generator<[chunk: number, at: number, bytes: Uint8Array]> {
  for (let done = 0; done < bytes.byteLength; ) {
    const chunk = Math.floor((at + done) / chunkBytes)
    const end = Math.min(bytes.byteLength, (chunk + 1) * chunkBytes - at)
    yield [chunk, at + done, bytes.subarray(done, end)]
    done = end
  }
}

const sizeAfter = (changes: BlobChange[], before: number): number =>
  changes.reduce((size, change) => (change.do === 'resize' ? change.size : size), before)

/** What an intent brings besides the runs that were staged: the same runs, with the same names, whoever puts them, and however often. */
class RunsOfIntent {
  readonly #chunks: ChunkStore
  readonly #intent: IntentRecord<BlobChange>
  readonly #staged: Run[]
  readonly #over: Layer
  readonly #under: Layer
  readonly #made: Run[] = []
  #number: number

  constructor(chunks: ChunkStore, intent: IntentRecord<BlobChange>, staged: Run[], { index, size }: ChunkState) {
    this.#chunks = chunks
    this.#intent = intent
    this.#staged = staged
    this.#over = { index: RunIndex.of(staged), end: sizeAfter(intent.changes, size) }
    this.#under = { index, end: size }
    this.#number = 1 + Math.max(-1, ...staged.map(run => run.number))
  }

  async put(turn: Turn): Promise<Run[]> {
    const { pieces, zeros } = this.#small()
    for (const [first, end] of zeros)
      await this.#putRun({ first, count: end - first, zeros: true }, async () => new Uint8Array(), turn)
    for (const { first, count } of this.#grouped([...pieces.keys()]))
      await this.#putRun(
        { first, count, zeros: false },
        async () => {
          const bytes = await this.#read([this.#over, this.#under], first, count, turn.signal)
          const at = first * this.#chunks.geometry.chunkBytes
          for (let chunk = first; chunk < first + count; chunk++)
            for (const piece of pieces.get(chunk) ?? []) overlay(bytes, at, piece.bytes, piece.at)
          return bytes
        },
        turn,
      )
    for (const { first, count } of this.#grouped(this.#leftOver()))
      await this.#putRun(
        { first, count, zeros: false },
        () => this.#read([this.#under], first, count, turn.signal),
        turn,
      )
    return this.#made
  }

  /** Bytes that the intent has, by chunk; and whole chunks that are zeros. */
  #small() {
    const { chunkBytes } = this.#chunks.geometry
    const [before, size] = [this.#under.end, this.#over.end]
    const pieces = new Map<number, { at: number; bytes: Uint8Array }[]>()
    const zeros = new Intervals()
    const add = (at: number, bytes: Uint8Array) => {
      for (const [chunk, pieceAt, piece] of cutAtChunks(chunkBytes, at, bytes)) {
        const others = pieces.get(chunk)
        if (others) others.push({ at: pieceAt, bytes: piece })
        else pieces.set(chunk, [{ at: pieceAt, bytes: piece }])
      }
    }
    // What is cut off must not come back; where it ended, the run may end as well.
    if (size < before) {
      zeros.add(Math.ceil(size / chunkBytes), Math.ceil(before / chunkBytes))
      if (size % chunkBytes) add(size, new Uint8Array(chunkBytes - (size % chunkBytes)))
    } else if (size > before && before % chunkBytes) pieces.set(Math.floor(before / chunkBytes), [])
    for (const change of this.#intent.changes) {
      if ('bytes' in change) add(change.at, change.bytes)
      if (change.do !== 'trim') continue
      const end = change.at + change.length
      const first = Math.ceil(change.at / chunkBytes)
      const last = end === size ? Math.ceil(end / chunkBytes) : Math.floor(end / chunkBytes)
      if (first < last) {
        zeros.add(first, last)
        add(change.at, new Uint8Array(first * chunkBytes - change.at))
        if (end > last * chunkBytes) add(last * chunkBytes, new Uint8Array(end - last * chunkBytes))
      } else add(change.at, new Uint8Array(change.length))
    }
    // Up to the end it is trimmed, and there is nothing behind that.
    for (const chunk of pieces.keys()) if (zeros.covers(chunk, chunk + 1)) pieces.delete(chunk)
    return { pieces, zeros }
  }

  /** Chunks of runs of which little is read when this batch is there. */
  #leftOver(): number[] {
    const replaced = new Intervals()
    for (const { first, count } of [...this.#staged, ...this.#made]) replaced.add(first, first + count)
    /** Of each run that is read from now: how many of its chunks are read from it afterwards. */
    const live = new Map<Run, number>()
    for (const [from, to] of replaced)
      for (const { run, first, count } of this.#under.index.pieces(from, to - from))
        if (run) live.set(run, (live.get(run) ?? this.#under.index.liveAt(first)) - count)
    const left: number[] = []
    for (const [run, count] of live) {
      if (run.zeros || count === 0 || count > run.count * LIVE_SHARE_MIN) continue
      for (const [from, to] of replaced.gaps(run.first, run.first + run.count))
        for (const piece of this.#under.index.pieces(from, to - from))
          if (piece.run === run) for (let n = 0; n < piece.count; n++) left.push(piece.first + n)
    }
    return left
  }

  async #putRun(
    place: Pick<Run, 'first' | 'count' | 'zeros'>,
    content: () => Promise<Uint8Array>,
    { guard, signal }: Turn,
  ) {
    const { epoch, batch } = this.#intent
    const run = runOf({ ...place, epoch, batch, number: this.#number++ })
    const bytes = await content()
    await guard()
    await this.#chunks.store.put(run.name, bytes, undefined, signal)
    this.#made.push(run)
  }

  /** Whole chunks, with zeros beyond the end. */
  #read(layers: Layer[], first: number, count: number, signal?: AbortSignal): Promise<Uint8Array> {
    const { chunkBytes } = this.#chunks.geometry
    return this.#chunks.read(layers, first * chunkBytes, count * chunkBytes, signal)
  }

  #grouped(chunks: number[]) {
    return neighbours(
      chunks.sort((a, b) => a - b),
      this.#chunks.runChunks,
    )
  }
}

/** Reading through a batch that is committed but not applied. */
class ThroughChunks {
  readonly version: string
  readonly #chunks: ChunkStore
  readonly #changes: BlobChange[]
  readonly #over: RunIndex
  readonly #stillPending: StillPending

  constructor(chunks: ChunkStore, intent: IntentRecord<BlobChange>, stillPending: StillPending) {
    this.version = `${intent.epoch}.${intent.batch}`
    this.#chunks = chunks
    this.#changes = intent.changes
    this.#over = RunIndex.of(runsOf(intent.packed))
    this.#stillPending = stillPending
  }

  async read(under: Layer, at: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    const over = { index: this.#over, end: at + length }
    const into = await this.#chunks.read([over, under], at, length, signal).catch(async error => {
      // What was staged goes only when a later batch replaces it.
      if (isFerryError(error, 'NOT_FOUND')) await this.#stillPending(signal)
      throw error
    })
    for (const change of this.#changes) {
      if ('bytes' in change) overlay(into, at, change.bytes, change.at)
      else if (change.do === 'trim') {
        const from = Math.max(at, change.at)
        const to = Math.min(at + length, change.at + change.length)
        if (from < to) into.fill(0, from - at, to - at)
      }
    }
    // Once it is done, another batch may change the same bytes, and this would be half of each.
    await this.#stillPending(signal)
    return into
  }
}
