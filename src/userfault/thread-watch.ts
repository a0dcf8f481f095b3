// Readiness of a descriptor in a thread that has no loop which libuv lets us use: another thread waits for it, and wakes this one. A thread
// takes tens of milliseconds to begin: one is kept for the next who needs it.
import { closeSync, writeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { type Deferred, deferred } from '../base/async.js'
import { socketPair } from '../linux/netlink.js'
import type { Watch } from './faults.js'

/** For how long after something came this thread looks by itself: whoever faulted once does it again soon. */
const AWAKE_MS = 0.2

/** What the two threads share: whether the other one is to wait, and, at DESCRIPTOR, for what. */
export const Wait = { IDLE: 0, ARMED: 1, ENDED: 2 } as const
export const STATE = 0
export const DESCRIPTOR = 1

/** What the waiting thread is given. */
export interface WaiterData {
  /** Readable when it has to stop waiting. */
  stopFd: number
  shared: Int32Array
}

/** A thread that waits for one descriptor at a time. */
class Waiter {
  readonly #worker: Worker
  readonly #stop: number
  readonly #theirs: number
  readonly #shared = new Int32Array(new SharedArrayBuffer(8))
  readonly #ended: Promise<void>
  #onWoken = () => {}
  /** Somebody waits for it to have stopped waiting. */
  #stopped: Deferred | null = null

  constructor() {
    ;[this.#stop, this.#theirs] = socketPair()
    const entry = import.meta.url.replace(/thread-watch(\.[jt]s)$/, 'waiter-thread$1')
    const workerData: WaiterData = { stopFd: this.#theirs, shared: this.#shared }
    this.#worker = new Worker(new URL(entry), { workerData, execArgv: [], trackUnmanagedFds: false })
    this.#ended = new Promise(resolve => this.#worker.once('exit', () => resolve()))
    waiters.add(this)
    this.#worker.on('message', () => {
      this.#stopped?.resolve()
      this.#stopped = null
      this.#onWoken()
    })
  }

  use(fd: number, onWoken: () => void): void {
    Atomics.store(this.#shared, DESCRIPTOR, fd)
    this.#onWoken = onWoken
  }

  arm(): void {
    if (Atomics.compareExchange(this.#shared, STATE, Wait.IDLE, Wait.ARMED) === Wait.IDLE)
      Atomics.notify(this.#shared, STATE)
  }

  /** It does not wait for that descriptor any more. */
  async stop(): Promise<void> {
    this.#onWoken = () => {}
    if (Atomics.load(this.#shared, STATE) !== Wait.ARMED) return
    this.#stopped = deferred()
    writeSync(this.#stop, new Uint8Array(1))
    await this.#stopped.promise
  }

  /** It ends soon. */
  letGo(): void {
    waiters.delete(this)
    Atomics.store(this.#shared, STATE, Wait.ENDED)
    Atomics.notify(this.#shared, STATE)
    writeSync(this.#stop, new Uint8Array(1))
  }

  async end(): Promise<void> {
    this.letGo()
    await this.#ended
    closeSync(this.#stop)
    closeSync(this.#theirs)
  }
}

const waiters = new Set<Waiter>()
let spare: Waiter | null = null

/** The next who watches need not wait for a thread to begin. */
export function prepareWatch(): void {
  spare ??= new Waiter()
}

/** Nobody in this thread will watch any more. */
export async function endWatches(): Promise<void> {
  await spare?.end()
  spare = null
}

/** This thread fails: it cannot end while another one of its own waits. */
export function abandonWatches(): void {
  for (const waiter of waiters) waiter.letGo()
}

/** A Watch for workers. */
export const watchFromThread: Watch = (fd, onReady) => {
  const waiter = spare ?? new Waiter()
  spare = null
  let isStarted = false
  let activeMs = 0
  const turn = () => {
    if (!isStarted) return
    const nowMs = performance.now()
    if (onReady(false)) activeMs = nowMs
    if (nowMs - activeMs < AWAKE_MS) setImmediate(turn)
    else waiter.arm()
  }
  waiter.use(fd, turn)

  return {
    start() {
      isStarted = true
      waiter.arm()
    },
    stop() {
      isStarted = false
    },
    async close() {
      isStarted = false
      await waiter.stop()
      if (spare) await waiter.end()
      else spare = waiter
    },
  }
}
