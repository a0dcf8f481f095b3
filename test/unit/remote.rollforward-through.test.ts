import { describe, expect, test } from '@jest/globals'
import type { Claim, Commits } from '../../src/remote/commits.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Attributes, Entry, Path, Tree, TreeChange } from '../../src/remote/tree.js'

const ATTRIBUTES: Attributes = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 5n }
const put = (path: Path, text: string, more: object = {}): TreeChange => ({
  ...{ do: 'put', path, size: text.length, attributes: ATTRIBUTES, otherwise: 'x' },
  content: { inline: [{ at: 0, bytes: Buffer.from(text) }] },
  ...more,
})
const make = (path: Path): TreeChange => ({
  do: 'make',
  path,
  node: { ...ATTRIBUTES, mode: 0o40755, rdev: 0 },
  otherwise: 'x',
})
const patch = (path: Path, at: number, text: string, size: number, expect?: string): TreeChange => ({
  ...{ do: 'patch', path, size, floor: size, attributes: { ...ATTRIBUTES, mtimeNs: 9n }, otherwise: 'x', expect },
  content: { inline: [{ at, bytes: Buffer.from(text) }] },
})
const claim: Claim = {
  ...{ writer: 'w', host: 'h', bootId: 'b', pid: 1, startTime: 1 },
  leaseMs: 30_000,
  takeOver: false,
}

type Remote = Tree & Commits<TreeChange>
const clock = { ms: 0 }
const opener = (tree: Tree): Remote => rollforward(tree, { alive: () => false, now: () => clock.ms, refreshMs: 1_000 })

async function writer(tree: Tree, ...given: TreeChange[]) {
  const remote = opener(tree)
  await remote.claim(claim)
  let number = 0
  const commit = (...changes: TreeChange[]) => remote.commit({ writer: 'w', number: ++number, cutAtMs: 7, changes })
  await commit(...given)
  const versions = new Map((await remote.settle()).versions)
  return { remote, commit, versions }
}

const text = async (remote: Tree, path: Path, more: object = {}) =>
  Buffer.from(await remote.read(path, { at: 0, length: 100, ...more })).toString()

async function listed(remote: Tree, path: Path, between: (page: number) => Promise<unknown> = async () => {}) {
  const entries: Entry[] = []
  for (let cursor: string | undefined, page = 0; ; page++) {
    const answer = await remote.list(path, cursor)
    expect(answer.entries.length).toBeLessThanOrEqual(1_000)
    entries.push(...answer.entries)
    cursor = answer.cursor
    if (cursor === undefined) return entries
    await between(page)
  }
}

describe('looking through a batch that is not applied', () => {
  test('a file is changed by all its names at once', async () => {
    const tree = memTree()
    const link: TreeChange = { do: 'link', path: 'b', target: 'a' }
    const { remote, commit, versions } = await writer(tree, put('a', '0123'), link)
    await commit(patch('a', 1, 'XY', 4, versions.get('a')))
    for (const one of [remote, opener(tree)])
      for (const path of ['a', 'b']) {
        expect([path, await text(one, path)]).toEqual([path, '0XY3'])
        expect(await one.stat(path)).toMatchObject({ mtimeNs: 9n, nlink: 2 })
      }
    const [a, b] = await Promise.all([remote.stat('a'), remote.stat('b')])
    expect(a!.version).toBe(b!.version)
    expect(a!.id).toBe(b!.id)
  })

  test('who does not tell attributes keeps those of what is replaced, wherever that is so far', async () => {
    const tree = memTree()
    const xattrs = new Map([['user.k', Buffer.from('kept')]])
    const { remote, commit, versions } = await writer(
      tree,
      ...[
        make('d'),
        put('d/b', 'old', { xattrs }),
        put('e', 'a file'),
        put('a', 'old', { xattrs }),
        put('f', 'a file'),
      ],
    )
    await commit(
      ...([
        { do: 'move', from: 'd', to: 'e', otherwise: 'x' },
        { do: 'move', from: 'e', to: 'd', otherwise: 'x' },
        put('e/b', 'new', { expect: versions.get('d/b') }),
        { do: 'move', from: 'a', to: 'z', otherwise: 'x' },
        put('a', 'new'),
        { do: 'remove', path: 'f', expect: versions.get('f') },
        make('f'),
        put('f/x', 'new'),
      ] as TreeChange[]),
    )
    const see = async (one: Tree) => {
      for (const [path, kept] of Object.entries({ 'e/b': 'kept', z: 'kept', a: undefined, 'f/x': undefined })) {
        const found = (await one.xattrs(path)).get('user.k')
        expect([path, found && Buffer.from(found).toString()]).toEqual([path, kept])
      }
    }
    for (const one of [remote, opener(tree)]) await see(one)
    await remote.settle()
    await see(remote)
  })

  test('what is read of another version is stale; what the writer has not changed it may read by the old one', async () => {
    const tree = memTree()
    const { remote, commit, versions } = await writer(tree, put('a', '0123'), put('p', 'old'))
    const version = versions.get('a')
    const old = versions.get('p')
    await commit(patch('a', 1, 'XY', 4, version), put('p', 'new', { expect: old }))
    const reader = opener(tree)
    await expect(reader.read('a', { at: 0, length: 4, version })).rejects.toMatchObject({ code: 'STALE' })
    expect(await text(remote, 'a', { version })).toBe('0XY3')
    for (const one of [reader, remote]) {
      await expect(one.read('p', { at: 0, length: 4, version: old })).rejects.toMatchObject({ code: 'STALE' })
      const now = (await one.stat('a'))!.version
      expect(await text(one, 'a', { version: now })).toBe('0XY3')
    }
    const { versions: after } = await remote.settle()
    // The answer may not have been heard yet.
    expect(await text(remote, 'a', { version })).toBe('0XY3')
    expect(await text(remote, 'a', { version: new Map(after).get('a') })).toBe('0XY3')
    await expect(remote.read('p', { at: 0, length: 4, version: old })).rejects.toMatchObject({ code: 'STALE' })
  })

  test('a reader finds out about a batch after a while, and at once when something is not as it was', async () => {
    const tree = memTree()
    const { remote, commit } = await writer(tree, put('a', 'one'), put('b', 'b'))
    const reader = opener(tree)
    expect(await text(reader, 'a')).toBe('one')
    await commit(put('a', 'two'), { do: 'move', from: 'b', to: 'c', otherwise: 'x' })
    expect(await text(reader, 'a')).toBe('one')
    clock.ms += 1_000
    expect(await text(reader, 'a')).toBe('two')
    await remote.settle()
    await commit({ do: 'move', from: 'c', to: 'd', otherwise: 'x' })
    await remote.settle()
    await expect(text(reader, 'c')).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(await text(reader, 'd')).toBe('b')
  })

  test('nothing of ours is seen, or touched', async () => {
    const tree = memTree()
    const { remote } = await writer(tree, put('a', 'a'))
    expect((await listed(remote, '')).map(({ name }) => name)).toEqual(['a'])
    for (const path of ['.pageferry', '.pageferry/log', '.pageferry/stage/1', '.pageferry/orphans']) {
      expect(await remote.stat(path)).toBeNull()
      await expect(remote.list(path)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(remote.read(path, { at: 0, length: 1 })).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(remote.make(path, { ...ATTRIBUTES, rdev: 0 })).rejects.toMatchObject({ code: 'NOT_PERMITTED' })
    }
  })

  test('an orphan can be moved aside, read, changed and removed, and goes when another writer comes', async () => {
    const tree = memTree()
    const { remote, commit } = await writer(tree, put('a', '0123'), put('b', 'b'))
    const aside = (from: Path, number: number): TreeChange => ({
      ...{ do: 'move', from, to: `.pageferry/orphans/${number}`, otherwise: `.pageferry/orphans/${number}` },
    })
    await commit(aside('a', 12), aside('b', 13))
    expect(await text(remote, '.pageferry/orphans/12')).toBe('0123')
    await remote.settle()
    await commit(patch('.pageferry/orphans/12', 0, 'Z', 4), { do: 'remove', path: '.pageferry/orphans/13' })
    expect(await remote.settle()).toMatchObject({ refused: [], conflicts: [] })
    expect(await text(remote, '.pageferry/orphans/12')).toBe('Z123')
    await opener(tree).claim(claim)
    expect((await tree.list('.pageferry/orphans')).entries.map(({ name }) => name)).toEqual(['12'])
    const other = opener(tree)
    await other.claim({ ...claim, writer: 'x' })
    await other.settle()
    expect((await tree.list('.pageferry/orphans')).entries).toEqual([])
  })
})

describe('a long listing', () => {
  const names = (letter: string, count: number) => Array.from({ length: count }, (_, i) => `${letter}${i}`)
  const puts = (paths: Path[]) => paths.map(path => put(path, 'x'))
  const sorted = (entries: Entry[]) => entries.map(({ name }) => name).sort()

  test('has every name once, those that come and those that stay', async () => {
    const tree = memTree()
    const { remote, commit } = await writer(tree, make('d'), ...puts(names('d/a', 1_500)))
    await commit(...puts(names('d/b', 2_300)), ...puts(names('d/a', 10)), { do: 'remove', path: 'd/a1400' })
    const expected = [...names('a', 1_500).filter(name => name !== 'a1400'), ...names('b', 2_300)].sort()
    for (const one of [remote, opener(tree)]) expect(sorted(await listed(one, 'd'))).toEqual(expected)
  })

  for (const at of [0, 1, 2, 3])
    test(`goes on when the batch is done after page ${at}`, async () => {
      const tree = memTree()
      const { remote, commit } = await writer(tree, make('d'), ...puts(names('d/a', 1_500)))
      await commit(...puts(names('d/b', 2_300)), ...puts(names('d/a', 10)), { do: 'remove', path: 'd/a3' })
      const all = await listed(remote, 'd', async page => page === at && remote.settle())
      expect(sorted(all)).toEqual([...names('a', 1_500), ...names('b', 2_300)].sort())
    })

  test('goes on when a batch is committed meanwhile: what is there all the while comes once', async () => {
    const tree = memTree()
    const { remote, commit } = await writer(tree, make('d'), ...puts(names('d/a', 2_500)))
    const all = await listed(remote, 'd', async page => {
      if (page === 0) await commit(...puts(['d/a2400', 'd/new']), { do: 'remove', path: 'd/a2300' })
      if (page === 1) await remote.settle()
    })
    const found = sorted(all).filter(name => name !== 'new' && name !== 'a2300')
    expect(found).toEqual(
      names('a', 2_500)
        .filter(name => name !== 'a2300')
        .sort(),
    )
  })
})
