// What a file's format says to pull ahead: its plan is followed while the file is open, in small steps between the turns of the event loop.
import { type Deferred, deferred } from '../base/async.js'
import { CHUNK_BYTES, maskCovering, PAGE_BYTES } from '../chunk/geometry.js'
import type { Row } from './chunk-table.js'
import { FIRST_BYTES, type FileView, type Range } from './formats/format.js'
import { planOf } from './formats/index.js'
import { Changed, type Inode } from './inode.js'
import type { TreeState } from './state.js'

/** A smaller file is here with its first reads anyway. */
const FILE_BYTES_MIN = 256 * 1024
/** Whether all of a larger file is here takes too long to find out (0.5 ms); what its format wishes is here then, and costs nothing. */
const COMPLETE_BYTES_MAX = 1024 ** 3
/** Looked at in one turn: 0.1 to 0.4 ms of a format's work. Each look costs as much as so many bytes. */
const TURN_BYTES = 64 * 1024
const LOOK_BYTES = 512
/** Fetches that may fail before the format is let go. */
const FAILURES_MAX = 8

/** What it needs of the pull. */
export interface FormatHooks {
  /** Nobody has closed the file since. */
  isOpen(): boolean
  isHere(range: Range): boolean
  /** Asks for what is missing, as a guess. @returns all fetches on their way that bring some of it */
  ask(range: Range): Promise<void>[]
}

/** A part of a look, in one slot. */
interface Piece {
  slot: number
  offset: number
  into: Uint8Array
}

export class FormatPull implements FileView {
  readonly name: string
  readonly size: number
  head: Range = { from: 0, to: 0 }
  readonly #version: string | null
  #state: 'new' | 'followed' | 'over' = 'new'
  /** Looked at since the event loop last had its turn. */
  #lookedBytes = 0
  /** Until when `have` put off bytes that are here: it had its share of this turn, or the disk must be waited for. */
  #postponed: Promise<void> | null = null
  /** The look for which the disk had to be waited, the last one only: a disk that never has anything at once answers it all the same. */
  #waitedFor: { at: number; bytes: Uint8Array } | null = null
  #waits: { for: 'read' | 'seek'; turn: Deferred<void> } | null = null
  #sought = false

  constructor(
    readonly state: TreeState,
    readonly inode: Inode,
    readonly hooks: FormatHooks,
  ) {
    this.name = inode.name
    this.size = inode.baseSize
    this.#version = inode.version
    if (this.size < FILE_BYTES_MIN) this.#state = 'over'
  }

  /** A read; `isSeek`: it goes on from none before it. */
  observe(at: number, length: number, isSeek: boolean): void {
    if (this.#state === 'over') return
    if (isSeek) {
      this.head = { from: at, to: at + length }
      this.#sought = true
    }
    if (this.#state === 'new') {
      // A file is not fetched from just to find out what it is.
      if (at >= FIRST_BYTES && !this.hooks.isHere({ from: 0, to: FIRST_BYTES })) return
      this.#state = 'followed'
      void this.#follow()
    } else if (this.#waits && (isSeek || this.#waits.for === 'read')) this.#waits.turn.resolve()
  }

  have(at: number, length: number): Uint8Array | null {
    if (this.#lookedBytes >= TURN_BYTES) {
      this.#postponed ??= nextTurn()
      return null
    }
    this.#lookedBytes += length + LOOK_BYTES
    const waitedFor = this.#waitedFor
    this.#waitedFor = null
    if (waitedFor?.at === at && waitedFor.bytes.length === length) return waitedFor.bytes
    const bytes = new Uint8Array(length)
    const pieces = this.#piecesOf(at, bytes)
    if (!pieces) return null
    const { slots } = this.state
    if (pieces.every(({ slot, offset, into }) => slots.readNow(slot, offset, into) === into.length)) return bytes
    this.#postponed = this.#waitFor(at, bytes, pieces)
    return null
  }

  /** Where in the slots these bytes are; null if not all of them are here. */
  #piecesOf(at: number, bytes: Uint8Array): Piece[] | null {
    const { chunks } = this.state
    const pieces: Piece[] = []
    for (let done = 0; done < bytes.length; ) {
      const index = Math.floor((at + done) / CHUNK_BYTES)
      const offset = at + done - index * CHUNK_BYTES
      const into = bytes.subarray(done, done + Math.min(CHUNK_BYTES - offset, bytes.length - done))
      const row = this.state.rowOf(this.inode, index)
      const zeros = this.inode.zerosMask(index)
      const absent = maskCovering(offset, offset + into.length) & ~(row ? chunks.valid[row] : 0)
      if (absent & ~zeros) return null
      if (absent === 0) pieces.push({ slot: chunks.slot[row], offset, into })
      else pieces.push(...this.#pagesOf(row, offset, into, zeros))
      done += into.length
    }
    return pieces
  }

  /** Page by page, where some are zeros of which nothing is here. */
  #pagesOf(row: Row, offset: number, into: Uint8Array, zeros: number): Piece[] {
    const pages: Piece[] = []
    for (let done = 0; done < into.length; ) {
      const page = Math.floor((offset + done) / PAGE_BYTES)
      const part = into.subarray(done, Math.min(into.length, (page + 1) * PAGE_BYTES - offset))
      if (zeros & (1 << page)) part.fill(0)
      else pages.push({ slot: this.state.chunks.slot[row], offset: offset + done, into: part })
      done += part.length
    }
    return pages
  }

  async #waitFor(at: number, bytes: Uint8Array, pieces: Piece[]): Promise<void> {
    for (const { slot, offset, into } of pieces) await this.state.slots.read(slot, offset, into)
    // Only bytes of slots that are still the file's are its bytes.
    const now = this.#piecesOf(at, bytes)
    if (now && pieces.every(({ slot }, n) => slot === now[n].slot)) this.#waitedFor = { at, bytes }
  }

  async #follow(): Promise<void> {
    try {
      // After the read that began it, which asks for more than the first bytes.
      await nextTurn()
      const isComplete = this.size <= COMPLETE_BYTES_MAX && this.hooks.isHere({ from: 0, to: this.size })
      if (!isComplete) await this.#steps()
    } catch {
      // The cache was closed meanwhile. Nobody waits for this: it is a help, and no more.
    }
    this.#state = 'over'
  }

  async #steps(): Promise<void> {
    const plan = planOf(this)
    for (let failures = 0; this.hooks.isOpen() && this.#isTheirs; this.#lookedBytes = 0) {
      this.#sought = false
      const { value: wish, done } = plan.next()
      if (done || wish.until === 'never') return
      if (this.#postponed) {
        await this.#postponed
        this.#postponed = null
        continue
      }
      const ranges = wish.ranges.filter(({ from, to }) => from >= 0 && from < Math.min(to, this.size))
      const fetches = ranges.flatMap(range => this.hooks.ask(range))
      if (wish.until === 'seek') await this.#next('seek')
      else if (fetches.length > 0) {
        const results = await Promise.allSettled(fetches)
        if (results.every(({ status }) => status === 'fulfilled')) continue
        if (++failures === FAILURES_MAX) return
        await this.#next('read')
      } else if (ranges.every(range => this.hooks.isHere(range))) await nextTurn()
      // There was no room for it.
      else await this.#next('read')
    }
  }

  async #next(what: 'read' | 'seek'): Promise<void> {
    if (what === 'seek' && this.#sought) return nextTurn()
    this.#waits = { for: what, turn: deferred() }
    await this.#waits.turn.promise
    this.#waits = null
    // After the read itself: what it asks for is not asked for twice.
    await nextTurn()
  }

  /** All bytes are the remote's, of the version with which it began. */
  get #isTheirs(): boolean {
    const { inode } = this
    const isWritten = ((inode.changed | inode.flight) & (Changed.data | Changed.new)) !== 0
    return !isWritten && !inode.stale && inode.version === this.#version && inode.baseSize === this.size
  }
}

const nextTurn = () => new Promise<void>(resolve => setImmediate(resolve))
