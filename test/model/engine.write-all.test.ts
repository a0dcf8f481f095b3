// Several writes as one: wherever the process is killed or the power goes, all of them are there or none.
import { rmSync } from 'node:fs'
import { expect, test } from '@jest/globals'
import { openTreeCache } from '../../src/cache/engine.js'
import { RegionCache } from '../../src/cache/region.js'
import { BLOB_FILE, blobTree } from '../../src/remote/blob-tree.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { LossyDisk } from '../fixtures/lossy-storage.js'
import { engineOptions, temporaryDirectory } from './engine-harness.js'

const PAGE = 4096
const SIZE = 4 * 2 ** 20 + 100
/** Scattered pages and whole chunks, more than fit into one record; and the short last page. */
const places = [
  ...Array.from({ length: 6 }, (_, n) => [n * 2 * PAGE, PAGE]),
  [2 * 2 ** 20, 1280 * 1024],
  [4 * 2 ** 20, 100],
] as [number, number][]

test('writes that are one are all there, or none of them', async () => {
  const outcomes = new Set<string>()
  for (let operation = 0, died = true; died; operation++) {
    for (const how of ['kill', 'power'] as const) {
      const disk = new LossyDisk({ unitBytes: 512 })
      const cacheDir = temporaryDirectory()
      const remote = memBlob({ size: SIZE })
      const open = async () => {
        const tree = blobTree(rollforward(remote, { commitStore: memStore(), alive: () => false }))
        const cache = await openTreeCache(tree, engineOptions(cacheDir, { storage: disk.storage, isRegion: true }))
        return RegionCache.open(cache, BLOB_FILE, { readOnly: false })
      }
      const region = await open()
      disk.killAfter(operation, 0.5)
      try {
        await region.writeAll(places.map(([at, length]) => ({ at, from: new Uint8Array(length).fill(7) })))
        await region.flush()
      } catch (error) {
        if (!disk.isDead) throw error
      }
      died = disk.isDead
      await region.close().catch(() => {})
      if (how === 'power') disk.crash(operation)
      else disk.restart()
      const again = await open()
      const into = new Uint8Array(SIZE)
      await again.read(0, into)
      const bytes = places.flatMap(([at, length]) => [...into.subarray(at, at + length)])
      const isAll = bytes.every(byte => byte === 7)
      const isNone = into.every(byte => byte === 0)
      outcomes.add(isAll ? 'all' : isNone ? 'none' : `some, killed before operation ${operation} (${how})`)
      await again.close()
      rmSync(cacheDir, { recursive: true })
    }
  }
  expect([...outcomes].sort()).toEqual(['all', 'none'])
}, 120_000)
