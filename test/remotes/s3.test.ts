// The suites over a real S3 server.
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, describe, expect } from '@jest/globals'
import { openRemote } from '../../src/open.js'
import { deadline } from '../../src/remote/deadline.js'
import { metered } from '../../src/remote/metered.js'
import { objectStore } from '../../src/remote/object-store.js'
import type { Objects } from '../../src/remote/objects.js'
import { retry } from '../../src/remote/retry.js'
import { s3Objects } from '../../src/remote/s3.js'
import { parseSimulation, simulate } from '../../src/remote/simulate.js'
import { long, requires } from '../fixtures/requires.js'
import { bucketForTests } from '../fixtures/rgw.js'
import { treeSuite } from './commits.js'
import { flatSuite, storeKind } from './commits-flat.js'
import { handTree } from './commits-objects.js'
import { compileOnce } from './compiled.js'
import { objectsSuite } from './objects.js'
import { aborted, bytes, fails, type Subject, storeSuite, text } from './primitives.js'

const rgw = requires('rgw')

rgw.describe("Ceph's RADOS gateway", () => {
  let bucket: string
  beforeAll(async () => {
    ;({ bucket } = await bucketForTests())
  }, 200_000)

  const open = (options: { prefix?: string; write?: boolean } = {}) => s3Objects({ bucket, ...options })
  const fresh = async (): Promise<Subject<Objects>> => ({ remote: await open({ prefix: randomUUID() }) })

  objectsSuite('S3', fresh)
  storeSuite('S3', async () => ({ remote: objectStore((await fresh()).remote) }), { objects: 1100 })

  const openStore = async () => {
    const store = objectStore((await fresh()).remote)
    return { remote: store, hidden: store, hiddenPrefix: '.pageferry/', dispose: () => store.close() }
  }
  flatSuite('S3 store', storeKind(openStore), { rounds: 1, share: 0.1 })

  treeSuite('S3', {
    open: async () => {
      const { remote } = await fresh()
      return { tree: handTree(remote), dispose: () => remote.close() }
    },
    batches: long ? 2 : 1,
    operations: 8,
    share: long ? 0.1 : 0.02,
    fencedDirectories: false,
  })

  describe('by its URL', () => {
    const url = (path: string) => `s3://${bucket}/${path}`

    rgw.test('is opened, from a prefix on', async () => {
      const prefix = randomUUID()
      await using objects = await openRemote(url(`${prefix}/d%20%C3%A9/`), { shape: 'objects' })
      expect(objects.url).toBe(`s3://${bucket}/${prefix}/d%20%c3%a9`)
      await objects.put('a', bytes('content'))
      await using whole = await openRemote(url(''), { shape: 'objects' })
      expect((await whole.list({ prefix })).objects.map(({ key }) => key)).toEqual([`${prefix}/d \xc3\xa9/a`])
    })

    // In a process of its own: a thread that a test starts does not get the test's environment, and jest's errors are of another realm.
    rgw.test('is opened in a thread of its own, with everything that crosses over', async () => {
      compileOnce()
      const script = join(mkdtempSync(join(tmpdir(), 'pageferry-')), 'script.mjs')
      const program = `
        import { openRemote } from ${JSON.stringify(join(process.cwd(), 'dist/src/open.js'))}
        const code = call => call.then(() => 'it worked', error => error.code + ' ' + error.message)
        const objects = await openRemote(process.argv[2], { shape: 'objects', worker: true })
        const etag = await objects.put('a', Buffer.from('content'), { metadata: { k: 'v' } })
        console.log(JSON.stringify({
          url: objects.url,
          write: objects.capabilities.write,
          head: (await objects.head('a')).metadata,
          got: Buffer.from(await objects.get('a', { at: 3, length: 2, etag })).toString(),
          again: await code(objects.put('a', Buffer.from('x'), { ifAbsent: true })),
          aborted: await code(objects.get('a', undefined, AbortSignal.abort())),
          nobody: await code(openRemote('s3://b/?endpoint=http://127.0.0.1:1', { shape: 'objects' })),
          nameless: await code(openRemote('s3://b/?endpoint=http://host.invalid', { shape: 'objects' })),
        }))
        await objects.close()`
      const where = url(randomUUID())
      writeFileSync(script, program)
      const { stdout, stderr } = await promisify(execFile)(process.execPath, [script, where], { env: process.env })
      rmSync(dirname(script), { recursive: true })
      expect(stderr).toBe('')
      expect(JSON.parse(stdout)).toEqual({
        ...{ url: where, write: true, head: { k: 'v' }, got: 'te' },
        again: expect.stringMatching(/^CONFLICT /),
        aborted: expect.stringMatching(/^ABORTED /),
        nobody: expect.stringMatching(/^UNREACHABLE .*\(ECONNREFUSED\)$/),
        nameless: expect.stringMatching(/^UNREACHABLE .*\((ENOTFOUND|EAI_AGAIN)\)$/),
      })
    })

    rgw.test('is a store, which another one reads', async () => {
      const prefix = randomUUID()
      await using store = await openRemote(url(prefix), { shape: 'store' })
      const version = await store.put('dir/name', bytes('content'))
      await using again = await openRemote(url(prefix), { shape: 'store' })
      expect(await again.head('dir/name')).toEqual({ name: 'dir/name', size: 7, version })
      await using objects = await openRemote(url(prefix), { shape: 'objects' })
      await objects.put('foreign', bytes('something quite else'))
      await objects.put('a//b', bytes('something quite else'))
      await fails(again.get('foreign'), 'BAD_FORMAT')
    })

    rgw.test('is one object as a blob, the version that was there', async () => {
      const key = `${randomUUID()}/disk \xc3\xa9.img`
      await using objects = await openRemote(url(''), { shape: 'objects' })
      const content = Uint8Array.from({ length: 100_000 }, (_, i) => i % 251)
      await objects.put(key, content)
      const location = url(key.replace(' \xc3\xa9', '%20%c3%a9'))
      await using blob = await openRemote(location, { shape: 'blob' })
      expect([blob.url, blob.size, blob.capabilities.write]).toEqual([location, 100_000, false])
      expect(Buffer.compare(await blob.read(99_000, 1000), content.subarray(99_000))).toBe(0)
      expect((await blob.read(100_000, 0)).byteLength).toBe(0)
      await fails(blob.read(99_001, 1000), 'INVALID')
      await fails(blob.write(0, bytes('x')), 'READ_ONLY')
      await fails(blob.read(0, 1, aborted()), 'ABORTED')
      await objects.put(key, bytes('other'))
      await fails(blob.read(0, 1), 'STALE')
      await fails(openRemote(url('none'), { shape: 'blob' }), 'USAGE')
    })

    rgw.test('is not there', async () => {
      await expect(openRemote('s3://no-such-bucket/x', { shape: 'store' })).rejects.toThrow(
        'the remote cannot be reached: s3://no-such-bucket/x: there is no such bucket',
      )
    })
  })

  rgw.test('through the wrappers, nothing is lost on a bad line', async () => {
    const bad = simulate((await fresh()).remote, parseSimulation('rtt=1ms,errors=0.2,seed=5'))
    const objects = retry(deadline(metered(bad), { ms: 10_000 }), { firstMs: 1 })
    const keys = Array.from({ length: 30 }, (_, i) => `k${String(i).padStart(2, '0')}`)
    await Promise.all(keys.map(key => objects.put(key, bytes(key))))
    expect((await objects.list({ prefix: '' })).objects.map(({ key }) => key)).toEqual(keys)
    for (const key of keys) expect(text(await objects.get(key))).toBe(key)
    await objects.removeAll(keys)
    expect((await objects.list({ prefix: '' })).objects).toEqual([])
    expect(objects.meter.requests).toBeGreaterThan(2 * keys.length + 3)
    await objects.close()
  })

  describe('what it looks at', () => {
    rgw.test('is probed, and nothing is left of that', async () => {
      const prefix = randomUUID()
      const objects = await open({ prefix })
      expect(objects.capabilities).toMatchObject({
        ...{ write: true, putIfAbsent: true, putIfMatch: true },
        ...{ copyIf: false, completeIf: false, removeIfMatch: false },
      })
      expect(await objects.list({ prefix: '' })).toEqual({ objects: [], prefixes: [] })
      expect(await objects.uploads('')).toEqual([])
    })
  })
})
