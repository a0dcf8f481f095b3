// How the engine writes: one writer at a time, whole batches, each one a moment. `rollforward` gives this to any remote.

/** Who wants to write. */
export interface Claim {
  /** The same for every mount of one cache directory: its journal belongs to it. */
  writer: string
  host: string
  bootId: string
  pid: number
  /** The process's start time in clock ticks since boot (proc(5), stat field 22): tells a reused pid. */
  startTime: number
  /** How long a lease that is not renewed stays valid, in ms. */
  leaseMs: number
  /** Take the lease from a live holder. */
  takeOver: boolean
  /** It is held for one batch at a time, in turns with others who say so too. Absent: false. */
  shared?: boolean
}

export interface Claimed {
  /** Grows each time the lease changes hands. */
  epoch: number
  /** The newest batch of this writer that is committed (and by now applied), or null if it has none here. */
  batch: number | null
  /** What became of that batch, if anybody has noted it. */
  outcome?: Outcome
  /** False: the remote was tried, and does not refuse to put what is there already. Two who claim at once may both succeed. */
  exclusive?: boolean
}

/** Who holds the lease, as `status` shows it. */
export interface Holder {
  host: string
  pid: number
  epoch: number
  sinceMs: number
  /** It will have released it soon: see Claim. */
  shared: boolean
}

/** Whether files without a name, which the holder before us has kept for those who have them open, are still wanted. */
export const keepsOrphans = ({ writer, shared }: Claim, previous: Claim | null): boolean =>
  previous?.writer === writer || Boolean(shared && previous?.shared)

/** The net state at one moment. Numbers grow by one per writer; a batch that failed is tried again with the same number. */
export interface Batch<Change> {
  writer: string
  number: number
  /** Wall clock of the cut, ms. */
  cutAtMs: number
  changes: Change[]
}

/** What became of a batch when it was applied. Paths are those after the batch. */
export interface Outcome {
  /**
   * The versions that files have now which were put or patched, or got attributes while they were what was expected.
   */
  versions: [path: string, version: string][]
  /** Where a move makes another version: of what was moved, and of what lies in it; and the version until then, which may be somebody else's. */
  moved?: [path: string, version: string, was: string][]
  /** Somebody else had changed these: theirs kept the name, ours is at `keptAs`. */
  conflicts: { path: string; keptAs: string }[]
  /** What the remote will not take, now or later. */
  refused: { path: string; code: string; detail: string }[]
}

/** Part of a file of this version. */
export interface CopySource {
  path: string
  version: string
  at: number
  length: number
}

/**
 * The commit contract. Lose the host at any instant and open again: the state is exactly that of some batch, not older than the
 * last one whose `commit` resolved. Methods reject with a FerryError:
 * LEASE_HELD (`claim`), LEASE_LOST (the others), UNREACHABLE, DEADLINE, NO_SPACE and so on: try again.
 */
export interface Commits<Change> {
  /**
   * Take the lease, and finish what was begun. LEASE_HELD while somebody else's is valid; call again to wait, since a lease is
   * seen to have run out when it did not change for its whole length on this process's monotonic clock. A holder known to
   * be dead on this host is replaced at once.
   */
  claim(claim: Claim, signal?: AbortSignal): Promise<Claimed>
  /** Every third of the lease. */
  renew(signal?: AbortSignal): Promise<void>
  /** After it this writer writes no more; the next one need not wait. */
  release(signal?: AbortSignal): Promise<void>
  /** Who holds it now; null: nobody. */
  holder(signal?: AbortSignal): Promise<Holder | null>
  /**
   * Bytes of the next batch, ahead of its commit: nothing is visible yet. `id` is chosen by the caller, unique in its batch
   * (chars a-z0-9-); bytes at offset `at` of what is staged under it (for a tree: the file's own offsets).
   */
  stage(batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void>
  /**
   * The same out of a file as the batches before have left it: nothing travels. STALE or NOT_FOUND: it is not this one any more;
   * UNSUPPORTED: not so few bytes. Then they are to be staged as above. Absent where the remote cannot.
   */
  stageCopy?(batch: number, id: string, at: number, source: CopySource, signal?: AbortSignal): Promise<void>
  /**
   * Bytes of a file that goes on growing, before their batch is known; each call goes on where the last one of this `id` ended. The
   * batch that names the id as staged has them, and what is staged for that batch lies over them. INVALID if they do not go on
   * there. After an error they are not to be named, but dropped. Absent where it would gain nothing.
   */
  stageAhead?(id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void>
  /** What was staged ahead under this id, and no batch has named, is not needed. */
  dropAhead?(id: string, signal?: AbortSignal): Promise<void>
  /** The batch is committed: one conditional put of its intent. What was staged but is not named by it is dropped later. */
  commit(batch: Batch<Change>, signal?: AbortSignal): Promise<void>
  /** The committed batch is applied, durably. Idempotent; call again after a failure. */
  settle(signal?: AbortSignal): Promise<Outcome>
}
