import { describe, expect, test } from '@jest/globals'
import { random } from '../../src/base/random.js'
import type { Packed } from '../../src/remote/intent.js'
import {
  type PartPlan,
  partsOf,
  type Segment,
  segmentsOfPatch,
  segmentsOfPut,
} from '../../src/remote/object-segments.js'
import type { TreeChange } from '../../src/remote/tree.js'

const MiB = 1024 ** 2
const bounds = { partBytesMin: 5 * MiB, partBytesMax: 5 * 1024 * MiB, partsMax: 10_000 }
const attributes = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n }
type Patch = Extract<TreeChange, { do: 'patch' }>

const patchOf = (more: Partial<Patch>): Patch => ({
  ...{ do: 'patch', path: 'a', attributes, otherwise: 'b', size: 0, floor: Number.MAX_SAFE_INTEGER },
  content: { inline: [] },
  ...more,
})

const sent = (parts: PartPlan[]) => parts.reduce((sum, { piece, length }) => sum + (piece ? 0 : length), 0)

function check(parts: PartPlan[], size: number, { partBytesMin, partBytesMax }: typeof bounds = bounds): void {
  let at = 0
  parts.forEach((part, index) => {
    expect(part.at).toBe(at)
    if (index < parts.length - 1) expect(part.length).toBeGreaterThanOrEqual(partBytesMin)
    expect(part.length).toBeLessThanOrEqual(partBytesMax)
    at += part.length
  })
  expect(at).toBe(size)
}

describe('parts', () => {
  test('a small change of a large file sends what a part has at least, and copies the rest', () => {
    const size = 1024 * MiB
    const source = { key: 'a', etag: 'e', size }
    for (const at of [0, 4096, 3 * MiB, 512 * MiB, size - 6 * MiB, size - 4096]) {
      const change = patchOf({ size, content: { inline: [{ at, bytes: new Uint8Array(4096) }] } })
      const parts = partsOf(segmentsOfPatch(change, source, []), bounds)!
      check(parts, size)
      expect([at, sent(parts)]).toEqual([at, expect.any(Number)])
      // One that is before the first part's end, or near the end of the file, has no neighbour on that side.
      expect(sent(parts)).toBeLessThanOrEqual(10 * MiB)
      if (at === 512 * MiB) expect(sent(parts)).toBe(5 * MiB)
    }
  })

  test('what is staged is copied as well, but for short runs', () => {
    const packed: Packed[] = [
      ['f', 0, 8 * MiB, 'p1', 0],
      ['f', 8 * MiB, 8 * MiB, 'p2', 0],
      ['f', 16 * MiB, 100, 'p3', 50],
    ]
    const size = 16 * MiB + 100
    const content = { staged: 'f', extents: [{ at: 0, length: size }] }
    const segments = segmentsOfPut({ do: 'put', path: 'a', size, attributes, content, otherwise: 'b' }, packed)
    const parts = partsOf(segments, bounds)!
    check(parts, size)
    expect(parts.map(({ piece, length }) => [piece?.key, piece?.at, length])).toEqual([
      ['.pageferry/p1', 0, 8 * MiB],
      ['.pageferry/p2', 0, 8 * MiB],
      [undefined, undefined, 100],
    ])
  })

  test('too many short runs become fewer', () => {
    const size = 400
    const inline = Array.from({ length: 40 }, (_, index) => ({ at: index * 10, bytes: new Uint8Array(1) }))
    const segments = segmentsOfPatch(patchOf({ size, content: { inline } }), { key: 'a', etag: 'e', size }, [])
    const few = { partBytesMin: 5, partBytesMax: 1_000, partsMax: 10 }
    const parts = partsOf(segments, few)!
    expect(parts.length).toBeLessThanOrEqual(10)
    check(parts, size, few)
  })

  test('no part but the last is too short, whatever the size', () => {
    for (let size = 1; size < 60 * MiB; size += 234_567) {
      check(partsOf([{ at: 0, length: size }], bounds)!, size)
      for (const at of [0, 3 * MiB, 9 * MiB].filter(one => one + 4096 < size)) {
        const content = { inline: [{ at, bytes: new Uint8Array(4096) }] }
        const source = { key: 'a', etag: 'e', size }
        check(partsOf(segmentsOfPatch(patchOf({ size, content }), source, []), bounds)!, size)
      }
    }
  })

  test('random changes are made of the right bytes', () => {
    const dice = random(3)
    for (let round = 0; round < 3_000; round++) {
      const old = dice.bytes(dice.below(100))
      const size = dice.below(120)
      const floor = Math.min(old.length, dice.below(140))
      const expected = new Uint8Array(size)
      expected.set(old.subarray(0, Math.min(floor, size)))
      const packed: Packed[] = []
      const pack = dice.bytes(300)
      const inline: { at: number; bytes: Uint8Array }[] = []
      for (let at = dice.below(20); at < size; at += dice.below(30)) {
        const bytes = dice.bytes(Math.min(size - at, 1 + dice.below(20)))
        inline.push({ at, bytes })
        pack.set(bytes, at)
        expected.set(bytes, at)
        packed.push(['f', at, bytes.length, 'pack', at])
        if (dice.chance(0.3)) packed.push(['f', at, bytes.length, 'pack', at])
        at += bytes.length
      }
      const zeros = dice.chance(0.5) ? [{ at: dice.below(50), length: dice.below(50) }] : []
      for (const { at, length } of zeros) expected.fill(0, at, at + length)
      const extents = inline.map(({ at, bytes }) => ({ at, length: bytes.length }))
      const content = dice.chance(0.5) ? { inline } : { staged: 'f', extents }
      const source = { key: 'a', etag: 'e', size: old.length }
      const segments = segmentsOfPatch(patchOf({ size, floor, content, zeros }), source, packed)
      const bytesOf = ({ bytes, piece, length }: Segment) =>
        bytes ??
        (piece ? (piece.key === 'a' ? old : pack).subarray(piece.at, piece.at + length) : new Uint8Array(length))
      expect(Buffer.concat(segments.map(bytesOf)).toString('hex')).toBe(Buffer.from(expected).toString('hex'))
      const small = { partBytesMin: 1 + dice.below(12), partBytesMax: 1_000, partsMax: 50 }
      const parts = partsOf(segments, small)!
      check(parts, size, small)
      for (const { at, length, piece } of parts)
        if (piece)
          expect(
            Buffer.from((piece.key === 'a' ? old : pack).subarray(piece.at, piece.at + length)).toString('hex'),
          ).toBe(Buffer.from(expected.subarray(at, at + length)).toString('hex'))
    }
  })
})
