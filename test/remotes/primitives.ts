// What every remote must do, whatever it is made of: one suite for each shape, run for each backend and through each wrapper.
import { constants } from 'node:fs'
import { afterEach, describe, expect, test } from '@jest/globals'
import type { Code } from '../../src/base/errors.js'
import type { Blob } from '../../src/remote/blob.js'
import type { Store } from '../../src/remote/store.js'
import type { Attributes, Entry, NewNode, Tree } from '../../src/remote/tree.js'

const { S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK } = constants

/** A remote for one test, with nothing in it; `end` takes everything away again. */
export interface Subject<R> {
  remote: R
  end?: () => Promise<void>
}

export const bytes = (text: string) => new Uint8Array(Buffer.from(text, 'latin1'))
export const text = (from: Uint8Array) => Buffer.from(from).toString('latin1')

/** The call must fail with this code. */
export const fails = async (call: Promise<unknown>, ...codes: Code[]) => {
  const outcome = await call.then(
    () => 'it worked',
    (error: { code?: unknown }) => error?.code ?? error,
  )
  expect(codes).toContain(outcome)
}

export const winners = async (calls: Promise<unknown>[]) => {
  const outcomes = await Promise.allSettled(calls)
  for (const one of outcomes)
    if (one.status === 'rejected') expect((one.reason as { code: Code }).code).toBe('CONFLICT')
  return outcomes.flatMap((one, index) => (one.status === 'fulfilled' ? [index] : []))
}

export const aborted = () => AbortSignal.abort()

/** Runs `body` with a new subject and ends that whatever happens. */
export function runner<R extends { close(): Promise<void> }>(make: () => Promise<Subject<R>>) {
  let ends: (() => Promise<void>)[] = []
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end()
    ends = []
  })
  return (name: string, body: (remote: R) => Promise<void>, timeoutMs?: number) =>
    test(
      name,
      async () => {
        const { remote, end } = await make()
        if (end) ends.push(end)
        ends.push(() => remote.close())
        await body(remote)
      },
      timeoutMs,
    )
}

// Bytes that are no UTF-8, that shells and protocols trip over, and that are UTF-8 but more than one byte.
export const oddNames = [
  '\xff\xfe',
  'a\nb',
  '"\'`$\\',
  'space and\ttab',
  '\xc3\xa9',
  '\xf0\x9f\x90\xa7',
  '%2f',
  '-',
  '~',
  '...',
  '\x01',
  '\x7f\x80',
]

export function blobSuite(name: string, make: (size: number) => Promise<Subject<Blob>>): void {
  describe(`${name} as a blob`, () => {
    const size = 1 << 20
    const it = runner(() => make(size))

    it('is all zeros at first and has the size that was agreed', async blob => {
      expect(blob.shape).toBe('blob')
      expect(blob.size).toBe(size)
      expect((await blob.read(0, size)).every(byte => byte === 0)).toBe(true)
      expect((await blob.read(size - 1, 1)).byteLength).toBe(1)
    })

    it('reads back what was written, and nothing else changes', async blob => {
      await blob.write(4095, bytes('hello'))
      expect(text(await blob.read(4094, 7))).toBe('\0hello\0')
      await blob.write(4096, bytes('ELL'))
      await blob.flush()
      expect(text(await blob.read(4094, 7))).toBe('\0hELLo\0')
      await blob.write(size - 3, bytes('end'))
      expect(text(await blob.read(size - 3, 3))).toBe('end')
    })

    it('takes requests of no length', async blob => {
      await blob.write(7, bytes(''))
      expect((await blob.read(size, 0)).byteLength).toBe(0)
      await blob.trim?.(7, 0)
    })

    it('is INVALID beyond its end', async blob => {
      await fails(blob.read(size - 1, 2), 'INVALID')
      await fails(blob.read(-1, 1), 'INVALID')
      await fails(blob.read(0.5, 1), 'INVALID')
      await fails(blob.write(size, bytes('x')), 'INVALID')
      if (blob.trim) await fails(blob.trim(0, size + 1), 'INVALID')
    })

    it('reads zeros where it was trimmed', async blob => {
      if (!blob.trim || !blob.capabilities.trim) return
      await blob.write(0, new Uint8Array(size).fill(7))
      await blob.trim(1000, size - 2000)
      const now = await blob.read(0, size)
      expect(now.indexOf(0)).toBe(1000)
      expect(now.subarray(1000, size - 1000).every(byte => byte === 0)).toBe(true)
      expect(now.subarray(size - 1000).every(byte => byte === 7)).toBe(true)
      expect(blob.size).toBe(size)
    })

    it('keeps many writes at once apart', async blob => {
      await Promise.all(Array.from({ length: 64 }, (_, i) => blob.write(i * 5000, new Uint8Array(5000).fill(i + 1))))
      const parts = await Promise.all(Array.from({ length: 64 }, (_, i) => blob.read(i * 5000, 5000)))
      parts.forEach((part, i) => {
        expect(part.every(byte => byte === i + 1)).toBe(true)
      })
    })

    it('shares no memory with its caller', async blob => {
      const mine = bytes('mine')
      await blob.write(0, mine)
      mine.fill(0)
      const got = await blob.read(0, 4)
      got.fill(0)
      expect(text(await blob.read(0, 4))).toBe('mine')
      expect(mine.byteLength).toBe(4)
      // A view into something larger.
      await blob.write(0, bytes('12345678').subarray(2, 4))
      expect(text(await blob.read(0, 4))).toBe('34ne')
    })

    it('can be aborted, and closed twice', async blob => {
      await fails(blob.read(0, 1, aborted()), 'ABORTED')
      await fails(blob.write(0, bytes('x'), aborted()), 'ABORTED')
      expect(text(await blob.read(0, 1))).toBe('\0')
      await blob.close()
      await blob.close()
    })

    const large = runner(() => make(6 * 2 ** 30))
    large('has offsets beyond 4 GiB', async blob => {
      const at = 5 * 2 ** 30 - 2
      await blob.write(at, bytes('far'))
      expect(text(await blob.read(at - 1, 5))).toBe('\0far\0')
      expect(text(await blob.read(at % 2 ** 32, 3))).toBe('\0\0\0')
    })
  })
}

/** `objects`: how many a listing in pages of 1,000 is tried with. */
export function storeSuite(name: string, make: () => Promise<Subject<Store>>, { objects = 2500 } = {}): void {
  describe(`${name} as a store`, () => {
    const it = runner(make)
    const namesOf = (page: { name: string }[]) => page.map(one => one.name)

    it('keeps objects', async store => {
      expect(store.shape).toBe('store')
      expect(await store.head('a')).toBeNull()
      await fails(store.get('a'), 'NOT_FOUND')
      await fails(store.get('a', { at: 0, length: 1 }), 'NOT_FOUND')
      const version = await store.put('a', bytes('hello'))
      expect(await store.head('a')).toEqual({ name: 'a', size: 5, version })
      expect(text(await store.get('a'))).toBe('hello')
      const next = await store.put('a', bytes('hi'))
      expect(next).not.toBe(version)
      expect(text(await store.get('a'))).toBe('hi')
      await store.remove('a')
      await store.remove('a')
      expect(await store.head('a')).toBeNull()
      expect(await store.list('')).toEqual([])
    })

    it('reads ranges, fewer bytes at the end', async store => {
      const version = await store.put('a', bytes('0123456789'))
      expect(text(await store.get('a', { at: 3, length: 4 }))).toBe('3456')
      expect(text(await store.get('a', { at: 8, length: 100, version }))).toBe('89')
      expect(text(await store.get('a', { at: 10, length: 1 }))).toBe('')
      expect(text(await store.get('a', { at: 100, length: 1 }))).toBe('')
      await fails(store.get('a', { at: -1, length: 1 }), 'INVALID')
    })

    it('takes empty objects and large ones', async store => {
      await store.put('empty', bytes(''))
      expect((await store.get('empty')).byteLength).toBe(0)
      expect((await store.head('empty'))?.size).toBe(0)
      const large = Uint8Array.from({ length: 3_000_001 }, (_, i) => i % 251)
      await store.put('large', large)
      expect(Buffer.compare(await store.get('large'), large)).toBe(0)
      expect(text(await store.get('large', { at: 2_999_999, length: 10 }))).toBe(text(large.subarray(2_999_999)))
    })

    it('says STALE for a version that is gone, and every put is a version', async store => {
      const seen = new Set<string>()
      for (let i = 0; i < 50; i++) {
        const version = await store.put('a', bytes('same'))
        expect(seen.has(version)).toBe(false)
        seen.add(version)
      }
      const [old] = seen
      await fails(store.get('a', { at: 0, length: 4, version: old }), 'STALE')
      await store.remove('a')
      await fails(store.get('a', { at: 0, length: 4, version: old }), 'NOT_FOUND')
    })

    it('lets one of twenty create', async store => {
      if (!store.capabilities.conditionalCreate) return
      const puts = Array.from({ length: 20 }, (_, i) => store.put('dir/new', bytes(`by ${i}`), { ifAbsent: true }))
      const won = await winners(puts)
      expect(won).toHaveLength(1)
      expect(text(await store.get('dir/new'))).toBe(`by ${won[0]}`)
      await fails(store.put('dir/new', bytes('late'), { ifAbsent: true }), 'CONFLICT')
      await store.remove('dir/new')
      await store.put('dir/new', bytes('again'), { ifAbsent: true })
    })

    it('lets one of twenty replace', async store => {
      const version = await store.put('a', bytes('first'))
      if (!store.capabilities.conditionalReplace) return
      const won = await winners(
        Array.from({ length: 20 }, (_, i) => store.put('a', bytes(`by ${i}`), { ifVersion: version })),
      )
      expect(won).toHaveLength(1)
      expect(text(await store.get('a'))).toBe(`by ${won[0]}`)
      await fails(store.put('none', bytes('x'), { ifVersion: version }), 'CONFLICT')
      expect(await store.head('none')).toBeNull()
    })

    it('removes on a condition', async store => {
      const old = await store.put('a', bytes('1'))
      const version = await store.put('a', bytes('2'))
      await fails(store.remove('a', { ifVersion: old }), 'CONFLICT')
      expect(text(await store.get('a'))).toBe('2')
      await store.remove('a', { ifVersion: version })
      await store.remove('a', { ifVersion: version })
      expect(await store.head('a')).toBeNull()
    })

    it('never shows half of an object', async store => {
      await store.put('a', new Uint8Array(100_000).fill(0))
      let writing = true
      const writer = (async () => {
        for (let i = 1; i <= 20; i++) await store.put('a', new Uint8Array(100_000 + i).fill(i))
        writing = false
      })()
      while (writing) {
        const got = await store.get('a')
        expect(got.byteLength).toBe(100_000 + got[0])
        expect(got.every(byte => byte === got[0])).toBe(true)
      }
      await writer
    })

    it('takes names of any bytes', async store => {
      const wanted = [...oddNames, ...oddNames.map(odd => `dir ${odd}/${odd}`)]
      for (const odd of wanted) await store.put(odd, bytes(odd))
      for (const odd of wanted) expect(text(await store.get(odd))).toBe(odd)
      const listed = await store.list('')
      expect(namesOf(listed)).toEqual([...wanted].sort())
      for (const odd of wanted) await store.remove(odd)
      expect(await store.list('')).toEqual([])
    })

    it('refuses what is no name', async store => {
      for (const bad of ['', '/', '/a', 'a/', 'a//b', '.', '..', '../a', 'a/./b', 'a/..', 'a\0b', '\u0100']) {
        await fails(store.put(bad, bytes('x')), 'INVALID')
        await fails(store.get(bad), 'INVALID')
        await fails(store.head(bad), 'INVALID')
        await fails(store.remove(bad), 'INVALID')
      }
      await fails(store.put('n'.repeat(2000), bytes('x')), 'NAME_TOO_LONG')
    })

    it('lists by prefix in byte order, a page at a time', async store => {
      const all = Array.from({ length: objects }, (_, i) => `log/${i % 10}/${String(i).padStart(5, '0')}`)
      const others = ['log', 'log-', 'log-x', 'log.', 'log0', 'lo', 'zzz'].filter(other => other !== 'log')
      for (let i = 0; i < all.length; i += 50)
        await Promise.all(all.slice(i, i + 50).map(one => store.put(one, bytes(one))))
      for (const other of others) await store.put(other, bytes(''))
      const got: string[] = []
      for (;;) {
        const page = await store.list('log/', got.at(-1))
        expect(page.length).toBeLessThanOrEqual(1000)
        if (page.length === 0) break
        got.push(...namesOf(page))
      }
      expect(got).toEqual([...all].sort())
      // A page may be shorter than it could be.
      const first = namesOf(await store.list('log'))
      expect(first.length).toBeLessThanOrEqual(1000)
      expect(first.slice(0, 3)).toEqual(['log-', 'log-x', 'log.'])
      expect(namesOf(await store.list('log', [...all].sort().at(-1)))).toEqual(['log0'])
      expect(namesOf(await store.list('lo')).slice(0, 4)).toEqual(['lo', 'log-', 'log-x', 'log.'])
      expect(namesOf(await store.list('log/3/0001'))).toEqual(['log/3/00013'])
      expect(await store.list('nothing')).toEqual([])
      const [one] = await store.list('log/3/00013')
      expect(one).toEqual(await store.head('log/3/00013'))
    }, 120_000)

    it('shares no memory with its caller, and can be aborted', async store => {
      const mine = bytes('mine')
      await store.put('a', mine)
      mine.fill(0)
      const got = await store.get('a')
      got.fill(0)
      expect(text(await store.get('a'))).toBe('mine')
      await fails(store.put('a', bytes('x'), {}, aborted()), 'ABORTED')
      await fails(store.get('a', undefined, aborted()), 'ABORTED')
      await fails(store.list('', undefined, aborted()), 'ABORTED')
      expect(text(await store.get('a'))).toBe('mine')
    })
  })
}

/** Attributes for what a test makes, with times that no clock would give. */
const given: Attributes = {
  mode: S_IFREG | 0o640,
  uid: 0,
  gid: 0,
  atimeNs: 1_234_567_890_123_456_789n,
  mtimeNs: 1_000_000_000_000_000_001n,
}
export const fileNode: NewNode = { ...given, rdev: 0 }
export const directoryNode: NewNode = { ...given, mode: S_IFDIR | 0o750, rdev: 0 }
export const linkNode = (link: string): NewNode => ({ ...given, mode: S_IFLNK | 0o777, rdev: 0, link })

export function treeSuite(name: string, make: () => Promise<Subject<Tree>>): void {
  describe(`${name} as a tree`, () => {
    const it = runner(make)

    const put = async (tree: Tree, path: string, content: string) => {
      await tree.make(path, fileNode)
      if (content) await tree.write(path, 0, bytes(content))
    }
    const content = async (tree: Tree, path: string) => text(await tree.read(path, { at: 0, length: 1 << 20 }))
    const entry = async (tree: Tree, path: string): Promise<Entry> => {
      const found = await tree.stat(path)
      expect(found).not.toBeNull()
      return found!
    }
    const list = async (tree: Tree, path: string, each?: (page: Entry[]) => Promise<void>) => {
      const all: Entry[] = []
      let cursor: string | undefined
      do {
        const page = await tree.list(path, cursor)
        expect(page.entries.length).toBeLessThanOrEqual(1000)
        all.push(...page.entries)
        await each?.(page.entries)
        cursor = page.cursor
      } while (cursor !== undefined)
      return all
    }
    const names = async (tree: Tree, path: string) => (await list(tree, path)).map(one => one.name).sort()

    it('has a root, and nothing in it', async tree => {
      expect(tree.shape).toBe('tree')
      const root = await entry(tree, '')
      expect(root.name).toBe('')
      expect(root.mode & S_IFMT).toBe(S_IFDIR)
      expect(await tree.list('')).toEqual({ entries: [] })
      expect(await tree.stat('a')).toBeNull()
      expect(await tree.stat('a/b')).toBeNull()
    })

    it('keeps what is made, with all its attributes', async tree => {
      await tree.make('d', directoryNode)
      await tree.make('d/f', { ...fileNode, mode: S_IFREG | 0o4755, mtimeNs: -1_500_000_001n, atimeNs: 0n })
      const [directory, file] = [await entry(tree, 'd'), await entry(tree, 'd/f')]
      expect(directory).toMatchObject({ name: 'd', mode: S_IFDIR | 0o750, uid: 0, gid: 0, size: 0 })
      expect(file).toMatchObject({
        name: 'f',
        mode: S_IFREG | 0o4755,
        size: 0,
        nlink: 1,
        mtimeNs: -1_500_000_001n,
        atimeNs: 0n,
      })
      expect(await list(tree, 'd')).toEqual([file])
      if (!tree.capabilities.symlinks) return
      await tree.make('d/l', linkNode('where\xff/../to'))
      const link = await entry(tree, 'd/l')
      expect(link).toMatchObject({ name: 'l', mode: S_IFLNK | 0o777, link: 'where\xff/../to', size: 12 })
      expect(link.mtimeNs).toBe(given.mtimeNs)
      expect(await names(tree, 'd')).toEqual(['f', 'l'])
      // Looking at a symlink may count as an access.
      const listed = await list(tree, 'd')
      expect(listed.find(one => one.name === 'l')).toEqual({ ...link, atimeNs: expect.anything() })
    })

    it('takes names of any bytes', async tree => {
      for (const odd of oddNames) {
        await tree.make(odd, directoryNode)
        await put(tree, `${odd}/${odd}`, odd)
      }
      expect(await names(tree, '')).toEqual([...oddNames].sort())
      for (const odd of oddNames) {
        expect(await content(tree, `${odd}/${odd}`)).toBe(odd)
        expect((await entry(tree, `${odd}/${odd}`)).name).toBe(odd)
        await tree.rename(`${odd}/${odd}`, `${odd}/x`)
        await tree.remove(`${odd}/x`)
        await tree.remove(odd)
      }
      expect(await names(tree, '')).toEqual([])
    })

    it('reads back what was written, zeros between, fewer bytes at the end', async tree => {
      await put(tree, 'f', 'hello')
      await tree.write('f', 10, bytes('world'))
      expect(await content(tree, 'f')).toBe('hello\0\0\0\0\0world')
      expect(text(await tree.read('f', { at: 3, length: 4 }))).toBe('lo\0\0')
      expect(text(await tree.read('f', { at: 13, length: 100 }))).toBe('ld')
      expect(text(await tree.read('f', { at: 15, length: 1 }))).toBe('')
      expect(text(await tree.read('f', { at: 1e9, length: 1 }))).toBe('')
      await tree.write('f', 100, bytes(''))
      expect((await entry(tree, 'f')).size).toBe(15)
      await put(tree, 'empty', '')
      expect(await content(tree, 'empty')).toBe('')
    })

    it('cuts, extends and punches', async tree => {
      await put(tree, 'f', 'x'.repeat(200_000))
      await tree.punch('f', 10, 150_000)
      let now = await content(tree, 'f')
      expect(now).toBe('x'.repeat(10) + '\0'.repeat(150_000) + 'x'.repeat(49_990))
      await tree.punch('f', 199_999, 1000)
      await tree.punch('f', 300_000, 1000)
      now = await content(tree, 'f')
      expect(now.length).toBe(200_000)
      expect(now.slice(-2)).toBe('x\0')
      await tree.truncate('f', 5)
      await tree.truncate('f', 12)
      expect(await content(tree, 'f')).toBe(`xxxxx${'\0'.repeat(7)}`)
      await tree.truncate('f', 0)
      expect(await content(tree, 'f')).toBe('')
    })

    it('copies from one file into another, if it can at all', async tree => {
      if (!tree.copy) return
      await put(tree, 'from', 'x'.repeat(100_000) + 'y'.repeat(100_000))
      await put(tree, 'to', 'hello')
      const { version } = await entry(tree, 'from')
      await tree.copy('from', { at: 99_998, length: 4, to: 7, version }, 'to')
      expect(await content(tree, 'to')).toBe('hello\0\0xxyy')
      await tree.copy('from', { at: 0, length: 200_000, to: 1 }, 'to')
      expect(await content(tree, 'to')).toBe(`h${'x'.repeat(100_000)}${'y'.repeat(100_000)}`)
      await tree.copy('to', { at: 0, length: 3, to: 200_001 }, 'to')
      expect((await content(tree, 'to')).slice(-5)).toBe('yyhxx')
      await tree.copy('from', { at: 0, length: 0, to: 0, version }, 'to')
      const wrong = (source: string, range: object, target = 'to') =>
        tree.copy!(source, { at: 0, length: 1, to: 0, ...range }, target)
      await expect(wrong('from', { at: 199_999, length: 2 })).rejects.toMatchObject({ code: 'SHORT_READ' })
      await expect(wrong('none', {})).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(wrong('from', {}, 'none')).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(wrong('', {})).rejects.toMatchObject({ code: 'IS_DIRECTORY' })
      await expect(wrong('from', { at: -1 })).rejects.toMatchObject({ code: 'INVALID' })
      await tree.write('from', 0, bytes('z'))
      await expect(wrong('from', { version })).rejects.toMatchObject({ code: 'STALE' })
      expect((await content(tree, 'to')).slice(1, 3)).toBe('xx')
    })

    it('has offsets beyond 4 GiB, sparse', async tree => {
      if (tree.capabilities.fileBytesMax < 2 ** 33) return
      const at = 2 ** 32 + 12_345
      await put(tree, 'f', 'near')
      await tree.write('f', at, bytes('far'))
      const { size, allocated } = await entry(tree, 'f')
      expect(size).toBe(at + 3)
      expect(allocated).toBeLessThanOrEqual(size)
      expect(text(await tree.read('f', { at: at - 1, length: 10 }))).toBe('\0far')
      expect(text(await tree.read('f', { at: 12_345, length: 3 }))).toBe('\0\0\0')
      await tree.punch('f', 0, at + 1)
      expect(text(await tree.read('f', { at: at, length: 10 }))).toBe('\0ar')
      await tree.truncate('f', 2 ** 40)
      await tree.truncate('f', 4)
      expect(await content(tree, 'f')).toBe('\0\0\0\0')
    })

    it('gives another version to other bytes, and to nothing else', async tree => {
      await put(tree, 'f', 'one')
      const { version } = await entry(tree, 'f')
      await tree.setAttributes('f', { mode: 0o600, atimeNs: 5n })
      await tree.make('d', directoryNode)
      await tree.rename('f', 'd/g')
      if (tree.capabilities.hardLinks) await tree.link('d/g', 'h')
      expect((await entry(tree, 'd/g')).version).toBe(version)
      expect(text(await tree.read('d/g', { at: 0, length: 9, version }))).toBe('one')
      // Clocks of file systems are coarse; two versions within one tick are not told apart by size alone.
      await new Promise(resolve => setTimeout(resolve, 20))
      await tree.write('d/g', 0, bytes('two'))
      const changed = (await entry(tree, 'd/g')).version
      expect(changed).not.toBe(version)
      await fails(tree.read('d/g', { at: 0, length: 9, version }), 'STALE')
      expect(text(await tree.read('d/g', { at: 0, length: 9, version: changed }))).toBe('two')
      await tree.truncate('d/g', 1)
      await fails(tree.read('d/g', { at: 0, length: 9, version: changed }), 'STALE')
    })

    it('notices at once that a file was replaced or removed', async tree => {
      await put(tree, 'f', 'old')
      await put(tree, 'new', 'new')
      const { version } = await entry(tree, 'f')
      expect(text(await tree.read('f', { at: 0, length: 9, version }))).toBe('old')
      await tree.write('f', 0, bytes('OLD'))
      await tree.rename('new', 'f')
      await fails(tree.read('f', { at: 0, length: 9, version }), 'STALE')
      expect(await content(tree, 'f')).toBe('new')
      await tree.write('f', 0, bytes('N'))
      expect(await content(tree, 'f')).toBe('New')
      await tree.remove('f')
      await fails(tree.read('f', { at: 0, length: 9, version }), 'NOT_FOUND')
      await fails(tree.write('f', 0, bytes('x')), 'NOT_FOUND')
      await put(tree, 'f', 'fresh')
      expect(await content(tree, 'f')).toBe('fresh')
    })

    it('sets attributes one by one', async tree => {
      await put(tree, 'f', 'x')
      const before = await entry(tree, 'f')
      await tree.setAttributes('f', { mtimeNs: 7n })
      expect(await entry(tree, 'f')).toMatchObject({ mtimeNs: 7n, mode: before.mode })
      await tree.setAttributes('f', { atimeNs: -8n })
      expect(await entry(tree, 'f')).toMatchObject({ mtimeNs: 7n, atimeNs: -8n })
      await tree.setAttributes('f', { mode: 0o123 })
      expect((await entry(tree, 'f')).mode).toBe(S_IFREG | 0o123)
      await tree.setAttributes('f', {})
      await fails(tree.setAttributes('none', { mode: 0o600 }), 'NOT_FOUND')
      if (!tree.capabilities.owners) return
      await tree.setAttributes('f', { uid: 12_345 })
      await tree.setAttributes('f', { gid: 54_321, mode: 0o6755 })
      expect(await entry(tree, 'f')).toMatchObject({ uid: 12_345, gid: 54_321, mode: S_IFREG | 0o6755 })
      await tree.make('o', { ...fileNode, uid: 3, gid: 4, mode: S_IFREG | 0o6711 })
      expect(await entry(tree, 'o')).toMatchObject({ uid: 3, gid: 4, mode: S_IFREG | 0o6711 })
    })

    it('never follows a symlink at the end of a path', async tree => {
      if (!tree.capabilities.symlinks) return
      await put(tree, 'target', 'precious')
      const before = await entry(tree, 'target')
      await tree.make('link', linkNode('target'))
      await fails(tree.read('link', { at: 0, length: 9 }), 'INVALID')
      await fails(tree.write('link', 0, bytes('x')), 'INVALID')
      await fails(tree.truncate('link', 0), 'INVALID')
      await fails(tree.punch('link', 0, 1), 'INVALID')
      await fails(tree.list('link'), 'NOT_DIRECTORY', 'INVALID')
      await tree.setAttributes('link', { mode: 0o600, mtimeNs: 99n, ...(tree.capabilities.owners && { uid: 9 }) })
      expect(await entry(tree, 'link')).toMatchObject({ link: 'target', mtimeNs: 99n, mode: S_IFLNK | 0o777 })
      expect(await tree.xattrs('link')).toEqual(new Map())
      await tree.rename('link', 'moved')
      await fails(tree.make('moved', fileNode), 'EXISTS')
      await tree.remove('moved')
      expect(await entry(tree, 'target')).toEqual(before)
      await fails(tree.make('l', { ...linkNode(''), link: '' }), 'INVALID')
    })

    it('has hard links', async tree => {
      if (!tree.capabilities.hardLinks) return fails(tree.link('a', 'b'), 'UNSUPPORTED', 'NOT_FOUND')
      await put(tree, 'a', 'one')
      expect((await entry(tree, 'a')).id).toBeUndefined()
      await tree.link('a', 'b')
      const [a, b] = [await entry(tree, 'a'), await entry(tree, 'b')]
      expect(a).toMatchObject({ nlink: 2 })
      expect(a.id).toBeDefined()
      expect(b.id).toBe(a.id)
      expect(b.version).toBe(a.version)
      await tree.write('b', 0, bytes('two'))
      expect(await content(tree, 'a')).toBe('two')
      await fails(tree.link('a', 'b'), 'EXISTS')
      await fails(tree.link('none', 'c'), 'NOT_FOUND')
      await tree.make('d', directoryNode)
      await fails(tree.link('d', 'e'), 'NOT_PERMITTED')
      // One name onto the other: the source goes, as with any rename.
      await tree.rename('a', 'b')
      expect(await tree.stat('a')).toBeNull()
      expect(await entry(tree, 'b')).toMatchObject({ nlink: 1, size: 3 })
      await tree.rename('b', 'b')
      expect(await content(tree, 'b')).toBe('two')
      if (!tree.capabilities.symlinks) return
      await tree.make('l', linkNode('b'))
      await tree.link('l', 'm')
      expect(await entry(tree, 'm')).toMatchObject({ link: 'b', nlink: 2 })
    })

    it('has special files', async tree => {
      const kinds: [number, number][] = [
        [S_IFIFO, 0],
        [S_IFSOCK, 0],
        [S_IFCHR, 0x0103],
        [S_IFBLK, 0x12345678 & 0xfffff],
      ]
      for (const [type, rdev] of kinds) {
        const made = tree.make('s', { ...given, mode: type | 0o604, rdev })
        if (!tree.capabilities.specialFiles) {
          await made.catch(error => expect(['UNSUPPORTED', 'NOT_PERMITTED']).toContain(error.code))
          if (!(await tree.stat('s'))) continue
        } else await made
        expect(await entry(tree, 's')).toMatchObject({ mode: type | 0o604, rdev, size: 0, mtimeNs: given.mtimeNs })
        await fails(tree.read('s', { at: 0, length: 1 }), 'INVALID')
        await fails(tree.write('s', 0, bytes('x')), 'INVALID')
        await tree.sync(['s'])
        await tree.remove('s')
      }
    })

    it('moves a directory with all that is in it', async tree => {
      await tree.make('a', directoryNode)
      await tree.make('a/b', directoryNode)
      await put(tree, 'a/b/f', 'content')
      expect(await content(tree, 'a/b/f')).toBe('content')
      await tree.make('c', directoryNode)
      await tree.rename('a', 'c/d')
      expect(await content(tree, 'c/d/b/f')).toBe('content')
      expect(await tree.stat('a')).toBeNull()
      await fails(tree.read('a/b/f', { at: 0, length: 1 }), 'NOT_FOUND')
      await tree.make('empty', directoryNode)
      await tree.rename('c/d', 'empty')
      expect(await content(tree, 'empty/b/f')).toBe('content')
      expect(await names(tree, '')).toEqual(['c', 'empty'])
      // Something else under the old name is really something else.
      await tree.make('c/d', directoryNode)
      await tree.make('c/d/b', directoryNode)
      await put(tree, 'c/d/b/f', 'other')
      expect(await content(tree, 'c/d/b/f')).toBe('other')
    })

    it('says what is wrong', async tree => {
      await tree.make('d', directoryNode)
      await put(tree, 'd/f', 'x')
      await tree.make('e', directoryNode)
      const range = { at: 0, length: 1 }
      await fails(tree.read('none', range), 'NOT_FOUND')
      await fails(tree.read('d', range), 'IS_DIRECTORY')
      await fails(tree.read('d/f/g', range), 'NOT_DIRECTORY')
      expect(await tree.stat('d/f/g')).toBeNull()
      await fails(tree.write('none', 0, bytes('x')), 'NOT_FOUND')
      await fails(tree.write('d', 0, bytes('x')), 'IS_DIRECTORY')
      await fails(tree.truncate('d', 0), 'IS_DIRECTORY')
      await fails(tree.list('none'), 'NOT_FOUND')
      await fails(tree.list('d/f'), 'NOT_DIRECTORY')
      await fails(tree.make('d', directoryNode), 'EXISTS')
      await fails(tree.make('d/f', fileNode), 'EXISTS')
      await fails(tree.make('', directoryNode), 'EXISTS')
      await fails(tree.make('none/f', fileNode), 'NOT_FOUND')
      await fails(tree.make('d/f/g', fileNode), 'NOT_DIRECTORY')
      await fails(tree.remove('none'), 'NOT_FOUND')
      await fails(tree.remove('d'), 'NOT_EMPTY')
      await fails(tree.remove(''), 'BUSY')
      await fails(tree.rename('none', 'x'), 'NOT_FOUND')
      await fails(tree.rename('d/f', 'none/x'), 'NOT_FOUND')
      await fails(tree.rename('d/f', 'e'), 'IS_DIRECTORY')
      await fails(tree.rename('e', 'd/f'), 'NOT_DIRECTORY')
      await fails(tree.rename('e', 'd'), 'NOT_EMPTY')
      await fails(tree.rename('d', 'd/x'), 'INVALID')
      await fails(tree.xattrs('none'), 'NOT_FOUND')
      await fails(tree.setXattrs('none', new Map()), 'NOT_FOUND')
      await fails(tree.make('n'.repeat(tree.capabilities.nameBytesMax + 1), fileNode), 'NAME_TOO_LONG')
      await fails(tree.make(`${'p/'.repeat(tree.capabilities.pathBytesMax / 2 + 1)}p`, fileNode), 'NAME_TOO_LONG')
      await tree.make('n'.repeat(tree.capabilities.nameBytesMax), fileNode)
    })

    it('reaches what lies deep', async tree => {
      const { pathBytesMax, nameBytesMax, hardLinks } = tree.capabilities
      const bytesMax = Math.min(pathBytesMax, 12_000)
      const name = 'n'.repeat(Math.min(nameBytesMax, 200))
      let deep = name
      await tree.make(deep, directoryNode)
      while (deep.length + 2 * (name.length + 1) <= bytesMax) {
        deep = `${deep}/${name}`
        await tree.make(deep, directoryNode)
      }
      const [file, other] = [`${deep}/f`, `${deep}/o`]
      await put(tree, file, 'deep')
      await tree.truncate(file, 3)
      await tree.setAttributes(file, { mode: 0o600 })
      expect(await content(tree, file)).toBe('dee')
      expect((await tree.stat(file))!.mode & 0o7777).toBe(0o600)
      await tree.setXattrs(file, new Map())
      expect(await tree.xattrs(file)).toEqual(new Map())
      await tree.rename(file, other)
      if (hardLinks) await tree.link(other, file)
      await tree.sync([other, deep])
      expect(await names(tree, deep)).toEqual(hardLinks ? ['f', 'o'] : ['o'])
      await fails(tree.remove(deep), 'NOT_EMPTY')
      await fails(tree.read(`${deep}/none`, { at: 0, length: 1 }), 'NOT_FOUND')
      expect(await tree.stat(`${deep}/none/below`)).toBeNull()
      await tree.rename(other, 'near')
      await tree.rename(name, 'moved')
      expect(await content(tree, 'near')).toBe('dee')
      if (hardLinks) await tree.remove(`moved${file.slice(name.length)}`)
      // Level by level: whoever cleans up behind this by whole paths could not.
      for (let at = `moved${deep.slice(name.length)}`; at; at = at.slice(0, Math.max(0, at.lastIndexOf('/'))))
        await tree.remove(at)
    })

    it('refuses what is no path and no range', async tree => {
      await put(tree, 'f', 'x')
      for (const bad of ['/', '/f', 'f/', 'd//f', '.', '..', '../f', 'd/../f', './f', 'a\0b', '\u0100']) {
        await fails(tree.stat(bad), 'INVALID')
        await fails(tree.list(bad), 'INVALID')
        await fails(tree.read(bad, { at: 0, length: 1 }), 'INVALID')
        await fails(tree.make(bad, fileNode), 'INVALID')
        await fails(tree.rename(bad, 'x'), 'INVALID')
        await fails(tree.rename('f', bad), 'INVALID')
        await fails(tree.link('f', bad), 'INVALID')
        await fails(tree.remove(bad), 'INVALID')
      }
      await fails(tree.read('f', { at: -1, length: 1 }), 'INVALID')
      await fails(tree.read('f', { at: 0, length: -1 }), 'INVALID')
      await fails(tree.read('f', { at: 0.5, length: 1 }), 'INVALID')
      await fails(tree.write('f', -1, bytes('x')), 'INVALID')
      await fails(tree.truncate('f', -1), 'INVALID')
      await fails(tree.punch('f', 0, Number.NaN), 'INVALID')
      expect(await content(tree, 'f')).toBe('x')
    })

    it('lists 2,500 entries in pages, each of which can be asked for again', async tree => {
      await tree.make('d', directoryNode)
      const all = Array.from({ length: 2500 }, (_, i) => `name ${i}`)
      for (let i = 0; i < all.length; i += 50)
        await Promise.all(all.slice(i, i + 50).map(one => tree.make(`d/${one}`, fileNode)))
      expect(await names(tree, 'd')).toEqual([...all].sort())
      const first = await tree.list('d')
      expect(first.entries).toHaveLength(1000)
      const second = await tree.list('d', first.cursor)
      await tree.list('d', second.cursor)
      // An answer was lost: the same page again.
      expect(await tree.list('d', first.cursor)).toEqual(second)
      const third = await tree.list('d', second.cursor)
      expect(third.entries).toHaveLength(500)
      expect(third.cursor).toBeUndefined()
    }, 120_000)

    it('lists once what is there all the while, whatever else comes and goes', async tree => {
      const stays = Array.from({ length: 1200 }, (_, i) => `stays ${i}`)
      const goes = Array.from({ length: 1200 }, (_, i) => `goes ${i}`)
      for (let i = 0; i < 1200; i += 50)
        await Promise.all([...stays.slice(i, i + 50), ...goes.slice(i, i + 50)].map(one => tree.make(one, fileNode)))
      let fresh = 0
      const seen = await list(tree, '', async () => {
        await Promise.all(goes.splice(0, 500).map(one => tree.remove(one)))
        for (let i = 0; i < 100; i++) await tree.make(`${i % 2 ? 'aaa' : 'zzz'} ${fresh++}`, fileNode)
      })
      const stayed = seen.map(one => one.name).filter(one => one.startsWith('stays'))
      expect(stayed.sort()).toEqual([...stays].sort())
      expect(new Set(seen.map(one => one.name)).size).toBe(seen.length)
    }, 120_000)

    it('lists while files vanish under it', async tree => {
      const some = Array.from({ length: 600 }, (_, i) => `f${i}`)
      await Promise.all(some.map(one => tree.make(one, fileNode)))
      const [seen] = await Promise.all([list(tree, ''), Promise.all(some.slice(0, 400).map(one => tree.remove(one)))])
      expect(seen.map(one => one.name)).toEqual(expect.arrayContaining(some.slice(400)))
    })

    it('keeps extended attributes, all or nothing', async tree => {
      await put(tree, 'f', 'x')
      expect(await tree.xattrs('f')).toEqual(new Map())
      if (tree.capabilities.xattrBytesMax === 0) return
      const attributes = new Map([
        ['user.one', bytes('1\0\xff')],
        ['user.empty', bytes('')],
        ['user.\xc3\xa9 odd', bytes('2')],
      ])
      await tree.setXattrs('f', attributes)
      const sorted = async (path: string) =>
        [...(await tree.xattrs(path))].map(([key, value]) => [key, text(value)]).sort()
      expect(await sorted('f')).toEqual([
        ['user.empty', ''],
        ['user.one', '1\0\xff'],
        ['user.\xc3\xa9 odd', '2'],
      ])
      await tree.setXattrs('f', new Map([['user.one', bytes('other')]]))
      expect(await sorted('f')).toEqual([['user.one', 'other']])
      await fails(tree.setXattrs('f', new Map([['nonsense', bytes('x')]])), 'UNSUPPORTED')
      const tooLarge = new Map([['user.large', new Uint8Array(tree.capabilities.xattrBytesMax + 1)]])
      await fails(tree.setXattrs('f', tooLarge), 'TOO_LARGE')
      await tree.setXattrs('f', new Map())
      expect(await sorted('f')).toEqual([])
      await tree.make('d', directoryNode)
      await tree.setXattrs('d', attributes)
      expect((await tree.xattrs('d')).size).toBe(3)
      if (!tree.capabilities.symlinks) return
      await tree.make('l', linkNode('f'))
      await fails(tree.setXattrs('l', attributes), 'NOT_PERMITTED')
    })

    it('hides what is ours from `list` and `stat`, and from nobody who knows its name', async tree => {
      await tree.hidden.put('intents/1', bytes('intent'))
      expect(await tree.stat('.pageferry')).toBeNull()
      expect(await names(tree, '')).toEqual([])
      expect((await tree.stat('.pageferry/intents/1'))?.size).toBe(6)
      expect(await content(tree, '.pageferry/intents/1')).toBe('intent')
      // Large things are staged as files, and take their place with one rename.
      await tree.make('.pageferry/staged', directoryNode)
      await put(tree, '.pageferry/staged/1', 'staged')
      await tree.rename('.pageferry/staged/1', 'f')
      expect(await content(tree, 'f')).toBe('staged')
      expect(await names(tree, '')).toEqual(['f'])
      expect(await names(tree, '.pageferry')).toContain('staged')
      expect((await tree.hidden.list('')).map(one => one.name)).toEqual(['intents/1'])
      await tree.make('d', directoryNode)
      await put(tree, 'd/.pageferry', 'only the one in the root is hidden')
      expect(await names(tree, 'd')).toEqual(['.pageferry'])
    })

    it('syncs what is there, what is gone, and what was never there', async tree => {
      await tree.make('d', directoryNode)
      await put(tree, 'd/f', 'x')
      await put(tree, 'gone', 'x')
      if (tree.capabilities.symlinks) await tree.make('l', linkNode('nowhere'))
      await tree.remove('gone')
      await tree.sync(['', 'd', 'd/f', 'gone', 'none/such/path', 'd/f/below', 'l'])
      await tree.sync([])
    })

    it('has room, or does not know', async tree => {
      const usage = await tree.usage()
      if (!usage) return
      expect(usage.bytesTotal).toBeGreaterThanOrEqual(usage.bytesFree)
      expect(usage.bytesFree).toBeGreaterThan(0)
    })

    it('shares no memory with its caller, can be aborted, and closed twice', async tree => {
      const mine = bytes('mine')
      await tree.make('f', fileNode)
      await tree.write('f', 0, mine)
      mine.fill(0)
      const got = await tree.read('f', { at: 0, length: 4 })
      got.fill(0)
      expect(await content(tree, 'f')).toBe('mine')
      await fails(tree.stat('f', aborted()), 'ABORTED')
      await fails(tree.list('', undefined, aborted()), 'ABORTED')
      await fails(tree.remove('f', aborted()), 'ABORTED')
      expect(await content(tree, 'f')).toBe('mine')
      await tree.close()
      await tree.close()
    })
  })

  const hidden = async () => {
    const { remote, end } = await make()
    const close = async () => {
      await remote.close()
      await end?.()
    }
    return { remote: remote.hidden, end: close }
  }
  storeSuite(`${name}, what it hides,`, hidden, { objects: 1100 })
}
