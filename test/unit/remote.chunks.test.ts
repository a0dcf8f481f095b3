// A blob that is kept chunk by chunk: long histories against a model, what they cost, and what they leave behind.
import { describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { freshSeed, type Random, random as randomOf } from '../../src/base/random.js'
import type { Blob, BlobChange } from '../../src/remote/blob.js'
import { changesOf } from '../../src/remote/blob-tree.js'
import { neighbours, parseRun, type Run, RunIndex, runOf } from '../../src/remote/chunk-runs.js'
import { ChunkStore } from '../../src/remote/chunk-store.js'
import type { Commits } from '../../src/remote/commits.js'
import { memStore } from '../../src/remote/mem-store.js'
import { rollforwardChunks } from '../../src/remote/rollforward-chunks.js'
import type { Store } from '../../src/remote/store.js'
import { countBytes, wrap } from '../../src/remote/wrap.js'
import { claimOf } from '../remotes/commits.js'

const SEED = Number(process.env.SEED ?? freshSeed())
const PAGE = 4096
const geometry = { size: 100 * PAGE + 123, chunkBytes: 4 * PAGE }
const RUN_BYTES = 16 * PAGE

/** Puts fail now and then, before they are done or after. */
const flaky = (store: Store, random: Random, chance: () => number): Store =>
  wrap(store, async (call, next) => {
    const fails = call.method === 'put' && random.chance(chance())
    if (fails && random.chance(0.5)) throw new FerryError('UNREACHABLE', { detail: 'before' })
    const result = await next()
    if (fails) throw new FerryError('UNREACHABLE', { detail: 'after' })
    return result
  })

const insist = async <T>(work: () => Promise<T>): Promise<T> => {
  for (;;)
    try {
      return await work()
    } catch (error) {
      if ((error as FerryError).code !== 'UNREACHABLE') throw error
    }
}

/** One batch, with what is staged and not named. */
async function batch(
  remote: Blob & Commits<BlobChange>,
  number: number,
  before: Uint8Array,
  random: Random,
): Promise<Uint8Array> {
  const model = random.chance(0.3) ? new Uint8Array(random.below(2 * geometry.size)) : before
  const changes: BlobChange[] = model === before ? [] : [{ do: 'resize', size: model.length }]
  if (model !== before) model.set(before.subarray(0, model.length))
  const pieces: [number, Uint8Array][] = []
  for (let page = random.below(10); page * PAGE < model.length; page += 1 + random.below(20)) {
    const at = page * PAGE
    const length = Math.min(PAGE * (1 + random.below(9)), model.length - at)
    const fresh = random.bytes(length)
    const kind = random.below(5)
    if (kind === 0) changes.push({ do: 'write', at, bytes: fresh })
    else if (kind === 1) changes.push({ do: 'trim', at, length })
    else pieces.push([at, fresh])
    if (kind === 2 || kind === 3) changes.push({ do: 'write', at, length, staged: 'f' })
    if (kind < 4) model.set(kind === 1 ? new Uint8Array(length) : fresh, at)
    page += Math.ceil(length / PAGE) - 1
  }
  for (const [at, bytes] of pieces) await insist(() => remote.stage(number, 'f', at, bytes))
  await insist(() => remote.commit({ writer: 'w', number, cutAtMs: 0, changes }))
  await insist(() => remote.settle())
  return model
}

const runsIn = async (store: Store): Promise<Run[]> => (await store.list('runs/')).map(({ name }) => parseRun(name)!)

describe('chunks', () => {
  test(`a long history is as its model, for whoever reads it, with puts that fail (SEED=${SEED})`, async () => {
    for (let round = 0; round < 12; round++) {
      const random = randomOf(SEED + round)
      let model: Uint8Array = new Uint8Array(geometry.size)
      const store = memStore()
      await ChunkStore.open(store, geometry)
      let failing = 0
      const open = () =>
        rollforwardChunks(
          new ChunkStore(
            flaky(store, random, () => failing),
            geometry,
            RUN_BYTES,
          ),
          {
            ...{ now: () => 0, refreshMs: 0, alive: () => false },
          },
        )
      const reader = open()
      let writer = open()
      await writer.claim(claimOf('w'))
      for (let number = 1; number <= 25; number++) {
        failing = random.chance(0.5) ? 0.3 : 0
        if (random.chance(0.2)) {
          writer = open()
          await insist(() => writer.claim(claimOf('w')))
        }
        model = await batch(writer, number, model, random)
        await reader.version!()
        for (const one of [writer, reader]) {
          expect(one.size).toBe(model.length)
          expect(Buffer.compare(await one.read(0, one.size), model)).toBe(0)
        }
        const at = random.below(model.length + 1)
        const length = random.below(model.length - at + 1)
        expect(Buffer.compare(await reader.read(at, length), model.subarray(at, at + length))).toBe(0)
        expect(await reader.version!()).toBe(await writer.version!())
      }
      failing = 0
      model = await batch(writer, 26, model, random)
      await writer.release()
      const heir = open()
      await heir.claim(claimOf('w'))
      await heir.settle()
      expect(Buffer.compare(await heir.read(0, model.length), model)).toBe(0)
      expect((await ChunkStore.open(store, { size: model.length })).sizeThen).toBe(model.length)
      // Nothing is left of which nothing is read, and little of which little is.
      const bytes = (await store.list('runs/')).reduce((sum, { size }) => sum + size, 0)
      expect(bytes).toBeLessThanOrEqual((model.length + geometry.chunkBytes) * 5)
      const index = RunIndex.of(await runsIn(store))
      expect(index.takeDead().map(run => run.name)).toEqual([])
      expect((await store.list('heads/')).length).toBe(1)
    }
  }, 60_000)

  test('every byte travels once, neighbours in one object; a small change is in the intent first', async () => {
    const puts: [name: string, bytes: number][] = []
    const store = wrap(memStore() as Store, async (call, next) => {
      if (call.method === 'put') puts.push([String(call.args[0]), countBytes(call.args[1])])
      return next()
    })
    const MiB = 2 ** 20
    const chunks = await ChunkStore.open(store, { size: 1024 * MiB })
    const remote = rollforwardChunks(chunks)
    await remote.claim(claimOf('w'))
    puts.length = 0
    const bytes = randomOf(1).bytes(MiB)
    const changes: BlobChange[] = []
    for (let n = 0; n < 12; n++) {
      await remote.stage(1, 'f', n * MiB, bytes)
      changes.push({ do: 'write', at: n * MiB, length: MiB, staged: 'f' })
    }
    await remote.commit({ writer: 'w', number: 1, cutAtMs: 0, changes })
    await remote.settle()
    const runs = puts.filter(([name]) => name.startsWith('runs/'))
    expect(runs.map(([, count]) => count)).toEqual([4 * MiB, 4 * MiB, 4 * MiB])
    expect(puts.reduce((sum, [, count]) => sum + count, 0)).toBeLessThan(12 * MiB + 4096)

    puts.length = 0
    await remote.commit({
      ...{ writer: 'w', number: 2, cutAtMs: 0 },
      changes: [{ do: 'write', at: 5 * MiB, bytes: bytes.subarray(0, PAGE) }],
    })
    expect(puts.map(([name]) => name.replace(/\d+$/, ''))).toEqual(['.pageferry/log/'])
    await remote.settle()
    // The chunk, the head, and that it is done.
    expect(puts.length).toBe(4)
    expect(puts.reduce((sum, [, count]) => sum + count, 0)).toBeLessThan(140 * 1024)
    expect(Buffer.compare(await remote.read(5 * MiB - 10, 20), bytes.subarray(MiB - 10))).not.toBe(0)
    expect(Buffer.compare(await remote.read(5 * MiB, PAGE), bytes.subarray(0, PAGE))).toBe(0)

    puts.length = 0
    await remote.commit({
      ...{ writer: 'w', number: 3, cutAtMs: 0 },
      changes: [{ do: 'trim', at: 0, length: 1024 * MiB }],
    })
    await remote.settle()
    expect((await store.list('runs/')).map(({ size }) => size)).toEqual([0])
    expect((await remote.read(0, 64 * MiB)).every(byte => byte === 0)).toBe(true)
  })

  test('has the size that it was made with, and is not there before', async () => {
    const store = memStore()
    await expect(ChunkStore.open(store, {})).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await ChunkStore.open(store, { size: 12345 })
    expect((await ChunkStore.open(store, {})).geometry).toEqual({ size: 12345, chunkBytes: 131072 })
    await expect(ChunkStore.open(store, { size: 12346 })).rejects.toThrow(/has 12345 bytes, not 12346/)
    const [one, other] = await Promise.all([1, 2].map(() => ChunkStore.open(store, { size: 12345 })))
    expect(one.geometry).toEqual(other.geometry)
    await expect(rollforwardChunks(one).read(12340, 6)).rejects.toMatchObject({ code: 'INVALID' })
    await expect(rollforwardChunks(one).write(0, new Uint8Array(1))).rejects.toMatchObject({ code: 'UNSUPPORTED' })
  })

  test('is opened while a batch is applied: the head that was listed is gone when it is asked for', async () => {
    const store = memStore()
    const writer = rollforwardChunks(await ChunkStore.open(store, geometry))
    await writer.claim(claimOf('w'))
    const batch = async (number: number) => {
      const changes: BlobChange[] = [{ do: 'resize', size: number * PAGE }]
      await writer.commit({ writer: 'w', number, cutAtMs: 0, changes })
      await writer.settle()
    }
    await batch(1)
    let gets = 0
    const moving = wrap(store as Store, async (call, next) => {
      if (call.method === 'get' && String(call.args[0]).startsWith('heads/') && gets++ === 0) await batch(2)
      return next()
    })
    expect([(await ChunkStore.open(moving, {})).sizeThen, gets]).toEqual([2 * PAGE, 2])
  })

  test('a run that is gone is damage, not zeros', async () => {
    const store = memStore()
    const remote = rollforwardChunks(await ChunkStore.open(store, geometry))
    await remote.claim(claimOf('w'))
    await remote.commit({
      ...{ writer: 'w', number: 1, cutAtMs: 0 },
      changes: [{ do: 'write', at: 0, bytes: new Uint8Array(PAGE).fill(7) }],
    })
    await remote.settle()
    const [{ name }] = await store.list('runs/')
    await store.remove(name)
    await expect(remote.read(0, 10)).rejects.toMatchObject({ code: 'CORRUPT' })
  })
})

test('names of runs say what they are, and nothing else is one', () => {
  const place = { first: 0x12345678, count: 3, epoch: 4, batch: 5, number: 6, zeros: true }
  expect(runOf(place).name).toBe('runs/12345678-3.4.5.6.zeros')
  expect(parseRun(runOf(place).name)).toEqual(runOf(place))
  for (const other of ['runs/1-3.4.5.6', 'runs/12345678-3.4.5', 'heads/1.2', 'runs/12345678-3.4.5.6.zero'])
    expect(parseRun(other)).toBeNull()
  expect(neighbours([1, 2, 3, 5, 6, 9], 2)).toEqual([
    { first: 1, count: 2 },
    { first: 3, count: 1 },
    { first: 5, count: 2 },
    { first: 9, count: 1 },
  ])
})

test("a file's changes are a blob's: bytes, and zeros where no bytes are", () => {
  const attributes = { mode: 0o100600, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n }
  const common = { path: 'blob', size: 100, attributes, otherwise: 'blob.ours' }
  const bytes = new Uint8Array(10)
  const blob = { size: 100 }
  expect(changesOf({ do: 'put', ...common, content: { inline: [{ at: 20, bytes }] } }, blob)).toEqual([
    { do: 'write', at: 20, bytes },
    { do: 'trim', at: 0, length: 20 },
    { do: 'trim', at: 30, length: 70 },
  ])
  const patch = { ...common, floor: 95, content: { staged: 'f', extents: [{ at: 40, length: 10 }] } }
  expect(changesOf({ do: 'patch', ...patch, zeros: [{ at: 35, length: 10 }] }, blob)).toEqual([
    { do: 'write', at: 40, length: 10, staged: 'f' },
    { do: 'trim', at: 35, length: 5 },
    { do: 'trim', at: 95, length: 5 },
  ])
  expect(changesOf({ do: 'attributes', path: 'blob', attributes }, blob)).toEqual([])
  for (const change of [{ do: 'remove', path: 'blob' } as const, { do: 'patch', ...patch, size: 99 } as const])
    expect(() => changesOf(change, blob)).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))

  // Of another size, where it may have one: what it is extended by are zeros already.
  const flexible = { size: 80, resize: async () => {} }
  expect(changesOf({ do: 'patch', ...patch, floor: 60 }, flexible)).toEqual([
    { do: 'resize', size: 100 },
    { do: 'write', at: 40, length: 10, staged: 'f' },
    { do: 'trim', at: 60, length: 20 },
  ])
  expect(changesOf({ do: 'patch', ...patch, size: 50, floor: 50 }, flexible)).toEqual([
    { do: 'resize', size: 50 },
    { do: 'write', at: 40, length: 10, staged: 'f' },
  ])
})
