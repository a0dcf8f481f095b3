// One message from /dev/fuse as a typed value. Whatever is not exactly what the opcode table says is refused with FerryError PROTOCOL.

import { malformed, Reader, viewOf } from '../reader.js'
import { host } from '../struct.js'
import { KERNEL_VERSION, UNIQUE_RESEND_HIGH } from './flags.js'
import { type Args, Opcode, type Operation, type OpName, opsByCode } from './ops.js'
import { ExtHeader, InHeader, InitIn, SetxattrIn } from './structs.js'

/** Names one request, in its answer: 64 opaque bits. */
export interface Unique {
  readonly uniqueLow: number
  readonly uniqueHigh: number
}

/** Something a kernel adds behind the arguments once it was negotiated (security contexts, the supplementary group). */
export interface Extension {
  /** ExtType, or the number of security contexts */
  readonly type: number
  /** without its header; valid as long as the buffer is */
  readonly data: Uint8Array
}

/** The top bit says that the kernel delivers it again, after NotifyCode.RESEND. */
export const isResent = ({ uniqueHigh }: Unique): boolean => uniqueHigh >= UNIQUE_RESEND_HIGH

/** The same, however often it is delivered. It counts up from 2: below 2^53 for centuries. */
export const requestNumber = ({ uniqueHigh, uniqueLow }: Unique): number =>
  (uniqueHigh & (UNIQUE_RESEND_HIGH - 1)) * 2 ** 32 + uniqueLow

interface Envelope extends Unique {
  readonly opcode: number
  readonly nodeid: number
  readonly uid: number
  readonly gid: number
  readonly pid: number
  readonly extensions: readonly Extension[]
}

/** A decoded request. Views in `args` (data of a WRITE) are valid until the buffer is read into again; all else is a copy. */
export type RequestOf<N extends OpName> = Envelope & { readonly op: N; readonly args: Args<N> }
/** An opcode newer than the table: to be answered with UNSUPPORTED. */
export type UnknownRequest = Envelope & { readonly op: 'UNKNOWN'; readonly args: { readonly data: Uint8Array } }
export type Request = { [N in OpName]: RequestOf<N> }[OpName] | UnknownRequest

/** What INIT settled and the bytes depend on. */
export interface Dialect {
  /** InitFlag.SETXATTR_EXT was negotiated: SETXATTR has 16 bytes before its name, not 8. */
  readonly setxattrExt: boolean
}
const newest: Dialect = { setxattrExt: true }

const little = host === 'le'
const noExtensions: readonly Extension[] = Object.freeze([])

/**
 * Decodes the message in `bytes[0, length)`, as one read(2) of /dev/fuse delivers it.
 * Throws FerryError PROTOCOL, and nothing else, if it is not well-formed; `uniqueOf` then tells whom to answer.
 */
export function parseRequest(bytes: Uint8Array, length = bytes.length, dialect = newest): Request {
  if (!(length >= InHeader.size && length <= bytes.length))
    throw malformed(`a message of ${length} bytes in a buffer of ${bytes.length}`)
  const view = viewOf(bytes)
  const { len, opcode, uniqueLow, uniqueHigh, nodeid, uid, gid, pid, totalExtlen } = InHeader.decode(view)
  if (len !== length) throw malformed(`the header says ${len} bytes, ${length} arrived`)
  const widened = widen(bytes, length, opcode, dialect)
  if (widened) return parseRequest(widened)

  const end = length - totalExtlen * 8
  if (end < InHeader.size) throw malformed(`${totalExtlen * 8} bytes of extensions in ${length} bytes`)
  const extensions = totalExtlen === 0 ? noExtensions : parseExtensions(bytes, end, length)
  const operation = opsByCode[opcode]
  return {
    op: operation === undefined ? 'UNKNOWN' : operation.name,
    opcode,
    uniqueLow,
    uniqueHigh,
    nodeid,
    uid,
    gid,
    pid,
    args:
      operation === undefined ? { data: bytes.subarray(InHeader.size, end) } : parseArgs(operation, bytes, view, end),
    extensions,
  } as Request
}

function parseArgs({ input, trail, name: op }: Operation, bytes: Uint8Array, view: DataView, end: number): object {
  const tailAt = InHeader.size + input.size
  if (end < tailAt) throw malformed(`${op} with ${end - InHeader.size} bytes of arguments instead of ${input.size}`)
  const args: Record<string, unknown> = input.decode(view, InHeader.size)
  const reader = new Reader(bytes, tailAt, end)
  for (const name in trail) args[name] = trail[name](reader, args)
  reader.finish()
  return args
}

function parseExtensions(bytes: Uint8Array, at: number, end: number): Extension[] {
  const reader = new Reader(bytes, at, end)
  const extensions: Extension[] = []
  while (reader.remaining > 0) {
    const { size, type } = reader.struct(ExtHeader)
    if (size < ExtHeader.size || size % 8 !== 0) throw malformed(`an extension of ${size} bytes`)
    extensions.push({ type, data: reader.bytes(size - ExtHeader.size) })
  }
  return extensions
}

const INIT_OLD_SIZE = 16 // before 7.36, and all that counts if the major version is not ours
const SETXATTR_OLD_SIZE = 8

/** Older, shorter forms of two inputs as the full message that says the same: zeros where the old form ends. Undefined if there is nothing to do. */
function widen(bytes: Uint8Array, length: number, opcode: number, dialect: Dialect): Uint8Array | undefined {
  const argsAt = InHeader.size
  if (opcode === Opcode.INIT) {
    const cut = argsAt + INIT_OLD_SIZE
    const foreign = length >= cut && viewOf(bytes).getUint32(argsAt, little) !== KERNEL_VERSION
    if (length === cut || (foreign && length !== argsAt + InitIn.size))
      return insertZeros(bytes.subarray(0, cut), cut, InitIn.size - INIT_OLD_SIZE)
  }
  if (opcode === Opcode.SETXATTR && !dialect.setxattrExt && length >= argsAt + SETXATTR_OLD_SIZE)
    return insertZeros(bytes.subarray(0, length), argsAt + SETXATTR_OLD_SIZE, SetxattrIn.size - SETXATTR_OLD_SIZE)
  return undefined
}

function insertZeros(message: Uint8Array, at: number, count: number): Uint8Array {
  const wide = new Uint8Array(message.length + count)
  wide.set(message.subarray(0, at))
  wide.set(message.subarray(at), at + count)
  viewOf(wide).setUint32(InHeader.offsets.len, wide.length, little)
  return wide
}

/** The identity of a message that did not parse, or undefined if not even that arrived. */
export function uniqueOf(bytes: Uint8Array, length = bytes.length): Unique | undefined {
  if (length < InHeader.offsets.nodeid || length > bytes.length) return undefined
  const view = viewOf(bytes)
  return {
    uniqueLow: view.getUint32(InHeader.offsets.uniqueLow, little),
    uniqueHigh: view.getUint32(InHeader.offsets.uniqueHigh, little),
  }
}
