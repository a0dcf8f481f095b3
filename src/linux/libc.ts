// The C library of this process, reached without an addon of our own. Nothing outside this folder imports koffi.

import { constants } from 'node:os'
import { getSystemErrorMap } from 'node:util'
import koffi from 'koffi'
import { type FerryError, toFerryError } from '../base/errors.js'

/** Every symbol that is linked into the running node binary: glibc, and libuv. */
export const self = koffi.load(null)

/** The errors that callers tell apart by number, positive as in errno(3). */
export const errno = constants.errno

/** errno of the last call on this thread: ask at once, before anything else may call into libc. */
export const lastErrno = (): number => koffi.errno()

/** libuv leaves out some, ESTALE among them. */
const nameOf = (number: number) => Object.entries(errno).find(([, each]) => each === number)?.[0] ?? `E${number}`

/** A failed system call as a FerryError; its cause is an error as `fs` throws it (`code`, negative `errno`, `syscall`). */
export function systemError(number: number, syscall: string, detail?: string): FerryError {
  const [code, message] = getSystemErrorMap().get(-number) ?? [nameOf(number), `error ${number}`]
  const what = `${syscall}${detail ? ` ${detail}` : ''}`
  const cause: NodeJS.ErrnoException = new Error(`${code}: ${message}, ${what}`)
  cause.code = code
  cause.errno = -number
  cause.syscall = syscall
  return toFerryError(cause, `${what} (${code})`)
}

/** The errno (positive) behind an error of this folder or of `fs`; undefined when no system call failed. */
export function errnoOf(error: unknown): number | undefined {
  const { errno: number, cause } = (error ?? {}) as { errno?: unknown; cause?: unknown }
  if (typeof number === 'number') return -number
  return cause === undefined ? undefined : errnoOf(cause)
}

/** Whether a failure means that the file system or the kernel lacks the call: try the portable way instead. */
export const isMissing = (error: unknown): boolean => {
  const number = errnoOf(error)
  return number === errno.ENOSYS || number === errno.EOPNOTSUPP
}

/** What a system call returned, or a FerryError when that is -1. */
export function checked(result: number, syscall: string, detail?: string): number {
  if (result === -1) throw systemError(lastErrno(), syscall, detail)
  return result
}

/** fcntl(2), of those commands whose argument is a number. */
export const fcntl = self.func('fcntl', 'int', ['int', 'int', 'long']) as (
  fd: number,
  command: number,
  value: number,
) => number

type Argument = number | bigint | Uint8Array | BigInt64Array | null

/** The same function on the thread pool: its result, or a FerryError when that is -1. */
export function checkedAsync(
  call: (...args: never[]) => number,
  args: Argument[],
  syscall: string,
  detail?: string,
): Promise<number> {
  const onPool = (call as unknown as { async: (...args: unknown[]) => void }).async
  return new Promise((resolve, reject) => {
    onPool(...args, (error: unknown, result: number) => {
      // koffi carries the errno of the pool's thread over into this callback, but does not keep buffers alive until then.
      const number = lastErrno()
      args.length = 0
      if (error) reject(toFerryError(error, syscall))
      else if (result === -1) reject(systemError(number, syscall, detail))
      else resolve(result)
    })
  })
}

/** A path as bytes. */
export const bytesOf = (path: Uint8Array | string): Uint8Array => (typeof path === 'string' ? Buffer.from(path) : path)

/** Bytes as a C string. A NUL inside would silently shorten a path, so it is refused (INVALID). */
export function cstring(bytes: Uint8Array | string): Buffer {
  const source = bytesOf(bytes)
  if (source.includes(0)) throw systemError(errno.EINVAL, 'path', 'contains a NUL byte')
  const terminated = Buffer.alloc(source.length + 1)
  terminated.set(source)
  return terminated
}

/** A path for error messages. */
export const printable = (bytes: Uint8Array | string): string => JSON.stringify(Buffer.from(bytesOf(bytes)).toString())

const ioctlRaw = self.func('ioctl', 'int', ['int', 'ulong', 'void *']) as (
  fd: number,
  request: number,
  argument: Uint8Array | null,
) => number

/**
 * ioctl(2) with a pointer to a struct, changed in place. Returns what the driver returns (0 or more).
 * @throws FerryError of the driver's errno
 */
export const ioctl = (fd: number, request: number, argument: Uint8Array | null): number =>
  checked(ioctlRaw(fd, request, argument), 'ioctl', `0x${request.toString(16)}`)
