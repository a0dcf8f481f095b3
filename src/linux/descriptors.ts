// What node cannot do with descriptors: receive them over Unix sockets (SCM_RIGHTS, unix(7)), and make one number mean another's file.
import type { Socket } from 'node:net'
import koffi from 'koffi'
import { FerryError } from '../base/errors.js'
import { checked, fcntl, self } from './libc.js'

type Message = (socket: number, message: Uint8Array, flags: number) => number
const recvmsgCall = self.func('recvmsg', 'int64_t', ['int', 'void *', 'int']) as Message
const sendmsgCall = self.func('sendmsg', 'int64_t', ['int', 'void *', 'int']) as Message

const dup2Call = self.func('dup2', 'int', ['int', 'int']) as (from: number, to: number) => number

/** `to` becomes another name of what `from` is; dup2(2). */
export const duplicateOnto = (from: number, to: number): number => checked(dup2Call(from, to), 'dup2')

const F_DUPFD_CLOEXEC = 1030
const FD_FIRST = 3

/** Another descriptor of the same file, close-on-exec; fcntl(2). */
export const duplicate = (fd: number): number => checked(fcntl(fd, F_DUPFD_CLOEXEC, FD_FIRST), 'fcntl')

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
const NO_CONTROL = Buffer.from(new ArrayBuffer(0))
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
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
  const control = Buffer.from(new ArrayBuffer(CMSG_HEADER_BYTES + Math.ceil(descriptorsMax / 2) * 8))
  const message = headerOf(bytes, control)
  const count = checked(Number(recvmsgCall(socket, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)), 'recvmsg')
  const [length, level, type] = [control.readUInt32LE(0), control.readInt32LE(8), control.readInt32LE(12)]
  const descriptors: number[] = []
  if (level === SOL_SOCKET && type === SCM_RIGHTS)
    for (let at = CMSG_HEADER_BYTES; at < length; at += 4) descriptors.push(control.readInt32LE(at))
  return { bytes: bytes.subarray(0, count), descriptors }
}

/**
 * Sends bytes, and descriptors along with the first of them. sendmsg(2)
 * @returns how many were taken
 * @throws errno EAGAIN (IO): the socket takes nothing now; EPIPE (IO): its other end is closed
 */
export function sendDescriptors(socket: number, bytes: Uint8Array, descriptors: readonly number[]): number {
  const control = Buffer.from(new ArrayBuffer(CMSG_HEADER_BYTES + Math.ceil(descriptors.length / 2) * 8))
  control.writeBigUInt64LE(BigInt(CMSG_HEADER_BYTES + descriptors.length * 4), 0)
  control.writeInt32LE(SOL_SOCKET, 8)
  control.writeInt32LE(SCM_RIGHTS, 12)
  for (const [n, descriptor] of descriptors.entries()) control.writeInt32LE(descriptor, CMSG_HEADER_BYTES + n * 4)
  const payload = Buffer.from(bytes)
  const header = headerOf(payload, descriptors.length > 0 ? control : NO_CONTROL)
  return checked(Number(sendmsgCall(socket, header, MSG_DONTWAIT | MSG_NOSIGNAL)), 'sendmsg')
}

/** struct msghdr of one buffer; all three are to stay where they are until the call has returned. */
function headerOf(bytes: Buffer, control: Buffer): Buffer {
  const vector = BigUint64Array.of(koffi.address(bytes), BigInt(bytes.length))
  const message = Buffer.from(new ArrayBuffer(MSGHDR_BYTES))
  message.writeBigUInt64LE(koffi.address(vector), 16)
  message.writeBigUInt64LE(1n, 24)
  if (control.length > 0) message.writeBigUInt64LE(koffi.address(control), 32)
  message.writeBigUInt64LE(BigInt(control.length), 40)
  vectors.set(message, vector)
  return message
}
/** They live as long as the header that points to them. */
const vectors = new WeakMap<Buffer, BigUint64Array>()

/**
 * Takes one byte and the descriptor that came with it from a stream socket, without waiting; it is close-on-exec.
 * @throws PROTOCOL when none came along, errno EAGAIN (IO) when nothing is there yet
 */
export function receiveDescriptor(socket: number): number {
  const { descriptors } = receive(socket, 1, 1)
  if (descriptors.length !== 1) throw new FerryError('PROTOCOL', { detail: 'no file descriptor came over the socket' })
  return descriptors[0]
}
