// What is open. A handle is a number that says how it was opened and nothing else, so any daemon can make sense of it later.
import type { FileSystem, Ino } from '../cache/filesystem.js'
import { OpenFlag } from '../wire/fuse.js'

const READABLE = 1
const WRITABLE = 2

export const handleOf = (flags: number) => ((flags & OpenFlag.ACCMODE) === OpenFlag.RDONLY ? READABLE : WRITABLE)

/** Counts open files for the engine, and remembers which inodes may have dirty pages in the kernel. */
export class Handles {
  readonly #fs: FileSystem
  readonly #writers = new Map<Ino, number>()

  constructor(fs: FileSystem) {
    this.#fs = fs
  }

  /** Returns the handle. */
  open(ino: Ino, flags: number): number {
    const handle = handleOf(flags)
    if (handle === WRITABLE) this.#writers.set(ino, (this.#writers.get(ino) ?? 0) + 1)
    this.#fs.opened(ino, handle === WRITABLE)
    return handle
  }

  release(ino: Ino, handle: number) {
    const writable = handle === WRITABLE
    if (writable) {
      const left = (this.#writers.get(ino) ?? 0) - 1
      if (left > 0) this.#writers.set(ino, left)
      else this.#writers.delete(ino)
    }
    this.#fs.released(ino, writable)
  }

  /** Somebody has it open for writing, or mapped so: the kernel may know newer bytes and a newer size than the engine. */
  isWritable(ino: Ino): boolean {
    return this.#writers.has(ino)
  }

  writable(): Ino[] {
    return [...this.#writers.keys()]
  }
}
