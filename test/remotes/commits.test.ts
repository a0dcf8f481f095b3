import { existsSync } from 'node:fs'
import { type FileHandle, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import type { Blob } from '../../src/remote/blob.js'
import { ChunkStore } from '../../src/remote/chunk-store.js'
import { fileBlob } from '../../src/remote/file-blob.js'
import { fileStore, fileStoreBeside } from '../../src/remote/file-store.js'
import { fileTree } from '../../src/remote/file-tree.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memStore } from '../../src/remote/mem-store.js'
import { type MemTree, memTree } from '../../src/remote/mem-tree.js'
import { objectStore } from '../../src/remote/object-store.js'
import type { ObjectsCapabilities } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { rollforwardChunks } from '../../src/remote/rollforward-chunks.js'
import type { Store } from '../../src/remote/store.js'
import type { TreeCapabilities, TreeChange } from '../../src/remote/tree.js'
import { claimOf, treeSuite } from './commits.js'
import { conflictSuite } from './commits-conflicts.js'
import { Crashed, faults } from './commits-faults.js'
import { blobKind, chunkKind, flatSuite, storeKind } from './commits-flat.js'
import { handTree } from './commits-objects.js'
import { powered } from './commits-power.js'

/** More of the same by hand: ROUNDS=100 SEED=1. */
const ROUNDS = Number(process.env.ROUNDS ?? 1)
const BLOB_BYTES = 64 * 1024

const openMem = (capabilities: Partial<TreeCapabilities>) => async () => {
  const tree = memTree({ capabilities })
  const keep = () => {
    const snapshot = tree.snapshot()
    return () => tree.restore(snapshot)
  }
  return { tree, keep, dispose: () => tree.close() }
}

/** Parts are so small that the files of the suite are sent in several. */
const openObjects =
  (capabilities: Partial<ObjectsCapabilities> = {}) =>
  async () => {
    const objects = memObjects({ capabilities: { partBytesMin: 16, ...capabilities } })
    const keep = () => {
      const snapshot = objects.snapshot()
      return () => objects.restore(snapshot)
    }
    return { tree: handTree(objects), keep, dispose: () => objects.close() }
  }

/** In memory too, where that can be had, but by way of the kernel. */
const freshDirectory = () => mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'pageferry-commits-'))
const disposing = (directory: string, ...remotes: { close(): Promise<void> }[]) => ({
  async dispose() {
    await Promise.all(remotes.map(remote => remote.close()))
    await rm(directory, { recursive: true })
  },
})

const openFile = async () => {
  const directory = await freshDirectory()
  const tree = await fileTree(directory)
  return { tree, ...disposing(directory, tree) }
}

treeSuite('mem', {
  open: openMem({}),
  batches: 4 * ROUNDS,
  operations: 8,
  share: 1,
  fencedDirectories: false,
  power: tree => powered(tree as MemTree),
})
treeSuite('mem without links', {
  open: openMem({ hardLinks: false, symlinks: false }),
  batches: 2 * ROUNDS,
  operations: 8,
  share: 0.5,
  fencedDirectories: false,
})
treeSuite('file', { open: openFile, batches: 2 * ROUNDS, operations: 8, share: 0.3, fencedDirectories: true })

treeSuite('objects', {
  open: openObjects(),
  batches: 4 * ROUNDS,
  operations: 8,
  share: 0.5,
  fencedDirectories: false,
})
treeSuite('objects with conditions on puts alone', {
  open: openObjects({ completeIf: false, copyIf: false, removeIfMatch: false }),
  batches: 2 * ROUNDS,
  operations: 8,
  share: 0.3,
  fencedDirectories: false,
})
treeSuite('objects with a condition on absence alone', {
  open: openObjects({ putIfMatch: false, completeIf: false, copyIf: false, removeIfMatch: false }),
  batches: 2 * ROUNDS,
  operations: 8,
  share: 0.3,
  fencedDirectories: false,
})

conflictSuite('mem', openMem({}), { share: 1, links: true })
conflictSuite('mem without links', openMem({ hardLinks: false }), { share: 0.34, links: false })
conflictSuite('objects', openObjects(), { share: 1, links: false })
conflictSuite('file', openFile, { share: 0.15, links: true })

describe('file: a write that is on its way when the lease is lost', () => {
  const size = 3 * 1024 * 1024
  const attributes = { mode: 0o100640, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 5_000_000_000n }
  const patch = (at: number, text: string): TreeChange => ({
    ...{ do: 'patch', path: 'd/f', size, floor: size, attributes, otherwise: 'd/f.ours' },
    content: { inline: [{ at, bytes: Buffer.from(text) }] },
  })

  for (const dead of [false, true])
    test(
      dead ? 'is none if its process is dead: nothing is copied' : 'lands in a file that has no name any more',
      async () => {
        const directory = await freshDirectory()
        const tree = await fileTree(directory)
        try {
          const options = { alive: () => !dead, now: () => 0 }
          const first = rollforward(tree, options)
          await first.claim(claimOf('w'))
          const made: TreeChange[] = [
            { do: 'make', path: 'd', node: { ...attributes, mode: 0o40755, rdev: 0 }, otherwise: 'd.ours' },
            {
              ...{ do: 'put', path: 'd/f', size, attributes, xattrs: new Map([['user.x', Buffer.from('y')]]) },
              ...{ content: { inline: [{ at: size - 3, bytes: Buffer.from('end') }] }, otherwise: 'd/f.ours' },
            },
          ]
          await first.commit({ writer: 'w', number: 1, cutAtMs: 0, changes: made })
          await first.settle()
          await first.commit({ writer: 'w', number: 2, cutAtMs: 0, changes: [patch(10, 'second')] })
          // It dies, or falls asleep, when the file is open and one write is on its way.
          const { fault } = faults.crashing(() => (late ? 0 : Number.POSITIVE_INFINITY))
          let late: FileHandle | null = null
          const gate = new Proxy(fault(tree), {
            get: (target, key) =>
              key !== 'write'
                ? Reflect.get(target, key)
                : async (path: string, ...rest: [number, Uint8Array]) => {
                    late = await open(`${directory}/${path}`, 'r+')
                    return target.write(path, ...rest)
                  },
          })
          const old = rollforward(gate, { ...options, alive: () => false })
          await expect(old.claim(claimOf('w'))).rejects.toThrow(Crashed)

          const before = await tree.stat('d/f')
          const heir = rollforward(tree, { ...options, sleep: async () => {} })
          await heir.claim(claimOf('heir', { pid: 2, takeOver: true }))
          const after = await heir.stat('d/f')
          expect(after).toMatchObject({ size, mode: attributes.mode, mtimeNs: attributes.mtimeNs, nlink: 1 })
          const sameFile = before!.version.split('-')[0] === after!.version.split('-')[0]
          expect(sameFile).toBe(dead)
          expect(Buffer.from((await heir.xattrs('d/f')).get('user.x')!).toString()).toBe('y')
          expect(after!.allocated).toBeLessThan(size / 2)
          await heir.commit({ writer: 'heir', number: 1, cutAtMs: 0, changes: [patch(10, 'newest')] })
          await heir.settle()
          if (!dead) await late!.write(Buffer.from('second'), 0, 6, 10)
          await late!.close()
          const text = async (at: number, length: number) =>
            Buffer.from(await heir.read('d/f', { at, length })).toString()
          expect([await text(9, 8), await text(size - 3, 3)]).toEqual(['\0newest\0', 'end'])
        } finally {
          await tree.close()
          await rm(directory, { recursive: true })
        }
      },
    )
})

const openMemStore = async () => {
  const store: Store = memStore()
  return { remote: store, hidden: store, hiddenPrefix: '.pageferry/', dispose: () => store.close() }
}
const openFileStore = async () => {
  const directory = await freshDirectory()
  const store = await fileStore(directory)
  return { remote: store, hidden: store, hiddenPrefix: '.pageferry/', ...disposing(directory, store) }
}
const openMemBlob = async () => {
  const blob: Blob = memBlob({ size: BLOB_BYTES })
  return { remote: blob, hidden: memStore(), hiddenPrefix: '', dispose: () => blob.close() }
}
const openFileBlob = async () => {
  const directory = await freshDirectory()
  const file = `${directory}/disk.img`
  await writeFile(file, new Uint8Array(BLOB_BYTES))
  const [blob, hidden] = await Promise.all([fileBlob(file), fileStoreBeside(file)])
  return { remote: blob, hidden, hiddenPrefix: '', ...disposing(directory, blob, hidden) }
}

const openChunksIn = async (store: Store, chunkBytes: number) => {
  const chunks = await ChunkStore.open(store, { size: BLOB_BYTES, chunkBytes })
  const dispose = () => store.close()
  return { remote: rollforwardChunks(chunks) as Blob, hidden: store, hiddenPrefix: '.pageferry/', dispose }
}
const openChunks = (chunkBytes: number) => () => openChunksIn(memStore(), chunkBytes)
const openBucketChunks = () => openChunksIn(objectStore(memObjects()), 8192)

flatSuite('mem store', storeKind(openMemStore), { rounds: 4 * ROUNDS, share: 1 })
flatSuite('file store', storeKind(openFileStore), { rounds: ROUNDS, share: 0.3 })
flatSuite('mem blob', blobKind(openMemBlob), { rounds: 4 * ROUNDS, share: 1 })
flatSuite('file blob', blobKind(openFileBlob), { rounds: ROUNDS, share: 0.3 })
for (const chunkBytes of [4096, 8192, 24576])
  flatSuite(`chunks of ${chunkBytes} bytes`, chunkKind(openChunks(chunkBytes), { size: BLOB_BYTES, chunkBytes }), {
    rounds: 3 * ROUNDS,
    share: 0.5,
  })
flatSuite('chunks in a bucket', chunkKind(openBucketChunks, { size: BLOB_BYTES, chunkBytes: 8192 }), {
  rounds: ROUNDS,
  share: 0.3,
})
