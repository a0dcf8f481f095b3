// What Linux can do with files and node cannot: holes, extents, copies in the kernel, atomic renames, special files, exact times.
// Paths are bytes.

import { checked, checkedAsync, cstring, errno, lastErrno, printable, self, systemError } from './libc.js'
import { nameOf, pathOf, type Target } from './target.js'

/** A run of bytes of a file. */
export interface Range {
  at: number
  length: number
}

// --- space -------------------------------------------------------------------------------------------------------------

const fallocateCall = self.func('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']) as (
  fd: number,
  mode: number,
  at: number,
  length: number,
) => number

const FALLOC_FL_KEEP_SIZE = 1
const FALLOC_FL_PUNCH_HOLE = 2
const FALLOC_FL_ZERO_RANGE = 16

const allocate = (fd: number, mode: number, { at, length }: Range) => {
  while (fallocateCall(fd, mode, at, length) === -1) {
    const number = lastErrno()
    if (number !== errno.EINTR) throw systemError(number, 'fallocate')
  }
}

/** Reserves the space of a file's first bytes; it does not grow. NO_SPACE, UNSUPPORTED as below. fallocate(2) */
export const keepSpace = (fd: number, length: number): void => allocate(fd, FALLOC_FL_KEEP_SIZE, { at: 0, length })

/** Reserves space; the file grows if need be. NO_SPACE when the disk is full, UNSUPPORTED on some file systems. fallocate(2) */
export const preallocate = (fd: number, range: Range): void => allocate(fd, 0, range)

/** The same on the thread pool. */
export const preallocateAsync = async (fd: number, { at, length }: Range): Promise<void> => {
  await checkedAsync(fallocateCall, [fd, 0, at, length], 'fallocate')
}

/** Gives the space back: the range reads as zeros, the size stays. */
export const punchHole = (fd: number, range: Range): void =>
  allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range)

/** Zeros without writing them, with the space kept; the file grows if need be. */
export const zeroRange = (fd: number, range: Range): void => allocate(fd, FALLOC_FL_ZERO_RANGE, range)

const syncfsCall = self.func('syncfs', 'int', ['int']) as (fd: number) => number

/** Everything written to the file system that holds `fd` is durable when it resolves: syncfs(2), on the thread pool. */
export const syncFileSystem = async (fd: number): Promise<void> => {
  await checkedAsync(syncfsCall, [fd], 'syncfs')
}

// --- copies, extents and syncs -----------------------------------------------------------------------------------------

const copyFileRangeCall = self.func('copy_file_range', 'int64_t', [
  'int',
  'void *',
  'int',
  'void *',
  'size_t',
  'uint',
]) as (
  source: number,
  sourceAt: BigInt64Array,
  target: number,
  targetAt: BigInt64Array,
  length: number,
  flags: number,
) => number

export interface Copy {
  /** Descriptors. */
  source: number
  target: number
  sourceAt: number
  targetAt: number
  length: number
}

/**
 * Copies inside the kernel, sharing extents where the file system can; on the thread pool. copy_file_range(2)
 * @returns bytes copied: fewer than asked at the source's end
 */
export async function copyFileRange({ source, sourceAt, target, targetAt, length }: Copy): Promise<number> {
  let copied = 0
  while (copied < length) {
    const from = BigInt64Array.of(BigInt(sourceAt + copied))
    const to = BigInt64Array.of(BigInt(targetAt + copied))
    const count = await checkedAsync(
      copyFileRangeCall,
      [source, from, target, to, length - copied, 0],
      'copy_file_range',
    )
    if (count === 0) break
    copied += count
  }
  return copied
}

const lseekCall = self.func('lseek', 'int64_t', ['int', 'int64_t', 'int']) as (
  fd: number,
  at: number,
  how: number,
) => number

const SEEK_DATA = 3
const SEEK_HOLE = 4

/** First byte at or after `at` that is data, undefined when only a hole is left. Moves the descriptor's offset. lseek(2) */
export function seekData(fd: number, at: number): number | undefined {
  const found = lseekCall(fd, at, SEEK_DATA)
  if (found === -1 && lastErrno() === errno.ENXIO) return undefined
  return checked(found, 'lseek', 'SEEK_DATA')
}

/** First byte at or after `at` that is in a hole (the end of the file counts as one), undefined beyond the end. */
export function seekHole(fd: number, at: number): number | undefined {
  const found = lseekCall(fd, at, SEEK_HOLE)
  if (found === -1 && lastErrno() === errno.ENXIO) return undefined
  return checked(found, 'lseek', 'SEEK_HOLE')
}

/** The file's runs of data from `at` on, in order. */
export function* dataRanges(fd: number, at = 0): Generator<Range> {
  for (let from = seekData(fd, at); from !== undefined; from = seekData(fd, at)) {
    at = seekHole(fd, from) ?? from
    if (at <= from) return // cut short by somebody else meanwhile
    yield { at: from, length: at - from }
  }
}

const syncFileRangeCall = self.func('sync_file_range', 'int', ['int', 'int64_t', 'int64_t', 'uint']) as (
  fd: number,
  at: number,
  length: number,
  flags: number,
) => number

const SYNC_FILE_RANGE_WRITE = 2

/** Asks the kernel to begin writing dirty pages out, so that a later sync has less to wait for. Promises nothing. */
export const startWriteback = (fd: number, { at, length }: Range): void => {
  checked(syncFileRangeCall(fd, at, length, SYNC_FILE_RANGE_WRITE), 'sync_file_range')
}

// --- names -------------------------------------------------------------------------------------------------------------

const AT_FDCWD = -100
const AT_SYMLINK_NOFOLLOW = 0x100

const renameat2Call = self.func('renameat2', 'int', ['int', 'void *', 'int', 'void *', 'uint']) as (
  sourceDirectory: number,
  source: Uint8Array,
  targetDirectory: number,
  target: Uint8Array,
  flags: number,
) => number

const RENAME = { noReplace: 1, exchange: 2 } as const

/** rename(2) that refuses an existing target (EXISTS), or swaps the two atomically. renameat2(2) */
export function renameat2(source: Uint8Array, target: Uint8Array, how: keyof typeof RENAME): void {
  const result = renameat2Call(AT_FDCWD, cstring(source), AT_FDCWD, cstring(target), RENAME[how])
  checked(result, 'renameat2', `${printable(source)} -> ${printable(target)}`)
}

export interface Device {
  major: number
  minor: number
}

/** dev_t as glibc has it; see makedev(3). */
export const deviceNumber = ({ major, minor }: Device): bigint => {
  const [high, low] = [BigInt(major), BigInt(minor)]
  return ((high & 0xfffff000n) << 32n) | ((high & 0xfffn) << 8n) | ((low & 0xffffff00n) << 12n) | (low & 0xffn)
}

export const deviceOf = (rdev: number | bigint): Device => {
  const bits = BigInt(rdev)
  return {
    major: Number(((bits >> 32n) & 0xfffff000n) | ((bits >> 8n) & 0xfffn)),
    minor: Number(((bits >> 12n) & 0xffffff00n) | (bits & 0xffn)),
  }
}

type Mknod = (path: Uint8Array, mode: number, device: bigint) => number
let mknodCall: Mknod | undefined

/**
 * Makes a FIFO, a socket, a device or a plain file: `mode` is S_IF… and permissions (less the umask). mknod(2)
 * @throws NOT_PERMITTED for devices without CAP_MKNOD
 */
export function mknod(path: Uint8Array, mode: number, device: Device = { major: 0, minor: 0 }): void {
  // glibc exports the symbol since 2.33; looked up late, so that older ones lose this one call only.
  mknodCall ??= self.func('mknod', 'int', ['void *', 'uint', 'uint64_t']) as Mknod
  checked(mknodCall(cstring(path), mode, deviceNumber(device)), 'mknod', printable(path))
}

// --- times -------------------------------------------------------------------------------------------------------------

const utimensatCall = self.func('utimensat', 'int', ['int', 'void *', 'void *', 'int']) as (
  directory: number,
  path: Uint8Array,
  times: BigInt64Array,
  flags: number,
) => number

const UTIME_NOW = 0x3fffffffn
const UTIME_OMIT = 0x3ffffffen
const SECOND = 1_000_000_000n

/** Nanoseconds since the epoch, or the moment of the call; left as it is when absent. */
export interface Times {
  atimeNs?: bigint | 'now'
  mtimeNs?: bigint | 'now'
}

const timespec = (time: bigint | 'now' | undefined): [bigint, bigint] => {
  if (time === undefined) return [0n, UTIME_OMIT]
  if (time === 'now') return [0n, UTIME_NOW]
  const nanoseconds = ((time % SECOND) + SECOND) % SECOND // before 1970 too
  return [(time - nanoseconds) / SECOND, nanoseconds]
}

/** Sets times to the nanosecond; a symlink's own, not its target's. utimensat(2) */
export function setTimes(target: Target, times: Times): void {
  const specs = BigInt64Array.of(...timespec(times.atimeNs), ...timespec(times.mtimeNs))
  const { path, follow } = pathOf(target)
  checked(utimensatCall(AT_FDCWD, path, specs, follow ? 0 : AT_SYMLINK_NOFOLLOW), 'utimensat', nameOf(target))
}
