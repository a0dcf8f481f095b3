// What a batch costs a bucket, in requests: the table of docs/S3.md, without what a server adds that lacks conditions.
import { constants } from 'node:fs'
import { beforeEach, describe, expect, test } from '@jest/globals'
import type { Commits } from '../../src/remote/commits.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree, TreeChange } from '../../src/remote/tree.js'
import { claimOf } from '../remotes/commits.js'

const attributes = (mode: number) => ({ mode, uid: 0, gid: 0, atimeNs: 1n, mtimeNs: 2n })
const file = attributes(constants.S_IFREG | 0o644)
const directory = attributes(constants.S_IFDIR | 0o755)
const small = { size: 3, content: { inline: [{ at: 0, bytes: Buffer.from('abc') }] } }
const otherwise = 'other'

const put = (path: string, expect: string | null): TreeChange => ({
  ...{ do: 'put', path, ...small, attributes: file, expect, otherwise },
})
const touched = (path: string): TreeChange => ({ do: 'attributes', path, attributes: directory })
const made = (path: string): TreeChange => ({
  ...{ do: 'make', path, node: { ...directory, rdev: 0 }, otherwise },
})
const moved = (from: string, to: string): TreeChange => ({ do: 'move', from, to, otherwise })

let counts: Record<string, number>
let tree: Tree & Commits<TreeChange>
let batches: number
let nowMs: number

/** Counts the calls. */
function counted(objects: Objects): Objects {
  return new Proxy(objects, {
    get(target, name: keyof Objects) {
      const value = target[name]
      if (typeof value !== 'function') return value
      return (...args: unknown[]) => {
        counts[name] = (counts[name] ?? 0) + 1
        return (value as (...args: unknown[]) => unknown).apply(target, args)
      }
    },
  })
}

/** @returns the requests of one batch, and the versions that it made */
async function cost(changes: TreeChange[]): Promise<{ versions: Map<string, string>; counts: Record<string, number> }> {
  counts = {}
  nowMs += 10_000
  await tree.commit({ writer: 'w', number: ++batches, cutAtMs: 0, changes })
  const { versions, conflicts, refused } = await tree.settle()
  expect([conflicts, refused]).toEqual([[], []])
  return { versions: new Map(versions), counts }
}

/** A directory of a hundred files, and what they are. */
async function hundred(path: string): Promise<Map<string, string>> {
  const files = Array.from({ length: 100 }, (_, i) => put(`${path}/${i}`, null))
  return (await cost([made(path), ...files])).versions
}

describe.each([
  ['looks at conditions', {}],
  ['looks at those of plain puts', { completeIf: false, copyIf: false, removeIfMatch: false }],
])('requests of a batch, of a bucket that %s', (_, capabilities) => {
  beforeEach(async () => {
    counts = {}
    batches = 0
    nowMs = 1e12
    tree = rollforward(counted(memObjects({ capabilities, nowMs: () => nowMs })), { wallMs: () => nowMs })
    await tree.claim(claimOf('w'))
    await cost([made('d'), put('d/old', null)])
  })
  const removesOneByOne = !('removeIfMatch' in capabilities)

  test('a small file is its intent, itself, its directory, and the end of the batch', async () => {
    expect((await cost([put('d/f', null), touched('d')])).counts).toEqual({ put: 4, head: 1 })
  })

  test('a small file that is replaced is not looked at', async () => {
    const { versions } = await cost([put('d/f', null)])
    expect((await cost([put('d/f', versions.get('d/f')!)])).counts).toEqual({ put: 3 })
  })

  test('a hundred files are put once each, and whether a file has the name of their directory is asked', async () => {
    await hundred('many')
    expect(counts).toEqual({ put: 103, head: 1 })
  })

  test('what is removed is known', async () => {
    const { versions } = await cost([put('d/f', null)])
    const change: TreeChange = { do: 'remove', path: 'd/f', expect: versions.get('d/f') }
    expect((await cost([change, touched('d')])).counts).toEqual({ put: 3, head: 1, remove: 1 })
  })

  test('many go together, where the server would not look at each', async () => {
    const versions = await hundred('many')
    const changes = [...versions].map(([path, expect]): TreeChange => ({ do: 'remove', path, expect }))
    expect((await cost([...changes, touched('many')])).counts).toEqual(
      removesOneByOne ? { put: 3, head: 1, remove: 100 } : { put: 3, head: 2, list: 1, removeAll: 1 },
    )
  })

  test('4 KiB within 20 MiB: what lies before and after is copied, with what they are joined to between them', async () => {
    const size = 20 * 1024 ** 2
    const large: TreeChange = { do: 'put', path: 'd/f', size, content: { inline: [] }, attributes: file, otherwise }
    const { versions } = await cost([large])
    const content = { inline: [{ at: size / 2, bytes: new Uint8Array(4096) }] }
    const patch: TreeChange = {
      ...{ do: 'patch', path: 'd/f', size, floor: size, content, attributes: file, otherwise },
      expect: versions.get('d/f'),
    }
    // Put are the intent, the note of the upload, and the end.
    expect((await cost([patch])).counts).toEqual({
      ...{ put: 3, beginUpload: 2, copyPart: 4, uploadPart: 1, completeUpload: 2, removeAll: 1 },
    })
  })

  test('a file that is renamed', async () => {
    await cost([put('d/f', null)])
    // Put are the intent, the plan, the mark, the directory and the end; looked at are both names, as a file and as a directory each,
    // and the directory.
    expect((await cost([moved('d/f', 'd/g'), touched('d')])).counts).toEqual({
      ...{ put: 5, head: 5, copy: 1, remove: 1, removeAll: 1 },
    })
  })

  // Put are the intent, the list of what is below, the plan, the directory itself, the one that it is in, the mark, and the end.
  const renamed = removesOneByOne
    ? { put: 7, copy: 100, list: 2, remove: 101, removeAll: 1 }
    : { put: 7, copy: 100, list: 3, removeAll: 2 }
  // Three looks at names, two at directories; one more if what goes is looked at together.
  const looks = removesOneByOne ? 5 : 6

  test('a directory that is renamed: a look at each file, and a copy', async () => {
    await hundred('many')
    expect((await cost([moved('many', 'new'), touched('')])).counts).toEqual({ ...renamed, head: looks + 100 })
  })

  test('a directory that is renamed, of which the attributes are known: a copy for each file', async () => {
    await hundred('many')
    nowMs += 10_000
    const { entries } = await tree.list('many')
    await tree.complete!(
      'many',
      entries.map(({ name }) => ({ name, isDirectory: false })),
    )
    expect((await cost([moved('many', 'new'), touched('')])).counts).toEqual({ ...renamed, head: looks })
  })

  test('the chain is cleared of what nobody needs, many at once', async () => {
    for (let i = 0; i < 60; i++) await cost([put(`d/${i}`, null)])
    expect((await tree.hidden.list('log/')).length).toBeLessThan(70)
    await tree.release()
    expect((await tree.hidden.list('log/')).length).toBeLessThan(4)
  })
})
