// One file, or one block device, of this host as a blob.
import fs, { type BigIntStats } from 'node:fs'
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { deviceOf, punchHole } from '../linux/files.js'
import { isMissing } from '../linux/libc.js'
import type { Blob } from './blob.js'
import {
  close,
  errnoName,
  fdatasync,
  fileError,
  fstat,
  ftruncate,
  open,
  readUpTo,
  syncDirectory,
  writeAll,
} from './file-io.js'
import { checkRequest, checkWithin, fileUrl, parentPath, printable } from './path.js'

/** Nothing in the kernel asks for a bound; but somebody must, before memory is taken for an answer. */
const REQUEST_BYTES_MAX = 64 * 1024 * 1024
const ZEROS = new Uint8Array(1 << 20)

const { O_RDONLY, O_RDWR, O_CREAT } = fs.constants

export interface FileBlobOptions {
  /** In bytes. The file is made with so many, or extended to them; a larger one is refused (INVALID). Default: as it is. */
  size?: number
}

/**
 * A file or block device. Not writable if we may only read it. NOT_FOUND, IS_DIRECTORY, FORBIDDEN, INVALID (no file).
 * Should the name go away or become another file, `flush` says UNREACHABLE: what was written would be lost with the last
 * descriptor.
 */
export async function fileBlob(path: string | Buffer, { size }: FileBlobOptions = {}): Promise<Blob> {
  const shown = Buffer.from(path).toString('latin1')
  const attempt = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work()
    } catch (error) {
      throw fileError(error, shown)
    }
  }
  return attempt(async () => {
    const { fd, write } = await openBest(Buffer.from(path), size !== undefined)
    try {
      const stats = await fstat(fd)
      const bytes = await sizeOf(fd, stats, { size, write, shown })
      const real = await fs.promises.realpath(path, { encoding: 'buffer' })
      // A file that was just made must not be gone after a crash.
      if (size !== undefined && write)
        await syncDirectory(Buffer.from(parentPath(real.toString('latin1')) || '/', 'latin1'))
      return blobOf({ fd, write, real, size: bytes, stats, attempt })
    } catch (error) {
      await close(fd)
      throw error
    }
  })
}

async function openBest(path: Buffer, create: boolean): Promise<{ fd: number; write: boolean }> {
  try {
    return { fd: await open(path, O_RDWR | (create ? O_CREAT : 0), 0o600), write: true }
  } catch (error) {
    // ETXTBSY: a program that is running.
    if (!['EACCES', 'EROFS', 'EPERM', 'ETXTBSY'].includes(errnoName(error) ?? '')) throw error
    return { fd: await open(path, O_RDONLY), write: false }
  }
}

async function sizeOf(
  fd: number,
  stats: BigIntStats,
  { size, write, shown }: { size?: number; write: boolean; shown: string },
): Promise<number> {
  if (stats.isDirectory()) throw new FerryError('IS_DIRECTORY', { detail: printable(shown) })
  if (stats.isBlockDevice()) return deviceBytes(stats)
  if (!stats.isFile()) throw new FerryError('INVALID', { detail: `${printable(shown)} is no file and no block device` })
  const now = Number(stats.size)
  if (size === undefined || size === now) return now
  if (size < now)
    throw new FerryError('INVALID', { detail: `${printable(shown)} has ${now} bytes, which is more than ${size}` })
  if (!write) throw new FerryError('READ_ONLY', { detail: printable(shown) })
  await ftruncate(fd, size)
  return size
}

/** In sectors of 512 bytes, whatever the device's own are. See block/stat of the kernel's documentation. */
async function deviceBytes({ rdev }: BigIntStats): Promise<number> {
  const { major, minor } = deviceOf(rdev)
  return Number(await fs.promises.readFile(`/sys/dev/block/${major}:${minor}/size`, 'latin1')) * 512
}

interface Opened {
  fd: number
  write: boolean
  real: Buffer
  size: number
  stats: BigIntStats
  attempt: <T>(work: () => Promise<T>) => Promise<T>
}

function blobOf({ fd, write, real, size: opened, stats, attempt }: Opened): Blob {
  let size = opened
  let closed = false

  const check = (range: { at: number; length: number }, signal: AbortSignal | undefined) => {
    throwIfAborted(signal)
    if (closed) throw new FerryError('CLOSED')
    checkWithin(range, size)
  }
  const checkWritable = () => {
    if (!write) throw new FerryError('READ_ONLY', { detail: printable(real.toString('latin1')) })
  }
  return {
    shape: 'blob',
    url: fileUrl(real),
    get size() {
      return size
    },
    capabilities: { write, trim: write, alignment: 1, requestBytesMax: REQUEST_BYTES_MAX },

    async read(at, length, signal) {
      check({ at, length }, signal)
      checkRequest(length, REQUEST_BYTES_MAX)
      const bytes = await attempt(() => readUpTo(fd, at, length))
      if (bytes.byteLength === length) return bytes
      throw new FerryError('SHORT_READ', {
        detail: `${bytes.byteLength} of ${length} bytes at ${at}: the file was cut`,
      })
    },

    async write(at, from, signal) {
      check({ at, length: from.byteLength }, signal)
      checkRequest(from.byteLength, REQUEST_BYTES_MAX)
      checkWritable()
      await attempt(() => writeAll(fd, from, at))
    },

    async flush(signal) {
      check({ at: 0, length: 0 }, signal)
      if (!write) return
      await attempt(() => fdatasync(fd))
      const now = await fs.promises.stat(real, { bigint: true }).catch(() => undefined)
      if (now?.ino !== stats.ino)
        throw new FerryError('UNREACHABLE', {
          detail: `${printable(real.toString('latin1'))} is gone, or another file`,
        })
    },

    async trim(at, length, signal) {
      check({ at, length }, signal)
      checkWritable()
      if (length === 0) return
      await attempt(async () => {
        try {
          punchHole(fd, { at, length })
        } catch (error) {
          if (!isMissing(error)) throw error
          for (let from = at; from < at + length; from += ZEROS.length)
            await writeAll(fd, ZEROS.subarray(0, Math.min(ZEROS.length, at + length - from)), from)
        }
      })
    },

    ...(stats.isFile() && {
      async resize(to: number, signal?: AbortSignal) {
        check({ at: 0, length: 0 }, signal)
        checkWritable()
        await attempt(() => ftruncate(fd, to))
        size = to
      },

      /** A disk says nothing of when it was written. */
      async version(signal?: AbortSignal) {
        check({ at: 0, length: 0 }, signal)
        const { ino, mtimeNs, ctimeNs } = await attempt(() => fstat(fd))
        return `${ino}-${mtimeNs}-${ctimeNs}`
      },
    }),

    async close() {
      if (closed) return
      closed = true
      await close(fd)
    },
  }
}
