// Reads that are asked for twice: when, how often, and what becomes of the one that is late.
import { describe, expect, test } from '@jest/globals'
import { Hedge } from '../../src/cache/hedge.js'

const pause = (ms: number) => new Promise(resolve => setTimeout(resolve, ms))
const never = new AbortController().signal
const asked = { bytes: 16_384, isAwaited: () => true, signal: never }

/** One that has seen many reads of a moment. */
async function experienced(): Promise<Hedge> {
  const hedge = new Hedge()
  for (let n = 0; n < 100; n++) await hedge.read(asked, async () => n)
  return hedge
}

/** The first request hangs until it is given up, the next ones answer. */
function hanging() {
  const signals: AbortSignal[] = []
  const read = (signal: AbortSignal) => {
    signals.push(signal)
    return signals.length > 1
      ? Promise.resolve('second')
      : new Promise<string>((_, reject) => signal.addEventListener('abort', () => reject(new Error('given up'))))
  }
  return { signals, read }
}

describe('a read that is silent', () => {
  test('is asked for a second time, and the first request is given up', async () => {
    const hedge = await experienced()
    const { signals, read } = hanging()
    expect(await hedge.read(asked, read)).toBe('second')
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, false])
    expect([hedge.asked, hedge.won]).toEqual([1, 1])
  })

  test('is answered by the first request if that is the faster one after all', async () => {
    const hedge = await experienced()
    const signals: AbortSignal[] = []
    const read = async (signal: AbortSignal) => {
      signals.push(signal)
      await pause(signals.length === 1 ? 60 : 10_000)
      return signals.length
    }
    await hedge.read(asked, read)
    expect(signals.map(({ aborted }) => aborted)).toEqual([false, true])
    expect([hedge.asked, hedge.won]).toEqual([1, 0])
  })

  test('is waited for while little is known of its kind', async () => {
    const hedge = await experienced()
    let requests = 0
    // Of this size there were none.
    await hedge.read({ ...asked, bytes: 1_000_000 }, async () => {
      requests++
      await pause(100)
    })
    expect(requests).toBe(1)
  })

  test('is not asked for twice while nobody waits for it', async () => {
    const hedge = await experienced()
    let awaited = false
    const { signals, read } = hanging()
    const reading = hedge.read({ ...asked, isAwaited: () => awaited }, read)
    await pause(150)
    expect(signals).toHaveLength(1)
    awaited = true
    expect(await reading).toBe('second')
  })

  test('costs a small share of all requests, whatever becomes of them', async () => {
    const hedge = await experienced()
    let requests = 0
    const all = Array.from({ length: 40 }, () =>
      hedge.read(asked, async () => {
        requests++
        await pause(80)
      }),
    )
    await Promise.all(all)
    expect(requests).toBeGreaterThan(40)
    expect(requests).toBeLessThanOrEqual(40 + 8)
    expect(hedge.asked).toBe(requests - 40)
  })

  test('fails when both requests have failed, and at once if there is only one', async () => {
    const hedge = await experienced()
    const fail = async () => {
      throw new Error('refused')
    }
    await expect(hedge.read(asked, fail)).rejects.toThrow('refused')
    let requests = 0
    const reading = hedge.read(asked, async () => {
      const mine = ++requests
      await pause(mine === 1 ? 50 : 100)
      throw new Error(`request ${mine}`)
    })
    await expect(reading).rejects.toThrow('request 2')
    expect(requests).toBe(2)
  })

  test('ends with those who wait for it', async () => {
    const hedge = await experienced()
    const giveUp = new AbortController()
    const { signals, read } = hanging()
    const reading = hedge.read({ ...asked, isAwaited: () => false, signal: giveUp.signal }, read)
    giveUp.abort()
    await expect(reading).rejects.toThrow('given up')
    expect(signals).toHaveLength(1)
  })
})
