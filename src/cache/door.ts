// What a front door sees of a region.
import type { Maybe } from './filesystem.js'

/** A run of bytes and whether it is known to read as zeros. */
export interface RegionExtent {
  length: number
  zeros: boolean
}

/**
 * One run of bytes, answered at once when it can be. Rejects with a FerryError: INVALID beyond the end, READ_ONLY, CLOSED,
 * NO_SPACE, and what the remote says of bytes that are not here.
 */
export interface RegionDoor {
  /** In bytes. */
  readonly size: number
  readonly readOnly: boolean
  /** What it stands on keeps its size: `resize` is UNSUPPORTED. Default false. */
  readonly fixedSize?: boolean
  /** Fills `into` with the bytes from `at` on. */
  read(at: number, into: Uint8Array): Maybe<void>
  /** `from` is not used after the call has returned or its promise has resolved. */
  write(at: number, from: Uint8Array): Maybe<void>
  /** These bytes are zeros from now on. */
  trim(at: number, length: number): Maybe<void>
  /** Every earlier write is durable as `fsync` says, and never less than locally. */
  flush(): Maybe<void>
  /** They are here when it resolves. */
  prefetch(at: number, length: number): Maybe<void>
  /** From `at` on, neighbours differ; it may end before `length`, but not begin elsewhere, and is never empty. */
  extents(at: number, length: number, countMax: number): RegionExtent[]
  /**
   * Cut, or extended with zeros, to so many bytes. Absent: it has one size. UNSUPPORTED: what it stands on has; BUSY: a device or memory has
   * the size that it has now.
   */
  resize?(size: number): Maybe<void>
}
