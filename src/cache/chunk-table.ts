// What is known of every touched chunk: a row of typed arrays each, found by inode and index. Nothing for the untouched.
import type { Ino } from './filesystem.js'

/** A row of the table; 0 is none. */
export type Row = number

const ROWS_FIRST = 1024
const EMPTY = 0
const REMOVED = 0xffffffff

/** The row may be read without checking its checksum. */
export const VERIFIED = 1
/** A journal record names the slot's bytes by their checksum: they are not changed in place before the next checkpoint. */
export const SEALED = 2
/** Fetched as a guess and not read yet. */
export const GUESSED = 4
/** Was read again some time after it came: worth keeping. */
export const KEPT = 8
/** A checkpoint or a record names the row's slot: it is reused only after a checkpoint that no longer does. */
export const NAMED = 32
/** A checkpoint has the row with this slot: after power loss its clean pages there are believed to be the remote's. */
export const CHECKPOINTED = 64
/** Was read since the last look for a chunk to drop. */
export const REFERENCED = 16

/**
 * Rows: `valid` (pages whose bytes are in the slot), `dirty` (changed since the last cut), `flight` (changed before it, and
 * not known to be committed), `slot` (where the bytes are in the data file), `flightSlot` (where those of `flight` are: the
 * same slot until somebody writes), the checksum of a clean chunk as two halves (0, 0: none yet).
 */
export class ChunkTable {
  ino = new Float64Array(ROWS_FIRST)
  index = new Float64Array(ROWS_FIRST)
  valid = new Uint32Array(ROWS_FIRST)
  dirty = new Uint32Array(ROWS_FIRST)
  flight = new Uint32Array(ROWS_FIRST)
  slot = new Uint32Array(ROWS_FIRST)
  flightSlot = new Uint32Array(ROWS_FIRST)
  sumLow = new Uint32Array(ROWS_FIRST)
  sumHigh = new Uint32Array(ROWS_FIRST)
  /** Pages of the slot that were ever written: what it may hold of the disk. */
  written = new Uint32Array(ROWS_FIRST)
  flags = new Uint8Array(ROWS_FIRST)
  /** Second of this process in which the row was made; tells a second touch from the first. */
  bornSecond = new Uint32Array(ROWS_FIRST)
  #next = new Uint32Array(ROWS_FIRST)
  #previous = new Uint32Array(ROWS_FIRST)
  #heads = new Map<Ino, Row>()
  #free: Row[] = []
  #rows = 1
  #buckets = new Uint32Array(ROWS_FIRST * 2)
  #bucketsUsed = 0
  count = 0

  find(ino: Ino, index: number): Row {
    const buckets = this.#buckets
    const last = buckets.length - 1
    for (let at = hash(ino, index) & last; ; at = (at + 1) & last) {
      const row = buckets[at]
      if (row === EMPTY) return 0
      if (row !== REMOVED && this.index[row] === index && this.ino[row] === ino) return row
    }
  }

  /** A new row; there must be none for this chunk. */
  add(ino: Ino, index: number): Row {
    if ((this.#bucketsUsed + 1) * 2 > this.#buckets.length) this.#rehash()
    const row = this.#free.pop() ?? this.#rows++
    if (row >= this.ino.length) this.#grow()
    this.ino[row] = ino
    this.index[row] = index
    const head = this.#heads.get(ino) ?? 0
    this.#next[row] = head
    this.#previous[row] = 0
    if (head) this.#previous[head] = row
    this.#heads.set(ino, row)
    this.count++
    this.#place(row)
    return row
  }

  remove(row: Row): void {
    const buckets = this.#buckets
    const last = buckets.length - 1
    let at = hash(this.ino[row], this.index[row]) & last
    while (buckets[at] !== row) at = (at + 1) & last
    buckets[at] = REMOVED
    const next = this.#next[row]
    const previous = this.#previous[row]
    if (next) this.#previous[next] = previous
    if (previous) this.#next[previous] = next
    else if (next) this.#heads.set(this.ino[row], next)
    else this.#heads.delete(this.ino[row])
    this.valid[row] = this.dirty[row] = this.flight[row] = this.slot[row] = this.flightSlot[row] = 0
    this.sumLow[row] = this.sumHigh[row] = this.flags[row] = this.bornSecond[row] = this.written[row] = 0
    this.ino[row] = 0
    this.count--
    this.#free.push(row)
  }

  /** The rows of one inode, in no order. They may be removed while the list is walked. */
  rowsOf(ino: Ino): Row[] {
    const rows: Row[] = []
    for (let row = this.#heads.get(ino) ?? 0; row; row = this.#next[row]) rows.push(row)
    return rows
  }

  has(ino: Ino): boolean {
    return this.#heads.has(ino)
  }

  /** Every row in use. */
  *rows(): Iterable<Row> {
    for (let row = 1; row < this.#rows; row++) if (this.ino[row]) yield row
  }

  #place(row: Row) {
    const buckets = this.#buckets
    const last = buckets.length - 1
    let at = hash(this.ino[row], this.index[row]) & last
    while (buckets[at] !== EMPTY && buckets[at] !== REMOVED) at = (at + 1) & last
    if (buckets[at] === EMPTY) this.#bucketsUsed++
    buckets[at] = row
  }

  #rehash() {
    this.#buckets = new Uint32Array(2 ** Math.ceil(Math.log2((this.count + 1) * 4 + ROWS_FIRST)))
    this.#bucketsUsed = 0
    for (const row of this.rows()) this.#place(row)
  }

  #grow() {
    const wider = <T extends Float64Array | Uint32Array | Uint8Array>(array: T, into: T): T => {
      into.set(array)
      return into
    }
    const rows = this.ino.length * 2
    this.ino = wider(this.ino, new Float64Array(rows))
    this.index = wider(this.index, new Float64Array(rows))
    this.valid = wider(this.valid, new Uint32Array(rows))
    this.dirty = wider(this.dirty, new Uint32Array(rows))
    this.flight = wider(this.flight, new Uint32Array(rows))
    this.slot = wider(this.slot, new Uint32Array(rows))
    this.flightSlot = wider(this.flightSlot, new Uint32Array(rows))
    this.sumLow = wider(this.sumLow, new Uint32Array(rows))
    this.sumHigh = wider(this.sumHigh, new Uint32Array(rows))
    this.written = wider(this.written, new Uint32Array(rows))
    this.flags = wider(this.flags, new Uint8Array(rows))
    this.bornSecond = wider(this.bornSecond, new Uint32Array(rows))
    this.#next = wider(this.#next, new Uint32Array(rows))
    this.#previous = wider(this.#previous, new Uint32Array(rows))
  }
}

const hash = (ino: Ino, index: number) => {
  const mixed = Math.imul(ino | 0, 0x9e3779b1) ^ Math.imul((index | 0) + 1, 0x85ebca6b)
  return (mixed ^ (mixed >>> 15)) >>> 0
}
