// Named objects: the second shape a remote can have, and the one in which intents and leases are kept.

/** What an object is now. `version` is opaque; equal versions mean equal bytes. */
export interface ObjectInfo {
  name: string
  size: number
  version: string
}

export interface PutCondition {
  /** Only if no object of this name exists; else CONFLICT. Atomic: of many racing puts exactly one wins. */
  ifAbsent?: boolean
  /** Only if the object's version is still this one; else CONFLICT. Optional capability `conditionalReplace`. */
  ifVersion?: string
}

export interface StoreCapabilities {
  /** `put` with `ifAbsent` is atomic. Without it there is no lease, and `status` says so. */
  conditionalCreate: boolean
  /** `put` and `remove` with `ifVersion` are atomic; where false the check is made just before, and the race remains. */
  conditionalReplace: boolean
  /** Bytes of the longest name, encoded as latin1 (one char is one byte). */
  nameBytesMax: number
  objectBytesMax: number
}

/**
 * Named, replaceable objects. Names are '/'-separated strings in which each char is one byte (latin1); INVALID as for paths
 * (tree.ts), and of 'a' and 'a/b' a store may be able to keep only one. Bytes are owned as tree.ts says.
 * Arguments can be cloned to another thread, but for `signal` (which `inWorker` turns into a message).
 * Every method rejects with a FerryError; NOT_FOUND only when the object is known not to exist.
 */
export interface Store {
  readonly shape: 'store'
  /** Without credentials: may be printed. */
  readonly url: string
  readonly capabilities: StoreCapabilities
  /** The whole object, or `length` bytes from `at`; fewer at its end. With `version`: STALE if it is another one now. */
  get(name: string, range?: { at: number; length: number; version?: string }, signal?: AbortSignal): Promise<Uint8Array>
  /** null: known not to exist. */
  head(name: string, signal?: AbortSignal): Promise<ObjectInfo | null>
  /** Durable when it resolves; never half visible. Resolves with the new version. */
  put(name: string, bytes: Uint8Array, condition?: PutCondition, signal?: AbortSignal): Promise<string>
  /** Removing what is not there is fine, whatever version was expected; CONFLICT if another version is there. */
  remove(name: string, condition?: { ifVersion?: string }, signal?: AbortSignal): Promise<void>
  /** Where it costs one request: up to 1,000 names. */
  removeAll?(names: string[], signal?: AbortSignal): Promise<void>
  /** Names that start with `prefix`, in byte order, at most 1,000 a page; go on with `after` = the last name. */
  list(prefix: string, after?: string, signal?: AbortSignal): Promise<ObjectInfo[]>
  close(): Promise<void>
}

/** The net change to a store in one batch: the last word on each name. */
export type StoreChange =
  | { do: 'put'; name: string; bytes: Uint8Array }
  | { do: 'put'; name: string; staged: string; size: number }
  | { do: 'remove'; name: string }
