// The cache's local disk: one directory of preallocated and sparse files. What `cache/storage.ts` asks for, in its shape.
import {
  closeSync,
  constants,
  fdatasync,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  read,
  readdirSync,
  readSync,
  renameSync,
  statfsSync,
  unlinkSync,
  write,
  writeSync,
} from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import { keepSpace, punchHole } from './files.js'
import { EAGAIN, readNowait } from './preadv2.js'

/** Zeros written at a time when space is allocated. */
const ZEROS = new Uint8Array(256 * 1024)
/** statfs(2): where everything is in memory, but (before Linux 6.6) RWF_NOWAIT is not understood. */
const TMPFS_MAGIC = 0x0102_1994
/** stat(2): `st_blocks` counts these. */
const STAT_BLOCK_BYTES = 512
const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY

class Directory {
  readonly #path: string
  readonly inMemory: boolean

  constructor(path: string) {
    this.#path = path
    this.inMemory = statfsSync(path).type === TMPFS_MAGIC
  }

  pathOf(name: string) {
    return join(this.#path, name)
  }

  /** Creations, renames and removals before this are durable when it resolves. Seldom needed, so it keeps no descriptor. */
  async sync() {
    const directory = await open(this.#path, DIRECTORY)
    try {
      await directory.sync()
    } finally {
      await directory.close()
    }
  }

  syncSync() {
    const fd = openSync(this.#path, DIRECTORY)
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  }

  freeBytes() {
    const { bavail, bsize } = statfsSync(this.#path)
    return bavail * bsize
  }

  list() {
    return readdirSync(this.#path)
  }
}

type Callback = (error: NodeJS.ErrnoException | null, count: number) => void

class DiskFile {
  readonly #fd: number
  readonly #directory: Directory
  readonly #name: string
  /** Its name may not be durable yet: it is new, or a process that was killed had made it. */
  #fresh = true
  /** Calls on the thread pool: the descriptor must not be closed (and its number given to another file) under them. */
  #inFlight = 0
  #closed = false

  constructor(directory: Directory, name: string, fd: number) {
    this.#directory = directory
    this.#name = name
    this.#fd = fd
  }

  readNow(into: Uint8Array, at: number): number {
    this.#mustBeOpen()
    const count = readNowait(this.#fd, into, at)
    if (count > 0) return count
    if (count === 0) return into.fill(0).byteLength // beyond the end
    if (count === EAGAIN || !this.#directory.inMemory) return -1
    this.readSync(into, at)
    return into.byteLength
  }

  read(into: Uint8Array, at: number): Promise<void> {
    return this.#each(into.byteLength, 'read', (from, done) =>
      read(this.#fd, into, from, into.byteLength - from, at + from, (error, count) => {
        if (!error && count === 0) {
          into.fill(0, from)
          count = into.byteLength - from
        }
        done(error, count)
      }),
    )
  }

  readSync(into: Uint8Array, at: number): void {
    this.#mustBeOpen()
    for (let from = 0; from < into.byteLength; ) {
      const count = this.#attempt('read', () => readSync(this.#fd, into, from, into.byteLength - from, at + from))
      if (count === 0) {
        into.fill(0, from)
        return
      }
      from += count
    }
  }

  writeSync(from: Uint8Array, at: number): void {
    this.#mustBeOpen()
    try {
      let done = writeSync(this.#fd, from, 0, from.byteLength, at)
      while (done < from.byteLength) done += writeSync(this.#fd, from, done, from.byteLength - done, at + done)
    } catch (error) {
      throw this.#failure(error, 'write')
    }
  }

  write(from: Uint8Array, at: number): Promise<void> {
    return this.#each(from.byteLength, 'write', (start, done) =>
      write(this.#fd, from, start, from.byteLength - start, at + start, done),
    )
  }

  punch(at: number, length: number): void {
    this.#mustBeOpen()
    punchHole(this.#fd, { at, length })
  }

  async sync(): Promise<void> {
    await this.#each(1, 'sync', (_, done) => fdatasync(this.#fd, error => done(error, 1)))
    if (!this.#fresh) return
    await this.#directory.sync().catch(error => {
      throw this.#failure(error, 'sync the directory of')
    })
    this.#fresh = false
  }

  syncSync(): void {
    this.#mustBeOpen()
    this.#attempt('sync', () => fdatasyncSync(this.#fd))
    if (!this.#fresh) return
    this.#attempt('sync', () => this.#directory.syncSync())
    this.#fresh = false
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    if (this.#inFlight === 0) closeSync(this.#fd)
  }

  /** Repeats a call on the pool until `total` is done. */
  #each(total: number, what: string, call: (done: number, callback: Callback) => void): Promise<void> {
    this.#mustBeOpen()
    return new Promise((resolve, reject) => {
      let done = 0
      this.#inFlight++
      const settle = (error: NodeJS.ErrnoException | null) => {
        if (--this.#inFlight === 0 && this.#closed) closeSync(this.#fd)
        if (error) reject(this.#failure(error, what))
        else resolve()
      }
      const next: Callback = (error, count) => {
        if (error) return settle(error)
        done += count
        if (done < total) call(done, next)
        else settle(null)
      }
      if (total > 0) call(0, next)
      else settle(null)
    })
  }

  #attempt<T>(what: string, call: () => T): T {
    try {
      return call()
    } catch (error) {
      throw this.#failure(error, what)
    }
  }

  #failure(error: unknown, what: string) {
    const reason = (error as NodeJS.ErrnoException).code ?? String(error)
    return toFerryError(error, `${what} ${this.#directory.pathOf(this.#name)} (${reason})`)
  }

  #mustBeOpen() {
    if (this.#closed) throw new FerryError('CLOSED', { detail: this.#directory.pathOf(this.#name) })
  }
}

/** Files of one directory, which exists. Names are plain file names. */
class DiskStorage {
  readonly #directory: Directory

  constructor(path: string) {
    this.#directory = new Directory(path)
  }

  /**
   * Opens or creates a file of ours (0600), at least `bytes` long; with `allocate` what is added is written with zeros, so that
   * later writes change no metadata. Its name is durable after its first sync. NO_SPACE when the zeros do not fit.
   */
  open(name: string, { bytes = 0, allocate = false }: { bytes?: number; allocate?: boolean } = {}): DiskFile {
    const path = this.#directory.pathOf(name)
    try {
      const { fd, isNew } = openOrCreate(path)
      const file = new DiskFile(this.#directory, name, fd)
      try {
        const { size } = fstatSync(fd)
        if (allocate) for (let at = size; at < bytes; at += ZEROS.length) file.writeSync(zeros(bytes - at), at)
        else if (size < bytes) ftruncateSync(fd, bytes)
        return file
      } catch (error) {
        file.close()
        if (isNew) unlinkSync(path)
        throw error
      }
    } catch (error) {
      throw toFerryError(error, `open ${path}${error instanceof Error ? ` (${error.message})` : ''}`)
    }
  }

  list(): string[] {
    return this.#directory.list()
  }

  rename(source: string, target: string): void {
    try {
      renameSync(this.#directory.pathOf(source), this.#directory.pathOf(target))
      this.#directory.syncSync()
    } catch (error) {
      throw toFerryError(error)
    }
  }

  remove(name: string): void {
    try {
      unlinkSync(this.#directory.pathOf(name))
    } catch (error) {
      throw toFerryError(error)
    }
  }

  /** Where the file system cannot (UNSUPPORTED), it is only seen whether there is room. */
  reserve(name: string, bytes: number): void {
    const path = this.#directory.pathOf(name)
    const fd = openSync(path, constants.O_RDWR)
    try {
      keepSpace(fd, bytes)
    } catch (error) {
      if (!isFerryError(error, 'UNSUPPORTED')) throw toFerryError(error, `reserve ${bytes} bytes for ${path}`)
      const { blocks } = fstatSync(fd)
      if (blocks * STAT_BLOCK_BYTES + this.freeBytes() < bytes)
        throw new FerryError('NO_SPACE', { cause: error, detail: `${bytes} bytes for ${path}` })
    } finally {
      closeSync(fd)
    }
  }

  freeBytes(): number {
    return this.#directory.freeBytes()
  }
}

const zeros = (bytes: number) => (bytes < ZEROS.length ? ZEROS.subarray(0, bytes) : ZEROS)

function openOrCreate(path: string) {
  try {
    return { fd: openSync(path, constants.O_RDWR), isNew: false }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return { fd: openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600), isNew: true }
  }
}

export type { DiskFile, DiskStorage }

/** The files of `directory` (which exists) as the cache's storage. */
export const diskStorage = (directory: string): DiskStorage => new DiskStorage(directory)
