// Bytes become objects: small ones in one put, large ones as uploads in parts, of which the server copies all that it has already.

import { inParallel } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { readExactly } from '../base/read-exactly.js'
import { type PartPlan, type Piece, partsOf, type Segment } from './object-segments.js'
import type { Key, Metadata, ObjectCondition, Objects, Part } from './objects.js'
import { overlay } from './through-bytes.js'

/** Up to this size an object is put together here, and sent whole. */
const WHOLE_BYTES_MAX = 8 * 1024 ** 2
/** Larger ones are not copied in one request, which would take longer than a request may. */
const COPY_BYTES_MAX = 1024 ** 3
/** Of one object; each of them may hold a part of some MiB in memory. */
const PARTS_AT_ONCE = 4

export interface NewObject extends ObjectCondition {
  key: Key
  metadata: Metadata
  contentType: string
}

type OnUpload = (key: Key, upload: string) => Promise<() => void>

export interface ContentOptions {
  objects: Objects
  /** Before each request that changes something. */
  guard: () => Promise<void>
  /** An upload has begun, and is to be aborted should it be left. @returns what is to be called when it is completed or aborted */
  onUpload: OnUpload
  /** What only goes into another object: a key of the stage that nothing had before, nor will have again. */
  joins: { key: () => Key; onUpload: OnUpload }
  signal?: AbortSignal
}

export class ObjectContent {
  readonly #options: ContentOptions

  constructor(options: ContentOptions) {
    this.#options = options
  }

  /** Puts it together. STALE or NOT_FOUND if what it is made of is not there any more. @returns its tag */
  async make(target: NewObject, segments: Segment[]): Promise<string> {
    const { objects, guard, signal } = this.#options
    const size = segments.reduce((sum, { length }) => sum + length, 0)
    const { key, ...options } = target
    const { partBytesMin, objectBytesMax } = objects.capabilities
    if (size > objectBytesMax) throw new FerryError('TOO_LARGE', { detail: `${size} bytes` })
    // Below it there is nothing to be copied but what would be sent with it anyway.
    if (size <= Math.min(WHOLE_BYTES_MAX, partBytesMin * 2)) {
      const bytes = await this.#gather(segments, { at: 0, length: size })
      await guard()
      return objects.put(key, bytes, options, signal)
    }
    const parts = partsOf(segments, objects.capabilities)
    if (!parts) throw new FerryError('TOO_LARGE', { detail: `${size} bytes in too many parts` })
    return this.#upload(target, parts, segments)
  }

  /** Another object, or the same one, with the bytes of `source`. */
  async copy(target: NewObject, source: { key: Key; etag: string; size: number }): Promise<string> {
    const { objects, guard, signal } = this.#options
    const { key, ...options } = target
    if (source.size > Math.min(COPY_BYTES_MAX, objects.capabilities.copyBytesMax))
      return this.make(target, [{ at: 0, length: source.size, piece: { ...source, at: 0 } }])
    await guard()
    return objects.copy(source.key, key, { ...options, sourceEtag: source.etag }, signal)
  }

  async #upload(
    target: NewObject,
    plans: PartPlan[],
    segments: Segment[],
    onUpload = this.#options.onUpload,
  ): Promise<string> {
    const { objects, guard, signal } = this.#options
    const { key, metadata, contentType, ifAbsent, ifMatch } = target
    await guard()
    const upload = await objects.beginUpload(key, { metadata, contentType }, signal)
    const ended = await onUpload(key, upload)
    const numbered = plans.map((plan, index) => ({ ...plan, number: index + 1 }))
    // A join is requests one after the other: the others go on beside it.
    const ordered = [...numbered.filter(({ join }) => join), ...numbered.filter(({ join }) => !join)]
    const parts: Part[] = []
    try {
      await inParallel(ordered, PARTS_AT_ONCE, async ({ number, at, length, join, ...copied }) => {
        const piece = join ? await this.#join(join, segments) : copied.piece
        const bytes = piece ? null : await this.#gather(segments, { at, length })
        await guard()
        const etag = bytes
          ? await objects.uploadPart(key, upload, number, bytes, signal)
          : await objects.copyPart(key, upload, number, { ...piece!, length }, signal)
        parts.push({ number, etag })
      })
      parts.sort((one, other) => one.number - other.number)
      await guard()
      const etag = await objects.completeUpload(key, upload, parts, { ifAbsent, ifMatch }, signal)
      ended()
      return etag
    } catch (error) {
      // What fails here goes with the stage.
      await objects.abortUpload(key, upload, signal).then(ended, () => {})
      throw error
    }
  }

  /** Puts an object together that is only there to go into another one. */
  async #join(plans: PartPlan[], segments: Segment[]): Promise<Piece> {
    const { joins } = this.#options
    const key = joins.key()
    await this.#upload({ key, metadata: {}, contentType: '' }, plans, segments, joins.onUpload)
    return { key, at: 0 }
  }

  #gather(segments: Segment[], range: { at: number; length: number }): Promise<Uint8Array> {
    const { objects, signal } = this.#options
    return readSegments(objects, segments, range, signal)
  }
}

/** Bytes of an object that is made of these, or will be. */
export async function readSegments(
  objects: Objects,
  segments: Segment[],
  { at, length }: { at: number; length: number },
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const into = new Uint8Array(length)
  const within = segments.filter(segment => segment.at < at + length && segment.at + segment.length > at)
  await inParallel(within, PARTS_AT_ONCE, async segment => {
    const from = Math.max(at, segment.at)
    const to = Math.min(at + length, segment.at + segment.length)
    if (segment.bytes) overlay(into, at, segment.bytes, segment.at)
    if (!segment.piece) return
    const { key, at: pieceAt, etag } = segment.piece
    const range = { at: pieceAt + from - segment.at, length: to - from, what: key }
    const bytes = await readExactly(range, (start, count) =>
      objects.get(key, { at: start, length: count, etag }, signal),
    )
    overlay(into, at, bytes, from)
  })
  return into
}
