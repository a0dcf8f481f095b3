// What a blob that is kept chunk by chunk has in its store: what it is, its heads, its runs.
//
//   region            size and chunk size, put once
//   heads/EPOCH.BATCH for each epoch of which there are runs its last batch: what is newer is not committed; and the size, if it is another
//                     by now. The newest head counts, and since none is ever changed, one that an overtaken writer puts late counts
//                     for nothing
//   runs/...          see chunk-runs.ts
//   .pageferry/       the chain

import { inParallel } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { readExactly } from '../base/read-exactly.js'
import { type ChunkGeometry, parseRun, RUNS, type Run, RunIndex } from './chunk-runs.js'
import { decode, encode } from './intent.js'
import type { Store } from './store.js'

const REGION = 'region'
const HEADS = 'heads/'
/** Between the list of heads and that of runs a batch may have been applied: so often both are listed again. */
const LOADS_MAX = 16
/** Requests of one read at once. */
const GETS_AT_ONCE = 16
/** Of one request. */
const REMOVES_MAX = 1_000

/** Runs, and how many bytes of the blob they have: the last of them may be of a time when it was shorter. */
export interface Layer {
  index: RunIndex
  end: number
}

/** As of one head. */
export interface ChunkState {
  /** Its name; '' before the first batch. */
  head: string
  /** The last committed batch of each epoch that counts. */
  epochs: Map<number, number>
  index: RunIndex
  /** Of the whole blob, in bytes. */
  size: number
}

type HeadRecord = [epoch: number, batch: number][] | { size: number; epochs: [epoch: number, batch: number][] }

export interface ChunkOptions {
  /** In bytes. It is made with so many; INVALID if it has another size. Default: it has to be there. */
  size?: number
  /** Of one that is made. Default 128 KiB. */
  chunkBytes?: number
}

const CHUNK_BYTES = 128 * 1024
const RUN_BYTES = 4 * 1024 * 1024

export class ChunkStore {
  constructor(
    readonly store: Store,
    /** As it was made: a head may say another size. */
    readonly geometry: ChunkGeometry,
    /** Of one run: neighbours are packed up to it. */
    readonly runBytes = RUN_BYTES,
    /** When it was opened. */
    readonly sizeThen = geometry.size,
  ) {}

  /** Chunks of one run, at most. */
  get runChunks(): number {
    return Math.max(1, Math.floor(this.runBytes / this.geometry.chunkBytes))
  }

  /** NOT_FOUND if there is none and no size was given. */
  static async open(store: Store, { size, chunkBytes = CHUNK_BYTES }: ChunkOptions): Promise<ChunkStore> {
    const read = async () => decode<ChunkGeometry>(await store.get(REGION), REGION)
    const there = await read().catch(error => {
      if (size === undefined || !isFerryError(error, 'NOT_FOUND')) throw error
      return null
    })
    if (there) return ChunkStore.#of(store, there, size)
    const made = { size: size!, chunkBytes }
    try {
      await store.put(REGION, encode(made), { ifAbsent: true })
    } catch (error) {
      if (!isFerryError(error, 'CONFLICT')) throw error
      return ChunkStore.#of(store, await read(), size)
    }
    return new ChunkStore(store, made)
  }

  static async #of(store: Store, geometry: ChunkGeometry, wanted: number | undefined): Promise<ChunkStore> {
    const { size } = await new ChunkStore(store, geometry).#newest()
    if (wanted !== undefined && wanted !== size)
      throw new FerryError('INVALID', { detail: `${store.url} has ${size} bytes, not ${wanted}` })
    return new ChunkStore(store, geometry, RUN_BYTES, size)
  }

  /** The newest head. */
  async head(signal?: AbortSignal): Promise<string> {
    return (await this.#heads(signal)).at(-1) ?? ''
  }

  async load(signal?: AbortSignal): Promise<ChunkState> {
    for (let tries = 0; tries < LOADS_MAX; tries++) {
      const { head, epochs, size } = await this.#newest(signal)
      const runs: Run[] = []
      for (let page = await this.store.list(RUNS, undefined, signal); page.length > 0; ) {
        for (const { name } of page) {
          const run = parseRun(name)
          if (run && isCommitted(run, epochs)) runs.push(run)
        }
        page = await this.store.list(RUNS, page.at(-1)!.name, signal)
      }
      // What a later batch replaced may have gone in between.
      if ((await this.head(signal)) === head) return { head, epochs, index: RunIndex.of(runs), size }
    }
    throw this.#tooFast()
  }

  /** What the newest head says: one that is gone when it is asked for has been followed by another. */
  async #newest(signal?: AbortSignal): Promise<Omit<ChunkState, 'index'>> {
    for (let tries = 0; tries < LOADS_MAX; tries++) {
      const head = await this.head(signal)
      try {
        const record = head ? decode<HeadRecord>(await this.store.get(head, undefined, signal), head) : []
        const { size, epochs } = Array.isArray(record) ? { size: this.geometry.size, epochs: record } : record
        return { head, epochs: new Map(epochs), size }
      } catch (error) {
        if (!isFerryError(error, 'NOT_FOUND')) throw error
      }
    }
    throw this.#tooFast()
  }

  #tooFast(): FerryError {
    return new FerryError('STALE', { detail: `${this.store.url} changes faster than it is listed` })
  }

  /** A batch is committed and applied. @returns the new head's name */
  async putHead(
    { epoch, batch }: { epoch: number; batch: number },
    { epochs, size }: Pick<ChunkState, 'epochs' | 'size'>,
    signal?: AbortSignal,
  ): Promise<string> {
    const name = headName(epoch, batch)
    const record: HeadRecord = size === this.geometry.size ? [...epochs] : { size, epochs: [...epochs] }
    await this.store.put(name, encode(record), undefined, signal)
    return name
  }

  /** Names of former heads. */
  async headsBefore(head: string, signal?: AbortSignal): Promise<string[]> {
    return (await this.#heads(signal)).filter(one => compareHeads(one, head) < 0)
  }

  /** Fine if they are not there. */
  async removeAll(names: string[], signal?: AbortSignal): Promise<void> {
    const { store } = this
    if (store.removeAll)
      for (let from = 0; from < names.length; from += REMOVES_MAX)
        await store.removeAll(names.slice(from, from + REMOVES_MAX), signal)
    else await inParallel(names, GETS_AT_ONCE, name => store.remove(name, undefined, signal))
  }

  /** Bytes as the first of these says that has a run for them, before its `end`; zeros where none has. */
  async read(layers: Layer[], at: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    const { chunkBytes } = this.geometry
    const into = new Uint8Array(length)
    const gets: { run: Run; from: number; to: number }[] = []
    const visit = (first: number, count: number, [{ index, end }, ...under]: Layer[]) => {
      for (const piece of index.pieces(first, count)) {
        if (!piece.run && under.length > 0) visit(piece.first, piece.count, under)
        if (!piece.run || piece.run.zeros) continue
        const from = Math.max(at, piece.first * chunkBytes)
        const to = Math.min(at + length, (piece.first + piece.count) * chunkBytes, end)
        if (from < to) gets.push({ run: piece.run, from, to })
      }
    }
    const first = Math.floor(at / chunkBytes)
    if (length > 0) visit(first, Math.ceil((at + length) / chunkBytes) - first, layers)
    await inParallel(gets, GETS_AT_ONCE, async ({ run, from, to }) => {
      const range = { at: from - run.first * chunkBytes, length: to - from, what: run.name }
      const get = (start: number, count: number) => this.store.get(run.name, { at: start, length: count }, signal)
      into.set(await readExactly(range, get), from - at)
    })
    return into
  }

  async #heads(signal?: AbortSignal): Promise<string[]> {
    const heads: string[] = []
    for (let page = await this.store.list(HEADS, undefined, signal); page.length > 0; ) {
      for (const { name } of page) if (orderOf(name)) heads.push(name)
      page = await this.store.list(HEADS, page.at(-1)!.name, signal)
    }
    return heads.sort(compareHeads)
  }
}

export const isCommitted = ({ epoch, batch }: { epoch: number; batch: number }, epochs: Map<number, number>): boolean =>
  batch <= (epochs.get(epoch) ?? -1)

const headName = (epoch: number, batch: number) => `${HEADS}${epoch}.${batch}`

const orderOf = (head: string) => /^heads\/(\d+)\.(\d+)$/.exec(head)?.slice(1).map(Number)

function compareHeads(one: string, other: string): number {
  const [epoch, batch] = orderOf(one) ?? [-1, -1]
  const [otherEpoch, otherBatch] = orderOf(other) ?? [-1, -1]
  return epoch - otherEpoch || batch - otherBatch
}
