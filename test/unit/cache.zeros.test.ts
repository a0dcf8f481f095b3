// Pages that are known to be zeros, against a model that has a flag for each of them.
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Zeros } from '../../src/cache/zeros.js'

const PAGE = 4096
const PAGES = 96

interface Model {
  known: Set<number>
  open: Set<number>
  flight: Set<number>
}

type Step = { do: 'add' | 'remove'; from: number; count: number } | { do: 'cut' | 'committed' | 'merged' | 'persisted' }

const steps: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    do: fc.constantFrom('add' as const, 'remove' as const),
    from: fc.integer({ min: 0, max: PAGES - 1 }),
    count: fc.integer({ min: 1, max: 40 }),
  }),
  fc.record({ do: fc.constantFrom('cut' as const, 'committed' as const, 'merged' as const, 'persisted' as const) }),
)

function pagesOf(runs: Iterable<[from: number, to: number]>): Set<number> {
  const pages = new Set<number>()
  for (const [from, to] of runs) for (let at = from; at < to; at += PAGE) pages.add(at / PAGE)
  return pages
}

function play(model: Model, zeros: Zeros, step: Step): Zeros {
  if (step.do === 'add' || step.do === 'remove') {
    const end = Math.min(PAGES, step.from + step.count)
    for (let page = step.from; page < end; page++)
      for (const set of [model.known, model.open]) step.do === 'add' ? set.add(page) : set.delete(page)
    zeros[step.do](step.from * PAGE, end * PAGE)
  } else if (step.do === 'cut') {
    // Only ever when there is no flight.
    if (model.flight.size > 0) return zeros
    model.flight = new Set(model.open)
    model.open.clear()
    zeros.cut()
  } else if (step.do === 'committed') {
    model.flight.clear()
    zeros.committed()
  } else if (step.do === 'merged') {
    for (const page of model.flight) if (model.known.has(page)) model.open.add(page)
    model.flight.clear()
    zeros.merged()
  } else return Zeros.fromRecord(JSON.parse(JSON.stringify(zeros.toRecord())))
  return zeros
}

describe('zeros', () => {
  test('are those of the model, in chunks, runs and gaps, also after a restart', () => {
    fc.assert(
      fc.property(fc.array(steps, { maxLength: 60 }), all => {
        const model: Model = { known: new Set(), open: new Set(), flight: new Set() }
        let zeros = new Zeros()
        for (const step of all) zeros = play(model, zeros, step)
        expect(pagesOf(zeros.within(0, PAGES * PAGE))).toEqual(new Set([...model.known].sort((a, b) => a - b)))
        expect(pagesOf(zeros.flight)).toEqual(new Set([...model.flight].sort((a, b) => a - b)))
        expect(pagesOf(zeros.gaps(0, PAGES * PAGE)).size).toBe(PAGES - model.known.size)
        expect(zeros.bytes).toBe(model.known.size * PAGE)
        for (const index of [0, 1, 2]) {
          const pages = [...model.known].filter(page => Math.floor(page / 32) === index)
          expect(zeros.mask(index)).toBe(pages.reduce((mask, page) => (mask | (1 << (page % 32))) >>> 0, 0))
        }
      }),
      { numRuns: 500 },
    )
  })

  test('that the remote has are forgotten when they are too many, and only those', () => {
    const zeros = new Zeros()
    for (let n = 0; n < 10_000; n++) zeros.add(2 * n * PAGE, (2 * n + 1) * PAGE)
    zeros.cut()
    zeros.committed()
    for (let n = 10_000; n < 16_384; n++) zeros.add(2 * n * PAGE, (2 * n + 1) * PAGE)
    expect(zeros.mask(0)).not.toBe(0)
    zeros.cut()
    zeros.add(40_000 * PAGE, 40_001 * PAGE)
    expect(zeros.mask(0)).toBe(0)
    expect(zeros.bytes).toBe((16_384 - 10_000 + 1) * PAGE)
    expect(pagesOf(zeros.flight).size).toBe(16_384 - 10_000)
  })
})
