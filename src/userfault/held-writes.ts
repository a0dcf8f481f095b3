// The same, for those who want one moment: whoever writes to a page for the first time since the last push asks, and waits for the answer.
// While pages are copied nobody is answered.
import { PageSet } from './page-set.js'
import { copyMemory, type Run, type SeenPages, type Tracking } from './tracker.js'
import type { Userfaultfd } from './userfaultfd.js'

const PAGE_BYTES = 4096
/** Pushed as one: what a segment of the journal can take, with all that goes along. */
const AT_ONCE_BYTES_MAX = 128 * 1024 * 1024

/** By synchronous write-protection. It owns nothing of the mapping. */
export class HeldWrites implements Tracking {
  readonly #uffd: Userfaultfd
  readonly #address: number
  readonly #onFull: () => void
  /** Not protected. */
  #written = new PageSet()
  #writtenBytes = 0
  #isHeld = false
  readonly #waiting: number[] = []

  /** `onFull`: as much was written as can be pushed at once; whoever goes on waits for that. */
  constructor(uffd: Userfaultfd, { address, onFull }: { address: number; onFull: () => void }) {
    this.#uffd = uffd
    this.#address = address
    this.#onFull = onFull
  }

  /** Somebody is about to write to a page that is protected. */
  asked(at: number): void {
    const isFull = this.#writtenBytes >= AT_ONCE_BYTES_MAX
    if (this.#isHeld || isFull) this.#waiting.push(at)
    else this.#letGo(at)
    if (isFull && !this.#isHeld) this.#onFull()
  }

  #letGo(at: number): void {
    const page = Math.floor(at / PAGE_BYTES)
    if (!this.#written.has(page)) this.#writtenBytes += PAGE_BYTES
    this.#written.add(page, page + 1)
    this.#uffd.unprotect(this.#address + page * PAGE_BYTES, PAGE_BYTES)
  }

  /**
   * From here to `allPushed` or `release` whoever writes waits. So every write that is not in what is taken is made after it, and every
   * one that is in it before: it is one moment, though pages are protected one after the other.
   */
  take(): Run[] {
    this.#isHeld = true
    const runs = this.#written.runs().map(([from, to]): Run => [from * PAGE_BYTES, to * PAGE_BYTES])
    for (const [from, to] of runs) this.#uffd.protect(this.#address + from, to - from)
    this.#written = new PageSet()
    this.#writtenBytes = 0
    return runs
  }

  changed(at: number, bytes: Uint8Array): Run[] {
    return [[at, at + bytes.length]]
  }

  pushed(): void {}

  allPushed(): void {
    this.release()
  }

  release(): void {
    this.#isHeld = false
    for (const at of this.#waiting.splice(0)) this.#letGo(at)
  }

  arrived(): void {}

  /** Nobody writes to a page that is protected before it was answered. */
  see(from: number, into: Uint8Array): SeenPages {
    const written = new PageSet()
    const first = from / PAGE_BYTES
    for (let page = 0; page < into.length / PAGE_BYTES; page++) {
      const at = page * PAGE_BYTES
      if (this.#written.has(first + page)) written.add(page, page + 1)
      else copyMemory(this.#address + from + at, into.subarray(at, at + PAGE_BYTES))
    }
    return { written, bytes: into }
  }

  close(): void {
    this.release()
  }
}
