// What the engine believes to be a file's version at the remote, when it does not hear it with the batch that made it.
import fs from 'node:fs'
import { afterEach, expect, test } from '@jest/globals'
import { deferred } from '../../src/base/async.js'
import { openTreeCache } from '../../src/cache/engine.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { engineOptions, settled, temporaryDirectory } from './engine-harness.js'

const FILE = { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }
const undone: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of undone.splice(0).reverse()) await undo()
})

test('a version that a listing tells while a batch is about to change it is not taken for the one after it', async () => {
  const cacheDir = temporaryDirectory()
  undone.push(() => fs.rmSync(cacheDir, { recursive: true, force: true }))
  const remote = rollforward(memTree())
  const settle = remote.settle.bind(remote)
  // As whoever finishes a batch that another process has begun.
  remote.settle = async signal => ({ ...(await settle(signal)), versions: [] })
  const [begun, goes] = [deferred(), deferred()]
  const cache = await openTreeCache(remote, engineOptions(cacheDir))
  undone.push(() => cache.close())
  const { ino } = await settled(cache.make(1, 'open', FILE))
  const other = await settled(cache.make(1, 'other', FILE))
  await cache.write(ino, 0, Buffer.from('content'))
  await cache.sync()
  cache.opened(ino, false)

  // A batch with new attributes of the one, which waits for the bytes of the other.
  const stage = remote.stage.bind(remote)
  remote.stage = async (...args) => {
    begun.resolve()
    await goes.promise
    return stage(...args)
  }
  await cache.setAttributes(ino, { mtimeNs: 1_000_000_000n })
  await cache.write(other.ino, 0, new Uint8Array(256 * 1024).fill(1))
  const sent = cache.sync()
  await begun.promise
  await cache.refresh('')
  goes.resolve()
  await sent

  await cache.refresh('')
  expect((await cache.lookup(1, 'open'))!.ino).toBe(ino)
  expect((await cache.attributes(ino)).nlink).toBe(1)
})
