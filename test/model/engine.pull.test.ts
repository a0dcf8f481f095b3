// What reads cost: requests to the remote are counted and held, on a remote in memory.
import fs from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from '@jest/globals'
import { deferred } from '../../src/base/async.js'
import { FerryError } from '../../src/base/errors.js'
import { openTreeCache } from '../../src/cache/engine.js'
import type { Storage } from '../../src/cache/storage.js'
import type { TreeCache } from '../../src/cache/tree-cache.js'
import { EIO, errnoOf } from '../../src/fs/errno.js'
import { diskStorage } from '../../src/linux/storage.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree } from '../../src/remote/tree.js'
import { wrap } from '../../src/remote/wrap.js'
import { engineOptions, openEngine, temporaryDirectory } from './engine-harness.js'

const KiB = 1024
const MiB = 1024 * KiB

/** A remote that counts its reads and holds them until it is told. */
async function countedRemote(bytes: Buffer) {
  const tree = memTree()
  await tree.make('file', { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 1n, rdev: 0 })
  await tree.write('file', 0, bytes)
  const reads: { at: number; length: number }[] = []
  let gate: Promise<void> = Promise.resolve()
  let open = () => {}
  const remote = wrap(tree as Tree, async (call, next) => {
    if (call.method !== 'read') return next()
    const range = call.args[1] as { at: number; length: number }
    reads.push({ at: range.at, length: range.length })
    await gate
    return next()
  })
  return {
    remote,
    tree,
    reads,
    hold() {
      gate = new Promise(resolve => {
        open = resolve
      })
    },
    release: () => open(),
  }
}

const pattern = (length: number) => {
  const bytes = Buffer.alloc(length)
  for (let at = 0; at < length; at += 4) bytes.writeUInt32LE(Math.imul(at + 1, 2654435761) >>> 0, at)
  return bytes
}

const opened: TreeCache[] = []
const directories: string[] = []
afterEach(async () => {
  for (const cache of opened.splice(0)) await cache.close()
  for (const directory of directories.splice(0)) fs.rmSync(directory, { recursive: true, force: true })
})

function newDirectory() {
  const directory = temporaryDirectory()
  directories.push(directory)
  return directory
}

async function cacheOf(remote: Tree, changes: Parameters<typeof openEngine>[2] = {}, directory = newDirectory()) {
  const cache = await openEngine(remote, directory, changes)
  opened.push(cache)
  const found = await cache.lookup(1, 'file')
  return { cache, ino: found!.ino }
}

const turns = () => new Promise(resolve => setTimeout(resolve, 20))

test('in a bucket one name costs no listing, until several were asked for', async () => {
  const objects = memObjects()
  for (let n = 0; n < 50; n++) await objects.put(`d/${n}`, Buffer.from(String(n)))
  const counts = { list: 0, head: 0 }
  const counted = wrap(objects as Objects, (call, next) => {
    if (call.method === 'list' || call.method === 'head') counts[call.method]++
    return next()
  })
  const directory = newDirectory()
  const cache = await openEngine(counted, directory)
  opened.push(cache)
  Object.assign(counts, { list: 0, head: 0 })
  const d = (await cache.lookup(1, 'd'))!
  expect((await cache.lookup(d.ino, '7'))!.size).toBe(1)
  expect(await cache.lookup(d.ino, 'none')).toBeNull()
  // Each is looked for as a file and as a directory; 'd' and 'none' are neither, and a listing says whether something is below them.
  expect(counts).toEqual({ list: 2, head: 6 })
  for (let n = 10; n < 30; n++) expect((await cache.lookup(d.ino, String(n)))!.size).toBe(2)
  expect(counts.list).toBe(3)
  expect((await cache.entries(d.ino, 0, 100)).map(({ name }) => name).sort()).toEqual(
    Array.from({ length: 50 }, (_, n) => String(n)).sort(),
  )
})

test('an archived file cannot be read, and status says so until it was restored', async () => {
  const objects = memObjects()
  for (const key of ['cold', 'warm']) await objects.put(key, Buffer.from(key))
  let archived = true
  const remote = wrap(objects as Objects, async (call, next) => {
    if (archived && call.method === 'get' && call.args[0] === 'cold')
      throw new FerryError('ARCHIVED', { detail: 'cold' })
    return next()
  })
  const directory = newDirectory()
  const cache = await openEngine(remote, directory)
  opened.push(cache)
  const into = Buffer.alloc(4)
  const read = async (name: string) => cache.read((await cache.lookup(1, name))!.ino, 0, into)
  const failed = await read('cold').catch(error => error)
  expect(failed).toMatchObject({ code: 'ARCHIVED' })
  expect(errnoOf(failed)).toBe(EIO)
  expect(await read('warm')).toBe(4)
  expect(cache.status().problems).toEqual([expect.stringContaining('archived, and must be restored')])
  expect(cache.status().problems[0]).toContain('"cold"')
  archived = false
  expect(await read('cold')).toBe(4)
  expect(into.toString()).toBe('cold')
  expect(cache.status().problems).toEqual([])
})

test('a subtree is listed, pulled and looked at again many at a time; what fails is told', async () => {
  const tree = memTree()
  const node = { uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 1n, rdev: 0 }
  for (let n = 0; n < 30; n++) {
    await tree.make(`d${n}`, { mode: 0o40755, ...node })
    for (const name of ['a', 'b']) {
      await tree.make(`d${n}/${name}`, { mode: 0o100644, ...node })
      await tree.write(`d${n}/${name}`, 0, Buffer.from(`${n}${name}`))
    }
  }
  const running: Record<string, number> = {}
  const most: Record<string, number> = {}
  let broken = ''
  const remote = wrap(tree as Tree, async ({ method, args }, next) => {
    running[method] = (running[method] ?? 0) + 1
    most[method] = Math.max(most[method] ?? 0, running[method])
    await new Promise(resolve => setTimeout(resolve, 2))
    running[method]--
    if (method === 'read' && args[0] === broken) throw new FerryError('IO', { detail: broken })
    return next()
  })
  const directory = newDirectory()
  const cache = await openEngine(remote, directory)
  opened.push(cache)
  broken = 'd7/a'
  await expect(cache.pull('')).rejects.toMatchObject({ code: 'IO' })
  broken = ''
  expect((await cache.pull('')).files).toBe(60)
  expect(most.list).toBeGreaterThan(8)
  expect(most.list).toBeLessThanOrEqual(17)
  expect(most.read).toBeGreaterThan(8)
  most.list = 0
  await tree.write('d3/a', 0, Buffer.from('changed'))
  expect(await cache.refresh('')).toEqual({ entries: 90, changed: 1 })
  expect(most.list).toBeGreaterThan(8)
})

describe('reads', () => {
  test('concurrent misses on the same bytes cost one request', async () => {
    const source = pattern(MiB)
    const { remote, reads, hold, release } = await countedRemote(source)
    const { cache, ino } = await cacheOf(remote, { prefetch: 'off' })
    hold()
    const buffers = Array.from({ length: 20 }, () => Buffer.alloc(4 * KiB))
    const all = Promise.all(buffers.map(into => cache.read(ino, 512 * KiB, into)))
    await turns()
    release()
    await all
    expect(reads).toHaveLength(1)
    for (const buffer of buffers) expect(buffer.equals(source.subarray(512 * KiB, 516 * KiB))).toBe(true)
  })

  test('neighbouring missing chunks go in one request', async () => {
    const { remote, reads } = await countedRemote(pattern(2 * MiB))
    const { cache, ino } = await cacheOf(remote, { prefetch: 'off' })
    await cache.read(ino, 100 * KiB, Buffer.alloc(900 * KiB))
    expect(reads).toEqual([{ at: 100 * KiB, length: 900 * KiB }])
  })

  test('a hit is answered in the same turn, without a promise', async () => {
    const source = pattern(256 * KiB)
    const { remote } = await countedRemote(source)
    const { cache, ino } = await cacheOf(remote)
    await cache.read(ino, 0, Buffer.alloc(256 * KiB))
    const into = Buffer.alloc(64 * KiB)
    const answered = cache.read(ino, 128 * KiB, into)
    if (answered instanceof Promise) await answered
    else expect(answered).toBe(64 * KiB)
    expect(into.equals(source.subarray(128 * KiB, 192 * KiB))).toBe(true)
  })

  test('what is written here while a fetch is on its way is newer than what it brings', async () => {
    const source = pattern(MiB)
    const { remote, hold, release } = await countedRemote(source)
    const { cache, ino } = await cacheOf(remote, { prefetch: 'off' })
    hold()
    const into = Buffer.alloc(64 * KiB)
    const reading = cache.read(ino, 0, into)
    await turns()
    await cache.write(ino, 8 * KiB, Buffer.alloc(4 * KiB, 0xaa))
    release()
    await reading
    const expected = Buffer.from(source.subarray(0, 64 * KiB))
    expected.fill(0xaa, 8 * KiB, 12 * KiB)
    expect(into.equals(expected)).toBe(true)
  })

  test('a fetch that arrives after a truncation brings nothing back', async () => {
    const { remote, hold, release } = await countedRemote(pattern(MiB))
    const { cache, ino } = await cacheOf(remote, { prefetch: 'off' })
    hold()
    const reading = Promise.resolve(cache.read(ino, 0, Buffer.alloc(256 * KiB)))
    await turns()
    await cache.setAttributes(ino, { size: 10 })
    await cache.setAttributes(ino, { size: 256 * KiB })
    release()
    await reading
    const into = Buffer.alloc(256 * KiB)
    await cache.read(ino, 0, into)
    expect(into.subarray(10).equals(Buffer.alloc(256 * KiB - 10))).toBe(true)
  })

  test('a sequential reader is served ahead, a random one pays for little more than it asked', async () => {
    const { remote, reads } = await countedRemote(pattern(64 * MiB))
    const { cache, ino } = await cacheOf(remote)
    for (let at = 0; at < 16 * MiB; at += 128 * KiB) await cache.read(ino, at, Buffer.alloc(128 * KiB))
    await turns()
    expect(cache.status().reads.misses).toBeLessThan(20)
    const sequential = reads.length
    expect(sequential).toBeLessThan(80)
    const { remote: other, reads: random } = await countedRemote(pattern(64 * MiB))
    const second = await cacheOf(other)
    for (let n = 0; n < 50; n++) await second.cache.read(second.ino, ((n * 7919) % 16384) * 4096, Buffer.alloc(4 * KiB))
    await turns()
    const fetched = random.reduce((sum, { length }) => sum + length, 0)
    expect(fetched).toBeLessThanOrEqual(50 * 16 * KiB + 512 * KiB)
  })

  test('a demand read does not wait behind guesses', async () => {
    const { remote, reads, hold, release } = await countedRemote(pattern(64 * MiB))
    const { cache, ino } = await cacheOf(remote, { pullWorkers: 1, pull: 'all' })
    await turns()
    hold()
    await cache.evict('')
    const guess = cache.read(ino, 0, Buffer.alloc(4 * KiB))
    await turns()
    const before = reads.length
    const demand = cache.read(ino, 48 * MiB, Buffer.alloc(4 * KiB))
    await turns()
    expect(reads.slice(before).some(({ at, length }) => at <= 48 * MiB && at + length > 48 * MiB)).toBe(true)
    release()
    await Promise.all([guess, demand])
  })

  test('a read that hangs is asked for again, and the one that hangs is given up', async () => {
    const { remote } = await countedRemote(pattern(4 * MiB))
    let hangs = false
    const givenUp: string[] = []
    const sometimes = wrap(remote, (call, next) => {
      if (call.method !== 'read' || !hangs) return next()
      hangs = false
      return new Promise((_, reject) =>
        call.signal?.addEventListener('abort', () => {
          givenUp.push(call.method)
          reject(new Error('given up'))
        }),
      )
    })
    const { cache, ino } = await cacheOf(sometimes, { prefetch: 'off', deadlineMs: 60_000 })
    const into = new Uint8Array(4096)
    for (let n = 0; n < 100; n++) await cache.read(ino, n * 32 * KiB, into)
    hangs = true
    expect(await cache.read(ino, 3_500_000, into)).toBe(4096)
    expect(Buffer.compare(into, pattern(4 * MiB).subarray(3_500_000, 3_504_096))).toBe(0)
    expect(givenUp).toEqual(['read'])
    expect(cache.status().hedged).toEqual({ asked: 1, won: 1 })
  })

  test('what nobody reads yet is stored bit by bit, and what somebody waits for at once', async () => {
    const bytes = pattern(4 * MiB)
    const far = await countedRemote(bytes)
    /** What was there of it whenever somebody else had a turn. */
    const watched = async (work: (cache: TreeCache, ino: number) => unknown): Promise<Set<number>> => {
      const { cache, ino } = await cacheOf(far.remote, { prefetch: 'off', fetchBytesMax: 4 * MiB })
      const sizes = new Set<number>()
      let isDone = false
      const watching = (async () => {
        for (; !isDone; await new Promise(setImmediate)) sizes.add(cache.present(ino))
      })()
      await work(cache, ino)
      isDone = true
      await watching
      const into = Buffer.alloc(4 * MiB)
      expect(await cache.read(ino, 0, into)).toBe(into.length)
      expect(into.equals(bytes)).toBe(true)
      sizes.add(cache.present(ino))
      return sizes
    }
    const pulled = await watched(cache => cache.pull(''))
    expect([...pulled].sort((a, b) => a - b)).toEqual(Array.from({ length: 33 }, (_, n) => n * 128 * KiB))
    const read = await watched((cache, ino) => cache.read(ino, 0, Buffer.alloc(4 * MiB)))
    expect([...read]).toEqual([0, 4 * MiB])
    // The file was replaced in the middle: nothing of the old one is left.
    const { cache, ino } = await cacheOf(far.remote, { fetchBytesMax: 4 * MiB, readOnly: true, prefetch: 'off' })
    const pulling = cache.pull('').catch(() => {})
    while (cache.present(ino) === 0) await new Promise(setImmediate)
    await far.tree.write(
      'file',
      0,
      bytes.map(byte => byte ^ 0xff),
    )
    await cache.refresh('')
    await pulling
    const into = Buffer.alloc(4 * MiB)
    await cache.read(ino, 0, into)
    expect(into.every((byte, at) => byte === (bytes[at] ^ 0xff))).toBe(true)
  })

  describe('a chunk that nobody reads yet is written by another thread', () => {
    /** The first chunk of `chunks` is pulled; its bytes are in no slot of the file's yet. */
    async function pullHeld(chunks = 1) {
      const bytes = pattern(chunks * 128 * KiB)
      const far = await countedRemote(bytes)
      const directory = newDirectory()
      const disk = diskStorage(directory)
      const gate = deferred()
      const held = { writes: 0, error: undefined as Error | undefined, release: () => gate.resolve() }
      const open: Storage['open'] = (name, options) => {
        const file = disk.open(name, options)
        if (name !== 'data') return file
        const write = file.write.bind(file)
        file.write = async (from, at) => {
          held.writes++
          await gate.promise
          const { error } = held
          held.error = undefined
          if (error) throw error
          await write(from, at)
        }
        return file
      }
      const storage = new Proxy<Storage>(disk, {
        get(target, name) {
          if (name === 'open') return open
          const value = Reflect.get(target, name)
          return typeof value === 'function' ? value.bind(target) : value
        },
      })
      const { cache, ino } = await cacheOf(far.remote, { storage, prefetch: 'off', fetchBytesMax: MiB }, directory)
      const pulling = cache.pull('')
      while (held.writes === 0) await new Promise(setImmediate)
      /** Of the disk, but for what the header of the data file takes. */
      const placed = () => fs.statSync(join(directory, 'data')).blocks * 512 - 4 * KiB
      return { bytes, far, cache, ino, held, pulling, placed }
    }
    const contents = async (cache: TreeCache, ino: number, length: number) => {
      const into = Buffer.alloc(length)
      expect(await cache.read(ino, 0, into)).toBe(length)
      return into
    }

    test('what is written meanwhile stays', async () => {
      const { bytes, cache, ino, held, pulling, placed } = await pullHeld(2)
      await cache.write(ino, 4_096, Buffer.alloc(8_192, 7))
      held.release()
      await pulling
      bytes.fill(7, 4_096, 12_288)
      expect((await contents(cache, ino, bytes.length)).equals(bytes)).toBe(true)
      expect([held.writes, placed()]).toEqual([2, 2 * 128 * KiB])
      await cache.sync()
      expect((await contents(cache, ino, bytes.length)).equals(bytes)).toBe(true)
    })

    test('who reads it now has it from what was fetched', async () => {
      const { bytes, far, cache, ino, held, pulling } = await pullHeld()
      const reading = contents(cache, ino, bytes.length)
      held.release()
      expect((await reading).equals(bytes)).toBe(true)
      await pulling
      expect(far.reads).toHaveLength(1)
    })

    test('what is cut off meanwhile does not come back', async () => {
      const { bytes, cache, ino, held, pulling } = await pullHeld()
      await cache.setAttributes(ino, { size: 5_000 })
      await cache.setAttributes(ino, { size: bytes.length })
      held.release()
      await pulling
      bytes.fill(0, 5_000)
      expect((await contents(cache, ino, bytes.length)).equals(bytes)).toBe(true)
    })

    test('a disk that is full for a moment is asked again', async () => {
      const { bytes, far, cache, ino, held, pulling } = await pullHeld()
      held.error = new FerryError('NO_SPACE', { detail: 'for a moment' })
      held.release()
      await pulling
      expect(held.writes).toBe(2)
      expect((await contents(cache, ino, bytes.length)).equals(bytes)).toBe(true)
      expect(far.reads).toHaveLength(1)
    })

    test('of a file that is removed meanwhile nothing is kept, nor is its place', async () => {
      const { cache, held, pulling, placed } = await pullHeld()
      await cache.unlink(1, 'file')
      held.release()
      await pulling.catch(() => {})
      await cache.sync()
      expect([cache.status().cache.bytes, placed()]).toEqual([0, 0])
    })
  })

  test('the memory of what was read is given back, whether it was kept or had become another version', async () => {
    const far = await countedRemote(pattern(4 * MiB))
    const given: Uint8Array[] = []
    const answered: unknown[] = []
    let hold: Promise<void> | undefined
    const late = wrap(far.remote, async (call, next) => {
      const answer = await next()
      if (call.method !== 'read') return answer
      answered.push(answer)
      await hold
      return answer
    })
    const remote = Object.assign(rollforward(late), { giveBack: (bytes: Uint8Array) => given.push(bytes) })
    const directory = newDirectory()
    const options = engineOptions(directory, { fetchBytesMax: MiB, readOnly: true, prefetch: 'off' })
    const cache = await openTreeCache(remote, options)
    opened.push(cache)
    const { ino } = (await cache.lookup(1, 'file'))!
    await cache.read(ino, 0, Buffer.alloc(MiB))
    expect(given).toHaveLength(1)
    const gate = deferred()
    hold = gate.promise
    const reading = cache.read(ino, 2 * MiB, Buffer.alloc(MiB))
    while (answered.length < 2) await new Promise(setImmediate)
    await far.tree.write('file', 0, Buffer.alloc(4096, 7))
    await far.tree.setAttributes('file', { mtimeNs: 1_000_000_001n })
    await cache.refresh('')
    gate.resolve()
    await reading
    expect([answered.length, given.length]).toEqual([3, 3])
    for (const [n, bytes] of given.entries()) expect(bytes === answered[n]).toBe(true)
  })

  test('what was guessed for a reader who reads elsewhere now is forgotten, if it is not on its way yet', async () => {
    const { remote, reads, hold, release } = await countedRemote(pattern(40 * MiB))
    const { cache, ino } = await cacheOf(remote, { pullWorkers: 2 })
    const into = new Uint8Array(128 * KiB)
    for (let at = 0; at < 8 * MiB; at += into.length) await cache.read(ino, at, into)
    hold()
    const begun = reads.length
    const on = cache.read(ino, 8 * MiB, into)
    const elsewhere = cache.read(ino, 30 * MiB, into)
    release()
    await Promise.all([on, elsewhere])
    await new Promise(resolve => setTimeout(resolve, 200))
    const bytes = reads.slice(begun).reduce((sum, { length }) => sum + length, 0)
    expect(bytes).toBeLessThan(12 * MiB)
  })

  test('within its disk budget clean chunks leave, and what was read twice stays longer', async () => {
    const { remote } = await countedRemote(pattern(32 * MiB))
    const { cache, ino } = await cacheOf(remote, { cacheBytesMax: 9 * MiB, prefetch: 'off', kernelBytesMax: MiB })
    for (let at = 0; at < 32 * MiB; at += MiB) {
      await cache.read(ino, at, Buffer.alloc(MiB))
      expect(cache.status().cache.bytes).toBeLessThanOrEqual(9 * MiB)
    }
  })

  test('what is on its way has its room already: many at once stay within the budget, and none fails', async () => {
    const source = pattern(32 * MiB)
    const { remote, reads, hold, release } = await countedRemote(source)
    const { cache, ino } = await cacheOf(remote, { cacheBytesMax: 9 * MiB, prefetch: 'off', kernelBytesMax: MiB })
    hold()
    const all = Array.from({ length: 32 }, async (_, n) => {
      const into = Buffer.alloc(MiB)
      await cache.read(ino, n * MiB, into)
      expect(cache.status().cache.bytes).toBeLessThanOrEqual(9 * MiB)
      expect(into.equals(source.subarray(n * MiB, (n + 1) * MiB))).toBe(true)
    })
    await turns()
    expect(reads.length).toBeLessThanOrEqual(8)
    release()
    await Promise.all(all)
    expect(cache.status().memory.bytes).toBe(0)
  })

  test('a recorded profile is fetched ahead in the next run', async () => {
    const { remote, tree } = await countedRemote(pattern(8 * MiB))
    const directory = newDirectory()
    const record = `${directory}/profile`
    const first = await cacheOf(remote, { record, prefetch: 'off' })
    await first.cache.read(first.ino, 5 * MiB, Buffer.alloc(64 * KiB))
    await first.cache.read(first.ino, 2 * MiB, Buffer.alloc(64 * KiB))
    await first.cache.close()
    expect(fs.readFileSync(record, 'utf8')).toContain(`${5 * MiB} 131072 file\n${2 * MiB} 131072 file`)
    const { remote: again, reads } = { remote: tree as Tree, reads: [] as string[] }
    void reads
    const second = await cacheOf(again, { prefetch: { file: record } })
    await turns()
    await second.cache.read(second.ino, 2 * MiB, Buffer.alloc(64 * KiB))
    expect(second.cache.status().reads.misses).toBe(0)
  })
})
