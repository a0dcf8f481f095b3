// A region as memory without userfaultfd: a file that is mapped, filled first, and looked through for what the program has written. What
// the notes call hash-based change detection; for users who may not have a userfaultfd.
import { closeSync, ftruncateSync, openSync, unlinkSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { Once } from '../base/async.js'
import { giveBack, takeBytes } from '../base/buffers.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import { digest } from '../chunk/digest.js'
import { detach, forbid, mapFile, unmap, viewOf } from '../linux/memory.js'
import type { MappedMemory, MemoryStatus } from './memory.js'

const log = logger('userfault')

const PAGE_BYTES = 4096
const PIECE_BYTES = 1024 * 1024
/** Looked through this often, */
const POLL_MS = 1_000
/** and so many times what it takes is left to others. */
const REST = 4
/** More takes too long to look through. */
const BYTES_MAX = 64 * 1024 ** 3

/** It owns the mapping and its file, and not the region. */
export class PolledMemory implements MappedMemory {
  readonly address: number
  /** Whole pages. */
  readonly length: number
  readonly descriptor = null
  readonly #door: RegionDoor
  readonly #writeBack: boolean
  /** Of each page as the region has it: measured in docs/MEMORY.md, larger chunks only send more. */
  readonly #digests: BigUint64Array
  #timer: NodeJS.Timeout | undefined
  #working: Promise<void> = Promise.resolve()
  #pushedBytes = 0
  #problem: string | null = null
  #isClosed = false
  readonly #closing = new Once(() => this.#close())

  private constructor(door: RegionDoor, { fd, writeBack }: { fd: number; writeBack: boolean }) {
    this.#door = door
    this.#writeBack = writeBack
    this.length = wholePages(door.size)
    this.#digests = new BigUint64Array(Math.ceil(door.size / PAGE_BYTES))
    this.address = mapFile(fd, this.length)
  }

  /** All of it is there when this resolves. @throws TOO_LARGE; NO_SPACE: for the file; what the region says */
  static async open(
    door: RegionDoor,
    { directory, writeBack }: { directory: string; writeBack: boolean },
  ): Promise<PolledMemory> {
    if (door.size > BYTES_MAX)
      throw new FerryError('TOO_LARGE', { detail: `${door.size} bytes to look through; at most ${BYTES_MAX}` })
    const path = join(directory, `memory-${process.pid}`)
    const fd = openSync(path, 'w+', 0o600)
    try {
      unlinkSync(path)
      ftruncateSync(fd, wholePages(door.size))
      await fill(fd, door)
      const memory = new PolledMemory(door, { fd, writeBack })
      if (writeBack) memory.#begin()
      return memory
    } finally {
      closeSync(fd)
    }
  }

  #begin(): void {
    for (const [at, view] of this.#pieces())
      for (let from = 0; from < view.length; from += PAGE_BYTES)
        this.#digests[(at + from) / PAGE_BYTES] = digest(view.subarray(from, from + PAGE_BYTES))
    this.#pollIn(POLL_MS)
  }

  #pollIn(ms: number): void {
    if (this.#isClosed) return
    this.#timer = setTimeout(() => {
      const startedMs = performance.now()
      void this.push()
        .catch(() => {})
        .then(() => this.#pollIn(Math.max(POLL_MS, REST * (performance.now() - startedMs))))
    }, ms).unref()
  }

  /** Views, each valid until the next one is asked for. */
  *#pieces(): Iterable<[at: number, bytes: Uint8Array]> {
    for (let at = 0; at < this.#door.size; at += PIECE_BYTES) {
      const view = viewOf(this.address + at, Math.min(PIECE_BYTES, this.#door.size - at))
      try {
        yield [at, view]
      } finally {
        detach(view.buffer)
      }
    }
  }

  status(): MemoryStatus {
    return {
      ...{ faults: 0, bytes: this.length, poisoned: 0, residentBytes: this.length },
      ...{ pushedBytes: this.#pushedBytes, problem: this.#problem },
    }
  }

  push(): Promise<void> {
    const pushed = this.#working.then(() => this.#push())
    this.#working = pushed.catch(() => {})
    return pushed
  }

  async #push(): Promise<void> {
    if (!this.#writeBack) return
    try {
      for (const [at, view] of this.#pieces())
        for (const [from, to] of this.#changed(at, view)) await this.#send(at + from, view.subarray(from, to))
      this.#problem = null
    } catch (error) {
      const problem = toFerryError(error).message
      if (problem !== this.#problem) log.error('what was written to memory is not taken, and is tried again', { error })
      this.#problem = problem
      throw error
    }
  }

  /** Runs of pages that are not what they were. */
  #changed(at: number, view: Uint8Array): [from: number, to: number][] {
    const runs: [number, number][] = []
    for (let from = 0; from < view.length; from += PAGE_BYTES) {
      const to = Math.min(view.length, from + PAGE_BYTES)
      if (digest(view.subarray(from, to)) === this.#digests[(at + from) / PAGE_BYTES]) continue
      const last = runs.at(-1)
      if (last?.[1] === from) last[1] = to
      else runs.push([from, to])
    }
    return runs
  }

  async #send(at: number, view: Uint8Array): Promise<void> {
    // The program may go on writing: what is sent is what the digests are of.
    const bytes = takeBytes(view.length)
    try {
      bytes.set(view)
      await this.#door.write(at, bytes)
      for (let from = 0; from < bytes.length; from += PAGE_BYTES)
        this.#digests[(at + from) / PAGE_BYTES] = digest(bytes.subarray(from, from + PAGE_BYTES))
      this.#pushedBytes += bytes.length
    } finally {
      giveBack(bytes)
    }
  }

  async prefetch(): Promise<void> {}

  async refresh(): Promise<void> {
    throw new FerryError('UNSUPPORTED', {
      detail: 'to refresh memory needs userfaultfd: a write meanwhile would be lost',
    })
  }

  close(): Promise<void> {
    return this.#closing.run()
  }

  async #close(): Promise<void> {
    await this.push()
    this.#isClosed = true
    clearTimeout(this.#timer)
    await this.#working
    unmap(this.address, this.length)
  }

  /** Nobody waits: all of it is there. */
  abandon(): void {
    forbid(this.address, this.length)
  }
}

const wholePages = (bytes: number) => Math.max(1, Math.ceil(bytes / PAGE_BYTES)) * PAGE_BYTES

/** Zeros need no room. */
async function fill(fd: number, door: RegionDoor): Promise<void> {
  const bytes = new Uint8Array(PIECE_BYTES)
  for (let at = 0; at < door.size; at += PIECE_BYTES) {
    const piece = bytes.subarray(0, Math.min(PIECE_BYTES, door.size - at))
    await door.read(at, piece)
    if (piece.every(byte => byte === 0)) continue
    for (let done = 0; done < piece.length; ) done += writeSync(fd, piece, done, piece.length - done, at + done)
  }
}
