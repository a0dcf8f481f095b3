// Reads and writes of the hot path: no exceptions, no promises. Each returns a count of bytes, or -errno.

import koffi from 'koffi'
import { errno, lastErrno, self } from './libc.js'

/** Answer from the page cache or say EAGAIN; never wait for the disk (Linux 4.14; preadv2(2)). */
const RWF_NOWAIT = 8

type Count = (fd: number, bytes: Uint8Array, count: number) => number
type CountAt = (fd: number, bytes: Uint8Array, count: number, at: number) => number
type Vector = (fd: number, vector: BigUint64Array, length: number) => number
type VectorAt = (fd: number, vector: BigUint64Array, length: number, at: number, flags: number) => number

const readCall = self.func('read', 'int64_t', ['int', 'void *', 'size_t']) as Count
const writeCall = self.func('write', 'int64_t', ['int', 'void *', 'size_t']) as Count
const preadCall = self.func('pread', 'int64_t', ['int', 'void *', 'size_t', 'int64_t']) as CountAt
const pwriteCall = self.func('pwrite', 'int64_t', ['int', 'void *', 'size_t', 'int64_t']) as CountAt
const writevCall = self.func('writev', 'int64_t', ['int', 'void *', 'int']) as Vector
const preadv2Call = self.func('preadv2', 'int64_t', ['int', 'void *', 'int', 'int64_t', 'int']) as VectorAt

export const EAGAIN = -errno.EAGAIN

// Filled and used within one synchronous call, so one for all is enough. The address is asked for on each call (74 ns):
// a remembered one would point into freed memory once its buffer has been transferred to a worker.
const vector = new BigUint64Array(4)

/**
 * preadv2(2) with RWF_NOWAIT: the bytes at `at` that are in the page cache.
 * @returns bytes read (may be short at the first page that is not cached, 0 at the end of the file) or -errno:
 *   EAGAIN when it would wait, EOPNOTSUPP where the file system cannot tell
 */
export function readNowait(fd: number, into: Uint8Array, at: number): number {
  vector[0] = koffi.address(into)
  vector[1] = BigInt(into.byteLength)
  const count = preadv2Call(fd, vector, 1, at, RWF_NOWAIT)
  return count === -1 ? -lastErrno() : count
}

/** read(2): bytes read, 0 at the end, or -errno. */
export function readRaw(fd: number, into: Uint8Array): number {
  const count = readCall(fd, into, into.byteLength)
  return count === -1 ? -lastErrno() : count
}

/** write(2) of the first `length` bytes: bytes written (may be fewer) or -errno. */
export function writeRaw(fd: number, from: Uint8Array, length: number = from.byteLength): number {
  const count = writeCall(fd, from, length)
  return count === -1 ? -lastErrno() : count
}

/** pread(2): bytes read, 0 at the end, or -errno. May wait for the disk. */
export function pread(fd: number, into: Uint8Array, at: number): number {
  const count = preadCall(fd, into, into.byteLength, at)
  return count === -1 ? -lastErrno() : count
}

/** pwrite(2): bytes written (may be fewer) or -errno. */
export function pwrite(fd: number, from: Uint8Array, at: number): number {
  const count = pwriteCall(fd, from, from.byteLength, at)
  return count === -1 ? -lastErrno() : count
}

/** writev(2) of two pieces as one write: bytes written or -errno. */
export function writev2(fd: number, head: Uint8Array, tail: Uint8Array): number {
  vector[0] = koffi.address(head)
  vector[1] = BigInt(head.byteLength)
  vector[2] = koffi.address(tail)
  vector[3] = BigInt(tail.byteLength)
  const count = writevCall(fd, vector, 2)
  return count === -1 ? -lastErrno() : count
}
