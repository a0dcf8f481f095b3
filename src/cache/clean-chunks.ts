// The clean chunks, in the order in which they may leave. A hit only sets a bit (see `touch`); what crawlers read once leaves first.
import { LRUCache } from 'lru-cache'
import { type ChunkTable, KEPT, REFERENCED, type Row } from './chunk-table.js'

/** A second read this long after the first tells a working set from one pass over a tree. */
const SECOND_TOUCH_S = 2
/** The budgets are the engine's affair: lru-cache keeps the order only. */
const PAGES_MAX = 2 ** 32
/** Share of the kept chunks that a flood of new ones cannot push out. */
const KEPT_SHARE = 0.8

/**
 * Two LRUs: chunks read in one go (`once`) and chunks that were read again later (`kept`). Room is made from `once` first,
 * unless the kept ones hold more than their share. lru-cache cannot pin, so dirty chunks are not in here at all.
 */
export class CleanChunks {
  readonly #once: LRUCache<Row, number>
  readonly #kept: LRUCache<Row, number>
  #pages = 0
  #keptPages = 0

  constructor(
    readonly chunks: ChunkTable,
    /** Gives the row's space back. */
    readonly drop: (row: Row) => void,
  ) {
    this.#once = new LRUCache({ maxSize: PAGES_MAX, sizeCalculation: pages => pages })
    this.#kept = new LRUCache({ maxSize: PAGES_MAX, sizeCalculation: pages => pages })
  }

  get pages(): number {
    return this.#pages
  }

  /** Enter a chunk that has become clean, or whose pages have changed; `pages` > 0. */
  set(row: Row, pages: number): void {
    this.delete(row)
    const kept = (this.chunks.flags[row] & KEPT) !== 0
    ;(kept ? this.#kept : this.#once).set(row, pages)
    this.#pages += pages
    if (kept) this.#keptPages += pages
  }

  delete(row: Row): void {
    const once = this.#once.peek(row)
    if (once !== undefined) {
      this.#pages -= once
      this.#once.delete(row)
      return
    }
    const kept = this.#kept.peek(row)
    if (kept === undefined) return
    this.#pages -= kept
    this.#keptPages -= kept
    this.#kept.delete(row)
  }

  /** On every hit; the LRUs learn of it when they look for one to drop (second chance). */
  touch(row: Row, second: number): void {
    const { flags, bornSecond } = this.chunks
    flags[row] |= second - bornSecond[row] >= SECOND_TOUCH_S ? KEPT | REFERENCED : REFERENCED
  }

  /** Drop the chunk that may go first. false: there is none. */
  evictOne(): boolean {
    for (let tries = 0; tries < 64; tries++) {
      const fromKept = this.#once.size === 0 || this.#keptPages > this.#pages * KEPT_SHARE
      const lru = fromKept ? this.#kept : this.#once
      const { value: row, done } = lru.rkeys().next()
      if (done) return false
      const pages = lru.peek(row) ?? 0
      if (tries < 63 && this.chunks.flags[row] & (fromKept ? REFERENCED : KEPT)) {
        this.chunks.flags[row] &= ~REFERENCED
        this.set(row, pages)
        continue
      }
      this.delete(row)
      this.drop(row)
      return true
    }
    return false
  }
}
