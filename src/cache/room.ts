// Room for what comes: the budgets of the cache and of its disk, enforced when space is taken, and who waits when there is none.
import { type Deferred, deferred, sleep } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { PAGE_BYTES } from '../chunk/geometry.js'
import type { Slots } from './slots.js'
import type { TreeState } from './state.js'
import type { TreeCacheOptions } from './tree-cache.js'

/** Slots whose hole is due that make a checkpoint due before its time. */
const PENDING_SLOTS_MAX = 1_024
/** The free space of the cache's disk is looked at after this many bytes were taken. */
const FREE_LOOK_BYTES = 1024 * 1024
/** And when the last look is older than this. */
const FREE_LOOK_MS = 50
/** Chunks that leave at once when the disk says it is full, and how long before it is asked again. */
const EMERGENCY_CHUNKS = 256
const EMERGENCY_PAUSE_MS = 20
/** Times that one read waits for it. */
const EMERGENCIES_MAX = 50

/** What the room needs from the rest of the engine. */
export interface RoomHooks {
  /** A clean file that is none of chunks leaves: how many bytes are free by that; 0: there is none. */
  evictWhole(): number
  /** Changes wait for room: the remote should have some of them. */
  poke(): void
  /** Resolves when the remote has everything, or `signal` aborts. */
  send(signal: AbortSignal): Promise<void>
  /** A checkpoint, which punches what was evicted; the one that runs, if one does. */
  checkpoint(): Promise<void>
}

export class Room {
  #waiters: Deferred<void>[] = []
  #lettingIn = false
  #freeBytes = Infinity
  #freeLookDue = 0
  #freeLookedAtMs = -Infinity
  /** Of clean pages that were given room, and are on their way. */
  #comingBytes = 0
  /** Evicted since the last checkpoint, which punches their holes. */
  #evictedBytes = 0

  constructor(
    readonly state: TreeState,
    readonly slots: Slots,
    readonly options: TreeCacheOptions,
    readonly hooks: RoomHooks,
  ) {}

  /** undefined: there is room for a change of so many bytes. Otherwise resolves when there is. */
  forChange(bytes: number): Promise<void> | undefined {
    const { state, options } = this
    if (bytes) this.#make(bytes)
    if (this.#lettingIn) return undefined
    const operations = state.open.operations + (state.flight?.operations ?? 0)
    if (state.dirtyBytes + bytes <= options.dirtyBytesMax && operations < options.dirtyOperationsMax) return undefined
    // An empty cache takes any one write: a limit below the size of a request must not stop everything.
    if (bytes && state.dirtyBytes === 0) return undefined
    this.hooks.poke()
    const waiter = deferred()
    this.#waiters.push(waiter)
    return waiter.promise.then(() => this.forChange(bytes))
  }

  /**
   * Room for bytes of the remote, until they `arrived`. A cache full of what the remote does not have yet: readers wait for the next
   * batch. NO_SPACE after the deadline.
   */
  async forClean(bytes: number): Promise<void> {
    const { state, options } = this
    const has = this.#take(bytes)
    // The database needs room as well, or no checkpoint could ever punch what was evicted.
    for (let tries = 0; this.#isDiskFull(this.#evictedBytes) && tries < EMERGENCIES_MAX; tries++) {
      if (state.clean.pages === 0 && this.#evictedBytes === 0) break
      await this.giveBack()
    }
    if (has) return
    // Writers may have taken what one batch gave back before this is asked again.
    for (const late = AbortSignal.timeout(options.deadlineMs); !late.aborted; await sleep(EMERGENCY_PAUSE_MS)) {
      await this.hooks.send(late).catch(() => {})
      if (this.#take(bytes)) return
    }
    throw new FerryError('NO_SPACE', { detail: 'the cache holds nothing that may leave' })
  }

  arrived(bytes: number): void {
    this.#comingBytes -= bytes
  }

  #take(bytes: number): boolean {
    const has = this.#make(bytes)
    if (has) this.#comingBytes += bytes
    return has
  }

  /** ENOSPC is given where a program expects it: at create, extend and fallocate, never to a page that the kernel has accepted. */
  check(): void {
    const { options, state } = this
    const left = options.cacheBytesMax - options.kernelBytesMax - state.dirtyBytes
    if (options.whenFull === 'error' && (state.dirtyBytes >= options.dirtyBytesMax || left <= 0))
      throw new FerryError('NO_SPACE', { detail: 'the dirty limit is reached' })
    if (this.#isDiskFull() && state.clean.pages === 0)
      throw new FerryError('NO_SPACE', { detail: 'the disk of the cache is full' })
  }

  /** The disk is full though the budgets are not: what can be given back is, at once. */
  async giveBack(): Promise<void> {
    for (let n = 0; n < EMERGENCY_CHUNKS && this.state.clean.evictOne(); n++);
    // The one that runs may not have what was evicted just now.
    await this.hooks.checkpoint()
    await this.hooks.checkpoint()
    await this.slots.trim()
    await sleep(EMERGENCY_PAUSE_MS)
  }

  /** A checkpoint is done. @returns whether the disk has room again, as far as it can be seen */
  checkpointed(): boolean {
    this.#evictedBytes = 0
    this.#freeLookedAtMs = -Infinity
    return !this.#isDiskFull()
  }

  /** Changes are taken without waiting for the dirty limit (see tree-cache.ts). */
  letIn(on: boolean): void {
    this.#lettingIn = on
    this.look()
  }

  /** Something became clean, or less: whoever waits looks again. */
  look(): void {
    const waiters = this.#waiters
    this.#waiters = []
    for (const waiter of waiters) waiter.resolve()
  }

  close(): void {
    for (const waiter of this.#waiters) waiter.reject(new FerryError('CLOSED'))
  }

  /** Clean chunks leave until so many bytes more fit both budgets; false: they do not fit. */
  #make(bytes: number): boolean {
    const { state, options } = this
    const max = options.cacheBytesMax - options.kernelBytesMax
    const due = state.cachedBytes + this.#comingBytes + bytes
    const scarce = options.cacheBytesFreeMin + this.#comingBytes - this.#free()
    if (scarce > 0 && this.slots.warmBytes > 0) void this.slots.trim()
    let over = Math.max(due - max, scarce)
    while (over > 0) {
      const before = state.pages
      if (state.clean.evictOne()) this.#evictedBytes += (before - state.pages) * PAGE_BYTES
      else if (this.hooks.evictWhole() === 0) break
      over -= (before - state.pages) * PAGE_BYTES
    }
    if (this.slots.pendingSlots > PENDING_SLOTS_MAX || (scarce > 0 && this.#evictedBytes > 0))
      void this.hooks.checkpoint()
    return over <= 0 || state.cachedBytes + this.#comingBytes + bytes <= max
  }

  /** Half of the reserve is gone; `less`: bytes that are only about to be free. */
  #isDiskFull(less = 0): boolean {
    return this.#free() - less < this.options.cacheBytesFreeMin / 2
  }

  /** Of the cache's disk: what is free, and what will be when what was evicted, or is only kept warm, is punched. */
  #free(): number {
    const now = performance.now()
    const takenBytes = this.state.pages * PAGE_BYTES
    if (now - this.#freeLookedAtMs > FREE_LOOK_MS || takenBytes >= this.#freeLookDue) {
      this.#freeBytes = this.options.storage.freeBytes()
      this.#freeLookDue = takenBytes + FREE_LOOK_BYTES
      this.#freeLookedAtMs = now
    }
    return this.#freeBytes + this.#evictedBytes + this.slots.warmBytes
  }
}
