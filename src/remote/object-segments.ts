// What a new object is made of: runs of bytes that are at hand, that lie in other objects, or that are zeros; and how these become
// the parts of an upload, of which all but the last have a smallest size. Pure.
import type { Packed } from './intent.js'
import type { Key } from './objects.js'
import { isAhead } from './rollforward-objects-ahead.js'
import { type Content, HIDDEN, type TreeChange } from './tree.js'

/** Bytes of an object: `etag` is absent where only we write. */
export interface Piece {
  key: Key
  at: number
  etag?: string
}

/** From `at` of the new object on. Without either they are zeros. */
export interface Segment {
  at: number
  length: number
  bytes?: Uint8Array
  piece?: Piece
}

export interface PartPlan {
  at: number
  length: number
  /** Copied on the server; otherwise sent. */
  piece?: Piece
}

const endOf = ({ at, length }: Segment) => at + length

/** The part of a segment between two offsets of the new object. */
function between({ at, bytes, piece }: Segment, from: number, to: number): Segment {
  const skip = from - at
  return {
    at: from,
    length: to - from,
    ...(bytes && { bytes: bytes.subarray(skip, skip + to - from) }),
    ...(piece && { piece: { ...piece, at: piece.at + skip } }),
  }
}

/** `over` laid on `under`. Both are ascending and do not overlap; what lies beyond the end of `under` is left out. */
function lay(under: Segment[], over: Segment[]): Segment[] {
  const laid: Segment[] = []
  let next = 0
  for (const segment of under) {
    let at = segment.at
    const end = endOf(segment)
    while (next > 0 && endOf(over[next - 1]) > at) next--
    for (; next < over.length && over[next].at < end; next++) {
      const top = over[next]
      const [from, to] = [Math.max(top.at, at), Math.min(endOf(top), end)]
      if (from >= to) continue
      if (at < from) laid.push(between(segment, at, from))
      laid.push(between(top, from, to))
      at = to
    }
    if (at < end) laid.push(between(segment, at, end))
  }
  return laid
}

const whole = (size: number): Segment[] => (size > 0 ? [{ at: 0, length: size }] : [])

/** The bytes that a change brings. */
function segmentsOfContent(content: Content, packed: Packed[]): Segment[] {
  if ('inline' in content) return content.inline.map(({ at, bytes }) => ({ at, length: bytes.byteLength, bytes }))
  const mine = packed.filter(([id]) => id === content.staged)
  const ahead = runsOf(mine.filter(isAhead))
  return lay(lay(content.extents, ahead), runsOf(mine.filter(one => !isAhead(one))))
}

/** Pieces in their order, none of them over another. */
function runsOf(packed: Packed[]): Segment[] {
  const pieces: Segment[] = []
  let covered = 0
  for (const [, at, length, pack, from] of packed.sort(([, one], [, other]) => one - other)) {
    // A piece that was staged twice is there twice, and the same.
    const start = Math.max(at, covered)
    if (start >= at + length) continue
    const segment = { at, length, piece: { key: `${HIDDEN}/${pack}`, at: from } }
    pieces.push(between(segment, start, at + length))
    covered = at + length
  }
  return pieces
}

/** Whether every byte that a change says is staged is in one of these. */
export const isStaged = (content: Content, packed: Map<string, Packed[]>): boolean =>
  'inline' in content ||
  segmentsOfContent(content, packed.get(content.staged) ?? []).every(({ piece }) => piece !== undefined)

/** A file that is put whole. */
export const segmentsOfPut = ({ size, content }: Extract<TreeChange, { do: 'put' }>, packed: Packed[]): Segment[] =>
  joined(lay(whole(size), segmentsOfContent(content, packed)))

/** A file that is changed: what it keeps lies in `source`. */
export function segmentsOfPatch(
  { size, floor, content, zeros = [] }: Extract<TreeChange, { do: 'patch' }>,
  source: { key: Key; etag: string; size: number },
  packed: Packed[],
): Segment[] {
  const kept = Math.min(size, floor, source.size)
  const { key, etag } = source
  const old = kept > 0 ? [{ at: 0, length: kept, piece: { key, at: 0, etag } }] : []
  const written = lay(lay(whole(size), old), segmentsOfContent(content, packed))
  const punched = zeros.filter(({ length }) => length > 0).sort((one, other) => one.at - other.at)
  return joined(
    lay(
      written,
      punched.map(({ at, length }) => ({ at, length })),
    ),
  )
}

/** Neighbours that lie one behind the other in one object, or are both zeros, are one. */
function joined(segments: Segment[]): Segment[] {
  const all: Segment[] = []
  for (const segment of segments) {
    const last = all.at(-1)
    const follows =
      last !== undefined &&
      !last.bytes &&
      !segment.bytes &&
      last.piece?.key === segment.piece?.key &&
      (last.piece === undefined || last.piece.at + last.length === segment.piece!.at)
    if (follows) last.length += segment.length
    else all.push({ ...segment })
  }
  return all
}

export interface PartBounds {
  partBytesMin: number
  partBytesMax: number
  partsMax: number
}

/** Of what is sent, so much in one part. */
const SENT_BYTES = 8 * 1024 ** 2
/** Of what is copied; many at once are faster than one that is large. */
const COPIED_BYTES = 256 * 1024 ** 2

/**
 * Long runs out of other objects are copied. What is shorter than a part may be is sent, and with it as much of its neighbours as
 * makes it a part. null: it cannot be had with so few parts.
 */
export function partsOf(segments: Segment[], bounds: PartBounds): PartPlan[] | null {
  const { partBytesMax, partsMax } = bounds
  // Many short runs make more parts than there may be: then they are not that short.
  for (let partBytesMin = bounds.partBytesMin; partBytesMin * 2 <= partBytesMax; partBytesMin *= 2) {
    const parts = cut(segments, { partBytesMin, partBytesMax, partsMax })
    if (parts.length <= partsMax) return parts
  }
  return null
}

function cut(segments: Segment[], { partBytesMin, partBytesMax }: PartBounds): PartPlan[] {
  const sentBytes = Math.min(partBytesMax, Math.max(SENT_BYTES, partBytesMin))
  const copiedBytes = Math.min(partBytesMax, Math.max(COPIED_BYTES, partBytesMin))
  const parts: PartPlan[] = []
  /** What is to be sent begins here. */
  let from = segments[0]?.at ?? 0
  const copy = (segment: Segment) => {
    parts.push(...split(from, segment.at, sentBytes, partBytesMin))
    for (const one of split(segment.at, endOf(segment), copiedBytes, partBytesMin))
      parts.push({ ...one, piece: between(segment, one.at, endOf(one)).piece })
    from = endOf(segment)
  }
  for (const segment of segments) {
    if (!segment.piece) continue
    const waiting = segment.at - from
    // So much of this run is sent, for what waits before it is too short.
    const taken = waiting > 0 ? Math.max(0, partBytesMin - waiting) : 0
    if (segment.length - taken >= partBytesMin) copy(between(segment, segment.at + taken, endOf(segment)))
  }
  const end = segments.length > 0 ? endOf(segments[segments.length - 1]) : 0
  parts.push(...split(from, end, sentBytes, partBytesMin))
  return parts
}

/** Parts of about `bytes`, none below the smallest size unless all of it is. */
function split(from: number, to: number, bytes: number, partBytesMin: number): PartPlan[] {
  const parts: PartPlan[] = []
  for (let at = from; at < to; ) {
    const left = to - at
    const half = Math.ceil(left / 2)
    const short = left - bytes < partBytesMin
    const length = left <= bytes || (short && left - half < partBytesMin) ? left : short ? half : bytes
    parts.push({ at, length })
    at += length
  }
  return parts
}
