// The journal is replayed while the mount is there already: nothing is answered before its end, and half of it is never kept.
import fs from 'node:fs'
import path from 'node:path'
import { afterEach, describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { beginTreeCache } from '../../src/cache/engine.js'
import type { Storage } from '../../src/cache/storage.js'
import type { TreeCache, TreeCacheOptions } from '../../src/cache/tree-cache.js'
import { diskStorage } from '../../src/linux/storage.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { wrap } from '../../src/remote/wrap.js'
import { engineOptions, openEngine, settled, snapshot, temporaryDirectory } from './engine-harness.js'

const FILES = 20
const TOUCHES = 20_000

const undone: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of undone.splice(0).reverse()) await undo()
})

/** A cache directory as kill -9 leaves it, with much in its journal, and what it should look like. */
async function killed(): Promise<{ cacheDir: string; wanted: Map<string, string> }> {
  const first = temporaryDirectory()
  const cacheDir = `${first}-killed`
  undone.push(() => {
    for (const each of [first, cacheDir]) fs.rmSync(each, { recursive: true, force: true })
  })
  const cache = await openEngine(memTree(), first)
  const inos: number[] = []
  for (let n = 0; n < FILES; n++) {
    const { ino } = await settled(cache.make(1, `f${n}`, { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }))
    await cache.write(ino, 0, Buffer.from(`file ${n}`))
    inos.push(ino)
  }
  for (let n = 0; n < TOUCHES; n++) await cache.setAttributes(inos[n % FILES], { mode: 0o600 + (n % 0o100) })
  const wanted = await snapshot(cache)
  fs.cpSync(first, cacheDir, { recursive: true })
  await cache.close()
  return { cacheDir, wanted }
}

const begin = (cacheDir: string, changes: Partial<TreeCacheOptions> = {}): Promise<TreeCache> =>
  beginTreeCache(rollforward(memTree()), engineOptions(cacheDir, changes))

const isReplaying = (cache: TreeCache) => cache.status().problems.some(problem => problem.includes('replayed'))

/** Fails once a journal segment is read, and only then. */
const unreadable = (storage: Storage, failing: () => boolean): Storage => ({
  ...storage,
  open(name, options) {
    const file = storage.open(name, options)
    const readSync = file.readSync.bind(file)
    file.readSync = (into, at) => {
      if (failing() && name.startsWith('journal-') && into.length > 4096) throw new Error('cannot be read')
      return readSync(into, at)
    }
    return file
  },
  list: () => storage.list(),
  rename: (source, target) => storage.rename(source, target),
  remove: name => storage.remove(name),
  reserve: (name, bytes) => storage.reserve(name, bytes),
  freeBytes: () => storage.freeBytes(),
})

describe('a journal that is replayed in the background', () => {
  test('is not waited for by who opens it, and is all there when it is done', async () => {
    const { cacheDir, wanted } = await killed()
    const cache = await begin(cacheDir)
    undone.push(() => cache.close())
    expect(isReplaying(cache)).toBe(true)
    await cache.replayed
    expect(isReplaying(cache)).toBe(false)
    expect(await snapshot(cache)).toEqual(wanted)
    await cache.sync()
    expect(cache.status().lag.operations).toBe(0)
  })

  test('is enough to go on with, though the remote is out of reach and was never listed as far as the database knows', async () => {
    const { cacheDir, wanted } = await killed()
    let reachable = false
    const far = wrap(memTree(), async (_call, next) => {
      if (!reachable) throw new FerryError('UNREACHABLE')
      return next()
    })
    const cache = await beginTreeCache(rollforward(far), engineOptions(cacheDir))
    undone.push(() => cache.close())
    await cache.replayed
    expect(cache.status()).toMatchObject({ lease: null, lag: { operations: expect.any(Number) } })
    expect(cache.status().lag.operations).toBeGreaterThan(0)
    reachable = true
    await cache.sync()
    expect(await snapshot(cache)).toEqual(wanted)
  }, 30_000)

  test('is replayed to its end though the cache is closed meanwhile', async () => {
    const { cacheDir, wanted } = await killed()
    const first = await begin(cacheDir)
    expect(isReplaying(first)).toBe(true)
    await first.close()
    const cache = await openEngine(memTree(), cacheDir)
    undone.push(() => cache.close())
    expect(await snapshot(cache)).toEqual(wanted)
  })

  test('that cannot be read ends the opening, and stays as it was', async () => {
    const { cacheDir, wanted } = await killed()
    const names = () => fs.readFileSync(path.join(cacheDir, 'names', 'data.mdb'))
    const before = names()
    const first = await begin(cacheDir, { storage: unreadable(diskStorage(cacheDir), () => true) }).then(
      async cache => {
        await expect(cache.replayed).rejects.toThrow('cannot be read')
        await cache.close()
        return 'begun'
      },
      (error: Error) => error.message,
    )
    expect(['begun', 'cannot be read']).toContain(first)
    expect(names().equals(before)).toBe(true)
    const cache = await openEngine(memTree(), cacheDir)
    undone.push(() => cache.close())
    expect(await snapshot(cache)).toEqual(wanted)
  })
})

test('what a request came to is known until its answer was sent, from one process to the next', async () => {
  const cacheDir = temporaryDirectory()
  undone.push(() => fs.rmSync(cacheDir, { recursive: true, force: true }))
  const open = (connection: number) => openEngine(memTree(), cacheDir, { connection, outlived: true })
  const file = { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }
  const [made, swapped, answered] = [10, 12, 14]
  const first = await open(7)
  const { ino } = await settled(first.make(1, 'a', file, made))
  await first.make(1, 'b', file, answered)
  await first.rename({ parent: 1, name: 'a' }, { parent: 1, name: 'b' }, 'exchange', { request: swapped })
  first.forgetOutcome!(answered)
  const outcomes = (cache: TreeCache) => [made, swapped, answered].map(request => cache.outcome!(request))
  // Its end is a checkpoint: nothing of this is in the journal any more.
  for (let process = 0; process < 2; process++) {
    await first.close()
    const next = await open(7)
    expect(outcomes(next)).toEqual([ino, 0, undefined])
    await next.close()
  }
  const last = await open(7)
  last.keepOutcomes!(new Set([swapped]))
  expect(outcomes(last)).toEqual([undefined, 0, undefined])
  await last.close()
  const other = await open(8)
  undone.push(() => other.close())
  expect(outcomes(other)).toEqual([undefined, undefined, undefined])
})

test('a list that follows the mode is there after a kill, though only the remote had it before', async () => {
  const acl = 'system.posix_acl_access'
  /** Owner rw-, user 1000 rw-, group r--, a mask and others ---. */
  const list = (mask: number) =>
    new Uint8Array(
      Buffer.from(
        `02000000 01000600ffffffff 02000600e8030000 04000400ffffffff 10000${mask}00ffffffff 20000000ffffffff`.replaceAll(
          ' ',
          '',
        ),
        'hex',
      ),
    )
  const tree = memTree()
  await tree.make('f', { mode: 0o100660, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 })
  await tree.setXattrs('f', new Map([[acl, list(6)]]))
  const cacheDir = temporaryDirectory()
  const copy = `${cacheDir}-killed`
  undone.push(() => {
    for (const each of [cacheDir, copy]) fs.rmSync(each, { recursive: true, force: true })
  })
  const listed = await openEngine(tree, cacheDir, { acl: true })
  await listed.lookup(1, 'f')
  await listed.close()
  const first = await openEngine(tree, cacheDir, { acl: true })
  const { ino } = (await first.lookup(1, 'f'))!
  await first.setAttributes(ino, { mode: 0o640 })
  fs.cpSync(cacheDir, copy, { recursive: true })
  await first.close()
  const next = await openEngine(tree, copy, { acl: true, takeOver: true })
  undone.push(() => next.close())
  expect(Buffer.from(await next.getXattr(ino, acl)).toString('hex')).toBe(Buffer.from(list(4)).toString('hex'))
})

test('what a crash leaves of a file that another one has replaced is not of the new one', async () => {
  const remote = memTree()
  const first = temporaryDirectory()
  const left = `${first}-killed`
  undone.push(() => {
    for (const each of [first, left]) fs.rmSync(each, { recursive: true, force: true })
  })
  const cache = await openEngine(remote, first, { dirTtlMs: 0 })
  undone.push(() => cache.close())
  const { ino } = await settled(cache.make(1, 'file', { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }))
  await cache.write(ino, 0, Buffer.alloc(5_000, 'a'))
  await cache.sync()
  // Somebody else's comes, of which nothing is here, and gets another name.
  await remote.write('file', 0, Buffer.alloc(300_000, 'b'))
  await cache.refresh('')
  await cache.rename({ parent: 1, name: 'file' }, { parent: 1, name: 'renamed' }, 'replace')
  fs.cpSync(first, left, { recursive: true })

  const again = await openEngine(remote, left)
  undone.push(() => again.close())
  await again.replayed
  expect((await snapshot(again)).get('renamed')).toBe(`644 ${'b'.repeat(300_000)}`)
})
