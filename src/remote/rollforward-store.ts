// A store that takes whole batches. Objects are small enough to be put whole; what makes it one moment is the intent.

import { inParallel } from '../base/async.js'
import { FerryError, isFerryError, isPermanent } from '../base/errors.js'
import type { Batch, Outcome } from './commits.js'
import type { IntentRecord } from './intent.js'
import type { Shape, Turn } from './rollforward-commits.js'
import { ChainCommits } from './rollforward-commits.js'
import { Committing } from './rollforward-delegate.js'
import type { RollforwardOptions } from './rollforward-options.js'
import { clearPacks, Packer, Unpacker } from './rollforward-pack.js'
import { prefixed } from './rollforward-prefix.js'
import { Views } from './rollforward-view.js'
import type { ObjectInfo, PutCondition, Store, StoreCapabilities, StoreChange } from './store.js'
import { ThroughStore } from './through-store.js'
import { HIDDEN } from './tree.js'

const PREFIX = `${HIDDEN}/`
/** An object changes under our hands so often at most. */
const PUTS_MAX = 8

export class RollforwardStore extends Committing<StoreChange> implements Store {
  readonly shape = 'store'
  readonly url: string
  readonly capabilities: StoreCapabilities
  readonly #store: Store
  readonly #views: Views<StoreChange, ThroughStore>

  constructor(store: Store, options: RollforwardOptions) {
    const hidden = prefixed(store, PREFIX)
    super(new ChainCommits(new StoreShape(store, hidden, options), hidden, options))
    this.#store = store
    this.url = store.url
    this.capabilities = store.capabilities
    this.#views = new Views(this.commits.lease, intent => new ThroughStore(store, hidden, intent), options)
  }

  async get(name: string, range?: { at: number; length: number; version?: string }, signal?: AbortSignal) {
    if (name.startsWith(PREFIX)) throw new FerryError('NOT_FOUND', { detail: name })
    return this.#views.read(view => (view ?? this.#store).get(name, range, signal), signal)
  }

  async head(name: string, signal?: AbortSignal): Promise<ObjectInfo | null> {
    if (name.startsWith(PREFIX)) return null
    return this.#views.read(view => (view ?? this.#store).head(name, signal), signal)
  }

  async list(prefix: string, after?: string, signal?: AbortSignal): Promise<ObjectInfo[]> {
    for (let last = after; ; ) {
      const page = await this.#views.read(view => (view ?? this.#store).list(prefix, last, signal), signal)
      const visible = page.filter(({ name }) => !name.startsWith(PREFIX))
      if (visible.length > 0 || page.length === 0) return visible
      last = page[page.length - 1].name
    }
  }

  async put(name: string, bytes: Uint8Array, condition?: PutCondition, signal?: AbortSignal): Promise<string> {
    return this.#store.put(ours(name), bytes, condition, signal)
  }

  async remove(name: string, condition?: { ifVersion?: string }, signal?: AbortSignal): Promise<void> {
    return this.#store.remove(ours(name), condition, signal)
  }

  close(): Promise<void> {
    return this.#store.close()
  }
}

/** NOT_PERMITTED for a name that we keep for ourselves. */
function ours(name: string): string {
  if (name.startsWith(PREFIX)) throw new FerryError('NOT_PERMITTED', { detail: `${name} is kept for pageferry itself` })
  return name
}

class StoreShape implements Shape<StoreChange> {
  readonly #store: Store
  readonly #hidden: Store
  readonly #options: RollforwardOptions
  readonly #packer: Packer

  constructor(store: Store, hidden: Store, options: RollforwardOptions) {
    this.#store = store
    this.#hidden = hidden
    this.#options = options
    this.#packer = new Packer(hidden)
  }

  async open(): Promise<boolean> {
    this.#packer.forget()
    return this.#store.capabilities.conditionalReplace
  }

  async sweep({ epoch, signal }: Turn): Promise<void> {
    await clearPacks(this.#hidden, { epoch, batch: 0 }, signal)
  }

  stage(epoch: number, batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#packer.add(epoch, batch, id, at, from, signal)
  }

  async complete(_: number, { number, changes }: Batch<StoreChange>, signal?: AbortSignal) {
    const named = new Set(changes.flatMap(change => (change.do === 'put' && 'staged' in change ? [change.staged] : [])))
    const packed = (await this.#packer.flush(number, signal)).filter(([id]) => named.has(id))
    const refused = changes.flatMap(({ name }, index) =>
      name.startsWith(PREFIX)
        ? [[index, 'NOT_PERMITTED', `${name} is kept for pageferry itself`] as [number, string, string]]
        : [],
    )
    return { refused, packed }
  }

  async apply({ changes, packed, refused: known }: IntentRecord<StoreChange>, turn: Turn): Promise<Outcome> {
    const unpacker = new Unpacker(this.#hidden, packed)
    const versions: Outcome['versions'] = []
    const refused = new Map(known.map(([index, code, detail]) => [index, { path: changes[index].name, code, detail }]))
    const { parallel } = this.#options
    for (let from = 0; from < changes.length; from += parallel) {
      const some = changes.slice(from, from + parallel)
      const there = await this.#look(some, turn)
      await inParallel(some, parallel, async (change, offset) => {
        const index = from + offset
        if (refused.has(index)) return
        try {
          const version = await this.#change(change, there[offset], unpacker, turn)
          if (version !== null) versions.push([change.name, version])
        } catch (error) {
          if (!isPermanent(error)) throw error
          const { code, message } = error as FerryError
          refused.set(index, { path: change.name, code, detail: message })
        }
      })
    }
    return { versions, conflicts: [], refused: [...refused.values()] }
  }

  async clear({ epoch, batch }: IntentRecord<StoreChange>, signal?: AbortSignal): Promise<void> {
    this.#packer.forget(batch)
    await clearPacks(this.#hidden, { epoch, batch }, signal)
  }

  /**
   * What is there is looked at first, then whether the lease is still ours: whoever takes it after that changes every object of
   * this batch before anything else, and our conditions fail. (But for one put of a suspended writer onto a name that was free, was
   * used, and is free again.) Where there are no conditions, the race remains.
   */
  async #look(changes: StoreChange[], { guard, check, signal }: Turn): Promise<(ObjectInfo | null)[]> {
    if (!this.#store.capabilities.conditionalReplace) {
      await guard()
      return []
    }
    const there: (ObjectInfo | null)[] = []
    await inParallel(changes, this.#options.parallel, async ({ name }, index) => {
      there[index] = await this.#store.head(name, signal)
    })
    await check()
    return there
  }

  async #change(
    change: StoreChange,
    first: ObjectInfo | null | undefined,
    unpacker: Unpacker,
    turn: Turn,
  ): Promise<string | null> {
    const { signal } = turn
    const { name } = change
    const bytes = change.do === 'put' ? await bytesOf(change, unpacker, signal) : null
    for (let there = first, tries = 0; ; [there] = await this.#look([change], turn), tries++) {
      const conditional = there !== undefined && tries < PUTS_MAX
      try {
        if (bytes) return await this.#store.put(name, bytes, conditional ? conditionOf(there!) : undefined, signal)
        if (there !== null)
          await this.#store.remove(name, conditional ? { ifVersion: there!.version } : undefined, signal)
        return null
      } catch (error) {
        if (!conditional || !isFerryError(error, 'CONFLICT', 'NOT_FOUND')) throw error
      }
    }
  }
}

const conditionOf = (there: ObjectInfo | null): PutCondition =>
  there ? { ifVersion: there.version } : { ifAbsent: true }

async function bytesOf(
  change: Extract<StoreChange, { do: 'put' }>,
  unpacker: Unpacker,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  if ('bytes' in change) return change.bytes
  const bytes = new Uint8Array(change.size)
  await unpacker.read(change.staged, 0, bytes, signal)
  return bytes
}
