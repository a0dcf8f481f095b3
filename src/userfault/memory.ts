// A region as memory of this process. It lives in a thread that nobody's fault can hold up: the program's threads touch the memory.
import { closeSync } from 'node:fs'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import { detach, mapAnonymous, unmap, viewOf } from '../linux/memory.js'
import { openUserfaultfd } from '../linux/userfaultfd.js'
import { FEATURE_WP_ASYNC, REGISTER_MISSING, REGISTER_WP } from '../wire/userfaultfd.js'
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

export interface MemorySettings extends Pick<FaultOptions, 'onFault'> {
  /** What is written to the memory goes to the region, at least once a second. */
  writeBack: boolean
  /** All of it is filled in the background. */
  prefetch: boolean
}

/** What a mapping has done so far. */
export interface MemoryStatus extends FaultCounts {
  /** Written to the region. */
  pushedBytes: number
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
  #pushing: Promise<void> = Promise.resolve()
  #pushedBytes = 0
  #problem: string | null = null
  #closing: Promise<void> | undefined

  /** @throws UNSUPPORTED: the kernel is too old for writeBack; NOT_PERMITTED: this user may not */
  constructor(door: RegionDoor, { writeBack, prefetch, onFault }: MemorySettings) {
    this.#door = door
    this.length = Math.max(1, Math.ceil(door.size / PAGE_BYTES)) * PAGE_BYTES
    this.#uffd = openUserfaultfd()
    let address = 0
    try {
      const uffd = new Userfaultfd(this.#uffd)
      begin(uffd, writeBack)
      address = mapAnonymous(this.length)
      uffd.register(address, this.length, writeBack ? REGISTER_MISSING | REGISTER_WP : REGISTER_MISSING)
      this.#written = writeBack ? new WrittenPages() : null
    } catch (error) {
      if (address !== 0) unmap(address, this.length)
      closeSync(this.#uffd)
      throw error
    }
    this.address = address
    const onEnd = () => log.error('faults are not answered any more')
    const mapping = { address, length: this.length, at: 0, pageBytes: PAGE_BYTES }
    const options = { onFault, isProtected: writeBack, watch: watchFromThread, onEnd }
    this.#faults = new Faults(this.#uffd, door, [mapping], options)
    if (prefetch) this.#faults.fillAll()
    if (writeBack) this.#timer = setInterval(() => this.push().catch(() => {}), PUSH_MS).unref()
  }

  status(): MemoryStatus {
    return { ...this.#faults.counts, pushedBytes: this.#pushedBytes, problem: this.#problem }
  }

  /**
   * The region has what was written before the call. If only one thread writes, and waits for it, that is one moment; otherwise each
   * page is whole, but they may differ in age. @throws what the region says; the next push tries it again
   */
  push(): Promise<void> {
    const pushed = this.#pushing.then(() => this.#push())
    this.#pushing = pushed.catch(() => {})
    return pushed
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
    await this.#faults.close()
    this.#written?.close()
  }
}

function begin(uffd: Userfaultfd, writeBack: boolean): void {
  try {
    uffd.begin(writeBack ? FEATURE_WP_ASYNC : 0n)
  } catch (error) {
    const detail = 'memory that is written back needs Linux 6.7 (asynchronous write-protection)'
    throw writeBack ? new FerryError('UNSUPPORTED', { cause: error, detail }) : error
  }
}
