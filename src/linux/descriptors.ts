// What node cannot do with descriptors: receive them over Unix sockets (SCM_RIGHTS, unix(7)), and make one number mean another's file.

import koffi from 'koffi'
import { FerryError } from '../base/errors.js'
import { checked, self } from './libc.js'

type Message = (socket: number, message: Uint8Array, flags: number) => number
const recvmsgCall = self.func('recvmsg', 'int64_t', ['int', 'void *', 'int']) as Message

const dup2Call = self.func('dup2', 'int', ['int', 'int']) as (from: number, to: number) => number

/** `to` becomes another name of what `from` is; dup2(2). */
export const duplicateOnto = (from: number, to: number): number => checked(dup2Call(from, to), 'dup2')

const fcntlCall = self.func('fcntl', 'int', ['int', 'int', 'int']) as (
  fd: number,
  what: number,
  value: number,
) => number
const F_DUPFD_CLOEXEC = 1030
const FD_FIRST = 3

/** Another descriptor of the same file, close-on-exec; fcntl(2). */
export const duplicate = (fd: number): number => checked(fcntlCall(fd, F_DUPFD_CLOEXEC, FD_FIRST), 'fcntl')

const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_DONTWAIT = 0x40
const MSG_CMSG_CLOEXEC = 0x40000000

// struct msghdr { void *name; u32 namelen, pad; struct iovec *iov; u64 iovlen; void *control; u64 controllen; int flags, pad }
const MSGHDR_BYTES = 56
// struct cmsghdr { u64 len; int level, type } and then the descriptors, in words of 8 bytes
const CMSG_HEADER_BYTES = 16

/**
 * Takes one byte and the descriptor that came with it from a stream socket, without waiting; it is close-on-exec.
 * @throws PROTOCOL when none came along, errno EAGAIN (IO) when nothing is there yet
 */
export function receiveDescriptor(socket: number): number {
  const byte = Buffer.from(new ArrayBuffer(8))
  const vector = BigUint64Array.of(koffi.address(byte), 1n)
  const control = Buffer.from(new ArrayBuffer(CMSG_HEADER_BYTES + 8))
  const message = Buffer.from(new ArrayBuffer(MSGHDR_BYTES))
  message.writeBigUInt64LE(koffi.address(vector), 16)
  message.writeBigUInt64LE(1n, 24)
  message.writeBigUInt64LE(koffi.address(control), 32)
  message.writeBigUInt64LE(BigInt(control.length), 40)
  checked(recvmsgCall(socket, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC), 'recvmsg')
  const [length, level, type] = [control.readUInt32LE(0), control.readInt32LE(8), control.readInt32LE(12)]
  if (length !== CMSG_HEADER_BYTES + 4 || level !== SOL_SOCKET || type !== SCM_RIGHTS)
    throw new FerryError('PROTOCOL', { detail: 'no file descriptor came over the socket' })
  return control.readInt32LE(CMSG_HEADER_BYTES)
}
