import { describe, expect, test } from '@jest/globals'
import { decode, encode } from '../../src/remote/intent.js'
import { isHiddenPath, planOf, untoldBy } from '../../src/remote/rollforward-plan.js'
import type { Attributes, TreeChange } from '../../src/remote/tree.js'

const ATTRIBUTES: Attributes = { mode: 0o100644, uid: 0, gid: 0, atimeNs: -1n, mtimeNs: 1_700_000_000_123_456_789n }
const put = (path: string, staged?: string): TreeChange => ({
  ...{ do: 'put', path, size: 1, attributes: ATTRIBUTES, otherwise: 'x' },
  content: staged ? { staged, extents: [{ at: 0, length: 1 }] } : { inline: [] },
})
const make = (path: string): TreeChange => ({ do: 'make', path, node: { ...ATTRIBUTES, rdev: 0 }, otherwise: 'x' })
const remove = (path: string): TreeChange => ({ do: 'remove', path })
const move = (from: string, to: string): TreeChange => ({ do: 'move', from, to, otherwise: 'x' })
const told = (path: string): TreeChange => ({ do: 'attributes', path, attributes: ATTRIBUTES })

describe('the plan of a batch', () => {
  test('takes in the deepest first, and places parents first, and at one name what is put after what is moved there', () => {
    const { gathers, places } = planOf(1, [
      ...[remove('a'), move('a/b/c', 'p'), remove('a/b'), move('z', 'p/q')],
      ...[put('p/q'), put('p'), make('n'), put('n/m')],
    ])
    expect(gathers.map(group => group.map(({ path }) => path))).toEqual([['a/b/c'], ['a/b'], ['a', 'z']])
    expect(places.map(group => group.map(({ path, change }) => `${change.do} ${path}`))).toEqual([
      ['move p', 'make n'],
      ['put p'],
      ['move p/q'],
      ['put p/q', 'put n/m'],
    ])
  })

  test('needs a mark only if what goes and what comes could be confused', () => {
    const marked = (...changes: TreeChange[]) => planOf(1, [...changes, told(''), told('d')]).marked
    expect(marked(put('a', 's'), remove('b'))).toBe(false)
    expect(marked(remove('d/a'), remove('d'))).toBe(false)
    expect(marked(put('a'))).toBe(true)
    expect(marked(make('a'))).toBe(true)
    expect(marked(move('a', 'b'))).toBe(true)
    expect(marked(remove('a'), put('a', 's'))).toBe(true)
    expect(marked(remove('d'), put('d/a', 's'))).toBe(true)
    expect(marked(remove('d/a'), put('d', 's'))).toBe(true)
    expect(marked(remove('da'), put('d', 's'))).toBe(false)
    // The directory's times must be noted somewhere.
    expect(marked(put('e/a', 's'))).toBe(true)
  })

  test('knows which directories the batch does not tell', () => {
    expect(
      untoldBy([put('d/a', 's'), put('e/a'), make('e'), put('f'), { do: 'link', path: 'g/h', target: 'f' }, told('')]),
    ).toEqual(['d', 'g'])
  })

  test('only orphans are named among what is hidden', () => {
    expect(['.pageferry', '.pageferry/log/1', '.pageferry/orphans'].every(isHiddenPath)).toBe(true)
    expect(['', 'a', '.pageferryx', 'a/.pageferry', '.pageferry/orphans/12'].some(isHiddenPath)).toBe(false)
  })
})

describe('an intent', () => {
  test('comes back as it was', () => {
    const changes: TreeChange[] = [
      {
        ...put('n\xff\x01', 'id'),
        xattrs: new Map([
          ['user.__proto__', Uint8Array.of(1, 2)],
          ['__proto__', new Uint8Array()],
        ]),
      } as TreeChange,
      { ...put('e'), expect: null } as TreeChange,
      { ...put('f'), expect: undefined, size: 2 ** 45 + 1 } as TreeChange,
      { ...told('g'), xattrs: new Map() } as TreeChange,
      { ...put('h'), content: { inline: [{ at: 2 ** 40, bytes: Uint8Array.of(0, 255) }] } } as TreeChange,
    ]
    const back = decode<{ changes: TreeChange[]; extra: bigint }>(encode({ changes, extra: 2n ** 62n }), 'x')
    expect(back.extra).toBe(2n ** 62n)
    for (const [index, change] of changes.entries()) {
      const { xattrs, ...rest } = back.changes[index] as { xattrs?: Map<string, Uint8Array> }
      const { xattrs: wanted, ...others } = change as { xattrs?: Map<string, Uint8Array> }
      expect(rest).toEqual(others)
      expect(xattrs && [...xattrs].map(([name, value]) => [name, [...value]])).toEqual(
        wanted && [...wanted].map(([name, value]) => [name, [...value]]),
      )
    }
  })
})
