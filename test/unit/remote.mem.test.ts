import { describe, expect, test } from '@jest/globals'
import { random } from '../../src/base/random.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { MemBytes } from '../../src/remote/mem-bytes.js'
import { memStore } from '../../src/remote/mem-store.js'
import { memTree } from '../../src/remote/mem-tree.js'

const bytes = (text: string) => new Uint8Array(Buffer.from(text))
const node = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 }
const codeOf = (call: Promise<unknown>) =>
  call.then(
    () => 'it worked',
    (error: { code: string }) => error.code,
  )

describe('bytes in memory', () => {
  test.each([1, 2, 3, 4, 5])('are those of a plain array, clones included (seed %d)', seed => {
    const { below, bytes: someBytes } = random(seed)
    const size = 300_000
    let model = new Uint8Array(0)
    let sparse = new MemBytes()
    const clones: [Uint8Array, MemBytes][] = []
    const resized = (to: number) => {
      const fresh = new Uint8Array(to)
      fresh.set(model.subarray(0, to))
      return fresh
    }
    for (let step = 0; step < 200; step++) {
      const at = below(size)
      const length = below(2) ? below(100) : below(150_000)
      switch (below(5)) {
        case 0:
        case 1: {
          const from = someBytes(length)
          sparse.write(at, from)
          if (length > 0) model = resized(Math.max(model.length, at + length))
          model.set(from, Math.min(at, model.length))
          break
        }
        case 2:
          sparse.truncate(at)
          model = resized(at)
          break
        case 3:
          sparse.punch(at, length)
          model.fill(0, at, at + length)
          break
        default:
          if (below(3) === 0 && clones.length > 0) [model, sparse] = [clones[0][0].slice(), clones[0][1].clone()]
          else clones.push([model.slice(), sparse.clone()])
      }
      expect(sparse.size).toBe(model.length)
      const from = below(size)
      expect(Buffer.compare(sparse.read(from, length), model.subarray(from, from + length))).toBe(0)
    }
    for (const [was, clone] of clones) {
      expect(clone.size).toBe(was.length)
      expect(Buffer.compare(clone.read(0, was.length), was)).toBe(0)
    }
  })

  test('cost nothing where there is nothing, and holes take no time', () => {
    const sparse = new MemBytes()
    sparse.write(2 ** 45, bytes('x'))
    expect(sparse.allocated).toBe(65536)
    sparse.punch(0, 2 ** 45)
    sparse.truncate(3)
    expect(sparse.allocated).toBe(0)
    expect(sparse.read(0, 10)).toEqual(new Uint8Array(3))
  })
})

describe('memory as a remote', () => {
  test('two openers of a name see the same, others do not', async () => {
    await memTree({ name: 'shared' }).make('f', node)
    expect(await memTree({ name: 'shared' }).stat('f')).not.toBeNull()
    expect(await memTree({ name: 'other' }).stat('f')).toBeNull()
    expect(await memTree().stat('f')).toBeNull()
    await memStore('shared').put('a', bytes('x'))
    expect(await memStore('shared').head('a')).not.toBeNull()
    await memBlob({ name: 'shared', size: 10 }).write(0, bytes('x'))
    expect(Buffer.from(await memBlob({ name: 'shared' }).read(0, 1)).toString()).toBe('x')
    expect(() => memBlob({ name: 'shared', size: 11 })).toThrow('mem:shared has 10 bytes, not 11')
    expect(() => memBlob({ name: 'sizeless' })).toThrow('needs a size')
  })

  test('a snapshot is a moment that stays, whatever happens before and after going back to it', async () => {
    const tree = memTree()
    await tree.make('f', node)
    await tree.write('f', 0, bytes('one'))
    await tree.link('f', 'g')
    await tree.hidden.put('a', bytes('hidden'))
    const moment = tree.snapshot()
    const content = async (path: string) => Buffer.from(await tree.read(path, { at: 0, length: 99 })).toString()
    const look = async () => [
      await content('f'),
      await content('g'),
      (await tree.stat('f'))!,
      await tree.hidden.list(''),
    ]
    const then = await look()
    for (let round = 0; round < 3; round++) {
      await tree.write('f', 0, bytes(`round ${round}`))
      await tree.setAttributes('g', { mode: 0o600 })
      await tree.remove('g')
      await tree.hidden.remove('a')
      tree.restore(moment)
      expect(await look()).toEqual(then)
    }
    // Two names are still one file.
    await tree.write('g', 0, bytes('two'))
    expect(await content('f')).toBe('two')
    const store = memStore()
    const empty = store.snapshot()
    await store.put('a', bytes('x'))
    store.restore(empty)
    expect(await store.list('')).toEqual([])
    const blob = memBlob({ size: 4 })
    const zeros = blob.snapshot()
    await blob.write(0, bytes('1234'))
    blob.restore(zeros)
    expect(await blob.read(0, 4)).toEqual(new Uint8Array(4))
  })

  test('a version does not come again after going back', async () => {
    const tree = memTree()
    await tree.make('f', node)
    const moment = tree.snapshot()
    const seen = new Set<string>()
    for (let i = 0; i < 10; i++) {
      tree.restore(moment)
      await tree.write('f', 0, bytes(String(i)))
      seen.add((await tree.stat('f'))!.version)
    }
    expect(seen.size).toBe(10)
  })

  test('it can play a remote that does less', async () => {
    const tree = memTree({
      capabilities: {
        hardLinks: false,
        symlinks: false,
        specialFiles: false,
        xattrBytesMax: 0,
        nameBytesMax: 8,
        fileBytesMax: 100,
      },
    })
    await tree.make('f', node)
    expect(await codeOf(tree.link('f', 'g'))).toBe('UNSUPPORTED')
    expect(await codeOf(tree.make('l', { ...node, mode: 0o120777, link: 'f' }))).toBe('UNSUPPORTED')
    expect(await codeOf(tree.make('p', { ...node, mode: 0o010600 }))).toBe('UNSUPPORTED')
    expect(await codeOf(tree.setXattrs('f', new Map([['user.a', bytes('x')]])))).toBe('TOO_LARGE')
    expect(await codeOf(tree.make('123456789', node))).toBe('NAME_TOO_LONG')
    expect(await codeOf(tree.write('f', 99, bytes('xy')))).toBe('TOO_LARGE')
    const readOnly = memTree({ capabilities: { write: false } })
    expect(await codeOf(readOnly.make('f', node))).toBe('READ_ONLY')
  })

  test('time comes in from outside', async () => {
    let nowNs = 5n
    const tree = memTree({ nowNs: () => nowNs })
    await tree.make('f', node)
    nowNs = 6n
    await tree.write('f', 0, bytes('x'))
    expect(await tree.stat('f')).toMatchObject({ mtimeNs: 6n, ctimeNs: 6n, atimeNs: 0n })
  })
})
