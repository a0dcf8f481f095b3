// Short changes of long objects: each is joined in the stage to what lies before it, and what was joined goes with its batch.
import { constants } from 'node:fs'
import { beforeEach, describe, expect, test } from '@jest/globals'
import { FerryError, isFerryError } from '../../src/base/errors.js'
import type { Commits } from '../../src/remote/commits.js'
import { type MemObjects, memObjects } from '../../src/remote/mem-objects.js'
import type { ObjectsCapabilities } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree, TreeChange } from '../../src/remote/tree.js'
import { type Call, wrap } from '../../src/remote/wrap.js'
import { claimOf } from '../remotes/commits.js'
import { faults } from '../remotes/commits-faults.js'

const PART_MIN = 16
const attributes = { mode: constants.S_IFREG | 0o644, uid: 0, gid: 0, atimeNs: 1n, mtimeNs: 2n }
const old = Array.from({ length: 200 }, (_, i) => String(i % 10)).join('')
/** Two that have parts of their own before them, and one that ends the file. */
const extents = [
  { at: 50, text: 'first' },
  { at: 120, text: 'second' },
  { at: 195, text: 'third' },
]
const changed = extents.reduce((all, { at, text }) => all.slice(0, at) + text + all.slice(at + text.length), old)

let objects: MemObjects
let version: string
let calls: Call[]
/** Stands before each call that changes something in the bucket; from 1 on. */
let before: (call: Call, next: () => Promise<unknown>, number: number) => Promise<unknown>

const open = async (writer = 'w') => {
  const seen = wrap(objects, async (call, next) => {
    if (!call.changes) return next()
    calls.push(call)
    return before(call, () => next(), calls.length)
  })
  const tree = rollforward(seen, { alive: () => false, refreshMs: 0 })
  await tree.claim(claimOf(writer))
  return tree
}

const patch = (): TreeChange => ({
  ...{ do: 'patch', path: 'f', size: 200, floor: 200, attributes, expect: version, otherwise: 'f.ours' },
  content: { inline: extents.map(({ at, text }) => ({ at, bytes: Buffer.from(text) })) },
})
const commit = (tree: Tree & Commits<TreeChange>) =>
  tree.commit({ writer: 'w', number: 1, cutAtMs: 0, changes: [patch()] })

const textOf = async (key: string) => Buffer.from(await objects.get(key)).toString()
const staged = async () => (await objects.list({ prefix: '.pageferry/stage/' })).objects.map(({ key }) => key)
const uploads = async () => (await objects.uploads('.pageferry/stage/')).map(({ key }) => key)
const joins = () => calls.flatMap(({ method, args: [key] }) => (method === 'beginUpload' && key !== 'f' ? [key] : []))

async function begin(capabilities: Partial<ObjectsCapabilities>): Promise<void> {
  objects = memObjects({ capabilities: { partBytesMin: PART_MIN, ...capabilities } })
  version = await objects.put('f', Buffer.from(old))
  calls = []
  before = (_, next) => next()
}

describe.each([
  ['looks at conditions', {}],
  ['looks at those of plain puts', { completeIf: false, copyIf: false, removeIfMatch: false }],
])('a join, in a bucket that %s', (_, capabilities) => {
  beforeEach(() => begin(capabilities))

  test('sends the change alone, and is gone when the batch is done', async () => {
    const tree = await open()
    await commit(tree)
    calls = []
    await tree.settle()
    const sent = calls.flatMap(({ method, args }) => (method === 'uploadPart' ? [Buffer.from(args[3] as Buffer)] : []))
    expect(sent.map(String).sort()).toEqual(['first', 'second', 'third'])
    expect(joins()).toHaveLength(2)
    expect(await textOf('f')).toBe(changed)
    expect([await staged(), await uploads()]).toEqual([[], []])
  })

  test('that a crash leaves, after whatever step, is cleared by whoever comes next', async () => {
    const kept = objects.snapshot()
    let left = 0
    for (let survived = 0; ; survived++) {
      objects.restore(kept)
      calls = []
      before = (_, next, number) => (number > survived ? Promise.reject(new Error('dead')) : next())
      let committed = false
      const tree = await open().catch(() => null)
      if (tree)
        await commit(tree)
          .then(() => {
            committed = true
            return tree.settle()
          })
          .catch(() => {})
      const done = calls.length <= survived
      left += (await uploads()).length
      before = (_, next) => next()
      const heir = await open('heir')
      await heir.settle()
      const found = await textOf('f')
      expect([survived, found]).toEqual([survived, committed ? changed : found === old ? old : changed])
      expect([survived, await staged(), await uploads()]).toEqual([survived, [], []])
      if (done) break
    }
    expect(left).toBeGreaterThan(0)
  })

  test('of which a step fails, or its answer is lost, is made again, under another name', async () => {
    const kept = objects.snapshot()
    for (const isDone of [false, true])
      for (let failing = 1; ; failing++) {
        objects.restore(kept)
        calls = []
        before = async (_, next, number) => {
          if (number !== failing) return next()
          if (isDone) await next()
          throw new FerryError('UNREACHABLE', { detail: 'on purpose' })
        }
        const tree = await insist(() => open())
        await insist(() => commit(tree))
        const { conflicts, refused } = await insist(() => tree.settle())
        expect([failing, conflicts, refused]).toEqual([failing, [], []])
        expect([failing, await textOf('f')]).toEqual([failing, changed])
        expect(new Set(joins()).size).toBe(joins().length)
        const steps = calls.length
        before = (_, next) => next()
        await (await open('heir')).settle()
        expect([failing, await staged(), await uploads()]).toEqual([failing, [], []])
        if (steps < failing) break
      }
  })

  test('of a writer that was overtaken, wherever it wakes up, changes nothing, and goes with the next sweep', async () => {
    const kept = objects.snapshot()
    for (let asleepAt = 1; ; asleepAt++) {
      objects.restore(kept)
      calls = []
      const { fault, wake, fellAsleep } = faults.sleeping(asleepAt)
      const slow = rollforward(fault(objects), { alive: () => false, refreshMs: 0 })
      const run = slow
        .claim(claimOf('w'))
        .then(() => commit(slow))
        .then(() => slow.settle())
        .catch((error: unknown) => error)
      if (await Promise.race([fellAsleep.then(() => false), run.then(() => true)])) break
      const heir = await open('heir')
      const put: TreeChange = {
        ...{ do: 'put', path: 'f', size: 300, attributes, expect: (await heir.stat('f'))!.version, otherwise: 'g' },
        content: { inline: [{ at: 0, bytes: Buffer.from('heir') }] },
      }
      await heir.commit({ writer: 'heir', number: 1, cutAtMs: 0, changes: [put] })
      await heir.settle()
      const seen = await textOf('f')
      wake()
      await run
      expect([asleepAt, seen.slice(0, 4), await textOf('f')]).toEqual([asleepAt, 'heir', seen])
      await (await open('last')).release()
      expect([asleepAt, await staged(), await uploads()]).toEqual([asleepAt, [], []])
    }
  })

  test('of a file that somebody else changes meanwhile: theirs keeps the name, ours gets the other', async () => {
    const theirs = 'x'.repeat(200)
    before = async ({ method, args: [key] }, next) => {
      if (method === 'copyPart' && key === joins()[0] && (await textOf('f')) === old)
        await objects.put('f', Buffer.from(theirs))
      return next()
    }
    const tree = await open()
    await commit(tree)
    expect((await tree.settle()).conflicts).toEqual([{ path: 'f', keptAs: 'f.ours' }])
    expect(await textOf('f')).toBe(theirs)
    expect((await textOf('f.ours')).slice(120, 126)).toBe('second')
    expect([await staged(), await uploads()]).toEqual([[], []])
  })
})

async function insist<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await work()
    } catch (error) {
      if (tries === 3 || !isFerryError(error, 'UNREACHABLE', 'NOT_FOUND', 'EXISTS')) throw error
    }
  }
}
