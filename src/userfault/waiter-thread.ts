// The thread of thread-watch.ts that waits.
import { parentPort, workerData } from 'node:worker_threads'
import { waitForAny } from '../linux/poll.js'
import { readRaw } from '../linux/preadv2.js'
import { DESCRIPTOR, STATE, Wait, type WaiterData } from './thread-watch.js'

const { stopFd, shared } = workerData as WaiterData
const stops = new Uint8Array(16)
for (;;) {
  Atomics.wait(shared, STATE, Wait.IDLE)
  if (Atomics.load(shared, STATE) === Wait.ENDED) break
  waitForAny([Atomics.load(shared, DESCRIPTOR), stopFd])
  readRaw(stopFd, stops)
  if (Atomics.compareExchange(shared, STATE, Wait.ARMED, Wait.IDLE) === Wait.ENDED) break
  parentPort!.postMessage(null)
}
