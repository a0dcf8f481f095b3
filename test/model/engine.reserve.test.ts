// What fallocate(2) asked for counts as allocated until it is a hole again: against a model that has a set of pages.
import fs from 'node:fs'
import { afterEach, describe, expect, test } from '@jest/globals'
import { type Random, random as randomOf } from '../../src/base/random.js'
import type { Ino } from '../../src/cache/filesystem.js'
import type { TreeCache } from '../../src/cache/tree-cache.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { seeded } from '../remotes/commits.js'
import { openEngine, settled, temporaryDirectory } from './engine-harness.js'

const FILE = { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }
const PAGE = 4096
const PAGES = 100
const ROUNDS = Number(process.env.ROUNDS ?? 20)
const STEPS = 60

const undone: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of undone.splice(0).reverse()) await undo()
})

function directory() {
  const made = temporaryDirectory()
  undone.push(() => fs.rmSync(made, { recursive: true, force: true }))
  return made
}

async function open(cacheDir: string, remote = memTree()): Promise<TreeCache> {
  const cache = await openEngine(remote, cacheDir)
  undone.push(() => cache.close().catch(() => {}))
  return cache
}

async function create(cache: TreeCache, name: string): Promise<Ino> {
  const { ino } = await settled(cache.make(1, name, FILE))
  // As the kernel does before it tells of a write.
  cache.opened(ino, true)
  return ino
}

const pagesOf = async (cache: TreeCache, ino: Ino) => {
  const { blocks } = await settled(cache.attributes(ino))
  return blocks / (PAGE / 512)
}

/** Pages that are not holes, and the size. */
interface Model {
  pages: Set<number>
  size: number
}

const within = (model: Model, from: number, to: number, change: (page: number) => void) => {
  for (let page = Math.floor(from / PAGE); page < Math.ceil(to / PAGE); page++) change(page)
  return model
}

async function step(cache: TreeCache, ino: Ino, model: Model, { below }: Pick<Random, 'below'>): Promise<string> {
  const at = below(PAGES * PAGE)
  const length = 1 + below(30 * PAGE)
  const end = at + length
  const add = (page: number) => void model.pages.add(page)
  switch (below(6)) {
    case 0: {
      await cache.write(ino, at, Buffer.alloc(length, 7))
      within(model, at, end, add).size = Math.max(model.size, end)
      return `write ${at}+${length}`
    }
    case 1: {
      await cache.setAttributes(ino, { size: at })
      model.pages = new Set([...model.pages].filter(page => at > model.size || page < Math.ceil(at / PAGE)))
      model.size = at
      return `truncate ${at}`
    }
    case 2: {
      await cache.allocate(ino, { at, length }, { kind: 'punch', keepSize: true })
      // The pages at the edges are written with zeros.
      const last = end >= model.size ? Math.ceil(model.size / PAGE) : Math.floor(end / PAGE)
      const first = Math.ceil(at / PAGE)
      if (at < model.size) {
        within(model, at, Math.min(end, model.size), add)
        for (let page = first; page < last; page++) model.pages.delete(page)
      }
      return `punch ${at}+${length}`
    }
    default: {
      const kind = below(3) === 0 ? 'zero' : 'allocate'
      const keepSize = below(2) === 0
      await cache.allocate(ino, { at, length }, { kind, keepSize })
      within(model, at, end, add)
      if (!keepSize) model.size = Math.max(model.size, end)
      return `${kind} ${at}+${length}${keepSize ? ' keeping the size' : ''}`
    }
  }
}

describe('what is reserved', () => {
  seeded(
    'is allocated until it is cut off or punched, whatever was written into it, also after a crash and a restart',
    async seed => {
      for (let round = 0; round < ROUNDS; round++) {
        const random = randomOf(seed + round)
        let cacheDir = directory()
        let cache = await open(cacheDir)
        const ino = await create(cache, 'f')
        const model: Model = { pages: new Set(), size: 0 }
        const done: string[] = []
        for (let n = 0; n < STEPS; n++) {
          done.push(await step(cache, ino, model, random))
          const { size } = await settled(cache.attributes(ino))
          const some = model.pages.size || 1 / 8
          expect({ done, size, pages: await pagesOf(cache, ino) }).toEqual({ done, size: model.size, pages: some })
          if (random.below(15) > 0) continue
          const next = directory()
          const isKilled = random.below(2) === 0
          if (isKilled) fs.cpSync(cacheDir, next, { recursive: true })
          await cache.close()
          if (!isKilled) fs.cpSync(cacheDir, next, { recursive: true })
          cacheDir = next
          cache = await open(cacheDir)
          cache.opened(ino, true)
          done.push(isKilled ? 'killed' : 'closed')
        }
      }
    },
  )

  test('is remembered when a file that was reserved as a whole is written here and there, too often to remember where', async () => {
    const cache = await open(directory())
    const ino = await create(cache, 'f')
    await cache.allocate(ino, { at: 0, length: 4_000 * PAGE }, { kind: 'allocate', keepSize: false })
    for (let page = 0; page < 4_000; page += 2) await cache.write(ino, page * PAGE, Buffer.alloc(PAGE, 1))
    expect(await pagesOf(cache, ino)).toBe(4_000)
  })

  test('is all that is remembered of a file that was written here and there before', async () => {
    const cache = await open(directory())
    const ino = await create(cache, 'f')
    for (let page = 0; page < 4_000; page += 2) await cache.write(ino, page * PAGE, Buffer.alloc(PAGE, 1))
    expect(await pagesOf(cache, ino)).toBe(2_000)
    await cache.allocate(ino, { at: 0, length: 3_999 * PAGE }, { kind: 'allocate', keepSize: true })
    expect(await pagesOf(cache, ino)).toBe(3_999)
  })

  test('counts for a file of which only the remote knows where its holes are', async () => {
    const remote = memTree()
    const first = await open(directory(), remote)
    await first.setAttributes(await create(first, 'f'), { size: 50 * PAGE })
    await first.sync()
    await first.close()
    const cache = await open(directory(), remote)
    const inode = await cache.lookup(1, 'f')
    expect(inode).toMatchObject({ size: 50 * PAGE })
    const before = await pagesOf(cache, inode!.ino)
    expect(before).toBeLessThan(1)
    await cache.allocate(inode!.ino, { at: 0, length: 20 * PAGE }, { kind: 'allocate', keepSize: true })
    expect(await pagesOf(cache, inode!.ino)).toBe(20)
    // Beyond its end are holes for certain, whatever else is reserved.
    await cache.allocate(inode!.ino, { at: 50 * PAGE, length: 100 * PAGE }, { kind: 'allocate', keepSize: true })
    expect(await pagesOf(cache, inode!.ino)).toBe(120)
    await cache.allocate(inode!.ino, { at: 0, length: 30 * PAGE }, { kind: 'allocate', keepSize: true })
    expect(await pagesOf(cache, inode!.ino)).toBe(130)
  })
})
