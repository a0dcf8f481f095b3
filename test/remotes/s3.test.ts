// The suites over a real S3 server.
import { randomUUID } from 'node:crypto'
import { beforeAll, describe, expect } from '@jest/globals'
import { objectStore } from '../../src/remote/object-store.js'
import type { Objects } from '../../src/remote/objects.js'
import { s3Objects } from '../../src/remote/s3.js'
import { requires } from '../fixtures/requires.js'
import { makeBucket, startRgw, useRgw } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'
import { flatSuite, storeKind } from './commits-flat.js'
import { objectsSuite } from './objects.js'
import { type Subject, storeSuite } from './primitives.js'

const rgw = requires('rgw')

rgw.describe("Ceph's RADOS gateway", () => {
  let server: Rgw
  let bucket: string
  beforeAll(async () => {
    server = await startRgw()
    useRgw(server)
    bucket = await makeBucket(server)
  }, 120_000)

  const open = (options: { prefix?: string; write?: boolean } = {}) => s3Objects({ bucket, ...options })
  const fresh = async (): Promise<Subject<Objects>> => ({ remote: await open({ prefix: randomUUID() }) })

  objectsSuite('S3', fresh)
  storeSuite('S3', async () => ({ remote: objectStore((await fresh()).remote) }), { objects: 1100 })

  const openStore = async () => {
    const store = objectStore((await fresh()).remote)
    return { remote: store, hidden: store, hiddenPrefix: '.pageferry/', dispose: () => store.close() }
  }
  flatSuite('S3 store', storeKind(openStore), { rounds: 1, share: 0.1 })

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
