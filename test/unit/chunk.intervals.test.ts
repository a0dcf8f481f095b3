import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Intervals } from '../../src/chunk/intervals.js'

const SIZE = 40
const range = fc.tuple(fc.integer({ min: 0, max: SIZE }), fc.integer({ min: 0, max: SIZE }))
const step = fc.record({ add: fc.boolean(), range })

/** The same as a row of booleans. */
function runsOf(bytes: boolean[], wanted: boolean, [from, to]: readonly [number, number]) {
  const found: [number, number][] = []
  for (let at = from; at < to; at++) {
    if (bytes[at] !== wanted) continue
    const last = found.at(-1)
    if (last?.[1] === at) last[1]++
    else found.push([at, at + 1])
  }
  return found
}

test('adding and removing is what it is for a set of bytes', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), range, (steps, [from, to]) => {
      const intervals = new Intervals()
      const bytes = Array.from({ length: SIZE }, () => false)
      for (const { add, range } of steps) {
        if (add) intervals.add(...range)
        else intervals.remove(...range)
        for (let at = range[0]; at < range[1]; at++) bytes[at] = add
        const expected = runsOf(bytes, true, [0, SIZE])
        expect([...intervals]).toEqual(expected)
        expect(intervals.count).toBe(expected.length)
      }
      expect(intervals.bytes).toBe(bytes.filter(Boolean).length)
      expect(intervals.isEmpty).toBe(!bytes.includes(true))
      expect(intervals.covers(from, to)).toBe(bytes.slice(from, to).every(Boolean))
      expect(intervals.overlaps(from, to)).toBe(bytes.slice(from, to).some(Boolean))
      expect([...intervals.gaps(from, to)]).toEqual(runsOf(bytes, false, [from, to]))
      expect([...intervals.within(from, to)]).toEqual(runsOf(bytes, true, [from, to]))
    }),
    { numRuns: 2000 },
  )
})

test('an empty set lacks everything', () => {
  const intervals = new Intervals()
  expect([...intervals.gaps(5, 9)]).toEqual([[5, 9]])
  expect(intervals.covers(5, 5)).toBe(true)
  expect([intervals.from, intervals.to]).toEqual([Number.POSITIVE_INFINITY, 0])
  intervals.add(2, 4)
  intervals.clear()
  expect([...intervals]).toEqual([])
})
