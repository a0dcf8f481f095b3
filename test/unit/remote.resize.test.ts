// A blob that gets another size with a batch: before and after, whatever stops the one who does it.
import { describe, expect, test } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import type { Blob, BlobChange } from '../../src/remote/blob.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { claimOf } from '../remotes/commits.js'
import { Crashed, faults } from '../remotes/commits-faults.js'

const SEED = Number(process.env.SEED ?? freshSeed())
const PAGE = 4096
const SIZES = [0, PAGE, 5 * PAGE + 100, 16 * PAGE, 40 * PAGE]

/** Of this size, with bytes written and trimmed; the model becomes what it makes of it. */
function resized(model: Buffer, size: number, random: ReturnType<typeof randomOf>) {
  const after = Buffer.alloc(size)
  model.copy(after)
  const changes: BlobChange[] = size === model.length ? [] : [{ do: 'resize', size }]
  for (let at = random.below(2 * PAGE); at < size; at += PAGE + random.below(8 * PAGE)) {
    const length = Math.min(size - at, 1 + random.below(PAGE))
    const bytes = random.chance(0.3) ? null : random.bytes(length)
    if (bytes) after.set(bytes, at)
    else after.fill(0, at, at + length)
    changes.push(bytes ? { do: 'write', at, bytes } : { do: 'trim', at, length })
  }
  return { after, changes: random.chance(0.5) ? changes : changes.reverse() }
}

const contentOf = async (blob: Blob) => Buffer.from(await blob.read(0, blob.size))

describe('a batch with another size', () => {
  test(`is there as a whole or not at all, wherever its writer stops (SEED=${SEED})`, async () => {
    const random = randomOf(SEED)
    for (const [from, to] of SIZES.flatMap(from => SIZES.map(to => [from, to]))) {
      for (let survived = 0; ; survived++) {
        const remote = memBlob({ size: from })
        const store = memStore()
        const open = (fault = faults.none) =>
          rollforward(fault(remote), {
            ...{ now: () => 0, alive: () => false, refreshMs: 0, sleep: async () => {} },
            commitStore: fault(store),
          })
        const before = Buffer.from(random.bytes(from))
        if (from > 0) await remote.write(0, before)
        const { after, changes } = resized(before, to, random)
        const { fault, steps } = faults.crashing(survived)
        let isSettled = false
        try {
          const writer = open(fault)
          await writer.claim(claimOf('w', { pid: 1 }))
          await writer.commit({ writer: 'w', number: 1, cutAtMs: 0, changes })
          await writer.settle()
          expect(writer.size).toBe(to)
          isSettled = true
        } catch (error) {
          if (!(error instanceof Crashed)) throw error
        }
        const heir = open()
        const { batch } = await heir.claim(claimOf('w', { pid: 2 }))
        await heir.settle()
        const content = await contentOf(heir)
        expect([from, to, survived, content.equals(batch === 1 ? after : before)]).toEqual([from, to, survived, true])
        if (isSettled) expect(batch).toBe(1)
        if (isSettled && steps.count <= survived) break
      }
    }
  })
})
