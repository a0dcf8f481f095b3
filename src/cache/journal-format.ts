// What a journal segment is on the disk: a header page and records behind each other. Little-endian; all numbers unsigned.
//
//   segment   0 'PFJRNL'   6 zero u16   8 major u16   10 minor u16   12 features u32   16 id u32   20 zero u32   24 first LSN u64
//             32 serial u64   40 bytes u64   48 closed LSN u64   56 zero u32   60 CRC u32 of all before
//             and the same again at 2048: a sector is written whole or not at all, so one of the two is always good.
//   record    0 CRC u32   4 magic u16   6 kind u8   7 zero u8   8 length u32   12 unsynced u32   16 LSN u64   24 body
//             aligned to 8 bytes. The CRC starts from the segment's random id, so what a recycled segment held before
//             never looks like a record of it.
//
// `serial` grows with each use of any segment: of two that claim the same LSN, the later one is right, and what the earlier one
// has from there on is void. `unsynced` is how many records before this one were not yet known to be durable when it was written:
// the difference between a tail torn by a power failure, which is nobody's loss, and damage to what was promised.
import { randomInt } from 'node:crypto'
import { FerryError } from '../base/errors.js'
import { crc32 } from '../chunk/digest.js'

export const MAJOR = 1
export const MINOR = 0
/** Bits that a reader must know to read on. */
const FEATURES_KNOWN = 0

/** Records begin here. */
export const SEGMENT_HEADER_BYTES = 4096
const COPY_AT = 2048
const HEADER_USED_BYTES = 64
const CRC_AT = 60
const SEGMENT_MAGIC = [...'PFJRNL'].map(letter => letter.charCodeAt(0))

/** Replay reads a segment into memory as a whole. */
export const SEGMENT_BYTES_MAX = 256 * 1024 * 1024

export const RECORD_HEADER_BYTES = 24
export const RECORD_BODY_BYTES_MAX = 1024 * 1024
export const RECORD_MAGIC = 0x7a5e
/** Not a record: written over the tail after a sync to say how far durability is known to reach, and overwritten by the next. */
export const KIND_MARK = 0

export interface SegmentHeader {
  /** Random at each use; the records' checksums start from it. */
  id: number
  /** LSN of its first record; 0: a spare that holds none. */
  firstLsn: number
  serial: number
  bytes: number
  /** Its last LSN plus one, if it was closed in an orderly way with all of it durable; otherwise 0. */
  closedLsn: number
}

export const aligned = (bytes: number) => (bytes + 7) & ~7

const U32 = 0x1_0000_0000
export const freshId = () => randomInt(U32)

export const readU64 = (view: DataView, at: number) => view.getUint32(at, true) + view.getUint32(at + 4, true) * U32
export const writeU64 = (view: DataView, at: number, value: number) => {
  view.setUint32(at, value >>> 0, true)
  view.setUint32(at + 4, Math.floor(value / U32), true)
}

export const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const pageBytes = new Uint8Array(SEGMENT_HEADER_BYTES)
const pageView = viewOf(pageBytes)

/** A segment's header page, for offset 0. Valid until the next call. */
export function encodeHeader(header: SegmentHeader): Uint8Array {
  pageBytes.set(SEGMENT_MAGIC)
  pageView.setUint16(8, MAJOR, true)
  pageView.setUint16(10, MINOR, true)
  pageView.setUint32(12, 0, true)
  pageView.setUint32(16, header.id, true)
  writeU64(pageView, 24, header.firstLsn)
  writeU64(pageView, 32, header.serial)
  writeU64(pageView, 40, header.bytes)
  writeU64(pageView, 48, header.closedLsn)
  pageView.setUint32(CRC_AT, crc32(pageBytes.subarray(0, CRC_AT)), true)
  pageBytes.copyWithin(COPY_AT, 0, HEADER_USED_BYTES)
  return pageBytes
}

/**
 * The header in `page`: 'empty' when it was never written, 'damaged' when it was and cannot be read.
 * @throws TOO_NEW
 */
export function decodeHeader(page: Uint8Array, name: string): SegmentHeader | 'empty' | 'damaged' {
  const copies = [0, COPY_AT].map(at => page.subarray(at, at + HEADER_USED_BYTES))
  const good = copies.map(decodeCopy).filter(copy => copy !== undefined)
  if (good.length > 0) return good.reduce(later)
  for (const copy of copies) refuseNewer(copy, name)
  return page.every(byte => byte === 0) ? 'empty' : 'damaged'
}

/** Of two copies that a power failure left different. */
const later = (a: SegmentHeader, b: SegmentHeader) =>
  b.serial > a.serial || (b.serial === a.serial && b.closedLsn > a.closedLsn) ? b : a

const isOurs = (bytes: Uint8Array) => SEGMENT_MAGIC.every((letter, i) => bytes[i] === letter)

function decodeCopy(bytes: Uint8Array): SegmentHeader | undefined {
  const view = viewOf(bytes)
  if (!isOurs(bytes) || isNewer(view)) return undefined
  if (view.getUint32(CRC_AT, true) !== crc32(bytes.subarray(0, CRC_AT))) return undefined
  const segmentBytes = readU64(view, 40)
  if (segmentBytes < SEGMENT_HEADER_BYTES || segmentBytes > SEGMENT_BYTES_MAX) return undefined
  return {
    id: view.getUint32(16, true),
    firstLsn: readU64(view, 24),
    serial: readU64(view, 32),
    bytes: segmentBytes,
    closedLsn: readU64(view, 48),
  }
}

const isNewer = (view: DataView) =>
  view.getUint16(8, true) > MAJOR || (view.getUint32(12, true) & ~FEATURES_KNOWN) !== 0

/** Without looking at the checksum, which a newer version may keep elsewhere. */
function refuseNewer(bytes: Uint8Array, name: string) {
  const view = viewOf(bytes)
  if (!isOurs(bytes) || !isNewer(view)) return
  const [major, minor, features] = [view.getUint16(8, true), view.getUint16(10, true), view.getUint32(12, true)]
  throw new FerryError('TOO_NEW', {
    detail: `journal segment ${name} has format ${major}.${minor}, features ${features}`,
  })
}
