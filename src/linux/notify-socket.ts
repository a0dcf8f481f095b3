// Tells a service manager how we are: sd_notify(3).
import { closeSync } from 'node:fs'
import { FerryError } from '../base/errors.js'
import { checked, self } from './libc.js'
import { socketCall } from './netlink.js'

const sendtoCall = self.func('sendto', 'int64_t', ['int', 'void *', 'size_t', 'int', 'void *', 'uint']) as (
  socket: number,
  message: Uint8Array,
  length: number,
  flags: number,
  address: Uint8Array,
  addressLength: number,
) => number

const AF_UNIX = 1
const SOCK_DGRAM_CLOEXEC = 0o2000002
const MSG_NOSIGNAL = 0x4000
// struct sockaddr_un { u16 family; char path[108] }
const PATH_BYTES_MAX = 107

/** `socket`: of $NOTIFY_SOCKET, a path or, after an @, a name. @throws INVALID: neither; IO: nobody listens there */
export function notifyManager(socket: string, state: string): void {
  const path = Buffer.from(socket.replace(/^@/, '\0'))
  if (!/^[/@]/.test(socket) || path.length > PATH_BYTES_MAX)
    throw new FerryError('INVALID', { detail: `NOTIFY_SOCKET=${socket}` })
  const address = Buffer.alloc(2 + path.length)
  address.writeUInt16LE(AF_UNIX)
  path.copy(address, 2)
  const message = Buffer.from(state)
  const fd = checked(socketCall(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0), 'socket')
  try {
    checked(
      Number(sendtoCall(fd, message, message.length, MSG_NOSIGNAL, address, address.length)),
      'sendto',
      `NOTIFY_SOCKET=${socket}`,
    )
  } finally {
    closeSync(fd)
  }
}
