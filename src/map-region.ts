// A region as memory of this program.
import { closeSync } from 'node:fs'
import { Once } from './base/async.js'
import { FerryError } from './base/errors.js'
import { detach, unmap, viewOf } from './linux/memory.js'
import { moveRegion, type Region } from './open-region.js'
import { type MapOptions, mapSettings } from './options.js'
import { RegionInThread } from './region-in-thread.js'
import type { Mapped } from './region-thread-messages.js'
import type { MemoryStatus } from './userfault/memory.js'

/**
 * Maps a region: its bytes are memory, and come when they are touched, by whichever thread. With `writeBack` what is written there goes
 * to the region, within a second, or with `flush` and `sync`. From then on the region's cache lives in a thread of its own, since the one
 * that touches memory stands still until it is there: its reads resolve with a promise. Several mappings of a region are each their own.
 * @throws FerryError USAGE (an option is wrong), READ_ONLY, BUSY (calls of the region are not answered yet, or it is attached),
 *   UNSUPPORTED (the kernel, or a region of `mem:` or with a function for `pull`, which no other thread can have), NOT_PERMITTED
 */
export async function mapRegion(region: Region, options: MapOptions = {}): Promise<MappedRegion> {
  const settings = mapSettings(options)
  if (settings.writeBack && region.readOnly) throw new FerryError('READ_ONLY', { detail: 'a region with writeBack' })
  const place = await moveRegion(region, origin => RegionInThread.open(origin))
  const thread = place as RegionInThread
  const mapped = (await thread.call('map', [settings])) as Mapped
  return new MappedRegion(thread, mapped, region.size)
}

const BUFFERS_MIN = 1_024

/**
 * Memory whose bytes are a region's. `close` ends it; views of it are empty from then on. Should the region's thread fail they are empty, too,
 * and a thread that waits for bytes at that moment ends the program (SIGSEGV): nobody reads zeros that are none.
 */
export class MappedRegion implements AsyncDisposable {
  /** In bytes: the region's. */
  readonly size: number
  readonly #thread: RegionInThread
  readonly #mapped: Mapped
  readonly #buffers = new Set<WeakRef<ArrayBufferLike>>()
  /** With more of them, those that nobody has any more are looked for. */
  #buffersMax = BUFFERS_MIN
  #bytes: Uint8Array | undefined
  readonly #forget: () => void
  #isClosed = false
  readonly #closing = new Once(() => this.#close())

  constructor(thread: RegionInThread, mapped: Mapped, size: number) {
    this.size = size
    this.#thread = thread
    this.#mapped = mapped
    this.#forget = thread.onFailure(() => this.#tearDown())
  }

  /** All of it. @throws TOO_LARGE: a Uint8Array of Node 20 has at most 4 GiB; CLOSED */
  get bytes(): Uint8Array {
    if (this.#isClosed) throw new FerryError('CLOSED')
    this.#bytes ??= this.window(0, this.size)
    return this.#bytes
  }

  /** `length` bytes from `at` on. Touching them is what makes them come. @throws INVALID: beyond the end; TOO_LARGE; CLOSED */
  window(at: number, length: number): Uint8Array {
    this.#check(at, length)
    const view = viewOf(this.#mapped.address + at, length)
    if (length > 0) this.#buffers.add(new WeakRef(view.buffer))
    if (this.#buffers.size > this.#buffersMax) {
      for (const each of this.#buffers) if (!each.deref()) this.#buffers.delete(each)
      this.#buffersMax = BUFFERS_MIN + 2 * this.#buffers.size
    }
    return view
  }

  /**
   * These bytes are there when it resolves: touching them holds nobody up, as long as nothing more than `resident` comes after them.
   * @throws INVALID: beyond the end; what the region or the remote says
   */
  async prefetch(at: number, length: number): Promise<void> {
    this.#check(at, length)
    await this.#call('prefetchMemory', [at, length])
  }

  /**
   * These bytes, in whole pages, are what the remote has now (with `writeBack` what was written is sent first): pages that are there leave,
   * and come again when they are touched. Without `writeBack` what was written to them is forgotten. Default: all of it.
   * @throws INVALID: beyond the end; UNSUPPORTED: Linux before 6.8; BUSY: the region is written to all the time; what the remote says
   */
  async refresh(
    { at, length }: { at: number; length: number } = { at: 0, length: this.size },
    options: { signal?: AbortSignal } = {},
  ): Promise<void> {
    this.#check(at, length)
    await this.#call('refreshMemory', [at, length], options)
  }

  /** What has been written is in the region's journal: it survives the end of this process, and a loss of power. */
  async flush(): Promise<void> {
    await this.#call('push')
    await this.#thread.flush()
  }

  /**
   * The remote has what has been written. If only one thread writes, and waits for this, that is one moment; otherwise each page is whole,
   * but they may differ in age. @throws what the region or the remote says
   */
  async sync(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#call('push')
    await this.#thread.sync(options)
  }

  status(): MemoryStatus {
    if (this.#isClosed) throw new FerryError('CLOSED')
    return this.#thread.callNow('memoryStatus', [this.#mapped.memory]) as MemoryStatus
  }

  /**
   * What was written is with the region, and the memory is gone. Views are empty from the call on. Closing twice is fine.
   * @throws what the region says, which does not take what was written: it may be closed again
   */
  close(): Promise<void> {
    return this.#closing.run()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    this.#detach()
    await this.#thread.call('unmap', [this.#mapped.memory]).catch(error => {
      // With the region.
      if (!(error instanceof FerryError) || error.code !== 'CLOSED') throw error
    })
    this.#forget()
  }

  #tearDown(): void {
    const { address, length, descriptor } = this.#mapped
    this.#detach()
    // It may be unmapped already, and something else be there.
    if (this.#closing.isBegun) return
    unmap(address, length)
    if (descriptor !== null) closeSync(descriptor)
  }

  #detach(): void {
    this.#isClosed = true
    this.#bytes = undefined
    for (const each of this.#buffers) {
      const buffer = each.deref()
      if (buffer) detach(buffer)
    }
    this.#buffers.clear()
  }

  /** @throws CLOSED, INVALID */
  #check(at: number, length: number): void {
    if (this.#isClosed) throw new FerryError('CLOSED')
    if (!Number.isSafeInteger(at) || !Number.isSafeInteger(length) || at < 0 || length < 0 || at + length > this.size)
      throw new FerryError('INVALID', { detail: `${length} bytes at ${at} of ${this.size}` })
  }

  async #call(method: string, args: unknown[] = [], options: { signal?: AbortSignal } = {}): Promise<void> {
    if (this.#isClosed) throw new FerryError('CLOSED')
    await this.#thread.call(method, [this.#mapped.memory, ...args], options)
  }
}
