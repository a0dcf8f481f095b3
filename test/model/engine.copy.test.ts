// copy_file_range of clean chunks: nothing is read or sent, whichever of the two files changes afterwards, and whatever becomes of the
// remote's file meanwhile.
import fs from 'node:fs'
import { afterEach, describe, expect, test } from '@jest/globals'
import { random as randomOf } from '../../src/base/random.js'
import type { Ino } from '../../src/cache/filesystem.js'
import type { TreeCache, TreeCacheOptions } from '../../src/cache/tree-cache.js'
import { CHUNK_BYTES, PAGE_BYTES } from '../../src/chunk/geometry.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Objects } from '../../src/remote/objects.js'
import type { Tree } from '../../src/remote/tree.js'
import { type Call, wrap } from '../../src/remote/wrap.js'
import { seeded } from '../remotes/commits.js'
import { openEngine, settled, snapshot, temporaryDirectory } from './engine-harness.js'

const FILE = { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }
const MiB = 1024 * 1024
const SIZE = 3 * MiB + 5_000
const ROUNDS = Number(process.env.ROUNDS ?? 6)
const STEPS = 60

const undone: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of undone.splice(0).reverse()) await undo()
})

const remotes = { tree: () => memTree(), objects: () => memObjects({ capabilities: { partBytesMin: 100_000 } }) }
type Kind = keyof typeof remotes

function directory() {
  const made = temporaryDirectory()
  undone.push(() => fs.rmSync(made, { recursive: true, force: true }))
  return made
}

/** Bytes that went to the remote and came from it, but for what is ours there. */
const travelled = { sent: 0, received: 0 }

function counted(remote: Tree | Objects): Tree | Objects {
  const around = async (call: Call, next: () => Promise<unknown>) => {
    const result = await next()
    for (const arg of call.args) if (arg instanceof Uint8Array) travelled.sent += arg.byteLength
    if (result instanceof Uint8Array) travelled.received += result.byteLength
    return result
  }
  return remote.shape === 'tree' ? wrap(remote, around) : wrap(remote, around)
}

async function open(remote: Tree | Objects, cacheDir: string, changes: Partial<TreeCacheOptions> = {}) {
  const cache = await openEngine(remote, cacheDir, changes)
  undone.push(() => cache.close().catch(() => {}))
  return cache
}

const bytesOf = (size: number, seed: number) => Buffer.from(randomOf(seed).bytes(size))

async function create(cache: TreeCache, name: string, bytes?: Uint8Array): Promise<Ino> {
  const { ino } = await settled(cache.make(1, name, FILE))
  if (bytes) await cache.write(ino, 0, bytes)
  return ino
}

async function copy(cache: TreeCache, from: Ino, into: Ino, { at = 0, to = 0, length = 2 ** 40 } = {}) {
  let calls = 0
  for (let done = 0, count = 1; count > 0 && done < length; done += count) {
    count = await cache.copy({ ino: from, at: at + done }, { ino: into, at: to + done }, length - done)
    calls++
  }
  return calls
}

async function read(cache: TreeCache, ino: Ino): Promise<Buffer> {
  const into = Buffer.alloc((await settled(cache.attributes(ino))).size)
  expect(await cache.read(ino, 0, into)).toBe(into.length)
  return into
}

/** What it would be for another host. */
async function atRemote(remote: Tree | Objects, name: string): Promise<Buffer> {
  const cache = await open(remote, directory(), { readOnly: true })
  const found = (await cache.lookup(1, name))!
  const bytes = await read(cache, found.ino)
  await cache.close()
  return bytes
}

/** What the cache's data file takes of the disk. */
const takenBytes = (cacheDir: string) => fs.statSync(`${cacheDir}/data`).blocks * 512

describe.each(['tree', 'objects'] as const)('a copy of a clean file; its remote: %s', (kind: Kind) => {
  async function start(changes: Partial<TreeCacheOptions> = {}) {
    const plain = remotes[kind]()
    const remote = counted(plain)
    const cacheDir = directory()
    const cache = await open(remote, cacheDir, changes)
    const bytes = bytesOf(SIZE, 1)
    const source = await create(cache, 'source', bytes)
    await cache.sync()
    Object.assign(travelled, { sent: 0, received: 0 })
    return { plain, remote, cache, cacheDir, bytes, source }
  }

  test('costs neither space nor bytes that travel', async () => {
    const { remote, cache, cacheDir, bytes, source } = await start()
    const taken = takenBytes(cacheDir)
    const target = await create(cache, 'target')
    // What was copied, and that there is no more.
    expect(await copy(cache, source, target)).toBe(2)
    expect(takenBytes(cacheDir)).toBe(taken)
    expect((await read(cache, target)).equals(bytes)).toBe(true)
    expect(cache.status().lag.bytes).toBe(Math.ceil(SIZE / PAGE_BYTES) * PAGE_BYTES)
    await cache.sync()
    expect(travelled).toEqual({ sent: expect.any(Number), received: expect.any(Number) })
    expect(travelled.sent + travelled.received).toBeLessThan(20_000)
    expect(cache.status().batches.copiedBytes).toBe(SIZE)
    expect((await atRemote(remote, 'target')).equals(bytes)).toBe(true)
    expect((await atRemote(remote, 'source')).equals(bytes)).toBe(true)
  })

  test('of what is not here fetches it, and sends nothing', async () => {
    const { remote, cache, bytes, source } = await start()
    await cache.evict('')
    await copy(cache, source, await create(cache, 'target'))
    await cache.sync()
    expect(travelled.received).toBeLessThan(SIZE + 20_000)
    expect(travelled.sent).toBeLessThan(20_000)
    expect((await atRemote(remote, 'target')).equals(bytes)).toBe(true)
  })

  test('into the middle of a file shares what is whole in both', async () => {
    const { remote, cache, bytes, source } = await start()
    const before = bytesOf(2 * MiB, 2)
    const target = await create(cache, 'target', before)
    await cache.sync()
    await copy(cache, source, target, { at: 1_000, to: MiB + 1_000, length: MiB })
    const wanted = Buffer.alloc(2 * MiB + 1_000)
    before.copy(wanted)
    bytes.copy(wanted, MiB + 1_000, 1_000, MiB + 1_000)
    expect((await read(cache, target)).equals(wanted)).toBe(true)
    await cache.sync()
    expect(cache.status().batches.copiedBytes).toBe(7 * CHUNK_BYTES)
    expect((await atRemote(remote, 'target')).equals(wanted)).toBe(true)
  })

  test('is another file: what is written to either is not in the other', async () => {
    const { remote, cache, bytes, source } = await start()
    const target = await create(cache, 'target')
    await copy(cache, source, target)
    const [inSource, inTarget] = [Buffer.from(bytes), Buffer.from(bytes)]
    const change = async (ino: Ino, model: Buffer, at: number, fill: number) => {
      const some = Buffer.alloc(10_000, fill)
      await cache.write(ino, at, some)
      some.copy(model, at)
    }
    const same = async () => {
      expect((await read(cache, source)).equals(inSource)).toBe(true)
      expect((await read(cache, target)).equals(inTarget)).toBe(true)
    }
    await change(source, inSource, 5_000, 1)
    await change(target, inTarget, 2 * CHUNK_BYTES + 7, 2)
    await same()
    await cache.sync()
    await change(source, inSource, 3 * CHUNK_BYTES, 3)
    await change(target, inTarget, 3 * CHUNK_BYTES, 4)
    await cache.allocate(target, { at: 4 * CHUNK_BYTES, length: 8_192 }, { kind: 'punch', keepSize: true })
    inTarget.fill(0, 4 * CHUNK_BYTES, 4 * CHUNK_BYTES + 8_192)
    await same()
    await cache.sync()
    await same()
    expect((await atRemote(remote, 'source')).equals(inSource)).toBe(true)
    expect((await atRemote(remote, 'target')).equals(inTarget)).toBe(true)
  })

  test('has the bytes that it was made of, though they are gone at the remote', async () => {
    const { plain, remote, cache, bytes, source } = await start()
    const target = await create(cache, 'target')
    await copy(cache, source, target)
    const theirs = Buffer.alloc(SIZE, 7)
    await (plain.shape === 'tree' ? plain.write('source', 0, theirs) : plain.put('source', theirs))
    const next = await create(cache, 'third')
    await copy(cache, source, next)
    await cache.unlink(1, 'source')
    await cache.sync()
    expect(cache.status().batches.copiedBytes).toBe(0)
    for (const name of ['target', 'third']) expect((await atRemote(remote, name)).equals(bytes)).toBe(true)
  })

  test('is sent as it is, though it was changed where it lies', async () => {
    const { remote, cache, bytes, source } = await start()
    const target = await create(cache, 'target')
    await copy(cache, source, target)
    // With a checkpoint: the chunks are the target's alone from then on.
    await cache.evict('source')
    bytes.write('changed')
    await cache.write(target, 0, Buffer.from('changed'))
    await cache.sync()
    expect((await atRemote(remote, 'target')).equals(bytes)).toBe(true)
    expect(cache.status().batches.copiedBytes).toBe(SIZE - CHUNK_BYTES)
  })

  test('is there after kill -9, though its source has left the cache', async () => {
    const { remote, cache, cacheDir, bytes, source } = await start()
    const target = await create(cache, 'target')
    await copy(cache, source, target)
    await cache.evict('source')
    await cache.write(target, 3, Buffer.from('changed'))
    await cache.write(source, MiB, Buffer.from('changed'))
    const killed = directory()
    fs.cpSync(cacheDir, killed, { recursive: true })
    await cache.close()
    const again = await open(remote, killed)
    const inTarget = Buffer.from(bytes)
    inTarget.write('changed', 3)
    const inSource = Buffer.from(bytes)
    inSource.write('changed', MiB)
    expect((await read(again, (await again.lookup(1, 'target'))!.ino)).equals(inTarget)).toBe(true)
    expect((await read(again, (await again.lookup(1, 'source'))!.ino)).equals(inSource)).toBe(true)
    expect(again.status().cache.corrupt).toBe(0)
    await again.sync()
    expect((await atRemote(remote, 'target')).equals(inTarget)).toBe(true)
  })

  test('may be changed in place when its source has left the cache for want of room, and not before replay would know', async () => {
    const { remote, cache, cacheDir, bytes, source } = await start()
    const filler = await create(cache, 'filler', bytesOf(4 * MiB, 3))
    await cache.sync()
    await cache.evict('filler')
    await copy(cache, source, await create(cache, 'target'))
    // Its end is a checkpoint, which has both files with the same slots.
    await cache.close()
    const small = await open(remote, cacheDir, { cacheBytesMax: 9 * MiB })
    const target = (await small.lookup(1, 'target'))!.ino
    expect((await small.lookup(1, 'filler'))!.ino).toBe(filler)
    await read(small, filler)
    expect(small.present(source)).toBeLessThan(SIZE)
    await small.write(target, 0, Buffer.alloc(SIZE, 9))
    const killed = directory()
    fs.cpSync(cacheDir, killed, { recursive: true })
    await small.close()
    const again = await open(remote, killed)
    expect((await read(again, source)).equals(bytes)).toBe(true)
    expect((await read(again, target)).equals(Buffer.alloc(SIZE, 9))).toBe(true)
    expect(again.status().cache.corrupt).toBe(0)
  })

  test('gives its space back, also what was made anew while it was on its way', async () => {
    const plain = remotes[kind]()
    const cacheDir = directory()
    let hold: Promise<void> | null = null
    const around = async (call: Call, next: () => Promise<unknown>) => {
      if (call.method === 'copy' || call.method === 'copyPart') await hold
      return next()
    }
    const cache = await open(plain.shape === 'tree' ? wrap(plain, around) : wrap(plain, around), cacheDir)
    const bytes = bytesOf(SIZE, 1)
    const source = await create(cache, 'source', bytes)
    await cache.sync()
    const target = await create(cache, 'target')
    await copy(cache, source, target)
    let release = () => {}
    hold = new Promise(resolve => {
      release = resolve
    })
    const sent = cache.sync()
    await new Promise(resolve => setTimeout(resolve, 50))
    await cache.write(target, 0, Buffer.alloc(MiB, 1))
    await copy(cache, source, target)
    release()
    await sent
    await cache.sync()
    expect((await atRemote(plain, 'target')).equals(bytes)).toBe(true)
    for (const name of ['source', 'target']) await cache.unlink(1, name)
    await cache.sync()
    await cache.evict('')
    expect(cache.status().cache).toMatchObject({ chunks: 0, bytes: 0 })
    await cache.close()
    // Freed slots have their holes once nobody could use them again: so do those of a cache that was opened anew.
    const again = await open(plain, cacheDir)
    expect(again.status().cache).toMatchObject({ chunks: 0, bytes: 0 })
    await again.close()
    expect(takenBytes(cacheDir)).toBeLessThan(MiB)
  })

  test('waits for the dirty limit, and goes on', async () => {
    const { remote, cache, bytes, source } = await start({ dirtyBytesMax: MiB, flushIntervalMs: 5 })
    const target = await create(cache, 'target')
    expect(await copy(cache, source, target)).toBeGreaterThan(10)
    expect(cache.status().lag.bytes).toBeLessThanOrEqual(MiB)
    await cache.sync()
    expect((await atRemote(remote, 'target')).equals(bytes)).toBe(true)
  })

  test('is not sent ahead while it grows', async () => {
    const { remote, cache, source: other } = await start({ flushIntervalMs: 5, delayMsMax: 3_600_000 })
    const bytes = bytesOf(12 * MiB, 4)
    const source = await create(cache, 'larger', bytes)
    await cache.sync()
    Object.assign(travelled, { sent: 0, received: 0 })
    const target = await create(cache, 'target')
    cache.opened(target, true)
    await copy(cache, source, target)
    // Turns in which it might be.
    for (let n = 0; n < 10; n++) {
      await cache.setXattr(other, 'user.turn', Buffer.from(String(n)), 'set')
      await new Promise(resolve => setTimeout(resolve, 20))
    }
    cache.released(target, true)
    await cache.sync()
    expect(travelled.sent).toBeLessThan(100_000)
    expect((await atRemote(remote, 'target')).equals(bytes)).toBe(true)
  })

  seeded('is what it should be, by chance', async seed => {
    for (let round = 0; round < ROUNDS; round++) await walk(seed + round, kind)
  })
})

/** Few files of few chunks, so that the same slot is shared, let go of, and shared again, between checkpoints, batches and kills. */
async function walk(seed: number, kind: Kind) {
  const random = randomOf(seed)
  const remote = remotes[kind]()
  let cacheDir = directory()
  let cache = await open(remote, cacheDir)
  const names = ['a', 'b', 'c']
  const model = new Map(names.map(name => [name, Buffer.alloc(0)]))
  for (const name of names) await create(cache, name)
  const log: string[] = [`seed ${seed}`]
  const ino = async (name: string) => (await cache.lookup(1, name))!.ino
  const boundary = (bytes: Buffer) => CHUNK_BYTES * random.below(1 + Math.floor(bytes.length / CHUNK_BYTES))
  const check = async () => {
    for (const [name, bytes] of model)
      if (!(await read(cache, await ino(name))).equals(bytes)) throw new Error(`${name} is something else`)
  }
  try {
    for (let n = 0; n < STEPS; n++) {
      const [name, other] = [random.pick(names), random.pick(names)]
      const bytes = model.get(name)!
      const what = random.below(13)
      if (what <= 2 && name !== other) {
        const source = model.get(other)!
        const [at, to] = [boundary(source), boundary(bytes)]
        const length = random.chance(0.6) ? source.length : CHUNK_BYTES * (1 + random.below(3))
        log.push(`copy ${other} ${at}+${length} to ${name} ${to}`)
        const count = Math.max(0, Math.min(length, source.length - at))
        await copy(cache, await ino(other), await ino(name), { at, to, length })
        const made = Buffer.alloc(count ? Math.max(bytes.length, to + count) : bytes.length)
        bytes.copy(made)
        source.copy(made, to, at, at + count)
        model.set(name, made)
      } else if (what <= 4) {
        const at = random.below(bytes.length + 1)
        const data = bytesOf(1 + random.below(random.chance(0.3) ? 300_000 : 9_000), n)
        log.push(`write ${name} ${at}+${data.length}`)
        await cache.write(await ino(name), at, data)
        const made = Buffer.alloc(Math.max(bytes.length, at + data.length))
        bytes.copy(made)
        data.copy(made, at)
        model.set(name, made)
      } else if (what === 5) {
        const size = random.below(400_000)
        log.push(`truncate ${name} ${size}`)
        await cache.setAttributes(await ino(name), { size })
        const made = Buffer.alloc(size)
        bytes.copy(made)
        model.set(name, made)
      } else if (what === 6) {
        const [at, length] = [random.below(300_000), 1 + random.below(200_000)]
        log.push(`punch ${name} ${at}+${length}`)
        await cache.allocate(await ino(name), { at, length }, { kind: 'punch', keepSize: true })
        model.set(name, Buffer.from(bytes).fill(0, Math.min(at, bytes.length), Math.min(bytes.length, at + length)))
      } else if (what === 7) {
        log.push(`evict ${name}`)
        await cache.evict(name)
      } else if (what <= 9) {
        log.push('sync')
        await cache.sync()
      } else if (what === 10) {
        log.push('evict all')
        await cache.evict('')
      } else if (what === 11) {
        log.push('open anew')
        await cache.close()
        cache = await open(remote, cacheDir)
      } else {
        log.push('kill')
        const killed = directory()
        fs.cpSync(cacheDir, killed, { recursive: true })
        await cache.close()
        cacheDir = killed
        cache = await open(remote, cacheDir)
        await check()
        expect(cache.status().cache.corrupt).toBe(0)
      }
      if (random.chance(0.2)) await check()
    }
    await cache.sync()
    await check()
    const fresh = await open(remote, directory())
    expect(await snapshot(fresh)).toEqual(await snapshot(cache))
    await cache.close()
  } catch (error) {
    if (error instanceof Error) error.message = `${log.join('\n')}\n${error.message}`
    throw error
  }
}
