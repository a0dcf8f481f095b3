// The thread of thread-watch.ts that waits.
import { parentPort, workerData } from 'node:worker_threads'
import { waitForAny } from '../linux/poll.js'
import { Wait, type WaiterData } from './thread-watch.js'

const { fd, endFd, state } = workerData as WaiterData
for (;;) {
  Atomics.wait(state, 0, Wait.IDLE)
  if (Atomics.load(state, 0) === Wait.ENDED) break
  waitForAny([fd, endFd])
  if (Atomics.compareExchange(state, 0, Wait.ARMED, Wait.IDLE) === Wait.ENDED) break
  parentPort!.postMessage(null)
}
