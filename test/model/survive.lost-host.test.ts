// The host is lost at a random moment, also in the middle of a commit: an empty cache sees exactly one batch, not older than the last sync.
// Or only the process is: then its journal sees everything.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import { isFerryError } from '../../src/base/errors.js'
import { random } from '../../src/base/random.js'
import { openTreeCache } from '../../src/cache/engine.js'
import type { Ino } from '../../src/cache/filesystem.js'
import { RECORD_HEADER_BYTES, RECORD_MAGIC } from '../../src/cache/journal-format.js'
import { type CutRecord, Kind, unpackRecord } from '../../src/cache/records.js'
import type { Storage } from '../../src/cache/storage.js'
import type { TreeCache, TreeCacheOptions } from '../../src/cache/tree-cache.js'
import { diskStorage } from '../../src/linux/storage.js'
import { faulty } from '../../src/remote/faulty.js'
import { fileTree } from '../../src/remote/file-tree.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree } from '../../src/remote/tree.js'
import { wrap } from '../../src/remote/wrap.js'
import { long } from '../fixtures/requires.js'
import { engineOptions } from './engine-harness.js'
import { type Cut, difference, Program, pictureOf, told } from './program.js'

const parent = fs.mkdtempSync(path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'pageferry-lost-'))
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

/** Storage that tells of each cut and what it leaves out, in the turn in which it is made. */
function watched(storage: Storage, onCut: (held: Ino[]) => void): Storage {
  return {
    open(name, options) {
      const file = storage.open(name, options)
      if (!name.startsWith('journal-')) return file
      const writeSync = file.writeSync.bind(file)
      file.writeSync = (from, at) => {
        writeSync(from, at)
        const view = new DataView(from.buffer, from.byteOffset, from.byteLength)
        if (from.length < RECORD_HEADER_BYTES || view.getUint16(4, true) !== RECORD_MAGIC || from[6] !== Kind.cut)
          return
        const body = from.subarray(RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + view.getUint32(8, true))
        onCut(unpackRecord<CutRecord>(body)[1] ?? [])
      }
      return file
    },
    list: () => storage.list(),
    rename: (source, target) => storage.rename(source, target),
    remove: name => storage.remove(name),
    reserve: (name, bytes) => storage.reserve(name, bytes),
    freeBytes: () => storage.freeBytes(),
  }
}

/** A remote that takes its time, so that programs go on while batches are on their way. */
function slow<R extends Tree | Objects>(remote: R, turns: () => number) {
  const calls = { running: 0 }
  return wrap(
    remote,
    async (_call, next) => {
      calls.running++
      try {
        for (let left = turns(); left > 0; left--) await new Promise(setImmediate)
        return await next()
      } finally {
        calls.running--
      }
    },
    { calls },
  )
}

/** A copy of a cache directory belongs to the same writer. */
const writers = new Map<string, string>()
const identityOf = (cacheDir: string) => {
  const writer = writers.get(cacheDir) ?? path.basename(cacheDir)
  return { writer, host: 'here', bootId: 'boot', pid: process.pid, startTime: 1 }
}

const counts = (cuts: Cut[]) => cuts.map(({ count, held }) => (held.size ? `${count} but for ${held.size}` : count))

const turn = () => new Promise(setImmediate)

interface Bounds {
  /** The moments at which a batch was cut. */
  cuts: Cut[]
  synced: number
}

type Far = 'mem' | 'file' | 'objects'

async function survive(seed: number, kind: Far, history: string[]) {
  const draw = random(seed)
  const turns = random(seed + 2)
  keepOnly()
  const far = directory()
  // Parts are small, so that there are objects of several.
  const objects = () => memObjects({ capabilities: { partBytesMin: 4_096 } })
  const remote = kind === 'mem' ? memTree() : kind === 'objects' ? objects() : await fileTree(far)
  const program = new Program(seed + 1, {
    hardLinks: draw.chance(0.5) && kind !== 'objects',
    opens: draw.chance(0.7),
  })
  let cacheDir = directory()
  program.log = history
  const open = (tree: Tree | Objects, bounds?: Bounds, changes: Partial<TreeCacheOptions> = {}): Promise<TreeCache> => {
    const storage = watched(diskStorage(cacheDir), held => {
      const cut = program.cut(held)
      bounds?.cuts.push(cut)
      // Whether the operation that waits comes before or after it, nobody can tell.
      if (program.busy) bounds?.cuts.push({ ...cut, count: cut.count + 1 })
    })
    return openTreeCache(
      told(tree.shape === 'objects' ? rollforward(tree) : rollforward(tree), program),
      engineOptions(cacheDir, { storage, deadlineMs: 300, identity: identityOf(cacheDir), ...changes }),
    )
  }
  try {
    // An operation that changed nothing is no reason for a batch.
    const isSince = ({ count, held }: Cut, synced: number) =>
      count >= synced ||
      (held.size === 0 && program.pictures.slice(count, synced).every(one => one === program.pictures[synced]))
    for (let round = 0; round < 4; round++) {
      keepOnly(cacheDir, far)
      const crashAfter = draw.chance(0.2) ? undefined : 4 + draw.below(draw.chance(0.5) ? 60 : 400)
      const slower = slow(remote, () => turns.below(3))
      const worse = faulty(slower, { seed: draw.below(2 ** 31), crashAfter, crashTorn: draw.chance(0.5) })
      const bounds: Bounds = { cuts: [{ count: 0, held: new Map() }], synced: 0 }
      history.push(`round ${round}: crash after ${crashAfter}`)
      let cache: TreeCache
      try {
        cache = await open(worse, bounds, { flushIntervalMs: draw.pick([1, 5, 3_600_000]) })
      } catch (error) {
        if (!worse.faults.crashed) throw error
        continue
      }
      stuck = () => JSON.stringify([worse.faults, cache.status()])
      const steps = 20 + draw.below(120)
      try {
        if (round > 0) await program.restart(cache)
        for (let n = 0; n < steps; n++) {
          await program.step(cache)
          expect(program.wrong).toBe('')
          if (draw.chance(0.3)) for (let left = draw.below(8); left > 0; left--) await turn()
          if (draw.chance(0.06)) {
            const count = program.count
            history.push(`sync at ${count}`)
            const stop = new AbortController()
            const done = cache.sync({ signal: stop.signal }).then(
              () => {
                bounds.synced = Math.max(bounds.synced, count)
              },
              () => {},
            )
            // Waited for, or not.
            if (draw.chance(0.5)) {
              while (!worse.faults.crashed && (await Promise.race([done.then(() => false), turn().then(() => true)])));
              if (worse.faults.crashed) stop.abort()
            }
          }
          if (draw.chance(0.03)) await cache.evict('')
          if (worse.faults.crashed && draw.chance(0.3)) break
        }
      } catch (error) {
        if (!worse.faults.crashed || !isFerryError(error)) throw error
        program.busy = false
      }
      history.push(
        `lost after ${program.count} operations, cut at ${counts(bounds.cuts)}, synced ${bounds.synced}, ${worse.faults.crashed ? 'in a commit, perhaps' : ''}`,
      )
      // kill -9: this process is gone in this turn. What it had on its way to the remote still arrives, or does not.
      worse.faults.down = true
      const journal = path.join(parent, String(++directories))
      fs.cpSync(cacheDir, journal, { recursive: true })
      writers.set(journal, identityOf(cacheDir).writer)
      await cache.close()
      while (slower.calls.running) await turn()
      const found = Math.max(...bounds.cuts.map(({ count }) => count))
      if (draw.chance(0.5)) {
        cacheDir = directory()
        cache = await open(remote)
        const picture = await pictureOf(cache)
        const allowed = bounds.cuts.filter(
          cut => program.pictures[cut.count] !== undefined && isSince(cut, bounds.synced),
        )
        if (!allowed.some(cut => program.isAt(picture, cut))) {
          const nearest = allowed
            .map(({ count }) => difference(picture, program.pictures[count]))
            .sort((a, b) => a.length - b.length)[0]
          const any = program.pictures.indexOf(picture)
          throw new Error(
            `an empty cache sees none of the batches ${counts(allowed)} (but operation ${any}); nearest:\n${nearest}`,
          )
        }
        await program.restart(cache)
        await cache.close()
        if (draw.chance(0.5)) cacheDir = directory()
      } else {
        cacheDir = journal
        cache = await open(remote)
        const picture = await pictureOf(cache)
        if (picture !== program.picture)
          throw new Error(`after replay (${found}):\n${difference(picture, program.picture)}`)
        expect(cache.conflicts()).toEqual([])
        if (draw.chance(0.3)) for (let n = 0; n < 10; n++) await program.step(cache)
        const last = program.picture
        await cache.sync()
        const again = await pictureOf(cache)
        if (again !== last) throw new Error(`after replay and sync:\n${difference(again, last)}`)
        await cache.close()
        const kept = cacheDir
        cacheDir = directory()
        cache = await open(remote)
        const fresh = await pictureOf(cache)
        if (fresh !== last) throw new Error(`from an empty cache after replay and sync:\n${difference(fresh, last)}`)
        await program.restart(cache)
        await cache.close()
        if (draw.chance(0.5)) cacheDir = kept
      }
    }
  } catch (error) {
    const said = error instanceof Error ? error.stack : String(error)
    throw new Error(`seed ${seed} (${kind}): ${said}\n${history.slice(process.env.TELL ? 0 : -40).join('\n')}`)
  }
}

let stuck = () => ''
const SEED_MS_MAX = 30_000

/** A seed that hangs fails, with the last that it did. */
async function inTime(seed: number, kind: Far) {
  const history: string[] = []
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`seed ${seed} (${kind}) hangs: ${stuck()}\n${history.slice(-25).join('\n')}`)),
      SEED_MS_MAX,
    )
  })
  try {
    await Promise.race([survive(seed, kind, history), late])
  } finally {
    clearTimeout(timer)
  }
}

const given = process.env.SEED
const first = Number(process.env.SEED_FIRST ?? 1)
const rounds = Number(process.env.SEED_COUNT ?? (long ? 1000 : 60))
const seeds = given ? [Number(given)] : Array.from({ length: rounds }, (_, n) => n + first)

describe('the host is lost, or the process', () => {
  test(`seeds ${seeds[0]} to ${seeds.at(-1)}: what is found is one batch, not older than the last sync`, async () => {
    const failed: string[] = []
    for (const seed of seeds) {
      try {
        const kind = given ? 'mem' : seed % 10 === 0 ? 'file' : seed % 3 === 0 ? 'objects' : 'mem'
        await inTime(seed, (process.env.KIND as Far | undefined) ?? kind)
      } catch (error) {
        failed.push((error as Error).message)
        if (failed.length >= 3) break
      }
    }
    expect(failed.join('\n\n')).toBe('')
  }, 3_600_000)
})
