// The faults of one userfaultfd, answered with the bytes of a region.
import { closeSync } from 'node:fs'
import { backoff, type Deferred, deferred, lasting, sleep } from '../base/async.js'
import { giveBack, takeBytes } from '../base/buffers.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { random } from '../base/random.js'
import type { Maybe } from '../cache/filesystem.js'
import { errno, systemError } from '../linux/libc.js'
import { detach, dropPages, viewOf } from '../linux/memory.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import type { Fetched, Pages } from './pages.js'
import { WIRE_BYTES } from './reader.js'
import type { Space, Spaces } from './spaces.js'
import { Userfaultfd, type UserfaultMessage } from './userfaultfd.js'

const log = logger('userfault')

/** Of pages that are being read for faults and ahead of them. */
const FILLING_BYTES_MAX = 32 * 1024 * 1024
const AHEAD_PIECE_BYTES = 1024 * 1024
/** The first ones are shorter, each by so much: requests that begin together on a line that is shared fairly would end together, too. */
const AHEAD_STEP_BYTES = 64 * 1024
/** How often an answer is tried again while the kernel has something to say first. */
const AGAIN_MAX = 64
const AGAIN_MS = 100
const AGAIN_MS_MAX = 2_000

export interface FaultOptions {
  /** What becomes of a fault whose bytes cannot be had: SIGBUS, or it waits until they can. Default 'poison'. */
  onFault?: 'poison' | 'wait'
  /** The process is gone, or its memory is: nothing more will come. */
  onEnd: () => void
  /** Pages have come to be there: from, to, in bytes of the first mapping. */
  onPut?: (from: number, to: number) => void
  /** Somebody waits to write to a page that is protected, at that address. */
  onProtected?: (address: number) => void
  /** Whether faults have to wait, until `goOn`. */
  isFull?: () => boolean
  /** Keeps the descriptor, should this process end. */
  keep?: Keep
  /** How messages are noticed. Default: as an event of the main thread's loop. */
  watch?: Watch
}

/** Of a descriptor that somebody keeps: `begin` hands it over, `tell` says what has become of its memory, `end` that it is not needed. */
export interface Keep {
  begin(uffd: number, spaces: Spaces): number
  tell(id: number, change: MemoryChange): void
  end(id: number): void
}

export type MemoryChange =
  | { op: 'put' | 'removed' | 'unmapped'; start: number; end: number }
  | { op: 'moved'; from: number; to: number; length: number }

/** Calls back when the descriptor is readable; the callback says whether anything was there. */
export type Watch = (fd: number, onReady: (failed: boolean) => boolean) => Pick<Watcher, 'start' | 'stop' | 'close'>

/** What has happened so far. */
export interface FaultCounts {
  faults: number
  /** Put into the memory. */
  bytes: number
  /** Pages that could not be had. */
  poisoned: number
}

interface Fill {
  space: Space
  from: number
  to: number
  /** Why its bytes could not be had. */
  failure?: FerryError
}

/** What becomes of pages that are taken away. */
export interface Taking<T> {
  /** Right before these are taken, while they can be looked at: the next call of this thread takes them. */
  before: (from: number, to: number) => T
  /** They are `bytes`, as they were in the moment in which they went. Resolves to the runs of them that are put back; all, if it rejects. */
  use: (at: number, bytes: Uint8Array, seen: T) => Promise<[from: number, to: number][]>
}

/** To be filled before it is touched. `hasWires`: but for the pages whose faults tell how far a reader has come. */
interface Ahead extends Fill {
  hasWires: boolean
}

/** It owns the descriptor. Until it is closed whoever touches a page that is not there waits for it. */
export class Faults {
  readonly counts: FaultCounts = { faults: 0, bytes: 0, poisoned: 0 }
  readonly #uffd: Userfaultfd
  readonly #pages: Pages
  readonly #options: FaultOptions
  readonly #watcher: ReturnType<Watch>
  readonly #closing = lasting()
  readonly #children = new Set<Faults>()
  readonly #spaces: Spaces
  readonly #keptAs: number | undefined
  readonly #unlisten: (() => void) | undefined
  readonly #faults: number[] = []
  /** Addresses at which pages were put. */
  readonly #untold: [start: number, end: number][] = []
  readonly #ahead: Ahead[] = []
  readonly #filling = new Set<Fill>()
  #fillingBytes = 0
  #pieceBytes = 0
  #isAheadDue = false
  /** Resolves when pages have come, or there is room again. */
  #turned: Deferred | null = null
  #closed: Promise<void> | undefined

  /** `kept`: what it is called by who keeps it already, for an earlier process. Whoever waits there asks again. */
  constructor(fd: number, pages: Pages, spaces: Spaces, options: FaultOptions, kept?: number) {
    this.#uffd = new Userfaultfd(fd)
    this.#pages = pages
    this.#options = options
    this.#spaces = spaces
    this.#unlisten = pages.onGone?.((from, to) => this.#gone(from, to))
    this.#watcher = (options.watch ?? watchDescriptor)(fd, failed => this.#turn(failed))
    this.#keptAs = kept ?? options.keep?.begin(fd, this.#spaces)
    this.#watcher.start()
    if (kept !== undefined) for (const { address, length } of this.#spaces.all) this.#uffd.wake(address, length)
  }

  #tell(change: MemoryChange): void {
    if (this.#keptAs !== undefined) this.#options.keep?.tell(this.#keptAs, change)
  }

  /** These bytes of the first mapping, whole pages, are there when it resolves. @throws what the region says */
  async prefetch(from: number, to: number): Promise<void> {
    const [space] = this.#spaces.all
    const fills: Fill[] = []
    for (let at = from; at < to; at += AHEAD_PIECE_BYTES) {
      while (this.#isBusy && !this.#closed) await this.#nextTurn()
      if (this.#closed) throw new FerryError('CLOSED')
      fills.push(...this.#fillAbsent(space, at, Math.min(to, at + AHEAD_PIECE_BYTES), false))
    }
    await this.untilFilled(from, to)
    const failed = fills.find(({ failure }) => failure)
    if (failed) throw failed.failure
  }

  /** Nothing of these bytes of the first mapping is on its way. */
  async untilFilled(from: number, to: number): Promise<void> {
    const [space] = this.#spaces.all
    const isFilling = () => [...this.#filling].some(fill => fill.space === space && fill.from < to && from < fill.to)
    while (isFilling() && !this.#closed) await this.#nextTurn()
  }

  /** Until pages have come, or there is room again. */
  #nextTurn(): Promise<void> {
    this.#turned ??= deferred()
    return this.#turned.promise
  }

  #haveTurned(): void {
    this.#turned?.resolve()
    this.#turned = null
  }

  get #isBusy(): boolean {
    return this.#fillingBytes >= FILLING_BYTES_MAX || this.#options.isFull?.() === true
  }

  /** Its descriptor is closed: what is registered by it alone reads as zeros from then on. */
  close(): Promise<void> {
    this.#closed ??= (async () => {
      this.#closing.abort(new FerryError('CLOSED'))
      this.#unlisten?.()
      this.#haveTurned()
      this.#ahead.length = 0
      await Promise.all([...this.#children].map(each => each.close()))
      await this.#watcher.close()
      if (this.#keptAs !== undefined) this.#options.keep?.end(this.#keptAs)
      closeSync(this.#uffd.fd)
    })()
    return this.#closed
  }

  #turn(failed: boolean): boolean {
    let isAny = false
    try {
      isAny = this.#read()
    } catch (error) {
      log.error('the faults of a process are not answered any more', { error })
      failed = true
    }
    // A hang-up is told again and again.
    if (failed) this.#end()
    else this.#answerFaults()
    return isAny
  }

  #end(): void {
    this.#watcher.stop()
    this.#options.onEnd()
  }

  /** Whether there was anything. */
  #read(): boolean {
    // Whoever comes after us knows by it that a page which is missing was given back, should what we read now be all that says so.
    for (const [start, end] of this.#untold.splice(0)) this.#tell({ op: 'put', start, end })
    for (let isAny = false; ; isAny = true) {
      const messages = this.#uffd.read()
      if (messages.length === 0) return isAny
      for (const message of messages) this.#heard(message)
    }
  }

  #heard(message: UserfaultMessage): void {
    switch (message.event) {
      case 'fault':
        this.counts.faults++
        if (message.isProtected) this.#options.onProtected?.(message.address)
        else this.#faults.push(message.address)
        return
      case 'remove':
        // Of shared memory it is what it was.
        if (this.#pages.isOwn) this.#tell({ op: 'removed', start: message.start, end: message.end })
        this.#spaces.forget(message.start, message.end, this.#pages.isOwn)
        return
      case 'unmap':
        this.#tell({ op: 'unmapped', start: message.start, end: message.end })
        this.#spaces.unmap(message.start, message.end)
        return
      case 'remap':
        this.#tell({ op: 'moved', from: message.from, to: message.to, length: message.length })
        this.#spaces.move(message.from, message.to, message.length)
        return
      case 'fork': {
        const onEnd = () => {
          this.#children.delete(child)
          void child.close()
        }
        const child = new Faults(message.descriptor, this.#pages, this.#spaces.copy(), { ...this.#options, onEnd })
        this.#children.add(child)
      }
    }
  }

  /** Pages of the region were taken from everybody. */
  #gone(start: number, end: number): void {
    for (const space of this.#spaces.all) {
      const from = Math.max(0, start - space.at)
      const to = Math.min(space.length, end - space.at)
      if (from < to) space.taken.delete(Math.floor(from / space.pageBytes), Math.ceil(to / space.pageBytes))
    }
  }

  /** There is room again. */
  goOn(): void {
    this.#haveTurned()
    if (!this.#closed) this.#answerFaults()
  }

  #answerFaults(): void {
    while (this.#faults.length > 0 && !this.#options.isFull?.()) this.#fault(this.#faults.shift()!)
    this.#goAhead()
  }

  /**
   * Takes pages of the first mapping away. Whoever touches them meanwhile waits until that has resolved, and gets them from the region.
   * `scratch` is registered memory of that length, in which there are no pages.
   */
  async takeAway<T>(from: number, to: number, scratch: number, { before, use }: Taking<T>): Promise<void> {
    const [space] = this.#spaces.all
    const { address, pageBytes, taken, poisoned } = space
    for (let at = from; at < to; ) {
      const isThere = (each: number) =>
        taken.has(each / pageBytes) && !poisoned.has(each / pageBytes) && !this.#isFilling(space, each)
      let end = at
      while (end < to && isThere(end)) end += pageBytes
      if (end === at) {
        at += pageBytes
        continue
      }
      const fill: Fill = { space, from: at, to: end }
      this.#filling.add(fill)
      const seen = before(at, end)
      const { bytes: moved } = this.#uffd.move(scratch, address + at, end - at)
      if (moved === 0) {
        this.#filling.delete(fill)
        // In use by the kernel.
        this.#options.onPut?.(at, at + pageBytes)
        at += pageBytes
        continue
      }
      fill.to = at + moved
      const view = viewOf(scratch, moved)
      const bytes = takeBytes(moved)
      bytes.set(view)
      detach(view.buffer)
      dropPages(scratch, moved)
      let back: [from: number, to: number][] = [[0, moved]]
      try {
        back = await use(at, bytes, seen)
      } finally {
        this.#filling.delete(fill)
        if (!this.#closed) {
          taken.delete(at / pageBytes, fill.to / pageBytes)
          for (const [first, last] of back) this.#putBack(space, at + first, bytes.subarray(first, last))
          this.#uffd.wake(address + at, moved)
        }
        giveBack(bytes)
        this.#haveTurned()
      }
      at = fill.to
    }
  }

  /** Not protected: what was written to them is found again. */
  #putBack(space: Space, from: number, bytes: Uint8Array): void {
    const { pageBytes } = space
    space.taken.add(from / pageBytes, (from + bytes.length) / pageBytes)
    for (let at = 0; at < bytes.length; ) {
      const { bytes: done, errno: number } = this.#uffd.copy(space.address + from + at, bytes.subarray(at), 0n)
      at += done
      if (number !== 0 && number !== errno.EAGAIN) throw systemError(number, 'ioctl', 'UFFDIO_COPY')
    }
    this.#options.onPut?.(from, from + bytes.length)
  }

  #zeroOrWake({ space, from, to }: Fill): void {
    const address = space.address + from
    const { bytes } = this.#uffd.zero(address, to - from)
    if (bytes === 0) this.#uffd.wake(address, to - from)
    else {
      this.counts.bytes += bytes
      this.#options.onPut?.(from, to)
    }
  }

  #isFilling(space: Space, at: number): boolean {
    for (const fill of this.#filling) if (fill.space === space && at >= fill.from && at < fill.to) return true
    return false
  }

  #fault(address: number): void {
    const space = this.#spaces.at(address)
    if (!space) {
      // Registered, but not told of: nobody knows its bytes.
      log.warn('a fault at memory that is of no mapping', { address })
      this.#poisonAt(address - (address % 4096), 4096)
      return
    }
    const { pageBytes, taken, removed } = space
    const page = Math.floor((address - space.address) / pageBytes)
    const at = page * pageBytes
    if (taken.has(page)) {
      if (this.#isFilling(space, at)) return
      // It was given back, and who read that is not there any more; or it is there: two have touched it at once. Of shared memory the
      // kernel may have unmapped it, too.
      if (this.#pages.isOwn) this.#zeroOrWake({ space, from: at, to: at + pageBytes })
      else this.#fill({ space, from: at, to: at + pageBytes }, { waiting: at })
      return
    }
    if (removed.has(page)) {
      this.#put({ space, from: at, to: at + pageBytes }, null)
      return
    }
    const { from, to, ahead } = space.readers.plan(at, space.length)
    const whole = this.#absentAround(space, page, Math.floor(from / pageBytes), Math.ceil(to / pageBytes))
    this.#fill(whole, { waiting: at })
    // Readers go first.
    if (ahead) this.#ahead.unshift({ space, ...ahead, hasWires: true })
  }

  /** Pages around one, all of them neither there nor given back. */
  #absentAround(space: Space, page: number, first: number, last: number): Fill {
    const { taken, removed, pageBytes, length } = space
    const isAbsent = (each: number) => !taken.has(each) && !removed.has(each)
    let from = page
    while (from > first && isAbsent(from - 1)) from--
    let to = page + 1
    while (to < last && to * pageBytes < length && isAbsent(to)) to++
    return { space, from: from * pageBytes, to: to * pageBytes }
  }

  /** Ahead of readers, as far as there is room for it: when there is none, what is read goes on with it. Those who wait go first. */
  #goAhead(): void {
    if (this.#isAheadDue || this.#ahead.length === 0 || this.#isBusy || this.#closed) return
    this.#isAheadDue = true
    setImmediate(() => {
      this.#isAheadDue = false
      if (this.#closed || this.#ahead.length === 0) return
      this.#aheadPiece()
      this.#goAhead()
    })
  }

  #aheadPiece(): void {
    const next = this.#ahead[0]
    this.#pieceBytes = Math.min(
      AHEAD_PIECE_BYTES,
      this.#fillingBytes === 0 ? AHEAD_STEP_BYTES : this.#pieceBytes + AHEAD_STEP_BYTES,
    )
    const end = Math.min(next.to, next.from + this.#pieceBytes)
    this.#fillAbsent(next.space, next.from, end, next.hasWires)
    next.from = end
    if (next.from >= next.to) this.#ahead.shift()
  }

  /** What is neither there nor given back, from the first whole page on. */
  #fillAbsent(space: Space, from: number, to: number, hasWires: boolean): Fill[] {
    const { pageBytes, taken, removed } = space
    const fills: Fill[] = []
    for (let at = Math.ceil(from / pageBytes) * pageBytes; at < to; ) {
      const page = at / pageBytes
      const isWire = hasWires && at % WIRE_BYTES === 0 && pageBytes < WIRE_BYTES
      if (isWire || taken.has(page) || removed.has(page)) {
        at += pageBytes
        continue
      }
      const fill = this.#absentAround(space, page, page, Math.ceil(to / pageBytes))
      this.#fill(fill, {})
      fills.push(fill)
      at = fill.to
    }
    return fills
  }

  /** `waiting`: somebody waits for the page there. */
  #fill(fill: Fill, { waiting }: { waiting?: number }): void {
    const { space, from, to } = fill
    space.taken.add(from / space.pageBytes, to / space.pageBytes)
    try {
      const fetching = this.#fetch(fill)
      if (fetching instanceof Promise) void this.#whenFetched(fill, fetching, waiting)
      else this.#put(fill, fetching)
    } catch (error) {
      this.#lost(fill, waiting, error)
    }
  }

  #fetch({ space, from, to }: Fill): Maybe<Fetched> {
    return this.#pages.fetch(space.at + from, to - from)
  }

  async #whenFetched(fill: Fill, fetching: Promise<Fetched>, waiting: number | undefined): Promise<void> {
    const length = fill.to - fill.from
    this.#filling.add(fill)
    this.#fillingBytes += length
    const waitMs = backoff({ firstMs: AGAIN_MS, maxMs: AGAIN_MS_MAX, random: random() })
    let fetched: Fetched | null = null
    let failure: unknown
    for (let attempt = 0; ; attempt++) {
      try {
        fetched = await fetching
        break
      } catch (error) {
        failure = error
      }
      if (this.#options.onFault !== 'wait' || this.#closed) break
      if (attempt === 0) log.warn('bytes of memory cannot be had, and are asked for again', { error: failure })
      await sleep(waitMs(attempt), this.#closing.signal).catch(() => {})
      if (this.#closed) break
      fetching = (async () => this.#fetch(fill))()
    }
    this.#filling.delete(fill)
    this.#fillingBytes -= length
    if (this.#closed) fetched?.release()
    else if (fetched) this.#put(fill, fetched)
    else this.#lost(fill, waiting, failure)
    this.#haveTurned()
    if (!this.#closed) this.#goAhead()
  }

  /** Never zeros instead of what could not be read. */
  #lost(fill: Fill, waiting: number | undefined, error: unknown): void {
    const { space, from, to } = fill
    const { pageBytes, address, taken } = space
    fill.failure = toFerryError(error)
    taken.delete(from / pageBytes, to / pageBytes)
    if (waiting !== undefined) {
      log.error('bytes of memory could not be had: who touches them gets SIGBUS', { at: space.at + waiting, error })
      this.#poison(space, waiting)
    }
    // Others may wait for its other pages: they ask again.
    this.#uffd.wake(address + from, to - from)
  }

  /** Whoever touches the page gets SIGBUS, from now on. */
  #poison({ address, pageBytes, taken, poisoned }: Space, at: number): void {
    const page = at / pageBytes
    taken.add(page, page + 1)
    poisoned.add(page, page + 1)
    this.#poisonAt(address + at, pageBytes)
  }

  #poisonAt(address: number, length: number): void {
    this.counts.poisoned++
    const { errno: number } = this.#uffd.poison(address, length)
    if (number !== 0 && number !== errno.EEXIST)
      log.error('a page could not be poisoned, and its reader waits for ever', { error: systemError(number, 'ioctl') })
  }

  /** `fetched` null: zeros. What was given back in the meantime stays given back. */
  #put(fill: Fill, fetched: Fetched | null): void {
    this.#options.onPut?.(fill.from, fill.to)
    this.#putFrom(fill, fetched, fill.from, 0)
  }

  #putFrom(fill: Fill, fetched: Fetched | null, start: number, attempt: number): void {
    const { space, from, to } = fill
    const { address, pageBytes, removed } = space
    let at = start
    for (let again = 0; at < to && again < AGAIN_MAX; ) {
      const end = removed.runEnd(at / pageBytes, to / pageBytes) * pageBytes
      const isZero = fetched === null || removed.has(at / pageBytes)
      const { bytes: done, errno: number } = isZero
        ? this.#uffd.zero(address + at, end - at)
        : fetched.put(this.#uffd, address + at, at - from, end - at)
      this.counts.bytes += done
      this.#note(address + at, done)
      at += done
      if (number === 0 || done > 0) continue
      if (number === errno.EEXIST) {
        this.#uffd.wake(address + at, pageBytes)
        at += pageBytes
      } else if (number === errno.EAGAIN) {
        // It has something to say first, which may be about these very pages.
        again++
        this.#read()
      } else {
        this.#refused({ space, from: at, to }, number)
        at = to
      }
    }
    if (at < to) this.#putLater(fill, fetched, at, attempt + 1)
    else fetched?.release()
    if (this.#faults.length > 0) setImmediate(() => this.#closed ?? this.#answerFaults())
  }

  /** To be told before anything else is read. */
  #note(start: number, length: number): void {
    if (this.#keptAs === undefined || length === 0 || !this.#pages.isOwn) return
    const last = this.#untold.at(-1)
    if (last?.[1] === start) last[1] += length
    else this.#untold.push([start, start + length])
  }

  #putLater(fill: Fill, fetched: Fetched | null, at: number, attempt: number): void {
    const rest = { ...fill, from: at }
    this.#filling.add(rest)
    void sleep(Math.min(AGAIN_MS_MAX, attempt), this.#closing.signal).then(
      () => {
        this.#filling.delete(rest)
        this.#putFrom(fill, fetched, at, attempt)
        this.#haveTurned()
      },
      () => fetched?.release(),
    )
  }

  #refused({ space, from, to }: Fill, number: number): void {
    space.taken.delete(from / space.pageBytes, to / space.pageBytes)
    // Unmapped, or the process is ending.
    if (number === errno.ENOENT || number === errno.ESRCH) return
    log.error('pages could not be put into memory', { at: space.at + from, error: systemError(number, 'ioctl') })
    this.#poison(space, from)
    // Others ask again.
    this.#uffd.wake(space.address + from, to - from)
  }
}
