// Sends what is left, for as long as it gets anywhere.
import { type Clock, systemClock } from './base/async.js'
import { FerryError, toFerryError } from './base/errors.js'
import { formatDuration } from './base/units.js'
import type { Progress } from './cache/tree-cache.js'

export interface DrainOptions {
  /** Give up when nothing has got through for this long. 0: do not even begin. */
  stalledMsMax: number
  onProgress?: (progress: Progress) => void
  /** Gives all of it up. */
  signal?: AbortSignal
  /** Sends no more. */
  skip?: AbortSignal
  clock?: Clock
}

/** What is to be drained. */
export interface Drainable {
  sync(options: { onProgress: (progress: Progress) => void; signal: AbortSignal }): Promise<void>
  /** Grows with each batch that is committed. */
  committed(): number
}

const given = (detail: string) => new FerryError('ABORTED', { detail })

/** How often to look whether anything moves, at most and at least. */
const LOOK_MS_MAX = 1000
const LOOK_MS_MIN = 10

/**
 * Null when the remote has everything. Otherwise why it was given up: nothing got through for too long, or there is no hope of it.
 * @throws ABORTED, when `signal` says so
 */
export async function drain(what: Drainable, options: DrainOptions): Promise<FerryError | null> {
  const { stalledMsMax, onProgress, signal, skip, clock = systemClock } = options
  if (stalledMsMax === 0 || skip?.aborted) return given('nothing more was to be sent')
  const stalled = new AbortController()
  const ended = new AbortController()
  let furthest = 0
  const watch = async () => {
    let seen = -1
    let movedMs = clock.nowMs()
    while (!ended.signal.aborted) {
      const mark = furthest + what.committed()
      if (mark > seen) {
        seen = mark
        movedMs = clock.nowMs()
      } else if (clock.nowMs() - movedMs >= stalledMsMax)
        return stalled.abort(given(`nothing got through for ${formatDuration(stalledMsMax)}`))
      await clock.sleep(Math.min(LOOK_MS_MAX, Math.max(LOOK_MS_MIN, stalledMsMax / 8)), ended.signal)
    }
  }
  const watching = watch().catch(() => {})
  try {
    await what.sync({
      onProgress: progress => {
        // A batch that is tried again starts anew: only what gets further than ever counts.
        furthest = Math.max(furthest, progress.bytesDone + progress.operationsDone)
        onProgress?.(progress)
      },
      signal: AbortSignal.any([stalled.signal, ...(signal ? [signal] : []), ...(skip ? [skip] : [])]),
    })
    return null
  } catch (error) {
    if (signal?.aborted) throw toFerryError(error)
    // Aborted by ourselves, it may say what stood in the way; if not, we say why.
    const why = toFerryError(error)
    return why.code === 'ABORTED' && stalled.signal.aborted ? stalled.signal.reason : why
  } finally {
    ended.abort()
    await watching
  }
}
