// What the three shapes of `file:` share: a root that may vanish, errors, open files, and versions.
import fs, { type BigIntStats } from 'node:fs'
import { promisify } from 'node:util'
import { LRUCache } from 'lru-cache'
import { KeyedMutex, throwIfAborted } from '../base/async.js'
import { takeBytes } from '../base/buffers.js'
import { type Code, FerryError, toFerryError } from '../base/errors.js'
import { checkPath, parentPath, printable } from './path.js'

// The callback functions, since these take plain descriptors. A path is always a Buffer: names are bytes.
export const lstat = (path: Buffer) =>
  new Promise<BigIntStats>((resolve, reject) =>
    fs.lstat(path, { bigint: true }, (error, stats) => (error ? reject(error) : resolve(stats))),
  )
export const fstat = (fd: number) =>
  new Promise<BigIntStats>((resolve, reject) =>
    fs.fstat(fd, { bigint: true }, (error, stats) => (error ? reject(error) : resolve(stats))),
  )
export const open = promisify(fs.open) as (path: Buffer, flags: number, mode?: number) => Promise<number>
export const close = promisify(fs.close)
export const fsync = promisify(fs.fsync)
export const fdatasync = promisify(fs.fdatasync)
export const ftruncate = promisify(fs.ftruncate)
export const unlink = promisify(fs.unlink)
export const rmdir = promisify(fs.rmdir) as (path: Buffer) => Promise<void>
export const mkdir = promisify(fs.mkdir) as (path: Buffer, mode: number) => Promise<void>
export const rename = promisify(fs.rename)
export const link = promisify(fs.link)
export const readNames = (path: Buffer) =>
  new Promise<string[]>((resolve, reject) =>
    fs.readdir(path, { encoding: 'latin1' }, (error, names) => (error ? reject(error) : resolve(names))),
  )
export const readLink = (path: Buffer) =>
  new Promise<string>((resolve, reject) =>
    fs.readlink(path, { encoding: 'latin1' }, (error, target) => (error ? reject(error) : resolve(target))),
  )

/** Bytes of a path below a root. */
export const PATH_BYTES_MAX = 65_536
/** Of what is given to a system call, without its NUL and with room for one name more: PATH_MAX and NAME_MAX of linux/limits.h. */
const WHOLE_BYTES_MAX = 4095 - 256
const SLASH = 0x2f
/** fcntl.h; node has no name for it. */
const O_PATH = 0o10000000

const { O_RDONLY, O_WRONLY, O_NOATIME, O_NOFOLLOW, O_NONBLOCK, O_DIRECTORY } = fs.constants

/** Where it differs from the general table in errors.ts. */
const fileErrors: Record<string, Code> = {
  ELOOP: 'INVALID',
  ENXIO: 'INVALID',
  E2BIG: 'TOO_LARGE',
  ETXTBSY: 'BUSY',
  // A network file system below us that lost its server, or a disk that was pulled out.
  ESTALE: 'UNREACHABLE',
  ENODEV: 'UNREACHABLE',
  EHOSTDOWN: 'UNREACHABLE',
}

/** The name of the errno behind an error of `fs` or of `linux/`. */
export function errnoName(error: unknown): string | undefined {
  const { code, cause } = (error ?? {}) as { code?: unknown; cause?: unknown }
  if (typeof code === 'string' && /^E[A-Z0-9]+$/.test(code) && !(error instanceof FerryError)) return code
  return cause === undefined ? undefined : errnoName(cause)
}

/** Any error as ours, with the path that was given rather than the whole one. What `linux/` could not place better it gave as IO. */
export function fileError(error: unknown, path: string): FerryError {
  if (error instanceof FerryError && error.code !== 'IO' && error.code !== 'STALE') return error
  const ours = fileErrors[errnoName(error) ?? '']
  return ours ? new FerryError(ours, { cause: error, detail: printable(path) }) : toFerryError(error, printable(path))
}

/** Opaque for everybody else. Neither a chmod nor a rename changes it; other bytes do, but for a change in place within one tick of the clock that leaves size and mtime. */
export const versionOf = ({ ino, size, mtimeNs }: BigIntStats): string => `${ino}-${size}-${mtimeNs}`

/** A directory on this host under which everything lies. It may vanish (a disk that is unmounted): that is no answer about its files. */
export class FileRoot {
  readonly #ino: bigint
  private constructor(
    /** As bytes, without symlinks and without a slash at the end. */
    readonly directory: Buffer,
    ino: bigint,
  ) {
    this.#ino = ino
  }

  /** NOT_FOUND, NOT_DIRECTORY, FORBIDDEN. A symlink to a directory is fine here: the user named it. */
  static async open(directory: string | Buffer): Promise<FileRoot> {
    const shown = Buffer.from(directory).toString('latin1')
    try {
      const real = await fs.promises.realpath(directory, { encoding: 'buffer' })
      const stats = await lstat(real)
      if (!stats.isDirectory()) throw new FerryError('NOT_DIRECTORY', { detail: printable(shown) })
      return new FileRoot(real.equals(Buffer.from('/')) ? Buffer.alloc(0) : real, stats.ino)
    } catch (error) {
      throw fileError(error, shown)
    }
  }

  /** The file's whole path. INVALID for what would lead out of the root. */
  at(path: string): Buffer {
    checkPath(path)
    const below = path === '' ? '' : `/${path}`
    const whole = Buffer.concat([this.directory, Buffer.from(below, 'latin1')])
    return whole.length ? whole : Buffer.from('/')
  }

  /**
   * Runs `work` with a path by which the file is reached, and which one name more can follow: the whole one, or, where that is longer
   * than system calls take, one that begins at a directory on the way, which is open meanwhile. NAME_TOO_LONG above PATH_BYTES_MAX.
   */
  async reach<T>(path: string, work: (whole: Buffer) => Promise<T>): Promise<T> {
    let whole = this.at(path)
    if (whole.length <= WHOLE_BYTES_MAX) return work(whole)
    const tooLong = () => new FerryError('NAME_TOO_LONG', { detail: `${path.length} bytes of path` })
    if (path.length > PATH_BYTES_MAX) throw tooLong()
    let from = { fd: -1, name: '' }
    try {
      while (whole.length > WHOLE_BYTES_MAX) {
        const end = whole.lastIndexOf(SLASH, WHOLE_BYTES_MAX)
        if (end <= from.name.length) throw tooLong()
        const fd = await open(whole.subarray(0, end), O_PATH | O_DIRECTORY)
        if (from.fd !== -1) await close(from.fd)
        from = { fd, name: `/proc/self/fd/${fd}` }
        whole = Buffer.concat([Buffer.from(from.name), whole.subarray(end)])
      }
      return await work(whole)
    } finally {
      if (from.fd !== -1) await close(from.fd)
    }
  }

  /**
   * UNREACHABLE unless the root is the directory that it was. (Only the inode number counts: the device's changes when the same
   * disk is mounted again.)
   */
  async check(): Promise<void> {
    try {
      const stats = await lstat(this.at(''))
      if (stats.isDirectory() && stats.ino === this.#ino) return
    } catch (error) {
      throw this.#gone(error)
    }
    throw this.#gone()
  }

  #gone(cause?: unknown) {
    return new FerryError('UNREACHABLE', {
      cause,
      detail: `${printable(this.directory.toString('latin1'))} is gone, or another directory`,
    })
  }

  /** Runs `work` on `path`; every error becomes ours, and "not found" is only said while the root is there. */
  async try<T>(path: string, signal: AbortSignal | undefined, work: (whole: Buffer) => Promise<T>): Promise<T> {
    throwIfAborted(signal)
    try {
      return await this.reach(path, work)
    } catch (thrown) {
      const error = fileError(thrown, path)
      if (error.code === 'NOT_FOUND' || error.code === 'NOT_DIRECTORY') await this.check()
      throw error
    }
  }

  /** The same for what changes something: never in a directory that stands where the root was. */
  async change<T>(path: string, signal: AbortSignal | undefined, work: (whole: Buffer) => Promise<T>): Promise<T> {
    throwIfAborted(signal)
    await this.check()
    return this.try(path, signal, work)
  }
}

/** Syncs that have been asked for and not begun. */
const wantedSyncs = new Map<string, Promise<void>>()

/** fsync of a directory: its names survive a crash. Who asks while one is running shares the next. fsync(2) */
export function syncDirectory(path: Buffer): Promise<void> {
  const key = path.toString('latin1')
  const wanted = wantedSyncs.get(key)
  if (wanted) return wanted
  const sync = directorySyncs.run(key, async () => {
    wantedSyncs.delete(key)
    const fd = await open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
    try {
      await fsync(fd)
    } finally {
      await close(fd)
    }
  })
  wantedSyncs.set(key, sync)
  return sync
}
const directorySyncs = new KeyedMutex()

/** The same for a path; if that was removed, for the nearest directory above it that is there. */
export async function syncNearest(root: FileRoot, path: string): Promise<void> {
  try {
    await root.reach(path, syncDirectory)
  } catch (error) {
    if (path === '' || !['ENOENT', 'ENOTDIR', 'ELOOP'].includes(errnoName(error) ?? '')) throw error
    await syncNearest(root, parentPath(path))
  }
}

/** What node lets a single read or write do is less than 2 GiB. */
const CALL_BYTES_MAX = 2 ** 30

/** All of `from`: write(2) may do less than it was asked. */
export async function writeAll(fd: number, from: Uint8Array, at: number): Promise<void> {
  const write = (done: number) =>
    new Promise<number>((resolve, reject) =>
      fs.write(fd, from, done, Math.min(from.byteLength - done, CALL_BYTES_MAX), at + done, (error, count) =>
        error ? reject(error) : resolve(count),
      ),
    )
  for (let done = 0; done < from.byteLength; ) done += await write(done)
}

/** Up to `length` bytes from `at`: fewer only at the end of the file. Nobody else has their memory, which may be given back. */
export async function readUpTo(fd: number, at: number, length: number): Promise<Uint8Array> {
  const into = takeBytes(length)
  const read = (done: number) =>
    new Promise<number>((resolve, reject) =>
      fs.read(fd, into, done, Math.min(length - done, CALL_BYTES_MAX), at + done, (error, count) =>
        error ? reject(error) : resolve(count),
      ),
    )
  let done = 0
  while (done < length) {
    const count = await read(done)
    if (count === 0) break
    done += count
  }
  return into.subarray(0, done)
}

interface OpenFile {
  fd: number
  dev: bigint
  ino: bigint
  users: number
  usedAtMs: number
  evicted: boolean
}

/** Descriptors kept open per root, for each of reading and writing. */
const OPEN_FILES_MAX = 128
/** An open file keeps its disk from being unmounted, and the space of a removed one from being free: not for longer than this. */
const OPEN_UNUSED_MS_MAX = 1000

/**
 * Files that are kept open, by path. Before each use the path is looked at again, and the descriptor serves only if it is that
 * very inode (whose number cannot come back while we have it open): a file that was replaced or removed is noticed at once.
 */
export class OpenFiles {
  readonly #files: LRUCache<string, OpenFile>
  readonly #access: number
  #closeError: Error | null = null
  #sweeper: NodeJS.Timeout | null = null

  constructor(how: 'read' | 'write') {
    this.#access = how === 'read' ? O_RDONLY : O_WRONLY
    this.#files = new LRUCache({
      max: OPEN_FILES_MAX,
      dispose: file => {
        file.evicted = true
        if (file.users === 0) this.#close(file)
      },
    })
  }

  /** Runs `work` with the open file at `path` and what lstat(2) just said of it. IS_DIRECTORY, INVALID for what is no file. */
  async use<T>(path: Buffer, work: (fd: number, stats: BigIntStats) => Promise<T>): Promise<T> {
    const key = path.toString('latin1')
    const stats = await lstat(path)
    if (stats.isDirectory()) throw new FerryError('IS_DIRECTORY', { detail: printable(key) })
    if (!stats.isFile()) throw new FerryError('INVALID', { detail: `${printable(key)} is no regular file` })
    let file = this.#files.get(key)
    if (file?.dev !== stats.dev || file.ino !== stats.ino) {
      file = await this.#open(path, stats)
      this.#files.set(key, file)
    }
    file.users++
    try {
      return await work(file.fd, stats)
    } finally {
      file.users--
      file.usedAtMs = performance.now()
      if (file.users === 0 && file.evicted) this.#close(file)
      else this.#sweepLater()
    }
  }

  #sweepLater(): void {
    this.#sweeper ??= setTimeout(() => {
      this.#sweeper = null
      const since = performance.now() - OPEN_UNUSED_MS_MAX
      for (const [key, { users, usedAtMs }] of [...this.#files.entries()])
        if (users === 0 && usedAtMs <= since) this.#files.delete(key)
      if (this.#files.size > 0) this.#sweepLater()
    }, OPEN_UNUSED_MS_MAX).unref()
  }

  async #open(path: Buffer, { dev, ino, uid, mode }: BigIntStats): Promise<OpenFile> {
    const euid = process.geteuid?.()
    const isOurs = euid === 0 || Number(uid) === euid
    // Reading through us should leave no trace at the remote; only the owner may ask for that.
    const flags = this.#access | O_NOFOLLOW | O_NONBLOCK | (isOurs ? O_NOATIME : 0)
    const fd = await open(path, flags).catch(async error => {
      if (errnoName(error) === 'EMFILE') this.clear()
      else if (errnoName(error) !== 'EACCES' || !isOurs) throw error
      // Ours, but its mode shuts us out too (0444 when writing): open the door for a moment.
      else await fs.promises.chmod(path, Number(mode & 0o7777n) | 0o600)
      try {
        return await open(path, flags)
      } finally {
        if (errnoName(error) === 'EACCES') await fs.promises.chmod(path, Number(mode & 0o7777n))
      }
    })
    const opened = await fstat(fd)
    if (opened.dev === dev && opened.ino === ino) return { fd, dev, ino, users: 0, usedAtMs: 0, evicted: false }
    await close(fd)
    throw new FerryError('STALE', { detail: `${printable(path.toString('latin1'))} was replaced just now` })
  }

  /** Network file systems may say only now that a write did not arrive: the next sync has to hear of it. */
  #close(file: OpenFile): void {
    fs.close(file.fd, error => {
      if (error && this.#access !== O_RDONLY) this.#closeError ??= error
    })
  }

  /** Throws what closing a file brought to light since the last time it was asked. */
  throwIfLost(): void {
    const error = this.#closeError
    this.#closeError = null
    if (error) throw error
  }

  clear(): void {
    this.#files.clear()
  }
}

/** `length` bytes of a file from `at`, fewer at its end; with `version`, all of them are of that version, else STALE. */
export function readFile(
  files: OpenFiles,
  path: Buffer,
  { at, length, version }: { at: number; length: number; version?: string },
): Promise<Uint8Array> {
  return useVersion(files, path, version, (fd, { size }) =>
    readUpTo(fd, at, Math.max(0, Math.min(length, Number(size) - at))),
  )
}

/** `work` on an open file; with `version`, all of it is done while the file is of that version, else STALE. */
export function useVersion<T>(
  files: OpenFiles,
  path: Buffer,
  version: string | undefined,
  work: (fd: number, stats: BigIntStats) => Promise<T>,
): Promise<T> {
  return files.use(path, async (fd, before) => {
    const stale = () => new FerryError('STALE', { detail: printable(path.toString('latin1')) })
    if (version !== undefined && versionOf(before) !== version) throw stale()
    const result = await work(fd, before)
    // The kernel changes mtime before it changes bytes: what is the same afterwards was the same meanwhile.
    if (version !== undefined && versionOf(await fstat(fd)) !== version) throw stale()
    return result
  })
}
