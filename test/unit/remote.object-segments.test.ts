import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
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

const sent = (parts: PartPlan[]): number =>
  parts.reduce((sum, { piece, join, length }) => sum + (join ? sent(join) : piece ? 0 : length), 0)

function check(parts: PartPlan[], size: number, limits: typeof bounds = bounds, from = 0): void {
  const { partBytesMin, partBytesMax, partsMax } = limits
  let at = from
  expect(parts.length).toBeLessThanOrEqual(partsMax)
  parts.forEach((part, index) => {
    if (part.join) check(part.join, part.length, limits, at)
    expect(part.at).toBe(at)
    if (index < parts.length - 1) expect(part.length).toBeGreaterThanOrEqual(partBytesMin)
    expect(part.length).toBeLessThanOrEqual(partBytesMax)
    at += part.length
  })
  expect(at).toBe(from + size)
}

/** The bytes that the parts make: what is sent lies in the segments, what is copied wherever it says. */
const assembled = (parts: PartPlan[], contents: Record<string, Uint8Array>, whole: Uint8Array): Buffer =>
  Buffer.concat(
    parts.map(({ at, length, piece, join }) =>
      join
        ? assembled(join, contents, whole)
        : piece
          ? contents[piece.key].subarray(piece.at, piece.at + length)
          : whole.subarray(at, at + length),
    ),
  )

/** What would be sent without joins: a short run with as much of its neighbours as makes it a part. */
function sentWidened(segments: Segment[], { partBytesMin, partBytesMax, partsMax }: typeof bounds): number | null {
  for (let least = partBytesMin; least * 2 <= partBytesMax; least *= 2) {
    let [from, bytes, parts] = [0, 0, 0]
    const add = (length: number, partBytes: number) => {
      parts += Math.ceil(length / Math.min(partBytes, partBytesMax))
    }
    const send = (to: number) => {
      bytes += to - from
      add(to - from, Math.max(8 * MiB, least))
    }
    for (const { at, length, piece } of segments) {
      const taken = at > from ? Math.max(0, least - (at - from)) : 0
      if (!piece || length - taken < least) continue
      send(at + taken)
      add(length - taken, Math.max(256 * MiB, least))
      from = at + length
    }
    send(segments.reduce((sum, { length }) => sum + length, 0))
    if (parts <= partsMax) return bytes
  }
  return null
}

describe('parts', () => {
  const patched = (size: number, ...inline: { at: number; bytes: Uint8Array }[]) =>
    segmentsOfPatch(patchOf({ size, content: { inline } }), { key: 'a', etag: 'e', size }, [])
  const page = (at: number) => ({ at, bytes: new Uint8Array(4096) })

  test('a small change of a large file sends little more than itself, and copies the rest', () => {
    const size = 1024 * MiB
    const near = 3 * 4096
    for (const at of [5 * MiB, 9 * MiB, 10 * MiB, 512 * MiB, size - 6 * MiB, size - MiB, size - near, size - 4096]) {
      const parts = partsOf(patched(size, page(at)), bounds)!
      check(parts, size)
      expect([at, sent(parts)]).toEqual([at, at === size - near ? near : 4096])
      // What is joined lies before it.
      const joins = parts.filter(({ join }) => join)
      expect([at, joins.length]).toEqual([at, at < size - near ? 1 : 0])
      for (const { join } of joins)
        expect(join).toMatchObject([{ piece: { key: 'a', etag: 'e' } }, { at, length: 4096 }])
    }
    // Nothing long enough lies before it.
    for (const at of [0, 4096, 3 * MiB]) {
      const parts = partsOf(patched(size, page(at)), bounds)!
      check(parts, size)
      expect(sent(parts)).toBe(5 * MiB)
      expect(parts.some(({ join }) => join)).toBe(false)
    }
  })

  test('changes that lie near each other are sent as one run, those that do not are joined each for itself', () => {
    const size = 100 * MiB
    const near = partsOf(patched(size, page(40 * MiB), page(42 * MiB)), bounds)!
    check(near, size)
    expect(sent(near)).toBe(2 * MiB + 4096)
    expect(near.filter(({ join }) => join)).toHaveLength(1)
    const apart = partsOf(patched(size, page(40 * MiB), page(46 * MiB)), bounds)!
    check(apart, size)
    expect(sent(apart)).toBe(2 * 4096)
    expect(apart.filter(({ join }) => join)).toHaveLength(2)
  })

  test('what is long is sent, or copied out of the stage, in parts of its own', () => {
    const size = 100 * MiB
    const long = partsOf(patched(size, { at: 40 * MiB, bytes: new Uint8Array(6 * MiB) }), bounds)!
    check(long, size)
    expect(sent(long)).toBe(6 * MiB)
    expect(long.some(({ join }) => join)).toBe(false)
  })

  test('a short run that was staged is joined without being sent again', () => {
    const size = 100 * MiB
    const change = patchOf({ size, content: { staged: 'f', extents: [{ at: 40 * MiB, length: MiB }] } })
    const packed: Packed[] = [['f', 40 * MiB, MiB, 'p', 7]]
    const parts = partsOf(segmentsOfPatch(change, { key: 'a', etag: 'e', size }, packed), bounds)!
    check(parts, size)
    expect(sent(parts)).toBe(0)
    expect(parts.find(({ join }) => join)!.join![1].piece).toEqual({ key: '.pageferry/p', at: 7 })
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
      const made = assembled(parts, { a: old, '.pageferry/pack': pack }, expected)
      expect(made.toString('hex')).toBe(Buffer.from(expected).toString('hex'))
    }
  })

  test('no more is ever sent than by sending the neighbours of what is short', () => {
    const runs = fc.array(
      fc.record({ gap: fc.integer({ min: 1, max: 60 }), length: fc.integer({ min: 1, max: 30 }) }),
      {
        maxLength: 12,
      },
    )
    const limits = fc.record({
      partBytesMin: fc.integer({ min: 1, max: 20 }),
      partBytesMax: fc.integer({ min: 40, max: 2_000 }),
      partsMax: fc.integer({ min: 2, max: 30 }),
    })
    fc.assert(
      fc.property(runs, fc.nat(60), limits, (all, rest, few) => {
        let size = 0
        const inline = all.map(({ gap, length }) => {
          const at = size + gap
          size = at + length
          return { at, bytes: new Uint8Array(length) }
        })
        size += rest
        const segments = patched(size, ...inline)
        const parts = partsOf(segments, few)
        const most = sentWidened(segments, few)
        if (most === null) return
        check(parts!, size, few)
        expect(sent(parts!)).toBeLessThanOrEqual(most)
      }),
      { numRuns: 1_000 },
    )
  })
})
