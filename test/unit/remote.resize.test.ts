// A blob that gets another size with a batch: before and after, whatever stops the one who does it.
import { describe, expect, test } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import type { Blob, BlobChange } from '../../src/remote/blob.js'
import { ChunkStore } from '../../src/remote/chunk-store.js'
import type { Commits } from '../../src/remote/commits.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { rollforwardChunks } from '../../src/remote/rollforward-chunks.js'
import { claimOf } from '../remotes/commits.js'
import { Crashed, type Fault, faults } from '../remotes/commits-faults.js'

const SEED = Number(process.env.SEED ?? freshSeed())
const PAGE = 4096
const CHUNK = 4 * PAGE
const SIZES = [0, PAGE, 5 * PAGE + 100, 16 * PAGE, 40 * PAGE]

/** Of this size, with bytes written and trimmed; the model becomes what it makes of it. */
function resized(model: Buffer, size: number, random: ReturnType<typeof randomOf>) {
  const after = Buffer.alloc(size)
  model.copy(after)
  const changes: BlobChange[] = size === model.length ? [] : [{ do: 'resize', size }]
  const staged = new Map<BlobChange, [at: number, bytes: Uint8Array]>()
  for (let at = random.below(2 * PAGE); at < size; at += PAGE + random.below(8 * PAGE)) {
    const length = Math.min(size - at, 1 + random.below(PAGE))
    const bytes = random.chance(0.3) ? null : random.bytes(length)
    if (bytes) after.set(bytes, at)
    else after.fill(0, at, at + length)
    if (bytes && random.chance(0.5)) {
      const change: BlobChange = { do: 'write', at, length, staged: 'f' }
      staged.set(change, [at, bytes])
      changes.push(change)
    } else changes.push(bytes ? { do: 'write', at, bytes } : { do: 'trim', at, length })
  }
  return { after, changes: random.chance(0.5) ? changes : changes.reverse(), staged }
}

const contentOf = async (blob: Blob) => Buffer.from(await blob.read(0, blob.size))

const options = { now: () => 0, alive: () => false, refreshMs: 0, sleep: async () => {} }
type Open = (fault?: Fault) => Promise<Blob & Commits<BlobChange>>

async function file(content: Buffer): Promise<Open> {
  const remote = memBlob({ size: content.length })
  const store = memStore()
  if (content.length > 0) await remote.write(0, content)
  return async (fault = faults.none) => rollforward(fault(remote), { ...options, commitStore: fault(store) })
}

async function chunks(content: Buffer): Promise<Open> {
  const store = memStore()
  const open: Open = async (fault = faults.none) => {
    const { geometry, sizeThen } = await ChunkStore.open(store, { size: undefined })
    return rollforwardChunks(new ChunkStore(fault(store), geometry, 4 * CHUNK, sizeThen), options)
  }
  await ChunkStore.open(store, { size: content.length, chunkBytes: CHUNK })
  const writer = await open()
  await writer.claim(claimOf('first', { pid: 1 }))
  const changes: BlobChange[] = content.length > 0 ? [{ do: 'write', at: 0, bytes: content }] : []
  await writer.commit({ writer: 'first', number: 1, cutAtMs: 0, changes })
  await writer.settle()
  return open
}

describe.each([
  ['in one piece', file],
  ['in chunks', chunks],
])('a batch with another size, %s', (_, make) => {
  test(`is there as a whole or not at all, wherever its writer stops (SEED=${SEED})`, async () => {
    const random = randomOf(SEED)
    for (const [from, to] of SIZES.flatMap(from => SIZES.map(to => [from, to]))) {
      for (let survived = 0; ; survived++) {
        const before = Buffer.from(random.bytes(from))
        const open = await make(before)
        const { after, changes, staged } = resized(before, to, random)
        const { fault, steps } = faults.crashing(survived)
        let isSettled = false
        try {
          const writer = await open(fault)
          await writer.claim(claimOf('w', { pid: 1 }))
          for (const change of changes) if (staged.has(change)) await writer.stage(1, 'f', ...staged.get(change)!)
          await writer.commit({ writer: 'w', number: 1, cutAtMs: 0, changes })
          await writer.settle()
          expect(writer.size).toBe(to)
          isSettled = true
        } catch (error) {
          if (!(error instanceof Crashed)) throw error
        }
        const heir = await open()
        const { batch } = await heir.claim(claimOf('w', { pid: 2 }))
        await heir.settle()
        expect(heir.size).toBe(batch === 1 ? to : from)
        const content = await contentOf(heir)
        expect((await open()).size).toBe(heir.size)
        expect([from, to, survived, content.equals(batch === 1 ? after : before)]).toEqual([from, to, survived, true])
        if (isSettled) expect(batch).toBe(1)
        if (isSettled && steps.count <= survived) break
      }
    }
  })
})
