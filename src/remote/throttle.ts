// A line of limited width, shared fairly.
import { type Clock, type Deferred, deferred, orAborted, systemClock } from '../base/async.js'
import { countBytes, type Remote, wrap } from './wrap.js'

/** What one waiter gets before it is the next one's turn: a small request does not wait for a large one to be through. */
const SLICE_BYTES = 64 * 1024
/** How long an idle line saves up; timers are no finer than that. */
const BURST_MS = 5
/** Comes while this thread does something else, as into a socket's buffer: the kernel's default limit, tcp_rmem in tcp(7). */
const BUFFER_BYTES = 6 * 1024 * 1024
const TIMER_MS = 1

interface Waiter {
  bytesLeft: number
  done: Deferred
}

/** Bytes per second, handed out in turns. */
export class Line {
  readonly #waiting: Waiter[] = []
  #freeAtMs: number
  #running = false

  constructor(
    readonly bytesPerSecond: number,
    readonly clock: Clock = systemClock,
  ) {
    this.#freeAtMs = clock.nowMs()
  }

  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    if (bytes === 0 || this.bytesPerSecond === Number.POSITIVE_INFINITY) return
    const waiter = { bytesLeft: bytes, done: deferred() }
    this.#waiting.push(waiter)
    if (!this.#running) void this.#run()
    try {
      await orAborted(waiter.done.promise, signal)
    } finally {
      const index = this.#waiting.indexOf(waiter)
      if (index >= 0) this.#waiting.splice(index, 1)
      waiter.bytesLeft = 0
    }
  }

  async #run(): Promise<void> {
    this.#running = true
    this.#freeAtMs = Math.max(this.#freeAtMs, this.clock.nowMs() - BURST_MS)
    const bufferMs = Math.max(BURST_MS, (BUFFER_BYTES / this.bytesPerSecond) * 1000)
    for (let waiter = this.#waiting.shift(); waiter; waiter = this.#waiting.shift()) {
      const slice = Math.min(SLICE_BYTES, waiter.bytesLeft)
      waiter.bytesLeft -= slice
      this.#freeAtMs = Math.max(this.#freeAtMs, this.clock.nowMs() - bufferMs) + (slice / this.bytesPerSecond) * 1000
      const waitMs = this.#freeAtMs - this.clock.nowMs()
      if (waitMs >= TIMER_MS) await this.clock.sleep(waitMs)
      if (waiter.bytesLeft > 0) this.#waiting.push(waiter)
      else waiter.done.resolve()
    }
    this.#running = false
  }
}

export interface ThrottleOptions {
  /** Bytes per second to the remote. Default: no limit. */
  upPerSecond?: number
  /** Bytes per second from the remote. Default: no limit. */
  downPerSecond?: number
  clock?: Clock
}

/**
 * Bytes that are sent wait before the call, bytes that were received after it: an answer is as late as if it had come over that
 * line, though at its far end it came at once. Only file contents count; all calls of the remote share the line.
 */
export function throttle<R extends Remote>(remote: R, options: ThrottleOptions): R {
  const {
    upPerSecond = Number.POSITIVE_INFINITY,
    downPerSecond = Number.POSITIVE_INFINITY,
    clock = systemClock,
  } = options
  const up = new Line(upPerSecond, clock)
  const down = new Line(downPerSecond, clock)
  return wrap(remote, async (call, next) => {
    if (call.changes) await up.take(countBytes(call.args), call.signal)
    const result = await next()
    if (!call.changes) await down.take(countBytes(result), call.signal)
    return result
  })
}
