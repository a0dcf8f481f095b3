// Files that the kernel reads by itself while they are open: FUSE_PASSTHROUGH (Documentation/filesystems/fuse/fuse-passthrough.rst).
//
// Who opens a file that somebody has open like that must get it from the same backing file, and nobody may have it open both ways: the
// kernel refuses such an open (fs/fuse/iomode.c). So the first of them decides.
import { toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { Backing, FileSystem, Ino } from '../cache/filesystem.js'

const log = logger('fs')

export const NOT_HERE = 'the kernel does not read complete files by itself'

/** How the kernel is told of files that it may read. */
export interface BackingFiles {
  /** @returns the kernel's number for the descriptor's file, which may be closed then */
  open(fd: number): number
  close(id: number): void
}

interface Open {
  id: number
  /** Of this process. */
  count: number
  /** An earlier process opened it first, and does not say how often. */
  isInherited: boolean
}

export class Passthrough {
  readonly #fs: FileSystem
  readonly #files: BackingFiles
  readonly #backing: Backing
  readonly #open = new Map<Ino, Open>()
  #isOn = false

  constructor(fs: FileSystem, backing: Backing, files: BackingFiles) {
    this.#fs = fs
    this.#files = files
    this.#backing = backing
  }

  /** Unless this process may not, or its cache lies on a file system that is stacked itself; `isWanted`: then that is a warning. */
  begin(isWanted: boolean): void {
    const backing = this.#backing
    try {
      backing.begin(fd => this.#files.close(this.#files.open(fd)))
    } catch (error) {
      log[isWanted ? 'warn' : 'info'](NOT_HERE, { error: toFerryError(error) })
      return
    }
    this.#isOn = true
    for (const [ino, id] of backing.noted) this.#open.set(ino, { id, count: 0, isInherited: true })
  }

  /** One more open of the file is the kernel's own affair; false: it is ours. `isOpen`: somebody has it open through us. */
  open(ino: Ino, isOpen: () => boolean): boolean {
    if (!this.#isOn) return false
    const open = this.#opened(ino)
    if (open) {
      open.count++
      return true
    }
    // How an earlier process let it be opened is not known.
    if (isOpen() || this.#fs.isOutlived?.(ino)) return false
    const fd = this.#backing.hold(ino)
    if (fd === null) return false
    try {
      const id = this.#files.open(fd)
      this.#backing.note(ino, id)
      this.#open.set(ino, { id, count: 1, isInherited: false })
      return true
    } catch (error) {
      this.#backing.release(ino)
      log.info(NOT_HERE, { error: toFerryError(error) })
      return false
    }
  }

  /** The kernel's number of what it reads instead of us. */
  idOf(ino: Ino): number {
    return this.#open.get(ino)!.id
  }

  release(ino: Ino): void {
    const open = this.#open.get(ino)
    if (!open) return
    if (open.count > 0) open.count--
    if (open.count === 0 && !open.isInherited) this.#close(ino, open)
  }

  /** What was inherited ends when the kernel has forgotten the file: nobody has it open then. */
  #opened(ino: Ino): Open | undefined {
    const open = this.#open.get(ino)
    if (!open?.isInherited || open.count > 0 || this.#fs.isOutlived?.(ino)) return open
    this.#close(ino, open)
    return undefined
  }

  #close(ino: Ino, { id, isInherited }: Open) {
    this.#open.delete(ino)
    this.#backing.note(ino, null)
    if (!isInherited) this.#backing.release(ino)
    this.#files.close(id)
  }
}
