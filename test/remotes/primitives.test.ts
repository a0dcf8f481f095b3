// The suites of primitives.ts over what needs no server. REMOTES=file,mem narrows it to these names.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, test } from '@jest/globals'
import { openRemote } from '../../src/open.js'
import type { Blob } from '../../src/remote/blob.js'
import { deadline } from '../../src/remote/deadline.js'
import { faulty } from '../../src/remote/faulty.js'
import { latency } from '../../src/remote/latency.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memStore } from '../../src/remote/mem-store.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { metered } from '../../src/remote/metered.js'
import { retry } from '../../src/remote/retry.js'
import { parseSimulation, simulate } from '../../src/remote/simulate.js'
import type { Store } from '../../src/remote/store.js'
import { throttle } from '../../src/remote/throttle.js'
import type { Tree } from '../../src/remote/tree.js'
import { type Remote, type Shape, type Shapes, wrap } from '../../src/remote/wrap.js'
import { compileOnce } from './compiled.js'
import { blobSuite, type Subject, storeSuite, treeSuite } from './primitives.js'

interface Backend {
  blob: (size: number) => Promise<Subject<Blob>>
  store: () => Promise<Subject<Store>>
  tree: () => Promise<Subject<Tree>>
}

const inDirectory = async <S extends Shape>(shape: S, how: { worker?: boolean; size?: number } = {}) => {
  const directory = await mkdtemp(join(tmpdir(), 'pageferry-'))
  const url = shape === 'blob' ? `file://${directory}/blob?size=${how.size}` : directory
  const remote: Shapes[S] = await openRemote(url, { shape, worker: how.worker })
  return { remote, end: () => rm(directory, { recursive: true, force: true }) }
}

const file = (worker: boolean): Backend => ({
  blob: size => inDirectory('blob', { worker, size }),
  store: () => inDirectory('store', { worker }),
  tree: () => inDirectory('tree', { worker }),
})

const mem: Backend = {
  blob: async size => ({ remote: memBlob({ size }) }),
  store: async () => ({ remote: memStore() }),
  tree: async () => ({ remote: memTree() }),
}

const memInWorker: Backend = {
  blob: async size => ({ remote: await openRemote(`mem:?size=${size}`, { shape: 'blob', worker: true }) }),
  store: async () => ({ remote: await openRemote('mem:', { shape: 'store', worker: true }) }),
  tree: async () => ({ remote: await openRemote('mem:', { shape: 'tree', worker: true }) }),
}

type Wrapper = <R extends Remote>(remote: R) => R

const through = (backend: Backend, wrapper: Wrapper): Backend => {
  const around = async <R extends Remote>(made: Promise<Subject<R>>): Promise<Subject<R>> => {
    const { remote, end } = await made
    return { remote: wrapper(remote), end }
  }
  return {
    blob: size => around(backend.blob(size)),
    store: () => around(backend.store()),
    tree: () => around(backend.tree()),
  }
}

const everything: Wrapper = remote =>
  retry(deadline(metered(latency(throttle(faulty(remote), { upPerSecond: 1e9 }), { rttMs: 0.1 })), { ms: 60_000 }))

const backends: Record<string, Backend> = {
  file: file(false),
  mem,
  'file-in-worker': file(true),
  'mem-in-worker': memInWorker,
  wrap: through(mem, remote => wrap(remote, (_, next) => next())),
  retry: through(mem, remote => retry(remote)),
  deadline: through(mem, remote => deadline(remote, { ms: 60_000 })),
  throttle: through(mem, remote => throttle(remote, { upPerSecond: 1e9, downPerSecond: 1e9 })),
  latency: through(mem, remote => latency(remote, { rttMs: 0.1, jitterMs: 0.1 })),
  faulty: through(mem, remote => faulty(remote, { seed: 1 })),
  metered: through(mem, remote => metered(remote)),
  simulate: through(mem, remote => simulate(remote, parseSimulation('rtt=0ms,rate=1G,errors=0,seed=1'))),
  'everything-file': through(file(false), everything),
}

const wanted = process.env.REMOTES?.split(',').filter(name => Object.hasOwn(backends, name))
if (wanted?.some(name => name.endsWith('worker')) !== false) beforeAll(compileOnce)

const chosen = Object.entries(backends).filter(([name]) => !wanted || wanted.includes(name))
if (chosen.length === 0)
  describe('primitives', () => test.skip(`none of these: REMOTES=${process.env.REMOTES}`, () => {}))
for (const [name, backend] of chosen) {
  blobSuite(name, backend.blob)
  storeSuite(name, backend.store)
  treeSuite(name, backend.tree)
}
