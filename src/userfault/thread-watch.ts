// Readiness of a descriptor in a thread that has no loop which libuv lets us use: another thread waits for it, and wakes this one.
import { closeSync, writeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { socketPair } from '../linux/netlink.js'
import type { Watch } from './faults.js'

/** For how long after something came this thread looks by itself: whoever faulted once does it again soon. */
const AWAKE_MS = 0.2

/** What the two threads share: whether the other one is to wait. */
export const Wait = { IDLE: 0, ARMED: 1, ENDED: 2 } as const

/** What the waiting thread is given. */
export interface WaiterData {
  fd: number
  /** Readable when it has to end. */
  endFd: number
  state: Int32Array
}

/** A Watch for workers. */
export const watchFromThread: Watch = (fd, onReady) => {
  const [ours, theirs] = socketPair()
  const state = new Int32Array(new SharedArrayBuffer(4))
  const entry = import.meta.url.replace(/thread-watch(\.[jt]s)$/, 'waiter-thread$1')
  const workerData: WaiterData = { fd, endFd: theirs, state }
  const worker = new Worker(new URL(entry), { workerData, execArgv: [], trackUnmanagedFds: false })
  const ended = new Promise<void>(resolve => worker.once('exit', () => resolve()))
  let isStarted = false
  let activeMs = 0

  const arm = () => {
    if (Atomics.compareExchange(state, 0, Wait.IDLE, Wait.ARMED) === Wait.IDLE) Atomics.notify(state, 0)
  }
  const turn = () => {
    if (!isStarted) return
    const nowMs = performance.now()
    if (onReady(false)) activeMs = nowMs
    if (nowMs - activeMs < AWAKE_MS) setImmediate(turn)
    else arm()
  }
  worker.on('message', turn)

  return {
    start() {
      isStarted = true
      arm()
    },
    stop() {
      isStarted = false
    },
    async close() {
      isStarted = false
      Atomics.store(state, 0, Wait.ENDED)
      Atomics.notify(state, 0)
      writeSync(ours, new Uint8Array(1))
      await ended
      closeSync(ours)
      closeSync(theirs)
    },
  }
}
