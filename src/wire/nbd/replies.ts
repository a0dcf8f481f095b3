// Replies to requests, in whichever of the three styles was agreed: simple, structured, or extended.

import { takeBytes } from '../../base/buffers.js'
import { viewOf } from '../reader.js'
import {
  CHUNK_MAGIC,
  ChunkFlag,
  ChunkType,
  EXTENDED_CHUNK_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRING_BYTES_MAX,
} from './constants.js'
import {
  Block,
  BlockStatus,
  ChunkHeader,
  DataOffset,
  ErrorPayload,
  ExtendedBlock,
  ExtendedBlockStatus,
  ExtendedChunkHeader,
  SimpleReply,
} from './structs.js'

export type ReplyStyle = 'simple' | 'structured' | 'extended'

/** What of a request a reply repeats. */
export interface Asked {
  cookieHigh: number
  cookieLow: number
  offsetHigh: number
  offsetLow: number
}

/** A run of bytes and what is known of it: Allocation bits. */
export interface Extent {
  length: number
  flags: number
}

const headerBytes = { structured: ChunkHeader.size, extended: ExtendedChunkHeader.size }

/** From here on buffers are taken, and given back by who has sent them. */
const LARGE_BYTES = 128 * 1024

/** Headers are made here and copied: a view for each reply would cost more than the rest of it. */
const scratch = new Uint8Array(64)
const view = viewOf(scratch)

/** `length` bytes, of `room` if they fit, that begin with what is in the scratch. */
function begun(headBytes: number, length: number, room?: Uint8Array): Uint8Array {
  const bytes =
    room && length <= room.length
      ? room.subarray(0, length)
      : length < LARGE_BYTES
        ? Buffer.allocUnsafe(length)
        : takeBytes(length)
  bytes.set(headBytes === scratch.length ? scratch : scratch.subarray(0, headBytes))
  return bytes
}

function simple({ cookieHigh, cookieLow }: Asked, error: number, length = 0, room?: Uint8Array): Uint8Array {
  SimpleReply.encode(view, 0, { magic: SIMPLE_REPLY_MAGIC, error, cookieHigh, cookieLow })
  return begun(SimpleReply.size, SimpleReply.size + length, room)
}

/** A chunk, the last one of its reply, with `length` bytes behind its header: the scratch has the first `headBytes` of them. */
function chunk(
  style: 'structured' | 'extended',
  asked: Asked,
  type: number,
  length: number,
  { headBytes = 0, room }: { headBytes?: number; room?: Uint8Array } = {},
): Uint8Array {
  const { cookieHigh, cookieLow, offsetHigh, offsetLow } = asked
  const flags = ChunkFlag.DONE
  if (style === 'structured')
    ChunkHeader.encode(view, 0, { magic: CHUNK_MAGIC, flags, type, cookieHigh, cookieLow, length })
  else {
    const magic = EXTENDED_CHUNK_MAGIC
    ExtendedChunkHeader.encode(view, 0, { magic, flags, type, cookieHigh, cookieLow, offsetHigh, offsetLow, length })
  }
  return begun(headerBytes[style] + headBytes, headerBytes[style] + length, room)
}

/** It is done. */
export const done = (style: ReplyStyle, asked: Asked): Uint8Array =>
  style === 'simple' ? simple(asked, 0) : chunk(style, asked, ChunkType.NONE, 0)

export function failed(style: ReplyStyle, asked: Asked, error: number, message: string): Uint8Array {
  if (style === 'simple') return simple(asked, error)
  const text = Buffer.from(message).subarray(0, STRING_BYTES_MAX)
  const at = headerBytes[style]
  ErrorPayload.encode(view, at, { error, messageLength: text.length })
  const bytes = chunk(style, asked, ChunkType.ERROR, ErrorPayload.size + text.length, {
    headBytes: ErrorPayload.size,
  })
  bytes.set(text, at + ErrorPayload.size)
  return bytes
}

/** The reply to a READ, and where in it the `length` bytes are to be put. It lies in `room`, if it fits there. */
export function data(style: ReplyStyle, asked: Asked, offset: number, length: number, room?: Uint8Array) {
  if (style === 'simple') {
    const bytes = simple(asked, 0, length, room)
    return { bytes, into: bytes.subarray(SimpleReply.size) }
  }
  const at = headerBytes[style]
  DataOffset.encode(view, at, { offset })
  const bytes = chunk(style, asked, ChunkType.OFFSET_DATA, DataOffset.size + length, {
    headBytes: DataOffset.size,
    room,
  })
  return { bytes, into: bytes.subarray(at + DataOffset.size) }
}

/** The reply to a BLOCK_STATUS. */
export function blockStatus(style: 'structured' | 'extended', asked: Asked, context: number, extents: Extent[]) {
  const isExtended = style === 'extended'
  const head = isExtended ? ExtendedBlockStatus : BlockStatus
  const block = isExtended ? ExtendedBlock : Block
  const at = headerBytes[style]
  if (isExtended) ExtendedBlockStatus.encode(view, at, { context, count: extents.length })
  else BlockStatus.encode(view, at, { context })
  const type = isExtended ? ChunkType.BLOCK_STATUS_EXT : ChunkType.BLOCK_STATUS
  const bytes = chunk(style, asked, type, head.size + extents.length * block.size, { headBytes: head.size })
  const blocks = viewOf(bytes)
  for (const [n, extent] of extents.entries()) block.encode(blocks, at + head.size + n * block.size, extent)
  return bytes
}
