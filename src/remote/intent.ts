// The numbered records of the chain, and how they are written down: a header that says what it is and whether it is whole, then
// msgpack. FORMATS: `magic major minor features length crc32`, big-endian, 20 bytes, then `length` bytes.
import { crc32 } from 'node:zlib'
import { Packr } from 'msgpackr'
import { FerryError } from '../base/errors.js'
import type { Claim, Outcome } from './commits.js'

/** What is true of every record: whose it is. `lease` is the number of the record with which its epoch began. */
interface OfEpoch {
  epoch: number
  lease: number
}

/** The newest committed batch of a writer. */
export type Committed = [writer: string, batch: number]

/**
 * An epoch begins. It sums up all that was before it, so that nobody ever needs to look further back: the put-if-absent of
 * this record succeeded, hence nothing came between what its writer had read and it.
 */
export interface LeaseRecord extends OfEpoch {
  kind: 'lease'
  claim: Claim
  /** Tells two openers within one process apart. */
  instance: string
  atMs: number
  /** Number of the intent that is not applied yet. */
  pending: number | null
  /** Somebody who may still be alive has worked on the pending intent. */
  haunted: boolean
  /** The newest committed batch of each of the last writers, oldest first. */
  committed: Committed[]
  /** Numbers of older records that must stay, since a writer that was overtaken may still try to put there. */
  barriers: number[]
}

/** A batch is committed. */
export interface IntentRecord<Change> extends OfEpoch {
  kind: 'intent'
  writer: string
  batch: number
  cutAtMs: number
  changes: Change[]
  /** Changes whose staged file could not be given its attributes for good: they are not placed. */
  refused: Refusal[]
  /** Where staged bytes lie that are packed into objects (stores and blobs). */
  packed: Packed[]
}

export type Refusal = [index: number, code: string, detail: string]

/** `length` bytes of what is staged under `id`, from `at`, lie in the object `pack` from `from` on. */
export type Packed = [id: string, at: number, length: number, pack: string, from: number]

/** The batch is applied. */
export interface DoneRecord extends OfEpoch {
  kind: 'done'
  writer: string
  batch: number
  /** For its writer, should it end before it has noted that. Absent: of an earlier version. */
  outcome?: Outcome
}

/** The writer of this epoch writes no more. */
export interface ReleaseRecord extends OfEpoch {
  kind: 'release'
  pending: number | null
  committed: Committed[]
}

export type LogRecord<Change> = LeaseRecord | IntentRecord<Change> | DoneRecord | ReleaseRecord

const MAGIC = 0x50464c47 // 'PFLG'
const MAJOR = 1
const MINOR = 0
const HEADER_BYTES = 20
/** Bits a reader must know to read on; none so far. */
const FEATURES_KNOWN = 0

// Maps would come back as objects: `pairs` and `unpairs` see to the only ones there are.
const packr = new Packr({ useRecords: false, moreTypes: true })

/** Any value of plain objects, arrays, strings, numbers, bigints and bytes, behind a header. */
export function encode(value: unknown): Uint8Array {
  const body = packr.pack(pairs(value))
  const bytes = new Uint8Array(HEADER_BYTES + body.length)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, MAGIC)
  view.setUint16(4, MAJOR)
  view.setUint16(6, MINOR)
  view.setUint32(8, 0)
  view.setUint32(12, body.length)
  view.setUint32(16, crc32(body))
  bytes.set(body, HEADER_BYTES)
  return bytes
}

/** BAD_FORMAT, TOO_NEW or CORRUPT if it cannot be read; `name` is for the message. */
export function decode<T>(bytes: Uint8Array, name: string): T {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.length < HEADER_BYTES) throw new FerryError('CORRUPT', { detail: `${name} is cut short` })
  if (view.getUint32(0) !== MAGIC) throw new FerryError('BAD_FORMAT', { detail: name })
  const major = view.getUint16(4)
  const features = view.getUint32(8)
  if (major > MAJOR || features & ~FEATURES_KNOWN)
    throw new FerryError('TOO_NEW', {
      detail: `${name} has format ${major}.${view.getUint16(6)}, features ${features}; this pageferry reads up to ${MAJOR}.${MINOR}, features ${FEATURES_KNOWN}`,
    })
  const body = bytes.subarray(HEADER_BYTES)
  if (body.length !== view.getUint32(12) || crc32(body) !== view.getUint32(16))
    throw new FerryError('CORRUPT', { detail: name })
  return unpairs(packr.unpack(body)) as T
}

interface WithXattrs {
  xattrs?: unknown
}

const eachChange = (value: unknown, change: (one: WithXattrs) => WithXattrs): unknown => {
  const { changes } = (value ?? {}) as { changes?: WithXattrs[] }
  return changes ? { ...(value as object), changes: changes.map(one => (one.xattrs ? change(one) : one)) } : value
}
const pairs = (value: unknown) =>
  eachChange(value, one => ({ ...one, xattrs: [...(one.xattrs as Map<string, Uint8Array>)] }))
const unpairs = (value: unknown) =>
  eachChange(value, one => ({ ...one, xattrs: new Map(one.xattrs as [string, Uint8Array][]) }))
