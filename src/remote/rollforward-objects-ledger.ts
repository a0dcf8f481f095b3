// What this process has put into the stage: it need not be listed to be removed.

import { inParallel } from '../base/async.js'
import type { Key, Objects } from './objects.js'
import type { UploadNote } from './rollforward-objects-stage.js'

const REMOVES_MAX = 1_000
const ABORTS_AT_ONCE = 4

interface Attempt {
  epoch: number
  batch: number
}

export class StageLedger {
  readonly #keys = new Map<Key, Attempt & { upload: UploadNote | null }>()
  #numbers = 0

  /** For names: none is given twice. */
  nextNumber(): number {
    return this.#numbers++
  }

  /** Before it is put; with the upload that it is a note of, or that makes it. */
  add(key: Key, { epoch, batch }: Attempt, upload: UploadNote | null = null): void {
    this.#keys.set(key, { epoch, batch, upload })
  }

  /** An upload that makes an object of the stage has begun, without a note. @returns what is to be called when it has ended */
  begun(key: Key, attempt: Attempt, upload: string): () => void {
    this.add(key, attempt, { key, upload })
    return () => this.ended(key)
  }

  /** The upload of this key was completed or aborted. */
  ended(key: Key): void {
    const entry = this.#keys.get(key)
    if (entry) entry.upload = null
  }

  forget(): void {
    this.#keys.clear()
  }

  /** What belongs to this batch or to one before it goes, and uploads with it. */
  async clear(objects: Objects, { epoch, batch }: Attempt, signal?: AbortSignal): Promise<void> {
    const going = [...this.#keys].filter(([, one]) => one.epoch === epoch && one.batch <= batch)
    const uploads = going.flatMap(([, { upload }]) => upload ?? [])
    await inParallel(uploads, ABORTS_AT_ONCE, ({ key, upload }) => objects.abortUpload(key, upload, signal))
    for (let from = 0; from < going.length; from += REMOVES_MAX) {
      const keys = going.slice(from, from + REMOVES_MAX).map(([key]) => key)
      await objects.removeAll(keys, signal)
      for (const key of keys) this.#keys.delete(key)
    }
  }
}
