import { describe, expect, test } from '@jest/globals'
import { simulatedClock } from '../../src/base/async.js'
import { FerryError } from '../../src/base/errors.js'
import { deadline } from '../../src/remote/deadline.js'
import { faulty } from '../../src/remote/faulty.js'
import { latency } from '../../src/remote/latency.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { retry } from '../../src/remote/retry.js'
import { wrap } from '../../src/remote/wrap.js'

describe('deadline', () => {
  test('a call that hangs ends with DEADLINE, exactly then', async () => {
    const clock = simulatedClock()
    const store = deadline(faulty(memStore(), { hangs: 1 }), { ms: 1000, clock })
    let error: unknown
    store.head('a').catch(thrown => (error = thrown))
    await clock.advance(999)
    expect(error).toBeUndefined()
    await clock.advance(1)
    expect(error).toMatchObject({ code: 'DEADLINE', message: expect.stringContaining('head took more than 1000 ms') })
    expect(clock.sleepers).toBe(0)
  })

  test('a remote that does not listen to its signal is left alone with it', async () => {
    const clock = simulatedClock()
    let signalled: AbortSignal | undefined
    const deaf = wrap(memStore(), async call => {
      signalled = call.signal
      return new Promise(() => {})
    })
    const answer = expect(deadline(deaf, { ms: 10, clock }).head('a')).rejects.toMatchObject({ code: 'DEADLINE' })
    await clock.advance(10)
    await answer
    expect(signalled?.aborted).toBe(true)
  })

  test('a late result, and a late failure, are dropped', async () => {
    const clock = simulatedClock()
    const blob = memBlob({ size: 10 })
    const slow = deadline(latency(blob, { rttMs: 100, clock }), { ms: 50, clock })
    const caller = new Uint8Array(10)
    const read = slow.read(0, 10).then(
      got => caller.set(got),
      error => expect(error.code).toBe('DEADLINE'),
    )
    await blob.write(0, new Uint8Array(10).fill(1))
    const failing = expect(slow.read(5, 10)).rejects.toMatchObject({ code: 'DEADLINE' })
    await clock.advance(200)
    await Promise.all([read, failing])
    expect(caller).toEqual(new Uint8Array(10))
  })

  test('who answers in time leaves no timer behind', async () => {
    const clock = simulatedClock()
    const store = deadline(latency(memStore(), { rttMs: 10, clock }), { ms: 1000, clock })
    const answer = store.put('a', new Uint8Array(3))
    await clock.advance(10)
    await answer
    expect(clock.sleepers).toBe(0)
  })

  test('the errors of the remote and the abort of the caller stay what they are', async () => {
    const store = deadline(faulty(memStore(), { hangs: 1, only: ['head'] }), { ms: 60_000 })
    await expect(store.get('none')).rejects.toMatchObject({ code: 'NOT_FOUND' })
    const controller = new AbortController()
    const answer = store.head('a', controller.signal)
    controller.abort()
    await expect(answer).rejects.toMatchObject({ code: 'ABORTED' })
    const outer = new AbortController()
    const other = store.head('a', outer.signal)
    outer.abort(new FerryError('CLOSED'))
    await expect(other).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('inside a retry, each attempt has its own', async () => {
    const clock = simulatedClock()
    let attempts = 0
    const flaky = wrap(memStore(), async (_, next) => (++attempts < 3 ? new Promise(() => {}) : next()))
    const answer = retry(deadline(flaky, { ms: 100, clock }), { clock }).head('a')
    await clock.advance(1000)
    expect(await answer).toBeNull()
    expect(attempts).toBe(3)
  })
})
