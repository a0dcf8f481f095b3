// Who may write, and when: the lease is had at once, waited for, or taken later.
import { afterEach, beforeEach, expect, jest, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { Claiming, type ClaimingOptions } from '../../src/cache/claiming.js'
import type { Holder } from '../../src/remote/commits.js'

const LEASE_MS = 10_000
const DEADLINE_MS = 30_000

beforeEach(() => void jest.useFakeTimers())
afterEach(() => void jest.useRealTimers())

const holder = (more: Partial<Holder> = {}): Holder => ({
  ...{ host: 'there', pid: 7, shared: false, epoch: 1, sinceMs: 0 },
  ...more,
})

function make({
  answers,
  canGoOn = false,
  held = holder(),
  ...options
}: Partial<ClaimingOptions> & { answers: (FerryError | null)[]; canGoOn?: boolean; held?: Holder | null }) {
  const asked: number[] = []
  const begunMs = performance.now()
  const claiming = new Claiming(
    { leaseMs: LEASE_MS, deadlineMs: DEADLINE_MS, shared: false, host: 'here', ...options },
    {
      async claim() {
        asked.push(performance.now() - begunMs)
        const answer = answers.length > 1 ? answers.shift() : answers[0]
        if (answer) throw answer
      },
      holder: async () => held,
      canGoOn: async () => canGoOn,
    },
  )
  return { claiming, asked }
}

/** What it comes to, and after how long. */
async function outcome(claiming: Claiming): Promise<{ error: FerryError | null; tookMs: number }> {
  const begunMs = performance.now()
  let done: { error: FerryError | null; tookMs: number } | undefined
  claiming.claim().then(
    () => {
      done = { error: null, tookMs: performance.now() - begunMs }
    },
    error => {
      done = { error, tookMs: performance.now() - begunMs }
    },
  )
  while (!done) await jest.advanceTimersByTimeAsync(50)
  return done
}

const unreachable = new FerryError('UNREACHABLE')
const isHeld = new FerryError('LEASE_HELD')

test('it is had at once', async () => {
  const { claiming, asked } = make({ answers: [null] })
  expect(await outcome(claiming)).toMatchObject({ error: null })
  expect([asked, claiming.problem]).toEqual([[0], null])
})

test('with nothing to go on with, a remote that does not answer is asked until the deadline', async () => {
  const { claiming, asked } = make({ answers: [unreachable] })
  const { error, tookMs } = await outcome(claiming)
  expect(error).toBe(unreachable)
  expect(tookMs).toBeGreaterThan(DEADLINE_MS)
  expect(tookMs).toBeLessThan(DEADLINE_MS + 2_000)
  expect(asked.length).toBeGreaterThan(30)
  expect((await outcome(make({ answers: [unreachable, null] }).claiming)).error).toBeNull()
  // Nothing that passes.
  expect((await outcome(make({ answers: [new FerryError('FORBIDDEN')] }).claiming)).error).toMatchObject({
    code: 'FORBIDDEN',
  })
})

test('with something to go on with, it is taken as soon as the remote answers', async () => {
  const { claiming, asked } = make({ answers: [unreachable, isHeld, null], canGoOn: true })
  expect(await outcome(claiming)).toMatchObject({ error: null })
  expect(claiming.problem).toBe(unreachable)
  await jest.advanceTimersByTimeAsync(2_000)
  expect(claiming.problem).toBe(isHeld)
  await jest.advanceTimersByTimeAsync(2_000)
  expect(claiming.problem).toBeNull()
  await jest.advanceTimersByTimeAsync(20_000)
  expect(asked.length).toBe(3)
  // But for what will not pass.
  const { claiming: other } = make({ answers: [new FerryError('TOO_NEW')], canGoOn: true })
  expect((await outcome(other)).error).toMatchObject({ code: 'TOO_NEW' })
})

test('closed, it asks no more', async () => {
  const { claiming, asked } = make({ answers: [unreachable], canGoOn: true })
  await outcome(claiming)
  claiming.close()
  await jest.advanceTimersByTimeAsync(20_000)
  expect(asked.length).toBe(1)
  const waiting = make({ answers: [unreachable] }).claiming
  const failure = waiting.claim().catch((error: unknown) => error)
  await jest.advanceTimersByTimeAsync(10)
  waiting.close()
  expect(await failure).toMatchObject({ code: 'ABORTED' })
})

test('who has it on this host lives; one on another host is waited for as long as a lease', async () => {
  const here = await outcome(make({ answers: [isHeld], held: holder({ host: 'here' }) }).claiming)
  expect(here.error?.message).toMatch(/by pid 7 on here; --take-over takes it/)
  expect(here.tookMs).toBeLessThan(1_000)
  const there = await outcome(make({ answers: [isHeld] }).claiming)
  expect(there.error).toMatchObject({ code: 'LEASE_HELD' })
  expect(there.tookMs).toBeGreaterThan(LEASE_MS * 1.2)
  expect(there.tookMs).toBeLessThan(LEASE_MS * 1.2 + 2_500)
  expect((await outcome(make({ answers: [isHeld, null] }).claiming)).error).toBeNull()
  // He may just have left.
  expect((await outcome(make({ answers: [isHeld, null], held: null }).claiming)).error).toBeNull()
})

test('who takes turns need not have it now', async () => {
  const inTurns = make({ answers: [isHeld], held: holder({ shared: true }), shared: true })
  expect((await outcome(inTurns.claiming)).error).toBeNull()
  const alone = make({ answers: [isHeld], held: holder({ shared: true }) })
  expect((await outcome(alone.claiming)).error).toMatchObject({ code: 'LEASE_HELD' })
  const later = make({ answers: [unreachable], canGoOn: true, shared: true })
  expect((await outcome(later.claiming)).error).toBeNull()
  await jest.advanceTimersByTimeAsync(20_000)
  expect([later.asked.length, later.claiming.problem]).toEqual([1, null])
})
