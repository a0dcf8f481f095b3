// Files that grow are sent before they are cut: whatever is done to them meanwhile, the bucket has what the mount had.
import fs from 'node:fs'
import { afterEach, describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { random as randomOf } from '../../src/base/random.js'
import type { TreeCache } from '../../src/cache/tree-cache.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import type { Objects } from '../../src/remote/objects.js'
import { type Call, wrap } from '../../src/remote/wrap.js'
import { seeded } from '../remotes/commits.js'
import { openEngine, settled, temporaryDirectory } from './engine-harness.js'

const FILE = { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }
const MiB = 1024 * 1024
const ROUNDS = Number(process.env.ROUNDS ?? 4)

const undone: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of undone.splice(0).reverse()) await undo()
})

type Before = (call: Call, next: () => Promise<unknown>) => Promise<unknown>

async function cacheOf(before: Before = (_, next) => next()) {
  const objects = memObjects()
  const directory = temporaryDirectory()
  undone.push(() => fs.rmSync(directory, { recursive: true, force: true }))
  const remote: Objects = wrap(objects, (call, next) => before(call, () => next()))
  const cache = await openEngine(remote, directory, { flushIntervalMs: 10, delayMsMax: 3_600_000 })
  undone.push(() => cache.close())
  return { cache, objects }
}

async function create(cache: TreeCache, name: string) {
  const { ino } = await settled(cache.make(1, name, FILE))
  cache.opened(ino, true)
  return ino
}

const pause = (ms: number) => new Promise(resolve => setTimeout(resolve, ms))

async function eventually(what: string, so: () => boolean | Promise<boolean>) {
  for (const end = Date.now() + 20_000; !(await so()); await pause(5))
    if (Date.now() > end) throw new Error(`${what}: not after 20 s`)
}

/** Bytes that tell where they belong, and which write made them. */
function block(at: number, length: number, write: number): Uint8Array {
  const bytes = new Uint8Array(length)
  for (let i = 0; i < length; i += 512) bytes.fill((((at + i) >>> 9) * 31 + write * 7) & 0xff, i, i + 512)
  return bytes
}

/** Where two differ, and how it came to that; null: nowhere. */
function difference(found: Uint8Array, wanted: Uint8Array, steps: string[]): string | null {
  const at = found.findIndex((byte, i) => byte !== wanted[i])
  return at < 0 ? null : `at ${at}: ${found[at]} instead of ${wanted[at]}; ${steps.join(', ')}`
}

describe('a file that grows, in a bucket', () => {
  test('is one open upload, of which little is left to be sent when it is closed', async () => {
    const sent = new Map<string, number>()
    const { cache, objects } = await cacheOf((call, next) => {
      const bytes = call.args.find(arg => arg instanceof Uint8Array)?.byteLength ?? 0
      sent.set(call.method, (sent.get(call.method) ?? 0) + bytes)
      return next()
    })
    const ino = await create(cache, 'recording')
    for (let at = 0; at < 40 * MiB; at += MiB) await cache.write(ino, at, block(at, MiB, 0))
    await eventually('32 MiB are sent', () => (sent.get('uploadPart') ?? 0) >= 32 * MiB)
    await pause(100)
    expect((await objects.uploads('.pageferry/stage/')).length).toBe(1)
    expect(await objects.head('recording')).toBeNull()
    sent.clear()
    cache.released(ino, true)
    await cache.sync()
    expect((await objects.get('recording')).byteLength).toBe(40 * MiB)
    expect([...sent.values()].reduce((sum, one) => sum + one, 0)).toBeLessThan(10 * MiB)
    expect(await objects.uploads('')).toEqual([])
  }, 60_000)

  test('is begun anew when it could not be sent', async () => {
    let failures = 0
    const { cache, objects } = await cacheOf(async (call, next) => {
      if (call.method === 'uploadPart' && call.args[2] === 2 && failures++ < 2) throw new FerryError('UNREACHABLE')
      return next()
    })
    const ino = await create(cache, 'recording')
    for (let at = 0; at < 24 * MiB; at += MiB) await cache.write(ino, at, block(at, MiB, 0))
    await eventually('it fails twice, and goes on', async () => failures > 2 && cache.status().lag.bytes > 0)
    cache.released(ino, true)
    await cache.sync()
    for (let at = 0; at < 24 * MiB; at += MiB)
      expect(Buffer.compare(await objects.get('recording', { at, length: MiB }), block(at, MiB, 0))).toBe(0)
    expect(await objects.uploads('')).toEqual([])
  }, 60_000)

  test('leaves nothing behind when it is removed', async () => {
    const { cache, objects } = await cacheOf()
    const ino = await create(cache, 'recording')
    for (let at = 0; at < 16 * MiB; at += MiB) await cache.write(ino, at, block(at, MiB, 0))
    await eventually('it is sent', async () => (await objects.uploads('.pageferry/stage/')).length === 1)
    await cache.unlink(1, 'recording')
    cache.released(ino, true)
    const other = await create(cache, 'other')
    for (let at = 0; at < 16 * MiB; at += MiB) await cache.write(other, at, block(at, MiB, 0))
    await eventually('the other one is, and the first is gone', async () => {
      const [first, ...more] = await objects.uploads('.pageferry/stage/')
      return more.length === 0 && first?.key.endsWith('ahead.1')
    })
  }, 60_000)

  seeded('is at the end what was written, whatever is done to it after it was sent', async seed => {
    for (let round = 0; round < ROUNDS; round++) {
      const random = randomOf(seed + round)
      let parts = 0
      const { cache, objects } = await cacheOf(async (call, next) => {
        if (call.method === 'uploadPart') parts++
        if (random.chance(0.3)) await pause(random.below(4))
        return next()
      })
      let ino = await create(cache, 'f')
      let model = Buffer.alloc(0)
      let writes = 0
      const steps: string[] = []
      const write = async (at: number, length: number) => {
        const bytes = block(at, length, ++writes)
        steps.push(`write ${at}+${length}`)
        const grown = Buffer.alloc(Math.max(model.length, at + length))
        model.copy(grown)
        grown.set(bytes, at)
        model = grown
        await cache.write(ino, at, bytes)
      }
      for (let batch = 0; batch < 3; batch++) {
        const parted = parts
        for (let n = 8 + random.below(14); n > 0; n--) await write(model.length, MiB + random.below(2) * 4096)
        for (let waits = random.below(50); waits > 0 && parts === parted; waits--) await pause(10)
        for (let n = random.below(4); n > 0; n--) {
          const at = random.below(model.length)
          const kind = random.below(4)
          if (kind === 0) {
            steps.push(`truncate ${at}`)
            model = Buffer.from(model.subarray(0, at))
            await cache.setAttributes(ino, { size: at })
          } else if (kind === 1) await write(at, 1 + random.below(300_000))
          else if (kind === 2) {
            const [from, length] = [at - (at % 4096), 4096 * (1 + random.below(64))]
            steps.push(`punch ${from}+${length}`)
            model.fill(0, from, Math.min(model.length, from + length))
            await cache.allocate(
              ino,
              { at: from, length: Math.min(length, model.length - from) },
              { kind: 'punch', keepSize: true },
            )
          } else await write(model.length, 1 + random.below(2 * MiB))
          if (random.chance(0.5)) await pause(random.below(20))
        }
        if (random.chance(0.5)) {
          cache.released(ino, true)
          ino = (await settled(cache.lookup(1, 'f')))!.ino
          cache.opened(ino, true)
        }
        steps.push(`sync, after ${parts - parted} parts`)
        await cache.sync()
        expect((await objects.head('f'))!.size).toBe(model.length)
        expect(difference(await objects.get('f'), model, steps)).toBeNull()
        // What no batch has named goes beside what comes next.
        await eventually('no upload is open', async () => (await objects.uploads('')).length === 0)
      }
      cache.released(ino, true)
      await cache.close()
    }
  })
})
