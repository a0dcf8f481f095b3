// Somebody else changes what a batch is about, after its commit: nothing of theirs and nothing of ours is lost.
import { constants } from 'node:fs'
import { describe, expect, test } from '@jest/globals'
import type { Commits, Outcome } from '../../src/remote/commits.js'
import type { Attributes, Path, Tree, TreeChange } from '../../src/remote/tree.js'
import { claimOf, type TreeFixture } from './commits.js'
import { Crashed, faults } from './commits-faults.js'
import { committing } from './commits-objects.js'

const { S_IFREG, S_IFDIR } = constants
const ATTRIBUTES: Attributes = { mode: S_IFREG | 0o644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 5_000_000_000n }
const DIRECTORY = { ...ATTRIBUTES, mode: S_IFDIR | 0o755, rdev: 0 }

type Remote = Tree & Commits<TreeChange>
type Versions = Map<Path, string>

const put = (path: Path, text: string, more: Partial<Extract<TreeChange, { do: 'put' }>> = {}): TreeChange => ({
  ...{ do: 'put', path, size: text.length, attributes: ATTRIBUTES, otherwise: `${path}.ours` },
  content: { inline: [{ at: 0, bytes: Buffer.from(text) }] },
  ...more,
})
const make = (path: Path): TreeChange => ({ do: 'make', path, node: DIRECTORY, otherwise: `${path}.ours` })
const move = (from: Path, to: Path): TreeChange => ({ do: 'move', from, to, otherwise: `${to}.ours` })
/** Writes `text` at `from` into a file of `size` bytes. */
const patch = (path: Path, from: number, text: string, size: number, expect?: string): TreeChange => ({
  ...{ do: 'patch', path, size, floor: size, attributes: ATTRIBUTES, expect, otherwise: `${path}.ours` },
  content: { inline: [{ at: from, bytes: Buffer.from(text) }] },
})

const attributes = (path: Path, expect?: string): TreeChange => ({
  ...{ do: 'attributes', path, expect },
  attributes: { ...ATTRIBUTES, mode: S_IFREG | 0o600, mtimeNs: 7_000_000_000n },
})

/** What somebody else does, with the primitives. */
const other = {
  write: async (tree: Tree, path: Path, text: string) => {
    if (!(await tree.stat(path))) await tree.make(path, { ...ATTRIBUTES, rdev: 0 })
    await tree.truncate(path, 0)
    await tree.write(path, 0, Buffer.from(text))
  },
  make: (tree: Tree, path: Path) => tree.make(path, DIRECTORY),
  remove: (tree: Tree, path: Path) => tree.remove(path),
}

interface Case {
  /** What is committed before: files with their text, directories with null. */
  given: Record<Path, string | null>
  batch: (versions: Versions) => TreeChange[]
  /** After the commit, before anything is applied. */
  theirs?: (tree: Tree) => Promise<void>
  /** All that is there in the end. */
  left: Record<Path, string | null>
  conflicts?: Outcome['conflicts']
  refused?: { path: Path; code: string }[]
  /** Files whose versions the outcome tells; not looked at by default. */
  told?: Path[]
  /** Only where there are hard links. */
  links?: boolean
  /** More names of files, as pairs that are one file. */
  same?: [Path, Path][]
}

const cases: Record<string, Case> = {
  'a new file meets a new file': {
    given: {},
    batch: () => [put('a', 'ours', { expect: null })],
    theirs: tree => other.write(tree, 'a', 'theirs'),
    left: { a: 'theirs', 'a.ours': 'ours' },
    conflicts: [{ path: 'a', keptAs: 'a.ours' }],
  },
  'the other name is taken, and so is the next': {
    given: {},
    batch: () => [put('a', 'ours', { expect: null })],
    theirs: async tree => {
      for (const path of ['a', 'a.ours', 'a.ours-2']) await other.write(tree, path, 'theirs')
    },
    left: { a: 'theirs', 'a.ours': 'theirs', 'a.ours-2': 'theirs', 'a.ours-3': 'ours' },
    conflicts: [{ path: 'a', keptAs: 'a.ours-3' }],
  },
  'the other name is too long': {
    given: {},
    batch: () => [put('n'.repeat(252), 'ours', { expect: null })],
    theirs: tree => other.write(tree, 'n'.repeat(252), 'theirs'),
    left: { ['n'.repeat(252)]: 'theirs', [`${'n'.repeat(250)}.ours`]: 'ours' },
    conflicts: [{ path: 'n'.repeat(252), keptAs: `${'n'.repeat(250)}.ours` }],
  },
  'a replaced file was changed': {
    given: { a: 'old' },
    batch: versions => [put('a', 'ours', { expect: versions.get('a') })],
    theirs: tree => other.write(tree, 'a', 'theirs'),
    left: { a: 'theirs', 'a.ours': 'ours' },
    conflicts: [{ path: 'a', keptAs: 'a.ours' }],
  },
  'a replaced file was removed': {
    given: { a: 'old' },
    batch: versions => [put('a', 'ours', { expect: versions.get('a') })],
    theirs: tree => other.remove(tree, 'a'),
    left: { a: 'ours' },
  },
  'a replaced file became a directory': {
    given: { a: 'old' },
    batch: () => [put('a', 'ours')],
    theirs: async tree => {
      await other.remove(tree, 'a')
      await other.make(tree, 'a')
    },
    left: { a: null, 'a.ours': 'ours' },
    conflicts: [{ path: 'a', keptAs: 'a.ours' }],
  },
  'a patched file was changed': {
    given: { a: '0123456789' },
    batch: versions => [patch('a', 2, 'XY', 12, versions.get('a'))],
    theirs: tree => other.write(tree, 'a', 'abcdefghijklmnop'),
    left: { a: 'abcdefghijklmnop', 'a.ours': 'abXYefghijkl' },
    conflicts: [{ path: 'a', keptAs: 'a.ours' }],
  },
  'a patched file was removed': {
    given: { a: '0123456789', b: 'b' },
    batch: versions => [patch('a', 2, 'XY', 10, versions.get('a')), put('b', 'new', { expect: versions.get('b') })],
    theirs: tree => other.remove(tree, 'a'),
    left: { b: 'new' },
    refused: [{ path: 'a', code: 'NOT_FOUND' }],
  },
  'a patched file that nobody looks at was changed': {
    given: { a: '0123456789' },
    batch: () => [patch('a', 2, 'XY', 10)],
    theirs: tree => other.write(tree, 'a', 'abcdefghij'),
    left: { a: 'abXYefghij' },
  },
  'a file that got attributes was not changed': {
    given: { a: 'old', b: 'old' },
    batch: versions => [attributes('a', versions.get('a')), attributes('b')],
    left: { a: 'old', b: 'old' },
    told: ['a'],
  },
  'a file that got attributes was changed': {
    given: { a: 'old', b: 'old' },
    batch: versions => [attributes('a', versions.get('a')), attributes('b', versions.get('b'))],
    theirs: tree => other.write(tree, 'a', 'theirs'),
    left: { a: 'theirs', b: 'old' },
    told: ['b'],
  },
  'a new directory meets theirs': {
    given: {},
    batch: () => [make('d'), put('d/a', 'ours', { expect: null })],
    theirs: async tree => {
      await other.make(tree, 'd')
      await other.write(tree, 'd/b', 'theirs')
    },
    left: { d: null, 'd/a': 'ours', 'd/b': 'theirs' },
  },
  'a new directory meets a file, and what is in it goes with it': {
    given: { m: 'moved', t: 'target' },
    batch: () => [
      ...[make('d'), put('d/a', 'ours', { expect: null }), make('d/e'), move('m', 'd/e/m')],
      { do: 'link', path: 'd/l', target: 'd/a' },
    ],
    theirs: tree => other.write(tree, 'd', 'theirs'),
    left: {
      d: 'theirs',
      t: 'target',
      'd.ours': null,
      'd.ours/a': 'ours',
      'd.ours/l': 'ours',
      'd.ours/e': null,
      'd.ours/e/m': 'moved',
    },
    conflicts: [{ path: 'd', keptAs: 'd.ours' }],
    links: true,
    same: [['d.ours/a', 'd.ours/l']],
  },
  'a moved file meets a file': {
    given: { a: 'ours' },
    batch: () => [move('a', 'b')],
    theirs: tree => other.write(tree, 'b', 'theirs'),
    left: { b: 'theirs', 'b.ours': 'ours' },
    conflicts: [{ path: 'b', keptAs: 'b.ours' }],
  },
  'what is to be moved was removed': {
    given: { a: 'ours', d: null, 'd/x': 'x' },
    batch: () => [move('a', 'b'), move('d/x', 'c')],
    theirs: tree => other.remove(tree, 'a'),
    left: { d: null, c: 'x' },
    refused: [{ path: 'b', code: 'NOT_FOUND' }],
  },
  'a moved directory takes what they put into it along': {
    given: { d: null, 'd/a': 'a' },
    batch: () => [move('d', 'e')],
    theirs: tree => other.write(tree, 'd/b', 'theirs'),
    left: { e: null, 'e/a': 'a', 'e/b': 'theirs' },
  },
  'a removed file was changed': {
    given: { d: null, 'd/a': 'a', 'd/b': 'b' },
    batch: versions => [
      { do: 'remove', path: 'd/a', expect: versions.get('d/a') },
      { do: 'remove', path: 'd/b', expect: versions.get('d/b') },
      { do: 'remove', path: 'd' },
    ],
    theirs: tree => other.write(tree, 'd/a', 'theirs'),
    left: { d: null, 'd/a': 'theirs' },
    conflicts: [
      { path: 'd/a', keptAs: 'd/a' },
      { path: 'd', keptAs: 'd' },
    ],
  },
  'a removed directory has got a file': {
    given: { d: null, 'd/a': 'a' },
    batch: () => [
      { do: 'remove', path: 'd/a' },
      { do: 'remove', path: 'd' },
    ],
    theirs: tree => other.write(tree, 'd/b', 'theirs'),
    left: { d: null, 'd/b': 'theirs' },
    conflicts: [{ path: 'd', keptAs: 'd' }],
  },
  'a directory that was to become a file has got a file': {
    given: { d: null },
    batch: () => [{ do: 'remove', path: 'd' }, put('d', 'ours', { expect: null })],
    theirs: tree => other.write(tree, 'd/b', 'theirs'),
    left: { d: null, 'd/b': 'theirs', 'd.ours': 'ours' },
    conflicts: [
      { path: 'd', keptAs: 'd' },
      { path: 'd', keptAs: 'd.ours' },
    ],
  },
  'what was removed is gone already': {
    given: { a: 'a', b: 'b' },
    batch: () => [
      { do: 'remove', path: 'a' },
      { do: 'attributes', path: 'b', attributes: ATTRIBUTES },
    ],
    theirs: async tree => {
      await other.remove(tree, 'a')
      await other.remove(tree, 'b')
    },
    left: {},
  },
  'the directory of a new file was removed': {
    given: { d: null },
    batch: () => [put('d/a', 'ours', { expect: null })],
    theirs: tree => other.remove(tree, 'd'),
    left: { d: null, 'd/a': 'ours' },
  },
  'a new name meets a file': {
    given: { a: 'ours' },
    batch: () => [{ do: 'link', path: 'b', target: 'a' }],
    theirs: tree => other.write(tree, 'b', 'theirs'),
    left: { a: 'ours', b: 'theirs' },
    conflicts: [{ path: 'b', keptAs: 'a' }],
    links: true,
  },
  'a name that a batch frees is taken at once': {
    given: { a: 'a', b: 'b' },
    batch: () => [move('a', 'b'), move('b', 'a')],
    theirs: async () => {},
    left: { a: 'b', b: 'a' },
  },
  'a name that the remote cannot hold': {
    given: { a: 'a', m: 'm' },
    batch: () => [
      ...[make('long'.repeat(100)), put(`${'long'.repeat(100)}/x`, 'x'), put('long'.repeat(90), 'y')],
      ...[move('m', 'long'.repeat(95)), put('b', 'b', { expect: null })],
    ],
    left: { a: 'a', b: 'b', m: 'm' },
    refused: [
      { path: 'long'.repeat(100), code: 'NAME_TOO_LONG' },
      { path: `${'long'.repeat(100)}/x`, code: 'NAME_TOO_LONG' },
      { path: 'long'.repeat(90), code: 'NAME_TOO_LONG' },
      { path: 'long'.repeat(95), code: 'NAME_TOO_LONG' },
    ],
  },
  'a name of ours': {
    given: {},
    batch: () => [make('.pageferry/x'), make('a')],
    left: { a: null },
    refused: [{ path: '.pageferry/x', code: 'NOT_PERMITTED' }],
  },
}

const byPath = <T extends { path: string }>(items: T[]) =>
  [...items].sort((one, other) => (one.path < other.path ? -1 : 1))

const opener = (tree: Tree): Remote => committing(tree, { now: () => 0, alive: () => false, refreshMs: 0 })

async function all(tree: Tree): Promise<Record<Path, string | null>> {
  const found: Record<Path, string | null> = {}
  const visit = async (path: Path): Promise<void> => {
    for (const { name, mode, size } of (await tree.list(path)).entries) {
      const child = path === '' ? name : `${path}/${name}`
      const isFile = (mode & constants.S_IFMT) === S_IFREG
      found[child] = isFile ? Buffer.from(await tree.read(child, { at: 0, length: size })).toString() : null
      if (!isFile) await visit(child)
    }
  }
  await visit('')
  return found
}

async function committed(tree: Tree, { given, batch, theirs }: Case, remote: Remote): Promise<void> {
  const first = opener(tree)
  await first.claim(claimOf('w'))
  const changes = Object.entries(given).map(([path, text]) => (text === null ? make(path) : put(path, text)))
  await first.commit({ writer: 'w', number: 1, cutAtMs: 0, changes })
  const versions: Versions = new Map((await first.settle()).versions)
  await remote.claim(claimOf('w'))
  await remote.commit({ writer: 'w', number: 2, cutAtMs: 0, changes: batch(versions) })
  await theirs?.(tree)
}

export function conflictSuite(
  name: string,
  open: () => Promise<TreeFixture>,
  { share, links }: { share: number; links: boolean },
): void {
  describe(`${name}: somebody else changed it`, () => {
    for (const [title, one] of Object.entries(cases)) {
      if (one.links && !links) continue
      test(title, async () => {
        const fixture = await open()
        try {
          const remote = opener(fixture.tree)
          await committed(fixture.tree, one, remote)
          const outcome = await remote.settle()
          expect(await all(remote)).toEqual(one.left)
          expect(byPath(outcome.conflicts)).toEqual(byPath(one.conflicts ?? []))
          expect(byPath(outcome.refused.map(({ path, code }) => ({ path, code })))).toEqual(byPath(one.refused ?? []))
          for (const [a, b] of one.same ?? [])
            expect((await remote.stat(a))?.id ?? a).toBe((await remote.stat(b))?.id ?? b)
          for (const [path, version] of outcome.versions) expect((await remote.stat(path))?.version).toBe(version)
          if (one.told) expect(outcome.versions.map(([path]) => path).sort()).toEqual(one.told)
        } finally {
          await fixture.dispose()
        }
      })

      test(`${title}; and a crash after any step changes nothing of that`, async () => {
        for (let survived = 0, more = true; more; survived++) {
          if (survived % Math.round(1 / share) !== 0 && survived < 300) continue
          const fixture = await open()
          try {
            let last = Number.POSITIVE_INFINITY
            const { fault, steps } = faults.crashing(() => last)
            const remote = opener(fault(fixture.tree))
            await committed(fixture.tree, one, remote)
            last = steps.count + survived
            try {
              await remote.settle()
              more = steps.count > last
            } catch (error) {
              if (!(error instanceof Crashed)) throw error
            }
            const heir = opener(fixture.tree)
            await heir.claim(claimOf('heir'))
            expect([survived, await all(heir)]).toEqual([survived, one.left])
          } finally {
            await fixture.dispose()
          }
        }
      })
    }
  })
}
