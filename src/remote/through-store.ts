// Reading a store through a batch that is committed but not applied.
import { FerryError } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import { Unpacker } from './rollforward-pack.js'
import { Passed } from './rollforward-view.js'
import type { ObjectInfo, Store, StoreChange } from './store.js'

const PAGE_MAX = 1_000

type Pending = { index: number; change: StoreChange }

export class ThroughStore {
  readonly #store: Store
  readonly #intent: IntentRecord<StoreChange>
  readonly #changes = new Map<string, Pending>()
  /** Names of what is put, in byte order. */
  readonly #puts: string[]
  readonly #unpacker: Unpacker

  constructor(store: Store, hidden: Store, intent: IntentRecord<StoreChange>) {
    this.#store = store
    this.#intent = intent
    this.#unpacker = new Unpacker(hidden, intent.packed)
    const refused = new Set(intent.refused.map(([index]) => index))
    intent.changes.forEach((change, index) => {
      if (!refused.has(index)) this.#changes.set(change.name, { index, change })
    })
    this.#puts = [...this.#changes.values()].flatMap(({ change }) => (change.do === 'put' ? [change.name] : [])).sort()
  }

  async head(name: string, signal?: AbortSignal): Promise<ObjectInfo | null> {
    const pending = this.#changes.get(name)
    return pending ? this.#info(pending) : this.#store.head(name, signal)
  }

  async get(
    name: string,
    range?: { at: number; length: number; version?: string },
    signal?: AbortSignal,
  ): Promise<Uint8Array> {
    const pending = this.#changes.get(name)
    if (!pending) return this.#store.get(name, range, signal)
    const info = this.#info(pending)
    if (!info) throw new FerryError('NOT_FOUND', { detail: name })
    if (range?.version !== undefined && range.version !== info.version) throw new FerryError('STALE', { detail: name })
    const { at, length } = range ?? { at: 0, length: info.size }
    const { change } = pending
    if (change.do === 'put' && 'bytes' in change) return change.bytes.slice(at, at + length)
    const into = new Uint8Array(Math.max(0, Math.min(length, info.size - at)))
    try {
      await this.#unpacker.read((change as { staged: string }).staged, at, into, signal)
    } catch (error) {
      // What was staged goes only when all of it is applied.
      throw error instanceof FerryError && error.code === 'NOT_FOUND' ? new Passed() : error
    }
    return into
  }

  async list(prefix: string, after = '', signal?: AbortSignal): Promise<ObjectInfo[]> {
    for (let last = after; ; ) {
      const page = await this.#store.list(prefix, last, signal)
      // Whatever lies behind the last name of a page is for the next one.
      const until = page.length > 0 ? page[page.length - 1].name : null
      const ours = this.#puts.filter(
        name => name.startsWith(prefix) && name > last && (until === null || name <= until),
      )
      const all = [
        ...page.filter(({ name }) => !this.#changes.has(name)),
        ...ours.map(name => this.#info(this.#changes.get(name)!)!),
      ].sort((one, other) => (one.name < other.name ? -1 : 1))
      if (all.length > 0 || until === null) return all.slice(0, PAGE_MAX)
      last = until
    }
  }

  #info({ index, change }: Pending): ObjectInfo | null {
    if (change.do === 'remove') return null
    const { epoch, batch } = this.#intent
    const size = 'bytes' in change ? change.bytes.byteLength : change.size
    return { name: change.name, size, version: `pending-${epoch}.${batch}.${index}` }
  }
}
