// Tells the kernel what changed behind its back, and makes it hand over its dirty pages. A notification may wait for locks that a
// request in flight holds, or for a WRITE that we must answer: so it goes out on the thread pool, after the state has changed.
import { isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { Ino, KernelCache } from '../cache/filesystem.js'
import { notify } from '../wire/fuse.js'

const log = logger('fs')

/** With more names than that waiting, all of them are declared out of date at once. */
const ENTRIES_MAX = 10_000

/** Writes one message to the kernel, on the thread pool. */
export type Notify = (message: Uint8Array) => Promise<unknown>

/** A run of bytes; without a length it goes to the end of the file. */
export interface Range {
  at: number
  length?: number
}

/**
 * Two lanes, each a thread of the pool at most. Names wait for the lock of their directory, which an operation in it may hold for as
 * long as the remote takes; inodes wait for pages only. So one lane does not hold up the other, and the pool has threads left.
 */
export class Invalidations implements KernelCache {
  readonly #nameLane: Notify
  readonly #inodeLane: Notify
  readonly #names = new Map<string, { parent: Ino; name: string }>()
  readonly #inodes = new Set<Ino>()
  #inodeNow: Ino | undefined
  #everything = false
  #draining = false

  constructor(send: Notify) {
    this.#nameLane = lane(send)
    this.#inodeLane = lane(send)
  }

  invalidateEntry(parent: Ino, name: string): void {
    if (this.#everything) return
    this.#names.set(`${parent}/${name}`, { parent, name })
    this.#everything = this.#names.size > ENTRIES_MAX
    this.#drain()
  }

  invalidateInode(ino: Ino): void {
    this.#inodes.add(ino)
    this.#drain()
  }

  /** The kernel's pages of it are out of date, and it has not heard yet. */
  isPending(ino: Ino): boolean {
    return this.#inodeNow === ino || this.#inodes.has(ino)
  }

  /** The kernel has written its dirty pages of that range when this resolves (and forgotten the clean ones). */
  async launder(ino: Ino, { at, length = 0 }: Range): Promise<void> {
    await this.#inodeLane(notify.invalInode({ nodeid: ino, offset: at, length }))
  }

  /** Begins a turn later: whoever changed the state has then sent its answer. */
  #drain() {
    if (this.#draining) return
    this.#draining = true
    setImmediate(async () => {
      await Promise.all([this.#drainNames(), this.#drainInodes()])
      this.#draining = false
      if (this.#names.size > 0 || this.#inodes.size > 0) this.#drain()
    })
  }

  async #drainNames() {
    for (const [key, entry] of this.#names) {
      if (this.#everything) {
        this.#everything = false
        this.#names.clear()
        await this.#nameLane(notify.incEpoch())
        return
      }
      this.#names.delete(key)
      await this.#nameLane(notify.invalEntry(entry))
    }
  }

  async #drainInodes() {
    for (const ino of this.#inodes) {
      this.#inodes.delete(ino)
      this.#inodeNow = ino
      await this.#inodeLane(notify.invalInode({ nodeid: ino, offset: 0, length: 0 }))
    }
    this.#inodeNow = undefined
  }
}

/** One message after the other; resolves when it is delivered, or need not be: the kernel may not know what it is about (NOT_FOUND). */
function lane(send: Notify): Notify {
  let last: Promise<unknown> = Promise.resolve()
  return message => {
    last = last
      .then(() => send(message))
      .catch(error => {
        if (!isFerryError(error, 'NOT_FOUND')) log.warn('the kernel refused a notification', { error })
      })
    return last
  }
}
