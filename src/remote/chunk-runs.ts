// A blob that is kept chunk by chunk: neighbouring chunks that were written together are one object, a run, which never changes.
// Which runs there are is what a listing says; of those over one chunk the newest counts. Pure.
//
// FORMATS: names are `runs/FIRST-COUNT.EPOCH.BATCH.N`, FIRST in 8 or more hexadecimal digits, the rest in decimal; with `.zeros` behind it,
// all of it is zeros, and the object is empty. Runs are ordered by epoch, batch and N.
import type { Packed } from './intent.js'

/** So many chunks of a blob share one table. */
const TABLE_CHUNKS = 4_096

/** Where a blob's chunks lie in it. */
export interface ChunkGeometry {
  /** Of the whole blob, in bytes. */
  size: number
  chunkBytes: number
}

export interface Run {
  name: string
  first: number
  count: number
  epoch: number
  batch: number
  /** Within its batch. */
  number: number
  zeros: boolean
}

const PREFIX = 'runs/'
export const RUNS = PREFIX

export function runOf(place: Omit<Run, 'name'>): Run {
  const { first, count, epoch, batch, number, zeros } = place
  const where = `${first.toString(16).padStart(8, '0')}-${count}`
  return { ...place, name: `${PREFIX}${where}.${epoch}.${batch}.${number}${zeros ? '.zeros' : ''}` }
}

/** null: it is the name of none. */
export function parseRun(name: string): Run | null {
  const found = /^runs\/([0-9a-f]{8,13})-(\d+)\.(\d+)\.(\d+)\.(\d+)(\.zeros)?$/.exec(name)
  if (!found) return null
  const [count, epoch, batch, number] = found.slice(2, 6).map(Number)
  return { name, first: Number.parseInt(found[1], 16), count, epoch, batch, number, zeros: found[6] !== undefined }
}

/** As an intent names it. */
export const packedOf = ({ name, first, count }: Run): Packed => ['', first, count, name, 0]
export const runsOf = (packed: Packed[]): Run[] => packed.map(([, , , name]) => parseRun(name)!)

export const compareRuns = (one: Run, other: Run): number =>
  one.epoch - other.epoch || one.batch - other.batch || one.number - other.number

/** Chunks behind each other that are read from one run, or (without one) have never been written. */
export interface RunPiece {
  first: number
  count: number
  run: Run | undefined
}

/** Which run each chunk is read from. */
export class RunIndex {
  readonly #runs: (Run | undefined)[] = [undefined]
  readonly #live: number[] = [0]
  readonly #free: number[] = []
  /** Per chunk, in tables of TABLE_CHUNKS: where in `#runs`; 0: nowhere. */
  readonly #tables = new Map<number, Uint32Array>()

  /** Of runs in any order. */
  static of(runs: Iterable<Run>): RunIndex {
    const index = new RunIndex()
    for (const run of [...runs].sort(compareRuns)) index.lay(run)
    return index
  }

  /** It is newer than all that are in here. */
  lay(run: Run): void {
    const slot = this.#free.pop() ?? this.#runs.length
    this.#runs[slot] = run
    this.#live[slot] = run.count
    for (let chunk = run.first; chunk < run.first + run.count; chunk++) {
      const number = Math.floor(chunk / TABLE_CHUNKS)
      let table = this.#tables.get(number)
      if (!table) this.#tables.set(number, (table = new Uint32Array(TABLE_CHUNKS)))
      const under = table[chunk % TABLE_CHUNKS]
      if (under) this.#live[under]--
      table[chunk % TABLE_CHUNKS] = slot
    }
  }

  at(chunk: number): Run | undefined {
    return this.#runs[this.#slotOf(chunk)]
  }

  /** How many chunks are read from the run that this chunk is read from. */
  liveAt(chunk: number): number {
    return this.#live[this.#slotOf(chunk)]
  }

  /** Ascending, without gaps. */
  *pieces(first: number, count: number): Generator<RunPiece> {
    const end = first + count
    for (let from = first; from < end; ) {
      const slot = this.#slotOf(from)
      let to = from + 1
      while (to < end && this.#slotOf(to) === slot) to++
      yield { first: from, count: to - from, run: this.#runs[slot] }
      from = to
    }
  }

  /** Epochs of which something is still read. */
  epochs(): Set<number> {
    return new Set(this.#runs.flatMap((run, slot) => (run && this.#live[slot] > 0 ? [run.epoch] : [])))
  }

  /** Runs from which nothing is read any more; they are forgotten. */
  takeDead(): Run[] {
    const dead: Run[] = []
    for (const [slot, run] of this.#runs.entries()) {
      if (!run || this.#live[slot] > 0) continue
      dead.push(run)
      this.#runs[slot] = undefined
      this.#free.push(slot)
    }
    return dead
  }

  #slotOf(chunk: number): number {
    return this.#tables.get(Math.floor(chunk / TABLE_CHUNKS))?.[chunk % TABLE_CHUNKS] ?? 0
  }
}

/** Neighbours in an ascending list of chunks, at most `countMax` together. */
export function neighbours(chunks: number[], countMax: number): { first: number; count: number }[] {
  const groups: { first: number; count: number }[] = []
  for (const chunk of chunks) {
    const last = groups.at(-1)
    if (last && last.first + last.count === chunk && last.count < countMax) last.count++
    else groups.push({ first: chunk, count: 1 })
  }
  return groups
}
