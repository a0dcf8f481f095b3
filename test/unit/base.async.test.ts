import { describe, expect, test } from '@jest/globals'
import {
  backoff,
  deferred,
  KeyedMutex,
  linkedAbort,
  mapLimit,
  orAborted,
  simulatedClock,
  sleep,
} from '../../src/base/async.js'
import { FerryError } from '../../src/base/errors.js'
import { random } from '../../src/base/random.js'

describe('waiting', () => {
  test('a sleep can be aborted, before and while it lasts', async () => {
    await expect(sleep(60_000, AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' })
    const controller = new AbortController()
    const asleep = sleep(60_000, controller.signal)
    controller.abort(new FerryError('DEADLINE'))
    await expect(asleep).rejects.toMatchObject({ code: 'DEADLINE' })
    await sleep(1)
  })

  test('orAborted gives up on work that goes on', async () => {
    const controller = new AbortController()
    const work = deferred<number>()
    const either = orAborted(work.promise, controller.signal)
    controller.abort()
    await expect(either).rejects.toMatchObject({ code: 'ABORTED' })
    work.reject(new Error('nobody must have to catch this'))
    await expect(orAborted(Promise.resolve(5), new AbortController().signal)).resolves.toBe(5)
    await expect(orAborted(Promise.reject(new Error('unseen')), AbortSignal.abort())).rejects.toMatchObject({
      code: 'ABORTED',
    })
  })

  test('a linked controller follows its signal, until it is unlinked', () => {
    const outer = new AbortController()
    const [one, other] = [linkedAbort(outer.signal), linkedAbort(outer.signal)]
    other.unlink()
    outer.abort('why')
    expect(one.controller.signal.reason).toBe('why')
    expect(other.controller.signal.aborted).toBe(false)
    expect(linkedAbort(outer.signal).controller.signal.aborted).toBe(true)
  })

  test('a simulated clock wakes sleepers in the order of their time', async () => {
    const clock = simulatedClock()
    const woken: string[] = []
    const nap = async (name: string, ms: number) => {
      await clock.sleep(ms)
      woken.push(`${name} at ${clock.nowMs()}`)
    }
    const all = [nap('b', 20), nap('a', 10), nap('c', 30), nap('a too', 10).then(() => nap('d', 5))]
    await clock.advance(20)
    expect(woken).toEqual(['a at 10', 'a too at 10', 'd at 15', 'b at 20'])
    expect(clock.sleepers).toBe(1)
    await clock.advance(1000)
    await Promise.all(all)
    expect(clock.nowMs()).toBe(1020)
  })

  test('backoff doubles up to its limit, with half of it left to chance', () => {
    const wait = backoff({ firstMs: 100, maxMs: 1000, random: random(1) })
    for (let attempt = 0; attempt < 20; attempt++) {
      const wholeMs = Math.min(1000, 100 * 2 ** attempt)
      const ms = wait(attempt)
      expect(ms).toBeGreaterThanOrEqual(wholeMs / 2)
      expect(ms).toBeLessThanOrEqual(wholeMs)
    }
    expect(Number.isFinite(wait(5000))).toBe(true)
  })
})

describe('many at once', () => {
  test('mapLimit keeps to its limit and to the order', async () => {
    let running = 0
    let most = 0
    const doubled = await mapLimit([5, 1, 3, 2, 4], 2, async item => {
      most = Math.max(most, ++running)
      await sleep(item)
      running--
      return item * 2
    })
    expect(doubled).toEqual([10, 2, 6, 4, 8])
    expect(most).toBe(2)
    expect(await mapLimit([], 4, async () => 1)).toEqual([])
  })

  test('mapLimit begins nothing new after an error', async () => {
    let begun = 0
    const work = mapLimit(Array.from({ length: 100 }), 4, async () => {
      if (++begun === 3) throw new Error('third')
      await sleep(1)
    })
    await expect(work).rejects.toThrow('third')
    await sleep(10)
    expect(begun).toBeLessThanOrEqual(5)
  })

  test('a mutex keeps the order per key, also after a failure', async () => {
    const mutex = new KeyedMutex()
    const log: string[] = []
    const job = (key: string, name: string, ms: number) =>
      mutex.run(key, async () => {
        log.push(`${name} begins`)
        await sleep(ms)
        log.push(`${name} ends`)
        if (name === 'a1') throw new Error('a1 fails')
      })
    const all = await Promise.allSettled([job('a', 'a1', 20), job('a', 'a2', 1), job('b', 'b1', 1)])
    expect(all.map(one => one.status)).toEqual(['rejected', 'fulfilled', 'fulfilled'])
    expect(log).toEqual(['a1 begins', 'b1 begins', 'b1 ends', 'a1 ends', 'a2 begins', 'a2 ends'])
  })
})
