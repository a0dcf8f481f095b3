// copy_file_range(2): chunks that are clean become the target's by their slots, and the remote makes them out of what it has.
import { CHUNK_BYTES, maskCovering, PAGE_BYTES } from '../chunk/geometry.js'
import type { Row } from './chunk-table.js'
import { type Content, sumOf } from './content.js'
import type { Ino, Stamped } from './filesystem.js'
import type { Inode } from './inode.js'
import type { Piece } from './records.js'
import { type TreeState, UNKNOWN_VERSION } from './state.js'

/** Of one call: as many pieces go into one record. */
const SHARED_BYTES_MAX = 64 * 1024 * 1024

/** Such calls fit the dirty limit so often. */
const SHARES_MIN = 4

/** Where the remote has the bytes of a chunk that was copied, as long as it still has this slot. */
export interface Copied {
  slot: number
  ino: Ino
  index: number
  version: string
}

export interface CopyRange {
  source: Inode
  at: number
  target: Inode
  to: number
  length: number
}

interface Shared extends Piece {
  row: Row
  sourceIndex: number
}

/** So much of a range is to be copied as bytes: up to where a chunk begins in both files, if that is anywhere but at its start. */
export function unshared({ at, to, length }: CopyRange): number {
  const within = at % CHUNK_BYTES
  return within !== 0 && (at - to) % CHUNK_BYTES === 0 ? Math.min(length, CHUNK_BYTES - within) : length
}

export class Sharing {
  readonly #bytesMax: number

  constructor(
    readonly state: TreeState,
    readonly content: Content,
    dirtyBytesMax: number,
  ) {
    const chunksMax = Math.floor(Math.min(SHARED_BYTES_MAX, dirtyBytesMax / SHARES_MIN) / CHUNK_BYTES)
    this.#bytesMax = Math.max(1, chunksMax) * CHUNK_BYTES
  }

  /** How many bytes from the start of the range are in chunks that can be shared: whole, clean, and here, unless they are damaged. */
  bytes(range: CopyRange): number {
    let bytes = 0
    for (const { length } of this.#chunks(range)) bytes += length
    return bytes
  }

  /** @returns how many bytes the target has now as the source has them: less than the range, or none */
  share(range: CopyRange, stamped?: Stamped): number {
    const { state, content } = this
    const { source, target, to } = range
    const pieces: Shared[] = []
    let bytes = 0
    for (const { row, length } of this.#chunks(range)) {
      if (!content.isIntact(row)) break
      pieces.push(this.#piece(row, Math.floor((to + bytes) / CHUNK_BYTES), length))
      bytes += length
    }
    if (pieces.length === 0) return 0
    content.writeShared(target, { at: to, length: bytes }, pieces, stamped)
    for (const { row } of pieces) state.wasShared(row)
    if (source.version && source.version !== UNKNOWN_VERSION && source.remoteParent !== 0)
      for (const { slot, index, sourceIndex } of pieces)
        state.copied(target.ino, index, { slot, ino: source.ino, index: sourceIndex, version: source.version })
    return bytes
  }

  *#chunks({ source, at, target, to, length }: CopyRange): Iterable<{ row: Row; length: number }> {
    const { chunks } = this.state
    const end = Math.min(at + Math.min(length, this.#bytesMax), source.size)
    if (to % CHUNK_BYTES !== 0 || at % CHUNK_BYTES !== 0) return
    for (let from = at; from < end; from += CHUNK_BYTES) {
      const part = Math.min(CHUNK_BYTES, end - from)
      // The rest of the last page is zeros, in both of them.
      if (part < CHUNK_BYTES && (end < source.size || to + from - at + part < target.size)) return
      const row = chunks.find(source.ino, from / CHUNK_BYTES)
      if (!row || chunks.dirty[row] || chunks.flight[row] || chunks.valid[row] !== maskCovering(0, part)) return
      const there = chunks.find(target.ino, (to + from - at) / CHUNK_BYTES)
      if (there && chunks.flight[there] && chunks.flightSlot[there] === chunks.slot[row]) return
      yield { row, length: part }
    }
  }

  #piece(row: Row, index: number, length: number): Shared {
    const { state } = this
    const { chunks } = state
    if (chunks.sumLow[row] === 0 && chunks.sumHigh[row] === 0) {
      const sum = sumOf(state, row)
      chunks.sumLow[row] = sum.low
      chunks.sumHigh[row] = sum.high
    }
    const pages = Math.ceil(length / PAGE_BYTES)
    return {
      ...{ row, sourceIndex: chunks.index[row], index, slot: chunks.slot[row], firstPage: 0, pages, inline: null },
      ...{ bytes: pages * PAGE_BYTES, sumLow: chunks.sumLow[row], sumHigh: chunks.sumHigh[row] },
    }
  }
}
