// A connection without TLS, read and written by the descriptor: requests of one read(2) are answered by one write(2), a long payload lands where it
// is wanted, and nothing is a stream.
import { closeSync } from 'node:fs'
import { giveBack } from '../base/buffers.js'
import { type FerryError, toFerryError } from '../base/errors.js'
import { errno, systemError } from '../linux/libc.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import { EAGAIN, readRaw, writeRaw, writev2 } from '../linux/preadv2.js'
import type { Transport, TransportEvents } from './transport.js'

const IN_BYTES = 64 * 1024
/** Replies are gathered up to this; a longer one is sent from where it is. */
const OUT_BYTES = 256 * 1024
const GATHERED_BYTES_MAX = 32 * 1024
/** Others have their turn after so many reads. */
const READS_PER_TURN = 16

export class DescriptorTransport implements Transport {
  readonly gatheredBytesMax = GATHERED_BYTES_MAX
  readonly #fd: number
  readonly #events: TransportEvents
  readonly #watcher: Watcher
  readonly #in = new Uint8Array(IN_BYTES)
  readonly #out = new Uint8Array(OUT_BYTES)
  #outBytes = 0
  /** What the socket did not take, in order; the first one from `#sent` on. */
  readonly #queue: Uint8Array[] = []
  #sent = 0
  #queuedBytes = 0
  #isInTurn = false
  #isPaused = false
  #isEnding = false
  #isOver = false
  #flushIsDue = false

  /** It closes the descriptor, which must be O_NONBLOCK. */
  constructor(fd: number, events: TransportEvents) {
    this.#fd = fd
    this.#events = events
    this.#watcher = watchDescriptor(fd, () => this.#turn())
    this.#watcher.start()
  }

  get backlogBytes(): number {
    return this.#outBytes + this.#queuedBytes
  }

  send(bytes: Uint8Array): void {
    if (this.#isOver) return
    if (bytes.length > GATHERED_BYTES_MAX) {
      this.#write(bytes)
      return
    }
    if (this.#outBytes + bytes.length > OUT_BYTES) this.#flush()
    this.#out.set(bytes, this.#outBytes)
    this.#outBytes += bytes.length
    if (this.#isInTurn || this.#flushIsDue) return
    this.#flushIsDue = true
    setImmediate(() => {
      this.#flushIsDue = false
      this.#flush()
    })
  }

  pause(): void {
    this.#isPaused = true
    if (this.#queue.length === 0) this.#watcher.stop()
  }

  resume(): void {
    this.#isPaused = false
    this.#watch()
  }

  end(): void {
    this.#isEnding = true
    this.#flush()
    if (this.#queue.length === 0) this.#over()
  }

  destroy(): void {
    this.#over()
  }

  #watch(): void {
    if (this.#isOver) return
    if (this.#queue.length > 0) this.#watcher.start('both')
    else if (this.#isPaused || this.#isEnding) this.#watcher.stop()
    else this.#watcher.start()
  }

  #turn(): void {
    if (this.#isInTurn || this.#isOver) return
    this.#isInTurn = true
    try {
      this.#sendQueue()
      for (let reads = 0; reads < READS_PER_TURN && this.#read(); reads++);
    } finally {
      this.#isInTurn = false
    }
    this.#flush()
  }

  /** @returns whether there may be more */
  #read(): boolean {
    if (this.#isPaused || this.#isEnding || this.#isOver) return false
    const place = this.#events.place()
    const into = place && place.length > IN_BYTES / 2 ? place : this.#in
    const count = readRaw(this.#fd, into)
    if (count > 0) {
      if (into === place) this.#events.onPlaced(count)
      else this.#events.onBytes(into.subarray(0, count))
      return count === into.length
    }
    if (count === EAGAIN || count === -errno.EINTR) return false
    this.#over(count === 0 ? undefined : toFerryError(systemError(-count, 'read', 'socket')))
    return false
  }

  #flush(): void {
    if (this.#outBytes === 0 || this.#isOver) return
    const length = this.#outBytes
    this.#outBytes = 0
    const sent = this.#queue.length > 0 ? 0 : this.#took(writeRaw(this.#fd, this.#out, length))
    if (sent < length) this.#enqueue(this.#out.slice(sent, length))
  }

  /** A long piece, and what was gathered before it. */
  #write(bytes: Uint8Array): void {
    if (this.#queue.length > 0) {
      this.#flush()
      this.#enqueue(bytes)
      return
    }
    const head = this.#out.subarray(0, this.#outBytes)
    this.#outBytes = 0
    const sent = this.#took(head.length > 0 ? writev2(this.#fd, head, bytes) : writeRaw(this.#fd, bytes))
    if (sent < head.length) this.#enqueue(head.slice(sent))
    const left = bytes.subarray(Math.max(0, sent - head.length))
    if (left.length > 0) this.#enqueue(left)
    else giveBack(bytes)
  }

  #enqueue(bytes: Uint8Array): void {
    if (this.#isOver) return
    this.#queue.push(bytes)
    this.#queuedBytes += bytes.length
    if (this.#queue.length === 1) this.#watch()
  }

  #sendQueue(): void {
    if (this.#queue.length === 0) return
    while (this.#queue.length > 0) {
      const first = this.#queue[0].subarray(this.#sent)
      const count = this.#took(writeRaw(this.#fd, first))
      if (this.#isOver) return
      this.#queuedBytes -= count
      if (count < first.length) {
        this.#sent += count
        break
      }
      giveBack(first)
      this.#queue.shift()
      this.#sent = 0
    }
    if (this.#queue.length > 0) return
    if (this.#isEnding) this.#over()
    else this.#watch()
    this.#events.onSent()
  }

  /** What a write came to. */
  #took(result: number): number {
    if (result >= 0) return result
    if (result !== EAGAIN && result !== -errno.EINTR) this.#over(toFerryError(systemError(-result, 'write', 'socket')))
    return 0
  }

  #over(error?: FerryError): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#queue.length = this.#queuedBytes = this.#outBytes = 0
    void this.#watcher.close().then(() => closeSync(this.#fd))
    this.#events.onEnded(error)
  }
}
