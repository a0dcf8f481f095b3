// Netlink sockets (netlink(7)): questions to the kernel, and what it tells by itself.
import { closeSync } from 'node:fs'
import { checked, checkedAsync, errno, lastErrno, self, systemError } from './libc.js'
import { type Watcher, watchDescriptor } from './poll.js'

const AF_UNIX = 1
const AF_NETLINK = 16
const SOCK_STREAM = 1
const SOCK_RAW = 3
const SOCK_NONBLOCK = 0o4000
const SOCK_CLOEXEC = 0o2000000
const NETLINK_KOBJECT_UEVENT = 15
const NETLINK_GENERIC = 16
const SOL_SOCKET = 1
const SO_RCVTIMEO = 20
const MSG_DONTWAIT = 0x40
/** How long the kernel may take to answer. */
const ANSWER_S = 10
const DATAGRAM_BYTES_MAX = 64 * 1024

type Call = (...args: never[]) => number
export const socketCall = self.func('socket', 'int', ['int', 'int', 'int']) as (
  a: number,
  b: number,
  c: number,
) => number
const socketpairCall = self.func('socketpair', 'int', ['int', 'int', 'int', 'void *']) as (
  domain: number,
  type: number,
  protocol: number,
  pair: Int32Array,
) => number
const bindCall = self.func('bind', 'int', ['int', 'void *', 'uint']) as (
  fd: number,
  at: Uint8Array,
  n: number,
) => number
const sendCall = self.func('send', 'int64_t', ['int', 'void *', 'size_t', 'int']) as Call
const recvCall = self.func('recv', 'int64_t', ['int', 'void *', 'size_t', 'int'])
const setsockoptCall = self.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']) as (
  fd: number,
  level: number,
  option: number,
  value: BigInt64Array,
  length: number,
) => number

/** Two Unix stream sockets that are each other's end; close-on-exec, not waiting. */
export function socketPair(): [ours: number, theirs: number] {
  const pair = new Int32Array(2)
  checked(socketpairCall(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 'socketpair')
  return [pair[0], pair[1]]
}

function netlinkSocket(protocol: number, groups: number, type: number): number {
  const fd = checked(socketCall(AF_NETLINK, type | SOCK_CLOEXEC, protocol), 'socket', 'netlink')
  // struct sockaddr_nl { u16 family; u16 pad; u32 pid; u32 groups }
  const address = Buffer.alloc(12)
  address.writeUInt16LE(AF_NETLINK, 0)
  address.writeUInt32LE(groups, 8)
  try {
    checked(bindCall(fd, address, address.length), 'bind', 'netlink')
    // struct timeval
    checked(setsockoptCall(fd, SOL_SOCKET, SO_RCVTIMEO, BigInt64Array.of(BigInt(ANSWER_S), 0n), 16), 'setsockopt')
    return fd
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** A socket by which the kernel takes requests of generic netlink. The caller closes it. */
export const genericNetlink = () => netlinkSocket(NETLINK_GENERIC, 0, SOCK_RAW)

export async function sendDatagram(fd: number, datagram: Uint8Array): Promise<void> {
  await checkedAsync(sendCall, [fd, datagram, datagram.length, 0], 'send', 'netlink')
}

/** The next one; waits for it. @throws IO: none within 10 s */
export async function receiveDatagram(fd: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(DATAGRAM_BYTES_MAX)
  const count = await checkedAsync(recvCall as unknown as Call, [fd, bytes, bytes.length, 0], 'recv', 'netlink')
  return bytes.subarray(0, count)
}

/** What the kernel tells of its devices, as it happens. Some may be lost. */
export class Uevents {
  readonly #fd: number
  readonly #watcher: Watcher

  /** In the main thread; `heard` gets a view that is valid until it returns. */
  constructor(heard: (datagram: Uint8Array) => void) {
    this.#fd = netlinkSocket(NETLINK_KOBJECT_UEVENT, 1, SOCK_RAW | SOCK_NONBLOCK)
    const bytes = new Uint8Array(DATAGRAM_BYTES_MAX)
    this.#watcher = watchDescriptor(this.#fd, () => {
      for (;;) {
        const count = Number(recvCall(this.#fd, bytes, bytes.length, MSG_DONTWAIT))
        if (count >= 0) heard(bytes.subarray(0, count))
        else {
          const number = lastErrno()
          if (number === errno.EAGAIN || number === errno.ENOBUFS) return
          throw systemError(number, 'recv', 'uevents')
        }
      }
    })
    this.#watcher.start()
  }

  async close(): Promise<void> {
    await this.#watcher.close()
    closeSync(this.#fd)
  }
}
