// In which order everything is pulled: each block once, whatever the order.
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { inOrder, type PullOrder } from '../../src/cache/pull-order.js'

const MiB = 2 ** 20

async function blocksOf(order: PullOrder, size: number, blockBytes: number): Promise<number[]> {
  const blocks: number[] = []
  for await (const at of inOrder(order, size, blockBytes)) blocks.push(at / blockBytes)
  return blocks
}

describe('the order in which everything is pulled', () => {
  test('has each block once', async () => {
    const orders: fc.Arbitrary<PullOrder> = fc.oneof(
      fc.constantFrom('ascending' as const, 'descending' as const),
      fc.record({ strideBytes: fc.integer({ min: 1, max: 40 * MiB }) }),
      fc.func(fc.double()),
    )
    const sizes = fc.integer({ min: 0, max: 60 * MiB })
    await fc.assert(
      fc.asyncProperty(orders, sizes, fc.constantFrom(MiB / 8, MiB, 4 * MiB), async (order, size, blockBytes) => {
        const blocks = await blocksOf(order, size, blockBytes)
        expect([...blocks].sort((a, b) => a - b)).toEqual(
          Array.from({ length: Math.ceil(size / blockBytes) }, (_, block) => block),
        )
      }),
      { numRuns: 200 },
    )
  })

  test('is the one that was asked for', async () => {
    expect(await blocksOf('ascending', 5 * MiB, MiB)).toEqual([0, 1, 2, 3, 4])
    expect(await blocksOf('descending', 4.5 * MiB, MiB)).toEqual([4, 3, 2, 1, 0])
    expect(await blocksOf({ strideBytes: 2 * MiB }, 5 * MiB, MiB)).toEqual([0, 2, 4, 1, 3])
    // What is wanted most in a block is what counts, and of equals the first comes first.
    const wanted = (chunk: number) => (chunk === 17 ? 2 : chunk === 39 ? 3 : 0)
    expect(await blocksOf(wanted, 5 * MiB, MiB)).toEqual([4, 2, 0, 1, 3])
  })
})
