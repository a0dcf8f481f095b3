// Of one file: whole pages that are known to be zeros though nothing of them is here. They cost nothing, however many they are.
import { CHUNK_BYTES, maskCovering } from '../chunk/geometry.js'
import { Intervals } from '../chunk/intervals.js'

/** Runs that are remembered; of more, those that the remote has anyway are forgotten. */
const RUNS_MAX = 16_384

/** As the database and the journal keep it: edges of runs, in bytes. */
export type ZerosRecord = [known: number[], open: number[], flight: number[]]

/** A page is never both in one of these and valid in the chunk table, but for those of the flight. */
export class Zeros {
  #known = new Intervals()
  /** Made zeros since the last cut. */
  #open = new Intervals()
  /** Made zeros by the batch that is on its way. */
  #flight = new Intervals()

  /** Bytes that are known to be zeros. */
  get bytes(): number {
    return this.#known.bytes
  }

  /** The runs of zeros that the batch brings. */
  get flight(): Iterable<[from: number, to: number]> {
    return this.#flight
  }

  /** Pages of a chunk. */
  mask(index: number): number {
    const start = index * CHUNK_BYTES
    let mask = 0
    for (const [from, to] of this.#known.within(start, start + CHUNK_BYTES))
      mask |= maskCovering(from - start, to - start)
    return mask >>> 0
  }

  /** Runs of [from, to) that are zeros. */
  within(from: number, to: number): Iterable<[from: number, to: number]> {
    return this.#known.within(from, to)
  }

  /** Runs of [from, to) of which that is not known. */
  gaps(from: number, to: number): Iterable<[from: number, to: number]> {
    return this.#known.gaps(from, to)
  }

  /** These pages become zeros. */
  add(from: number, to: number): void {
    this.#known.add(from, to)
    this.#open.add(from, to)
    this.#bound()
  }

  /** These pages are not zeros any more, or are beyond the end. */
  remove(from: number, to: number): void {
    this.#known.remove(from, to)
    this.#open.remove(from, to)
    this.#bound()
  }

  cut(): void {
    this.#flight = this.#open
    this.#open = new Intervals()
  }

  /** The remote has what the flight brought. */
  committed(): void {
    this.#flight = new Intervals()
  }

  /** The flight never was committed: what of it was not written since goes with what is open. */
  merged(): void {
    for (const [from, to] of this.#flight) this.#openKnown(from, to)
    this.#flight = new Intervals()
  }

  #openKnown(from: number, to: number) {
    for (const [first, end] of [...this.#known.within(from, to)]) this.#open.add(first, end)
  }

  #bound() {
    if (this.#known.count <= RUNS_MAX) return
    const needed = [...this.#open, ...[...this.#flight].flatMap(([from, to]) => [...this.#known.within(from, to)])]
    this.#known.clear()
    for (const [from, to] of needed.sort(([a], [b]) => a - b)) this.#known.add(from, to)
  }

  toRecord(): ZerosRecord {
    return [this.#known.edges, this.#open.edges, this.#flight.edges]
  }

  static fromRecord([known, open, flight]: ZerosRecord): Zeros {
    const zeros = new Zeros()
    zeros.#known = new Intervals(known)
    zeros.#open = new Intervals(open)
    zeros.#flight = new Intervals(flight)
    return zeros
  }
}
