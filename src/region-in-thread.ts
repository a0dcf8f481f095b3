// A region whose cache is in a thread of its own, as those who have it see it.
import { MessageChannel, type MessagePort, receiveMessageOnPort, type Worker } from 'node:worker_threads'
import { abortReason, type Deferred, deferred, Once, orAborted } from './base/async.js'
import { FerryError } from './base/errors.js'
import { logger, relay } from './base/log.js'
import type { RegionExtent } from './cache/door.js'
import type { Progress } from './cache/tree-cache.js'
import type { RegionOrigin, RegionPlace, RegionStatus, Watching } from './open-region.js'
import type { RegionReply, RegionRequest, RegionThreadData } from './region-thread-messages.js'
import { startWorker } from './remote/in-worker.js'
import { unpackError } from './remote/in-worker-messages.js'

const log = logger('region')

/** For an answer that this thread waits for. */
const ANSWER_MS_MAX = 30_000

type Answer = Extract<RegionReply, { result: unknown } | { error: unknown }>

interface Pending {
  done: Deferred<unknown>
  onProgress?: (progress: Progress) => void
  cleanUp: () => void
}

/** Closing it ends the thread. */
export class RegionInThread implements RegionPlace {
  size = 0
  readOnly = true
  fixedSize = false
  readonly #worker: Worker
  readonly #port: MessagePort
  readonly #answered = new Int32Array(new SharedArrayBuffer(4))
  readonly #pending = new Map<number, Pending>()
  readonly #opened = deferred()
  readonly #onFailure = new Set<() => void>()
  #nextId = 1
  #dead: FerryError | undefined
  #last: RegionStatus | undefined
  readonly #closing = new Once(() => this.#close())

  private constructor(origin: RegionOrigin) {
    const { port1, port2 } = new MessageChannel()
    this.#port = port1
    const workerData: RegionThreadData = { origin, answered: this.#answered, port: port2 }
    const entry = import.meta.url.replace(/region-in-thread(\.[jt]s)$/, 'region-thread$1')
    this.#worker = startWorker(entry, { workerData, transferList: [port2], trackUnmanagedFds: false })
    this.#worker.on('message', (reply: RegionReply) => this.#heard(reply))
    this.#worker.on('error', error => {
      log.error('the thread of a region failed', { error })
      this.#died(new FerryError('IO', { cause: error, detail: `its thread failed: ${error}` }))
    })
    this.#worker.on('exit', () => this.#died(new FerryError(this.#closing.isBegun ? 'CLOSED' : 'IO')))
  }

  /** @throws what `openRegion` throws */
  static async open(origin: RegionOrigin, signal?: AbortSignal): Promise<RegionInThread> {
    const region = new RegionInThread(origin)
    try {
      await orAborted(region.#opened.promise, signal)
    } catch (error) {
      await region.#worker.terminate()
      throw error
    }
    return region
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    into.set((await this.call('read', [at, into.byteLength])) as Uint8Array)
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    await this.call('write', [at, from])
  }

  async writeAll(writes: readonly { at: number; from: Uint8Array }[]): Promise<void> {
    await this.call('writeAll', [writes])
  }

  async trim(at: number, length: number): Promise<void> {
    await this.call('trim', [at, length])
  }

  async resize(size: number): Promise<void> {
    this.size = (await this.call('resize', [size])) as number
  }

  async flush(): Promise<void> {
    await this.call('flush', [])
  }

  async prefetch(at: number, length: number): Promise<void> {
    await this.call('prefetch', [at, length])
  }

  async sync(options: Watching = {}): Promise<void> {
    await this.call('sync', [], options)
  }

  async pull(options: Watching = {}): Promise<void> {
    await this.call('pull', [], options)
  }

  async refresh(options: Watching = {}): Promise<void> {
    await this.call('refresh', [], options)
  }

  extents(at: number, length: number, countMax: number): RegionExtent[] {
    return this.callNow('extents', [at, length, countMax]) as RegionExtent[]
  }

  presence(countMax: number): [from: number, to: number][] {
    return this.callNow('presence', [countMax]) as [number, number][]
  }

  status(): RegionStatus {
    return this.#last ?? (this.callNow('status', []) as RegionStatus)
  }

  close(): Promise<void> {
    return this.#closing.run()
  }

  async #close(): Promise<void> {
    const last = this.status()
    await this.call('close', [])
    this.#last = last
    await this.#worker.terminate()
  }

  /** By name: what region-thread.ts has. */
  async call(method: string, args: unknown[], { onProgress, signal }: Watching = {}): Promise<unknown> {
    if (signal?.aborted) throw abortReason(signal)
    if (this.#dead) throw this.#dead
    const id = this.#nextId++
    const done = deferred<unknown>()
    const abort = () => {
      this.#post({ id, cancel: true })
      this.#settle(id)?.reject(abortReason(signal!))
    }
    signal?.addEventListener('abort', abort, { once: true })
    this.#pending.set(id, { done, onProgress, cleanUp: () => signal?.removeEventListener('abort', abort) })
    this.#post({ id, method, args })
    return done.promise
  }

  /** Called once, should the thread end by itself. @returns a function that takes it back */
  onFailure(call: () => void): () => void {
    this.#onFailure.add(call)
    return () => void this.#onFailure.delete(call)
  }

  /** The same without a promise: this thread stands still until it is answered. */
  callNow(method: string, args: unknown[]): unknown {
    if (this.#dead) throw this.#dead
    const id = this.#nextId++
    const deadlineMs = performance.now() + ANSWER_MS_MAX
    this.#post({ id, method, args, isSync: true })
    for (;;) {
      const answered = Atomics.load(this.#answered, 0)
      const reply = receiveMessageOnPort(this.#port)?.message as Answer | undefined
      // Of another id: it came when nobody waited for it any more.
      if (reply?.id === id) {
        if ('error' in reply) throw unpackError(reply.error)
        return reply.result
      }
      if (reply) continue
      const restMs = deadlineMs - performance.now()
      if (restMs <= 0 || Atomics.wait(this.#answered, 0, answered, restMs) === 'timed-out')
        throw new FerryError('DEADLINE', { detail: `${method}: the thread of the region does not answer` })
    }
  }

  #post(request: RegionRequest): void {
    this.#worker.postMessage(request)
  }

  #heard(reply: RegionReply): void {
    if ('log' in reply) relay(reply.log)
    else if ('opened' in reply) {
      Object.assign(this, reply.opened)
      this.#opened.resolve()
    } else if ('failed' in reply) {
      this.#opened.reject(unpackError(reply.failed))
    } else if ('progress' in reply) this.#pending.get(reply.id)?.onProgress?.(reply.progress)
    // Not there any more: it was aborted.
    else if ('error' in reply) this.#settle(reply.id)?.reject(unpackError(reply.error))
    else this.#settle(reply.id)?.resolve(reply.result)
  }

  #settle(id: number): Deferred<unknown> | undefined {
    const pending = this.#pending.get(id)
    this.#pending.delete(id)
    pending?.cleanUp()
    return pending?.done
  }

  #died(error: FerryError): void {
    this.#dead ??= error
    this.#port.close()
    this.#opened.reject(this.#dead)
    for (const id of [...this.#pending.keys()]) this.#settle(id)?.reject(this.#dead)
    if (!this.#closing.isBegun) for (const call of this.#onFailure) call()
    this.#onFailure.clear()
  }
}
