// What is open. A handle is a number that says how it was opened and nothing else, so any daemon can make sense of it later.
import type { FileSystem, Ino } from '../cache/filesystem.js'
import { OpenFlag } from '../wire/fuse.js'
import type { Passthrough } from './passthrough.js'

const READABLE = 1
const WRITABLE = 2
/** The kernel reads it by itself. */
export const PASSED = 4
const KINDS = 8

/** The same handle, which also says for which mark (see Invalidations) its opening made the kernel drop pages; 0: for none. */
export const withMark = (handle: number, mark: number): number => handle + mark * KINDS
export const markOf = (handle: number): number => Math.floor(handle / KINDS)

/** Counts open files for the engine, and knows which inodes may have dirty pages in the kernel. */
export class Handles {
  readonly #fs: FileSystem
  readonly #readers = new Map<Ino, number>()
  readonly #writers = new Map<Ino, number>()
  readonly #passthrough: Passthrough | undefined

  constructor(fs: FileSystem, passthrough?: Passthrough) {
    this.#fs = fs
    this.#passthrough = passthrough
  }

  /** Returns the handle. */
  open(ino: Ino, flags: number): number {
    const isReader = (flags & OpenFlag.ACCMODE) === OpenFlag.RDONLY
    if (isReader && this.#passthrough?.open(ino, () => this.isOpen(ino))) {
      this.#fs.opened(ino, false)
      return PASSED
    }
    const handle = isReader ? READABLE : WRITABLE
    add(this.#of(handle), ino, 1)
    this.#fs.opened(ino, handle === WRITABLE)
    return handle
  }

  release(ino: Ino, handle: number) {
    const kind = handle % KINDS
    if (kind === PASSED) this.#passthrough?.release(ino)
    else add(this.#of(kind), ino, -1)
    this.#fs.released(ino, kind === WRITABLE)
  }

  /** Of those that were opened here, and through us. */
  count(ino: Ino): number {
    return (this.#readers.get(ino) ?? 0) + (this.#writers.get(ino) ?? 0)
  }

  /** Through us. */
  isOpen(ino: Ino): boolean {
    return this.#readers.has(ino) || this.isWritable(ino)
  }

  /** Somebody has it open for writing, or mapped so: the kernel may know newer bytes and a newer size than the engine. */
  isWritable(ino: Ino): boolean {
    return this.#writers.has(ino) || this.#fs.isOutlived?.(ino) === true
  }

  /** Of those that were opened here. */
  writable(): Ino[] {
    return [...this.#writers.keys()]
  }

  #of(handle: number) {
    return handle === WRITABLE ? this.#writers : this.#readers
  }
}

function add(counts: Map<Ino, number>, ino: Ino, difference: number) {
  const count = (counts.get(ino) ?? 0) + difference
  if (count > 0) counts.set(ino, count)
  else counts.delete(ino)
}
