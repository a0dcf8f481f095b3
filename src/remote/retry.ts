// Asking again, where that can do no harm: temporary errors of idempotent calls.
import { backoff, type Clock, systemClock } from '../base/async.js'
import { type Code, FerryError } from '../base/errors.js'
import { type Random, random as seeded } from '../base/random.js'
import { type Remote, wrap } from './wrap.js'

/** Errors that may be gone the next time. None of them is permanent as `isPermanent` has it; NO_SPACE is the engine's affair. */
export const temporaryCodes: readonly Code[] = [
  'UNREACHABLE',
  'DEADLINE',
  'INTERRUPTED',
  'SHORT_READ',
  'CORRUPT',
  'BUSY',
  'IO',
]
const temporary = new Set<Code>(temporaryCodes)

export interface RetryOptions {
  /** How often a call is made at most. Default 12: of a remote that fails one call in three, no call in a million is lost. */
  attempts?: number
  /** Of these, after an error that is `lasting`. Default 4: a mount of a bucket that does not exist is refused in a second. */
  attemptsLasting?: number
  /** The wait before the second attempt; it doubles, and half of it is left to chance. Default 100 ms. */
  firstMs?: number
  /** Default 1,000 ms. */
  maxMs?: number
  /** No attempt begins later than this after the first. Default: no limit. */
  withinMs?: number
  random?: Random
  clock?: Clock
}

/** The last error is thrown when all attempts have failed; an aborted call is not made again. */
export function retry<R extends Remote>(remote: R, options: RetryOptions = {}): R {
  const { attempts = 12, attemptsLasting = 4, withinMs = Infinity } = options
  const { firstMs, maxMs = 1_000, random = seeded(), clock = systemClock } = options
  const waitMs = backoff({ firstMs, maxMs, random })
  return wrap(remote, async (call, next) => {
    if (!call.idempotent || call.compound) return next()
    const beganMs = clock.nowMs()
    for (let attempt = 0; ; attempt++) {
      const pauseMs = waitMs(attempt)
      try {
        return await next()
      } catch (error) {
        const again = error instanceof FerryError && temporary.has(error.code)
        const late = clock.nowMs() + pauseMs - beganMs > withinMs
        if (!again || late || call.signal?.aborted) throw error
        if (attempt + 1 >= (error.lasting ? Math.min(attempts, attemptsLasting) : attempts)) throw error
      }
      await clock.sleep(pauseMs, call.signal)
    }
  })
}
