// A region as memory of this process. It lives in a thread that nobody's fault can hold up: the program's threads touch the memory.
import { closeSync } from 'node:fs'
import { giveBack, takeBytes } from '../base/buffers.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import { detach, mapAnonymous, unmap, viewOf } from '../linux/memory.js'
import { openUserfaultfd } from '../linux/userfaultfd.js'
import { FEATURE_MOVE, FEATURE_WP_ASYNC, REGISTER_MISSING, REGISTER_WP } from '../wire/userfaultfd.js'
import { type FaultCounts, type FaultOptions, Faults } from './faults.js'
import { watchFromThread } from './thread-watch.js'
import { Userfaultfd } from './userfaultfd.js'
import { WrittenPages } from './written.js'

const log = logger('userfault')

const PAGE_BYTES = 4096
/** Looked for what was written this often. */
const PUSH_MS = 1_000
/** Written to the region at once. */
const PIECE_BYTES = 1024 * 1024
/** Less would leave no room for what is filled ahead. */
const RESIDENT_BYTES_MIN = 4 * 1024 * 1024

export interface MemorySettings extends Pick<FaultOptions, 'onFault'> {
  /** What is written to the memory goes to the region, at least once a second. */
  writeBack: boolean
  /** All of it is filled in the background. */
  prefetch: boolean
  /** Bytes that are there at once, at most: the longest there give way. */
  resident: number
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

/** It owns the mapping, and not the region. */
export class Memory {
  readonly address: number
  /** Whole pages. */
  readonly length: number
  readonly #door: RegionDoor
  readonly #uffd: number
  readonly #faults: Faults
  readonly #written: WrittenPages | null
  readonly #timer: NodeJS.Timeout | undefined
  /** Runs of positions that are not marked as written any more, and that the region has not taken. */
  #owed: [from: number, to: number][] = []
  /** Pushes and evictions, one after the other: a push reads pages that must be there. */
  #working: Promise<void> = Promise.resolve()
  readonly #residentMax: number
  /** What is there, in the order in which it came. */
  readonly #resident: [from: number, to: number][] = []
  #residentBytes = 0
  /** Null: this kernel cannot take pages away (before Linux 6.8). */
  #scratch: number | null = null
  #isEvicting = false
  #pushedBytes = 0
  #problem: string | null = null
  #closing: Promise<void> | undefined

  /** @throws UNSUPPORTED: the kernel is too old for writeBack; NOT_PERMITTED: this user may not */
  constructor(door: RegionDoor, { writeBack, prefetch, onFault, resident }: MemorySettings) {
    this.#door = door
    this.#residentMax = Math.max(RESIDENT_BYTES_MIN, resident)
    this.length = Math.max(1, Math.ceil(door.size / PAGE_BYTES)) * PAGE_BYTES
    this.#uffd = openUserfaultfd()
    let address = 0
    try {
      const uffd = new Userfaultfd(this.#uffd)
      const canMove = (begin(uffd, writeBack) & FEATURE_MOVE) !== 0n
      address = mapAnonymous(this.length)
      uffd.register(address, this.length, writeBack ? REGISTER_MISSING | REGISTER_WP : REGISTER_MISSING)
      if (canMove && this.length > this.#residentMax) {
        this.#scratch = mapAnonymous(PIECE_BYTES)
        uffd.register(this.#scratch, PIECE_BYTES)
      }
      this.#written = writeBack ? new WrittenPages() : null
    } catch (error) {
      if (address !== 0) unmap(address, this.length)
      if (this.#scratch !== null) unmap(this.#scratch, PIECE_BYTES)
      closeSync(this.#uffd)
      throw error
    }
    this.address = address
    const onEnd = () => log.error('faults are not answered any more')
    const mapping = { address, length: this.length, at: 0, pageBytes: PAGE_BYTES }
    // If nothing can be given back there is more than there should be, and still an answer.
    const isFull = () => this.#isEvicting && this.#residentBytes >= this.#residentMax
    const onPut = (from: number, to: number) => this.#came(from, to)
    const options = { onFault, isProtected: writeBack, watch: watchFromThread, onEnd, onPut, isFull }
    this.#faults = new Faults(this.#uffd, door, [mapping], options)
    if (prefetch) this.#faults.fillAll()
    if (writeBack) this.#timer = setInterval(() => this.push().catch(() => {}), PUSH_MS).unref()
  }

  status(): MemoryStatus {
    return {
      ...this.#faults.counts,
      pushedBytes: this.#pushedBytes,
      residentBytes: this.#residentBytes,
      problem: this.#problem,
    }
  }

  /**
   * The region has what was written before the call. If only one thread writes, and waits for it, that is one moment; otherwise each
   * page is whole, but they may differ in age. @throws what the region says; the next push tries it again
   */
  push(): Promise<void> {
    const pushed = this.#working.then(() => this.#push())
    this.#working = pushed.catch(() => {})
    return pushed
  }

  #came(from: number, to: number): void {
    this.#resident.push([from, to])
    this.#residentBytes += to - from
    if (this.#scratch === null || this.#residentBytes < this.#residentMax || this.#isEvicting) return
    this.#isEvicting = true
    this.#working = this.#working
      .then(() => this.#evict())
      .catch(error => log.error('memory could not be given back', { error }))
      .finally(() => {
        this.#isEvicting = false
        this.#faults.goOn()
      })
  }

  /** Until an eighth is free. What the region does not take stays, and is tried again when more has come. */
  async #evict(): Promise<void> {
    // A push goes on with pages that it has not finished: they have to be there.
    if (this.#owed.length > 0) await this.#push()
    for (let runs = this.#resident.length; runs > 0 && this.#residentBytes > this.#residentMax * (7 / 8); runs--) {
      const [from, to] = this.#resident.shift()!
      this.#residentBytes -= to - from
      for (let at = from; at < to; at += PIECE_BYTES)
        await this.#faults.takeAway(at, Math.min(to, at + PIECE_BYTES), this.#scratch!, (place, bytes) =>
          this.#letGo(place, bytes),
        )
      this.#faults.goOn()
    }
  }

  /** False: they are the memory's own, or the region has not taken them. What is the same in the region needs nothing. */
  async #letGo(at: number, bytes: Uint8Array): Promise<boolean> {
    const own = bytes.subarray(0, Math.max(0, Math.min(bytes.length, this.#door.size - at)))
    const there = takeBytes(own.length)
    try {
      await this.#door.read(at, there)
      if (Buffer.compare(own, there) === 0) return true
      if (!this.#written) return false
      // It may have been written to since the last push: now the region has it.
      await this.#door.write(at, own)
      this.#pushedBytes += own.length
      return true
    } catch (error) {
      log.warn('memory cannot be given back now', { at, error })
      return false
    } finally {
      giveBack(there)
    }
  }

  async #push(): Promise<void> {
    if (!this.#written) return
    const { address } = this
    const runs = [
      ...this.#owed,
      ...this.#written
        .take(address, address + this.length)
        .map(([from, to]): [number, number] => [from - address, Math.min(to - address, this.#door.size)]),
    ]
    this.#owed = runs
    const bytes = new Uint8Array(PIECE_BYTES)
    try {
      for (const run of runs)
        while (run[0] < run[1]) {
          const length = Math.min(PIECE_BYTES, run[1] - run[0])
          const copy = bytes.subarray(0, length)
          const view = viewOf(address + run[0], length)
          // The program may go on writing: the region is given bytes that stay as they are.
          copy.set(view)
          detach(view.buffer)
          const written = this.#door.write(run[0], copy)
          if (written) await written
          this.#pushedBytes += length
          run[0] += length
        }
      this.#owed = []
      this.#problem = null
    } catch (error) {
      this.#owed = runs.filter(([from, to]) => from < to)
      const problem = toFerryError(error).message
      if (problem !== this.#problem) log.error('what was written to memory is not taken, and is tried again', { error })
      this.#problem = problem
      throw error
    }
  }

  /**
   * What was written is with the region, and the memory is not there any more. Closing twice is fine.
   * @throws what the region says: then it stays as it is, and may be closed later
   */
  close(): Promise<void> {
    this.#closing ??= this.#close().catch(error => {
      this.#closing = undefined
      throw error
    })
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.push()
    clearInterval(this.#timer)
    // First: without an answer to its faults it would be zeros.
    unmap(this.address, this.length)
    await this.#working
    if (this.#scratch !== null) unmap(this.#scratch, PIECE_BYTES)
    await this.#faults.close()
    this.#written?.close()
  }
}

/** What this kernel can do. */
function begin(uffd: Userfaultfd, writeBack: boolean): bigint {
  try {
    return uffd.begin(writeBack ? FEATURE_WP_ASYNC : 0n)
  } catch (error) {
    const detail = 'memory that is written back needs Linux 6.7 (asynchronous write-protection)'
    throw writeBack ? new FerryError('UNSUPPORTED', { cause: error, detail }) : error
  }
}
