// What the kernel's requests came to that may be delivered once more: a change that was made is not made again.
import type { Ino } from './filesystem.js'
import type { Asked } from './records.js'

/** Of which connection, and each request with its inode, or 0. */
export type OutcomesRecord = [connection: number, done: [request: number, ino: Ino][]]

/** Requests that one kernel has on their way at once, at most. */
const OUTCOMES_MAX = 65_536

/** From the record of a change until its answer was sent, and from one process to the next. */
export class Outcomes {
  readonly #done = new Map<number, Ino>()

  constructor(
    /** Of the kernel's connection, whose requests are noted with what they do; 0: they are not. */
    readonly connection = 0,
  ) {}

  /** Of a record that answers a request of the kernel. */
  asked(request: number): Asked | undefined {
    return request && this.connection ? [this.connection, request] : undefined
  }

  /** The request was done, with this inode. The oldest ones leave when there are too many. */
  note(asked: Asked | null | undefined, ino: Ino = 0): void {
    if (!asked || asked[0] !== this.connection) return
    this.#done.set(asked[1], ino)
    if (this.#done.size > OUTCOMES_MAX) this.#done.delete(this.#done.keys().next().value!)
  }

  /** What the request was answered with; undefined: it was not done yet. */
  of(request: number): Ino | undefined {
    return this.#done.get(request)
  }

  /** It will not be delivered again. */
  answered(request: number): void {
    this.#done.delete(request)
  }

  /** Nor will any but these. */
  keep(requests: ReadonlySet<number>): void {
    for (const request of this.#done.keys()) if (!requests.has(request)) this.#done.delete(request)
  }

  toRecord(): OutcomesRecord {
    return [this.connection, [...this.#done]]
  }

  take([connection, done]: OutcomesRecord): void {
    for (const [request, ino] of done) this.note([connection, request], ino)
  }
}
