// The fixed parts of NBD messages. All numbers are big endian, and nothing is padded.
//
// A cookie is two u32: it is only ever echoed. So is the offset of a request: it must be echoed as it came, though no export reaches that far.

import { type Fields, len64, pos64, type Struct, struct, u16, u32, u64 } from '../struct.js'

const packed = <const F extends Fields>(fields: F): Struct<F> => struct(fields, { endian: 'be', packed: true })

// Handshake

export const Greeting = packed({ magic: u64, optionMagic: u64, flags: u16 }) // HandshakeFlag
export const ClientFlags = packed({ flags: u32 }) // HandshakeFlag
export const OptionHeader = packed({ magic: u64, option: u32, length: u32 })
export const OptionReplyHeader = packed({ magic: u64, option: u32, type: u32, length: u32 })
/** The answer to EXPORT_NAME; 124 zeros follow unless both sides have said NO_ZEROES. */
export const ExportReply = packed({ size: len64, flags: u16 }) // TransmissionFlag
export const InfoExport = packed({ type: u16, size: len64, flags: u16 })
export const InfoBlockSize = packed({ type: u16, minimum: u32, preferred: u32, maximum: u32 }) // bytes

// Transmission

const identity = { cookieHigh: u32, cookieLow: u32 }
const offset = { offsetHigh: u32, offsetLow: u32 }

export const Request = packed({ magic: u32, flags: u16, type: u16, ...identity, ...offset, length: u32 })
export const ExtendedRequest = packed({ magic: u32, flags: u16, type: u16, ...identity, ...offset, length: pos64 })
export const SimpleReply = packed({ magic: u32, error: u32, ...identity })
export const ChunkHeader = packed({ magic: u32, flags: u16, type: u16, ...identity, length: u32 })
export const ExtendedChunkHeader = packed({
  ...{ magic: u32, flags: u16, type: u16 },
  ...identity,
  ...offset,
  length: len64,
})
/** Before the bytes of an OFFSET_DATA chunk. */
export const DataOffset = packed({ offset: len64 })
export const Hole = packed({ offset: len64, length: u32 })
/** A message of `messageLength` bytes follows. */
export const ErrorPayload = packed({ error: u32, messageLength: u16 })
export const Block = packed({ length: u32, flags: u32 })
export const BlockStatus = packed({ context: u32 })
export const ExtendedBlock = packed({ length: len64, flags: len64 })
export const ExtendedBlockStatus = packed({ context: u32, count: u32 })
