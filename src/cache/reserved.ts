// Of one file: holes that fallocate(2) asked for. Nothing is set aside for them, but stat(2) counts them as other file systems do.
import { PAGE_BYTES } from '../chunk/geometry.js'
import { Intervals } from '../chunk/intervals.js'

/** Runs that are remembered. Of a file that has more, nobody can tell any more which of its pages were only reserved. */
export const RESERVED_RUNS_MAX = 1_024

/** As the database keeps it: edges of runs, in bytes. */
export type ReservedRecord = number[]

/** A page is never both in this and written. */
export class Reserved {
  readonly #runs = new Intervals()

  get isFull(): boolean {
    return this.#runs.count > RESERVED_RUNS_MAX
  }

  get isEmpty(): boolean {
    return this.#runs.isEmpty
  }

  /** Below the end of a file of `size` bytes, and beyond it, where FALLOC_FL_KEEP_SIZE may reserve as well. */
  bytes(size: number): { within: number; beyond: number } {
    const end = Math.ceil(size / PAGE_BYTES) * PAGE_BYTES
    let within = 0
    for (const [from, to] of this.#runs.within(0, end)) within += to - from
    return { within, beyond: this.#runs.bytes - within }
  }

  add(from: number, to: number): void {
    this.#runs.add(from, to)
  }

  /** These pages were written, are beyond the end, or are to be a hole again. */
  remove(from: number, to: number): void {
    this.#runs.remove(from, to)
  }

  toRecord(): ReservedRecord {
    return [...this.#runs].flat()
  }

  static fromRecord(edges: ReservedRecord): Reserved {
    const reserved = new Reserved()
    for (let n = 0; n < edges.length; n += 2) reserved.add(edges[n], edges[n + 1])
    return reserved
  }
}
