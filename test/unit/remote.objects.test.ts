// A bucket as a tree: what is listed, what it costs, and what becomes of what is left behind.
import { constants } from 'node:fs'
import { describe, expect, test } from '@jest/globals'
import { onLog } from '../../src/base/log.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Attributes, Entry, Tree, TreeChange } from '../../src/remote/tree.js'
import { countBytes, wrap } from '../../src/remote/wrap.js'
import { claimOf } from '../remotes/commits.js'

const MiB = 1024 ** 2
const { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } = constants
const attributes: Attributes = { mode: S_IFREG | 0o640, uid: 1, gid: 2, atimeNs: 1n, mtimeNs: 2n }
const EMPTY = new Uint8Array()

/** The same objects, with their requests counted. */
function counted(objects: Objects) {
  const requests: Record<string, number> = {}
  const counts = { sent: 0 }
  const remote = wrap(objects, async (call, next) => {
    requests[call.method] = (requests[call.method] ?? 0) + 1
    if (call.changes) counts.sent += countBytes(call.args)
    return next()
  })
  return { remote, requests, counts }
}

/** With what a listing leaves open. */
async function listAll(tree: Pick<Tree, 'list' | 'complete'>, path: string): Promise<Entry[]> {
  const all: Entry[] = []
  for (let cursor: string | undefined; ; ) {
    const page = await tree.list(path, cursor)
    for (const entry of page.entries) {
      const isDirectory = (entry.mode & constants.S_IFMT) === constants.S_IFDIR
      const [whole] = entry.partial ? await tree.complete!(path, [{ name: entry.name, isDirectory }]) : [entry]
      if (whole) all.push(whole)
    }
    cursor = page.cursor
    if (cursor === undefined) return all
  }
}
const names = async (tree: Tree, path: string) => (await listAll(tree, path)).map(({ name }) => name).sort()

const opened = async (objects: Objects, epochs: { now?: () => number; wallMs?: () => number } = {}) => {
  const tree = rollforward(objects, { now: () => 0, alive: () => false, refreshMs: 0, ...epochs })
  await tree.claim(claimOf('w'))
  let number = 0
  const commit = async (...changes: TreeChange[]) => {
    await tree.commit({ writer: 'w', number: ++number, cutAtMs: 0, changes })
    return tree.settle()
  }
  return { tree, commit, next: () => number + 1 }
}

const put = (path: string, text: string, more: object = {}): TreeChange => ({
  ...{ do: 'put', path, size: text.length, attributes, otherwise: `${path}.ours`, expect: null },
  content: { inline: [{ at: 0, bytes: Buffer.from(text) }] },
  ...more,
})

describe('what a bucket has', () => {
  test('is shown as directories and files, with the attributes that it tells', async () => {
    const objects = memObjects()
    await objects.put('a/b/c.txt', Buffer.from('text'))
    await objects.put('a/empty/', EMPTY, { metadata: { mode: '16832', uid: '5' } })
    await objects.put('a/link', Buffer.from('b/c.txt'), { metadata: { mode: String(S_IFLNK | 0o777) } })
    await objects.put('.pageferry/x', EMPTY)
    const tree = rollforward(objects)
    expect(await names(tree, '')).toEqual(['a'])
    expect(await names(tree, 'a')).toEqual(['b', 'empty', 'link'])
    expect(await tree.stat('a')).toMatchObject({ mode: S_IFDIR | 0o755, mtimeNs: 0n })
    expect(await tree.stat('a/b/c.txt')).toMatchObject({ mode: S_IFREG | 0o644, size: 4 })
    expect(await tree.stat('a/empty')).toMatchObject({ mode: S_IFDIR | 0o700, uid: 5 })
    expect(await tree.stat('a/link')).toMatchObject({ mode: S_IFLNK | 0o777, link: 'b/c.txt' })
    expect(await tree.stat('.pageferry')).toBeNull()
    await expect(tree.read('a/b', { at: 0, length: 1 })).rejects.toMatchObject({ code: 'IS_DIRECTORY' })
    await expect(tree.list('a/link')).rejects.toMatchObject({ code: 'NOT_DIRECTORY' })
    await expect(tree.list('nowhere')).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('and cannot be a file is left out, with one line in the log for a directory', async () => {
    const objects = memObjects()
    const odd = ['d//x', 'd/./x', 'd/../x', 'd/..', `d/${'n'.repeat(256)}`, 'd/\0', 'd/\xee\xbf\x83\xee\xbe\xa4']
    for (const key of [...odd, 'd/fine', 'd/\xc3\xbc']) await objects.put(key, EMPTY)
    const warned: string[] = []
    const stop = onLog(({ level, message }) => level === 'warn' && warned.push(message))
    try {
      const tree = rollforward(objects)
      expect(await names(tree, 'd')).toEqual(['fine', '\xc3\xbc'])
      await names(tree, 'd')
      expect(warned).toHaveLength(1)
    } finally {
      stop()
    }
  })

  test('of a file and a directory of one name, one is shown, in listings as by itself', async () => {
    const objects = memObjects()
    // Filled up, so that a name and its slash are on two pages.
    for (let n = 0; n < 999; n++) await objects.put(`p/a${String(n).padStart(4, '0')}`, EMPTY)
    for (const key of ['both', 'both/', 'both/x', 'implied', 'implied/x', 'marked', 'marked/']) {
      await objects.put(`p/${key}`, EMPTY)
      await objects.put(`q/${key}`, EMPTY)
    }
    for (let n = 0; n < 999; n++) await objects.put(`p/implied!${n}`, EMPTY)
    const tree = rollforward(objects)
    for (const parent of ['p', 'q']) {
      const listed = (await listAll(tree, parent)).filter(({ name }) => !/\d/.test(name))
      expect(new Map(listed.map(({ name, mode }) => [name, mode & S_IFMT]))).toEqual(
        new Map([
          ['both', S_IFDIR],
          ['implied', S_IFREG],
          ['marked', S_IFREG],
        ]),
      )
      for (const { name, mode } of listed) expect((await tree.stat(`${parent}/${name}`))?.mode).toBe(mode)
    }
  })

  test('is asked for its metadata once, or not at all', async () => {
    const objects = memObjects({ nowMs: () => 1_000 })
    for (let n = 0; n < 2_500; n++) await objects.put(`d/${n}`, EMPTY, { metadata: { mode: '33152' } })
    const { remote, requests } = counted(objects)
    const full = rollforward(remote)
    // Besides, for the last name of a page: a directory of that name would be on the next one.
    for (const edges of [2, 4]) {
      const entries = await listAll(full, 'd')
      expect(entries).toHaveLength(2_500)
      expect(entries.every(({ mode }) => mode === (S_IFREG | 0o600))).toBe(true)
      expect(requests.head).toBe(2_500 + edges)
    }
    requests.head = 0
    const listed = await listAll(rollforward(remote, { attributes: 'listed' }), 'd')
    expect(listed.every(({ mode }) => mode === (S_IFREG | 0o644))).toBe(true)
    expect(requests.head).toBe(2)
  })
})

describe('what a batch sends', () => {
  test('a small change of a large file sends itself alone, and what was staged is not sent again', async () => {
    const objects = memObjects()
    const { remote, counts } = counted(objects)
    const { tree, commit, next } = await opened(remote)
    const size = 64 * MiB
    const bytes = new Uint8Array(size).map((_, at) => at >> 12)
    for (let at = 0; at < size; at += 4 * MiB) await tree.stage(next(), 'f1', at, bytes.subarray(at, at + 4 * MiB))
    const content = { staged: 'f1', extents: [{ at: 0, length: size }] }
    const { versions } = await commit(put('big', '', { size, content }))
    expect(counts.sent).toBeLessThan(size + 0.1 * MiB)
    counts.sent = 0
    const at = 30 * MiB
    bytes.fill(255, at, at + 4096)
    await commit({
      ...{ do: 'patch', path: 'big', size, floor: size, attributes, otherwise: 'big.ours', expect: versions[0][1] },
      content: { inline: [{ at, bytes: bytes.slice(at, at + 4096) }] },
    })
    expect(counts.sent).toBeLessThan(0.1 * MiB)
    expect(Buffer.compare(await objects.get('big'), bytes)).toBe(0)
    expect(await objects.uploads('')).toEqual([])
    expect((await objects.list({ prefix: '.pageferry/stage/' })).objects).toEqual([])
  })

  test('a small file that is known costs one request, new or not, besides those of the chain', async () => {
    const { remote, requests } = counted(memObjects())
    let nowMs = 1e12
    const { commit } = await opened(remote, { wallMs: () => nowMs })
    let version: string | null = null
    for (const text of ['new', 'old', 'older']) {
      nowMs += 10
      for (const method of Object.keys(requests)) requests[method] = 0
      const { versions } = await commit(put('a', text, { expect: version }))
      version = versions[0][1]
      // The intent, the object, `done`.
      expect([requests.put, requests.head ?? 0, requests.get ?? 0]).toEqual([3, 0, 0])
    }
  })

  test('a directory with many objects moves, those that no mount shows with it', async () => {
    const objects = memObjects()
    const count = 5_600
    for (let n = 0; n < count; n++) await objects.put(`from/${n % 10}/${n}`, Buffer.from(String(n)))
    await objects.put('from//odd', EMPTY)
    const { tree, commit } = await opened(objects)
    const move: TreeChange = { do: 'move', from: 'from', to: 'to', otherwise: 'to.ours' }
    expect(await commit(move)).toEqual({ versions: [], conflicts: [], refused: [] })
    expect(await names(tree, 'to')).toEqual(Array.from({ length: 10 }, (_, n) => String(n)))
    expect(await listAll(tree, 'to/3')).toHaveLength(count / 10)
    expect(Buffer.from(await tree.read('to/3/1003', { at: 0, length: 9 })).toString()).toBe('1003')
    expect(await objects.head('to//odd')).not.toBeNull()
    expect((await objects.list({ prefix: 'from' })).objects).toEqual([])
    expect(await tree.stat('from')).toBeNull()
  }, 30_000)

  test('a directory that had no object of its own stays when it is empty', async () => {
    const objects = memObjects()
    await objects.put('d/e/f', EMPTY)
    const { tree, commit } = await opened(objects)
    await commit({ do: 'remove', path: 'd/e/f' })
    expect(await names(tree, 'd')).toEqual(['e'])
    expect(await names(tree, 'd/e')).toEqual([])
    await commit({ do: 'move', from: 'd/e', to: 'e', otherwise: 'x' })
    expect(await names(tree, '')).toEqual(['d', 'e'])
  })

  test('a file that cannot be hard linked is refused', async () => {
    const { commit } = await opened(memObjects())
    await commit(put('a', 'a'))
    const { refused } = await commit({ do: 'link', path: 'b', target: 'a' })
    expect(refused).toMatchObject([{ path: 'b', code: 'UNSUPPORTED' }])
  })
})

describe('what is left behind', () => {
  test('uploads that were begun are aborted by whoever comes next; those of others are not', async () => {
    const objects = memObjects({ capabilities: { partBytesMin: 16 } })
    const theirs = await objects.beginUpload('big')
    let dead = false
    const failing = wrap(objects, async (call, next) => {
      if (call.method === 'completeUpload' || call.method === 'abortUpload') dead = true
      if (dead) throw new Error('dead')
      return next()
    })
    const first = await opened(failing)
    await expect(first.commit(put('big', 'x'.repeat(100)))).rejects.toThrow('dead')
    expect(await objects.uploads('')).toHaveLength(2)
    const { tree } = await opened(objects)
    expect(Buffer.from(await tree.read('big', { at: 0, length: 200 })).toString()).toBe('x'.repeat(100))
    expect((await objects.uploads('')).map(({ upload }) => upload)).toEqual([theirs])
    expect((await objects.list({ prefix: '.pageferry/stage/' })).objects).toEqual([])
  })

  test('metadata of other tools stays, but for what the bytes were', async () => {
    const objects = memObjects()
    await objects.put('a', Buffer.from('old'), { metadata: { theirs: 'x', md5chksum: 'y' }, contentType: 'text/plain' })
    const { commit } = await opened(objects)
    const { etag } = (await objects.head('a'))!
    await commit({ do: 'attributes', path: 'a', attributes, expect: etag })
    await commit({ do: 'move', from: 'a', to: 'b', otherwise: 'x' })
    expect(await objects.head('b')).toMatchObject({
      metadata: { theirs: 'x', md5chksum: 'y' },
      contentType: 'text/plain',
    })
    await commit(put('b', 'new', { expect: etag }))
    const { metadata } = (await objects.head('b'))!
    expect(metadata).toMatchObject({ theirs: 'x', mode: String(attributes.mode), uid: '1', gid: '2' })
    expect(metadata.md5chksum).toBeUndefined()
  })
})

test.each([
  ['stands still', () => 1_000],
  [
    'is set back',
    (
      (ms: number) => () =>
        (ms -= 1_000)
    )(10_000_000),
  ],
])('what a batch gives a directory is what the next one moves with it, though the clock %s', async (_, wallMs) => {
  const { tree, commit } = await opened(memObjects(), { wallMs })
  const directory = { ...attributes, mode: S_IFDIR | 0o750 }
  const moved = { do: 'move', from: 'd', to: 'e', otherwise: 'e.ours' } as const
  for (const path of ['d', 'd/in'])
    await commit({ do: 'make', path, node: { ...directory, rdev: 0 }, otherwise: `${path}.ours` })
  const xattrs = new Map([['user.a', Uint8Array.of(1)]])
  await commit({ do: 'attributes', path: 'd/in', attributes: directory, xattrs })
  expect(await commit(moved)).toMatchObject({ conflicts: [], refused: [] })
  expect(await tree.xattrs('e/in')).toEqual(xattrs)
})
