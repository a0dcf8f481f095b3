import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import {
  CHUNK_BYTES,
  CHUNK_PAGES,
  chunkAt,
  firstRun,
  maskCovering,
  maskOf,
  maskWithin,
  offsetInChunk,
  PAGE_BYTES,
  pageInChunk,
  popcount,
  runs,
} from '../../src/chunk/geometry.js'

const mask = fc.integer({ min: 0, max: 0xffff_ffff })
const pages = (mask: number) =>
  Array.from({ length: CHUNK_PAGES }, (_, page) => page).filter(page => (mask >>> page) & 1)
const inChunk = fc.tuple(fc.integer({ min: 0, max: CHUNK_BYTES }), fc.integer({ min: 0, max: CHUNK_BYTES }))

test('a byte has one chunk and one page, far beyond 4 GiB too', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 52 }), offset => {
      const back = chunkAt(offset) * CHUNK_BYTES + offsetInChunk(offset)
      expect(back).toBe(offset)
      expect(pageInChunk(offset)).toBe(Math.floor(offsetInChunk(offset) / PAGE_BYTES))
    }),
  )
})

test('masks are unsigned, and a whole chunk is all ones', () => {
  expect(maskOf(0, 32)).toBe(0xffff_ffff)
  expect(maskOf(31, 1)).toBe(0x8000_0000)
  expect(maskOf(0, 0)).toBe(0)
  for (let first = 0; first < CHUNK_PAGES; first++)
    for (let count = 0; first + count <= CHUNK_PAGES; count++)
      expect(pages(maskOf(first, count))).toEqual(Array.from({ length: count }, (_, i) => first + i))
})

test('covering takes the pages touched, within those that are whole', () => {
  fc.assert(
    fc.property(inChunk, ([from, to]) => {
      const every = pages(0xffff_ffff)
      expect(pages(maskCovering(from, to))).toEqual(
        every.filter(page => from < to && page * PAGE_BYTES < to && (page + 1) * PAGE_BYTES > from),
      )
      expect(pages(maskWithin(from, to))).toEqual(
        every.filter(page => page * PAGE_BYTES >= from && (page + 1) * PAGE_BYTES <= to),
      )
    }),
    { numRuns: 1000 },
  )
})

test('the runs of a mask are its pages, as few as can be', () => {
  fc.assert(
    fc.property(mask, mask => {
      const seen: number[] = []
      let before = -2
      runs(mask, (first, count) => {
        expect(first).toBeGreaterThan(before + 1)
        for (let page = first; page < first + count; page++) seen.push(page)
        before = first + count - 1
      })
      expect(seen).toEqual(pages(mask))
      expect(popcount(mask)).toBe(seen.length)
    }),
    { numRuns: 1000, examples: [[0], [0xffff_ffff], [0x8000_0000], [1], [0xffff_fffe], [0x7fff_ffff]] },
  )
  expect(firstRun(0xffff_ffff, 32)).toBe(-1)
})
