// Files that go on growing are sent before their batch is cut, chunk by chunk, in order. What is changed after it was sent is sent
// again with the batch, and lies over it.

import type { MemoryBudget } from '../base/memory-budget.js'
import { CHUNK_BYTES, FULL_MASK } from '../chunk/geometry.js'
import type { Row } from './chunk-table.js'
import type { Ino } from './filesystem.js'
import type { TreeState } from './state.js'
import type { CommittingTree } from './tree-cache.js'

/** Less is not worth an upload of its own. */
const BYTES_MIN = 8 * 1024 * 1024
/** Nor is less worth a call. */
const MORE_BYTES_MIN = 1024 * 1024
/** Of one file in one turn: batches of other files wait for it. */
const TURN_BYTES_MAX = 64 * 1024 * 1024
/** Staged in one call at most. */
const STAGE_BYTES_MAX = 4 * 1024 * 1024
/** Files at once: the remote holds a part of each in memory. */
const FILES_MAX = 4

/** What was sent of one file: whole chunks, in a row, all of which are dirty. */
export class AheadRun {
  /** Chunks that changed since. */
  readonly #changed = new Set<number>()
  /** Behind the last chunk. */
  end: number

  constructor(
    readonly id: string,
    readonly first: number,
  ) {
    this.end = first
  }

  /** What is written to this chunk was not sent. */
  touch(index: number): void {
    if (index >= this.first && index < this.end) this.#changed.add(index)
  }

  /** Chunk `index`, as it is, was sent. */
  has(index: number): boolean {
    return Number.isInteger(index) && index >= this.first && index < this.end && !this.#changed.has(index)
  }
}

export class Ahead {
  #count = 0

  constructor(
    readonly remote: CommittingTree,
    readonly state: TreeState,
    readonly memory: MemoryBudget,
  ) {}

  /** What there is to send of these files, as far as it is worth it. A file of which it fails is begun anew the next time. */
  async send(growing: Iterable<Ino>, signal: AbortSignal): Promise<void> {
    if (!this.remote.stageAhead) return
    const { ahead, open } = this.state
    for (const [ino, run] of ahead) if (!open.inodes.has(ino)) await this.#drop(ino, run, signal)
    for (const ino of growing) {
      if (!ahead.has(ino) && ahead.size >= FILES_MAX) continue
      const run = ahead.get(ino) ?? this.#begin(ino)
      if (this.#rows(ino, run.end, BYTES_MIN).length * CHUNK_BYTES < (ahead.has(ino) ? MORE_BYTES_MIN : BYTES_MIN))
        continue
      ahead.set(ino, run)
      try {
        for (let sent = 0, more = 1; more > 0 && sent < TURN_BYTES_MAX; sent += more)
          more = await this.#send(ino, run, signal)
      } catch (error) {
        await this.#drop(ino, run, signal).catch(() => {})
        throw error
      }
    }
  }

  /** The batch that may have named them is settled. */
  settled(signal: AbortSignal): void {
    for (const { id } of this.state.flightAhead.values()) this.remote.dropAhead?.(id, signal).catch(() => {})
    this.state.flightAhead.clear()
  }

  /** Nothing is sent any more. */
  async close(signal: AbortSignal): Promise<void> {
    await Promise.allSettled([...this.state.ahead].map(([ino, run]) => this.#drop(ino, run, signal)))
  }

  #begin(ino: Ino): AheadRun {
    const { floor } = this.state.inode(ino)
    return new AheadRun(`f${ino}-${this.#count++}`, Math.ceil(floor / CHUNK_BYTES))
  }

  /** Chunks that are wholly dirty, from `index` on, but for the last one, which is still written. */
  #rows(ino: Ino, index: number, bytesMax: number): Row[] {
    const { chunks } = this.state
    const copies = this.state.copies.get(ino)
    const whole = Math.floor((this.state.inodes.get(ino)?.size ?? 0) / CHUNK_BYTES) - 1
    const rows: Row[] = []
    for (let at = index; at < whole && rows.length * CHUNK_BYTES < bytesMax; at++) {
      const row = chunks.find(ino, at)
      // What the remote has need not be sent.
      if (!row || chunks.dirty[row] !== FULL_MASK || copies?.has(at)) break
      rows.push(row)
    }
    return rows
  }

  /** Some of it. @returns how many bytes; 0: there is no more for now */
  async #send(ino: Ino, run: AheadRun, signal: AbortSignal): Promise<number> {
    const { state } = this
    await this.memory.take(STAGE_BYTES_MAX, false)
    try {
      const slots = this.#rows(ino, run.end, STAGE_BYTES_MAX).map(row => state.chunks.slot[row])
      if (slots.length === 0) return 0
      const first = run.end
      // From here on what is written to them is noticed, and what is read of them then does not matter.
      run.end += slots.length
      const bytes = new Uint8Array(slots.length * CHUNK_BYTES)
      for (const [n, slot] of slots.entries())
        await state.slots.read(slot, 0, bytes.subarray(n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES))
      await this.remote.stageAhead!(run.id, first * CHUNK_BYTES, bytes, signal)
      return bytes.byteLength
    } finally {
      this.memory.give(STAGE_BYTES_MAX)
    }
  }

  async #drop(ino: Ino, run: AheadRun, signal: AbortSignal): Promise<void> {
    if (this.state.ahead.get(ino) === run) this.state.ahead.delete(ino)
    await this.remote.dropAhead?.(run.id, signal)
  }
}
