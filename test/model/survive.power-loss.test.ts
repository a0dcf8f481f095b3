// The power goes at a random moment, and with it what was not synced: of the journal's segments, of the data file, of the database. What is left is
// the state after some operation, none before the last fsync that returned; and the remote is never ahead of it.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { random } from '../../src/base/random.js'
import { Database } from '../../src/cache/database.js'
import { openTreeCache } from '../../src/cache/engine.js'
import type { TreeCache, TreeCacheOptions } from '../../src/cache/tree-cache.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { LossyDisk } from '../fixtures/lossy-storage.js'
import { long } from '../fixtures/requires.js'
import { engineOptions } from './engine-harness.js'
import { difference, Program, pictureOf, told } from './program.js'

const parent = fs.mkdtempSync(path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'pageferry-power-'))
afterAll(() => fs.rmSync(parent, { recursive: true, force: true }))
let directories = 0
const directory = () => {
  const made = path.join(parent, String(++directories))
  fs.mkdirSync(made)
  return made
}

/** Each has tens of megabytes, in memory: what is not needed any more goes at once. */
function keepOnly(...paths: string[]) {
  for (const name of fs.readdirSync(parent)) {
    const other = path.join(parent, name)
    if (!paths.includes(other)) fs.rmSync(other, { recursive: true, force: true })
  }
}

/** Called when a transaction of the database has become durable. */
let onTransaction = () => {}
const { write } = Database.prototype
beforeEach(() => {
  Database.prototype.write = async function (this: Database, ...args: Parameters<typeof write>) {
    await write.apply(this, args)
    onTransaction()
  }
})
afterEach(() => {
  Database.prototype.write = write
  onTransaction = () => {}
})

const turn = () => new Promise(setImmediate)

async function survive(seed: number) {
  const draw = random(seed)
  const remote = memTree()
  const program = new Program(seed + 1, { punch: false })
  const disk = new LossyDisk({ unitBytes: draw.pick([512, 4096]) })
  keepOnly()
  let cacheDir = directory()
  const history = program.log
  const open = (changes: Partial<TreeCacheOptions> = {}): Promise<TreeCache> => {
    const identity = { writer: `w${seed}`, host: 'here', bootId: 'boot', pid: process.pid, startTime: 1 }
    return openTreeCache(
      told(rollforward(remote), program),
      engineOptions(cacheDir, { storage: disk.storage, identity, ...changes }),
    )
  }
  try {
    for (let round = 0; round < 3; round++) {
      keepOnly(cacheDir)
      /** The database as its last durable transaction left it; null: before the first. */
      let durable: string | null = fs.existsSync(path.join(cacheDir, 'names')) ? cacheDir : null
      onTransaction = () => {
        durable = directory()
        fs.cpSync(path.join(cacheDir, 'names'), path.join(durable, 'names'), { recursive: true })
      }
      const kept = durable && directory()
      if (kept) fs.cpSync(path.join(cacheDir, 'names'), path.join(kept, 'names'), { recursive: true })
      durable = kept
      let cache = await open({ flushIntervalMs: draw.pick([2, 3_600_000]) })
      if (round > 0) {
        const found = await pictureOf(cache)
        if (found !== program.picture) throw new Error(`after a restart:\n${difference(found, program.picture)}`)
        await program.restart(cache)
      }
      let synced = 0
      const steps = 10 + draw.below(80)
      for (let n = 0; n < steps; n++) {
        await program.step(cache)
        if (draw.chance(0.15)) {
          const count = program.count
          history.push(`fsync at ${count}`)
          const done = Promise.resolve(cache.fsync(1)).then(() => {
            synced = Math.max(synced, count)
          })
          if (draw.chance(0.7)) await done
          else done.catch(() => {})
        }
        if (draw.chance(0.2)) for (let left = draw.below(6); left > 0; left--) await turn()
        // A checkpoint, or the middle of one.
        if (draw.chance(0.05)) {
          const evicted = cache.evict('')
          if (draw.chance(0.6)) await evicted
          else evicted.catch(() => {})
        }
        if (draw.chance(0.03)) await cache.sync()
      }
      history.push(`power lost after ${program.count} operations, synced ${synced}`)
      const restored = directory()
      if (durable) fs.cpSync(path.join(durable, 'names'), path.join(restored, 'names'), { recursive: true })
      onTransaction = () => {}
      disk.crash(draw.chance(0.2) ? undefined : draw.below(2 ** 31))
      await cache.close().catch(() => {})
      cacheDir = restored
      cache = await open()
      const found = await pictureOf(cache)
      const count = await program.lastSeen(cache)
      if (count < synced) {
        const nearest = program.pictures
          .slice(synced)
          .map((picture, n) => `(operation ${synced + n})\n${difference(found, picture)}`)
          .sort((a, b) => a.length - b.length)[0]
        throw new Error(`operation ${count} is found, ${synced} was synced, of ${program.count}; nearest: ${nearest}`)
      }
      expect(cache.conflicts()).toEqual([])
      expect(cache.status().problems).toEqual([])
      await program.restart(cache)
      await cache.sync()
      const again = await pictureOf(cache)
      if (again !== found) throw new Error(`after a sync:\n${difference(again, found)}`)
      await cache.close()
      const own = cacheDir
      cacheDir = directory()
      const elsewhere = await openTreeCache(rollforward(remote), engineOptions(cacheDir))
      const fresh = await pictureOf(elsewhere)
      if (fresh !== found) throw new Error(`from an empty cache:\n${difference(fresh, found)}`)
      await elsewhere.close()
      cacheDir = own
    }
  } catch (error) {
    throw new Error(
      `seed ${seed}: ${error instanceof Error ? error.stack : error}\n${history.slice(process.env.TELL ? 0 : -40).join('\n')}`,
    )
  }
}

const given = process.env.SEED
const first = Number(process.env.SEED_FIRST ?? 1)
const rounds = Number(process.env.SEED_COUNT ?? (long ? 400 : 25))
const seeds = given ? [Number(given)] : Array.from({ length: rounds }, (_, n) => n + first)

describe('the power goes', () => {
  test(`seeds ${seeds[0]} to ${seeds.at(-1)}: everything that was synced is there, and nothing is torn`, async () => {
    const failed: string[] = []
    for (const seed of seeds) {
      await survive(seed).catch(error => failed.push(error.message))
      if (failed.length >= 3) break
    }
    expect(failed.join('\n\n')).toBe('')
  }, 3_600_000)
})
