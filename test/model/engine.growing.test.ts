// Files that are left out while they grow: for how long, what else goes on meanwhile, and what does not.
import fs from 'node:fs'
import { afterEach, describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { openTreeCache } from '../../src/cache/engine.js'
import type { Ino } from '../../src/cache/filesystem.js'
import type { TreeCache, TreeCacheOptions } from '../../src/cache/tree-cache.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { wrap } from '../../src/remote/wrap.js'
import { engineOptions, openEngine, settled, temporaryDirectory } from './engine-harness.js'

const FILE = { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }
const KiB = 1024

const undone: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of undone.splice(0).reverse()) await undo()
})

async function cacheOf(changes: Partial<TreeCacheOptions>, remote = memTree()) {
  const directory = temporaryDirectory()
  undone.push(() => fs.rmSync(directory, { recursive: true, force: true }))
  const cache = await openEngine(remote, directory, { flushIntervalMs: 20, ...changes })
  undone.push(() => cache.close())
  return { cache, remote, directory }
}

const make = async (cache: TreeCache, name: string): Promise<Ino> => (await settled(cache.make(1, name, FILE))).ino

async function grown(cache: TreeCache, name: string): Promise<Ino> {
  const ino = await make(cache, name)
  cache.opened(ino, true)
  await cache.write(ino, 0, Buffer.from('grows'))
  return ino
}

const pause = (ms: number) => new Promise(resolve => setTimeout(resolve, ms))

async function eventually(what: string, so: () => boolean | Promise<boolean>, timeoutMs = 20_000) {
  for (const end = Date.now() + timeoutMs; !(await so()); await pause(5))
    if (Date.now() > end) throw new Error(`${what}: not after ${timeoutMs} ms`)
}

describe('a file that grows', () => {
  test('does not hold up who waits for room', async () => {
    const { cache } = await cacheOf({ delayMsMax: 3_600_000, dirtyBytesMax: 1024 * KiB })
    const ino = await make(cache, 'f')
    cache.opened(ino, true)
    // Less than half of the limit, and what comes next is more than the rest.
    await cache.write(ino, 0, new Uint8Array(400 * KiB))
    await cache.write(ino, 400 * KiB, new Uint8Array(900 * KiB))
    expect(cache.status().batches.committed).toBeGreaterThan(0)
  }, 30_000)

  test('makes no batches by staying away from them', async () => {
    const { cache } = await cacheOf({ delayMsMax: 3_600_000 })
    await make(cache, 'db-shm')
    await grown(cache, 'log')
    await eventually('what can be sent is', () => cache.status().batches.committed > 0)
    await pause(100)
    const { committed } = cache.status().batches
    await pause(500)
    expect(cache.status().batches.committed).toBe(committed)
  })

  test('is as old as its own first change', async () => {
    const { cache } = await cacheOf({ delayMsMax: 300 })
    const inos = [await grown(cache, 'a'), await grown(cache, 'b')]
    const until = Date.now() + 2_000
    for (let n = 0; Date.now() < until; n++) {
      await cache.write(inos[n % 2], 5 * (n + 1), Buffer.from('more!'))
      await pause(10)
      expect(cache.status().lag.ageMs).toBeLessThan(1_500)
    }
    expect(cache.status().batches.committed).toBeGreaterThan(3)
  })

  test('is as old as that however often it is opened, and whatever becomes of the clock', async () => {
    const { cache, remote } = await cacheOf({ delayMsMax: 400 })
    const ino = await make(cache, 'lock')
    for (let n = 0; n < 60 && !(await remote.stat('lock')); n++) {
      cache.opened(ino, true)
      await pause(15)
      cache.released(ino, true)
      cache.opened(ino, true)
      await pause(15)
      cache.released(ino, true)
    }
    expect(await remote.stat('lock')).not.toBeNull()

    const now = Date.now
    await grown(cache, 'log')
    Date.now = () => now() - 3_600_000
    undone.push(() => {
      Date.now = now
    })
    const end = performance.now() + 10_000
    while (!(await remote.stat('log')) && performance.now() < end) await pause(20)
    expect(await remote.stat('log')).not.toBeNull()
  })
})

test('what was refused is tried again by the next who opens the cache', async () => {
  const remote = memTree()
  let refusing = true
  const strict = () =>
    wrap(rollforward(remote), async (call, next) => {
      if (refusing && call.method === 'stage') throw new FerryError('FORBIDDEN', { detail: 'for now' })
      return next()
    })
  const directory = temporaryDirectory()
  undone.push(() => fs.rmSync(directory, { recursive: true, force: true }))
  const options = engineOptions(directory)
  const first = await openTreeCache(strict(), options)
  const ino = await make(first, 'f')
  await first.write(ino, 0, new Uint8Array(1024 * KiB))
  await first.sync()
  expect(first.status().quarantine).toHaveLength(1)
  await first.close()

  refusing = false
  const second = await openTreeCache(strict(), options)
  undone.push(() => second.close())
  await second.sync()
  expect(second.status()).toMatchObject({ quarantine: [], lag: { bytes: 0 } })
  expect(await remote.stat('f')).toMatchObject({ size: 1024 * KiB })
})
