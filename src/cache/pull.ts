// Bytes from the remote: one fetch for concurrent misses, merged ranges, demand before guesses, within one memory budget.

import { LRUCache } from 'lru-cache'
import PQueue from 'p-queue'
import { lasting } from '../base/async.js'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import type { MemoryBudget } from '../base/memory-budget.js'
import { readExactly } from '../base/read-exactly.js'
import {
  CHUNK_BYTES,
  FULL_MASK,
  firstRun,
  maskCovering,
  PAGE_BYTES,
  popcount,
  runEnd,
  runLength,
  runStart,
} from '../chunk/geometry.js'
import type { Tree } from '../remote/tree.js'
import { GUESSED, VERIFIED } from './chunk-table.js'
import type { Ino } from './filesystem.js'
import { FormatPull } from './format-pull.js'
import { Hedge } from './hedge.js'
import type { Inode } from './inode.js'
import { Link } from './link.js'
import { type Guess, Heads } from './prefetch.js'
import { type TreeState, UNKNOWN_VERSION } from './state.js'

/** Requests that somebody waits for, at once. */
const DEMAND_REQUESTS_MAX = 64
/** Guesses at once, however narrow the line. */
const GUESSES_MIN = 2
/**
 * Of what nobody reads yet, so much is stored in one go, 10 us (or ten times that, where the memory is new to the machine): who reads
 * something else has a turn in between.
 */
const STORED_BYTES = 32 * 1024
/** What a random reader pays beyond what it asked for: its miss is widened to this. */
const DEMAND_BYTES_MIN = 16 * 1024
/** Who has not read on for so long does not share the line. */
const STREAM_MS = 2_000
/** A miss whose version went away is looked at this often again before it is an error. */
const TRIES_MAX = 6

/** Not what stood there when the path was last looked at: somebody else changed it, or a batch of ours is being applied. */
const SURPRISES = ['STALE', 'SHORT_READ', 'NOT_FOUND', 'IS_DIRECTORY', 'NOT_DIRECTORY', 'INVALID', 'ABORTED'] as const

/** Archived files that are remembered, for `status`. */
const ARCHIVED_MAX = 1_000

export interface PullOptions {
  fetchBytesMax: number
  cacheBytesMax: number
  memoryBytesMax: number
  /** How long what was read waits for a full disk. */
  deadlineMs: number
  /** Guesses at once; 0: none are made. */
  workers: number
  prefetch: boolean
}

/** What the pull needs from the rest of the engine. */
export interface PullHooks {
  /**
   * Room for clean pages, made by dropping others, or by waiting for dirty ones to be sent; NO_SPACE after the deadline. It is kept for
   * them until `roomMade` says that they are here, or do not come.
   */
  makeRoom(bytes: number): Promise<void>
  roomMade(bytes: number): void
  /** The disk says that it is full: resolves when something was given back. */
  diskFull(): Promise<void>
  /** The remote has another version than was asked for, or nothing: resolves when the inode was looked at again. */
  surprised(inode: Inode): Promise<void>
}

/** What is known of how an open file is read. */
interface Reading {
  heads: Heads
  format: FormatPull
}

interface Fetch {
  from: number
  to: number
  demand: boolean
  /** Somebody waits for it, whether or not it began as a guess. */
  awaited: boolean
  /** Somebody reads it as soon as it is there, or soon. */
  isUrgent: boolean
  version: string
  done: Promise<void>
  start: () => void
  started: boolean
  /** It is not worth it any more, and ends without having begun. */
  dropped: boolean
}

const nextStored = (at: number) => (Math.floor(at / STORED_BYTES) + 1) * STORED_BYTES

export class Pull {
  readonly #demand = new PQueue({ concurrency: DEMAND_REQUESTS_MAX })
  readonly #guesses: PQueue
  readonly #fetches = new Map<Inode, Set<Fetch>>()
  readonly #abort = lasting()
  readonly #link: Link
  readonly hedge = new Hedge()
  /** Files of which somebody reads on and on, and when that was seen last. */
  readonly #streams = new Map<Inode, number>()
  guessedBytes = 0
  /** Paths of files that could not be read since they are archived. */
  readonly archived = new LRUCache<Ino, string>({ max: ARCHIVED_MAX })
  #guessedInFlight = 0
  /** One at a time: a program's write waits for the one that holds the data file, and for no other. */
  readonly #aside = new PQueue({ concurrency: 1 })
  #turns: Promise<void> = Promise.resolve()

  constructor(
    readonly remote: Tree,
    readonly state: TreeState,
    readonly options: PullOptions,
    readonly hooks: PullHooks,
    readonly memory: MemoryBudget,
  ) {
    this.#guesses = new PQueue({ concurrency: Math.max(1, options.workers) })
    this.#link = new Link(options.fetchBytesMax)
  }

  /** Every read passes here, hit or miss: learn its pattern, fetch ahead. */
  observe(inode: Inode, at: number, length: number): void {
    if (!this.options.prefetch || this.options.workers === 0 || inode.baseSize === 0) return
    inode.reading ??= this.#reading(inode)
    const { heads, format } = inode.reading as Reading
    const { begun } = heads
    const isKnown = heads.begun > 0
    for (const guess of heads.observe(at, length, this.#windowBytesMax)) {
      this.#streams.set(inode, performance.now())
      this.guess(inode, guess)
    }
    if (isKnown && heads.begun !== begun) this.#forgetGuesses(inode)
    format.observe(at, length, heads.begun !== begun)
  }

  #reading(inode: Inode): Reading {
    const reading: Reading = {
      heads: new Heads(),
      format: new FormatPull(this.state, inode, {
        isOpen: () => inode.reading === reading,
        isHere: ({ from, to }) => !this.#absent(inode, from, Math.min(to, inode.baseSize)),
        ask: range => {
          this.guess(inode, range)
          return this.#onTheWay(inode, range)
        },
      }),
    }
    return reading
  }

  /** What fills the line, but no more than this file's share of what may be guessed. */
  get #windowBytesMax() {
    const since = performance.now() - STREAM_MS
    for (const [inode, atMs] of this.#streams) if (atMs < since) this.#streams.delete(inode)
    const share = this.options.memoryBytesMax / 4 / Math.max(1, this.#streams.size)
    return Math.min(this.#link.windowBytes, share)
  }

  /** Of guesses on their way: they take memory, and room that others would have. */
  get #guessedBytesMax() {
    return Math.min(this.options.memoryBytesMax / 2, this.options.cacheBytesMax / 8)
  }

  /** No more of them at once than fill the line: those that are wanted first arrive first. */
  #limitGuesses() {
    const { requestBytes, windowBytes } = this.#link
    const wanted = Math.ceil(windowBytes / requestBytes) * Math.max(1, this.#streams.size)
    this.#guesses.concurrency = Math.min(Math.max(1, this.options.workers), Math.max(GUESSES_MIN, wanted))
  }

  /** Somebody reads elsewhere now: what was guessed for him, and is not on its way yet, is not worth it any more. */
  #forgetGuesses(inode: Inode) {
    for (const fetch of this.#fetches.get(inode) ?? [])
      if (!fetch.started && !fetch.demand) {
        fetch.dropped = true
        fetch.start()
      }
  }

  /**
   * Fetch in the background what of these bytes is neither here nor on its way; dropped without a word when there is no room. `isUrgent`
   * false: nobody reads there.
   */
  guess(inode: Inode, { from, to }: Guess, isUrgent = true): Promise<void>[] {
    const started: Promise<void>[] = []
    const end = Math.min(to, inode.baseSize)
    const step = this.#link.requestBytes
    this.#limitGuesses()
    for (const gap of this.#gaps(inode, from, end)) {
      for (let at = gap.from; at < gap.to; at += step) {
        const until = Math.min(gap.to, at + step)
        if (this.#guessedInFlight + until - at > this.#guessedBytesMax) return started
        const fetch = this.#fetch(inode, at, until, false, isUrgent)
        fetch.done.catch(() => {})
        started.push(fetch.done)
      }
    }
    return started
  }

  /**
   * Resolves when no page of these bytes is absent that the remote has; joins what is on its way. `isUrgent` false: nobody reads them now,
   * and others are let in while they are stored.
   */
  async need(inode: Inode, at: number, length: number, isUrgent = true): Promise<void> {
    for (let tries = 0; ; tries++) {
      const end = Math.min(at + length, inode.baseSize)
      if (at >= end) return
      const waiting = this.#joined(inode, at, end, isUrgent)
      for (const gap of this.#gaps(inode, at, end)) {
        const wide = this.#widened(inode, gap)
        const step = this.options.fetchBytesMax
        for (let from = wide.from; from < wide.to; from += step)
          waiting.push(this.#fetch(inode, from, Math.min(wide.to, from + step), true, isUrgent).done)
      }
      if (waiting.length === 0) return
      const results = await Promise.allSettled(waiting)
      const failed = results.find(result => result.status === 'rejected')
      if (!failed) continue
      const error = toFerryError((failed as PromiseRejectedResult).reason)
      if (tries < TRIES_MAX && isFerryError(error, ...SURPRISES)) await this.hooks.surprised(inode)
      else
        throw isFerryError(error, 'NOT_FOUND', 'IS_DIRECTORY', 'NOT_DIRECTORY')
          ? new FerryError('STALE', { cause: error })
          : error
    }
  }

  /** Nobody will wait for anything any more. */
  async close(): Promise<void> {
    this.#abort.abort()
    this.#guesses.clear()
    await Promise.all([this.#demand.onIdle(), this.#guesses.onIdle()])
  }

  #onTheWay(inode: Inode, { from, to }: Guess): Promise<void>[] {
    return [...(this.#fetches.get(inode) ?? [])]
      .filter(fetch => fetch.from < to && fetch.to > from)
      .map(fetch => fetch.done)
  }

  /** Fetches on their way that bring bytes of [from, to). Those that still wait as guesses start now. */
  #joined(inode: Inode, from: number, to: number, isUrgent: boolean): Promise<void>[] {
    const waiting: Promise<void>[] = []
    for (const fetch of this.#fetches.get(inode) ?? []) {
      if (
        fetch.from >= to ||
        fetch.to <= from ||
        !this.#absent(inode, Math.max(from, fetch.from), Math.min(to, fetch.to))
      )
        continue
      fetch.awaited = true
      fetch.isUrgent ||= isUrgent
      if (!fetch.started) {
        fetch.demand = true
        void this.#demand.add(async () => fetch.start())
      }
      waiting.push(fetch.done)
    }
    return waiting
  }

  #absent(inode: Inode, from: number, to: number): boolean {
    for (const _ of this.#missing(inode, from, to)) return true
    return false
  }

  /** Page-aligned runs of [from, to) that are neither here nor on their way. */
  #gaps(inode: Inode, from: number, to: number): Guess[] {
    const gaps: Guess[] = []
    const fetches = [...(this.#fetches.get(inode) ?? [])].sort((a, b) => a.from - b.from)
    for (const missing of this.#missing(inode, from, to)) {
      let at = missing.from
      for (const fetch of fetches) {
        if (fetch.to <= at || fetch.from >= missing.to) continue
        if (fetch.from > at) gaps.push({ from: at, to: fetch.from })
        at = Math.max(at, fetch.to)
      }
      if (at < missing.to) gaps.push({ from: at, to: missing.to })
    }
    return gaps
  }

  /** Page-aligned runs of [from, to) that are not here, adjacent ones of neighbouring chunks merged. */
  *#missing(inode: Inode, from: number, to: number): Iterable<Guess> {
    if (!inode.zeros) yield* this.#absentRuns(inode, from, to)
    // However many zeros there are, they are passed over in one step.
    else for (const [first, end] of inode.zeros.gaps(from, to)) yield* this.#absentRuns(inode, first, end)
  }

  *#absentRuns(inode: Inode, from: number, to: number): Iterable<Guess> {
    const { chunks } = this.state
    let run: Guess | null = null
    for (let at = from; at < to; ) {
      const index = Math.floor(at / CHUNK_BYTES)
      const start = index * CHUNK_BYTES
      const row = this.state.rowOf(inode, index)
      const absent =
        (maskCovering(at - start, Math.min(CHUNK_BYTES, to - start)) & (row ? ~chunks.valid[row] : FULL_MASK)) >>> 0
      for (let pages = firstRun(absent, 0); pages >= 0; pages = firstRun(absent, runEnd(pages))) {
        const first = start + runStart(pages) * PAGE_BYTES
        const end = first + runLength(pages) * PAGE_BYTES
        if (run && run.to === first) run.to = end
        else {
          if (run) yield run
          run = { from: first, to: end }
        }
      }
      at = start + CHUNK_BYTES
    }
    if (run) yield run
  }

  /** A small miss brings its neighbours along, as far as they are missing too. */
  #widened(inode: Inode, gap: Guess): Guess {
    if (gap.to - gap.from >= DEMAND_BYTES_MIN) return gap
    const from = Math.floor(gap.from / DEMAND_BYTES_MIN) * DEMAND_BYTES_MIN
    const to = Math.min(from + DEMAND_BYTES_MIN, Math.ceil(inode.baseSize / PAGE_BYTES) * PAGE_BYTES)
    return this.#gaps(inode, from, to).find(wide => wide.from <= gap.from && wide.to >= gap.to) ?? gap
  }

  #fetch(inode: Inode, from: number, to: number, demand: boolean, isUrgent: boolean): Fetch {
    const fetches = this.#fetches.get(inode) ?? new Set<Fetch>()
    this.#fetches.set(inode, fetches)
    let start = () => {}
    const go = new Promise<void>(resolve => {
      start = resolve
    })
    const fetch: Fetch = {
      from,
      to,
      demand,
      awaited: demand,
      isUrgent,
      version: inode.version ?? '',
      done: Promise.resolve(),
      start: () => {},
      started: false,
      dropped: false,
    }
    fetch.start = () => {
      fetch.started = true
      start()
    }
    fetches.add(fetch)
    if (!demand) this.#guessedInFlight += to - from
    fetch.done = go
      .then(() => this.#run(inode, fetch))
      .finally(() => {
        fetches.delete(fetch)
        if (fetches.size === 0) this.#fetches.delete(inode)
        if (!demand) this.#guessedInFlight -= to - from
      })
    const run = async () => {
      if (!fetch.started) fetch.start()
      await fetch.done.catch(() => {})
    }
    if (demand) void this.#demand.add(run)
    else void this.#guesses.add(run)
    return fetch
  }

  async #run(inode: Inode, fetch: Fetch): Promise<void> {
    const { state } = this
    if (fetch.dropped) return
    const path = state.remotePath(inode)
    if (path === null || inode.stale)
      throw new FerryError('STALE', { detail: state.path(inode) ?? `inode ${inode.ino}` })
    const length = Math.min(fetch.to, inode.baseSize) - fetch.from
    if (length <= 0) return
    // Under its old name the remote may show another file while a batch is being applied: the version tells, and must be known first.
    const version = fetch.version === UNKNOWN_VERSION ? undefined : fetch.version
    if (version === undefined && inode.remoteParent > 0) throw new FerryError('STALE', { detail: path })
    // Room first: who waits for that may wait for a push, which needs memory.
    let room = fetch.to - fetch.from + CHUNK_BYTES
    await this.hooks.makeRoom(room)
    try {
      await this.memory.take(length, fetch.demand)
    } catch (error) {
      this.hooks.roomMade(room)
      throw error
    }
    let bytes: Uint8Array | undefined
    try {
      const begun = this.#link.begin()
      const read = (signal: AbortSignal) =>
        readExactly({ at: fetch.from, length, what: path }, (at, count) =>
          this.remote.read(path, { at, length: count, version }, signal),
        )
      const { signal } = this.#abort
      bytes = await this.hedge.read({ bytes: length, isAwaited: () => fetch.awaited, signal }, read)
      this.#link.end(begun, length)
      this.#check(inode, fetch)
      this.archived.delete(inode.ino)
      await this.#keep(inode, fetch, bytes, stored => {
        room -= stored
        this.hooks.roomMade(stored)
      })
    } catch (error) {
      if (isFerryError(error, 'ARCHIVED')) this.archived.set(inode.ino, path)
      throw error
    } finally {
      if (bytes) this.remote.giveBack?.(bytes)
      this.memory.give(length)
      this.hooks.roomMade(room)
    }
  }

  /** A disk that is full for the moment is given back what can be given back, again and again until the deadline. */
  async #keep(inode: Inode, fetch: Fetch, bytes: Uint8Array, stored: (bytes: number) => void): Promise<void> {
    const until = performance.now() + this.options.deadlineMs
    for (let at = fetch.from; ; ) {
      try {
        const next = await this.#keepSome(inode, fetch, bytes, at)
        stored(next - at)
        at = next
        if (at === fetch.to) return
      } catch (error) {
        if (!isFerryError(error, 'NO_SPACE') || performance.now() > until) throw error
        await this.hooks.diskFull()
      }
      this.#check(inode, fetch)
    }
  }

  /** What of it is stored next, and up to where that was. */
  async #keepSome(inode: Inode, fetch: Fetch, bytes: Uint8Array, from: number): Promise<number> {
    if (!fetch.isUrgent && this.#isAbsentChunk(inode, from, fetch.to)) {
      const part = { from, to: from + CHUNK_BYTES }
      await this.#storeAside(inode, fetch, bytes, part)
      return part.to
    }
    // Who reads it has all of it at once, before any of it can leave again.
    const to = fetch.isUrgent ? fetch.to : Math.min(nextStored(from), fetch.to)
    this.#store(inode, fetch, bytes, { from, to })
    if (to < fetch.to) await this.#turn()
    return to
  }

  /** A whole chunk begins there, of which nothing is here. */
  #isAbsentChunk(inode: Inode, at: number, end: number): boolean {
    if (at % CHUNK_BYTES > 0 || at + CHUNK_BYTES > Math.min(end, inode.baseSize)) return false
    const index = at / CHUNK_BYTES
    const row = this.state.rowOf(inode, index)
    return inode.zerosMask(index) === 0 && (!row || (!this.state.chunks.valid[row] && !this.state.chunks.slot[row]))
  }

  /** A chunk that nobody reads yet is written by another thread, to a slot that is nobody's until then. */
  async #storeAside(inode: Inode, fetch: Fetch, bytes: Uint8Array, part: Guess): Promise<void> {
    const { slots } = this.state
    const slot = slots.take()
    let isOurs = true
    try {
      await this.#aside.add(() => slots.write(slot, 0, bytes.subarray(part.from - fetch.from, part.to - fetch.from)))
      this.#check(inode, fetch)
      isOurs = !this.#store(inode, fetch, bytes, part, slot)
    } finally {
      if (isOurs) slots.freeNow(slot)
    }
  }

  /** STALE: what it was fetched for is another file by now, or none. */
  #check(inode: Inode, { version }: Fetch): void {
    if ((inode.version ?? '') !== version || !this.state.find(inode.ino))
      throw new FerryError('STALE', { detail: this.state.path(inode) ?? `inode ${inode.ino}` })
  }

  /** The next turn of the loop in which nothing else is stored bit by bit. */
  #turn(): Promise<void> {
    this.#turns = this.#turns.then(() => new Promise(setImmediate))
    return this.#turns
  }

  /**
   * A part of it into the slots, but for pages that became valid meanwhile: what was written here is newer. `aside`: a slot that has all of
   * it already. Returns whether that has become the chunk's.
   */
  #store(inode: Inode, fetch: Fetch, bytes: Uint8Array, part: Guess, aside = 0): boolean {
    const { state } = this
    const { chunks, slots } = state
    const end = Math.min(part.to, inode.baseSize)
    let isTaken = false
    for (let at = part.from; at < end; ) {
      const index = Math.floor(at / CHUNK_BYTES)
      const start = index * CHUNK_BYTES
      const to = Math.min(start + CHUNK_BYTES, end)
      const row = state.needRow(inode, index)
      const newer = chunks.valid[row] | inode.zerosMask(index)
      const mask = (maskCovering(at - start, to - start) & ~newer) >>> 0
      at = start + CHUNK_BYTES
      if (mask === 0) continue
      isTaken = aside > 0 && mask === FULL_MASK && !chunks.slot[row]
      if (isTaken) state.moveTo(row, aside, true)
      else if (!chunks.slot[row] || slots.isShared(chunks.slot[row])) state.moveTo(row, slots.take(), true)
      for (let run = isTaken ? -1 : firstRun(mask, 0); run >= 0; run = firstRun(mask, runEnd(run))) {
        const first = start + runStart(run) * PAGE_BYTES
        const last = first + runLength(run) * PAGE_BYTES
        slots.writeSync(
          chunks.slot[row],
          first - start,
          bytes.subarray(first - fetch.from, Math.min(last, end) - fetch.from),
        )
        // Past the end of what the remote has a page is zeros, whatever the slot held.
        if (last > end) slots.writeSync(chunks.slot[row], end - start, new Uint8Array(last - end))
      }
      if (fetch.demand) chunks.flags[row] |= VERIFIED
      else {
        chunks.flags[row] |= chunks.valid[row] ? VERIFIED : VERIFIED | GUESSED
        this.guessedBytes += popcount(mask) * PAGE_BYTES
      }
      state.clean.delete(row)
      state.setValid(row, (chunks.valid[row] | mask) >>> 0)
      state.settleRow(row)
    }
    return isTaken
  }

  /** Everything of one file, in order; rejects with the first failure. */
  async whole(inode: Inode, onBytes: (bytes: number) => void, signal?: AbortSignal): Promise<void> {
    const step = this.options.fetchBytesMax * 4
    for (let at = 0; at < inode.baseSize; at += step) {
      signal?.throwIfAborted()
      await this.need(inode, at, Math.min(step, inode.baseSize - at), false)
      onBytes(Math.min(step, inode.baseSize - at))
    }
  }

  /** Are all bytes of it here? */
  complete(inode: Inode): boolean {
    return !this.#absent(inode, 0, inode.baseSize)
  }
}
