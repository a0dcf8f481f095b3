import { describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import type { Blob } from '../../src/remote/blob.js'
import { faulty } from '../../src/remote/faulty.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { METER_BYTES, metered, sharedMeter } from '../../src/remote/metered.js'
import { type Call, countBytes, methods, wrap } from '../../src/remote/wrap.js'

const bytes = (text: string) => new Uint8Array(Buffer.from(text))
const node = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 }

describe('wrap', () => {
  test('the table names every method of the interfaces, and where its signal is', () => {
    // Each method of a real remote that takes part in the interface is in the table; the rest is spoken for.
    const rest = ['close', 'snapshot', 'restore']
    for (const remote of [memBlob({ size: 1 }), memStore(), memTree()]) {
      const functions = Object.entries(remote).filter(([, value]) => typeof value === 'function')
      for (const [name, value] of functions) {
        if (rest.includes(name)) continue
        expect(Object.keys(methods[remote.shape])).toContain(name)
        // The signal is the last argument; parameters with defaults do not count into `length`.
        const { signalAt } = methods[remote.shape][name]
        const source = String(value)
        const parameters = source.slice(source.indexOf('(') + 1, source.indexOf(') {'))
        const depth0 = parameters.replace(/\{[^{}]*\}/g, '')
        expect([name, depth0.split(',').length - 1]).toEqual([name, signalAt])
      }
    }
  })

  test('sees every call with its arguments, and leaves everything else alone', async () => {
    const seen: [string, readonly unknown[]][] = []
    const plain = memTree({ name: 'wrap-sees' })
    const tree = wrap(plain, async (call, next) => {
      seen.push([call.method, call.args])
      return next()
    })
    await tree.make('f', node)
    await tree.list('')
    await tree.hidden.put('a', bytes('x'))
    expect(seen).toEqual([
      ['make', ['f', node]],
      ['list', ['']],
      ['put', ['a', bytes('x')]],
    ])
    expect(tree.url).toBe('mem:wrap-sees')
    expect(tree.shape).toBe('tree')
    expect(tree.capabilities).toBe(plain.capabilities)
    expect(tree.hidden).toBe(tree.hidden)
    // What the interface does not know is there too.
    const before = tree.snapshot()
    await tree.remove('f')
    tree.restore(before)
    expect(await plain.stat('f')).not.toBeNull()
    await tree.close()
    expect({ ...tree }.shape).toBe('tree')
  })

  test('passes the signal at its place, whatever is left out before it', async () => {
    const controller = new AbortController()
    let got: Call | undefined
    const store = wrap(memStore(), async (call, next) => {
      got = call
      return next()
    })
    await store.put('a', bytes('x'), undefined, controller.signal)
    expect(got?.signal).toBe(controller.signal)
    controller.abort()
    await expect(store.put('a', bytes('x'), undefined, controller.signal)).rejects.toMatchObject({ code: 'ABORTED' })
    await expect(store.list('', undefined, controller.signal)).rejects.toMatchObject({ code: 'ABORTED' })
  })

  test('can change arguments, signals and results', async () => {
    const blob = wrap(memBlob({ size: 100 }), async (call, next) => {
      if (call.method === 'write') return next({ args: [call.args[0], bytes('other')] })
      const result = await next()
      return result instanceof Uint8Array ? result.slice().reverse() : result
    })
    await blob.write(0, bytes('mine'))
    expect(Buffer.from(await blob.read(0, 5)).toString()).toBe('rehto')
  })

  test('knows what may be asked again', async () => {
    const idempotent: Record<string, boolean> = {}
    const note = async (call: Call, next: () => Promise<unknown>) => {
      idempotent[call.method + (call.args.length > 2 ? JSON.stringify(call.args[2]) : '')] = call.idempotent
      return next()
    }
    const [tree, store] = [wrap(memTree(), note), wrap(memStore(), note)]
    await tree.make('f', node)
    await tree.write('f', 0, bytes('x'))
    await tree.rename('f', 'g')
    await tree.truncate('g', 0)
    await store.put('a', bytes('x'), { ifAbsent: true })
    const ifVersion = await store.put('a', bytes('x'), {})
    await store.remove('a', { ifVersion })
    expect(idempotent).toMatchObject({
      make: false,
      rename: false,
      truncate: true,
      'put{"ifAbsent":true}': false,
      'put{}': true,
      remove: true,
    })
  })

  test('knows which changes of a bucket may be made again', () => {
    const { put, copy, completeUpload, remove, beginUpload } = methods.objects
    for (const condition of [{ ifAbsent: true }, { ifMatch: 'e' }]) {
      expect(put.idempotent(['a', bytes('x'), condition])).toBe(false)
      expect(copy.idempotent(['a', 'b', condition])).toBe(false)
      expect(completeUpload.idempotent(['a', 'upload', [], condition])).toBe(false)
    }
    for (const plain of [undefined, { metadata: { k: 'v' } }]) {
      expect(put.idempotent(['a', bytes('x'), plain])).toBe(true)
      expect(copy.idempotent(['a', 'b', plain])).toBe(true)
      expect(completeUpload.idempotent(['a', 'upload', [], plain])).toBe(true)
    }
    expect(remove.idempotent(['a', { ifMatch: 'e' }])).toBe(true)
    expect(beginUpload.idempotent(['a'])).toBe(true)
  })

  test('is blind to methods that the remote does not have', () => {
    const { trim: _, ...rest } = memBlob({ size: 1 })
    const blob: Blob = rest
    expect(wrap(blob, (_call, next) => next()).trim).toBeUndefined()
    expect('commit' in wrap(memTree(), (_call, next) => next())).toBe(false)
  })

  test('reaches through classes with private fields, and the commit contract', async () => {
    class Committing {
      readonly shape = 'store'
      readonly #inner = memStore()
      get url() {
        return this.#inner.url
      }
      get capabilities() {
        return this.#inner.capabilities
      }
      get = this.#inner.get
      head = this.#inner.head
      put = this.#inner.put
      remove = this.#inner.remove
      list = this.#inner.list
      async commit(batch: number) {
        return [this.#inner.url, batch]
      }
      async close() {
        await this.#inner.close()
      }
    }
    const seen: string[] = []
    const store = wrap(new Committing(), async (call, next) => {
      seen.push(call.method)
      return next()
    })
    expect(await store.commit(3)).toEqual(['mem:', 3])
    expect(store.url).toBe('mem:')
    await store.close()
    expect(seen).toEqual(['commit'])
  })

  test('bytes are counted wherever they are', () => {
    const batch = { changes: [{ content: { inline: [{ at: 0, bytes: bytes('12345') }] } }, { bytes: bytes('678') }] }
    expect(countBytes([batch])).toBe(8)
    expect(countBytes(new Map([['user.a', bytes('12')]]))).toBe(2)
    expect(countBytes(['abc', 5, null, undefined, 7n])).toBe(0)
  })
})

describe('metered', () => {
  test('counts in memory that other threads see', async () => {
    const memory = new SharedArrayBuffer(METER_BYTES)
    const seen = sharedMeter(memory)
    expect(seen).toMatchObject({ requests: 0, errors: 0, reachable: true })
    const faults = faulty(memTree(), { seed: 1 })
    const tree = metered(faults, { meter: sharedMeter(memory) })
    await tree.make('f', node)
    await tree.write('f', 0, new Uint8Array(10))
    await tree.read('f', { at: 0, length: 4 })
    faults.faults.down = true
    await tree.stat('f').catch(() => {})
    expect({ ...seen }).toEqual({
      ...{ requests: 4, bytesRead: 4, bytesWritten: 10, errors: 1, reachable: false },
      lastError: null,
    })
    faults.faults.down = false
    await tree.stat('f')
    expect(seen.reachable).toBe(true)
  })

  test('counts what went each way, and what failed', async () => {
    const tree = metered(memTree(), { nowMs: () => 77 })
    await tree.make('f', node)
    await tree.write('f', 0, bytes('12345'))
    await tree.read('f', { at: 0, length: 3 })
    await tree.hidden.put('a', bytes('1234567'))
    await tree.hidden.get('a')
    await expect(tree.read('none', { at: 0, length: 3 })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(tree.meter).toEqual({
      requests: 6,
      bytesRead: 10,
      bytesWritten: 12,
      errors: 0,
      lastError: null,
      reachable: true,
    })
    await expect(tree.setXattrs('f', new Map([['bad', bytes('x')]]))).rejects.toBeDefined()
    expect(tree.meter).toMatchObject({ errors: 1, reachable: true, lastError: { code: 'UNSUPPORTED', atMs: 77 } })
  })

  test('is unreachable until somebody answers, if only with "no"', async () => {
    const codes = ['UNREACHABLE', undefined, 'DEADLINE', 'NOT_FOUND', 'UNREACHABLE', 'ABORTED'] as const
    let call = 0
    const store = metered(
      wrap(memStore(), async (_, next) => {
        const code = codes[call++]
        if (code) throw new FerryError(code)
        return next()
      }),
    )
    const reachable: boolean[] = []
    for (const _ of codes) {
      await store.head('a').catch(() => {})
      reachable.push(store.meter.reachable)
    }
    expect(reachable).toEqual([false, true, false, true, false, false])
    expect(store.meter.errors).toBe(3)
  })
})
