// The journal's records: one per mutating request, with all that is needed to do it again on the state of the last checkpoint.
import assert from 'node:assert/strict'
import { Packr } from 'msgpackr'
import { FerryError } from '../base/errors.js'
import type { Ino } from './filesystem.js'
import type { InodeRecord } from './inode.js'

export const Kind = {
  known: 1,
  make: 2,
  link: 3,
  unlink: 4,
  rename: 5,
  attributes: 6,
  truncate: 7,
  write: 8,
  zero: 9,
  xattr: 10,
  cut: 11,
  committed: 12,
  merged: 13,
  allowed: 14,
  /** Like `write`, and part of one that is whole with the next record. */
  part: 15,
  /** Like `write`: all pieces are named by their checksums, and their slots may be those of another file's chunks. */
  share: 16,
  reserve: 17,
} as const

/** A chunk whose bytes are at another slot from this record on (copied aside, since a batch or a checksum needs the old ones). */
export type Move = [index: number, slot: number]

/** The request of the kernel that a record answers: of which connection, and its number there. */
export type Asked = [connection: number, request: number]

export type KnownRecord = [inode: InodeRecord, dentry: [parent: Ino, name: string, type: number, cookie: number] | null]
export type MakeRecord = [
  ino: Ino,
  parent: Ino,
  name: string,
  mode: number,
  uid: number,
  gid: number,
  rdev: number,
  link: string,
  timeNs: bigint,
  asked?: Asked | null,
  xattrs?: [name: string, value: Uint8Array][],
]
export type LinkRecord = [ino: Ino, parent: Ino, name: string, timeNs: bigint, asked?: Asked]
export type UnlinkRecord = [parent: Ino, name: string, timeNs: bigint, asked?: Asked]
export type RenameRecord = [
  parent: Ino,
  name: string,
  newParent: Ino,
  newName: string,
  exchange: boolean,
  timeNs: bigint,
  whiteout?: [ino: Ino, uid: number, gid: number] | null,
  asked?: Asked,
]
export type AttributesRecord = [
  ino: Ino,
  mode: number | null,
  uid: number | null,
  gid: number | null,
  atimeNs: bigint | null,
  mtimeNs: bigint | null,
  ctimeNs: bigint,
  /** The access control list, which follows the mode. */
  acl?: Uint8Array,
]
export type TruncateRecord = [ino: Ino, size: number, timeNs: bigint, moves: Move[]]
/** Whole pages become zeros; `size` is the file's after it. (There was a sixth field, slots, which nobody needs any more.) */
export type ZeroRecord = [ino: Ino, at: number, length: number, size: number, timeNs: bigint]
/** So many bytes in whole pages, and the edges of those runs of them that are holes. */
export type ReserveRecord = [ino: Ino, bytes: number, edges: number[]]
/** `mode`: which an access control list changes as well. */
export type XattrRecord = [
  ino: Ino,
  name: string,
  value: Uint8Array | null,
  timeNs: bigint,
  asked?: Asked | null,
  mode?: number,
]
/** `held`: inodes that this batch leaves as they were at the last one, though they have changed. */
export type CutRecord = [batch: number, held?: Ino[]]
export type CommittedRecord = [
  batch: number,
  versions: [ino: Ino, version: string][],
  conflicts: [ino: Ino, parent: Ino, name: string, keptAs: string, atMs: number][],
  refused: [ino: Ino, path: string, code: string, detail: string][],
]
/** The batch never was committed: its changes go with the next. */
export type MergedRecord = [batch: number]
/** Nothing is in quarantine any more: all is tried again. */
export type AllowedRecord = []

const packr = new Packr({ useRecords: false, moreTypes: true })
export const packRecord = (record: readonly unknown[]): Uint8Array => packr.pack(record)
export const unpackRecord = <R>(body: Uint8Array): R => packr.unpack(body)

/** The part of one write that lies in one chunk. */
export interface Piece {
  index: number
  slot: number
  /** Whole pages, counted in the chunk. */
  firstPage: number
  pages: number
  /** In the record itself; null: in the slot, named by checksum (`bytes` long from the slot's start). */
  inline: Uint8Array | null
  bytes: number
  sumLow: number
  sumHigh: number
}

export interface WriteRecord {
  ino: Ino
  /** Size of the file after it. */
  size: number
  timeNs: bigint
  pieces: Piece[]
}

/** Of one write record. */
export const PIECES_MAX = 2_048
const HEAD_BYTES = 28
const PIECE_BYTES = 30
const scratch = new Uint8Array(64 * 1024)
const scratchView = new DataView(scratch.buffer)

/** Of the records of so many pieces and bytes, at most. */
export const writeRecordBytes = (pieces: number, bytes: number, records: number): number =>
  records * HEAD_BYTES + pieces * PIECE_BYTES + bytes

/** The record as parts to append, and their length together. The first part is valid until the next call. */
export function packWrite(record: WriteRecord): { parts: Uint8Array[]; bytes: number } {
  const { pieces } = record
  const head = HEAD_BYTES + pieces.length * PIECE_BYTES
  assert(head <= scratch.length, 'a write has so many pieces at most')
  scratchView.setFloat64(0, record.ino, true)
  scratchView.setFloat64(8, record.size, true)
  scratchView.setBigInt64(16, record.timeNs, true)
  scratchView.setUint32(24, pieces.length, true)
  const parts: Uint8Array[] = [scratch.subarray(0, head)]
  let bytes = head
  let at = HEAD_BYTES
  for (const piece of pieces) {
    scratchView.setFloat64(at, piece.index, true)
    scratchView.setUint32(at + 8, piece.slot, true)
    scratchView.setUint8(at + 12, piece.inline ? 0 : 1)
    scratchView.setUint8(at + 13, piece.firstPage)
    scratchView.setUint32(at + 14, piece.bytes, true)
    scratchView.setUint32(at + 18, piece.sumLow, true)
    scratchView.setUint32(at + 22, piece.sumHigh, true)
    scratchView.setUint32(at + 26, piece.pages, true)
    at += PIECE_BYTES
    if (piece.inline) {
      parts.push(piece.inline)
      bytes += piece.inline.length
    }
  }
  return { parts, bytes }
}

export function unpackWrite(body: Uint8Array): WriteRecord {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength)
  if (body.length < HEAD_BYTES) throw new FerryError('CORRUPT', { detail: 'a write record is cut short' })
  const count = view.getUint32(24, true)
  let data = HEAD_BYTES + count * PIECE_BYTES
  const pieces: Piece[] = []
  for (let at = HEAD_BYTES; at < HEAD_BYTES + count * PIECE_BYTES; at += PIECE_BYTES) {
    const bytes = view.getUint32(at + 14, true)
    const inline = view.getUint8(at + 12) === 0
    pieces.push({
      index: view.getFloat64(at, true),
      slot: view.getUint32(at + 8, true),
      firstPage: view.getUint8(at + 13),
      pages: view.getUint32(at + 26, true),
      inline: inline ? body.subarray(data, data + bytes) : null,
      bytes,
      sumLow: view.getUint32(at + 18, true),
      sumHigh: view.getUint32(at + 22, true),
    })
    if (inline) data += bytes
  }
  return {
    ino: view.getFloat64(0, true),
    size: view.getFloat64(8, true),
    timeNs: view.getBigInt64(16, true),
    pieces,
  }
}
