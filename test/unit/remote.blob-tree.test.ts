// What the engine asks of a blob, in requests that the blob takes.
import { expect, test } from '@jest/globals'
import { BLOB_FILE, blobTree } from '../../src/remote/blob-tree.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { rollforward } from '../../src/remote/rollforward.js'

const SIZE = 10_000
const REQUEST_BYTES_MAX = 1000

/** `failsAt`: a read of that place fails. */
function limited({ failsAt }: { failsAt?: number } = {}) {
  const inner = memBlob({ size: SIZE })
  const asked: [at: number, length: number][] = []
  const blob = {
    ...inner,
    size: SIZE,
    capabilities: { ...inner.capabilities, requestBytesMax: REQUEST_BYTES_MAX },
    read: async (at: number, length: number, signal?: AbortSignal) => {
      asked.push([at, length])
      if (at === failsAt) throw new Error('failed')
      return inner.read(at, length, signal)
    },
  }
  return { inner, asked, tree: blobTree(rollforward(blob, { commitStore: memStore() })) }
}

test('a read of more than one request is made in several, and one that needs one is one', async () => {
  const { inner, asked, tree } = limited()
  const bytes = Uint8Array.from({ length: SIZE }, (_, n) => n % 251)
  await inner.write(0, bytes)
  expect(await tree.read(BLOB_FILE, { at: 500, length: 2500 })).toEqual(bytes.subarray(500, 3000))
  expect(asked.splice(0)).toEqual([500, 1500, 2500].map(at => [at, Math.min(1000, 3000 - at)]))
  expect(await tree.read(BLOB_FILE, { at: 0, length: 1000 })).toEqual(bytes.subarray(0, 1000))
  expect(asked.splice(0)).toEqual([[0, 1000]])
  // Only as far as it goes.
  expect(await tree.read(BLOB_FILE, { at: 8500, length: 9999 })).toEqual(bytes.subarray(8500))
  expect(await tree.read(BLOB_FILE, { at: SIZE, length: 9999 })).toEqual(new Uint8Array(0))
})

test('it fails with the first of them that fails', async () => {
  const { tree } = limited({ failsAt: 1500 })
  await expect(tree.read(BLOB_FILE, { at: 500, length: 2500 })).rejects.toThrow('failed')
})
