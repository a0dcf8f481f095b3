// What large directories of a bucket cost: requests are counted, and pages held, on objects in memory.
import fs from 'node:fs'
import { afterEach, expect, test } from '@jest/globals'
import type { DirectoryEntry } from '../../src/cache/filesystem.js'
import type { TreeCache } from '../../src/cache/tree-cache.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { wrap } from '../../src/remote/wrap.js'
import { openEngine, settled, temporaryDirectory } from './engine-harness.js'

const NAMES = 3_500
const FILE = 0o100644
const name = (n: number) => `f${String(n).padStart(5, '0')}`

/** A bucket with a large directory, which counts what it is asked for there, and shows as many pages of it as it may, but always the first. */
async function largeBucket() {
  const objects = memObjects()
  for (let n = 0; n < NAMES; n++) await objects.put(`d/${name(n)}`, Buffer.from(String(n)))
  const asked = { heads: 0, pages: 0 }
  const may = { pages: Number.POSITIVE_INFINITY, next: () => {} }
  const remote = wrap(objects as Objects, async ({ method, args }, next) => {
    const [key] = args as [string | { prefix: string; delimiter?: string; cursor?: string }]
    if (method === 'head' && String(key).startsWith('d/')) asked.heads++
    if (method === 'list' && typeof key === 'object' && key.prefix === 'd/' && key.delimiter) {
      asked.pages++
      while (key.cursor !== undefined && asked.pages > may.pages)
        await new Promise<void>(resolve => {
          may.next = resolve
        })
    }
    return next()
  })
  const show = (pages: number) => {
    may.pages = pages
    may.next()
  }
  return { objects, remote, asked, show }
}

const opened: { cache: TreeCache; directory: string }[] = []
afterEach(async () => {
  for (const { cache, directory } of opened.splice(0)) {
    await cache.close()
    fs.rmSync(directory, { recursive: true, force: true })
  }
})

async function mounted(
  { remote, asked }: Pick<Awaited<ReturnType<typeof largeBucket>>, 'remote' | 'asked'>,
  options: Parameters<typeof openEngine>[2] = {},
) {
  const directory = temporaryDirectory()
  const cache = await openEngine(remote, directory, options)
  opened.push({ cache, directory })
  const d = await cache.lookup(1, 'd')
  Object.assign(asked, { heads: 0, pages: 0 })
  return { cache, d: d!.ino }
}

async function entriesOf(cache: TreeCache, ino: number) {
  const all: DirectoryEntry[] = []
  for (let after = 0; ; after = all.at(-1)!.cookie) {
    const entries = await cache.entries(ino, after, 500)
    if (entries.length === 0) return all
    all.push(...entries)
  }
}

test('names cost a request for a thousand of them, and attributes none until they are asked for', async () => {
  const bucket = await largeBucket()
  const { asked } = bucket
  const { cache, d } = await mounted(bucket)
  const entries = await entriesOf(cache, d)
  expect(entries.map(entry => entry.name)).toEqual(Array.from({ length: NAMES }, (_, n) => name(n)))
  // The last name of a page may be that of a directory as well, which the next page has.
  expect(asked).toEqual({ heads: 3, pages: 4 })
  // Each may be a symlink, which is as small as these.
  expect(new Set(entries.map(({ type }) => type))).toEqual(new Set([0]))
  expect(cache.atHand?.(entries[0].ino)).toBeNull()

  expect(await cache.lookup(d, name(1_234))).toMatchObject({ mode: FILE, size: 4 })
  expect(await cache.lookup(d, name(77))).toMatchObject({ mode: FILE, size: 2 })
  expect(asked).toEqual({ heads: 5, pages: 4 })
})

test('who goes through a directory has the attributes of the names behind asked for with those of each, and each once', async () => {
  const bucket = await largeBucket()
  const { asked } = bucket
  const { cache, d } = await mounted(bucket)
  const entries = await entriesOf(cache, d)
  asked.heads = 0
  let waits = 0
  for (const entry of entries) {
    const found = cache.lookup(d, entry.name)
    if (found instanceof Promise) waits++
    expect(await found).toMatchObject({ ino: entry.ino, size: String(Number(entry.name.slice(1))).length })
  }
  expect(asked.heads).toBe(NAMES)
  // Twice as many each time, up to 256.
  expect(waits).toBeLessThan(NAMES / 256 + 40)
})

test('names are shown as their pages come', async () => {
  const bucket = await largeBucket()
  const { asked, show } = bucket
  const { cache, d } = await mounted(bucket)
  show(1)
  const first = await cache.entries(d, 0, 5_000)
  expect(first).toHaveLength(1_000)
  expect(await cache.lookup(d, name(10))).toMatchObject({ size: 2 })
  const second = cache.entries(d, first.at(-1)!.cookie, 5_000)
  expect(await Promise.race([second, 'waits'])).toBe('waits')
  // A name that no page has told yet is asked for alone.
  expect(await cache.lookup(d, name(3_000))).toMatchObject({ size: 4 })
  show(2)
  expect((await second).map(entry => entry.name)).toContain(name(1_500))
  show(10)
  const names = (await entriesOf(cache, d)).map(entry => entry.name)
  expect(names.sort()).toEqual(Array.from({ length: NAMES }, (_, n) => name(n)))
  expect(asked.pages).toBe(4)
})

test('batches that are settled meanwhile neither hold a listing up nor are undone by it', async () => {
  const bucket = await largeBucket()
  const { asked, show } = bucket
  const { cache, d } = await mounted(bucket)
  await cache.lookup(d, name(3))
  show(2)
  const listing = cache.entries(d, 0, 5_000)
  await listing
  // A change in the directory waits for all its names; one of what is in it does not.
  const made = cache.make(d, 'new', { mode: FILE, uid: 0, gid: 0 })
  const file = await cache.lookup(d, name(3))
  await cache.write(file!.ino, 0, Buffer.from('changed'))
  await cache.sync()
  const other = await cache.lookup(d, name(4))
  await cache.write(other!.ino, 0, Buffer.from('changed, too'))
  await cache.sync()
  show(10)
  await made
  await cache.unlink(d, name(5))
  await cache.sync()
  const names = (await entriesOf(cache, d)).map(entry => entry.name)
  expect(names).toHaveLength(NAMES)
  expect(names).toContain('new')
  expect(names).not.toContain(name(5))
  expect(asked.pages).toBeLessThan(8)
  for (const [n, size] of [
    [3, 7],
    [4, 12],
  ])
    expect(await cache.lookup(d, name(n))).toMatchObject({ size })
  expect(cache.conflicts()).toEqual([])
})

test('who knows a directory waits for another look at it, but not once a batch is applied', async () => {
  const looks: (() => void)[] = []
  let isShut = false
  const remote = wrap(memTree(), async ({ method, args }, next) => {
    if (isShut && method === 'list' && args[0] === 'd') await new Promise<void>(resolve => looks.push(resolve))
    return next()
  })
  const directory = temporaryDirectory()
  const cache = await openEngine(remote, directory, { dirTtlMs: 1 })
  opened.push({ cache, directory })
  const { ino: d } = await settled(cache.make(1, 'd', { mode: 0o040755, uid: 0, gid: 0, rdev: 0 }))
  for (const each of ['a', 'b', 'c']) await cache.make(d, each, { mode: FILE, uid: 0, gid: 0, rdev: 0 })
  await cache.sync()
  await cache.lookup(d, 'a')
  await new Promise(resolve => setTimeout(resolve, 10))
  isShut = true
  const removals = ['a', 'b'].map(each => settled(cache.unlink(d, each)))
  const isRemoved = () => Promise.race([removals[0].then(() => true), new Promise(r => setTimeout(r, 50, false))])
  expect(await isRemoved()).toBe(false)
  expect(looks).toHaveLength(1)
  await cache.make(1, 'other', { mode: FILE, uid: 0, gid: 0, rdev: 0 })
  await cache.sync()
  await Promise.all(removals)
  isShut = false
  looks[0]()
  await cache.sync()
  expect((await entriesOf(cache, d)).map(entry => entry.name)).toEqual(['c'])
})

test('what is made and removed while a directory is listed again, and settled before that ends, stays so', async () => {
  const bucket = await largeBucket()
  const { asked, show } = bucket
  const { cache, d } = await mounted(bucket)
  await entriesOf(cache, d)
  asked.pages = 0
  show(2)
  const again = cache.refresh('d')
  while (asked.pages < 3) await new Promise(resolve => setTimeout(resolve, 1))
  await cache.make(d, 'aaa', { mode: FILE, uid: 0, gid: 0 })
  await cache.rename({ parent: d, name: name(3_000) }, { parent: d, name: 'aab' }, 'replace')
  await cache.sync()
  show(20)
  await again
  const names = (await entriesOf(cache, d)).map(entry => entry.name)
  expect(names).toHaveLength(NAMES + 1)
  expect(names).toEqual(expect.arrayContaining(['aaa', 'aab']))
  expect(names).not.toContain(name(3_000))
})

test('attributes that others have changed are seen after the next listing, and not before they are asked for', async () => {
  const bucket = await largeBucket()
  const { objects, asked } = bucket
  const { cache, d } = await mounted(bucket, { dirTtlMs: 0 })
  expect(await cache.lookup(d, name(0))).toMatchObject({ mode: FILE })
  await objects.put(`d/${name(0)}`, Buffer.from('0'), { metadata: { mode: String(0o100600) } })
  await entriesOf(cache, d)
  asked.heads = 0
  expect(await cache.lookup(d, name(0))).toMatchObject({ mode: 0o100600 })
  expect(asked.heads).toBeGreaterThan(0)
})

test('a small object that turns out to be a symlink keeps its number', async () => {
  const objects = memObjects()
  await objects.put('d/link', Buffer.from('target'), { metadata: { mode: String(0o120777) } })
  const { cache, d } = await mounted({ remote: objects, asked: { heads: 0, pages: 0 } })
  const [entry] = await entriesOf(cache, d)
  expect(entry).toMatchObject({ name: 'link', type: 0 })
  expect(await cache.lookup(d, 'link')).toMatchObject({ ino: entry.ino, mode: 0o120777 })
  expect(await cache.readLink(entry.ino)).toBe('target')
  expect(await entriesOf(cache, d)).toMatchObject([{ ino: entry.ino, cookie: entry.cookie, type: 0o120000 }])
})

test('with attributes as listed, nothing but pages is asked for, and nothing can be written', async () => {
  const { remote, asked } = await largeBucket()
  const tree = rollforward(remote, { attributes: 'listed' })
  expect(tree.capabilities.write).toBe(false)
  const { entries } = await tree.list('d')
  expect(entries[0]).toMatchObject({ name: name(0), mode: FILE })
  expect(entries[0].partial).toBeUndefined()
  expect(asked.heads).toBe(1)
})
