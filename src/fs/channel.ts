// The connection to the kernel: requests in, replies out, notifications on the side. Knows of a message only what fuse_in_header says.

import assert from 'node:assert/strict'
import fs from 'node:fs'
import { availableParallelism } from 'node:os'
import { setTimeout } from 'node:timers/promises'
import { FerryError, toFerryError } from '../base/errors.js'
import { errno, errnoOf, systemError } from '../linux/libc.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import { readRaw, writeRaw, writev2 } from '../linux/preadv2.js'

export interface FuseChannelOptions {
  /** Of /dev/fuse, O_NONBLOCK. The channel closes it. */
  fd: number
  /** The longest request: max_write + 4096, at least 8192, or the kernel refuses to give any. */
  requestBytesMax: number
  /**
   * One whole request, valid only until this returns. Answer with `reply` now or later; a promise may be started, its
   * continuations run as soon as the requests that are waiting have been read.
   */
  onRequest: (request: Uint8Array) => void
  /** Once, when no request will come any more: without an error after an unmount, with one otherwise. */
  onClosed: (error?: FerryError) => void
  /**
   * How long to look for the next request before sleeping, in us; 0 never looks. To wake an idle CPU costs more than most
   * requests, but looking costs a whole one: it is done only while requests do come that soon.
   */
  pollUs?: number
}

export const POLL_US = 100

/** A turn of node's loop costs 1.5 us: so seldom that this is cheap, so often that nobody else has to wait. */
const SLICE_MS = 0.1
/** The same while replies are owed, which timers, I/O and promises are to make. */
const SLICE_OWING_MS = 0.03

/** Up to here one copy is cheaper than a vector of two pieces. */
const COPY_BYTES_MAX = 16 << 10

/** How many polls may run out, halving each time, before we stop trying. */
const CREDIT_MAX = 8

/** Notifications that may wait for the one being delivered. */
const NOTIFICATIONS_MAX = 4096
const CLOSE_TIMEOUT_MS = 1000

const OUT_HEADER_BYTES = 16
/** FORGET, INTERRUPT, NOTIFY_REPLY and BATCH_FORGET: nobody waits for an answer. */
const silent = new Set([2, 36, 41, 42])

/** Why a write of a reply may fail without anything being wrong: interrupted meanwhile; unmounted meanwhile. */
const harmless = new Set([-errno.ENOENT, -errno.ENODEV, -errno.ECONNABORTED, -errno.EPERM])

type State = 'ready' | 'serving' | 'ended' | 'closed'

export class FuseChannel {
  readonly #options: FuseChannelOptions
  readonly #fd: number
  #request: Uint8Array
  /** fuse_in_header: len, opcode, … */
  #header: Uint32Array
  readonly #joined = new Uint8Array(COPY_BYTES_MAX)
  readonly #watcher: Watcher
  readonly #pollMs: number
  readonly #turnAgain = () => {
    this.#again = false
    this.#turn()
  }

  #state: State = 'ready'
  /** Requests that were read and not answered yet. */
  #owed = 0
  /** When something last happened: a request came, or a reply went. */
  #activeMs = 0
  #credit = 0
  /** The next turn of the loop comes back to us. */
  #again = false
  #inTurn = false
  #notifications = 0
  #notified: Promise<unknown> = Promise.resolve()

  constructor(options: FuseChannelOptions) {
    const { fd, requestBytesMax, pollUs = POLL_US } = options
    this.#options = options
    this.#fd = fd
    this.#request = new Uint8Array(Math.max(8192, requestBytesMax))
    this.#header = new Uint32Array(this.#request.buffer, 0, 2)
    // On a single CPU looking would keep the very program from running whose request we look for.
    this.#pollMs = availableParallelism() > 1 ? pollUs / 1000 : 0
    this.#watcher = watchDescriptor(fd, failed => {
      this.#turn()
      if (failed && this.#state === 'serving') this.#watcher.start()
    })
  }

  /** Requests that were read and not answered yet. */
  get owed(): number {
    return this.#owed
  }

  /** Begins to serve. */
  start(): void {
    if (this.#state !== 'ready') return
    this.#state = 'serving'
    this.#watcher.start()
  }

  /**
   * The request being handled stays where it is, for as long as the caller likes: the next ones go into `fresh`, which is
   * as long as the buffer it replaces and begins its ArrayBuffer, too.
   */
  exchange(fresh: Uint8Array): void {
    assert(fresh.byteLength === this.#request.byteLength && fresh.byteOffset === 0)
    this.#request = fresh
    this.#header = new Uint32Array(fresh.buffer, 0, 2)
  }

  /** Stops reading; requests stay in the kernel. Replies can still be written. */
  pause(): void {
    if (this.#state !== 'serving') return
    this.#state = 'ready'
    this.#watcher.stop()
  }

  /**
   * Writes one reply: fuse_out_header and payload are the first `length` bytes.
   * @returns 0, or -errno when the kernel did not take it; an interrupted request or an unmount meanwhile is no error
   */
  reply(message: Uint8Array, length: number = message.byteLength): number {
    if (this.#state === 'closed') return 0
    return this.#replied(writeRaw(this.#fd, message, length), message)
  }

  /** The same from two pieces; `head` begins with fuse_out_header, whose length counts both. */
  replyv(head: Uint8Array, data: Uint8Array): number {
    if (this.#state === 'closed') return 0
    const length = head.byteLength + data.byteLength
    if (length > COPY_BYTES_MAX) return this.#replied(writev2(this.#fd, head, data), head)
    this.#joined.set(head)
    this.#joined.set(data, head.byteLength)
    return this.reply(this.#joined, length)
  }

  #replied(result: number, head: Uint8Array): number {
    if (this.#owed > 0) this.#owed--
    this.#activeMs = performance.now()
    // A deferred reply: the next request may follow at once.
    if (!this.#inTurn) this.#comeBack()
    if (result >= 0 || harmless.has(result)) return 0
    // Malformed, or out of memory: whoever waits for it must not wait for ever.
    const failure = new Uint8Array(OUT_HEADER_BYTES)
    failure.set(head.subarray(0, OUT_HEADER_BYTES))
    new Int32Array(failure.buffer).set([OUT_HEADER_BYTES, -errno.EIO])
    writeRaw(this.#fd, failure)
    return result
  }

  /**
   * FUSE_NOTIFY_*: from the thread pool, since the kernel may wait for locks that only replies of ours release; one after the
   * other, so that not all of the pool can wait for them. `message` must stay as it is until then.
   * @returns false when the kernel does not have what it is about (any more)
   * @throws INVALID (malformed), BUSY (too many are waiting)
   */
  notify(message: Uint8Array): Promise<boolean> {
    if (this.#notifications >= NOTIFICATIONS_MAX)
      return Promise.reject(new FerryError('BUSY', { detail: `${NOTIFICATIONS_MAX} notifications are waiting` }))
    this.#notifications++
    const result = this.#notified.then(() => this.#deliver(message)).finally(() => this.#notifications--)
    this.#notified = result.catch(() => {})
    return result
  }

  #deliver(message: Uint8Array): Promise<boolean> {
    if (this.#state === 'closed' || this.#state === 'ended') return Promise.resolve(false)
    return new Promise((resolve, reject) =>
      fs.write(this.#fd, message, error => {
        if (!error) resolve(true)
        else if (harmless.has(-(errnoOf(error) ?? 0)) || errnoOf(error) === errno.ENOTCONN) resolve(false)
        else reject(toFerryError(error, 'notification to the kernel'))
      }),
    )
  }

  /** Stops serving and closes the descriptor: what is still mounted fails from then on. Closing twice is fine. */
  async close(): Promise<void> {
    if (this.#state === 'closed') return
    this.#state = 'closed'
    await this.#watcher.close()
    // The number must not be closed, and be used again, under a write that is on its way.
    await Promise.race([this.#notified, setTimeout(CLOSE_TIMEOUT_MS, undefined, { ref: false })])
    fs.closeSync(this.#fd)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Reads and hands over requests until there is none, the slice is over, or it is time to sleep. */
  #turn(): void {
    if (this.#state !== 'serving' || this.#inTurn) return
    this.#inTurn = true
    try {
      this.#serve()
    } finally {
      this.#inTurn = false
    }
  }

  #serve(): void {
    const begunMs = performance.now()
    for (;;) {
      const count = readRaw(this.#fd, this.#request)
      if (count > 0) this.#accept(count)
      else if (count !== -errno.EAGAIN) this.#failed(-count)
      else if (this.#credit === 0) return
      if (this.#state !== 'serving') return

      const nowMs = performance.now()
      if (count > 0) this.#activeMs = nowMs
      else if (nowMs - this.#activeMs >= this.#pollMs) {
        this.#credit >>= 1
        return
      }
      const idle = count < 0
      if (this.#owed > 0 ? idle || nowMs - begunMs >= SLICE_OWING_MS : nowMs - begunMs >= SLICE_MS) break
    }
    this.#comeBack()
  }

  #accept(count: number): void {
    const sooner = performance.now() - this.#activeMs < this.#pollMs
    if (sooner && this.#credit < CREDIT_MAX) this.#credit++
    if (!silent.has(this.#header[1])) this.#owed++
    this.#options.onRequest(this.#request.subarray(0, count))
  }

  #comeBack(): void {
    if (this.#again || this.#credit === 0 || this.#state !== 'serving') return
    this.#again = true
    setImmediate(this.#turnAgain)
  }

  #failed(number: number): void {
    // Interrupted, also before we read it (ENOENT); too large for the buffer, which the kernel has answered itself (EIO).
    if (number === errno.EINTR || number === errno.ENOENT || number === errno.EIO) return
    this.#end(number === errno.ENODEV ? undefined : systemError(number, 'read', '/dev/fuse'))
  }

  #end(error?: FerryError): void {
    this.#state = 'ended'
    this.#watcher.stop()
    this.#options.onClosed(error)
  }
}
