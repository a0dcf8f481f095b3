import { describe, expect, test } from '@jest/globals'
import { simulatedClock } from '../../src/base/async.js'
import { type Code, codes, FerryError, isPermanent } from '../../src/base/errors.js'
import { random } from '../../src/base/random.js'
import { faulty } from '../../src/remote/faulty.js'
import { memStore } from '../../src/remote/mem-store.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { retry, temporaryCodes } from '../../src/remote/retry.js'
import { type Remote, wrap } from '../../src/remote/wrap.js'

const bytes = (text: string) => new Uint8Array(Buffer.from(text))

/** A remote whose first calls fail like this. */
const failing = <R extends Remote>(remote: R, ...errors: (Code | Error)[]) => {
  const calls: string[] = []
  const failingRemote = wrap(remote, async (call, next) => {
    calls.push(call.method)
    const error = errors.shift()
    if (error) throw error instanceof Error ? error : new FerryError(error)
    return next()
  })
  return { remote: failingRemote, calls }
}

describe('retry', () => {
  test('what will be said again is asked for less often', async () => {
    for (const [lasting, attempts] of [
      [true, 4],
      [false, 12],
    ] as const) {
      let asked = 0
      const remote = wrap(memStore() as Remote, async () => {
        asked++
        throw new FerryError('UNREACHABLE', { lasting })
      })
      await expect(
        retry(remote as ReturnType<typeof memStore>, { firstMs: 1, maxMs: 1 }).head('a'),
      ).rejects.toMatchObject({ code: 'UNREACHABLE' })
      expect(asked).toBe(attempts)
    }
  })

  test('asks again after temporary errors, waiting longer each time', async () => {
    const clock = simulatedClock()
    const { remote, calls } = failing(memStore(), 'UNREACHABLE', 'DEADLINE', 'IO')
    const store = retry(remote, { clock, random: random(1) })
    const answer = store.head('a')
    const atMs: number[] = []
    for (let seen = 0; calls.length < 4; await clock.advance(1)) {
      if (calls.length > seen) atMs.push(clock.nowMs())
      seen = calls.length
    }
    expect(await answer).toBeNull()
    const waits = [...atMs, clock.nowMs()].slice(1).map((ms, i) => ms - atMs[i])
    expect(waits).toHaveLength(3)
    waits.forEach((ms, i) => {
      expect(ms).toBeGreaterThanOrEqual(50 * 2 ** i)
      expect(ms).toBeLessThanOrEqual(100 * 2 ** i + 2)
    })
  })

  test('gives up after so many attempts, with the last error', async () => {
    const clock = simulatedClock()
    const { remote, calls } = failing(memStore(), 'UNREACHABLE', 'UNREACHABLE', 'DEADLINE', 'IO')
    const answer = expect(retry(remote, { clock, attempts: 3 }).head('a')).rejects.toMatchObject({ code: 'DEADLINE' })
    await clock.advance(60_000)
    await answer
    expect(calls).toHaveLength(3)
  })

  test('begins nothing after its time, and says what was wrong', async () => {
    const clock = simulatedClock()
    const { remote, calls } = failing(memStore(), ...Array<Code>(20).fill('UNREACHABLE'))
    const store = retry(remote, { clock, attempts: 20, firstMs: 100, maxMs: 100, withinMs: 350, random: random(1) })
    const answer = expect(store.head('a')).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await clock.advance(350)
    await answer
    // After waits of 50 to 100 ms each.
    expect(calls.length).toBeGreaterThanOrEqual(4)
    expect(calls.length).toBeLessThanOrEqual(7)
  })

  test('no permanent error is temporary, and no answer is', () => {
    for (const code of temporaryCodes) expect(isPermanent(new FerryError(code))).toBe(false)
    for (const code of ['NOT_FOUND', 'CONFLICT', 'STALE', 'NO_SPACE', 'CLOSED', 'ABORTED', 'LEASE_LOST'] as const)
      expect(temporaryCodes).not.toContain(code)
  })

  test.each((Object.keys(codes) as Code[]).filter(code => !temporaryCodes.includes(code)))(
    '%s is final',
    async code => {
      const { remote, calls } = failing(memStore(), code)
      await expect(retry(remote).get('a')).rejects.toMatchObject({ code })
      expect(calls).toHaveLength(1)
    },
  )

  test('a bug is final, too', async () => {
    const { remote, calls } = failing(memStore(), new TypeError('a bug'))
    await expect(retry(remote).get('a')).rejects.toThrow(TypeError)
    expect(calls).toHaveLength(1)
  })

  test('what might have been done is not done again', async () => {
    const node = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 }
    const attempts: [string, (tree: ReturnType<typeof memTree>) => Promise<unknown>][] = [
      ['make', tree => tree.make('f', node)],
      ['link', tree => tree.link('f', 'g')],
      ['rename', tree => tree.rename('f', 'g')],
      ['remove', tree => tree.remove('f')],
      ['put', tree => tree.hidden.put('a', bytes('x'), { ifAbsent: true })],
    ]
    for (const [method, attempt] of attempts) {
      const { remote, calls } = failing(memTree(), 'UNREACHABLE')
      await expect(attempt(retry(remote))).rejects.toMatchObject({ code: 'UNREACHABLE' })
      expect(calls).toEqual([method])
    }
  })

  test('an aborted call is not made again, and its wait ends at once', async () => {
    const controller = new AbortController()
    const { remote, calls } = failing(memStore(), 'UNREACHABLE', 'UNREACHABLE')
    const answer = retry(remote, { firstMs: 60_000 }).head('a', controller.signal)
    setTimeout(() => controller.abort(), 5)
    await expect(answer).rejects.toMatchObject({ code: 'ABORTED' })
    expect(calls).toHaveLength(1)
  })

  test('a remote that fails half of the time is as good as a sound one', async () => {
    const clock = simulatedClock()
    const bad = faulty(memStore(), { seed: 5, errorRate: 0.5 })
    const store = retry(bad, { clock, attempts: 30, random: random(2) })
    const work = (async () => {
      for (let i = 0; i < 100; i++) await store.put(`o${i}`, bytes(String(i)))
      return (await store.list('')).length
    })()
    let done = false
    work.then(() => (done = true))
    while (!done) await clock.advance(10_000)
    expect(await work).toBe(100)
    expect(bad.faults.errors).toBeGreaterThan(50)
  })
})
