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
  /** First made an object of its own, of these parts, which is then copied whole. */
  join?: PartPlan[]
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

/** What is shorter at the end of a file, as a share of a part, costs less to send than the requests of a join. */
const END_SHARE = 1 / 128

/**
 * Long runs out of other objects are copied. A run that is shorter than a part may be is joined to the end of what is copied before
 * it, since a last part may be short: so little is sent. Where nothing is copied before it, it is sent with as much of what follows
 * as makes it a part. null: it cannot be had with so few parts.
 */
export function partsOf(segments: Segment[], bounds: PartBounds): PartPlan[] | null {
  const { partBytesMax, partsMax } = bounds
  // Many short runs make more parts than there may be: then they are not that short.
  for (let partBytesMin = bounds.partBytesMin; partBytesMin * 2 <= partBytesMax; partBytesMin *= 2) {
    const joined = { joinBytesMax: partBytesMax, endBytesMin: partBytesMin * END_SHARE }
    // With more of their neighbours sent there are fewer.
    const widened = { joinBytesMax: 0, endBytesMin: partBytesMin }
    for (const way of [joined, widened]) {
      const parts = cut(segments, { partBytesMin, partBytesMax, ...way })
      if (parts.length <= partsMax) return parts
    }
  }
  return null
}

interface Cutting {
  partBytesMin: number
  partBytesMax: number
  joinBytesMax: number
  /** What is shorter at the end of the file is not copied. */
  endBytesMin: number
}

function cut(segments: Segment[], cutting: Cutting): PartPlan[] {
  const { partBytesMin, partBytesMax } = cutting
  const sentBytes = Math.min(partBytesMax, Math.max(SENT_BYTES, partBytesMin))
  const copiedBytes = Math.min(partBytesMax, Math.max(COPIED_BYTES, partBytesMin))
  const copies = copiesOf(segments, cutting)
  const starts = new Map(segments.map(segment => [segment.at, segment]))
  const parts: PartPlan[] = []
  /** There are parts up to here. */
  let from = segments[0]?.at ?? 0
  for (const [index, copy] of copies.entries()) {
    const end = endOf(copy)
    const next = copies[index + 1]?.at ?? end
    const joined = isShort(next - end, cutting) ? joinedOf(copy, cutting) : 0
    parts.push(...split(from, copy.at, sentBytes, partBytesMin))
    for (const one of split(copy.at, end - joined, copiedBytes, partBytesMin))
      parts.push(planOf(between(copy, one.at, endOf(one))))
    from = end
    if (joined === 0) continue
    const run = starts.get(end)
    const short = run && endOf(run) === next ? planOf(run) : { at: end, length: next - end }
    const join = [planOf(between(copy, end - joined, end)), short]
    parts.push({ at: end - joined, length: next - end + joined, join })
    from = next
  }
  const end = segments.length > 0 ? endOf(segments[segments.length - 1]) : 0
  parts.push(...split(from, end, sentBytes, partBytesMin))
  return parts
}

const planOf = ({ at, length, piece }: Segment): PartPlan => ({ at, length, ...(piece && { piece }) })

/** What is copied: between two of them there is nothing, or a part, or a run that can be joined to the one before it. */
function copiesOf(segments: Segment[], cutting: Cutting): Segment[] {
  const { partBytesMin, joinBytesMax, endBytesMin } = cutting
  const copies: Segment[] = []
  for (const [index, segment] of segments.entries()) {
    if (!segment.piece) continue
    const before = copies.at(-1)
    const waiting = segment.at - (before ? endOf(before) : segments[0].at)
    const joins = before !== undefined && joinedOf(before, cutting) + waiting <= joinBytesMax
    // So much of this run is sent, for what waits before it is too short.
    const taken = isShort(waiting, cutting) && !joins ? partBytesMin - waiting : 0
    const bytesMin = index === segments.length - 1 ? endBytesMin : partBytesMin
    if (segment.length - taken >= bytesMin) copies.push(between(segment, segment.at + taken, endOf(segment)))
  }
  return copies
}

const isShort = (bytes: number, { partBytesMin }: Cutting) => bytes > 0 && bytes < partBytesMin

/** Of what is copied, so much at its end goes into a join: what is left is a part, or nothing. */
const joinedOf = ({ length }: Segment, { partBytesMin }: Cutting) =>
  length >= partBytesMin * 2 ? partBytesMin : length

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
