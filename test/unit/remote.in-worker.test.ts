import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { types } from 'node:util'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { type LogRecord, onLog } from '../../src/base/log.js'
import { inWorker } from '../../src/remote/in-worker.js'
import { pack, packError, unpackError } from '../../src/remote/in-worker-messages.js'
import type { Tree } from '../../src/remote/tree.js'
import { compileOnce } from '../remotes/compiled.js'

beforeAll(compileOnce)

const bytes = (text: string) => new Uint8Array(Buffer.from(text))
const node = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 }

/** A worker's opener, written down here. */
const opener = (body: string, ...args: unknown[]) => {
  const dist = pathToFileURL(join(import.meta.dirname, '..', '..', 'dist', 'src', 'remote')).href
  const source = `
    import { fileTree } from '${dist}/file-tree.js'
    import { memTree } from '${dist}/mem-tree.js'
    import { memStore } from '${dist}/mem-store.js'
    import { faulty } from '${dist}/faulty.js'
    import { wrap } from '${dist}/wrap.js'
    export async function open(...args) { ${body} }`
  return { module: `data:text/javascript,${encodeURIComponent(source)}`, name: 'open', args }
}

describe('a remote in a worker', () => {
  test('makes its calls there, with what is hidden', async () => {
    const tree = await inWorker('tree', opener('return memTree({ name: args[0] })', 'there'))
    expect(tree).toMatchObject({ shape: 'tree', url: 'mem:there', capabilities: { hardLinks: true } })
    await tree.make('f', { ...node, mtimeNs: -5n })
    expect((await tree.stat('f'))?.mtimeNs).toBe(-5n)
    await tree.hidden.put('a', bytes('x'))
    expect(await tree.hidden.list('')).toHaveLength(1)
    const attributes = new Map([['user.a', bytes('1')]])
    await tree.setXattrs('f', attributes)
    expect(await tree.xattrs('f')).toEqual(attributes)
    expect(attributes.get('user.a')).toHaveLength(1)
    await tree.close()
    await tree.close()
    await expect(tree.stat('f')).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('memory of large reads that are given back is used again, and seen by both threads, if that was said', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'pageferry-test-'))
    try {
      writeFileSync(join(folder, 'f'), Buffer.concat([1, 2].map(n => Buffer.alloc(512 * 1024, n))))
      // What the remote reads for itself is not shared: its stat tells.
      const body = `
        const tree = await fileTree(args[0])
        return wrap(tree, async (call, next) => {
          if (call.method !== 'stat') return next()
          const { buffer } = await tree.read('f', { at: 0, length: 512 * 1024 })
          return { ...(await next()), size: buffer instanceof SharedArrayBuffer ? 1 : 0 }
        })`
      const opens = opener(body, folder)
      const half = (tree: Tree, at: number) => tree.read('f', { at: at * 512 * 1024, length: 512 * 1024 })

      const sharing = await inWorker('tree', { ...opens, givesBack: true })
      const first = await half(sharing, 0)
      expect([types.isSharedArrayBuffer(first.buffer), first[0]]).toEqual([true, 1])
      const kept = await half(sharing, 1)
      expect([first[0], kept[0]]).toEqual([1, 2])
      sharing.giveBack!(first)
      await half(sharing, 1)
      expect(first[0]).toBe(2)
      expect((await sharing.stat('f'))?.size).toBe(0)
      await sharing.close()

      const plain = await inWorker('tree', opens)
      expect([types.isSharedArrayBuffer((await half(plain, 0)).buffer), plain.giveBack]).toEqual([false, undefined])
      await plain.close()
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  test('errors come back as they are', async () => {
    const tree = await inWorker('tree', opener('return memTree()'))
    const error = await tree.read('none', { at: 0, length: 1 }).catch(thrown => thrown)
    expect(error).toBeInstanceOf(FerryError)
    expect(error).toMatchObject({ code: 'NOT_FOUND', message: 'no such file or directory: "none"' })
    await tree.close()
  })

  test('an abort rejects at once and cancels the call over there', async () => {
    const body = `
      let aborted = 0
      return wrap(memStore(), async (call, next) => {
        if (call.method === 'head') return [aborted]
        return new Promise((_, reject) => call.signal.addEventListener('abort', () => { aborted++; reject(call.signal.reason) }))
      })`
    const store = await inWorker('store', opener(body))
    const controller = new AbortController()
    const hanging = expect(store.get('a', undefined, controller.signal)).rejects.toMatchObject({ code: 'DEADLINE' })
    await store.head('x')
    controller.abort(new FerryError('DEADLINE'))
    await hanging
    expect(await store.head('x')).toEqual([1])
    await expect(store.get('a', undefined, AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' })
    await store.close()
  })

  test('what it logs is logged here, errors as their messages', async () => {
    const heard: LogRecord[] = []
    const stop = onLog(record => heard.push(record))
    const log = pathToFileURL(join(import.meta.dirname, '..', '..', 'dist', 'src', 'base', 'log.js')).href
    const body = `
      const { logger } = await import('${log}')
      return wrap(memStore(), async (call, next) => {
        logger('far').warn('something', { key: call.args[0], error: new Error('why') })
        return next()
      })`
    const store = await inWorker('store', opener(body))
    await store.head('a')
    await store.close()
    stop()
    expect(heard).toMatchObject([
      { level: 'warn', part: 'far', message: 'something', fields: { key: 'a', error: 'why' } },
    ])
  })

  test('a worker that dies takes all its calls with it', async () => {
    const body = `
      return wrap(memStore(), async (call, next) => {
        if (call.method === 'list') setImmediate(() => { throw new Error('a bug') })
        return new Promise(() => {})
      })`
    const store = await inWorker('store', opener(body))
    const calls = [store.head('a'), store.list(''), store.get('b')]
    for (const outcome of await Promise.allSettled(calls))
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'UNREACHABLE' } })
    await expect(store.head('a')).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await store.close()
  })

  test('a close ends what is still running', async () => {
    const store = await inWorker('store', opener('return faulty(memStore(), { hangs: 1 })'))
    const hanging = expect(store.head('a')).rejects.toMatchObject({ code: 'CLOSED' })
    await store.close()
    await hanging
  })

  test('an opener that fails, or makes something else, says so', async () => {
    await expect(inWorker('tree', opener("throw new Error('no such bucket')"))).rejects.toMatchObject({
      message: 'input/output error: no such bucket',
    })
    await expect(inWorker('tree', opener('return memStore()'))).rejects.toThrow('open made a store, not a tree')
    await expect(inWorker('tree', { module: 'file:///nowhere.js', name: 'open', args: [] })).rejects.toThrow(
      'nowhere.js',
    )
  })

  test('many calls at once keep apart', async () => {
    const store = await inWorker('store', opener('return memStore()'))
    const large = Array.from({ length: 50 }, (_, i) => new Uint8Array(10_000).fill(i))
    await Promise.all(large.map((one, i) => store.put(`o${i}`, one)))
    const got = await Promise.all(large.map((_, i) => store.get(`o${i}`)))
    expect(got).toEqual(large)
    await store.close()
  })
})

describe('what crosses over', () => {
  test('bytes of the caller are copied, and only those, into one buffer', () => {
    const pool = new Uint8Array(1 << 20)
    const [one, two, none] = [pool.subarray(10, 14).fill(7), pool.subarray(12, 17), pool.subarray(0, 0)]
    const shared = new Uint8Array(new SharedArrayBuffer(2))
    const given = [
      one,
      { deep: [two, none, shared], map: new Map([['key', one]]), bigint: 5n, not: null, absent: undefined },
    ]
    const { value, transfer } = pack(given, { copy: true })
    expect(value).toEqual(given)
    expect(transfer.map(one => one.byteLength)).toEqual([4 + 5 + 4])
    expect(structuredClone(value, { transfer })).toEqual(given)
    expect([...new Uint8Array(pool.buffer).subarray(10, 15)]).toEqual([7, 7, 7, 7, 0])
    expect(pack([1, none], { copy: true }).transfer).toEqual([])
  })

  test('bytes of a result are handed over if they are alone in their buffer', () => {
    const alone = new Uint8Array(100)
    expect(pack(alone, { copy: false }).value).toBe(alone)
    const small = Buffer.from('a small Buffer lies in a pool')
    const packed = pack(small, { copy: false })
    expect(packed.value).not.toBe(small)
    expect(packed.transfer[0].byteLength).toBe(small.byteLength)
    const twice = pack([alone, alone], { copy: false })
    expect(new Set(twice.transfer).size).toBe(twice.transfer.length)
    structuredClone(twice.value, { transfer: twice.transfer })
  })

  test('shared memory stays shared', () => {
    const shared = new Uint8Array(new SharedArrayBuffer(8))
    expect(pack([shared], { copy: true })).toEqual({ value: [shared], transfer: [] })
  })

  test('errors of every kind arrive as ours', () => {
    for (const error of [new FerryError('CONFLICT', { detail: 'a: b' }), new FerryError('NO_SPACE')]) {
      const arrived = unpackError(structuredClone(packError(error)))
      expect([arrived.code, arrived.message]).toEqual([error.code, error.message])
    }
    expect(unpackError(packError(new Error('odd'))).message).toBe('input/output error: odd')
    expect(unpackError(packError('text')).code).toBe('IO')
  })
})
