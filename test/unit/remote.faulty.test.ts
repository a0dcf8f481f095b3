import { describe, expect, test } from '@jest/globals'
import { simulatedClock } from '../../src/base/async.js'
import { faulty } from '../../src/remote/faulty.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { parseSimulation, simulate } from '../../src/remote/simulate.js'

const bytes = (text: string) => new Uint8Array(Buffer.from(text))
const node = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 }
const outcome = (call: Promise<unknown>) =>
  call.then(
    () => 'done',
    (error: { code: string }) => error.code,
  )

describe('faulty', () => {
  test('the same seed and the same calls give the same faults', async () => {
    const run = async (seed: number) => {
      const store = faulty(memStore(), { seed, errorRate: 0.2, shortReads: 0.2, wrongData: 0.2 })
      const log: string[] = []
      for (let i = 0; i < 100; i++) {
        log.push(await outcome(store.put(`o${i % 7}`, bytes(`content ${i}`))))
        log.push(
          await store.get(`o${i % 7}`).then(
            got => Buffer.from(got).toString(),
            error => error.code,
          ),
        )
      }
      return log
    }
    const log = await run(11)
    expect(await run(11)).toEqual(log)
    expect(await run(12)).not.toEqual(log)
    expect(new Set(log).size).toBeGreaterThan(50)
  })

  test('of failed calls, half were done and half were not', async () => {
    const plain = memStore()
    const store = faulty(plain, { seed: 3, errorRate: 1 })
    for (let i = 0; i < 200; i++) expect(await outcome(store.put(`o${i}`, bytes('x')))).toBe('UNREACHABLE')
    const done = (await plain.list('')).length
    expect(done).toBeGreaterThan(70)
    expect(done).toBeLessThan(130)
    expect(store.faults).toMatchObject({ calls: 200, changes: 200, errors: 200, crashed: false })
  })

  test('about as many errors as was asked for, of the code that was asked for', async () => {
    const store = faulty(memStore(), { seed: 4, errorRate: 0.1, errorCode: 'NO_SPACE' })
    const outcomes = new Map<string, number>()
    for (let i = 0; i < 2000; i++) {
      const one = await outcome(store.head('a'))
      outcomes.set(one, (outcomes.get(one) ?? 0) + 1)
    }
    expect([...outcomes.keys()].sort()).toEqual(['NO_SPACE', 'done'])
    expect(Math.abs(outcomes.get('NO_SPACE')! - 200)).toBeLessThan(50)
  })

  test('a torn write leaves a prefix', async () => {
    const plain = memTree()
    await plain.make('f', node)
    const tree = faulty(plain, { seed: 5, tornWrites: 1 })
    const lengths = new Set<number>()
    for (let i = 0; i < 50; i++) {
      await plain.truncate('f', 0)
      expect(await outcome(tree.write('f', 0, new Uint8Array(100).fill(7)))).toBe('UNREACHABLE')
      const got = await plain.read('f', { at: 0, length: 1000 })
      expect(got.length).toBeLessThan(100)
      expect(got.every(byte => byte === 7)).toBe(true)
      lengths.add(got.length)
    }
    expect(lengths.size).toBeGreaterThan(10)
    // An object is never half visible, so a put is not torn.
    expect(await outcome(tree.hidden.put('a', bytes('whole')))).toBe('done')
  })

  test('short reads and wrong bytes leave the remote alone', async () => {
    const plain = memBlob({ size: 1000 })
    const short = faulty(plain, { seed: 6, shortReads: 1 })
    expect((await short.read(0, 1000)).length).toBeLessThan(1000)
    const wrong = faulty(plain, { seed: 6, wrongData: 1 })
    const got = await wrong.read(0, 1000)
    expect(got.filter(byte => byte !== 0)).toHaveLength(1)
    expect((await plain.read(0, 1000)).every(byte => byte === 0)).toBe(true)
    expect([short.faults.shortReads, wrong.faults.wrongData]).toEqual([1, 1])
  })

  test('a call that hangs ends when it is aborted', async () => {
    const store = faulty(memStore(), { hangs: 1 })
    const controller = new AbortController()
    const hanging = outcome(store.head('a', controller.signal))
    expect(await Promise.race([hanging, new Promise(resolve => setTimeout(resolve, 20, 'hangs'))])).toBe('hangs')
    controller.abort()
    expect(await hanging).toBe('ABORTED')
  })

  test('only what was asked for goes wrong', async () => {
    const store = faulty(memStore(), { errorRate: 1, only: ['put'] })
    expect(await outcome(store.head('a'))).toBe('done')
    expect(await outcome(store.put('a', bytes('x')))).toBe('UNREACHABLE')
  })

  test('after n changes the host is dead, for what is hidden, too', async () => {
    const plain = memTree()
    const tree = faulty(plain, { crashAfter: 3 })
    await tree.make('f', node)
    await tree.stat('f')
    await tree.hidden.put('a', bytes('x'))
    await tree.write('f', 0, bytes('123'))
    for (const call of [tree.stat('f'), tree.write('f', 0, bytes('4')), tree.hidden.get('a'), tree.list('')])
      expect(await outcome(call)).toBe('UNREACHABLE')
    expect(tree.faults).toMatchObject({ crashed: true, changes: 3, calls: 8 })
    expect(Buffer.from(await plain.read('f', { at: 0, length: 9 })).toString()).toBe('123')
  })

  test('the last change can be torn, or not be done at all', async () => {
    const plain = memTree()
    const tree = faulty(plain, { seed: 9, crashAfter: 2, crashTorn: true })
    await tree.make('f', node)
    expect(await outcome(tree.write('f', 0, new Uint8Array(1000)))).toBe('UNREACHABLE')
    expect((await plain.stat('f'))!.size).toBeLessThan(1000)
    const other = faulty(plain, { crashAfter: 1, crashTorn: true })
    expect(await outcome(other.rename('f', 'g'))).toBe('UNREACHABLE')
    expect(await plain.stat('g')).toBeNull()
  })

  test('answers that are on their way when the host dies are lost', async () => {
    const tree = faulty(memTree(), { crashAfter: 1 })
    const calls = [tree.stat(''), tree.make('f', node), tree.stat('')]
    expect(await Promise.all(calls.map(outcome))).toEqual(['UNREACHABLE', 'done', 'UNREACHABLE'])
  })

  test('crashAfter 0 is dead from the beginning', async () => {
    expect(await outcome(faulty(memTree(), { crashAfter: 0 }).stat(''))).toBe('UNREACHABLE')
  })

  test('it can be down for a while', async () => {
    const store = faulty(memStore())
    store.faults.down = true
    expect(await outcome(store.put('a', bytes('x')))).toBe('UNREACHABLE')
    store.faults.down = false
    expect(await outcome(store.get('a'))).toBe('NOT_FOUND')
  })
})

describe('simulate', () => {
  test('the text of the option', () => {
    expect(parseSimulation('rtt=20ms,rate=25M,errors=0.01,seed=7')).toEqual({
      ...{ rttMs: 20, upPerSecond: 25 * 1024 ** 2, downPerSecond: 25 * 1024 ** 2 },
      ...{ errorRate: 0.01, seed: 7 },
    })
    expect(parseSimulation('jitter=1s, up=1K,down=2K,hang=1,short=0')).toEqual({
      ...{ jitterMs: 1000, upPerSecond: 1024, downPerSecond: 2048 },
      ...{ hangs: 1, shortReads: 0 },
    })
  })

  test.each([
    ['', 'simulate: "" is not one of rtt=, jitter=, rate=, up=, down=, errors=, hang=, short=, seed='],
    ['rtt', '"rtt" is not one of'],
    ['foo=1', '"foo=1" is not one of'],
    ['toString=1', 'is not one of'],
    ['rtt=20', 'simulate: rtt: "20" is not a time'],
    ['rate=fast', 'simulate: rate: "fast" is not a size'],
    ['rate=0', 'simulate: rate: a line of 0 bytes'],
    ['errors=2', 'simulate: errors: "2" is not a probability from 0 to 1'],
    ['errors=', 'is not a probability'],
    ['seed=x', 'simulate: seed: "x" is not a whole number'],
  ])('%j is refused', (text, message) => {
    expect(() => parseSimulation(text)).toThrow(message)
    expect(() => parseSimulation(text)).toThrow(/^bad usage: [^\n]*$/)
  })

  test('it is as far, as narrow and as bad as it was asked to be, and the same again with its seed', async () => {
    const run = async () => {
      const clock = simulatedClock()
      const tree = simulate(memTree(), parseSimulation('rtt=20ms,jitter=5ms,rate=1M,errors=0.2,seed=7'), clock)
      const log: string[] = []
      const work = (async () => {
        for (let i = 0; i < 20; i++)
          log.push(
            `${await outcome(tree.hidden.put(`o${i}`, new Uint8Array(1024 ** 2 / 10)))} at ${clock.nowMs().toFixed(3)}`,
          )
      })()
      await clock.advance(60_000)
      await work
      return log
    }
    const log = await run()
    expect(await run()).toEqual(log)
    expect(log.filter(line => line.startsWith('UNREACHABLE')).length).toBeGreaterThan(0)
    const lastMs = Number(log.at(-1)!.split(' at ')[1])
    // Between two puts the line saves up for a few ms.
    expect(lastMs).toBeGreaterThan(20 * 115)
    expect(lastMs).toBeLessThan(20 * 130)
  })

  test('nothing asked for, nothing around it', () => {
    const plain = memTree()
    expect(simulate(plain, {})).toBe(plain)
  })
})
