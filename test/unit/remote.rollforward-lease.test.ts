import { describe, expect, test } from '@jest/globals'
import type { Claim } from '../../src/remote/commits.js'
import { isDead, thisProcess } from '../../src/remote/holder.js'
import { encode, type LeaseRecord } from '../../src/remote/intent.js'
import { Lease } from '../../src/remote/lease.js'
import { type MemStore, memStore } from '../../src/remote/mem-store.js'
import type { Store, StoreChange } from '../../src/remote/store.js'

const claimOf = (writer: string, more: Partial<Claim> = {}): Claim => ({
  ...{ writer, host: 'here', bootId: 'boot', pid: 1, startTime: 1, leaseMs: 30_000, takeOver: false },
  ...more,
})

/** An opener of the chain; `clock` is its own. */
function opener(store: Store, { alive = true, clock = { ms: 0 } } = {}) {
  return {
    lease: new Lease<StoreChange>(store, { now: () => clock.ms, wallMs: () => 1_000, alive: () => alive }),
    clock,
  }
}

const intent = (writer: string, batch: number): Parameters<Lease<StoreChange>['append']>[0] => ({
  ...{ kind: 'intent', writer, batch, cutAtMs: 0, changes: [], refused: [], packed: [] },
})

const numbersOf = async (store: MemStore) => (await store.list('log/')).map(({ name }) => Number(name.slice(4)))

async function commit(lease: Lease<StoreChange>, writer: string, batch: number): Promise<void> {
  await lease.append(intent(writer, batch))
  await lease.append({ kind: 'done', writer, batch })
  await lease.prune({ now: true })
}

describe('the lease', () => {
  test('is held until it is released', async () => {
    const store = memStore()
    const { lease: one } = opener(store)
    expect(await one.holder()).toBeNull()
    expect(await one.take(claimOf('w'))).toBeNull()
    expect(await one.holder()).toEqual({ host: 'here', pid: 1, epoch: 1, sinceMs: 1_000, shared: false })
    const { lease: other } = opener(store)
    await expect(other.take(claimOf('x', { pid: 2 }))).rejects.toMatchObject({
      code: 'LEASE_HELD',
      message: expect.stringMatching(/here, process 1, since 1970-01-01T00:00:01.000Z, epoch 1/),
    })
    await one.release()
    expect(await one.holder()).toBeNull()
    await other.take(claimOf('x', { pid: 2 }))
    expect(other.epoch).toBe(2)
    await expect(one.renew()).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })

  test('tries whether the store refuses to put what is there', async () => {
    const { lease } = opener(memStore())
    expect(lease.exclusive).toBeNull()
    await lease.take(claimOf('w'))
    expect(lease.exclusive).toBe(true)

    const store = memStore()
    const { lease: unsafe } = opener({ ...store, put: (name, bytes) => store.put(name, bytes) })
    await unsafe.take(claimOf('w'))
    expect(unsafe.exclusive).toBe(false)
    expect(await unsafe.holder()).toMatchObject({ epoch: 1 })
  })

  test('runs out when nothing of it changed for its whole length, on the clock of who waits', async () => {
    const store = memStore()
    const { lease: holder } = opener(store)
    await holder.take(claimOf('w', { leaseMs: 9_000 }))
    const { lease: waiting, clock } = opener(store)
    const wait = async (ms: number) => {
      clock.ms += ms
      return waiting.take(claimOf('x', { pid: 2, leaseMs: 1 })).then(
        () => 'taken',
        error => error.code,
      )
    }
    expect(await wait(1_000_000)).toBe('LEASE_HELD')
    expect(await wait(8_999)).toBe('LEASE_HELD')
    await holder.renew()
    expect(await wait(8_999)).toBe('LEASE_HELD')
    expect(await wait(8_999)).toBe('LEASE_HELD')
    await holder.append(intent('w', 1))
    expect(await wait(8_999)).toBe('LEASE_HELD')
    expect(await wait(9_000)).toBe('taken')
    await expect(holder.renew()).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(waiting.haunted).toBe(true)
  })

  test('of a process that is dead is taken at once', async () => {
    const store = memStore()
    const { lease: holder } = opener(store)
    await holder.take(claimOf('w'))
    await holder.append(intent('w', 1))
    const { lease: heir } = opener(store, { alive: false })
    expect(await heir.take(claimOf('x', { pid: 2 }))).toBeNull()
    expect(heir.pending?.record.batch).toBe(1)
    expect(heir.haunted).toBe(false)
  })

  test('who is dead: not on this boot any more, or the same cache directory on another boot', () => {
    const holder = claimOf('w')
    const alive = () => true
    const dead = () => false
    expect(isDead(holder, claimOf('x'), alive)).toBe(false)
    expect(isDead(holder, claimOf('x'), dead)).toBe(true)
    expect(isDead(holder, claimOf('x', { host: 'there' }), dead)).toBe(false)
    expect(isDead(holder, claimOf('x', { bootId: 'later' }), alive)).toBe(false)
    expect(isDead(holder, claimOf('w', { bootId: 'later' }), alive)).toBe(true)
    const self = { ...holder, ...thisProcess() }
    expect(isDead(self, self)).toBe(false)
    expect(isDead({ ...self, startTime: self.startTime + 1 }, self)).toBe(true)
    expect(isDead({ ...self, pid: 2 ** 22 + 1 }, self)).toBe(true)
  })

  test('of many who try at once goes to one', async () => {
    const store = memStore()
    const openers = Array.from({ length: 8 }, () => opener(store).lease)
    const results = await Promise.allSettled(openers.map((lease, pid) => lease.take(claimOf(`w${pid}`, { pid }))))
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    const held = openers.filter(lease => lease.held)
    expect(held).toHaveLength(1)
    expect(held[0].epoch).toBe(1)
  })

  test('of a live holder yields to whoever takes it over, and the next record of the old one finds its number taken', async () => {
    const store = memStore()
    const { lease: old } = opener(store)
    await old.take(claimOf('w'))
    const { lease: heir } = opener(store)
    await heir.take(claimOf('x', { pid: 2, takeOver: true }))
    expect(heir.graceMs).toBe(10_000)
    await expect(old.append(intent('w', 1))).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(old.held).toBe(false)
    expect((await heir.read()).head?.record.kind).toBe('lease')
  })

  test('is looked at again before a step when a third of it has passed', async () => {
    const store = memStore()
    const { lease: old, clock } = opener(store)
    await old.take(claimOf('w'))
    const { lease: heir } = opener(store)
    await heir.take(claimOf('x', { pid: 2, takeOver: true }))
    clock.ms = 10_000
    await old.guard()
    clock.ms = 10_001
    await expect(old.guard()).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })
})

describe('the chain', () => {
  test('tells a writer its newest committed batch, however many others wrote since', async () => {
    const store = memStore()
    for (let i = 0; i < 60; i++) {
      const { lease } = opener(store, { alive: i % 2 === 0 })
      expect(await lease.take(claimOf(`w${i}`, { takeOver: true }))).toBeNull()
      for (let batch = 1; batch <= 1 + (i % 3); batch++) await commit(lease, `w${i}`, batch)
      if (i % 3 === 0) await lease.release()
    }
    for (let i = 0; i < 60; i++) {
      const { lease } = opener(store, { alive: false })
      expect([i, await lease.take(claimOf(`w${i}`))]).toEqual([i, 1 + (i % 3)])
    }
  })

  test('stays short: one batch after another leaves two records, or three', async () => {
    const store = memStore()
    const { lease } = opener(store)
    await lease.take(claimOf('w'))
    for (let batch = 1; batch <= 20; batch++) {
      await commit(lease, 'w', batch)
      expect((await numbersOf(store)).length).toBeLessThanOrEqual(3)
    }
  })

  test('keeps in the way of a writer that was overtaken the two numbers it may still try, for ever', async () => {
    const store = memStore()
    const { lease: asleep } = opener(store)
    await asleep.take(claimOf('w'))
    await commit(asleep, 'w', 1)
    const { lease: alsoAsleep } = opener(store)
    await alsoAsleep.take(claimOf('x', { pid: 2, takeOver: true }))
    await commit(alsoAsleep, 'x', 1)
    for (let pid = 3; pid < 40; pid++) {
      const { lease } = opener(store)
      await lease.take(claimOf('y', { pid, takeOver: pid === 3 }))
      await commit(lease, 'y', pid)
      await lease.prune({ now: true })
      await lease.release()
    }
    // Two for each of the two, and those of the last epoch.
    expect((await numbersOf(store)).length).toBeLessThanOrEqual(7)
    await expect(asleep.append(intent('w', 2))).rejects.toMatchObject({ code: 'LEASE_LOST' })
    await expect(alsoAsleep.append(intent('x', 2))).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })

  test('does not believe in a lease that was put into a hole', async () => {
    const store = memStore()
    const { lease: first } = opener(store)
    await first.take(claimOf('w'))
    await first.release()
    // Whoever read the chain now and falls asleep would put number 3.
    const { lease: late } = opener(store)
    const read = late.read.bind(late)
    const before = await read()
    for (let i = 0; i < 5; i++) {
      const { lease } = opener(store)
      await lease.take(claimOf('y', { pid: i }))
      await commit(lease, 'y', i)
      await lease.prune({ now: true })
      if (i < 4) await lease.release()
    }
    expect(await numbersOf(store)).not.toContain(3)
    let reads = 0
    late.read = async signal => (reads++ === 0 ? before : read(signal))
    await expect(late.take(claimOf('z', { pid: 99 }))).rejects.toMatchObject({ code: 'LEASE_HELD' })
    expect(late.held).toBe(false)
    expect(await numbersOf(store)).toContain(3)
    expect((await read()).head!.record.kind).toBe('done')
  })

  test('takes the answer that was lost for what it was: one record, not two', async () => {
    const store = memStore()
    let lose = false
    const lossy = new Proxy(store, {
      get(target, key) {
        const value = Reflect.get(target, key)
        if (key !== 'put') return value
        return async (...args: Parameters<MemStore['put']>) => {
          const version = await target.put(...args)
          if (lose) throw new Error('lost')
          return version
        }
      },
    })
    const { lease } = opener(lossy)
    await lease.take(claimOf('w'))
    lose = true
    await expect(lease.append(intent('w', 1))).rejects.toThrow('lost')
    lose = false
    expect(await lease.append(intent('w', 1))).toBe(true)
    expect(lease.pending?.record.batch).toBe(1)
    lose = true
    await expect(lease.append({ kind: 'done', writer: 'w', batch: 1 })).rejects.toThrow('lost')
    lose = false
    // Something else comes next: first it must know what became of the last.
    expect(await lease.append(intent('w', 2))).toBe(false)
    expect(lease.pending).toBeNull()
    expect(await lease.append(intent('w', 2))).toBe(true)
    expect(await numbersOf(store)).toEqual([1, 2, 3, 4])
  })

  test('a pending intent outlives a release and any number of leases', async () => {
    const store = memStore()
    const { lease: first } = opener(store)
    await first.take(claimOf('w'))
    await first.append(intent('w', 1))
    await first.release()
    for (let i = 0; i < 5; i++) {
      const { lease } = opener(store, { alive: i % 2 === 1 })
      expect(await lease.take(claimOf('w', { pid: i, takeOver: true }))).toBe(1)
      expect(lease.pending?.record.batch).toBe(1)
      expect(lease.haunted).toBe(i > 0)
      await lease.prune({ now: true })
    }
  })

  test('refuses what a newer version wrote, and what is damaged, by name', async () => {
    const store = memStore()
    const { lease } = opener(store)
    await lease.take(claimOf('w'))
    const name = 'log/0000000000000001'
    const bytes = await store.get(name)
    const newer = bytes.slice()
    newer[5] = 2
    await store.put(name, newer)
    await expect(opener(store).lease.read()).rejects.toMatchObject({
      code: 'TOO_NEW',
      message: expect.stringContaining('log/0000000000000001 has format 2.0'),
    })
    const featured = bytes.slice()
    featured[11] = 4
    await store.put(name, featured)
    await expect(opener(store).lease.read()).rejects.toMatchObject({ code: 'TOO_NEW' })
    for (let at = 0; at < bytes.length; at++) {
      if (at >= 4 && at < 12) continue
      const damaged = bytes.slice()
      damaged[at] ^= 0x10
      await store.put(name, damaged)
      await expect(opener(store).lease.read()).rejects.toMatchObject({
        code: expect.stringMatching(at < 4 ? /BAD_FORMAT/ : /CORRUPT/),
      })
    }
    for (const length of [0, 1, 19, 20, bytes.length - 1]) {
      await store.put(name, bytes.slice(0, length))
      await expect(opener(store).lease.read()).rejects.toMatchObject({ code: 'CORRUPT' })
    }
  })

  test('remembers no more than its bounds', async () => {
    const store = memStore()
    const { lease } = opener(store)
    await lease.take(claimOf('w'))
    const record = (await lease.read()).head!.record as LeaseRecord
    const many = {
      ...record,
      committed: Array.from({ length: 64 }, (_, i) => [`w${i}`, i]),
      barriers: Array.from({ length: 2_000 }, (_, i) => -i),
    }
    await store.put('log/0000000000000001', encode(many))
    const { lease: heir } = opener(store)
    await heir.take(claimOf('x', { takeOver: true }))
    await commit(heir, 'x', 1)
    await heir.release()
    const { head, lease: newest } = await heir.read()
    expect(newest!.barriers).toHaveLength(2_000)
    expect((head!.record as unknown as LeaseRecord).committed).toHaveLength(64)
    expect((head!.record as unknown as LeaseRecord).committed.at(-1)).toEqual(['x', 1])
  })
})
