// What became of a batch is told to its writer, whoever finished it, and whatever came in between.
import { expect, test } from '@jest/globals'
import { memTree } from '../../src/remote/mem-tree.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree, TreeChange } from '../../src/remote/tree.js'
import { wrap } from '../../src/remote/wrap.js'
import { claimOf } from '../remotes/commits.js'

const attributes = { mode: 0o100600, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n }
const put = (path: string, text: string): TreeChange => ({
  ...{ do: 'put', path, size: text.length, attributes, otherwise: `${path}.ours`, expect: null },
  content: { inline: [{ at: 0, bytes: Buffer.from(text) }] },
})

const opened = (tree: Tree) =>
  rollforward(tree, { now: () => 0, alive: () => false, refreshMs: 0, sleep: async () => {} })

/** A batch of `w` that meets somebody else's file, committed, and applied if so wished; then its process is gone. */
async function left(tree: Tree, { applied }: { applied: boolean }) {
  await tree.make('file', { ...attributes, rdev: 0 })
  await tree.write('file', 0, Buffer.from('theirs'))
  const writer = opened(tree)
  await writer.claim(claimOf('w', { pid: 1 }))
  await writer.commit({ writer: 'w', number: 1, cutAtMs: 0, changes: [put('file', 'ours'), put('other', 'ours')] })
  if (applied) await writer.settle()
}

/** Other writers come, and write. */
async function others(tree: Tree, count: number) {
  for (let n = 0; n < count; n++) {
    const other = opened(tree)
    await other.claim(claimOf(`x${n}`, { pid: 10 + n }))
    await other.commit({ writer: `x${n}`, number: 1, cutAtMs: 0, changes: [put(`from-${n}`, 'x')] })
    await other.settle()
    if (n % 2) await other.release()
  }
}

test.each([
  { applied: true, between: 0 },
  { applied: true, between: 1 },
  { applied: true, between: 5 },
  { applied: false, between: 0 },
  { applied: false, between: 1 },
  { applied: false, between: 5 },
])('applied: $applied, and $between others since', async ({ applied, between }) => {
  const tree = memTree()
  await left(tree, { applied })
  await others(tree, between)
  const again = opened(tree)
  const { batch, outcome } = await again.claim(claimOf('w', { pid: 2 }))
  expect(batch).toBe(1)
  expect(outcome?.conflicts).toEqual([{ path: 'file', keptAs: 'file.ours' }])
  const versions = new Map(outcome?.versions)
  for (const path of ['file.ours', 'other']) expect(versions.get(path)).toBe((await tree.stat(path))!.version)
  // It is of that batch only.
  await again.commit({ writer: 'w', number: 2, cutAtMs: 0, changes: [put('more', 'ours')] })
  await again.settle()
  await others(tree, 1)
  const later = await opened(tree).claim(claimOf('w', { pid: 3 }))
  expect([later.batch, later.outcome?.conflicts]).toEqual([2, []])
})

test('what somebody puts at a name right after us is not taken for ours', async () => {
  const tree = memTree()
  let theirs = async () => {}
  const writer = opened(
    wrap(tree, async (call, next) => {
      const done = await next()
      if (call.method === 'sync') await theirs()
      return done
    }),
  )
  await writer.claim(claimOf('w'))
  theirs = async () => {
    if ((await tree.stat('file')) === null) return
    theirs = async () => {}
    await tree.make('plain', { ...attributes, mtimeNs: 5n, rdev: 0 })
    await tree.write('plain', 0, Buffer.from('THEM'))
    await tree.rename('plain', 'file')
  }
  await writer.commit({ writer: 'w', number: 1, cutAtMs: 0, changes: [put('file', 'ours'), put('other', 'ours')] })
  const { versions } = await writer.settle()
  expect(Buffer.from(await tree.read('file', { at: 0, length: 9 })).toString()).toBe('THEM')
  expect(new Map(versions)).toEqual(
    new Map([
      ['file', ''],
      ['other', (await tree.stat('other'))!.version],
    ]),
  )
})
