// What every `Objects` must do, whatever it is made of.
import { describe, expect } from '@jest/globals'
import type { Key, ListOptions, ObjectEntry, Objects, Part } from '../../src/remote/objects.js'
import { aborted, bytes, fails, runner, type Subject, text, winners } from './primitives.js'

/** Keys that URLs, XML and shells trip over; a key need not be a path. UTF-8, as bytes. */
export const oddKeys = [
  'a+b',
  'a b',
  ' a ',
  '%2f%25%',
  'a&b<c>"d\'',
  '&amp;',
  '\xc3\xa9/\xf0\x9f\x90\xa7',
  // The same letter in one char and in two.
  'e\xcc\x81',
  'tab\tnewline\nreturn\r',
  '\x01\x1f\x7f',
  '\xc2\x85\xe2\x80\xa8\xef\xbf\xbe',
  '?query=1&x#fragment',
  'a=b;c,d:e@f$g!h*i(j)k',
  '\\back`tick',
  '//double//slash',
  'slash/',
  './..',
  '../../up',
  '~',
  `${'k'.repeat(600)}/${'\xc3\xa9'.repeat(100)}`,
]

const PART_BYTES = 5 * 2 ** 20
/** Different in every place that a part could begin. */
const pattern = (length: number, seed = 0) => Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 12) + seed) % 251)
const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0

const listAll = async (objects: Objects, options: ListOptions) => {
  const all = { objects: [] as ObjectEntry[], prefixes: [] as string[], pages: 0 }
  for (let cursor: string | undefined; ; ) {
    const page = await objects.list({ ...options, cursor })
    expect(page.objects.length + page.prefixes.length).toBeLessThanOrEqual(1000)
    all.objects.push(...page.objects)
    all.prefixes.push(...page.prefixes)
    all.pages++
    cursor = page.cursor
    if (cursor === undefined) return all
  }
}
const keysOf = (entries: { key: Key }[]) => entries.map(({ key }) => key)

/** `count`: how many objects a listing in pages is tried with. */
export function objectsSuite(name: string, make: () => Promise<Subject<Objects>>, { count = 1203 } = {}): void {
  describe(`${name} as objects`, () => {
    const it = runner(make)

    it('keeps objects', async objects => {
      expect(objects.shape).toBe('objects')
      expect(await objects.head('a')).toBeNull()
      await fails(objects.get('a'), 'NOT_FOUND')
      await fails(objects.get('a', { at: 0, length: 1 }), 'NOT_FOUND')
      await fails(objects.get('a', { at: 0, length: 0 }), 'NOT_FOUND')
      const before = Date.now()
      const etag = await objects.put('a', bytes('hello'))
      const head = (await objects.head('a'))!
      expect(head).toMatchObject({ key: 'a', size: 5, etag, archived: false, metadata: {} })
      expect(Math.abs(head.modifiedMs - before)).toBeLessThan(60_000)
      expect(text(await objects.get('a'))).toBe('hello')
      const next = await objects.put('a', bytes('hi'))
      expect(next).not.toBe(etag)
      expect(text(await objects.get('a'))).toBe('hi')
      await objects.remove('a')
      await objects.remove('a')
      expect(await objects.head('a')).toBeNull()
      expect(await objects.list({ prefix: '' })).toEqual({ objects: [], prefixes: [] })
    })

    it('reads ranges, fewer bytes at the end', async objects => {
      const etag = await objects.put('a', bytes('0123456789'))
      expect(text(await objects.get('a', { at: 3, length: 4 }))).toBe('3456')
      expect(text(await objects.get('a', { at: 0, length: 10, etag }))).toBe('0123456789')
      expect(text(await objects.get('a', { at: 8, length: 100, etag }))).toBe('89')
      expect(text(await objects.get('a', { at: 10, length: 1 }))).toBe('')
      expect(text(await objects.get('a', { at: 100, length: 1, etag }))).toBe('')
      expect(text(await objects.get('a', { at: 5, length: 0, etag }))).toBe('')
      await fails(objects.get('a', { at: -1, length: 1 }), 'INVALID')
    })

    it('says STALE for a tag that is gone', async objects => {
      const old = await objects.put('a', bytes('old'))
      await objects.put('a', bytes('new'))
      await fails(objects.get('a', { at: 0, length: 3, etag: old }), 'STALE')
      await fails(objects.get('a', { at: 3, length: 1, etag: old }), 'STALE')
      await fails(objects.get('a', { at: 0, length: 0, etag: old }), 'STALE')
      await objects.remove('a')
      await fails(objects.get('a', { at: 0, length: 3, etag: old }), 'NOT_FOUND')
    })

    it('takes empty objects and large ones', async objects => {
      await objects.put('empty', bytes(''))
      expect((await objects.get('empty')).byteLength).toBe(0)
      expect((await objects.get('empty', { at: 0, length: 10 })).byteLength).toBe(0)
      expect((await objects.head('empty'))?.size).toBe(0)
      const large = pattern(9_000_001)
      const etag = await objects.put('large', large)
      expect(same(await objects.get('large'), large)).toBe(true)
      expect(
        same(await objects.get('large', { at: 4_000_000, length: 7_000_000, etag }), large.subarray(4_000_000)),
      ).toBe(true)
    })

    it('keeps metadata', async objects => {
      const metadata = { mode: '33188', mtime: '1700000000.123456789', 'with-dash': 'a b=c;"d"', x: '~' }
      await objects.put('a', bytes('x'), { metadata, contentType: 'video/mp4' })
      expect(await objects.head('a')).toMatchObject({ metadata, contentType: 'video/mp4' })
      // Another put has none of it.
      await objects.put('a', bytes('x'))
      expect((await objects.head('a'))?.metadata).toEqual({})
      await fails(objects.put('a', bytes('y'), { metadata: { name: '\xe9' } }), 'INVALID')
      await fails(objects.put('a', bytes('y'), { metadata: { name: 'a\nb' } }), 'INVALID')
      await fails(objects.put('a', bytes('y'), { metadata: { Name: 'upper' } }), 'INVALID')
      expect(text(await objects.get('a'))).toBe('x')
    })

    it('lets one of twenty create', async objects => {
      const puts = Array.from({ length: 20 }, (_, i) => objects.put('dir/new', bytes(`by ${i}`), { ifAbsent: true }))
      const won = await winners(puts)
      if (objects.capabilities.putIfAbsent) {
        expect(won).toHaveLength(1)
        expect(text(await objects.get('dir/new'))).toBe(`by ${won[0]}`)
      }
      await fails(objects.put('dir/new', bytes('late'), { ifAbsent: true }), 'CONFLICT')
      await objects.remove('dir/new')
      await objects.put('dir/new', bytes('again'), { ifAbsent: true })
    })

    it('lets one of twenty replace', async objects => {
      const etag = await objects.put('a', bytes('first'))
      const puts = Array.from({ length: 20 }, (_, i) => objects.put('a', bytes(`by ${i}`), { ifMatch: etag }))
      const won = await winners(puts)
      if (objects.capabilities.putIfMatch) {
        expect(won).toHaveLength(1)
        expect(text(await objects.get('a'))).toBe(`by ${won[0]}`)
      }
      await fails(objects.put('a', bytes('x'), { ifMatch: etag }), 'CONFLICT')
      await fails(objects.put('none', bytes('x'), { ifMatch: etag }), 'CONFLICT')
      await fails(objects.put('none', bytes('x'), { ifMatch: etag, ifAbsent: true }), 'INVALID')
      expect(await objects.head('none')).toBeNull()
    })

    it('removes on a condition', async objects => {
      const old = await objects.put('a', bytes('1'))
      const etag = await objects.put('a', bytes('2'))
      await fails(objects.remove('a', { ifMatch: old }), 'CONFLICT')
      expect(text(await objects.get('a'))).toBe('2')
      await objects.remove('a', { ifMatch: etag })
      await objects.remove('a', { ifMatch: etag })
      expect(await objects.head('a')).toBeNull()
    })

    it('takes odd keys', async objects => {
      for (const odd of oddKeys) await objects.put(odd, bytes(odd), { metadata: { n: String(oddKeys.indexOf(odd)) } })
      for (const odd of oddKeys) {
        const head = await objects.head(odd)
        expect(head).toMatchObject({ key: odd, metadata: { n: String(oddKeys.indexOf(odd)) } })
        expect(text(await objects.get(odd, { at: 0, length: 2000, etag: head!.etag }))).toBe(odd)
        expect(keysOf((await objects.list({ prefix: odd })).objects)).toEqual(
          oddKeys.filter(other => other.startsWith(odd)).sort(),
        )
      }
      expect(keysOf((await objects.list({ prefix: '' })).objects)).toEqual([...oddKeys].sort())
      const { prefixes } = await objects.list({ prefix: '', delimiter: '/' })
      const tops = oddKeys.filter(odd => odd.includes('/')).map(odd => odd.slice(0, odd.indexOf('/') + 1))
      expect(prefixes).toEqual([...new Set(tops)].sort())
      for (const odd of oddKeys) {
        await objects.copy(odd, `copy of ${odd}`)
        expect(text(await objects.get(`copy of ${odd}`))).toBe(odd)
      }
      await objects.removeAll([...oddKeys, ...oddKeys.map(odd => `copy of ${odd}`)])
      expect(await objects.list({ prefix: '' })).toEqual({ objects: [], prefixes: [] })
    })

    it('refuses what is no key', async objects => {
      for (const bad of ['', '\xff', 'a\xc3', '\xed\xa0\x80', 'a\0b'])
        await fails(objects.put(bad, bytes('x')), 'INVALID')
      const longest = 'k'.repeat(objects.capabilities.keyBytesMax)
      await objects.put(longest, bytes('x'))
      expect(keysOf((await objects.list({ prefix: 'k' })).objects)).toEqual([longest])
      await fails(objects.put(`${longest}k`, bytes('x')), 'NAME_TOO_LONG')
      // No object can be called so.
      expect(await objects.head('\xff')).toBeNull()
      await fails(objects.get('\xff'), 'NOT_FOUND')
      await objects.remove('\xff')
      expect(await objects.list({ prefix: '\xff' })).toEqual({ objects: [], prefixes: [] })
    })

    it('lists by prefixes of bytes, within a char too', async objects => {
      for (const key of ['a\xc3\xa9', 'a\xc3\xaa', 'a\xc4\x80', 'b']) await objects.put(key, bytes('x'))
      expect(keysOf((await listAll(objects, { prefix: 'a\xc3' })).objects)).toEqual(['a\xc3\xa9', 'a\xc3\xaa'])
      expect(keysOf((await listAll(objects, { prefix: '', after: 'a\xc3\xa9' })).objects)).toEqual([
        'a\xc3\xaa',
        'a\xc4\x80',
        'b',
      ])
    })

    it('lists in byte order, a page at a time, and sums up behind a delimiter', async objects => {
      const keys = Array.from({ length: count }, (_, i) => `d/${String(i % 7)}/${String(i).padStart(5, '0')}\x01+`)
      const others = ['d', 'd-', 'd/', 'd/1', 'd0', 'zz/y']
      for (let i = 0; i < keys.length; i += 50)
        await Promise.all(keys.slice(i, i + 50).map(key => objects.put(key, bytes(key))))
      for (const other of others) await objects.put(other, bytes(''))
      const all = [...keys, ...others].sort()

      const everything = await listAll(objects, { prefix: '' })
      expect(keysOf(everything.objects)).toEqual(all)
      expect(everything.prefixes).toEqual([])
      expect(keysOf((await listAll(objects, { prefix: 'd/3/' })).objects)).toEqual(
        all.filter(key => key.startsWith('d/3/')),
      )
      const top = await listAll(objects, { prefix: '', delimiter: '/' })
      expect([keysOf(top.objects), top.prefixes]).toEqual([
        ['d', 'd-', 'd0'],
        ['d/', 'zz/'],
      ])
      const below = await listAll(objects, { prefix: 'd/', delimiter: '/' })
      expect(keysOf(below.objects)).toEqual(['d/', 'd/1'])
      expect(below.prefixes).toEqual(Array.from({ length: 7 }, (_, i) => `d/${i}/`))
      // As many prefixes as objects.
      const many = await listAll(objects, { prefix: 'd/', delimiter: '\x01' })
      expect(many.prefixes).toEqual([...keys].sort().map(key => key.slice(0, -1)))
      expect(many.pages).toBeGreaterThan(1)

      const middle = all[Math.floor(count / 2)]
      expect(keysOf((await listAll(objects, { prefix: '', after: middle })).objects)).toEqual(
        all.filter(key => key > middle),
      )
      expect(keysOf((await objects.list({ prefix: 'd/3/', after: 'd/4' })).objects)).toEqual([])
      const { contentType: _, metadata: __, ...head } = (await objects.head('d/1'))!
      expect((await objects.list({ prefix: 'd/1' })).objects[0]).toEqual(head)
      expect(await objects.list({ prefix: 'nothing' })).toEqual({ objects: [], prefixes: [] })

      const removed = all.slice(0, 1000)
      await objects.removeAll(removed)
      expect(keysOf((await listAll(objects, { prefix: '' })).objects)).toEqual(all.slice(1000))
      await fails(objects.removeAll([...removed, 'one more']), 'INVALID')
    }, 180_000)

    it('copies on the server', async objects => {
      const metadata = { mode: '420' }
      const sourceEtag = await objects.put('a', bytes('content'), { metadata, contentType: 'text/plain' })
      const etag = await objects.copy('a', 'b')
      expect(await objects.head('b')).toMatchObject({ etag, size: 7, metadata, contentType: 'text/plain' })
      expect(text(await objects.get('b', { at: 0, length: 7, etag }))).toBe('content')
      // Onto itself it is a change of what stays beside the bytes.
      const touched = await objects.copy('a', 'a', { metadata: { mode: '511' }, contentType: 'text/html', sourceEtag })
      expect(await objects.head('a')).toMatchObject({
        etag: touched,
        metadata: { mode: '511' },
        contentType: 'text/html',
      })
      expect(text(await objects.get('a'))).toBe('content')
      await objects.put('a', bytes('other'))
      await fails(objects.copy('a', 'c', { sourceEtag }), 'STALE')
      await fails(objects.copy('none', 'c'), 'NOT_FOUND')
      await fails(objects.copy('none', 'c', { sourceEtag }), 'NOT_FOUND')
      expect(await objects.head('c')).toBeNull()
    })

    it('copies on a condition', async objects => {
      const [old] = [await objects.put('b', bytes('0')), await objects.put('a', bytes('1'))]
      await fails(objects.copy('a', 'b', { ifAbsent: true }), 'CONFLICT')
      const etag = await objects.copy('a', 'b', { ifMatch: old })
      await fails(objects.copy('a', 'b', { ifMatch: old }), 'CONFLICT')
      await fails(objects.copy('a', 'c', { ifMatch: old }), 'CONFLICT')
      expect(await objects.head('c')).toBeNull()
      await fails(objects.copy('a', 'b', { ifMatch: etag, sourceEtag: old }), 'STALE')
      await objects.copy('a', 'c', { ifAbsent: true })
      expect(text(await objects.get('c'))).toBe('1')
      await fails(objects.copy('none', 'd', { ifAbsent: true }), 'NOT_FOUND')
    })

    it('joins parts that were sent and parts of other objects', async objects => {
      const [one, two, three] = [pattern(PART_BYTES), pattern(PART_BYTES, 1), pattern(1000, 2)]
      const source = new Uint8Array(PART_BYTES + 3000)
      source.set(two, 2000)
      const etag = await objects.put('source', source)
      const upload = await objects.beginUpload('a', { metadata: { k: 'v' }, contentType: 'video/mp4' })
      expect(await objects.head('a')).toBeNull()
      const piece = { key: 'source', at: 2000, length: PART_BYTES, etag }
      const parts: Part[] = [
        { number: 9, etag: await objects.uploadPart('a', upload, 9, three) },
        { number: 5, etag: await objects.copyPart('a', upload, 5, piece) },
        { number: 2, etag: await objects.uploadPart('a', upload, 2, pattern(PART_BYTES, 77)) },
      ]
      // The later one counts.
      parts[2].etag = await objects.uploadPart('a', upload, 2, one)
      await fails(objects.copyPart('a', upload, 6, { ...piece, etag: parts[0].etag }), 'STALE')
      await fails(objects.copyPart('a', upload, 6, { ...piece, key: 'none', etag: undefined }), 'NOT_FOUND')
      const done = await objects.completeUpload('a', upload, parts)
      const head = await objects.head('a')
      expect(head).toMatchObject({ etag: done, size: 2 * PART_BYTES + 1000 })
      expect(head).toMatchObject({ metadata: { k: 'v' }, contentType: 'video/mp4' })
      expect(same(await objects.get('a'), Buffer.concat([one, two, three]))).toBe(true)
      const edge = await objects.get('a', { at: PART_BYTES - 5, length: 10, etag: done })
      expect(same(edge, Buffer.concat([one.subarray(-5), two.subarray(0, 5)]))).toBe(true)
      const again = objects.completeUpload('a', upload, parts)
      expect(['NOT_FOUND', done]).toContain(await again.catch(error => error.code))
      await fails(objects.uploadPart('a', upload, 1, three), 'NOT_FOUND')
      await objects.abortUpload('a', upload)
      expect((await objects.head('a'))?.etag).toBe(done)
    })

    it('completes on a condition', async objects => {
      const begin = async () => {
        const upload = await objects.beginUpload('a')
        return { upload, parts: [{ number: 1, etag: await objects.uploadPart('a', upload, 1, bytes('part')) }] }
      }
      const first = await begin()
      const etag = await objects.completeUpload('a', first.upload, first.parts, { ifAbsent: true })
      const second = await begin()
      await fails(objects.completeUpload('a', second.upload, second.parts, { ifAbsent: true }), 'CONFLICT')
      const other = await objects.put('a', bytes('other'))
      await fails(objects.completeUpload('a', second.upload, second.parts, { ifMatch: etag }), 'CONFLICT')
      expect(text(await objects.get('a'))).toBe('other')
      await objects.completeUpload('a', second.upload, second.parts, { ifMatch: other })
      expect(text(await objects.get('a'))).toBe('part')
    })

    it('knows the uploads that have not ended', async objects => {
      const odd = 'd/\xc3\xa9 +%\x01'
      const [one, two] = [await objects.beginUpload(odd), await objects.beginUpload('d/b')]
      const other = await objects.beginUpload('e')
      expect(one).not.toBe(two)
      await objects.uploadPart(odd, one, 1, bytes('x'))
      const found = await objects.uploads('d/')
      expect(found.map(({ key, upload }) => [key, upload])).toEqual([
        ['d/b', two],
        [odd, one],
      ])
      for (const { begunMs } of found) expect(Math.abs(begunMs - Date.now())).toBeLessThan(60_000)
      expect(await objects.uploads('d/b')).toHaveLength(1)
      expect(await objects.uploads('')).toHaveLength(3)
      await objects.abortUpload(odd, one)
      await objects.abortUpload(odd, one)
      await objects.abortUpload('e', other)
      expect(await objects.uploads('')).toMatchObject([{ key: 'd/b', upload: two }])
      await fails(objects.uploadPart(odd, one, 1, bytes('x')), 'NOT_FOUND')
      await fails(objects.completeUpload(odd, one, [{ number: 1, etag: 'x' }]), 'NOT_FOUND')
      expect(await objects.list({ prefix: '' })).toEqual({ objects: [], prefixes: [] })
    })

    it('never shows half of an object', async objects => {
      await objects.put('a', new Uint8Array(100_000).fill(0))
      let writing = true
      const writer = (async () => {
        for (let i = 1; i <= 20; i++) await objects.put('a', new Uint8Array(100_000 + i).fill(i))
        writing = false
      })()
      while (writing) {
        const got = await objects.get('a')
        expect(got.byteLength).toBe(100_000 + got[0])
        expect(got.every(byte => byte === got[0])).toBe(true)
      }
      await writer
    })

    it('shares no memory with its caller', async objects => {
      const mine = bytes('..mine..').subarray(2, 6)
      await objects.put('a', mine)
      mine.fill(0)
      const got = await objects.get('a')
      expect(got.buffer.byteLength).toBe(4)
      got.fill(0)
      expect(text(await objects.get('a'))).toBe('mine')
    })

    it('can be aborted, before and while it works', async objects => {
      await objects.put('a', new Uint8Array(8 * 2 ** 20))
      const upload = await objects.beginUpload('u')
      const piece = { key: 'a', at: 0, length: 1 }
      const calls: Record<string, (signal: AbortSignal) => Promise<unknown>> = {
        head: signal => objects.head('a', signal),
        list: signal => objects.list({ prefix: '' }, signal),
        get: signal => objects.get('a', undefined, signal),
        put: signal => objects.put('b', new Uint8Array(8 * 2 ** 20), {}, signal),
        conditional: signal => objects.put('b', bytes('x'), { ifAbsent: true }, signal),
        copy: signal => objects.copy('a', 'b', {}, signal),
        remove: signal => objects.remove('b', {}, signal),
        removeAll: signal => objects.removeAll(['b'], signal),
        beginUpload: signal => objects.beginUpload('b', {}, signal),
        uploadPart: signal => objects.uploadPart('u', upload, 1, new Uint8Array(8 * 2 ** 20), signal),
        copyPart: signal => objects.copyPart('u', upload, 2, piece, signal),
        completeUpload: signal => objects.completeUpload('u', upload, [{ number: 1, etag: 'x' }], {}, signal),
        abortUpload: signal => objects.abortUpload('u', upload, signal),
        uploads: signal => objects.uploads('', signal),
      }
      for (const call of Object.values(calls)) await fails(call(aborted()), 'ABORTED')
      expect(await objects.head('b')).toBeNull()
      for (const [method, call] of Object.entries(calls).filter(([method]) => /^(get|put|head)$/.test(method))) {
        const controller = new AbortController()
        const outcome = call(controller.signal).then(
          () => method,
          error => error.code,
        )
        setTimeout(() => controller.abort(), 2)
        expect(['ABORTED', method]).toContain(await outcome)
      }
      expect((await objects.get('a')).byteLength).toBe(8 * 2 ** 20)
      await objects.close()
      await objects.close()
    })
  })
}
