// What stands in the options of a handshake and in the replies to them.

import { latin1, malformed, putLatin1, Reader } from '../reader.js'
import type { Struct } from '../struct.js'
import { struct, u16, u32 } from '../struct.js'
import { Info, OPTION_MAGIC, OPTION_REPLY_MAGIC, type OptionReply, STRING_BYTES_MAX } from './constants.js'
import { InfoBlockSize, InfoExport, OptionHeader, OptionReplyHeader } from './structs.js'

const Number32 = struct({ value: u32 }, { endian: 'be' })
const Number16 = struct({ value: u16 }, { endian: 'be' })

/** How requests must be cut, in bytes. */
export interface BlockSize {
  /** Offsets and lengths are multiples of it. */
  minimum: number
  preferred: number
  /** Of what one request or reply carries. */
  maximum: number
}

/** What one side says of an export. Names and descriptions are bytes. */
export interface ExportDetails {
  name: string
  description?: string
  /** In bytes. */
  size: number
  /** TransmissionFlag */
  flags: number
  blockSize: BlockSize
}

type Type = (typeof OptionReply)[keyof typeof OptionReply]

const joined = (parts: Uint8Array[]): Uint8Array => Buffer.concat(parts)
const bytesOf = (text: string): Uint8Array => {
  const bytes = new Uint8Array(text.length)
  putLatin1(bytes, 0, text)
  return bytes
}
const number32 = (value: number) => Number32.toBytes({ value })
const string32 = (text: string) => [number32(text.length), bytesOf(text)]

export const option = (option: number, data: Uint8Array = new Uint8Array(0)): Uint8Array =>
  joined([OptionHeader.toBytes({ magic: OPTION_MAGIC, option, length: data.length }), data])

export const optionReply = (option: number, type: Type, data: Uint8Array = new Uint8Array(0)): Uint8Array =>
  joined([OptionReplyHeader.toBytes({ magic: OPTION_REPLY_MAGIC, option, type, length: data.length }), data])

/** A refusal, and why, for people. */
export const optionError = (given: number, type: Type, message: string): Uint8Array =>
  optionReply(given, type, Buffer.from(message).subarray(0, STRING_BYTES_MAX))

const read32 = (reader: Reader) => reader.struct(Number32 as Struct<{ value: typeof u32 }>).value
const read16 = (reader: Reader) => reader.struct(Number16 as Struct<{ value: typeof u16 }>).value
function readString(reader: Reader): string {
  const length = read32(reader)
  if (length > STRING_BYTES_MAX) throw malformed(`a string of ${length} bytes`)
  const bytes = reader.bytes(length)
  return latin1(bytes, 0, bytes.length)
}

/** INFO and GO: which export, and what of it is asked for. PROTOCOL if it is not that. */
export function parseInfoRequest(data: Uint8Array): { name: string; wanted: number[] } {
  const reader = new Reader(data)
  const name = readString(reader)
  const wanted = Array.from({ length: read16(reader) }, () => read16(reader))
  reader.finish()
  return { name, wanted }
}

export const infoRequest = (name: string, wanted: number[]): Uint8Array =>
  joined([
    ...string32(name),
    Number16.toBytes({ value: wanted.length }),
    ...wanted.map(value => Number16.toBytes({ value })),
  ])

/** LIST_META_CONTEXT and SET_META_CONTEXT. */
export function parseContextRequest(data: Uint8Array): { name: string; queries: string[] } {
  const reader = new Reader(data)
  const name = readString(reader)
  const count = read32(reader)
  if (count * 4 > reader.remaining) throw malformed(`${count} queries in ${reader.remaining} bytes`)
  const queries = Array.from({ length: count }, () => readString(reader))
  reader.finish()
  return { name, queries }
}

export const contextRequest = (name: string, queries: string[]): Uint8Array =>
  joined([...string32(name), number32(queries.length), ...queries.flatMap(string32)])

/** One context of a META_CONTEXT reply. */
export const metaContext = (id: number, name: string): Uint8Array => joined([number32(id), bytesOf(name)])

export function parseMetaContext(data: Uint8Array): { id: number; name: string } {
  const reader = new Reader(data)
  const id = read32(reader)
  const rest = reader.rest()
  return { id, name: latin1(rest, 0, rest.length) }
}

/** One export of a SERVER reply. */
export const serverEntry = ({ name, description = '' }: ExportDetails): Uint8Array =>
  joined([...string32(name), bytesOf(description)])

/** The INFO replies that say all of an export that was asked for; EXPORT always. */
export function infos(details: ExportDetails, wanted: number[]): Uint8Array[] {
  const { name, description, size, flags, blockSize } = details
  const text = (type: number, value: string) => joined([Number16.toBytes({ value: type }), bytesOf(value)])
  return [
    InfoExport.toBytes({ type: Info.EXPORT, size, flags }),
    ...(wanted.includes(Info.NAME) ? [text(Info.NAME, name)] : []),
    ...(wanted.includes(Info.DESCRIPTION) && description ? [text(Info.DESCRIPTION, description)] : []),
    ...(wanted.includes(Info.BLOCK_SIZE) ? [InfoBlockSize.toBytes({ type: Info.BLOCK_SIZE, ...blockSize })] : []),
  ]
}

/** Takes what an INFO reply says into `details`; a kind that is not known is passed over. */
export function takeInfo(data: Uint8Array, details: Partial<ExportDetails>): void {
  const reader = new Reader(data)
  const type = read16(new Reader(data))
  if (type === Info.EXPORT) {
    const { size, flags } = reader.struct(InfoExport)
    Object.assign(details, { size, flags })
  } else if (type === Info.BLOCK_SIZE) {
    const { minimum, preferred, maximum } = reader.struct(InfoBlockSize)
    details.blockSize = { minimum, preferred, maximum }
  }
}
