import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { Blob } from '../../src/remote/blob.js'
import { fileBlob } from '../../src/remote/file-blob.js'
import { fileStore, fileStoreBeside } from '../../src/remote/file-store.js'
import { fileTree } from '../../src/remote/file-tree.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Store } from '../../src/remote/store.js'
import { treeSuite } from './commits.js'
import { blobKind, flatSuite, storeKind } from './commits-flat.js'

/** More of the same by hand: ROUNDS=100 SEED=1. */
const ROUNDS = Number(process.env.ROUNDS ?? 1)

const mem = (capabilities: Parameters<typeof memTree>[0] = {}) => ({
  fencedDirectories: false,
  open: async () => {
    const tree = memTree(capabilities)
    const keep = () => {
      const snapshot = tree.snapshot()
      return () => tree.restore(snapshot)
    }
    return { tree, keep, dispose: () => tree.close() }
  },
})

treeSuite('mem', { ...mem(), batches: 4 * ROUNDS, operations: 8, share: 1 })
treeSuite('mem without hard links', {
  ...mem({ capabilities: { hardLinks: false, symlinks: false } }),
  batches: 2 * ROUNDS,
  operations: 8,
  share: 0.5,
})
treeSuite('file', {
  batches: 2 * ROUNDS,
  operations: 8,
  share: 0.3,
  fencedDirectories: true,
  open: async () => {
    const directory = await mkdtemp('/dev/shm/pageferry-commits-')
    const tree = await fileTree(directory)
    return {
      tree,
      dispose: async () => {
        await tree.close()
        await rm(directory, { recursive: true })
      },
    }
  },
})

const memFlat = <R extends Store | Blob>(remote: R, hidden: Store, hiddenPrefix: string) => ({
  remote,
  hidden,
  hiddenPrefix,
  dispose: async () => {},
})

flatSuite(
  'mem store',
  storeKind(async () => {
    const store = memStore()
    return memFlat(store as Store, store, '.pageferry/')
  }),
  { rounds: 4 * ROUNDS, share: 1 },
)
flatSuite(
  'mem blob',
  blobKind(async () => memFlat(memBlob({ size: 64 * 1024 }) as Blob, memStore(), '')),
  { rounds: 4 * ROUNDS, share: 1 },
)
flatSuite(
  'file store',
  storeKind(async () => {
    const directory = await mkdtemp('/dev/shm/pageferry-commits-')
    const store = await fileStore(directory)
    return {
      ...memFlat(store, store, '.pageferry/'),
      dispose: async () => {
        await store.close()
        await rm(directory, { recursive: true })
      },
    }
  }),
  { rounds: ROUNDS, share: 0.3 },
)
flatSuite(
  'file blob',
  blobKind(async () => {
    const directory = await mkdtemp('/dev/shm/pageferry-commits-')
    const file = `${directory}/disk.img`
    await writeFile(file, new Uint8Array(64 * 1024))
    const blob = await fileBlob(file)
    const hidden = await fileStoreBeside(file)
    return {
      ...memFlat(blob, hidden, ''),
      dispose: async () => {
        await Promise.all([blob.close(), hidden.close()])
        await rm(directory, { recursive: true })
      },
    }
  }),
  { rounds: ROUNDS, share: 0.3 },
)
