// Files that go on growing: each is one open upload of the stage, until a batch takes what it has. Then the upload is completed, and
// is one object out of which the server makes the file.
import { FerryError, isFerryError } from '../base/errors.js'
import type { Packed } from './intent.js'
import type { Key, Objects, Part } from './objects.js'
import type { StageLedger } from './rollforward-objects-ledger.js'
import { HIDDEN } from './tree.js'

/** Of one part; it grows by as much with every thousand parts, so that there are enough of them. */
const PART_BYTES = 8 * 1024 ** 2
const PARTS_PER_SIZE = 1_000

interface Run {
  key: Key
  /** Of the file. */
  from: number
  /** Taken so far. */
  bytes: number
  waiting: Uint8Array[]
  waitingBytes: number
  upload: string | null
  parts: Part[]
  /** The batch that takes it; null: none has. */
  batch: number | null
  complete: boolean
}

export class AheadUploads {
  readonly #objects: Objects
  readonly #ledger: StageLedger
  readonly #runs = new Map<string, Run>()
  #count = 0

  constructor(objects: Objects, ledger: StageLedger) {
    this.#objects = objects
    this.#ledger = ledger
  }

  /** They go on where the last ones ended; else INVALID. After an error what is staged ahead is to be dropped. */
  async add(epoch: number, id: string, at: number, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    const run: Run = this.#runs.get(id) ?? {
      ...{ key: aheadKey(epoch, this.#count++), from: at, bytes: 0, waiting: [], waitingBytes: 0 },
      ...{ upload: null, parts: [], batch: null, complete: false },
    }
    this.#runs.set(id, run)
    if (at !== run.from + run.bytes || run.batch !== null)
      throw new FerryError('INVALID', { detail: `${id}: ${at} is not where it goes on` })
    run.waiting.push(bytes.slice())
    run.waitingBytes += bytes.byteLength
    run.bytes += bytes.byteLength
    for (let part = this.#partBytes(run); run.waitingBytes >= part; part = this.#partBytes(run))
      await this.#put(run, part, signal)
  }

  /** A batch names it: all of it is durable then. @returns where it lies; null: nothing is staged ahead under this id */
  async finish(id: string, attempt: { epoch: number; batch: number }, signal?: AbortSignal): Promise<Packed | null> {
    const run = this.#runs.get(id)
    if (!run || (run.batch !== null && run.batch !== attempt.batch)) return null
    run.batch = attempt.batch
    this.#ledger.add(run.key, attempt)
    if (!run.complete) await this.#complete(run, signal)
    run.complete = true
    return [id, run.from, run.bytes, run.key.slice(HIDDEN.length + 1), 0]
  }

  /** What no batch will take. */
  async drop(id: string, signal?: AbortSignal): Promise<void> {
    const run = this.#runs.get(id)
    if (!run || run.batch !== null) return
    this.#runs.delete(id)
    if (run.upload !== null) await this.#objects.abortUpload(run.key, run.upload, signal)
  }

  /** Everything, or what batches up to this one have taken. */
  forget(batch = Number.POSITIVE_INFINITY): void {
    for (const [id, run] of this.#runs)
      if (batch === Number.POSITIVE_INFINITY || (run.batch !== null && run.batch <= batch)) this.#runs.delete(id)
  }

  #partBytes({ parts }: Run): number {
    const { partBytesMin } = this.#objects.capabilities
    return Math.min(PART_BYTES, partBytesMin * 2) * (1 + Math.floor(parts.length / PARTS_PER_SIZE))
  }

  async #put(run: Run, length: number, signal?: AbortSignal): Promise<void> {
    const all = Buffer.concat(run.waiting)
    const rest = all.subarray(length)
    run.upload ??= await this.#objects.beginUpload(run.key, {}, signal)
    const number = run.parts.length + 1
    const etag = await this.#objects.uploadPart(run.key, run.upload, number, all.subarray(0, length), signal)
    run.parts.push({ number, etag })
    run.waiting = rest.byteLength > 0 ? [rest] : []
    run.waitingBytes = rest.byteLength
  }

  async #complete(run: Run, signal?: AbortSignal): Promise<void> {
    if (run.upload === null) {
      await this.#objects.put(run.key, Buffer.concat(run.waiting), undefined, signal)
      return
    }
    if (run.waitingBytes > 0) await this.#put(run, run.waitingBytes, signal)
    try {
      await this.#objects.completeUpload(run.key, run.upload, run.parts, undefined, signal)
    } catch (error) {
      // It was completed, and the answer got lost.
      const there = isFerryError(error, 'NOT_FOUND') && (await this.#objects.head(run.key, signal))
      if (!there || there.size !== run.bytes) throw error
    }
  }
}

const AHEAD = 'ahead.'
const aheadKey = (epoch: number, number: number): Key => `${HIDDEN}/stage/${epoch}/${AHEAD}${number}`

/** Whether a pack, as the intent names it, was staged ahead: what a batch has staged itself lies over it. */
export const isAhead = ([, , , pack]: Packed): boolean => pack.includes(`/${AHEAD}`)
