// The suites over a server of gRPC, and what may become of it.
import { randomUUID } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe } from '@jest/globals'
import { openBeside, openRemote } from '../../src/open.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Store } from '../../src/remote/store.js'
import { serve } from '../../src/serve-remote.js'
import { treeSuite as committingTreeSuite } from './commits.js'
import { conflictSuite } from './commits-conflicts.js'
import { blobKind, flatSuite } from './commits-flat.js'
import { blobSuite, storeSuite, treeSuite } from './primitives.js'

const folders: string[] = []
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
})
const fresh = () => {
  const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'pageferry-grpc-'))
  folders.push(folder)
  return folder
}

/** A server of something, and how to end both. */
async function serving(what: Parameters<typeof serve>[0], more: { store?: Store } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-'))
  const socket = join(folder, 'socket')
  const server = await serve(what, { listen: `unix:${socket}`, ...more })
  const url = (query = '') => `grpc+unix:///?socket=${socket}${query}`
  const end = async () => {
    await server.close()
    await what.close()
    await more.store?.close()
    rmSync(folder, { recursive: true, force: true })
  }
  return { server, url, end }
}

const treeOf = async () => {
  const folder = fresh()
  const { url, end } = await serving(await openRemote(folder, { shape: 'tree' }))
  const tree = await openRemote(url(), { shape: 'tree' })
  return {
    tree,
    dispose: async () => {
      await tree.close()
      await end()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

describe('gRPC', () => {
  blobSuite('gRPC', async size => {
    const { url, end } = await serving(memBlob({ size }))
    return { remote: await openRemote(url(), { shape: 'blob' }), end }
  })
  treeSuite('gRPC', async () => {
    const { tree, dispose } = await treeOf()
    return { remote: tree, end: dispose }
  })
  treeSuite('gRPC to memory', async () => {
    const { url, end } = await serving(memTree())
    return { remote: await openRemote(url(), { shape: 'tree' }), end }
  })
  storeSuite('gRPC', async () => {
    const folder = fresh()
    const file = join(folder, 'disk')
    const { url, end } = await serving(await openRemote(`file://${file}?size=1M`, { shape: 'blob' }), {
      store: (await openBeside(file))!,
    })
    return { remote: (await openBeside(url()))!, end }
  })

  const flatBlob = async () => {
    const folder = fresh()
    const file = join(folder, `disk-${randomUUID()}`)
    const { url, end } = await serving(await openRemote(`file://${file}?size=64K`, { shape: 'blob' }), {
      store: (await openBeside(file))!,
    })
    const [remote, hidden] = [await openRemote(url(), { shape: 'blob' }), (await openBeside(url()))!]
    const dispose = async () => {
      await Promise.all([remote.close(), hidden.close()])
      await end()
      rmSync(folder, { recursive: true, force: true })
    }
    return { remote, hidden, hiddenPrefix: '', dispose }
  }
  flatSuite('gRPC blob', blobKind(flatBlob), { rounds: 1, share: 0.5 })
  committingTreeSuite('gRPC', { open: treeOf, batches: 2, operations: 8, share: 0.1, fencedDirectories: true })
  conflictSuite('gRPC', treeOf, { share: 0.05, links: true })
})
