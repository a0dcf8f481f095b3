// Generic netlink: messages to and from the kernel's families (linux/netlink.h, linux/genetlink.h), and those of its NBD client
// (linux/nbd-netlink.h). No I/O.
import { FerryError } from '../base/errors.js'
import { latin1, malformed, viewOf } from './reader.js'
import { host, struct, u8, u16, u32 } from './struct.js'

/** struct nlmsghdr. `length` is that of the whole message. */
const MessageHeader = struct({ length: u32, type: u16, flags: u16, sequence: u32, port: u32 })
/** struct genlmsghdr */
const GenericHeader = struct({ command: u8, version: u8, reserved: u16 })
/** struct nlattr. `length` is with the header, and without what fills it up to 4 bytes. */
const AttributeHeader = struct({ length: u16, type: u16 })

const ALIGN = 4
const isLittle = host === 'le'
const padded = (length: number) => Math.ceil(length / ALIGN) * ALIGN

export const MessageType = { ERROR: 2, DONE: 3, CONTROL: 16 } as const
const REQUEST = 1
const ACK = 4
/** Of an attribute's type: what is in it is in network byte order, or attributes of its own. */
const TYPE_MASK = 0x3fff

export const ControlCommand = { GETFAMILY: 3 } as const
export const ControlAttribute = { FAMILY_ID: 1, FAMILY_NAME: 2 } as const

export const NBD_FAMILY = 'nbd'
export const NbdCommand = { CONNECT: 1, DISCONNECT: 2, RECONFIGURE: 3, LINK_DEAD: 4, STATUS: 5 } as const
export const NbdAttribute = {
  INDEX: 1,
  SIZE_BYTES: 2,
  BLOCK_SIZE_BYTES: 3,
  TIMEOUT: 4,
  SERVER_FLAGS: 5,
  CLIENT_FLAGS: 6,
  SOCKETS: 7,
  DEAD_CONN_TIMEOUT: 8,
  DEVICE_LIST: 9,
  BACKEND_IDENTIFIER: 10,
} as const
const SocketAttribute = { ITEM: 1, FD: 1 } as const

/** Ready to be sent. */
export interface Attribute {
  type: number
  payload: Uint8Array
}

export function u32Attribute(type: number, value: number): Attribute {
  const payload = new Uint8Array(4)
  viewOf(payload).setUint32(0, value, isLittle)
  return { type, payload }
}

export function u64Attribute(type: number, value: number): Attribute {
  const payload = new Uint8Array(8)
  viewOf(payload).setBigUint64(0, BigInt(value), isLittle)
  return { type, payload }
}

/** With the NUL that ends it. */
export const stringAttribute = (type: number, text: string): Attribute => ({ type, payload: Buffer.from(`${text}\0`) })

export const nestedAttribute = (type: number, inside: Attribute[]): Attribute => ({ type, payload: concat(inside) })

/** Descriptors of connected sockets, as CONNECT and RECONFIGURE take them. */
export const socketsAttribute = (fds: number[]): Attribute =>
  nestedAttribute(
    NbdAttribute.SOCKETS,
    fds.map(fd => nestedAttribute(SocketAttribute.ITEM, [u32Attribute(SocketAttribute.FD, fd)])),
  )

/** One request, which the kernel answers, or acknowledges. */
export function genericMessage(request: {
  type: number
  sequence: number
  command: number
  attributes: Attribute[]
}): Uint8Array {
  const { type, sequence, command, attributes } = request
  const body = concat(attributes)
  const length = MessageHeader.size + GenericHeader.size + body.length
  return Buffer.concat([
    MessageHeader.toBytes({ length, type, flags: REQUEST | ACK, sequence, port: 0 }),
    GenericHeader.toBytes({ command, version: 1, reserved: 0 }),
    body,
  ])
}

function concat(attributes: Attribute[]): Uint8Array {
  const parts = attributes.map(({ type, payload }) => {
    const whole = new Uint8Array(padded(AttributeHeader.size + payload.length))
    whole.set(AttributeHeader.toBytes({ length: AttributeHeader.size + payload.length, type }))
    whole.set(payload, AttributeHeader.size)
    return whole
  })
  return Buffer.concat(parts)
}

/** What came: an answer with its attributes by type, or the outcome: 0, or an errno. */
export type Received =
  | { sequence: number; outcome: number }
  | { sequence: number; command: number; attributes: Map<number, Uint8Array> }

/** All messages of one datagram. @throws PROTOCOL */
export function readMessages(datagram: Uint8Array): Received[] {
  const received: Received[] = []
  for (let at = 0; at < datagram.length; ) {
    if (datagram.length - at < MessageHeader.size) throw malformed('half of a netlink message')
    const { length, type, sequence } = MessageHeader.decode(viewOf(datagram), at)
    if (length < MessageHeader.size || at + length > datagram.length)
      throw malformed('a netlink message of a wrong length')
    const body = datagram.subarray(at + MessageHeader.size, at + length)
    if (type === MessageType.ERROR) {
      if (body.length < 4) throw malformed('a netlink error without a number')
      received.push({ sequence, outcome: Math.abs(viewOf(body).getInt32(0, isLittle)) })
    } else if (type === MessageType.DONE) received.push({ sequence, outcome: 0 })
    else {
      if (body.length < GenericHeader.size) throw malformed('a netlink message without a command')
      const { command } = GenericHeader.decode(viewOf(body), 0)
      received.push({ sequence, command, attributes: readAttributes(body.subarray(GenericHeader.size)) })
    }
    at += padded(length)
  }
  return received
}

/** @throws PROTOCOL */
export function readAttributes(bytes: Uint8Array): Map<number, Uint8Array> {
  const attributes = new Map<number, Uint8Array>()
  for (let at = 0; at + AttributeHeader.size <= bytes.length; ) {
    const { length, type } = AttributeHeader.decode(viewOf(bytes), at)
    if (length < AttributeHeader.size || at + length > bytes.length) throw malformed('an attribute of a wrong length')
    attributes.set(type & TYPE_MASK, bytes.subarray(at + AttributeHeader.size, at + length))
    at += padded(length)
  }
  return attributes
}

/** The number in an attribute of 16 or 32 bits. @throws PROTOCOL: it is not there */
export function numberIn(attributes: Map<number, Uint8Array>, type: number): number {
  const bytes = attributes.get(type)
  if (bytes?.length === 2) return viewOf(bytes).getUint16(0, isLittle)
  if (bytes?.length === 4) return viewOf(bytes).getUint32(0, isLittle)
  throw new FerryError('PROTOCOL', { detail: `no number in attribute ${type}` })
}

/** `action@path` of a message about the kernel's devices (NETLINK_KOBJECT_UEVENT); null: it is none of the kernel's. */
export function ueventIn(datagram: Uint8Array): { action: string; path: string } | null {
  const end = datagram.indexOf(0)
  const [, action, path] = /^(\w+)@(.*)$/s.exec(latin1(datagram, 0, Math.max(0, end))) ?? []
  return path === undefined ? null : { action, path }
}
