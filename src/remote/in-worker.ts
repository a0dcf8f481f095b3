// A remote in a thread of its own, so that what it computes (checksums, TLS, compression) or waits for does not hold up this one.
import { types } from 'node:util'
import { Worker, type WorkerOptions } from 'node:worker_threads'
import { abortReason, type Deferred, deferred } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { logger, relay } from '../base/log.js'
import { type Described, type Opener, pack, type Reply, type Request, unpackError } from './in-worker-messages.js'
import { methods, type Remote, type Shape, type Shapes } from './wrap.js'

const log = logger('remote')

export type { Opener } from './in-worker-messages.js'

/**
 * The remote that `opener` makes in a new worker. Bytes that are given to it are copied once, bytes that come from it are handed
 * over without a copy (or copied over there, where they are given back: `givesBack`); an aborted call rejects at once, and is
 * cancelled over there. Errors are those of the remote; UNREACHABLE for every call if the worker dies. Snapshots and whatever else
 * is not of the interface stays behind. (What is named `mem:NAME` there is named so in that thread only.) What it logs is logged here.
 */
export async function inWorker<S extends Shape>(shape: S, opener: Opener): Promise<Shapes[S]> {
  const worker = startWorker(import.meta.url.replace(/in-worker(\.[jt]s)$/, 'in-worker-thread$1'), {
    workerData: { ...opener, module: compiled(new URL(opener.module)).href },
    name: opener.name,
  })
  const line = new Line(worker, opener.givesBack)
  const described = await line.opened
  if (described.shape !== shape) throw new TypeError(`${opener.name} made a ${described.shape}, not a ${shape}`)
  return line.remote(described) as Shapes[S]
}

/** A thread of this module, a file: URL, with this process's environment. */
export const startWorker = (module: string, options: WorkerOptions): Worker =>
  new Worker(compiled(new URL(module)), {
    ...options,
    env: process.env,
    // It says how what is behind `-e` is to be read, and is refused for a file; flags of V8 are refused where any are given.
    ...(process.execArgv.some(each => each.startsWith('--input-type')) && { execArgv: [] }),
  })

/** Workers load JavaScript: for a source file (when tests run from the sources) it is the one that the compiler made of it. */
const compiled = (module: URL): URL =>
  new URL(module.href.replace(/\/((?:src|test)\/(?:[^/]+\/)*[^/]+)\.ts$/, '/dist/$1.js'))

interface Pending {
  done: Deferred<unknown>
  cleanUp: () => void
}

/** The calls that are on their way to one worker. */
class Line {
  readonly #opened = deferred<Described>()
  readonly #pending = new Map<number, Pending>()
  #nextId = 1
  #dead: FerryError | undefined
  #closing: Promise<void> | undefined

  constructor(
    readonly worker: Worker,
    readonly givesBack = false,
  ) {
    worker.on('message', (reply: Reply) => this.#heard(reply))
    worker.on('error', error => {
      log.error('the thread of a remote failed', { error })
      this.#died(new FerryError('UNREACHABLE', { cause: error, detail: `its worker failed: ${error}` }))
    })
    worker.on('exit', () =>
      this.#died(
        this.#closing ? new FerryError('CLOSED') : new FerryError('UNREACHABLE', { detail: 'its worker has ended' }),
      ),
    )
  }

  get opened(): Promise<Described> {
    return this.#opened.promise
  }

  remote(described: Described, hidden = false): Remote {
    const calls = described.methods.map(method => [
      method,
      (...all: unknown[]) => {
        const { signalAt } = methods[described.shape][method]
        const signal = all[signalAt] as AbortSignal | undefined
        return this.#call({ hidden, method, args: all.slice(0, signalAt) }, signal)
      },
    ])
    const { methods: _, ...properties } = described
    const { resize } = Object.fromEntries(calls)
    const remote = {
      ...properties,
      ...Object.fromEntries(calls),
      ...(this.givesBack && { giveBack: (bytes: Uint8Array) => this.#giveBack(bytes) }),
      ...(described.hidden && { hidden: this.remote(described.hidden, true) }),
      ...(resize && {
        async resize(size: number, signal?: AbortSignal) {
          await resize(size, signal)
          remote.size = size
        },
      }),
      close: hidden ? async () => {} : () => (this.#closing ??= this.#close()),
    }
    return remote
  }

  async #call(
    request: { hidden: boolean; method: string; args: unknown[] },
    signal: AbortSignal | undefined,
  ): Promise<unknown> {
    if (signal?.aborted) throw abortReason(signal)
    if (this.#closing) throw new FerryError('CLOSED')
    const { value, transfer } = pack(request.args, { copy: true })
    return this.#ask({ ...request, args: value as unknown[] }, transfer, signal)
  }

  #ask(
    request: { hidden: boolean; method: string; args: unknown[] } | { close: true },
    transfer: ArrayBuffer[],
    signal?: AbortSignal,
  ): Promise<unknown> {
    if (this.#dead) throw this.#dead
    const id = this.#nextId++
    const done = deferred<unknown>()
    const abort = () => {
      this.#post({ id, cancel: true })
      this.#settle(id)?.reject(abortReason(signal!))
    }
    signal?.addEventListener('abort', abort, { once: true })
    this.#pending.set(id, { done, cleanUp: () => signal?.removeEventListener('abort', abort) })
    // A worker with nothing to do does not keep the process alive.
    if (this.#pending.size === 1) this.worker.ref()
    this.#post({ ...request, id }, transfer)
    return done.promise
  }

  #giveBack({ buffer }: Uint8Array): void {
    if (!this.#dead && types.isSharedArrayBuffer(buffer)) this.#post({ give: buffer })
  }

  #post(request: Request, transfer: ArrayBuffer[] = []): void {
    this.worker.postMessage(request, transfer)
  }

  #heard(reply: Reply): void {
    if ('log' in reply) relay(reply.log)
    else if ('opened' in reply) {
      this.#opened.resolve(reply.opened)
      this.worker.unref()
    } else if ('failed' in reply) this.#opened.reject(unpackError(reply.failed))
    // Not there any more: it was aborted.
    else if ('error' in reply) this.#settle(reply.id)?.reject(unpackError(reply.error))
    else this.#settle(reply.id)?.resolve(reply.result)
  }

  #settle(id: number): Deferred<unknown> | undefined {
    const pending = this.#pending.get(id)
    this.#pending.delete(id)
    pending?.cleanUp()
    if (pending && this.#pending.size === 0) this.worker.unref()
    return pending?.done
  }

  #died(error: FerryError): void {
    this.#dead ??= error
    this.#opened.reject(this.#dead)
    for (const id of [...this.#pending.keys()]) this.#settle(id)?.reject(this.#dead)
  }

  async #close(): Promise<void> {
    if (this.#dead) return
    try {
      await this.#ask({ close: true }, [])
    } finally {
      this.#died(new FerryError('CLOSED'))
      await this.worker.terminate()
    }
  }
}
