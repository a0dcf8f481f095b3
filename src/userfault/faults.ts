// The faults of one userfaultfd, answered with the bytes of a region.
import { closeSync } from 'node:fs'
import { backoff, sleep } from '../base/async.js'
import { giveBack, takeBytes } from '../base/buffers.js'
import { FerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { random } from '../base/random.js'
import type { RegionDoor } from '../cache/door.js'
import type { Maybe } from '../cache/filesystem.js'
import { errno, systemError } from '../linux/libc.js'
import { detach, dropPages, viewOf } from '../linux/memory.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import { COPY_WP } from '../wire/userfaultfd.js'
import { PageSet } from './page-set.js'
import { Readers, WIRE_BYTES } from './reader.js'
import { Userfaultfd, type UserfaultMessage } from './userfaultfd.js'

const log = logger('userfault')

/** Of pages that are being read for faults and ahead of them. */
const FILLING_BYTES_MAX = 32 * 1024 * 1024
const AHEAD_PIECE_BYTES = 1024 * 1024
/** How often an answer is tried again while the kernel has something to say first. */
const AGAIN_MAX = 64
const AGAIN_MS = 100
const AGAIN_MS_MAX = 2_000

/** Memory of a process whose bytes are a region's. */
export interface Mapping {
  /** In bytes, multiples of `pageBytes`. */
  address: number
  length: number
  /** Where in the region. */
  at: number
  pageBytes: number
}

export interface FaultOptions {
  /** What becomes of a fault whose bytes cannot be had: SIGBUS, or it waits until they can. Default 'poison'. */
  onFault?: 'poison' | 'wait'
  /** The process is gone, or its memory is: nothing more will come. */
  onEnd: () => void
  /** Pages arrive protected against writes. */
  isProtected?: boolean
  /** Pages have come to be there: from, to, in bytes of the first mapping. */
  onPut?: (from: number, to: number) => void
  /** Whether faults have to wait, until `goOn`. */
  isFull?: () => boolean
  /** How messages are noticed. Default: as an event of the main thread's loop. */
  watch?: Watch
}

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

interface Space extends Mapping {
  readers: Readers
  /** Pages that are there, or on their way. */
  taken: PageSet
  /** Pages that the program has given back: zeros from then on. */
  removed: PageSet
}

interface Fill {
  space: Space
  from: number
  to: number
}

/** To be filled before it is touched. `hasWires`: but for the pages whose faults tell how far a reader has come. */
interface Ahead extends Fill {
  hasWires: boolean
}

/** It owns the descriptor. Until it is closed whoever touches a page that is not there waits for it. */
export class Faults {
  readonly counts: FaultCounts = { faults: 0, bytes: 0, poisoned: 0 }
  readonly #uffd: Userfaultfd
  readonly #door: RegionDoor
  readonly #options: FaultOptions
  readonly #watcher: ReturnType<Watch>
  readonly #closing = new AbortController()
  readonly #mode: bigint
  readonly #children = new Set<Faults>()
  #spaces: Space[]
  readonly #faults: number[] = []
  readonly #ahead: Ahead[] = []
  readonly #filling = new Set<Fill>()
  #fillingBytes = 0
  #isAheadDue = false
  #closed: Promise<void> | undefined

  constructor(fd: number, door: RegionDoor, mappings: Mapping[], options: FaultOptions) {
    this.#uffd = new Userfaultfd(fd)
    this.#door = door
    this.#options = options
    this.#spaces = mappings.map(mapping => spaceOf(mapping))
    this.#mode = options.isProtected ? COPY_WP : 0n
    this.#watcher = (options.watch ?? watchDescriptor)(fd, failed => this.#turn(failed))
    this.#watcher.start()
  }

  /** All of it, in the background, from the front. */
  fillAll(): void {
    for (const space of this.#spaces) this.#ahead.push({ space, from: 0, to: space.length, hasWires: false })
    this.#goAhead()
  }

  /** Its descriptor is closed: what is registered by it alone reads as zeros from then on. */
  close(): Promise<void> {
    this.#closed ??= (async () => {
      this.#closing.abort(new FerryError('CLOSED'))
      this.#ahead.length = 0
      await Promise.all([...this.#children].map(each => each.close()))
      await this.#watcher.close()
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
        this.#faults.push(message.address)
        return
      case 'remove':
        this.#overlapping(message.start, message.end, (space, from, to) => {
          space.taken.delete(from, to)
          space.removed.add(from, to)
        })
        return
      case 'unmap':
        this.#cut(message.start, message.end)
        return
      case 'remap': {
        const { from, to, length } = message
        const moved = this.#cut(from, from + length)
        this.#spaces.push(...moved.map(space => ({ ...space, address: space.address - from + to })))
        return
      }
      case 'fork': {
        const onEnd = () => {
          this.#children.delete(child)
          void child.close()
        }
        const child = new Faults(
          message.descriptor,
          this.#door,
          this.#spaces.map(each => partOf(each, each.address, each.address + each.length)),
          { ...this.#options, onEnd },
        )
        this.#children.add(child)
      }
    }
  }

  /** The parts of the memory between two addresses, by pages of each mapping. */
  #overlapping(start: number, end: number, each: (space: Space, from: number, to: number) => void): void {
    for (const space of this.#spaces) {
      const from = Math.max(start, space.address)
      const to = Math.min(end, space.address + space.length)
      if (from >= to) continue
      each(space, (from - space.address) / space.pageBytes, (to - space.address) / space.pageBytes)
    }
  }

  /** Mappings without what lies between two addresses, which is returned. */
  #cut(start: number, end: number): Space[] {
    const inside: Space[] = []
    const outside: Space[] = []
    for (const space of this.#spaces) {
      const last = space.address + space.length
      const part = (from: number, to: number, into: Space[]) => {
        if (from < to) into.push(from === space.address && to === last ? space : partOf(space, from, to))
      }
      part(space.address, Math.min(start, last), outside)
      part(Math.max(space.address, start), Math.min(last, end), inside)
      part(Math.max(space.address, end), last, outside)
    }
    this.#spaces = outside
    return inside
  }

  /** There is room again. */
  goOn(): void {
    if (!this.#closed) this.#answerFaults()
  }

  #answerFaults(): void {
    while (this.#faults.length > 0 && !this.#options.isFull?.()) this.#fault(this.#faults.shift()!)
    this.#goAhead()
  }

  /**
   * Takes pages of the first mapping away and calls `use` with those that were there: from, and their bytes as they were in the moment in
   * which they went. Whoever touches them meanwhile waits until that has resolved, and gets them from the region. `scratch` is registered
   * memory of that length, in which there are no pages. If `use` rejects they are put back, and so they are where it says false.
   */
  async takeAway(
    from: number,
    to: number,
    scratch: number,
    use: (at: number, bytes: Uint8Array) => Promise<boolean>,
  ): Promise<void> {
    const [space] = this.#spaces
    const { address, pageBytes, taken } = space
    for (let at = from; at < to; ) {
      const fill = { space, from: at, to }
      if (!taken.has(at / pageBytes) || this.#isFilling(space, at)) {
        at += pageBytes
        continue
      }
      this.#filling.add(fill)
      const { bytes: moved } = this.#uffd.move(scratch, address + at, to - at)
      if (moved === 0) {
        this.#filling.delete(fill)
        // Poisoned, or in use by the kernel.
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
      let isGone = false
      try {
        isGone = await use(at, bytes)
      } finally {
        this.#filling.delete(fill)
        if (isGone) {
          taken.delete(at / pageBytes, fill.to / pageBytes)
          this.#uffd.wake(address + at, moved)
        } else if (!this.#closed) this.#putBack(fill, bytes)
        giveBack(bytes)
      }
      at = fill.to
    }
  }

  /** Not protected: what was written to them is found again. */
  #putBack({ space, from }: Fill, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const { bytes: done, errno: number } = this.#uffd.copy(space.address + from + at, bytes.subarray(at), 0n)
      at += done
      if (number !== 0 && number !== errno.EAGAIN) throw systemError(number, 'ioctl', 'UFFDIO_COPY')
    }
    this.#options.onPut?.(from, from + bytes.length)
  }

  #isFilling(space: Space, at: number): boolean {
    for (const fill of this.#filling) if (fill.space === space && at >= fill.from && at < fill.to) return true
    return false
  }

  #fault(address: number): void {
    const space = this.#spaces.find(each => address >= each.address && address < each.address + each.length)
    if (!space) {
      // Registered, but not told of: nobody knows its bytes.
      log.warn('a fault at memory that is of no mapping', { address })
      this.#poison(address - (address % 4096), 4096)
      return
    }
    const { pageBytes, taken, removed } = space
    const page = Math.floor((address - space.address) / pageBytes)
    const at = page * pageBytes
    if (taken.has(page)) {
      // Two may have touched it at once; or it is on its way.
      if (!this.#isFilling(space, at)) this.#uffd.wake(space.address + at, pageBytes)
      return
    }
    if (removed.has(page)) {
      this.#put({ space, from: at, to: at + pageBytes }, null)
      return
    }
    const { from, to, ahead } = space.readers.plan(at, space.length)
    const whole = this.#absentAround(space, page, Math.floor(from / pageBytes), Math.ceil(to / pageBytes))
    this.#fill(whole, at)
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
    const isFull = this.#fillingBytes >= FILLING_BYTES_MAX || this.#options.isFull?.()
    if (this.#isAheadDue || this.#ahead.length === 0 || isFull || this.#closed) return
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
    const { space, hasWires } = next
    const { pageBytes } = space
    const end = Math.min(next.to, next.from + AHEAD_PIECE_BYTES)
    for (let at = Math.ceil(next.from / pageBytes) * pageBytes; at < end; ) {
      const page = at / pageBytes
      const isWire = hasWires && at % WIRE_BYTES === 0 && pageBytes < WIRE_BYTES
      if (isWire || space.taken.has(page) || space.removed.has(page)) {
        at += pageBytes
        continue
      }
      const fill = this.#absentAround(space, page, page, Math.ceil(end / pageBytes))
      this.#fill(fill, null)
      at = fill.to
    }
    next.from = end
    if (next.from >= next.to) this.#ahead.shift()
  }

  /** `waiting`: somebody waits for the page there. */
  #fill(fill: Fill, waiting: number | null): void {
    const { space, from, to } = fill
    space.taken.add(from / space.pageBytes, to / space.pageBytes)
    const bytes = takeBytes(to - from)
    const arrived = () => {
      this.#put(fill, bytes)
      giveBack(bytes)
    }
    try {
      const reading = this.#bytesAt(space.at + from, bytes)
      if (reading) void this.#whenRead(fill, reading, { arrived, waiting, bytes })
      else arrived()
    } catch (error) {
      this.#lost(fill, waiting, error)
    }
  }

  async #whenRead(
    fill: Fill,
    reading: Promise<void>,
    { arrived, waiting, bytes }: { arrived: () => void; waiting: number | null; bytes: Uint8Array },
  ): Promise<void> {
    this.#filling.add(fill)
    this.#fillingBytes += bytes.length
    const waitMs = backoff({ firstMs: AGAIN_MS, maxMs: AGAIN_MS_MAX, random: random() })
    let failure: unknown = null
    for (let attempt = 0; ; attempt++) {
      failure = await reading.then(
        () => null,
        error => error ?? new FerryError('IO'),
      )
      if (failure === null || this.#options.onFault !== 'wait' || this.#closed) break
      if (attempt === 0) log.warn('bytes of memory cannot be had, and are asked for again', { error: failure })
      await sleep(waitMs(attempt), this.#closing.signal).catch(() => {})
      if (this.#closed) break
      reading = (async () => this.#bytesAt(fill.space.at + fill.from, bytes))()
    }
    this.#filling.delete(fill)
    this.#fillingBytes -= bytes.length
    if (this.#closed) return
    if (failure === null) arrived()
    else this.#lost(fill, waiting, failure)
    this.#goAhead()
  }

  /** Behind the region's end there are zeros: its last page may be short. */
  #bytesAt(at: number, into: Uint8Array): Maybe<void> {
    const length = Math.max(0, Math.min(into.length, this.#door.size - at))
    into.fill(0, length)
    if (length > 0) return this.#door.read(at, into.subarray(0, length))
  }

  /** Never zeros instead of what could not be read. */
  #lost({ space, from, to }: Fill, waiting: number | null, error: unknown): void {
    const { pageBytes, address, taken } = space
    taken.delete(from / pageBytes, to / pageBytes)
    if (waiting !== null) {
      log.error('bytes of memory could not be had: who touches them gets SIGBUS', { at: space.at + waiting, error })
      taken.add(waiting / pageBytes, waiting / pageBytes + 1)
      this.#poison(address + waiting, pageBytes)
    }
    // Others may wait for its other pages: they ask again.
    this.#uffd.wake(address + from, to - from)
  }

  #poison(address: number, length: number): void {
    this.counts.poisoned++
    const { errno: number } = this.#uffd.poison(address, length)
    if (number !== 0 && number !== errno.EEXIST)
      log.error('a page could not be poisoned, and its reader waits for ever', { error: systemError(number, 'ioctl') })
  }

  /** `bytes` null: zeros. What was given back in the meantime stays given back. */
  #put({ space, from, to }: Fill, bytes: Uint8Array | null, attempt = 0): void {
    const { address, pageBytes, removed } = space
    if (attempt === 0) this.#options.onPut?.(from, to)
    let at = from
    for (let again = 0; at < to && again < AGAIN_MAX; ) {
      const end = removed.runEnd(at / pageBytes, to / pageBytes) * pageBytes
      const isZero = bytes === null || removed.has(at / pageBytes)
      const { bytes: done, errno: number } = isZero
        ? this.#uffd.zero(address + at, end - at)
        : this.#uffd.copy(address + at, bytes.subarray(at - from, end - from), this.#mode)
      this.counts.bytes += done
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
        return
      }
    }
    if (at < to) this.#putLater({ space, from: at, to }, bytes?.slice(at - from) ?? null, attempt + 1)
    if (this.#faults.length > 0) setImmediate(() => this.#closed ?? this.#answerFaults())
  }

  #putLater(fill: Fill, bytes: Uint8Array | null, attempt: number): void {
    this.#filling.add(fill)
    void sleep(Math.min(AGAIN_MS_MAX, attempt), this.#closing.signal).then(
      () => {
        this.#filling.delete(fill)
        this.#put(fill, bytes, attempt)
      },
      () => {},
    )
  }

  #refused({ space, from, to }: Fill, number: number): void {
    space.taken.delete(from / space.pageBytes, to / space.pageBytes)
    // Unmapped, or the process is ending.
    if (number === errno.ENOENT || number === errno.ESRCH) return
    log.error('pages could not be put into memory', { at: space.at + from, error: systemError(number, 'ioctl') })
    this.#poison(space.address + from, space.pageBytes)
  }
}

/** Pages that were given back stay so. That others are there the kernel says itself. */
function partOf(space: Space, from: number, to: number): Space {
  const { address, at, pageBytes, removed } = space
  const part = spaceOf({ ...space, address: from, length: to - from, at: at + from - address })
  const first = (from - address) / pageBytes
  for (let page = 0; page < (to - from) / pageBytes; page++)
    if (removed.has(first + page)) part.removed.add(page, page + 1)
  return part
}

const spaceOf = ({ address, length, at, pageBytes }: Mapping): Space => ({
  ...{ address, length, at, pageBytes },
  readers: new Readers(),
  taken: new PageSet(),
  removed: new PageSet(),
})
