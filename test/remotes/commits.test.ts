import { mkdtemp, rm } from 'node:fs/promises'
import { fileTree } from '../../src/remote/file-tree.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { treeSuite } from './commits.js'

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
