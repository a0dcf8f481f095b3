import { describe, expect, test } from '@jest/globals'
import { simulatedClock } from '../../src/base/async.js'
import { random } from '../../src/base/random.js'
import { latency } from '../../src/remote/latency.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { throttle } from '../../src/remote/throttle.js'

const MB = 1_000_000

/** When each call ended, in ms of the clock. */
const finished = (clock: { nowMs(): number }, calls: Promise<unknown>[]) =>
  Promise.all(calls.map(call => call.then(() => clock.nowMs())))

describe('throttle', () => {
  test('a line lets through what it says, each way for itself', async () => {
    const clock = simulatedClock()
    const blob = throttle(memBlob({ size: 100 * MB }), { upPerSecond: 10 * MB, downPerSecond: 20 * MB, clock })
    const up = finished(clock, [blob.write(0, new Uint8Array(5 * MB))])
    const down = finished(clock, [blob.read(0, 5 * MB)])
    await clock.advance(2000)
    const [[upMs], [downMs]] = await Promise.all([up, down])
    expect(Math.abs(upMs - 500)).toBeLessThan(10)
    expect(Math.abs(downMs - 250)).toBeLessThan(10)
  })

  test('many small requests are no faster than a large one', async () => {
    const clock = simulatedClock()
    const blob = throttle(memBlob({ size: 10 * MB }), { upPerSecond: MB, clock })
    const all = finished(
      clock,
      Array.from({ length: 1000 }, (_, i) => blob.write(i * 1000, new Uint8Array(1000))),
    )
    await clock.advance(2000)
    const last = Math.max(...(await all))
    expect(Math.abs(last - 1000)).toBeLessThan(10)
  })

  test('a small request does not wait until a large one is through', async () => {
    const clock = simulatedClock()
    const blob = throttle(memBlob({ size: 100 * MB }), { upPerSecond: MB, clock })
    const [large, small] = [
      finished(clock, [blob.write(0, new Uint8Array(8 * MB))]),
      finished(clock, [blob.write(0, new Uint8Array(1000))]),
    ]
    await clock.advance(10_000)
    expect((await small)[0]).toBeLessThan(200)
    expect(Math.abs((await large)[0] - 8000)).toBeLessThan(20)
  })

  test('equal requests share it equally', async () => {
    const clock = simulatedClock()
    const blob = throttle(memBlob({ size: 100 * MB }), { downPerSecond: MB, clock })
    const all = finished(
      clock,
      Array.from({ length: 4 }, () => blob.read(0, MB)),
    )
    await clock.advance(5000)
    for (const ms of await all) expect(ms).toBeGreaterThan(3700)
  })

  test('an idle line does not save up for long', async () => {
    const clock = simulatedClock()
    const blob = throttle(memBlob({ size: 100 * MB }), { upPerSecond: MB, clock })
    await clock.advance(60_000)
    const done = finished(clock, [blob.write(0, new Uint8Array(MB))])
    await clock.advance(2000)
    expect((await done)[0] - 60_000).toBeGreaterThan(980)
  })

  test('who is aborted leaves the line to the others', async () => {
    const clock = simulatedClock()
    const blob = throttle(memBlob({ size: 100 * MB }), { upPerSecond: MB, clock })
    const controller = new AbortController()
    const given = expect(blob.write(0, new Uint8Array(50 * MB), controller.signal)).rejects.toMatchObject({
      code: 'ABORTED',
    })
    const other = finished(clock, [blob.write(0, new Uint8Array(MB / 2))])
    await clock.advance(100)
    controller.abort()
    await given
    await clock.advance(2000)
    expect((await other)[0]).toBeLessThan(800)
  })

  test('looking costs nothing, and what is hidden goes over the same line', async () => {
    const clock = simulatedClock()
    const tree = throttle(memTree(), { upPerSecond: MB, downPerSecond: MB, clock })
    await tree.list('')
    await tree.stat('')
    expect(clock.sleepers).toBe(0)
    const done = finished(clock, [tree.hidden.put('a', new Uint8Array(MB))])
    await clock.advance(2000)
    expect((await done)[0]).toBeGreaterThan(980)
  })
})

describe('latency', () => {
  test('every call takes a round trip, many at once no longer, and half of it lies before the remote', async () => {
    const clock = simulatedClock()
    const plain = memTree()
    const tree = latency(plain, { rttMs: 100, clock })
    const made = finished(clock, [
      tree.make('d', { mode: 0o040755, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 }),
      tree.stat('x'),
      tree.hidden.list(''),
    ])
    await clock.advance(49)
    expect(await plain.stat('d')).toBeNull()
    await clock.advance(1)
    expect(await plain.stat('d')).not.toBeNull()
    await clock.advance(100)
    expect(await made).toEqual([100, 100, 100])
  })

  test('errors take as long as answers', async () => {
    const clock = simulatedClock()
    const tree = latency(memTree(), { rttMs: 40, clock })
    let at: number | undefined
    tree.read('none', { at: 0, length: 1 }).catch(() => (at = clock.nowMs()))
    await clock.advance(100)
    expect(at).toBe(40)
  })

  test('jitter comes with its seed', async () => {
    const run = async (seed: number) => {
      const clock = simulatedClock()
      const tree = latency(memTree(), { rttMs: 10, jitterMs: 10, random: random(seed), clock })
      const all = finished(
        clock,
        Array.from({ length: 20 }, () => tree.stat('')),
      )
      await clock.advance(100)
      return all
    }
    const times = await run(1)
    expect(await run(1)).toEqual(times)
    expect(await run(2)).not.toEqual(times)
    for (const ms of times) expect(ms >= 10 && ms <= 20).toBe(true)
    expect(new Set(times).size).toBeGreaterThan(10)
  })

  test('a call can be aborted on its way', async () => {
    const controller = new AbortController()
    const tree = latency(memTree(), { rttMs: 60_000 })
    const answer = tree.stat('', controller.signal)
    controller.abort()
    await expect(answer).rejects.toMatchObject({ code: 'ABORTED' })
  })
})
