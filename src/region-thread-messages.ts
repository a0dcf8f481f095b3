// What a region in a thread of its own, and those who have it, say to each other.
import type { MessagePort } from 'node:worker_threads'

import type { LogRecord } from './base/log.js'
import type { Progress } from './cache/tree-cache.js'
import type { RegionOrigin } from './open-region.js'
import type { ErrorMessage } from './remote/in-worker-messages.js'

/** Calls by name: those of a Region, and of the memory that it is mapped as. */
export type RegionRequest =
  | { id: number; method: string; args: unknown[]; isSync?: true }
  | { id: number; cancel: true }

export type RegionReply =
  | { opened: { size: number; readOnly: boolean; fixedSize: boolean } }
  | { failed: ErrorMessage }
  | { log: LogRecord }
  | { id: number; result: unknown }
  | { id: number; error: ErrorMessage }
  | { id: number; progress: Progress }

/** What mapping the region gives. */
export interface Mapped {
  /** What the thread calls it. */
  memory: number
  address: number
  /** Whole pages. */
  length: number
  /** What has to be closed with it, should the thread not be there any more; null: nothing. */
  descriptor: number | null
}

export interface RegionThreadData {
  origin: RegionOrigin
  /** Counts answers to calls that are waited for without a promise. */
  answered: Int32Array
  /** Those answers come here. */
  port: MessagePort
}
