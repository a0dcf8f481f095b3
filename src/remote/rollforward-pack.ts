// Staged bytes of stores and blobs: many small pieces packed into few objects. The intent says what lies where.

import { inParallel } from '../base/async.js'
import { readExactly } from '../base/read-exactly.js'
import type { Packed } from './intent.js'
import type { Store } from './store.js'
import { overlay } from './through-bytes.js'

/** A pack is put when it has so many bytes; larger pieces are packs of their own. */
const PACK_BYTES = 1024 * 1024
const PUTS_AT_ONCE = 4
const PREFIX = 'stage/'

interface Pack {
  name: string
  parts: Uint8Array[]
  bytes: number
  put: Promise<void> | null
}

interface Staged {
  pieces: Map<string, Packed>
  /** Of several pieces each. */
  packs: Pack[]
  /** Names that were given. */
  count: number
}

const packName = (epoch: number, batch: number, number: number) => `${PREFIX}${epoch}/${batch}.pack-${number}`

export class Packer {
  readonly #store: Store
  readonly #batches = new Map<number, Staged>()

  constructor(store: Store) {
    this.#store = store
  }

  /** Resolves when the piece is taken; it is durable after `flush`. */
  async add(
    epoch: number,
    batch: number,
    id: string,
    at: number,
    from: Uint8Array,
    signal?: AbortSignal,
  ): Promise<void> {
    const staged: Staged = this.#batches.get(batch) ?? { pieces: new Map(), packs: [], count: 0 }
    this.#batches.set(batch, staged)
    const key = `${id} ${at} ${from.byteLength}`
    if (from.byteLength >= PACK_BYTES) {
      const name = packName(epoch, batch, staged.count++)
      await this.#store.put(name, from, undefined, signal)
      staged.pieces.set(key, [id, at, from.byteLength, name, 0])
      return
    }
    let pack = staged.packs.at(-1)
    if (!pack || pack.put || pack.bytes + from.byteLength > PACK_BYTES) {
      const full = pack
      pack = { name: packName(epoch, batch, staged.count++), parts: [], bytes: 0, put: null }
      staged.packs.push(pack)
      if (full) await this.#put(full, signal)
    }
    staged.pieces.set(key, [id, at, from.byteLength, pack.name, pack.bytes])
    pack.parts.push(from.slice())
    pack.bytes += from.byteLength
    if (pack.bytes >= PACK_BYTES) await this.#put(pack, signal)
  }

  /** All that was staged for a batch is durable. @returns where it lies */
  async flush(batch: number, signal?: AbortSignal): Promise<Packed[]> {
    const staged = this.#batches.get(batch)
    if (!staged) return []
    await inParallel(staged.packs, PUTS_AT_ONCE, pack => this.#put(pack, signal))
    return [...staged.pieces.values()]
  }

  /** Forget everything, or what belongs to batches up to this one. */
  forget(batch = Number.POSITIVE_INFINITY): void {
    for (const number of this.#batches.keys()) if (number <= batch) this.#batches.delete(number)
  }

  #put(pack: Pack, signal?: AbortSignal): Promise<void> {
    pack.put ??= this.#store.put(pack.name, Buffer.concat(pack.parts), undefined, signal).then(
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

/** Removes packs: those of former epochs, or those of this one's batches up to a number. */
export async function clearPacks(
  store: Store,
  { epoch, batch }: { epoch: number; batch: number },
  signal?: AbortSignal,
): Promise<void> {
  for (let after = ''; ; ) {
    const page = await store.list(PREFIX, after, signal)
    for (const { name } of page) {
      const [, begun, number] = /^stage\/(\d+)\/(\d+)\./.exec(name) ?? []
      const mine = Number(begun) === epoch
      if (mine ? Number(number) <= batch : Number(begun) < epoch) await store.remove(name, undefined, signal)
    }
    if (page.length === 0) return
    after = page[page.length - 1].name
  }
}

/** Reads what is packed. */
export class Unpacker {
  readonly #store: Store
  readonly #pieces = new Map<string, Packed[]>()

  constructor(store: Store, packed: Packed[]) {
    this.#store = store
    for (const piece of packed) {
      const pieces = this.#pieces.get(piece[0])
      if (pieces) pieces.push(piece)
      else this.#pieces.set(piece[0], [piece])
    }
  }

  /** Fills `into` with what is staged under `id` from `at` on; zeros where nothing is. */
  async read(id: string, at: number, into: Uint8Array, signal?: AbortSignal): Promise<void> {
    const end = at + into.byteLength
    for (const [, pieceAt, length, pack, packAt] of this.#pieces.get(id) ?? []) {
      const from = Math.max(at, pieceAt)
      const to = Math.min(end, pieceAt + length)
      if (from >= to) continue
      const range = { at: packAt + from - pieceAt, length: to - from, what: pack }
      const get = (start: number, count: number) => this.#store.get(pack, { at: start, length: count }, signal)
      overlay(into, at, await readExactly(range, get), from)
    }
  }
}
