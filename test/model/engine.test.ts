// The engine against a naive model: random trees and operations, crashes with replay, and the remote seen from an empty cache.
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { afterAll, describe, expect, jest, test } from '@jest/globals'
import { Database } from '../../src/cache/database.js'
import type { Ino } from '../../src/cache/filesystem.js'
import type { TreeCache } from '../../src/cache/tree-cache.js'
import { CHUNK_BYTES } from '../../src/chunk/geometry.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { openEngine, snapshot, temporaryDirectory } from './engine-harness.js'

const FILE = 0o100644
const DIRECTORY = 0o040755
const directories: string[] = []
afterAll(() => {
  for (const directory of directories) fs.rmSync(directory, { recursive: true, force: true })
})
const cacheDir = () => {
  const directory = temporaryDirectory()
  directories.push(directory)
  return directory
}

const seedOf = (text: string | undefined, fallback: number) => (text === undefined ? fallback : Number(text))

/** xorshift32: the same program for the same seed, everywhere. */
function randomOf(seed: number) {
  let state = seed | 0 || 1
  return (below: number) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}

type Model = Map<string, { directory: true } | { bytes: Buffer } | { link: string }>

const expected = (model: Model) =>
  new Map(
    [...model].map(([path, node]) => [
      path,
      'directory' in node
        ? 'directory 755'
        : 'link' in node
          ? `-> ${node.link}`
          : `644 ${node.bytes.toString('latin1')}`,
    ]),
  )

const sorted = (map: Map<string, string>) =>
  [...map].sort(([a], [b]) => (a < b ? -1 : 1)).map(([path, what]) => [path, what.length > 200 ? digest(what) : what])
const digest = (text: string) => `${text.length} ${createHash('sha256').update(text, 'latin1').digest('hex')}`

async function inoOf(cache: TreeCache, path: string): Promise<Ino> {
  let ino = 1
  for (const name of path.split('/').filter(Boolean)) {
    const found = await cache.lookup(ino, name)
    if (!found) throw new Error(`${path} is not there`)
    ino = found.ino
  }
  return ino
}

const parentOf = (path: string) => path.slice(0, Math.max(0, path.lastIndexOf('/')))
const nameOf = (path: string) => path.slice(path.lastIndexOf('/') + 1)

/** One random operation on both. */
async function step(cache: TreeCache, model: Model, random: (below: number) => number): Promise<string> {
  const paths = [...model.keys()]
  const pick = (accept: (node: Model extends Map<string, infer N> ? N : never) => boolean) => {
    const candidates = paths.filter(path => accept(model.get(path)!))
    return candidates.length ? candidates[random(candidates.length)] : null
  }
  const directory = () => (random(3) === 0 ? '' : (pick(node => 'directory' in node) ?? ''))
  const fresh = () => {
    const parent = directory()
    const name = `n${random(12)}`
    return parent ? `${parent}/${name}` : name
  }
  const kind = random(16)
  if (kind >= 14) {
    const [path, into] = [pick(node => 'bytes' in node), pick(node => 'bytes' in node)]
    if (!path || !into || path === into) return 'nothing'
    const [source, target] = [path, into].map(each => (model.get(each) as { bytes: Buffer }).bytes)
    const [at, to] = [source, target].map(({ length }) =>
      random(4) === 0 ? random(length + 1) : CHUNK_BYTES * random(1 + Math.floor(length / CHUNK_BYTES)),
    )
    const length = random(3) === 0 ? random(300_000) : source.length
    const [from, ino] = [await inoOf(cache, path), await inoOf(cache, into)]
    let done = 0
    for (let count = 1; count > 0 && done < length; done += count)
      count = await cache.copy({ ino: from, at: at + done }, { ino, at: to + done }, length - done)
    const bytes = Buffer.alloc(Math.max(target.length, done && to + done))
    target.copy(bytes)
    source.copy(bytes, to, at, at + done)
    expect(done).toBe(Math.max(0, Math.min(length, source.length - at)))
    model.set(into, { bytes })
    return `copy ${path} ${at}+${length} to ${into} ${to}`
  }
  if (kind <= 1) {
    const path = fresh()
    if (model.has(path)) return 'nothing'
    await cache.make(await inoOf(cache, parentOf(path)), nameOf(path), { mode: FILE, uid: 0, gid: 0 })
    model.set(path, { bytes: Buffer.alloc(0) })
    return `create ${path}`
  }
  if (kind === 2) {
    const path = fresh()
    if (model.has(path)) return 'nothing'
    await cache.make(await inoOf(cache, parentOf(path)), nameOf(path), { mode: DIRECTORY, uid: 0, gid: 0 })
    model.set(path, { directory: true })
    return `mkdir ${path}`
  }
  if (kind === 3) {
    const path = fresh()
    if (model.has(path)) return 'nothing'
    await cache.make(await inoOf(cache, parentOf(path)), nameOf(path), { mode: 0o120777, uid: 0, gid: 0, link: path })
    model.set(path, { link: path })
    return `symlink ${path}`
  }
  if (kind <= 7) {
    const path = pick(node => 'bytes' in node)
    if (!path) return 'nothing'
    const node = model.get(path) as { bytes: Buffer }
    const at = random(3) === 0 ? node.bytes.length : random(300_000)
    const length = 1 + random(random(4) === 0 ? 400_000 : 9_000)
    const data = Buffer.alloc(length, 1 + random(255))
    await cache.write(await inoOf(cache, path), at, data)
    const bytes = Buffer.alloc(Math.max(node.bytes.length, at + length))
    node.bytes.copy(bytes)
    data.copy(bytes, at)
    model.set(path, { bytes })
    return `write ${path} ${at}+${length}`
  }
  if (kind === 8) {
    const path = pick(node => 'bytes' in node)
    if (!path) return 'nothing'
    const node = model.get(path) as { bytes: Buffer }
    const size = random(300_000)
    await cache.setAttributes(await inoOf(cache, path), { size })
    const bytes = Buffer.alloc(size)
    node.bytes.copy(bytes)
    model.set(path, { bytes })
    return `truncate ${path} ${size}`
  }
  if (kind === 9) {
    const path = pick(node => 'bytes' in node)
    if (!path) return 'nothing'
    const node = model.get(path) as { bytes: Buffer }
    const at = random(300_000)
    const length = 1 + random(200_000)
    await cache.allocate(await inoOf(cache, path), { at, length }, { kind: 'punch', keepSize: true })
    const bytes = Buffer.from(node.bytes)
    if (at < bytes.length) bytes.fill(0, at, Math.min(bytes.length, at + length))
    model.set(path, { bytes })
    return `punch ${path} ${at}+${length}`
  }
  if (kind === 10) {
    const path = pick(node => !('directory' in node))
    if (!path) return 'nothing'
    await cache.unlink(await inoOf(cache, parentOf(path)), nameOf(path))
    model.delete(path)
    return `unlink ${path}`
  }
  if (kind === 11) {
    const path = pick(node => 'directory' in node)
    if (!path || paths.some(other => other.startsWith(`${path}/`))) return 'nothing'
    await cache.removeDirectory(await inoOf(cache, parentOf(path)), nameOf(path))
    model.delete(path)
    return `rmdir ${path}`
  }
  const source = pick(() => true)
  const target = fresh()
  if (!source || source === target || target.startsWith(`${source}/`)) return 'nothing'
  const other = model.get(target)
  const moved = model.get(source)!
  const exchange = kind === 13 && other !== undefined && !source.startsWith(`${target}/`)
  if (!exchange && other) {
    if ('directory' in other !== 'directory' in moved) return 'nothing'
    if (paths.some(path => path.startsWith(`${target}/`))) return 'nothing'
  }
  await cache.rename(
    { parent: await inoOf(cache, parentOf(source)), name: nameOf(source) },
    { parent: await inoOf(cache, parentOf(target)), name: nameOf(target) },
    exchange ? 'exchange' : 'replace',
  )
  const rebase = (from: string, to: string) => {
    const moves = paths.filter(path => path === from || path.startsWith(`${from}/`))
    const nodes = moves.map(path => [to + path.slice(from.length), model.get(path)!] as const)
    for (const path of moves) model.delete(path)
    return nodes
  }
  const forth = rebase(source, target)
  const back = exchange ? rebase(target, source) : []
  if (!exchange) model.delete(target)
  for (const [path, node] of [...forth, ...back]) model.set(path, node)
  return `${exchange ? 'exchange' : 'rename'} ${source} ${target}`
}

const first = seedOf(process.env.SEED, 1)
const rounds = process.env.SEED ? 1 : process.env.PAGEFERRY_LONG ? 200 : 12

/** Parts are small, so that there are objects of several, whose tags change when they move. */
const remotes = {
  tree: () => memTree(),
  objects: () => memObjects({ capabilities: { partBytesMin: 2_000 } }),
}

describe.each(['tree', 'objects'] as const)('the engine against a model, its remote: %s', kind => {
  test.each(Array.from({ length: rounds }, (_, n) => first + n))(
    'random operations, sync, crash and replay, evict, empty cache; seed %d',
    async seed => {
      const random = randomOf(seed * 7919)
      const remote = remotes[kind]()
      let directory = cacheDir()
      let cache = await openEngine(remote, directory)
      const model: Model = new Map()
      const log: string[] = []
      try {
        for (let n = 0; n < 250; n++) {
          log.push(await step(cache, model, random))
          const what = random(40)
          if (what === 0) {
            log.push('sync')
            await cache.sync()
          } else if (what === 1) {
            log.push('fsync')
            await cache.fsync(1)
          } else if (what === 2) {
            // kill -9: whatever the journal and the data file hold now is all that a new process finds.
            log.push('crash')
            const copy = cacheDir()
            fs.cpSync(directory, copy, { recursive: true })
            await cache.close()
            directory = copy
            cache = await openEngine(remote, directory)
            expect(sorted(await snapshot(cache))).toEqual(sorted(expected(model)))
          } else if (what === 3) {
            log.push('evict')
            await cache.evict('')
          } else if (what === 4) {
            log.push('reopen')
            await cache.close()
            cache = await openEngine(remote, directory)
          } else if (what === 5) {
            log.push('lose the host')
            await cache.sync()
            await cache.close()
            directory = cacheDir()
            cache = await openEngine(remote, directory)
          }
        }
        expect(sorted(await snapshot(cache))).toEqual(sorted(expected(model)))
        await cache.sync()
        await cache.close()
        cache = await openEngine(remote, cacheDir())
        expect(sorted(await snapshot(cache))).toEqual(sorted(expected(model)))
      } catch (error) {
        console.error(`seed ${seed}:\n${log.slice(-30).join('\n')}`)
        throw error
      } finally {
        await cache.close()
      }
    },
  )
})

describe('the engine', () => {
  test('what was removed does not come back from the database before the checkpoint that removes it there', async () => {
    const cache = await openEngine(memTree(), cacheDir())
    const node = { mode: DIRECTORY, uid: 0, gid: 0 }
    const { ino } = await cache.make(1, 'd', node)
    await cache.sync()
    await cache.evict('') // a checkpoint: the database has it
    expect((await cache.attributes(ino)).ino).toBe(ino)
    await cache.removeDirectory(1, 'd')
    await cache.sync()
    expect(() => cache.attributes(ino)).toThrow('no such file or directory')
    await cache.close()
  })
})

test('a file has a name that never travels or another one: from one to the other it goes by a copy only', async () => {
  const remote = memTree()
  const cache = await openEngine(remote, cacheDir())
  const write = async (name: string, text: string) => {
    const { ino } = await cache.make(1, name, { mode: FILE | 0o644, uid: 0, gid: 0 })
    await cache.write(ino, 0, Buffer.from(text))
    return ino
  }
  const rename = async (source: string, target: string, how: 'replace' | 'noreplace' | 'exchange' = 'replace') =>
    cache.rename({ parent: 1, name: source }, { parent: 1, name: target }, how)
  const refused = (work: Promise<unknown>) => expect(work).rejects.toMatchObject({ code: 'CROSS_DEVICE' })
  const file = await write('file', 'one')
  const local = await write('local-shm', 'two')
  await cache.make(1, 'd', { mode: DIRECTORY | 0o755, uid: 0, gid: 0 })
  for (let synced = 0; synced < 2; synced++) {
    for (const how of ['replace', 'noreplace'] as const) {
      await refused(rename('file', 'new-shm', how))
      await refused(rename('local-shm', 'new', how))
    }
    await refused(rename('file', 'local-shm'))
    await refused(rename('local-shm', 'file'))
    for (const name of ['file', 'd']) {
      await refused(rename(name, 'local-shm', 'exchange'))
      await refused(rename('local-shm', name, 'exchange'))
    }
    await refused((async () => cache.link(file, 1, 'new-shm'))())
    await refused((async () => cache.link(local, 1, 'new'))())
    await cache.sync()
  }
  // Directories travel whatever they are called, and so does what is below them.
  await rename('d', 'd-shm')
  await refused(rename('file', 'd-shm', 'exchange'))
  await cache.make(1, 'e', { mode: DIRECTORY | 0o755, uid: 0, gid: 0 })
  await rename('e', 'd-shm', 'exchange')
  await rename('local-shm', 'other-shm')
  await cache.link(local, 1, 'also-shm')
  await rename('other-shm', 'also-shm', 'exchange')
  await rename('file', 'renamed')
  await cache.sync()
  expect(cache.status().quarantine).toEqual([])
  const { entries } = await remote.list('')
  expect(entries.map(({ name }) => name).sort()).toEqual(['d-shm', 'e', 'renamed'])
  expect([...(await snapshot(cache)).keys()].sort()).toEqual(['also-shm', 'd-shm', 'e', 'other-shm', 'renamed'])
  await cache.close()
})

/** With `b/deep-file` in it, of which the database of names does not know any more; nothing has asked for it yet. */
async function rotting(remote: ReturnType<typeof memTree>, directory: string): Promise<TreeCache> {
  const first = await openEngine(remote, directory)
  for (const name of ['a', 'b']) await first.make(1, name, { mode: DIRECTORY, uid: 0, gid: 0, rdev: 0, link: '' })
  await first.make(await inoOf(first, 'b'), 'deep-file', { mode: FILE, uid: 0, gid: 0, rdev: 0, link: '' })
  await first.sync()
  await first.close()

  const cache = await openEngine(remote, directory)
  const file = databaseIn(directory)
  const bytes = fs.readFileSync(file)
  const fd = fs.openSync(file, 'r+')
  for (let at = bytes.indexOf('deep-file'); at >= 0; at = bytes.indexOf('deep-file', at + 1))
    fs.writeSync(fd, Buffer.from('deep-fire'), 0, 9, at)
  fs.closeSync(fd)
  return cache
}

const databaseIn = (directory: string) => `${directory}/names/data.mdb`

test('a database that rots while it is open: EIO, said, nothing written over it; the next start sets it aside', async () => {
  const remote = memTree()
  const directory = cacheDir()
  const second = await rotting(remote, directory)
  const file = databaseIn(directory)
  const rotten = fs.readFileSync(file)
  const b = await inoOf(second, 'b')
  await expect((async () => second.lookup(b, 'deep-file'))()).rejects.toMatchObject({ code: 'CORRUPT' })
  expect(second.status().problems.join()).toMatch(/the database of names is damaged .* 1 reads of it failed/)
  await second.make(1, 'c', { mode: DIRECTORY, uid: 0, gid: 0, rdev: 0, link: '' })
  await second.sync()
  await second.close()
  expect(fs.readFileSync(file).equals(rotten)).toBe(true)

  const third = await openEngine(remote, directory)
  expect(third.status().problems.join()).toMatch(/the database of names was damaged .* set aside/)
  expect([...(await snapshot(third)).keys()].sort()).toEqual(['a', 'b', 'b/deep-file', 'c'])
  await third.close()
})

test('a database that rots while it is open: no checkpoint is tried again and again, however much there is for one', async () => {
  const directory = cacheDir()
  const cache = await rotting(memTree(), directory)
  const b = await inoOf(cache, 'b')
  await expect((async () => cache.lookup(b, 'deep-file'))()).rejects.toMatchObject({ code: 'CORRUPT' })
  const written = jest.spyOn(Database.prototype, 'write')
  for (let n = 0; n < 5000; n++) {
    await cache.make(1, `f${n}`, { mode: FILE, uid: 0, gid: 0 })
    if (n % 1000 === 0) await new Promise(resolve => setTimeout(resolve, 10))
  }
  expect(written).not.toHaveBeenCalled()
  written.mockRestore()
  await cache.close()
})

test('a remote that puts what it should refuse to put is used, and it is said', async () => {
  const tree = memTree()
  const { hidden } = tree
  const lax = Object.assign(Object.create(tree), {
    hidden: Object.assign(Object.create(hidden), { put: (name: string, bytes: Uint8Array) => hidden.put(name, bytes) }),
  })
  const cache = await openEngine(lax, cacheDir())
  expect(cache.status().problems.join()).toMatch(/no conditional puts/)
  await cache.close()
  const strict = await openEngine(tree, cacheDir())
  expect(strict.status().problems).toEqual([])
  await strict.close()
})
