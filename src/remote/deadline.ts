// No call without an end: it answers in time, or it is aborted.
import { type Clock, linkedAbort, orAborted, systemClock } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { type Remote, wrap } from './wrap.js'

export interface DeadlineOptions {
  /** For each call. */
  ms: number
  clock?: Clock
}

/** One for all: an abort without a reason makes an exception with a stack, for each of thousands of calls a second. */
const ANSWERED = new FerryError('ABORTED', { detail: 'answered in time' })

/**
 * Calls reject with DEADLINE after `ms`; whatever the remote makes of the abort, nobody waits for it. A result that comes later
 * is dropped, and since remotes hand out memory of their own, no buffer of a caller is written to. What a caller gave to write
 * may still be read then: leave it as it is (see tree.ts).
 */
export function deadline<R extends Remote>(remote: R, { ms, clock = systemClock }: DeadlineOptions): R {
  return wrap(remote, async (call, next) => {
    if (call.compound) return next()
    const { controller, unlink } = linkedAbort(call.signal)
    const answered = new AbortController()
    clock.sleep(ms, answered.signal).then(
      () => controller.abort(new FerryError('DEADLINE', { detail: `${call.method} took more than ${ms} ms` })),
      () => {},
    )
    try {
      return await orAborted(next({ signal: controller.signal }), controller.signal)
    } catch (error) {
      const late = controller.signal.aborted && isFerryError(controller.signal.reason, 'DEADLINE')
      throw late && isFerryError(error, 'ABORTED') ? controller.signal.reason : error
    } finally {
      answered.abort(ANSWERED)
      unlink()
    }
  })
}
