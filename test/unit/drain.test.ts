// Draining: for as long as it gets anywhere, and no longer.
import { describe, expect, test } from '@jest/globals'
import { deferred, orAborted, type SimulatedClock, simulatedClock } from '../../src/base/async.js'
import { FerryError } from '../../src/base/errors.js'
import type { Progress } from '../../src/cache/tree-cache.js'
import { drain } from '../../src/drain.js'

const STALLED = 60_000
const at = (bytesDone: number): Progress => ({ bytesDone, bytesTotal: 1000, operationsDone: 0, operationsTotal: 1 })

/** Something to drain that ends when `work` does, and gives up when it is told to. */
const draining = (work: (progress: (bytes: number) => void, batch: () => void) => Promise<void>) => {
  let committed = 0
  return {
    committed: () => committed,
    sync: ({ onProgress, signal }: { onProgress: (progress: Progress) => void; signal: AbortSignal }) =>
      orAborted(
        work(
          bytes => onProgress(at(bytes)),
          () => void committed++,
        ),
        signal,
      ),
  }
}

const run = async <T>(clock: SimulatedClock, result: Promise<T>, ms: number): Promise<T> => {
  result.catch(() => {})
  await clock.advance(ms)
  return result
}

describe('draining', () => {
  test('ends when the remote has everything', async () => {
    const clock = simulatedClock()
    const result = drain(
      draining(() => clock.sleep(500)),
      { stalledMsMax: STALLED, clock },
    )
    expect(await run(clock, result, 1000)).toBeNull()
  })

  test('goes on for hours while bytes get through', async () => {
    const clock = simulatedClock()
    const what = draining(async progress => {
      for (let n = 0; n < 200; n++) {
        await clock.sleep(50_000)
        progress(n + 1)
      }
    })
    expect(await run(clock, drain(what, { stalledMsMax: STALLED, clock }), 200 * 50_000 + 1000)).toBeNull()
  })

  test('goes on while batches get through, though each begins anew', async () => {
    const clock = simulatedClock()
    const what = draining(async (progress, batch) => {
      for (let n = 0; n < 20; n++) {
        await clock.sleep(50_000)
        progress(10)
        batch()
      }
    })
    expect(await run(clock, drain(what, { stalledMsMax: STALLED, clock }), 20 * 50_000 + 1000)).toBeNull()
  })

  test('gives up when nothing gets through for that long, and says so', async () => {
    const clock = simulatedClock()
    const result = drain(
      draining(() => deferred().promise),
      { stalledMsMax: STALLED, clock },
    )
    const why = await run(clock, result, STALLED + 2000)
    expect(why).toMatchObject({ code: 'ABORTED', message: expect.stringContaining('nothing got through for 1m') })
    expect(clock.sleepers).toBe(0)
  })

  test('the same bytes again and again are no progress', async () => {
    const clock = simulatedClock()
    const what = draining(async progress => {
      for (;;) {
        for (const bytes of [1, 500, 900]) progress(bytes)
        await clock.sleep(10_000)
      }
    })
    const result = drain(what, { stalledMsMax: STALLED, clock })
    expect(await run(clock, result, 90_000)).toMatchObject({ code: 'ABORTED' })
  })

  test('says what stood in the way, if that is known', async () => {
    const clock = simulatedClock()
    const what = {
      committed: () => 0,
      sync: ({ signal }: { signal: AbortSignal }) =>
        new Promise<void>((_, reject) => {
          signal.addEventListener('abort', () => reject(new FerryError('UNREACHABLE', { detail: 'file:///x' })))
        }),
    }
    const result = drain(what, { stalledMsMax: STALLED, clock })
    expect(await run(clock, result, STALLED + 2000)).toMatchObject({ code: 'UNREACHABLE' })
  })

  test('is over at once when there is no hope', async () => {
    const what = draining(() => Promise.reject(new FerryError('LEASE_LOST')))
    expect(await drain(what, { stalledMsMax: STALLED })).toMatchObject({ code: 'LEASE_LOST' })
  })

  test('can be skipped, and given up', async () => {
    const never = draining(() => deferred().promise)
    const skip = new AbortController()
    setTimeout(() => skip.abort(new FerryError('ABORTED', { detail: 'twice' })), 20)
    expect(await drain(never, { stalledMsMax: STALLED, skip: skip.signal })).toMatchObject({
      message: 'aborted: twice',
    })
    const stop = new AbortController()
    setTimeout(() => stop.abort(), 20)
    await expect(drain(never, { stalledMsMax: STALLED, signal: stop.signal })).rejects.toMatchObject({
      code: 'ABORTED',
    })
  })

  test('without any time for it nothing is sent', async () => {
    const what = { committed: () => 0, sync: () => Promise.reject(new Error('was called')) }
    expect(await drain(what, { stalledMsMax: 0 })).toMatchObject({ code: 'ABORTED' })
  })
})
