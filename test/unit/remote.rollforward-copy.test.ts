// What is staged out of what the remote has: nothing of it travels, and it is what it was when the batch was staged.
import { constants } from 'node:fs'
import { beforeEach, describe, expect, test } from '@jest/globals'
import type { Commits } from '../../src/remote/commits.js'
import { faulty } from '../../src/remote/faulty.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Content, Tree, TreeChange } from '../../src/remote/tree.js'
import { claimOf } from '../remotes/commits.js'

type Committing = Tree & Commits<TreeChange>

const PART_MIN = 16
const attributes = { mode: constants.S_IFREG | 0o644, uid: 0, gid: 0, atimeNs: 1n, mtimeNs: 2n }
const text = Array.from({ length: 200 }, (_, i) => String(i % 10)).join('')
const other = text.replaceAll(/\d/g, 'x')

describe.each(['tree', 'objects'] as const)('what is staged by a copy, at %s', kind => {
  let bare: Tree | Objects
  const over = (remote: Tree | Objects): Committing =>
    remote.shape === 'tree'
      ? rollforward(remote, { alive: () => false })
      : rollforward(remote, { alive: () => false, sleep: async () => {} })

  const opened = async (remote = bare, writer = 'w') => {
    const tree = over(remote)
    await tree.claim(claimOf(writer))
    return tree
  }

  const put = (path: string, content: Content, expect?: string | null): TreeChange => ({
    ...{ do: 'put', path, size: 200, attributes, content, expect, otherwise: `${path}.other` },
  })
  const commit = (tree: Committing, number: number, ...changes: TreeChange[]) =>
    tree.commit({ writer: 'w', number, cutAtMs: 0, changes })
  const inline = (of: string): Content => ({ inline: [{ at: 0, bytes: Buffer.from(of) }] })
  const whole: Content = { staged: 'f2', extents: [{ at: 0, length: 200 }] }

  const textOf = async (tree: Tree, path: string) => {
    const entry = await tree.stat(path)
    return entry && Buffer.from(await tree.read(path, { at: 0, length: entry.size })).toString()
  }

  /** A file at version `version`, by batch 1. */
  async function start() {
    const tree = await opened()
    await commit(tree, 1, put('from', inline(text), null))
    await tree.settle()
    const { version } = (await tree.stat('from'))!
    return { tree, version }
  }

  beforeEach(() => {
    bare = kind === 'tree' ? memTree() : memObjects({ capabilities: { partBytesMin: PART_MIN } })
  })

  test('is what the source was, though the same batch replaces that', async () => {
    const { tree, version } = await start()
    await tree.stageCopy!(2, 'f2', 0, { path: 'from', version, at: 0, length: 200 })
    await commit(tree, 2, put('to', whole, null), put('from', inline(other), version))
    expect([await textOf(tree, 'to'), await textOf(tree, 'from')]).toEqual([text, other])
    await tree.settle()
    expect([await textOf(tree, 'to'), await textOf(tree, 'from')]).toEqual([text, other])
    const again = await opened()
    expect([await textOf(again, 'to'), await textOf(again, 'from')]).toEqual([text, other])
  })

  test('lies beside bytes that were sent', async () => {
    const { tree, version } = await start()
    await tree.stageCopy!(2, 'f2', 20, { path: 'from', version, at: 5, length: 100 })
    await tree.stage(2, 'f2', 0, Buffer.from('a'.repeat(20)))
    await tree.stage(2, 'f2', 120, Buffer.from('b'.repeat(80)))
    await commit(tree, 2, put('to', whole, null))
    await tree.settle()
    expect(await textOf(tree, 'to')).toBe('a'.repeat(20) + text.slice(5, 105) + 'b'.repeat(80))
  })

  test('is refused when the source is not what it was, or is none', async () => {
    const { tree, version } = await start()
    await commit(tree, 2, put('from', inline(other), version))
    await tree.settle()
    const stage = (path: string) => tree.stageCopy!(3, 'f2', 0, { path, version, at: 0, length: 200 })
    await expect(stage('from')).rejects.toMatchObject({ code: 'STALE' })
    await expect(stage('none')).rejects.toMatchObject({ code: 'NOT_FOUND' })
    // And is sent then.
    await tree.stage(3, 'f2', 0, Buffer.from(text))
    await commit(tree, 3, put('to', whole, null))
    await tree.settle()
    expect(await textOf(tree, 'to')).toBe(text)
  })

  test('is for nobody who has lost the lease meanwhile', async () => {
    const { tree, version } = await start()
    await over(bare).claim({ ...claimOf('v'), takeOver: true })
    await tree.stageCopy!(2, 'f2', 0, { path: 'from', version, at: 0, length: 200 })
    await expect(commit(tree, 2, put('to', whole, null))).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })

  test('is all there or not at all, wherever the host is lost; nothing of it stays', async () => {
    for (let steps = 1, done = false; !done; steps++) {
      expect(steps).toBeLessThan(100)
      bare = kind === 'tree' ? memTree() : memObjects({ capabilities: { partBytesMin: PART_MIN } })
      const { version } = await start()
      const dying = bare.shape === 'tree' ? faulty(bare, { crashAfter: steps }) : faulty(bare, { crashAfter: steps })
      let committed = false
      try {
        const tree = await opened(dying)
        await tree.stageCopy!(2, 'f2', 0, { path: 'from', version, at: 0, length: 200 })
        await commit(tree, 2, put('to', whole, null), put('from', inline(other), version))
        committed = true
        await tree.settle()
        done = true
      } catch (error) {
        expect(error).toMatchObject({ code: expect.stringMatching(/UNREACHABLE|LEASE_HELD/) })
      }
      const next = await opened(bare, 'next')
      const found = [await textOf(next, 'to'), await textOf(next, 'from')]
      if (committed) expect(found).toEqual([text, other])
      else
        expect([
          [null, text],
          [text, other],
        ]).toContainEqual(found)
      await next.settle()
      expect(await left(bare)).toEqual([])
    }
  })

  async function left(remote: Tree | Objects): Promise<string[]> {
    if (remote.shape === 'objects') {
      const { objects } = await remote.list({ prefix: '.pageferry/stage/' })
      return [...objects, ...(await remote.uploads('.pageferry/'))].map(({ key }) => key)
    }
    const names: string[] = []
    for (const { name } of (await remote.list('.pageferry/stage')).entries)
      for (const each of (await remote.list(`.pageferry/stage/${name}`)).entries)
        if (each.name !== 'root') names.push(`${name}/${each.name}`)
    return names
  }
})

test('in a bucket, fewer bytes than three of the smallest parts are not worth it', async () => {
  const tree = rollforward(memObjects({ capabilities: { partBytesMin: PART_MIN } }), { alive: () => false })
  await tree.claim(claimOf('w'))
  const few = tree.stageCopy!(1, 'f2', 0, { path: 'from', version: 'any', at: 0, length: 3 * PART_MIN - 1 })
  await expect(few).rejects.toMatchObject({ code: 'UNSUPPORTED' })
})
