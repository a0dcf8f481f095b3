// What node cannot do with descriptors: receive them over Unix sockets (SCM_RIGHTS, unix(7)), and make one number mean another's file.
import type { Socket } from 'node:net'
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

/** A socket that node has accepted (paused), or connected. From now on it is ours, and node's is over. */
export function takeDescriptor(socket: Socket): number {
  const { fd } = (socket as Socket & { _handle: { fd: number } })._handle
  const taken = duplicate(fd)
  socket.on('error', () => {})
  socket.destroy()
  return taken
}

const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_DONTWAIT = 0x40
const MSG_CMSG_CLOEXEC = 0x40000000

// struct msghdr { void *name; u32 namelen, pad; struct iovec *iov; u64 iovlen; void *control; u64 controllen; int flags, pad }
const MSGHDR_BYTES = 56
// struct cmsghdr { u64 len; int level, type } and then the descriptors, in words of 8 bytes
const CMSG_HEADER_BYTES = 16

/** What came over a socket at once. Whoever takes it closes the descriptors, which are close-on-exec. */
export interface Received {
  bytes: Uint8Array
  descriptors: number[]
}

/**
 * What there is of a stream socket, at most `bytesMax` bytes and `descriptorsMax` descriptors, without waiting: the kernel closes what is
 * more. No bytes: the other side has ended.
 * @throws errno EAGAIN (IO): nothing is there yet
 */
export function receive(socket: number, bytesMax: number, descriptorsMax: number): Received {
  const bytes = Buffer.from(new ArrayBuffer(bytesMax))
  const vector = BigUint64Array.of(koffi.address(bytes), BigInt(bytesMax))
  const control = Buffer.from(new ArrayBuffer(CMSG_HEADER_BYTES + Math.ceil(descriptorsMax / 2) * 8))
  const message = Buffer.from(new ArrayBuffer(MSGHDR_BYTES))
  message.writeBigUInt64LE(koffi.address(vector), 16)
  message.writeBigUInt64LE(1n, 24)
  message.writeBigUInt64LE(koffi.address(control), 32)
  message.writeBigUInt64LE(BigInt(control.length), 40)
  const count = checked(Number(recvmsgCall(socket, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)), 'recvmsg')
  const [length, level, type] = [control.readUInt32LE(0), control.readInt32LE(8), control.readInt32LE(12)]
  const descriptors: number[] = []
  if (level === SOL_SOCKET && type === SCM_RIGHTS)
    for (let at = CMSG_HEADER_BYTES; at < length; at += 4) descriptors.push(control.readInt32LE(at))
  return { bytes: bytes.subarray(0, count), descriptors }
}

/**
 * Takes one byte and the descriptor that came with it from a stream socket, without waiting; it is close-on-exec.
 * @throws PROTOCOL when none came along, errno EAGAIN (IO) when nothing is there yet
 */
export function receiveDescriptor(socket: number): number {
  const { descriptors } = receive(socket, 1, 1)
  if (descriptors.length !== 1) throw new FerryError('PROTOCOL', { detail: 'no file descriptor came over the socket' })
  return descriptors[0]
}
