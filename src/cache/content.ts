// The bytes of files: reads that hit are answered in the same turn, writes go to a slot and the journal, never to the network.
import { FerryError } from '../base/errors.js'
import { digest } from '../chunk/digest.js'
import {
  CHUNK_BYTES,
  CHUNK_PAGES,
  FULL_MASK,
  firstRun,
  maskCovering,
  maskOf,
  PAGE_BYTES,
  popcount,
  runEnd,
  runLength,
  runStart,
} from '../chunk/geometry.js'
import { Intervals } from '../chunk/intervals.js'
import { GUESSED, NAMED, type Row, SEALED, VERIFIED } from './chunk-table.js'
import type { RegionExtent } from './door.js'
import type { Durability } from './durability.js'
import type { Maybe, Stamped } from './filesystem.js'
import { Changed, type Inode, RESERVED_RUNS_MAX } from './inode.js'
import type { Pull } from './pull.js'
import {
  Kind,
  type Move,
  PIECES_MAX,
  type Piece,
  packWrite,
  type ReserveRecord,
  type TruncateRecord,
  unpackWrite,
  writeRecordBytes,
  type ZeroRecord,
} from './records.js'
import type { TreeState } from './state.js'
import { Zeros } from './zeros.js'

/** Up to this many bytes of one chunk ride inside the record; a chunk that is written whole goes to a fresh slot instead. */
const INLINE_BYTES_MAX = 64 * 1024
/** Of the records of a write that has several. */
const PART_BYTES_MAX = 512 * 1024
const NO_ZEROS = new Zeros()
/** ext4's limit, which we share: 2^44 bytes, 16 TiB. */
export const FILE_BYTES_MAX = 2 ** 44
/** Chunks that are looked at in one go for what is known of them. */
const LOOKED_CHUNKS_MAX = 65_536
/** A read that keeps losing its pages to a change at the remote gives up after this many tries. */
const READ_TRIES_MAX = 16

/** Bytes and where they belong in a file. */
export interface Write {
  at: number
  from: Uint8Array
}

export class Content {
  hits = 0
  misses = 0
  bytesRead = 0
  guessedBytesUsed = 0

  constructor(
    readonly state: TreeState,
    readonly pull: Pull,
    readonly durability: Durability,
    /** Of one file, at most. */
    readonly fileBytesMax: number,
  ) {}

  // --- reading

  read(inode: Inode, at: number, into: Uint8Array): Maybe<number> {
    const length = Math.min(into.length, inode.size - at)
    if (length <= 0) return 0
    const isHit = this.#readNow(inode, at, into, length)
    // Before anything is asked for ahead: what is sent first arrives first.
    const read = isHit ? length : this.#readSlowly(inode, at, into, length)
    this.pull.observe(inode, at, length)
    if (isHit) {
      this.hits++
      this.bytesRead += length
    } else this.misses++
    return read
  }

  /** The same for ourselves: nobody is told of it, and nothing follows from it. */
  take(inode: Inode, at: number, into: Uint8Array): Maybe<number> {
    const length = Math.min(into.length, inode.size - at)
    return this.#readNow(inode, at, into, length) ? length : this.#readSlowly(inode, at, into, length)
  }

  #readNow(inode: Inode, at: number, into: Uint8Array, length: number): boolean {
    const { chunks, slots, clean, now } = this.state
    for (let done = 0; done < length; ) {
      const index = Math.floor((at + done) / CHUNK_BYTES)
      const offset = at + done - index * CHUNK_BYTES
      const part = Math.min(CHUNK_BYTES - offset, length - done)
      const row = chunks.find(inode.ino, index)
      const need = maskCovering(offset, offset + part)
      if (row && (need & ~chunks.valid[row]) === 0) {
        if ((chunks.flags[row] & (VERIFIED | GUESSED)) !== VERIFIED && !this.isIntact(row)) return false
        if (slots.readNow(chunks.slot[row], offset, into.subarray(done, done + part)) !== part) return false
        clean.touch(row, now.second())
      } else if (!this.#readHoles(inode, row, index, offset, into.subarray(done, done + part))) return false
      done += part
    }
    return true
  }

  /** A part of which some pages are absent: zeros, if the remote has nothing there either. */
  #readHoles(inode: Inode, row: Row, index: number, offset: number, into: Uint8Array): boolean {
    const { chunks, slots } = this.state
    const valid = row ? chunks.valid[row] : 0
    const absent = (maskCovering(offset, offset + into.length) & ~valid) >>> 0
    if (this.#atRemote(inode, index, absent)) return false
    into.fill(0)
    for (let run = firstRun(valid, 0); run >= 0; run = firstRun(valid, runEnd(run))) {
      const from = Math.max(runStart(run) * PAGE_BYTES, offset)
      const to = Math.min(runEnd(run) * PAGE_BYTES, offset + into.length)
      if (from < to && slots.readNow(chunks.slot[row], from, into.subarray(from - offset, to - offset)) !== to - from)
        return false
    }
    return true
  }

  /** Do any of these pages show the remote's bytes? */
  #atRemote(inode: Inode, index: number, mask: number): boolean {
    if (mask === 0) return false
    const below = Math.min(CHUNK_BYTES, inode.baseSize - index * CHUNK_BYTES)
    return (mask & maskCovering(0, below) & ~inode.zerosMask(index)) !== 0
  }

  /** Once per process: the chunk that an earlier one left is what it was. */
  isIntact(row: Row): boolean {
    const { chunks, state } = { chunks: this.state.chunks, state: this.state }
    if (chunks.flags[row] & GUESSED) {
      this.guessedBytesUsed += popcount(chunks.valid[row]) * PAGE_BYTES
      chunks.flags[row] &= ~GUESSED
    }
    if (chunks.flags[row] & VERIFIED) return true
    chunks.flags[row] |= VERIFIED
    if (chunks.dirty[row] || chunks.flight[row] || (chunks.sumLow[row] === 0 && chunks.sumHigh[row] === 0)) return true
    const sum = sumOf(state, row)
    if (sum.low === chunks.sumLow[row] && sum.high === chunks.sumHigh[row]) return true
    state.corrupt++
    state.dropPages(row, chunks.valid[row])
    return false
  }

  async #readSlowly(inode: Inode, at: number, into: Uint8Array, asked: number): Promise<number> {
    const { chunks, slots } = this.state
    for (let tries = 0; tries < READ_TRIES_MAX; tries++) {
      await this.pull.need(inode, at, asked)
      const length = Math.min(asked, inode.size - at)
      if (length <= 0) return 0
      if (this.#readNow(inode, at, into, length)) {
        this.bytesRead += length
        return length
      }
      let whole = true
      for (let done = 0; done < length && whole; ) {
        const index = Math.floor((at + done) / CHUNK_BYTES)
        const offset = at + done - index * CHUNK_BYTES
        const part = into.subarray(done, done + Math.min(CHUNK_BYTES - offset, length - done))
        done += part.length
        const row = chunks.find(inode.ino, index)
        const need = maskCovering(offset, offset + part.length)
        const valid = row ? chunks.valid[row] : 0
        if (this.#atRemote(inode, index, (need & ~valid) >>> 0)) whole = false
        else if ((need & ~valid) === 0) {
          const slot = chunks.slot[row]
          await slots.read(slot, offset, part)
          // The world may have changed: only bytes of a slot that is still the chunk's are its bytes.
          whole =
            chunks.find(inode.ino, index) === row && chunks.slot[row] === slot && (need & ~chunks.valid[row]) === 0
        } else {
          part.fill(0)
          for (let run = firstRun(valid, 0); run >= 0; run = firstRun(valid, runEnd(run))) {
            const from = Math.max(runStart(run) * PAGE_BYTES, offset)
            const to = Math.min(runEnd(run) * PAGE_BYTES, offset + part.length)
            if (from < to) slots.readSync(chunks.slot[row], from, part.subarray(from - offset, to - offset))
          }
        }
      }
      if (whole) {
        this.bytesRead += length
        return length
      }
    }
    throw new FerryError('IO', { detail: 'the pages were replaced faster than they could be read' })
  }

  // --- writing

  /** The caller has made room. */
  write(inode: Inode, at: number, from: Uint8Array, stamped: Stamped = 'now'): Maybe<void> {
    if (from.length === 0) return
    if (at + from.length > this.fileBytesMax) throw new FerryError('TOO_LARGE', { detail: `${at + from.length} bytes` })
    const absent = this.#absentEdge(inode, at, at + from.length)
    if (absent >= 0) return this.pull.need(inode, absent, PAGE_BYTES).then(() => this.write(inode, at, from, stamped))
    this.state.ensureKnown(inode)
    const size = Math.max(inode.size, at + from.length)
    const pieces: Piece[] = []
    for (let done = 0; done < from.length; ) {
      const index = Math.floor((at + done) / CHUNK_BYTES)
      const offset = at + done - index * CHUNK_BYTES
      const part = Math.min(CHUNK_BYTES - offset, from.length - done)
      try {
        pieces.push(this.#writePiece(inode, size, index, offset, from.subarray(done, done + part)))
      } catch (error) {
        for (const { inline, slot } of pieces) if (!inline) this.state.slots.freeNow(slot)
        throw error
      }
      done += part
    }
    this.#grow(inode, at)
    const timeNs = nowNs(this.state)
    const { parts, bytes } = packWrite({ ino: inode.ino, size, timeNs, pieces })
    this.state.journal.append(Kind.write, parts, bytes)
    this.#wrote(inode, size, pieces, stamped === 'now' ? timeNs : null)
  }

  /**
   * Whole pages (the last one to the end of the file), as one: the journal has all of it or nothing. Its bytes travel in the journal.
   * @throws TOO_LARGE: for one segment of it
   */
  writeAll(inode: Inode, writes: readonly Write[]): void {
    const { state } = this
    state.ensureKnown(inode)
    const parts = writes.flatMap(write => inChunks(write))
    const records: Write[][] = []
    let bytes = 0
    for (const part of parts) {
      const last = records.at(-1)
      bytes += part.from.length
      if (!last || bytes > PART_BYTES_MAX || last.length >= PIECES_MAX) {
        records.push([part])
        bytes = part.from.length
      } else last.push(part)
    }
    const total = parts.reduce((sum, { from }) => sum + from.length, 0)
    state.journal.reserve(writeRecordBytes(parts.length, total, records.length), records.length)
    const timeNs = nowNs(state)
    for (const [n, record] of records.entries()) {
      const pieces = record.map(({ at, from }) => {
        const index = Math.floor(at / CHUNK_BYTES)
        return this.#inlinePiece(inode, inode.size, index, at - index * CHUNK_BYTES, from)
      })
      const { parts, bytes } = packWrite({ ino: inode.ino, size: inode.size, timeNs, pieces })
      state.journal.append(n === records.length - 1 ? Kind.write : Kind.part, parts, bytes)
      this.#wrote(inode, inode.size, pieces, timeNs)
    }
  }

  /** Whole chunks, whose bytes are those of another file's. */
  writeShared(inode: Inode, { at, length }: { at: number; length: number }, pieces: Piece[], stamped: Stamped = 'now') {
    const { state } = this
    const end = at + length
    if (end > this.fileBytesMax) throw new FerryError('TOO_LARGE', { detail: `${end} bytes` })
    state.ensureKnown(inode)
    const size = Math.max(inode.size, end)
    this.#grow(inode, at)
    this.durability.extentWritten()
    const timeNs = nowNs(state)
    const { parts, bytes } = packWrite({ ino: inode.ino, size, timeNs, pieces })
    state.journal.append(Kind.share, parts, bytes)
    for (const { index, slot } of pieces) state.shareSlot(state.needRow(inode, index), slot)
    this.#wrote(inode, size, pieces, stamped === 'now' ? timeNs : null)
  }

  /** Only pages from the last one on are written by who appends. */
  #grow(inode: Inode, at: number) {
    if (!inode.growing) return
    inode.growing = at >= inode.size - (inode.size % PAGE_BYTES)
    inode.grownSinceMs ||= this.state.now.ms()
  }

  /** Start of a page of which only a part is written, whose rest is at the remote and not here; -1: none. */
  #absentEdge(inode: Inode, at: number, end: number): number {
    for (const edge of [at, end]) {
      const within = edge % PAGE_BYTES
      const page = edge - within
      if (within === 0 || page >= inode.baseSize || (edge === end && end >= inode.size)) continue
      const index = Math.floor(page / CHUNK_BYTES)
      const row = this.state.rowOf(inode, index)
      const mask = 1 << ((page - index * CHUNK_BYTES) / PAGE_BYTES)
      const has = (row ? this.state.chunks.valid[row] : 0) | inode.zerosMask(index)
      if ((has & mask) === 0) return page
    }
    return -1
  }

  #writePiece(inode: Inode, size: number, index: number, offset: number, from: Uint8Array): Piece {
    const { slots } = this.state
    const end = offset + from.length
    const sizeInChunk = Math.min(size - index * CHUNK_BYTES, CHUNK_BYTES)
    if (offset === 0 && end >= sizeInChunk && end > INLINE_BYTES_MAX) {
      const slot = slots.take()
      try {
        slots.writeSync(slot, 0, from)
      } catch (error) {
        slots.freeNow(slot)
        throw error
      }
      // What a fresh slot reads as is undefined, and past the end of the file a page is zeros.
      if (end % PAGE_BYTES) slots.writeSync(slot, end, new Uint8Array(PAGE_BYTES - (end % PAGE_BYTES)))
      const sum = halves(digest(from))
      this.durability.extentWritten()
      return {
        index,
        slot,
        firstPage: 0,
        pages: Math.ceil(end / PAGE_BYTES),
        inline: null,
        bytes: end,
        sumLow: sum.low,
        sumHigh: sum.high,
      }
    }
    return this.#inlinePiece(inode, size, index, offset, from)
  }

  #inlinePiece(inode: Inode, size: number, index: number, offset: number, from: Uint8Array): Piece {
    const { state } = this
    const { chunks, slots } = state
    const end = offset + from.length
    const sizeInChunk = Math.min(size - index * CHUNK_BYTES, CHUNK_BYTES)
    const row = state.needRow(inode, index)
    const firstPage = Math.floor(offset / PAGE_BYTES)
    const pages = Math.ceil(end / PAGE_BYTES) - firstPage
    const bytes = this.#wholePages(row, offset, from, firstPage, pages)
    if (!chunks.slot[row]) state.moveTo(row, slots.take(), false)
    else if (!state.mayOverwrite(row, maskOf(firstPage, pages))) state.moveTo(row, slots.take(), true)
    slots.writeSync(chunks.slot[row], firstPage * PAGE_BYTES, bytes)
    const inline = bytes.subarray(0, Math.min(bytes.length, sizeInChunk - firstPage * PAGE_BYTES))
    return { index, slot: chunks.slot[row], firstPage, pages, inline, bytes: inline.length, sumLow: 0, sumHigh: 0 }
  }

  /** The pages that a piece touches, whole: a record must not depend on pages that were only fetched. */
  #wholePages(row: Row, offset: number, from: Uint8Array, firstPage: number, pages: number): Uint8Array {
    const { chunks, slots } = this.state
    if (offset % PAGE_BYTES === 0 && from.length % PAGE_BYTES === 0) return from
    const bytes = new Uint8Array(pages * PAGE_BYTES)
    for (const page of pages === 1 ? [firstPage] : [firstPage, firstPage + pages - 1]) {
      if ((chunks.valid[row] & (1 << page)) === 0) continue
      slots.readSync(
        chunks.slot[row],
        page * PAGE_BYTES,
        bytes.subarray((page - firstPage) * PAGE_BYTES, (page - firstPage + 1) * PAGE_BYTES),
      )
    }
    bytes.set(from, offset - firstPage * PAGE_BYTES)
    return bytes
  }

  #wrote(inode: Inode, size: number, pieces: Piece[], timeNs: bigint | null) {
    const { state } = this
    inode.size = size
    for (const piece of pieces) {
      const row = state.needRow(inode, piece.index)
      if (!piece.inline) {
        state.moveTo(row, piece.slot, false)
        state.chunks.flags[row] |= SEALED
      }
      state.chunks.flags[row] |= VERIFIED
      const mask = maskOf(piece.firstPage, piece.pages)
      inode.allocate(piece.pages, popcount(mask & ~state.chunks.valid[row]))
      const from = piece.index * CHUNK_BYTES + piece.firstPage * PAGE_BYTES
      inode.zeros?.remove(from, from + piece.pages * PAGE_BYTES)
      inode.unreserve(from, from + piece.pages * PAGE_BYTES)
      state.dirty(row, mask)
    }
    this.#stamp(inode, timeNs, Changed.data)
  }

  /** `shared`: its slots are those of other rows as well. false: the bytes that the record names are not there. */
  replayWrite(body: Uint8Array, shared = false): boolean {
    const { state } = this
    const { slots } = state
    const record = unpackWrite(body)
    const inode = state.inode(record.ino)
    for (const piece of record.pieces) {
      if (piece.inline) continue
      const bytes = new Uint8Array(piece.bytes)
      slots.readSync(piece.slot, 0, bytes)
      const sum = halves(digest(bytes))
      if (sum.low !== piece.sumLow || sum.high !== piece.sumHigh) return false
    }
    for (const piece of record.pieces) {
      const row = state.needRow(inode, piece.index)
      if (shared) state.shareSlot(row, piece.slot)
      else state.adopt(piece.slot)
      if (!piece.inline) continue
      state.moveTo(row, piece.slot, true)
      const bytes = new Uint8Array(piece.pages * PAGE_BYTES)
      bytes.set(piece.inline)
      slots.writeSync(piece.slot, piece.firstPage * PAGE_BYTES, bytes)
    }
    // The kernel that might have said when it was is gone.
    this.#wrote(inode, record.size, record.pieces, record.timeNs)
    return true
  }

  // --- size and holes

  truncate(inode: Inode, size: number, timeNs: bigint, stamped: Stamped = 'now'): void {
    if (size > this.fileBytesMax) throw new FerryError('TOO_LARGE', { detail: `${size} bytes` })
    this.state.ensureKnown(inode)
    // As open(2) with O_TRUNC does, before anything else.
    inode.growing &&= size === 0 && inode.grownSinceMs === 0
    if (inode.growing) inode.grownSinceMs = this.state.now.ms()
    const moves = this.#cutOff(inode, size, null)
    const record: TruncateRecord = [inode.ino, size, timeNs, moves]
    this.state.append(Kind.truncate, record)
    this.#resized(inode, size, stamped === 'now' ? timeNs : null)
  }

  replayTruncate([ino, size, timeNs, moves]: TruncateRecord): void {
    const inode = this.state.inode(ino)
    this.#cutOff(inode, size, new Map(moves))
    this.#resized(inode, size, timeNs)
  }

  #resized(inode: Inode, size: number, timeNs: bigint | null) {
    inode.size = size
    inode.allocated = Math.min(inode.allocated, Math.ceil(size / PAGE_BYTES) * PAGE_BYTES)
    inode.baseSize = Math.min(inode.baseSize, size)
    inode.floor = Math.min(inode.floor, size)
    this.#stamp(inode, timeNs, Changed.data | Changed.attributes)
  }

  /** Pages beyond `size` go, and the rest of the last page becomes zeros. `replayed`: the slots that were taken then. */
  #cutOff(inode: Inode, size: number, replayed: Map<number, number> | null): Move[] {
    const { state } = this
    const { chunks, slots } = state
    const moves: Move[] = []
    const end = Math.ceil(size / PAGE_BYTES) * PAGE_BYTES
    if (size <= inode.size) inode.unreserve(end, FILE_BYTES_MAX)
    if (size >= inode.size) return moves
    inode.zeros?.remove(end, FILE_BYTES_MAX)
    for (const row of chunks.rowsOf(inode.ino)) {
      const start = chunks.index[row] * CHUNK_BYTES
      if (start + CHUNK_BYTES <= size) continue
      const keep = Math.max(0, size - start)
      const pagesKept = Math.ceil(keep / PAGE_BYTES)
      const within = keep % PAGE_BYTES
      if (within && chunks.valid[row] & (1 << (pagesKept - 1))) {
        this.#own(row, moves, replayed, 1 << (pagesKept - 1))
        slots.writeSync(chunks.slot[row], keep, new Uint8Array(PAGE_BYTES - within))
        state.setValid(row, chunks.valid[row])
      }
      this.#dropPages(inode, row, maskOf(pagesKept, CHUNK_PAGES - pagesKept))
    }
    return moves
  }

  /** The row's slot may be changed in place after this. It is noted in the record: replay may know nothing of a slot that was only fetched into. */
  #own(row: Row, moves: Move[], replayed: Map<number, number> | null, mask: number) {
    const { state } = this
    const { chunks } = state
    const noted = replayed?.get(chunks.index[row])
    if (noted !== undefined) {
      state.adopt(noted)
      state.moveTo(row, noted, true)
    } else if (!chunks.slot[row] || !state.mayOverwrite(row, mask)) state.moveTo(row, state.slots.take(), true)
    chunks.flags[row] |= NAMED
    moves.push([chunks.index[row], chunks.slot[row]])
  }

  /** Whole pages from `at` on become zeros; `size` is the file's after it. */
  zero(inode: Inode, at: number, length: number, size: number, stamped: Stamped = 'now'): void {
    const { state } = this
    state.ensureKnown(inode)
    inode.growing = false
    this.#makeZeros(inode, at, length)
    const timeNs = nowNs(state)
    const record: ZeroRecord = [inode.ino, at, length, size, timeNs]
    state.append(Kind.zero, record)
    this.#zeroed(inode, size, stamped === 'now' ? timeNs : null)
  }

  replayZero([ino, at, length, size, timeNs]: ZeroRecord): void {
    const inode = this.state.inode(ino)
    this.#makeZeros(inode, at, length)
    this.#zeroed(inode, size, timeNs)
  }

  #zeroed(inode: Inode, size: number, timeNs: bigint | null) {
    inode.size = size
    this.#stamp(inode, timeNs, Changed.data)
  }

  /** null: the kernel says when it was. */
  #stamp(inode: Inode, timeNs: bigint | null, changed: number) {
    if (timeNs !== null) inode.mtimeNs = inode.ctimeNs = timeNs
    this.state.mark(inode, timeNs === null ? changed : changed | Changed.times)
  }

  #makeZeros(inode: Inode, at: number, length: number) {
    const { state } = this
    const end = Math.min(at + length, Math.ceil(Math.max(inode.baseSize, inode.size) / PAGE_BYTES) * PAGE_BYTES)
    if (at >= end) return
    for (const row of this.#rowsWithin(inode, at, end)) {
      const start = state.chunks.index[row] * CHUNK_BYTES
      const mask = maskCovering(Math.max(0, at - start), Math.min(CHUNK_BYTES, end - start))
      this.#dropPages(inode, row, mask)
    }
    inode.zeros ??= new Zeros()
    inode.zeros.add(at, end)
    inode.unreserve(at, end)
  }

  /** Whole pages around these bytes count as allocated from now on, as after fallocate(2). */
  reserve(inode: Inode, at: number, length: number): void {
    const { state } = this
    const [from, to] = [Math.floor(at / PAGE_BYTES), Math.ceil((at + length) / PAGE_BYTES)].map(n => n * PAGE_BYTES)
    state.ensureKnown(inode)
    const record: ReserveRecord = [inode.ino, to - from, this.#holes(inode, from, to)?.edges ?? []]
    state.append(Kind.reserve, record)
    this.replayReserve(record)
  }

  replayReserve([ino, bytes, edges]: ReserveRecord): void {
    const inode = this.state.inode(ino)
    inode.reserve(bytes, edges)
    this.state.persist(inode)
  }

  /** Runs of pages from `at` on of which nothing is here, nor at the remote; null: more than are remembered. */
  #holes(inode: Inode, at: number, end: number): Intervals | null {
    const { chunks } = this.state
    const base = Math.ceil(inode.baseSize / PAGE_BYTES) * PAGE_BYTES
    const holes = new Intervals()
    for (const [from, to] of inode.zeros?.within(at, end) ?? []) holes.add(from, to)
    holes.add(Math.max(at, base), end)
    for (const row of this.#rowsWithin(inode, at, end)) {
      const start = chunks.index[row] * CHUNK_BYTES
      for (let run = firstRun(chunks.valid[row], 0); run >= 0; run = firstRun(chunks.valid[row], runEnd(run)))
        holes.remove(start + runStart(run) * PAGE_BYTES, start + runEnd(run) * PAGE_BYTES)
      if (holes.count > RESERVED_RUNS_MAX) return null
    }
    return holes.count > RESERVED_RUNS_MAX ? null : holes
  }

  #dropPages(inode: Inode, row: Row, mask: number) {
    const dropped = (mask & this.state.chunks.valid[row]) >>> 0
    inode.allocated = Math.max(0, inode.allocated - popcount(dropped) * PAGE_BYTES)
    this.state.dropPages(row, dropped)
  }

  /** Rows of chunks that have bytes of [from, to). */
  #rowsWithin(inode: Inode, from: number, to: number): Row[] {
    const { chunks } = this.state
    const first = Math.floor(from / CHUNK_BYTES)
    const end = Math.ceil(to / CHUNK_BYTES)
    if (end - first > chunks.count)
      return chunks.rowsOf(inode.ino).filter(row => chunks.index[row] >= first && chunks.index[row] < end)
    return Array.from({ length: end - first }, (_, n) => this.state.rowOf(inode, first + n)).filter(row => row !== 0)
  }

  // --- where the data is

  /** What is known to be zeros, in runs; not all of it, if it takes long to look at. */
  extents(inode: Inode, at: number, length: number, countMax: number): RegionExtent[] {
    const extents: RegionExtent[] = []
    const end = Math.min(at + length, inode.size)
    const add = (until: number, zeros: boolean) => {
      const last = extents.at(-1)
      if (last?.zeros === zeros) last.length += until - from
      else if (extents.length < countMax) extents.push({ length: until - from, zeros })
      else return false
      from = until
      return true
    }
    let from = at
    for (let looked = 0; from < end && looked < LOOKED_CHUNKS_MAX; looked++) {
      const [run] = inode.zeros?.within(from, end) ?? []
      if (run?.[0] === from) {
        if (!add(run[1], true)) return extents
        continue
      }
      const index = Math.floor(from / CHUNK_BYTES)
      const start = index * CHUNK_BYTES
      const to = Math.min(end, start + CHUNK_BYTES)
      const zeros = this.#zeroPages(inode, index)
      while (from < to) {
        const page = Math.floor((from - start) / PAGE_BYTES)
        const isZeros = (zeros & (1 << page)) !== 0
        let next = page + 1
        while (next < CHUNK_PAGES && ((zeros & (1 << next)) !== 0) === isZeros) next++
        if (!add(Math.min(to, start + next * PAGE_BYTES), isZeros)) return extents
      }
    }
    return extents
  }

  /** Runs of bytes that are here or known to be zeros, the first `countMax` of them. */
  presence(inode: Inode, countMax: number): [from: number, to: number][] {
    const { chunks } = this.state
    const here = new Intervals()
    for (const row of chunks.rowsOf(inode.ino).sort((a, b) => chunks.index[a] - chunks.index[b])) {
      const start = chunks.index[row] * CHUNK_BYTES
      for (let run = firstRun(chunks.valid[row], 0); run >= 0; run = firstRun(chunks.valid[row], runEnd(run)))
        here.add(start + runStart(run) * PAGE_BYTES, start + runEnd(run) * PAGE_BYTES)
    }
    for (const [from, to] of inode.zeros?.within(0, inode.size) ?? []) here.add(from, to)
    const runs: [from: number, to: number][] = []
    for (const run of here.within(0, inode.size)) if (runs.push(run) === countMax) break
    return runs
  }

  /** Pages of a chunk that are neither here nor anything but zeros. */
  #zeroPages(inode: Inode, index: number): number {
    const row = this.state.rowOf(inode, index)
    const absent = row ? ~this.state.chunks.valid[row] : FULL_MASK
    const below = maskCovering(0, Math.min(CHUNK_BYTES, inode.baseSize - index * CHUNK_BYTES))
    return (absent & (~below | inode.zerosMask(index))) >>> 0
  }

  seek(inode: Inode, at: number, wanted: 'data' | 'hole'): number {
    if (at >= inode.size) throw new FerryError('RANGE', { detail: `offset ${at} of ${inode.size}` })
    const { chunks } = this.state
    const base = Math.ceil(Math.min(inode.baseSize, inode.size) / PAGE_BYTES) * PAGE_BYTES
    const rows = chunks.rowsOf(inode.ino).filter(row => (chunks.index[row] + 1) * CHUNK_BYTES > Math.max(at, base))
    rows.sort((a, b) => chunks.index[a] - chunks.index[b])
    const zeros = inode.zeros ?? NO_ZEROS
    if (wanted === 'data') {
      for (const [from] of zeros.gaps(at, base)) return from
      for (const row of rows) {
        const start = chunks.index[row] * CHUNK_BYTES
        const beyond = Math.max(at, base)
        const run = firstRun(chunks.valid[row], Math.max(0, Math.floor((beyond - start) / PAGE_BYTES)))
        if (run >= 0) return Math.max(at, start + runStart(run) * PAGE_BYTES)
      }
      throw new FerryError('RANGE', { detail: 'no data beyond' })
    }
    for (const [from] of zeros.within(at, base)) return from
    let hole = Math.max(at, base)
    for (const row of rows) {
      const start = chunks.index[row] * CHUNK_BYTES
      if (start + CHUNK_BYTES <= hole) continue
      if (start > hole) break
      const absent = ~chunks.valid[row] >>> 0
      const run = firstRun(absent, Math.floor((hole - start) / PAGE_BYTES))
      if (run >= 0) {
        hole = Math.max(hole, start + runStart(run) * PAGE_BYTES)
        break
      }
      hole = start + CHUNK_BYTES
    }
    return Math.min(hole, inode.size)
  }
}

export const nowNs = (state: TreeState): bigint => state.now.ns()

export const halves = (sum: bigint) => ({ low: Number(sum & 0xffffffffn), high: Number((sum >> 32n) & 0xffffffffn) })

const scratch = new Uint8Array(CHUNK_BYTES)

/** The checksum of a clean chunk: of its valid pages, in order. */
export function sumOf(state: TreeState, row: Row): { low: number; high: number } {
  const valid = state.chunks.valid[row]
  const bytes = scratch.subarray(0, popcount(valid) * PAGE_BYTES)
  let at = 0
  for (let run = firstRun(valid, 0); run >= 0; run = firstRun(valid, runEnd(run))) {
    const length = runLength(run) * PAGE_BYTES
    state.slots.readSync(state.chunks.slot[row], runStart(run) * PAGE_BYTES, bytes.subarray(at, at + length))
    at += length
  }
  return halves(digest(bytes))
}

function inChunks({ at, from }: Write): Write[] {
  const parts: Write[] = []
  for (let done = 0; done < from.length; ) {
    const length = Math.min(CHUNK_BYTES - ((at + done) % CHUNK_BYTES), from.length - done)
    parts.push({ at: at + done, from: from.subarray(done, done + length) })
    done += length
  }
  return parts
}
