// What `rollforward` can be told, and what it assumes.
import { sleep } from '../base/async.js'
import type { LeaseOptions } from './lease.js'

export interface RollforwardOptions extends LeaseOptions {
  /** For a claim that takes the lease from a live holder, whose last steps cannot all be stopped: it waits for a third of its lease. */
  sleep: (ms: number, signal?: AbortSignal) => Promise<void>
  /** How long a reader that does not hold the lease believes that no batch was committed since. Default 1,000 ms. */
  refreshMs: number
  /** Steps of an application under way at once. Default 16. */
  parallel: number
  /**
   * When the lease is taken from a holder who may still be alive, files that it was changing in place are copied, up to this size,
   * so that a write of it which is still on its way meets nothing that is used. Default 1 GiB.
   */
  copyBytesMax: number
}

const defaults: RollforwardOptions = {
  now: () => performance.now(),
  wallMs: () => Date.now(),
  sleep,
  refreshMs: 1_000,
  parallel: 16,
  copyBytesMax: 1024 ** 3,
}

export const withDefaults = (options: Partial<RollforwardOptions>): RollforwardOptions => ({ ...defaults, ...options })
