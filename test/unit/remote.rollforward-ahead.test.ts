// What is staged before its batch is known: an open upload, taken by the batch that names it, or gone.
import { constants } from 'node:fs'
import { beforeEach, describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import type { Commits } from '../../src/remote/commits.js'
import { type MemObjects, memObjects } from '../../src/remote/mem-objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree, TreeChange } from '../../src/remote/tree.js'
import { type Call, wrap } from '../../src/remote/wrap.js'
import { claimOf } from '../remotes/commits.js'

type Committing = Tree & Commits<TreeChange>

const PART_MIN = 16
const attributes = { mode: constants.S_IFREG | 0o644, uid: 0, gid: 0, atimeNs: 1n, mtimeNs: 2n }
const bytes = (text: string) => Buffer.from(text)

let objects: MemObjects
let calls: string[]
/** Stands before each call that reaches the bucket. */
let before: (call: Call, next: () => Promise<unknown>) => Promise<unknown>

const open = async (writer = 'w') => {
  const counted = wrap(objects, async (call, next) => {
    calls.push(call.method)
    return before(call, () => next())
  })
  const tree = rollforward(counted, { alive: () => false })
  await tree.claim(claimOf(writer))
  return tree
}

async function commit(tree: Committing, number: number, size: number, extents: { at: number; length: number }[]) {
  const content = { staged: 'f1-0', extents }
  const change: TreeChange = { do: 'put', path: 'f', size, attributes, content, expect: null, otherwise: 'other' }
  await tree.commit({ writer: 'w', number, cutAtMs: 0, changes: [change] })
}

async function fileOf(tree: Tree) {
  const entry = await tree.stat('f')
  return entry && Buffer.from(await tree.read('f', { at: 0, length: entry.size })).toString()
}

const uploads = async () => (await objects.uploads('.pageferry/')).length
const staged = async () => (await objects.list({ prefix: '.pageferry/stage/' })).objects.map(({ key }) => key)
const text = Array.from({ length: 100 }, (_, i) => String(i % 10)).join('')

describe('what is staged ahead', () => {
  beforeEach(() => {
    objects = memObjects({ capabilities: { partBytesMin: PART_MIN } })
    calls = []
    before = (_, next) => next()
  })

  test('is one open upload, until a batch takes it, with what it has staged itself over it', async () => {
    const tree = await open()
    calls = []
    for (let at = 0; at < 100; at += 20) await tree.stageAhead!('f1-0', at, bytes(text.slice(at, at + 20)))
    expect(calls).toEqual(['beginUpload', ...Array(3).fill('uploadPart')])
    expect([await uploads(), await staged(), await tree.stat('f')]).toEqual([1, [], null])
    await tree.stage(1, 'f1-0', 30, bytes('changed'))
    await tree.stage(1, 'f1-0', 100, bytes('end'))
    await commit(tree, 1, 110, [{ at: 0, length: 103 }])
    expect([await uploads(), (await staged()).length]).toEqual([0, 2])
    await tree.settle()
    expect(await fileOf(tree)).toBe(`${text.slice(0, 30)}changed${text.slice(37)}end${'\0'.repeat(7)}`)
    expect(await staged()).toEqual([])
  })

  test('may be less than a part', async () => {
    const tree = await open()
    await tree.stageAhead!('f1-0', 5, bytes('few'))
    await commit(tree, 1, 8, [{ at: 5, length: 3 }])
    await tree.settle()
    expect(await fileOf(tree)).toBe('\0\0\0\0\0few')
  })

  test('goes on where it ended, and nowhere else', async () => {
    const tree = await open()
    await tree.stageAhead!('f1-0', 0, bytes('12345'))
    for (const at of [0, 4, 6])
      await expect(tree.stageAhead!('f1-0', at, bytes('x'))).rejects.toMatchObject({ code: 'INVALID' })
    await tree.stageAhead!('f1-0', 5, bytes('6'))
  })

  test('is refused if it is not all there: a batch never has zeros instead of bytes', async () => {
    const tree = await open()
    await tree.stageAhead!('f1-0', 0, bytes('12345'))
    await expect(commit(tree, 1, 9, [{ at: 0, length: 6 }])).rejects.toMatchObject({ code: 'INVALID' })
    await tree.stageAhead!('f1-1', 0, bytes('12345'))
    await tree.dropAhead!('f1-1')
    const change: TreeChange = {
      ...{ do: 'put', path: 'f', size: 5, attributes, expect: null, otherwise: 'other' },
      content: { staged: 'f1-1', extents: [{ at: 0, length: 5 }] },
    }
    const batch = { writer: 'w', number: 1, cutAtMs: 0, changes: [change] }
    await expect(tree.commit(batch)).rejects.toMatchObject({ code: 'INVALID' })
  })

  test('is not there any more when it was dropped, or its writer is gone', async () => {
    const tree = await open()
    await tree.stageAhead!('f1-0', 0, bytes(text))
    expect(await uploads()).toBe(1)
    await tree.dropAhead!('f1-0')
    await tree.dropAhead!('f1-0')
    expect(await uploads()).toBe(0)
    await tree.stageAhead!('f2-0', 0, bytes(text))
    expect(await uploads()).toBe(1)
    const next = await open()
    await next.settle()
    expect(await uploads()).toBe(0)
  })

  test('is there for whoever finishes the batch', async () => {
    const tree = await open()
    await tree.stageAhead!('f1-0', 0, bytes(text))
    await commit(tree, 1, 100, [{ at: 0, length: 100 }])
    const reader = rollforward(objects)
    expect(await fileOf(reader)).toBe(text)
    const next = await open()
    expect(await fileOf(next)).toBe(text)
    await next.settle()
    expect([await fileOf(next), await staged(), await uploads()]).toEqual([text, [], 0])
  })

  test.each(['beginUpload', 'uploadPart', 'completeUpload', 'put'])(
    'survives that %s fails, or that its answer is lost, while the batch is committed',
    async method => {
      for (const isDone of [false, true]) {
        objects = memObjects({ capabilities: { partBytesMin: PART_MIN } })
        before = (_, next) => next()
        const tree = await open()
        await tree.stageAhead!('f1-0', 0, bytes(text))
        let failures = 0
        before = async (call, next) => {
          if (call.method !== method || failures++ > 0) return next()
          if (isDone) await next()
          throw new FerryError('UNREACHABLE')
        }
        for (let tries = 0; ; tries++)
          try {
            await commit(tree, 1, 100, [{ at: 0, length: 100 }])
            await tree.settle()
            break
          } catch (error) {
            if (tries === 3) throw error
          }
        expect(await fileOf(tree)).toBe(text)
      }
    },
  )
})
