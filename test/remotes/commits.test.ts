import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { Blob } from '../../src/remote/blob.js'
import { fileBlob } from '../../src/remote/file-blob.js'
import { fileStore, fileStoreBeside } from '../../src/remote/file-store.js'
import { fileTree } from '../../src/remote/file-tree.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { type MemTree, memTree } from '../../src/remote/mem-tree.js'
import type { Store } from '../../src/remote/store.js'
import type { TreeCapabilities } from '../../src/remote/tree.js'
import { treeSuite } from './commits.js'
import { conflictSuite } from './commits-conflicts.js'
import { blobKind, flatSuite, storeKind } from './commits-flat.js'
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

/** In memory too, but by way of the kernel. */
const freshDirectory = () => mkdtemp('/dev/shm/pageferry-commits-')
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

conflictSuite('mem', openMem({}), { share: 1, links: true })
conflictSuite('mem without links', openMem({ hardLinks: false }), { share: 0.34, links: false })
conflictSuite('file', openFile, { share: 0.15, links: true })

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

flatSuite('mem store', storeKind(openMemStore), { rounds: 4 * ROUNDS, share: 1 })
flatSuite('file store', storeKind(openFileStore), { rounds: ROUNDS, share: 0.3 })
flatSuite('mem blob', blobKind(openMemBlob), { rounds: 4 * ROUNDS, share: 1 })
flatSuite('file blob', blobKind(openFileBlob), { rounds: ROUNDS, share: 0.3 })
