// The worker's side of in-worker.ts: opens the remote, makes the calls that are asked for, and cancels those that are called off.

import { parentPort, workerData } from 'node:worker_threads'
import { lasting } from '../base/async.js'
import { giveShared, sharedCopy } from '../base/buffers.js'
import { FerryError } from '../base/errors.js'
import { onLog } from '../base/log.js'
import { describe, type Opener, pack, packError, packLog, type Reply, type Request } from './in-worker-messages.js'
import { methods, type Remote } from './wrap.js'

if (!parentPort) throw new Error('this module is the entry of a worker')
const port = parentPort
const { module, name, args, givesBack } = workerData as Opener

const post = (reply: Reply, transfer: ArrayBuffer[] = []) => port.postMessage(reply, transfer)
onLog(record => post({ log: packLog(record) }))
const running = new Map<number, AbortController>()

async function call(remote: Remote, { id, method, args }: Extract<Request, { method: string }>): Promise<void> {
  const canceller = lasting()
  running.set(id, canceller)
  try {
    const made = Reflect.get(remote, method) as (...all: unknown[]) => Promise<unknown>
    const all = [...args]
    all[methods[remote.shape][method].signalAt] = canceller.signal
    const result = await made.apply(remote, all)
    const isGivenBack = givesBack && method === 'read'
    const { value, transfer } = pack(isGivenBack ? sharedCopy(result as Uint8Array) : result, { copy: false })
    post({ id, result: value }, transfer)
  } catch (error) {
    post({ id, error: packError(error) })
  } finally {
    running.delete(id)
  }
}

async function close(remote: Remote, id: number): Promise<void> {
  for (const canceller of running.values()) canceller.abort(new FerryError('CLOSED'))
  try {
    await remote.close()
    post({ id, result: undefined })
  } catch (error) {
    post({ id, error: packError(error) })
  }
  port.close()
}

try {
  const exported = (await import(module)) as Record<string, (...args: unknown[]) => Promise<Remote>>
  const remote = await exported[name](...args)
  port.on('message', (request: Request) => {
    if ('give' in request) giveShared(request.give)
    else if ('cancel' in request) running.get(request.id)?.abort()
    else if ('close' in request) void close(remote, request.id)
    else void call(request.hidden && remote.shape === 'tree' ? remote.hidden : remote, request)
  })
  post({ opened: describe(remote) })
} catch (error) {
  post({ failed: packError(error) })
}
