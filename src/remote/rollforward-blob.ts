// A blob that takes whole batches. What is staged, and the chain, are in a store beside it.

import { inParallel } from '../base/async.js'
import { FerryError, isPermanent } from '../base/errors.js'
import type { Blob, BlobCapabilities, BlobChange } from './blob.js'
import type { Batch, Outcome } from './commits.js'
import type { IntentRecord } from './intent.js'
import { ChainCommits, type Shape, type Turn } from './rollforward-commits.js'
import { Committing } from './rollforward-delegate.js'
import type { RollforwardOptions } from './rollforward-options.js'
import { clearPacks, Packer, Unpacker } from './rollforward-pack.js'
import { Passed, type StillPending, Views } from './rollforward-view.js'
import type { Store } from './store.js'
import { overlay } from './through-bytes.js'

/** Bytes of one write, at most; and of zeros where nothing can be trimmed. */
const WRITE_BYTES_MAX = 4 * 1024 * 1024

export class RollforwardBlob extends Committing<BlobChange> implements Blob {
  readonly shape = 'blob'
  readonly url: string
  readonly capabilities: BlobCapabilities
  readonly trim?: (at: number, length: number, signal?: AbortSignal) => Promise<void>
  readonly resize?: (size: number, signal?: AbortSignal) => Promise<void>
  readonly version?: (signal?: AbortSignal) => Promise<string>
  readonly #blob: Blob
  readonly #commitStore: Store
  readonly #views: Views<BlobChange, ThroughBlob>

  constructor(blob: Blob, commitStore: Store, options: RollforwardOptions) {
    super(new ChainCommits(new BlobShape(blob, commitStore, options), commitStore, options))
    this.#blob = blob
    this.#commitStore = commitStore
    this.url = blob.url
    this.capabilities = blob.capabilities
    if (blob.resize) this.resize = (size, signal) => blob.resize!(size, signal)
    if (blob.trim) this.trim = (at, length, signal) => blob.trim!(at, length, signal)
    if (blob.version)
      this.version = signal =>
        this.#views.read(async (_, pending) => {
          const version = await blob.version!(signal)
          return pending === null ? version : `${version}+${pending}`
        }, signal)
    this.#views = new Views(
      this.commits.lease,
      (intent, stillPending) => new ThroughBlob(blob, commitStore, intent, stillPending),
      options,
    )
  }

  get size(): number {
    return this.#blob.size
  }

  async read(at: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    return this.#views.read(view => (view ?? this.#blob).read(at, length, signal), signal)
  }

  write(at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#blob.write(at, from, signal)
  }

  flush(signal?: AbortSignal): Promise<void> {
    return this.#blob.flush(signal)
  }

  async close(): Promise<void> {
    await Promise.all([this.#blob.close(), this.#commitStore.close()])
  }
}

class BlobShape implements Shape<BlobChange> {
  readonly #blob: Blob
  readonly #store: Store
  readonly #options: RollforwardOptions
  readonly #packer: Packer

  constructor(blob: Blob, store: Store, options: RollforwardOptions) {
    this.#blob = blob
    this.#store = store
    this.#options = options
    this.#packer = new Packer(store)
  }

  async open(): Promise<boolean> {
    this.#packer.forget()
    return false
  }

  async sweep({ epoch, signal }: Turn): Promise<void> {
    await clearPacks(this.#store, { epoch, batch: 0 }, signal)
  }

  stage(epoch: number, batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#packer.add(epoch, batch, id, at, from, signal)
  }

  async complete(_: number, { number, changes }: Batch<BlobChange>, signal?: AbortSignal) {
    const named = new Set(changes.flatMap(change => ('staged' in change ? [change.staged] : [])))
    return { refused: [], packed: (await this.#packer.flush(number, signal)).filter(([id]) => named.has(id)) }
  }

  async apply({ changes, packed }: IntentRecord<BlobChange>, turn: Turn): Promise<Outcome> {
    const unpacker = new Unpacker(this.#store, packed)
    const refused: Outcome['refused'] = []
    const attempt = async (change: BlobChange) => {
      try {
        await this.#change(change, unpacker, turn)
      } catch (error) {
        if (!isPermanent(error)) throw error
        const { code, message } = error as FerryError
        refused.push({ path: '', code, detail: `${shown(change)}: ${message}` })
      }
    }
    for (const change of changes) if (change.do === 'resize') await attempt(change)
    const others = changes.filter(change => change.do !== 'resize')
    await inParallel(others, this.#options.parallel, attempt)
    await this.#blob.flush(turn.signal)
    return { versions: [], conflicts: [], refused }
  }

  async clear({ epoch, batch }: IntentRecord<BlobChange>, signal?: AbortSignal): Promise<void> {
    this.#packer.forget(batch)
    await clearPacks(this.#store, { epoch, batch }, signal)
  }

  async #change(change: BlobChange, unpacker: Unpacker, { guard, signal }: Turn): Promise<void> {
    const blob = this.#blob
    if (change.do === 'resize') {
      await guard()
      return blob.resize!(change.size, signal)
    }
    if (change.do === 'trim' && blob.trim) {
      await guard()
      return blob.trim(change.at, change.length, signal)
    }
    const piece = Math.min(WRITE_BYTES_MAX, blob.capabilities.requestBytesMax)
    const length = lengthOf(change)
    for (let from = 0; from < length; from += piece) {
      const at = change.at + from
      let bytes = new Uint8Array(Math.min(piece, length - from))
      if (change.do === 'write' && 'bytes' in change)
        bytes = new Uint8Array(change.bytes.subarray(from, from + bytes.length))
      else if (change.do === 'write') await unpacker.read(change.staged, at, bytes, signal)
      await guard()
      await blob.write(at, bytes, signal)
    }
  }
}

type RangeChange = Exclude<BlobChange, { do: 'resize' }>

const lengthOf = (change: RangeChange) => ('bytes' in change ? change.bytes.byteLength : change.length)

const shown = (change: BlobChange) =>
  change.do === 'resize' ? `a size of ${change.size}` : `${lengthOf(change)} bytes at ${change.at}`

/** Reading a blob through a batch that is committed but not applied. */
class ThroughBlob {
  readonly #blob: Blob
  readonly #changes: RangeChange[]
  readonly #unpacker: Unpacker
  readonly #stillPending: StillPending

  constructor(blob: Blob, store: Store, { changes, packed }: IntentRecord<BlobChange>, stillPending: StillPending) {
    this.#blob = blob
    this.#stillPending = stillPending
    this.#changes = changes.filter((change): change is RangeChange => change.do !== 'resize')
    this.#unpacker = new Unpacker(store, packed)
  }

  async read(at: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    const into = await this.#blob.read(at, length, signal)
    const end = at + length
    let changed = false
    for (const change of this.#changes) {
      const from = Math.max(at, change.at)
      const to = Math.min(end, change.at + lengthOf(change))
      if (from >= to) continue
      changed = true
      if (change.do === 'trim') into.fill(0, from - at, to - at)
      else if ('bytes' in change) overlay(into, at, change.bytes, change.at)
      else
        await this.#unpacker.read(change.staged, from, into.subarray(from - at, to - at), signal).catch(error => {
          // What was staged goes only when all of it is applied.
          throw error instanceof FerryError && error.code === 'NOT_FOUND' ? new Passed() : error
        })
    }
    // Once it is done, another batch may change the same bytes, and this would be half of each.
    if (changed) await this.#stillPending(signal)
    return into
  }
}
