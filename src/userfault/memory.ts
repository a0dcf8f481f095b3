// A region as memory of this process. It lives in a thread that nobody's fault can hold up: the program's threads touch the memory.
import { closeSync } from 'node:fs'
import { Once } from '../base/async.js'
import { giveBack, takeBytes } from '../base/buffers.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import { detach, forbid, mapAnonymous, unmap, viewOf } from '../linux/memory.js'
import { openUserfaultfd } from '../linux/userfaultfd.js'
import { FEATURE_MOVE, FEATURE_WP_ASYNC, REGISTER_MISSING, REGISTER_WP } from '../wire/userfaultfd.js'
import { type FaultCounts, type FaultOptions, Faults } from './faults.js'
import { HeldWrites } from './held-writes.js'
import { copiedPages } from './pages.js'
import { Resident } from './resident.js'
import { Spaces } from './spaces.js'
import { watchFromThread } from './thread-watch.js'
import { copyMemory, type Run, type SeenPages, Tracker, type Tracking } from './tracker.js'
import { Userfaultfd } from './userfaultfd.js'

const log = logger('userfault')

const PAGE_BYTES = 4096
/** Filled ahead at once, in the order that was asked for. */
export const PREFETCHED_BYTES = 1024 * 1024
/** So many of them at a time. */
const PREFETCHES_MAX = 16
/** Looked for what was written this often. */
const PUSH_MS = 1_000
/** Written to the region at once. */
const PIECE_BYTES = 1024 * 1024
/** Less would leave no room for what is filled ahead. */
const RESIDENT_BYTES_MIN = 4 * 1024 * 1024

export interface MemorySettings extends Pick<FaultOptions, 'onFault'> {
  /** What is written to the memory goes to the region, at least once a second. */
  writeBack: boolean
  /** What goes to the region at once is as the memory was in one moment, whoever wrote to it. */
  consistent: boolean
  /** All of it is filled in the background: pieces of PREFETCHED_BYTES, in this order. Null: nothing is. */
  prefetch: AsyncIterable<number> | null
  /** Bytes that are there at once, at most: those that have been there longest give way. */
  resident: number
}

/** The region: see Region. */
export interface MappedDoor extends RegionDoor {
  writeAll(writes: readonly { at: number; from: Uint8Array }[]): void | Promise<void>
}

/** What a mapping has done so far. */
export interface MemoryStatus extends FaultCounts {
  /** Written to the region. */
  pushedBytes: number
  /** There at the moment. */
  residentBytes: number
  /** Why the region does not take what was written; null: it does. */
  problem: string | null
}

/** A region as memory, however it is done. */
export interface MappedMemory {
  readonly address: number
  /** Whole pages. */
  readonly length: number
  /** What has to be closed with the mapping; null: nothing. */
  readonly descriptor: number | null
  status(): MemoryStatus
  /**
   * The region has what was written before the call. If only one thread writes, and waits for it, that is one moment; otherwise each
   * page is whole, but they may differ in age. @throws what the region says; the next push tries it again
   */
  push(): Promise<void>
  /** These bytes are there when it resolves. @throws what the region says */
  prefetch(at: number, length: number): Promise<void>
  /**
   * These bytes are what the region has, from now on: pages leave, and come again when they are touched. What was written to them goes to
   * the region first; without writeBack it is kept where the memory may leave, and forgotten otherwise.
   * @throws UNSUPPORTED: before Linux 6.8
   */
  refresh(at: number, length: number): Promise<void>
  /**
   * What was written is with the region, and the memory is not there any more. Closing twice is fine.
   * @throws what the region says: then it stays as it is, and may be closed later
   */
  close(): Promise<void>
  /** Nobody will answer faults any more: whoever waits for bytes, or touches them, gets SIGSEGV instead of waiting for ever. */
  abandon(): void
}

/** By page faults. It owns the mapping, and not the region. */
export class Memory implements MappedMemory {
  readonly address: number
  readonly length: number
  readonly #door: MappedDoor
  readonly descriptor: number
  readonly #faults: Faults
  readonly #writeBack: boolean
  /** Null: nobody tells what the program has written. */
  readonly #tracking: Tracking | null
  /** The same, if it is of that kind. */
  readonly #held: HeldWrites | null
  readonly #timer: NodeJS.Timeout | undefined
  /** Runs of positions that are not marked as written any more, and that the region has not taken. */
  #owed: Run[] = []
  /** Pushes and evictions, one after the other: a push reads pages that must be there. */
  #working: Promise<void> = Promise.resolve()
  readonly #residentMax: number
  readonly #resident = new Resident()
  readonly #canMove: boolean
  /** Where pages go that are taken away. */
  #scratch: number | null = null
  #isEvicting = false
  #pushedBytes = 0
  #problem: string | null = null
  readonly #closing = new Once(() => this.#close())

  /** @throws UNSUPPORTED: the kernel is too old for writeBack; NOT_PERMITTED: this user may not */
  constructor(door: MappedDoor, { writeBack, consistent, prefetch, onFault, resident }: MemorySettings) {
    this.#door = door
    this.#writeBack = writeBack
    this.#residentMax = Math.max(RESIDENT_BYTES_MIN, resident)
    this.length = Math.max(1, Math.ceil(door.size / PAGE_BYTES)) * PAGE_BYTES
    this.descriptor = openUserfaultfd()
    const uffd = new Userfaultfd(this.descriptor)
    let address = 0
    let isTracked = false
    try {
      // Of what never leaves, and is not written back, nobody need know what was written.
      const wanted = writeBack || this.length > this.#residentMax
      const begun = begin(uffd, { wanted: wanted && !consistent, needed: writeBack })
      isTracked = begun.isTracked
      this.#canMove = (begun.features & FEATURE_MOVE) !== 0n
      address = mapAnonymous(this.length)
      const isProtected = isTracked || consistent
      uffd.register(address, this.length, isProtected ? REGISTER_MISSING | REGISTER_WP : REGISTER_MISSING)
    } catch (error) {
      if (address !== 0) unmap(address, this.length)
      closeSync(this.descriptor)
      throw error
    }
    this.address = address
    const onFull = () => void this.push().catch(() => {})
    this.#held = consistent ? new HeldWrites(uffd, { address, onFull }) : null
    this.#tracking = this.#held ?? (isTracked ? new Tracker(uffd, this) : null)
    this.#faults = new Faults(
      this.descriptor,
      copiedPages(door, { isProtected: this.#tracking !== null }),
      new Spaces([{ address, length: this.length, at: 0, pageBytes: PAGE_BYTES }]),
      {
        ...{ onFault, watch: watchFromThread },
        onEnd: () => log.error('faults are not answered any more'),
        onPut: (from, to) => this.#came(from, to),
        onProtected: at => this.#held?.asked(at - address),
        // If nothing can be given back there is more than there should be, and still an answer.
        isFull: () => this.#isEvicting && this.#resident.bytes >= this.#residentMax,
      },
    )
    if (prefetch) void this.#fillAll(prefetch)
    if (writeBack) this.#timer = setInterval(() => this.push().catch(() => {}), PUSH_MS).unref()
  }

  /** What cannot be had now comes when it is touched. */
  async #fillAll(order: AsyncIterable<number>): Promise<void> {
    const filling = new Set<Promise<void>>()
    for await (const at of order) {
      const filled = this.#faults.prefetch(at, Math.min(this.length, at + PREFETCHED_BYTES)).then(
        () => void filling.delete(filled),
        error => {
          filling.delete(filled)
          if (!this.#closing.isBegun) log.debug('bytes of memory did not come ahead', { at, error })
        },
      )
      filling.add(filled)
      if (filling.size >= PREFETCHES_MAX) await Promise.race(filling)
      if (this.#closing.isBegun) return
    }
  }

  status(): MemoryStatus {
    return {
      ...this.#faults.counts,
      pushedBytes: this.#pushedBytes,
      residentBytes: this.#resident.bytes,
      problem: this.#problem,
    }
  }

  push(): Promise<void> {
    return this.#inTurn(() => this.#push())
  }

  async prefetch(at: number, length: number): Promise<void> {
    if (length > 0) await this.#faults.prefetch(...pagesAround(at, length))
  }

  refresh(at: number, length: number): Promise<void> {
    if (!this.#canMove)
      throw new FerryError('UNSUPPORTED', { detail: 'to refresh memory needs Linux 6.8 (UFFDIO_MOVE)' })
    if (length === 0) return Promise.resolve()
    const [from, to] = pagesAround(at, length)
    return this.#inTurn(async () => {
      // Pages that it has not finished have to be there.
      if (this.#owed.length > 0 || this.#held) await this.#push()
      // What is on its way may be older.
      await this.#faults.untilFilled(from, to)
      for (const run of this.#resident.cut(from, to)) await this.#takeAway(...run)
    })
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#working.then(work)
    this.#working = done.catch(() => {})
    return done
  }

  #came(from: number, to: number): void {
    this.#resident.came(from, to)
    this.#tracking?.arrived(from, to)
    const { length } = this
    if (!this.#canMove || length <= this.#residentMax || this.#resident.bytes < this.#residentMax || this.#isEvicting)
      return
    this.#isEvicting = true
    this.#inTurn(() => this.#evict())
      .catch(error => log.error('memory could not be given back', { error }))
      .finally(() => {
        this.#isEvicting = false
        this.#faults.goOn()
      })
  }

  /** Until an eighth is free. What the region does not take stays, and is tried again when more has come. */
  async #evict(): Promise<void> {
    // A push goes on with pages that it has not finished: they have to be there.
    if (this.#owed.length > 0 || this.#held) await this.#push()
    for (let { runs } = this.#resident; runs > 0 && this.#resident.bytes > this.#residentMax * (7 / 8); runs--) {
      await this.#takeAway(...this.#resident.oldest()!)
      this.#faults.goOn()
    }
  }

  async #takeAway(from: number, to: number): Promise<void> {
    if (this.#scratch === null) {
      this.#scratch = mapAnonymous(PIECE_BYTES)
      new Userfaultfd(this.descriptor).register(this.#scratch, PIECE_BYTES)
    }
    for (let at = from; at < to; at += PIECE_BYTES)
      await this.#faults.takeAway(at, Math.min(to, at + PIECE_BYTES), this.#scratch, {
        before: (first, last) => this.#tracking?.see(first, takeBytes(last - first)) ?? null,
        use: (place, bytes, seen) => this.#letGo(place, bytes, seen),
      })
  }

  /** @returns what stays: it is the memory's own, or the region has not taken it */
  async #letGo(at: number, bytes: Uint8Array, seen: SeenPages | null): Promise<Run[]> {
    if (!seen) return []
    const changed = changedRuns(bytes, seen)
    giveBack(seen.bytes)
    // By itself a page would be of another moment.
    if (!this.#writeBack || this.#held) return changed
    const back: Run[] = []
    for (const [from, to] of changed) {
      const own = bytes.subarray(from, Math.min(to, this.#door.size - at))
      try {
        for (const [first, last] of this.#tracking!.changed(at + from, own)) {
          await this.#door.write(first, bytes.subarray(first - at, last - at))
          this.#pushedBytes += last - first
        }
      } catch (error) {
        log.warn('memory cannot be given back now', { at, error })
        back.push([from, to])
      }
    }
    return back
  }

  async #push(): Promise<void> {
    if (!this.#tracking || !this.#writeBack) return
    const { size } = this.#door
    const runs = [...this.#owed, ...this.#tracking.take()].map(([from, to]): Run => [from, Math.min(to, size)])
    this.#owed = runs
    try {
      if (this.#held) await this.#pushAsOne(runs)
      else for (const run of runs) await this.#pushRun(run)
      this.#owed = []
      this.#tracking.allPushed()
      this.#problem = null
    } catch (error) {
      this.#owed = runs.filter(([from, to]) => from < to)
      this.#held?.release()
      const problem = toFerryError(error).message
      if (problem !== this.#problem) log.error('what was written to memory is not taken, and is tried again', { error })
      this.#problem = problem
      throw error
    }
  }

  /** What is left of the run is still to be pushed. */
  async #pushRun(run: Run): Promise<void> {
    while (run[0] < run[1]) {
      const [at] = run
      // The program may go on writing: the region is given bytes that stay as they are.
      const bytes = takeBytes(Math.min(PIECE_BYTES, run[1] - at))
      try {
        copyMemory(this.address + at, bytes)
        for (const [from, to] of this.#tracking!.changed(at, bytes)) {
          const content = bytes.subarray(from - at, to - at)
          const written = this.#door.write(from, content)
          if (written) await written
          this.#tracking!.pushed(from, content)
          this.#pushedBytes += to - from
        }
        run[0] += bytes.length
      } finally {
        giveBack(bytes)
      }
    }
  }

  /** Nobody writes meanwhile. */
  async #pushAsOne(runs: Run[]): Promise<void> {
    const writes = runs.flatMap(([from, to]) => {
      const pieces: { at: number; from: Uint8Array }[] = []
      for (let at = from; at < to; at += PIECE_BYTES)
        pieces.push({ at, from: viewOf(this.address + at, Math.min(PIECE_BYTES, to - at)) })
      return pieces
    })
    try {
      const written = this.#door.writeAll(writes)
      if (written) await written
      for (const { from } of writes) this.#pushedBytes += from.length
    } finally {
      for (const { from } of writes) detach(from.buffer)
    }
  }

  close(): Promise<void> {
    return this.#closing.run()
  }

  async #close(): Promise<void> {
    await this.push()
    clearInterval(this.#timer)
    // First: without an answer to its faults it would be zeros.
    unmap(this.address, this.length)
    await this.#working
    if (this.#scratch !== null) unmap(this.#scratch, PIECE_BYTES)
    await this.#faults.close()
    this.#tracking?.close()
  }

  abandon(): void {
    forbid(this.address, this.length)
    new Userfaultfd(this.descriptor).wake(this.address, this.length)
  }
}

/** What this kernel can do, and whether it tells what was written. */
function begin(
  uffd: Userfaultfd,
  { wanted, needed }: { wanted: boolean; needed: boolean },
): { features: bigint; isTracked: boolean } {
  try {
    return { features: uffd.begin(wanted ? FEATURE_WP_ASYNC : 0n), isTracked: wanted }
  } catch (error) {
    if (!wanted) throw error
    const detail = 'memory that is written back needs Linux 6.7 (asynchronous write-protection)'
    if (needed) throw new FerryError('UNSUPPORTED', { cause: error, detail })
    return { features: uffd.begin(0n), isTracked: false }
  }
}

/** Runs of pages that were written to before, or in between. */
function changedRuns(bytes: Uint8Array, { bytes: before, written }: SeenPages): Run[] {
  const runs: Run[] = []
  for (let at = 0; at < bytes.length; at += PAGE_BYTES) {
    const end = at + PAGE_BYTES
    const isSame =
      !written.has(at / PAGE_BYTES) && Buffer.compare(bytes.subarray(at, end), before.subarray(at, end)) === 0
    if (isSame) continue
    const last = runs.at(-1)
    if (last?.[1] === at) last[1] = end
    else runs.push([at, end])
  }
  return runs
}

const pagesAround = (at: number, length: number): Run => [
  Math.floor(at / PAGE_BYTES) * PAGE_BYTES,
  Math.ceil((at + length) / PAGE_BYTES) * PAGE_BYTES,
]
