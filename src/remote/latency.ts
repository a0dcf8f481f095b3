// Distance: every call takes a round trip longer.
import { type Clock, systemClock } from '../base/async.js'
import { type Random, random as seeded } from '../base/random.js'
import { type Remote, wrap } from './wrap.js'

export interface LatencyOptions {
  /** Added to each call: half before it reaches the remote, half before the answer is here. */
  rttMs: number
  /** Up to so much more, by chance. Default 0. */
  jitterMs?: number
  random?: Random
  clock?: Clock
}

export function latency<R extends Remote>(remote: R, options: LatencyOptions): R {
  const { rttMs, jitterMs = 0, random = seeded(), clock = systemClock } = options
  return wrap(remote, async (call, next) => {
    const totalMs = rttMs + (jitterMs > 0 ? random.next() * jitterMs : 0)
    const startMs = clock.nowMs()
    await clock.sleep(totalMs / 2, call.signal)
    // Timers are coarse: what the first half took too long the second makes up for.
    const leftMs = totalMs - (clock.nowMs() - startMs)
    try {
      return await next()
    } finally {
      if (leftMs > 0) await clock.sleep(leftMs, call.signal)
    }
  })
}
