// The thread of a region that is mapped as memory: the engine, the remote, and the faults. It waits for nobody who could touch the memory.
import { writeSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { lasting } from './base/async.js'
import { FerryError } from './base/errors.js'
import { onLog } from './base/log.js'
import { inOrder } from './cache/pull-order.js'
import { openRegion, type Region } from './open-region.js'
import { type MapSettings, regionSettings } from './options.js'
import type { Mapped, RegionReply, RegionRequest, RegionThreadData } from './region-thread-messages.js'
import { packError, packLog } from './remote/in-worker-messages.js'
import { type MappedMemory, Memory, PREFETCHED_BYTES } from './userfault/memory.js'
import { PolledMemory } from './userfault/polled.js'
import { abandonWatches, endWatches, prepareWatch } from './userfault/thread-watch.js'

if (!parentPort) throw new Error('this module is the entry of a worker')
const port = parentPort
const { origin, answered, port: syncPort } = workerData as RegionThreadData

const post = (reply: RegionReply, transfer: ArrayBuffer[] = []) => port.postMessage(reply, transfer)
onLog(record => post({ log: packLog(record) }))

const memories = new Map<number, MappedMemory>()
const running = new Map<number, AbortController>()

const memoryOf = (id: unknown): MappedMemory => {
  const memory = memories.get(id as number)
  if (!memory) throw new FerryError('CLOSED')
  return memory
}

/** By name; `id` and `signal` are the call's. */
const calls = (region: Region): Record<string, (id: number, args: unknown[], signal: AbortSignal) => unknown> => ({
  async read(_, [at, length]) {
    const into = new Uint8Array(length as number)
    await region.read(at as number, into)
    return into
  },
  write: (_, [at, from]) => region.write(at as number, from as Uint8Array),
  writeAll: (_, [writes]) => region.writeAll(writes as { at: number; from: Uint8Array }[]),
  trim: (_, [at, length]) => region.trim(at as number, length as number),
  async resize(_, [size]) {
    if (memories.size > 0) throw new FerryError('BUSY', { detail: 'the region is mapped as memory' })
    await region.resize(size as number)
    return region.size
  },
  flush: () => region.flush(),
  prefetch: (_, [at, length]) => region.prefetch(at as number, length as number),
  sync: (id, _, signal) => region.sync({ signal, onProgress: progress => post({ id, progress }) }),
  pull: (id, _, signal) => region.pull({ signal, onProgress: progress => post({ id, progress }) }),
  refresh: (_, _args, signal) => region.refresh({ signal }),
  extents: (_, [at, length, countMax]) => region.extents(at as number, length as number, countMax as number),
  presence: (_, [countMax]) => region.presence(countMax as number),
  status: () => region.status(),
  async close() {
    for (const [id, memory] of memories) {
      await memory.close()
      memories.delete(id)
    }
    await region.close()
    await endWatches()
  },
  async map(id, [given]) {
    const { detect, ...settings } = given as MapSettings
    const { pull, pullOrder } = regionSettings(origin.options)
    const isAhead = settings.prefetch ?? pull === 'all'
    const prefetch = isAhead ? inOrder(pullOrder, region.size, PREFETCHED_BYTES) : null
    const memory =
      detect === 'faults'
        ? new Memory(region, { ...settings, prefetch })
        : await PolledMemory.open(region, { directory: region.status().cacheDir, writeBack: settings.writeBack })
    memories.set(id, memory)
    const { address, length, descriptor } = memory
    return { memory: id, address, length, descriptor } satisfies Mapped
  },
  push: (_, [memory]) => memoryOf(memory).push(),
  prefetchMemory: (_, [memory, at, length]) => memoryOf(memory).prefetch(at as number, length as number),
  async refreshMemory(_, [memory, at, length], signal) {
    await memoryOf(memory).push()
    await region.refresh({ signal })
    await memoryOf(memory).refresh(at as number, length as number)
  },
  memoryStatus: (_, [memory]) => memoryOf(memory).status(),
  async unmap(_, [memory]) {
    await memoryOf(memory).close()
    memories.delete(memory as number)
  },
})

async function call(table: ReturnType<typeof calls>, { id, method, args }: Extract<RegionRequest, { method: string }>) {
  const canceller = lasting()
  running.set(id, canceller)
  try {
    const result = await table[method](id, args, canceller.signal)
    post({ id, result }, result instanceof Uint8Array ? [result.buffer as ArrayBuffer] : [])
  } catch (error) {
    post({ id, error: packError(error) })
  } finally {
    running.delete(id)
  }
}

/** Who asks stands still until it is answered. */
function callNow(table: ReturnType<typeof calls>, { id, method, args }: Extract<RegionRequest, { method: string }>) {
  let reply: RegionReply
  try {
    reply = { id, result: table[method](id, args, new AbortController().signal) }
  } catch (error) {
    reply = { id, error: packError(error) }
  }
  syncPort.postMessage(reply)
  Atomics.add(answered, 0, 1)
  Atomics.notify(answered, 0)
}

// The thread that would be told may be the one that waits for bytes.
process.on('uncaughtExceptionMonitor', error => {
  if (memories.size > 0) writeSync(2, `pageferry: a region's thread failed, and its memory is gone: ${error.stack}\n`)
  for (const memory of memories.values()) memory.abandon()
  abandonWatches()
})

prepareWatch()
try {
  const region = await openRegion(origin.url, origin.options)
  const table = calls(region)
  port.on('message', (request: RegionRequest) => {
    if ('cancel' in request) running.get(request.id)?.abort(new FerryError('ABORTED'))
    else if (request.isSync) callNow(table, request)
    else void call(table, request)
  })
  post({ opened: { size: region.size, readOnly: region.readOnly, fixedSize: region.fixedSize } })
} catch (error) {
  await endWatches()
  post({ failed: packError(error) })
}
