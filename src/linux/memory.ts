// Memory that is mapped by hand: mmap(2), madvise(2), mprotect(2), munmap(2).
import { constants as bufferConstants } from 'node:buffer'
import { closeSync, constants, fchmodSync, ftruncateSync, openSync } from 'node:fs'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import koffi from 'koffi'
import { FerryError } from '../base/errors.js'
import { checked, fcntl, lastErrno, self, systemError } from './libc.js'

const PROT_NONE = 0
const PROT_READ_WRITE = 3
const MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x4022
const MAP_SHARED = 1
const MADV_DONTNEED = 4
const MADV_DONTFORK = 10
const FAILED = -1

const mmapCall = self.func(
  'int64_t mmap(void *at, size_t length, int protection, int flags, int fd, int64_t offset)',
) as (at: null, length: number, protection: number, flags: number, fd: number, offset: number) => number
const munmapCall = self.func('int munmap(int64_t address, size_t length)') as (
  address: number,
  length: number,
) => number
const madviseCall = self.func('int madvise(int64_t address, size_t length, int advice)') as (
  address: number,
  length: number,
  advice: number,
) => number

const mprotectCall = self.func('int mprotect(int64_t address, size_t length, int protection)') as (
  address: number,
  length: number,
  protection: number,
) => number

/** Memory of this process that takes no memory until it is touched; a child of it does not have it. Whoever maps it unmaps it. */
export function mapAnonymous(length: number): number {
  const address = mmapCall(null, length, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
  if (address === FAILED) throw systemError(lastErrno(), 'mmap', `${length} bytes`)
  checked(madviseCall(address, length, MADV_DONTFORK), 'madvise')
  return address
}

/** A file as memory of this process, also when its descriptor is closed. Whoever maps it unmaps it. */
export function mapFile(fd: number, length: number): number {
  const address = mmapCall(null, length, PROT_READ_WRITE, MAP_SHARED, fd, 0)
  if (address === FAILED) throw systemError(lastErrno(), 'mmap', `${length} bytes`)
  return address
}

export const unmap = (address: number, length: number): number => checked(munmapCall(address, length), 'munmap')

/** Whoever touches it from now on gets SIGSEGV. */
export const forbid = (address: number, length: number): number =>
  checked(mprotectCall(address, length, PROT_NONE), 'mprotect')

/** These pages are not there any more. */
export const dropPages = (address: number, length: number): number =>
  checked(madviseCall(address, length, MADV_DONTNEED), 'madvise')

const memfdCreateCall = self.func('int memfd_create(const char *name, unsigned int flags)') as (
  name: string,
  flags: number,
) => number
const MFD_CLOEXEC_ALLOW_SEALING = 3
const F_ADD_SEALS = 1033
/** SEAL, SHRINK, GROW: whoever maps it never finds its end elsewhere. */
const SEALS = 7
const READ_ONLY_MODE = 0o400

/** Memory that can be handed to others, without memory of its own until it is written; the caller closes the descriptor. memfd_create(2) */
export function openMemfd(name: string, length: number): number {
  const fd = checked(memfdCreateCall(name, MFD_CLOEXEC_ALLOW_SEALING), 'memfd_create')
  try {
    ftruncateSync(fd, length)
    checked(fcntl(fd, F_ADD_SEALS, SEALS), 'fcntl')
    fchmodSync(fd, READ_ONLY_MODE)
    return fd
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** The same memory, which whoever is given it can read and map privately; the caller closes it. */
export const readOnlyDescriptor = (fd: number): number => openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY)

/** The longest view there can be: 4 GiB with Node 20. */
export const VIEW_BYTES_MAX = bufferConstants.MAX_LENGTH

/** Of memory that stays mapped for as long as the view is used. @throws TOO_LARGE: for a Uint8Array of this Node */
export function viewOf(address: number, length: number): Uint8Array {
  if (length > VIEW_BYTES_MAX)
    throw new FerryError('TOO_LARGE', {
      detail: `${length} bytes; a Uint8Array of Node ${process.version} has at most ${VIEW_BYTES_MAX}`,
    })
  return length === 0 ? new Uint8Array(0) : new Uint8Array(koffi.view(BigInt(address), length))
}

/** `transfer` of this Node; before 22 it is there behind a flag, for contexts that are made under it. */
const transfer = (() => {
  if ('transfer' in ArrayBuffer.prototype) return ArrayBuffer.prototype.transfer as () => unknown
  setFlagsFromString('--harmony-rab-gsab-transfer')
  try {
    return runInNewContext('ArrayBuffer.prototype.transfer') as () => unknown
  } finally {
    setFlagsFromString('--no-harmony-rab-gsab-transfer')
  }
})()

/** Nobody can reach memory by views of this buffer any more: they are empty. (structuredClone copies what Node has not allocated.) */
export const detach = (buffer: ArrayBufferLike): unknown => Reflect.apply(transfer, buffer, [0])
