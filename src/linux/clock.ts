// The clock by which the kernel stamps files.

import { checked, self } from './libc.js'

const clockCall = self.func('clock_gettime', 'int', ['int', 'void *']) as (clock: number, time: BigInt64Array) => number

const CLOCK_REALTIME_COARSE = 5
const time = new BigInt64Array(2)

/**
 * The time of the last tick, in ns since the epoch: exactly what the kernel would write into an inode now. Where the kernel keeps the
 * times of files itself (the writeback cache), a file stamped with it is not stamped anew, and sent to us again, by the first write.
 */
export function coarseNowNs(): bigint {
  checked(clockCall(CLOCK_REALTIME_COARSE, time), 'clock_gettime')
  return time[0] * 1_000_000_000n + time[1]
}
