// The directory of one remote's cache on this host: made, checked, locked, and never used for another remote.
import { randomUUID } from 'node:crypto'
import {
  chmodSync,
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { FerryError, toFerryError } from '../base/errors.js'

export interface CacheDirOptions {
  /** Canonical URL of the remote, without credentials. */
  remote: string
  /** Takes the exclusive lock of a file (and makes it): how to give it back, or the pid of who holds it (0: not known). */
  lock: (path: string) => (() => void) | number
}

export interface CacheDir extends Disposable {
  readonly path: string
  readonly remote: string
  /** A UUID, the same for the life of the directory: names its writer in the remote's lease. */
  readonly writer: string
  /** Gives the lock back. Closing twice is fine. */
  close(): void
}

interface Format {
  magic: string
  major: number
  minor: number
  /** Bits that a reader must know to use the directory. */
  features: number
  writer: string
  remote: string
}

const FORMAT = 'FORMAT'
const FORMAT_NEW = 'FORMAT.new'
const LOCK = 'lock'
const MAGIC = 'pageferry cache'
const MAJOR = 1
const MINOR = 0
/** Unsent work of the two majors before ours can always be read. */
const OLDEST_MAJOR = 1
const FEATURES_KNOWN = 0

const OTHERS_MAY_WRITE = 0o022

/**
 * Opens or creates a cache directory.
 * @throws BUSY with the holder's pid; FORBIDDEN when it is not ours or others may write to it; USAGE when it belongs to another
 *   remote; BAD_FORMAT when it holds something else; TOO_NEW
 */
export function openCacheDir(path: string, { remote, lock }: CacheDirOptions): CacheDir {
  makePrivate(path)
  const before = readFormat(path)
  if (!before) mustBeEmpty(path)
  const release = lock(join(path, LOCK))
  if (typeof release === 'number') {
    const holder = release > 0 ? `process ${release}` : 'another process'
    throw new FerryError('BUSY', { detail: `${holder} uses the cache directory ${path}` })
  }
  try {
    // Once more: whoever had the lock until now may have made it.
    const format = readFormat(path) ?? writeFormat(path, remote)
    if (format.remote !== remote)
      throw new FerryError('USAGE', {
        detail: `the cache directory ${path} belongs to ${format.remote}, not to ${remote}`,
      })
    let closed = false
    const close = () => {
      if (!closed) release()
      closed = true
    }
    return { path, remote, writer: format.writer, close, [Symbol.dispose]: close }
  } catch (error) {
    release()
    throw toFerryError(error)
  }
}

/** Who may write here may make us send what they like. */
function makePrivate(path: string) {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 })
    const { uid, mode } = statSync(path)
    if (uid !== process.geteuid?.())
      throw new FerryError('FORBIDDEN', { detail: `the cache directory ${path} belongs to another user (uid ${uid})` })
    if (mode & OTHERS_MAY_WRITE) {
      const octal = (mode & 0o7777).toString(8).padStart(4, '0')
      throw new FerryError('FORBIDDEN', { detail: `others may write to the cache directory ${path} (mode ${octal})` })
    }
    if ((mode & 0o777) !== 0o700) chmodSync(path, 0o700)
  } catch (error) {
    throw toFerryError(error)
  }
}

/** Or become ours meanwhile: whoever holds the lock may be making it. */
function mustBeEmpty(path: string) {
  const names = readdirSync(path)
  const foreign = names.find(name => name !== LOCK && name !== FORMAT_NEW)
  if (foreign && !names.includes(FORMAT))
    throw new FerryError('BAD_FORMAT', { detail: `${path} is not a cache directory, and not empty (${foreign})` })
}

function readFormat(path: string): Format | undefined {
  let text: string
  try {
    text = readFileSync(join(path, FORMAT), 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw toFerryError(error)
  }
  const { magic, major, minor, features, writer, remote } = parse(text)
  if (magic !== MAGIC || typeof major !== 'number' || typeof features !== 'number')
    throw new FerryError('BAD_FORMAT', { detail: `${join(path, FORMAT)} is not ours` })
  if (major > MAJOR || (features & ~FEATURES_KNOWN) !== 0)
    throw new FerryError('TOO_NEW', {
      detail: `the cache directory ${path} has format ${major}.${minor}, features ${features}`,
    })
  if (major < OLDEST_MAJOR || typeof writer !== 'string' || typeof remote !== 'string')
    throw new FerryError('BAD_FORMAT', { detail: `the cache directory ${path} has format ${major}.${minor}` })
  return { magic, major, minor: Number(minor), features, writer, remote }
}

function parse(text: string): Partial<Record<keyof Format, unknown>> {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? value : {}
  } catch {
    return {}
  }
}

/** Durable when it returns: a journal without it would not be found again. */
function writeFormat(path: string, remote: string): Format {
  const format = { magic: MAGIC, major: MAJOR, minor: MINOR, features: 0, writer: randomUUID(), remote }
  const text = `${JSON.stringify(format, undefined, 2)}\n`
  writeFileSync(join(path, FORMAT_NEW), text, { mode: 0o600, flush: true })
  renameSync(join(path, FORMAT_NEW), join(path, FORMAT))
  const directory = openSync(path, 'r')
  try {
    fsyncSync(directory)
  } finally {
    closeSync(directory)
  }
  return format
}
