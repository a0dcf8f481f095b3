// The engine behind a mounted tree, as its owner (the daemon, the library) sees it. `openTreeCache` makes one.
import type { Claim, Commits } from '../remote/commits.js'
import type { Tree, TreeChange } from '../remote/tree.js'
import type { Write } from './content.js'
import type { RegionExtent } from './door.js'
import type { FileSystem, Ino, Maybe } from './filesystem.js'
import type { PullOrder } from './pull-order.js'
import type { Storage } from './storage.js'

/** Validated at the edge (zod, in `src/options.ts`); the engine takes them as they are. */
export interface TreeCacheOptions {
  /** Directory of the local database, journal and data file; exists, is ours (0700) and is locked by this process. */
  cacheDir: string
  storage: Storage
  /** Who this is, for the remote's lease; `writer` is stable for the cache directory. */
  identity: Omit<Claim, 'leaseMs' | 'takeOver' | 'shared'>
  readOnly: boolean
  /** Of one file, which whoever has it open sees change when it is looked at again. */
  isRegion: boolean
  takeOver: boolean
  /** The lease is held for one batch at a time: see Claim. */
  shared: boolean
  /** Clean and dirty bytes on the local disk, at most. Default 10 GiB. */
  cacheBytesMax: number
  /** Kept free on the cache's disk. Default 1 GiB, at most a tenth of the disk. */
  cacheBytesFreeMin: number
  /** Buffers of fetches and pushes in flight, at most. Default 256 MiB. */
  memoryBytesMax: number
  /** One request to the remote, at most. Default 4 MiB, at most 8 MiB. */
  fetchBytesMax: number
  fsync: 'local' | 'remote'
  /** A cut is due this long after the first change. Default 2,000 ms. */
  flushIntervalMs: number
  /** A file that is only appended to stays as the last batch had it for so long at most, while it is open. Default 30,000 ms. */
  delayMsMax: number
  /** Bytes not yet at the remote, at most; then writers wait. Default 1 GiB. */
  dirtyBytesMax: number
  /** Changes not yet at the remote, at most. Default 1,000,000. */
  dirtyOperationsMax: number
  whenFull: 'wait' | 'error'
  pull: 'on-demand' | 'all'
  /** Of `pull: 'all'`. Default 'ascending'. */
  pullOrder: PullOrder
  pullWorkers: number
  pushWorkers: number
  prefetch: 'auto' | 'off' | { file: string }
  /** The order of first touches is written here at close. */
  record: string | undefined
  leaseMs: number
  /** Of every remote call. Default 30,000 ms. */
  deadlineMs: number
  /** How long a listing or attribute of the remote is believed. Default 1,000 ms for readers; see --dir-ttl. */
  dirTtlMs: number
  /** Globs of names that never travel. Default ['*-shm']. */
  localOnly: string[]
  /** The clock that stamps files, ns since the epoch: the kernel's own, so that it does not stamp them again. */
  nowNs: () => bigint
  /**
   * Of a connection to the kernel that outlives this process: what the kernel is told, and its requests that are done, are noted. 0: it
   * ends with this process.
   */
  connection: number
  /** Access control lists are obeyed: they follow modes, and modes follow them. */
  acl: boolean
  /** Of a reader: complete files become files of their own, which the kernel may read by itself. */
  wholes: boolean
  /** An earlier process served that connection: the kernel may have any inode open. */
  outlived: boolean
  /** Bytes the kernel may hold dirty for this mount: kept free as a reserve. */
  kernelBytesMax: number
}

/** What the remote does not have yet. */
export interface Lag {
  /** Not at the remote yet. */
  bytes: number
  operations: number
  /** Of the oldest change that the remote does not have; 0: it has all. */
  ageMs: number
  /** Dirty in the kernel's page cache: of this mount, or (where debugfs cannot be read) of all file systems, which is not less. */
  kernelBytes: number
}

/** What `status --json` prints of a mount, but for what only its door knows (mountpoint, pid). */
export interface TreeCacheStatus {
  readOnly: boolean
  /** 'remote': the commit contract holds at the remote. 'local': only local durability. */
  contract: 'remote' | 'local'
  lag: Lag
  cache: { bytes: number; bytesMax: number; dirtyBytes: number; chunks: number; corrupt: number }
  memory: { bytes: number; bytesMax: number }
  reads: { hits: number; misses: number; bytes: number }
  prefetch: { bytes: number; usedBytes: number }
  /** Reads that were silent for too long and were asked for a second time; of those, what the second request brought first. */
  hedged: { asked: number; won: number }
  /** `copiedBytes`: of what was committed, what the remote has made itself out of what it had. */
  batches: { committed: number; copiedBytes: number; inFlight: number | null; lastError: string | null }
  lease: { holder: string; epoch: number } | null
  conflicts: Conflict[]
  quarantine: { path: string; code: string; detail: string }[]
  /** Plain sentences about what is wrong now; empty when all is well. */
  problems: string[]
  inodes: { memory: number; known: number }
}

/** A file that somebody else had changed at the remote as well: theirs kept the name. Paths are bytes (latin1); `atMs` is wall clock, ms. */
export interface Conflict {
  path: string
  keptAs: string
  atMs: number
}

/** How far sending or fetching is. Totals may grow meanwhile. */
export interface Progress {
  bytesDone: number
  bytesTotal: number
  operationsDone: number
  operationsTotal: number
}

export interface TreeCache extends FileSystem, AsyncDisposable {
  /**
   * Resolves when the journal is replayed. Until then `status` and `close` can be called, and what returns a promise that is not
   * `Maybe`. Rejects if the journal cannot be read: then only `close` is left.
   */
  readonly replayed: Promise<void>
  /**
   * Commits everything acknowledged so far and returns when the remote has it (applied). `flushKernel` first makes the kernel
   * hand over its dirty pages. Rejects with what stands in the way only when `signal` aborts; otherwise it goes on trying.
   */
  sync(options?: {
    flushKernel?: () => Promise<void>
    onProgress?: (progress: Progress) => void
    signal?: AbortSignal
  }): Promise<void>
  /**
   * Whether changes are taken without waiting for the dirty limit. A mount that ends needs it: what the kernel still holds has to come
   * out, however long the remote has been away, and the reserve (`kernelBytesMax`) is kept for that.
   */
  letIn(on: boolean): void
  status(): TreeCacheStatus
  /** Paths of what is not at the remote yet, at most `countMax`. */
  unsent(countMax: number): string[]
  /** Make local: a file, or everything below a directory. Path: bytes relative to the root. */
  pull(
    path: string,
    options?: { onProgress?: (progress: Progress) => void; signal?: AbortSignal },
  ): Promise<{ files: number; bytes: number }>
  /** Whole pages of a file, as one: a crash leaves all of it or nothing, and no batch has a part of it. TOO_LARGE: for one segment of the journal. */
  writeAll(ino: Ino, writes: readonly Write[]): Maybe<void>
  /** Give back the space of clean chunks. */
  evict(path: string): Promise<{ files: number; bytes: number }>
  /** Look at the remote again. */
  refresh(path: string): Promise<{ entries: number; changed: number }>
  conflicts(): Conflict[]
  /** Bytes of a file that are here, in whole pages. */
  present(ino: Ino): number
  /** Runs of a file's bytes that are here or known to be zeros, ascending, at most so many. */
  presence(ino: Ino, countMax: number): [from: number, to: number][]
  /** These bytes are here when it resolves. */
  prefetch(ino: Ino, at: number, length: number): Promise<void>
  /** As `RegionDoor.extents` says. */
  extents(ino: Ino, at: number, length: number, countMax: number): RegionExtent[]
  /** Locally durable, lease released, not drained. Closing twice is fine. */
  close(): Promise<void>
}

export type CommittingTree = Tree & Commits<TreeChange>
