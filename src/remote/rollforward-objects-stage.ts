// The stage of a bucket: objects under `.pageferry/stage/EPOCH/`, named BATCH.WHAT, of which the intent says what lies where.

import { inParallel } from '../base/async.js'
import { isFerryError } from '../base/errors.js'
import { decode, type Packed } from './intent.js'
import type { Key, Objects } from './objects.js'
import type { StageLedger } from './rollforward-objects-ledger.js'
import { HIDDEN } from './tree.js'

/** Where packs are, as the intent names them, and everything else of a batch. */
const STAGE = 'stage/'
export const stageKey = (epoch: number, batch: number, what: string): Key =>
  `${HIDDEN}/${STAGE}${epoch}/${batch}.${what}`

/** Of one file, so much is put as one object: the server can copy parts of an upload out of it. */
const PACK_BYTES = 8 * 1024 ** 2
/** Of all files together that have less than that. */
const OPEN_BYTES_MAX = 32 * 1024 ** 2
const PUTS_AT_ONCE = 4
const REMOVES_MAX = 1_000

interface Pack {
  name: string
  parts: Uint8Array[]
  bytes: number
  put: Promise<unknown> | null
}

interface PackPiece {
  id: string
  at: number
  length: number
  pack: Pack
  from: number
}

interface Staged {
  pieces: Map<string, PackPiece>
  /** By file, what is not put yet. */
  open: Map<string, Pack>
  packs: Pack[]
  count: number
}

/** Bytes of files to come: those of one file lie together, so that a long run of it is one run of a pack. */
export class ObjectPacker {
  readonly #objects: Objects
  readonly #ledger: StageLedger
  readonly #batches = new Map<number, Staged>()

  constructor(objects: Objects, ledger: StageLedger) {
    this.#objects = objects
    this.#ledger = ledger
  }

  /** Resolves when the piece is taken; it is durable after `flush`. */
  async add(
    epoch: number,
    batch: number,
    { id, at, bytes }: { id: string; at: number; bytes: Uint8Array },
    signal?: AbortSignal,
  ): Promise<void> {
    const staged: Staged = this.#batches.get(batch) ?? { pieces: new Map(), open: new Map(), packs: [], count: 0 }
    this.#batches.set(batch, staged)
    const name = () => {
      const free = `${STAGE}${epoch}/${batch}.pack-${staged.count++}`
      this.#ledger.add(`${HIDDEN}/${free}`, { epoch, batch })
      return free
    }
    const pack: Pack = staged.open.get(id) ?? { name: name(), parts: [], bytes: 0, put: null }
    staged.open.set(id, pack)
    staged.pieces.set(`${id} ${at}`, { id, at, length: bytes.byteLength, pack, from: pack.bytes })
    pack.parts.push(bytes.slice())
    pack.bytes += bytes.byteLength
    if (pack.bytes >= PACK_BYTES) {
      staged.open.delete(id)
      staged.packs.push(pack)
      await this.#put(pack, signal)
      return
    }
    const open = [...staged.open.values()].reduce((sum, { bytes: one }) => sum + one, 0)
    if (open > OPEN_BYTES_MAX) await this.#putAll(this.#gather(staged), signal)
  }

  /** All that was staged for a batch is durable. @returns where it lies */
  async flush(batch: number, signal?: AbortSignal): Promise<Packed[]> {
    const staged = this.#batches.get(batch)
    if (!staged) return []
    this.#gather(staged)
    await this.#putAll(staged.packs, signal)
    return [...staged.pieces.values()].map(({ id, at, length, pack, from }) => [id, at, length, pack.name, from])
  }

  /** Forget everything, or what belongs to batches up to this one. */
  forget(batch = Number.POSITIVE_INFINITY): void {
    for (const number of this.#batches.keys()) if (number <= batch) this.#batches.delete(number)
  }

  /** What little there is of many files goes into few packs. */
  #gather(staged: Staged): Pack[] {
    const gathered: Pack[] = []
    const pieces = new Map<Pack, PackPiece[]>()
    for (const piece of staged.pieces.values()) pieces.set(piece.pack, [...(pieces.get(piece.pack) ?? []), piece])
    for (const pack of staged.open.values()) {
      const last = gathered.at(-1)
      if (!last || last.bytes + pack.bytes > PACK_BYTES) {
        gathered.push(pack)
        continue
      }
      for (const piece of pieces.get(pack) ?? []) {
        piece.pack = last
        piece.from += last.bytes
      }
      last.parts.push(...pack.parts)
      last.bytes += pack.bytes
    }
    staged.open.clear()
    staged.packs.push(...gathered)
    return gathered
  }

  #putAll(packs: Pack[], signal?: AbortSignal): Promise<void> {
    return inParallel(packs, PUTS_AT_ONCE, async pack => {
      await this.#put(pack, signal)
    })
  }

  #put(pack: Pack, signal?: AbortSignal): Promise<unknown> {
    pack.put ??= this.#objects.put(`${HIDDEN}/${pack.name}`, Buffer.concat(pack.parts), undefined, signal).then(
      () => {
        // It is there: only its name is needed from now on.
        pack.parts = []
      },
      error => {
        pack.put = null
        throw error
      },
    )
    return pack.put
  }
}

/** An upload that was begun, in a note beside the batch: whoever clears the stage aborts it. */
export interface UploadNote {
  key: Key
  upload: string
}

const UPLOAD = /\.upload-[^/]*$/

/** What the stage has of former epochs, or of this one's batches up to a number, goes, and uploads with it. */
export async function clearObjects(
  objects: Objects,
  { epoch, batch }: { epoch: number; batch: number },
  signal?: AbortSignal,
): Promise<void> {
  const going: Key[] = []
  for await (const key of stagedKeys(objects, signal)) {
    const [, begun, number] = /\/(\d+)\/(\d+|ahead)\.[^/]*$/.exec(key) ?? []
    if (Number(begun) < epoch || (Number(begun) === epoch && Number(number) <= batch)) going.push(key)
  }
  for (let from = 0; from < going.length; from += REMOVES_MAX) {
    const some = going.slice(from, from + REMOVES_MAX)
    await abortUploads(objects, some, signal)
    await objects.removeAll(some, signal)
  }
}

/** Uploads of former epochs within the stage: what was staged ahead and no batch took, and joins. */
export async function abortStaged(objects: Objects, epoch: number, signal?: AbortSignal): Promise<void> {
  const prefix = `${HIDDEN}/${STAGE}`
  const left = (await objects.uploads(prefix, signal)).filter(
    ({ key }) => Number.parseInt(key.slice(prefix.length), 10) < epoch,
  )
  await inParallel(left, PUTS_AT_ONCE, ({ key, upload }) => objects.abortUpload(key, upload, signal))
}

/** No upload of this batch can be completed any more by whoever began it. */
export async function abortUploadsOf(
  objects: Objects,
  { epoch, batch }: { epoch: number; batch: number },
  signal?: AbortSignal,
): Promise<void> {
  const notes: Key[] = []
  for await (const key of stagedKeys(objects, signal, stageKey(epoch, batch, 'upload-'))) notes.push(key)
  await abortUploads(objects, notes, signal)
  if (notes.length > 0) await objects.removeAll(notes, signal)
}

async function* stagedKeys(
  objects: Objects,
  signal?: AbortSignal,
  prefix: Key = `${HIDDEN}/${STAGE}`,
): AsyncGenerator<Key> {
  for (let cursor: string | undefined; ; ) {
    const page = await objects.list({ prefix, cursor }, signal)
    for (const { key } of page.objects) yield key
    cursor = page.cursor
    if (cursor === undefined) return
  }
}

async function abortUploads(objects: Objects, keys: Key[], signal?: AbortSignal): Promise<void> {
  await inParallel(
    keys.filter(key => UPLOAD.test(key)),
    PUTS_AT_ONCE,
    async note => {
      try {
        const bytes = await objects.get(note, undefined, signal)
        const { key, upload } = JSON.parse(Buffer.from(bytes).toString('latin1')) as UploadNote
        await objects.abortUpload(key, upload, signal)
      } catch (error) {
        if (!isFerryError(error, 'NOT_FOUND')) throw error
      }
    },
  )
}

export const writeUploadNote = (note: UploadNote): Uint8Array => Buffer.from(JSON.stringify(note), 'latin1')

/** The note with the plan. */
export const planName = 'plan'

/** Something that whoever worked on a batch has written into its stage; null: it is not there. */
export async function readNote<T>(
  objects: Objects,
  { epoch, batch }: { epoch: number; batch: number },
  what: string,
  signal?: AbortSignal,
): Promise<T | null> {
  const key = stageKey(epoch, batch, what)
  try {
    return decode<T>(await objects.get(key, undefined, signal), key)
  } catch (error) {
    if (isFerryError(error, 'NOT_FOUND')) return null
    throw error
  }
}
