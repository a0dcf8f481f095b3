// A tree that is mounted: what one can ask of it, and how it ends.
import { Once, orAborted, sleep, throwIfAborted } from './base/async.js'
import { FerryError, isFerryError, toFerryError } from './base/errors.js'
import { logger } from './base/log.js'
import type { Conflict, Lag, Progress, TreeCache, TreeCacheStatus } from './cache/tree-cache.js'
import { drain } from './drain.js'
import { type HeldConnection, NOBODY_HOLDS } from './fs/held.js'
import type { Mounted } from './fs/mount.js'
import { type Holder, holdersOf } from './linux/holders.js'
import { abortFuse } from './linux/mount.js'
import { type MountInfo, mountAt, mounts } from './linux/mountinfo.js'
import { parentOf } from './linux/process.js'
import { hasWork } from './registry.js'

const log = logger('mount')

/** What went to and came from the remote. */
export interface RemoteStatus {
  /** Without credentials. */
  url: string
  requests: number
  bytesRead: number
  bytesWritten: number
  errors: number
  /** False: the last requests failed because it could not be reached. */
  reachable: boolean
}

/** What `status --json` prints of a mount. */
export interface MountStatus extends TreeCacheStatus {
  mountpoint: string
  /** Of the process that answers requests. */
  pid: number
  /** `draining`: unmounted, and sending what is left. */
  state: 'mounted' | 'draining'
  cacheDir: string
  remote: RemoteStatus
}

/** What a mounted tree is made of. */
export interface MountParts {
  cache: TreeCache
  door: Mounted
  /** Who keeps its connection to the kernel. */
  held?: HeldConnection
  cacheDir: string
  remote: () => RemoteStatus
  /** Closes what lies below the cache, and lets others have its directory. Gets what is left to send. */
  release: (left: Lag) => Promise<void>
}

/** How long `unmount` tries, and who may stop it. */
export interface UnmountOptions {
  /** Give up sending when nothing got through for this long. Default 60,000 ms; 0 sends nothing. */
  stalledMsMax?: number
  onProgress?: (progress: Progress) => void
  /** Leaves everything as it is, unless it is unmounted already. */
  signal?: AbortSignal
  /** Stops sending, and goes on with the rest. */
  skip?: AbortSignal
  /** Takes the mount away from programs that use it: their calls fail from now on. */
  evenIfBusy?: boolean
}

/** What the remote does not have when a mount ends; the journal keeps it for the next one. */
export interface Unsent extends Lag {
  /** Some of them, as bytes (latin1). */
  paths: string[]
  /** What stood in the way. */
  reason: string | null
}

export const STALLED_MS_MAX = 60_000
/** Paths of unsent changes to be listed, at most. */
const PATHS_MAX = 100
/** Holders to be named, at most. */
const HOLDERS_MAX = 5

/**
 * A remote directory that is mounted. `close` ends it: locally durable, then released, not drained (call `sync` first).
 * A program must not touch, with synchronous calls, a mount that it serves itself: it would wait for its own answer.
 */
export class MountedTree implements AsyncDisposable {
  /** Absolute and without symlinks. */
  readonly mountpoint: string
  readonly cacheDir: string
  /** Resolves when the kernel has let go of the mount: by `close`, `unmount`, or umount(8). */
  readonly ended: Promise<void>
  readonly #parts: MountParts
  readonly #device: MountInfo | undefined
  #kernelBytes = 0
  #ended = false
  #takenAway = false
  readonly #closing = new Once(() => this.#close())

  constructor(parts: MountParts) {
    this.#parts = parts
    this.mountpoint = parts.door.mountpoint
    this.cacheDir = parts.cacheDir
    this.#device = mountAt(this.mountpoint)
    this.ended = parts.door.closed
      .catch(error => log.error('the connection to the kernel broke', { error: toFerryError(error) }))
      .then(() => {
        this.#ended = true
      })
  }

  /** False once the kernel has let go. */
  get mounted(): boolean {
    return !this.#ended
  }

  /** Resolves when the journal is replayed; with what stood in the way, if it cannot be: then the mount has ended, or will. */
  failure(): Promise<FerryError | null> {
    return this.#parts.cache.replayed.then(
      () => null,
      error => toFerryError(error),
    )
  }

  /** Out of sight, by umount(8) or umount -l, though programs may still use it. */
  get hidden(): boolean {
    const device = this.#device
    return (
      this.#ended ||
      (device !== undefined && !mounts().some(each => each.major === device.major && each.minor === device.minor))
    )
  }

  /** The same object that `status --json` prints. */
  status(): MountStatus {
    const { cache, remote, held } = this.#parts
    const status = cache.status()
    return {
      mountpoint: this.mountpoint,
      pid: process.pid,
      state: this.hidden ? 'draining' : 'mounted',
      cacheDir: this.cacheDir,
      ...status,
      lag: { ...status.lag, kernelBytes: status.lag.kernelBytes + this.#kernelBytes },
      problems: held?.isLost ? [...status.problems, NOBODY_HOLDS] : status.problems,
      remote: remote(),
    }
  }

  /** Asks the kernel how much it holds back: `status` shows what it last said. */
  async measure(): Promise<void> {
    this.#kernelBytes = this.#ended ? 0 : await this.#parts.door.kernelBytes().catch(() => 0)
  }

  /**
   * The remote has everything written before when this resolves; it goes on trying until then, or until `signal`.
   * @throws what stands in the way, or ABORTED, once `signal` is aborted; LEASE_LOST, CLOSED
   */
  async sync(options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal } = {}): Promise<void> {
    const { cache, door } = this.#parts
    const flushKernel = this.#ended ? undefined : () => door.flushKernel()
    // The kernel may be stuck handing over what the cache has no room for: then the signal has to reach us here.
    await orAborted(cache.sync({ ...options, flushKernel }), options.signal)
  }

  /**
   * Makes a file, or everything below a directory, local. Paths are bytes (latin1) relative to the mount point. Resolves with how many
   * files that were, and the bytes that were fetched.
   * @throws NOT_FOUND, what the remote says, NO_SPACE (the cache is full of what cannot leave), ABORTED
   */
  pull(path: string, options?: { onProgress?: (progress: Progress) => void; signal?: AbortSignal }) {
    return this.#parts.cache.pull(path, options)
  }

  /** Gives back the local space of what the remote has as well: how many files and bytes. @throws NOT_FOUND */
  evict(path: string) {
    return this.#parts.cache.evict(path)
  }

  /** Looks at the remote again: how many names it found, and how many of them are new, changed or gone. @throws NOT_FOUND, what the remote says */
  refresh(path: string) {
    return this.#parts.cache.refresh(path)
  }

  /** Files that somebody else had changed at the remote as well, since the cache directory was made. */
  conflicts(): Conflict[] {
    return this.#parts.cache.conflicts()
  }

  /**
   * Sends everything, unmounts, closes. Null when the remote has it all, else what is left for the next mount.
   * @throws BUSY (names who uses the mount; it stays as it is), ABORTED (likewise)
   */
  async unmount(options: UnmountOptions = {}): Promise<Unsent | null> {
    const { stalledMsMax = STALLED_MS_MAX, onProgress, signal, skip, evenIfBusy = false } = options
    const what = { committed: () => this.#parts.cache.status().batches.committed, sync: this.sync.bind(this) }
    const send = (signal?: AbortSignal) => drain(what, { stalledMsMax, onProgress, signal, skip })
    if (!evenIfBusy) await this.#refuseIfBusy()
    let stopped = await send(signal)
    throwIfAborted(signal)
    await this.#leave(evenIfBusy)
    // The kernel may have had more, and programs could write until just now. From here there is no way back.
    if (!stopped) stopped = await send()
    await this.measure()
    const { lag, batches } = this.status()
    // What the remote says is worth more than that we stopped waiting for it.
    const reason = batches.lastError ?? stopped?.message ?? null
    const unsent = hasWork(lag) ? { ...lag, paths: [...new Set(this.#parts.cache.unsent(PATHS_MAX))], reason } : null
    await this.close()
    return unsent
  }

  /**
   * Ends everything behind the mount, which stays: another process goes on with it. What is on its way to be answered is asked of that one.
   * @throws UNSUPPORTED: nobody holds the connection to the kernel
   */
  async leave(): Promise<void> {
    const { cache, door, release } = this.#parts
    if (!door.leave)
      throw new FerryError('UNSUPPORTED', { detail: `nobody holds ${this.mountpoint}: it was mounted with --no-hold` })
    await door.leave()
    const { lag } = cache.status()
    await cache.close()
    await release(lag)
  }

  /**
   * Unmounts and ends everything behind the mount, with what was acknowledged durable here. Closing twice is fine.
   * @throws BUSY (names who uses the mount; it stays as it is)
   */
  close(): Promise<void> {
    return this.#closing.run()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    await this.#leave(false)
    const { lag } = this.#parts.cache.status()
    await this.#parts.cache.close()
    await this.#parts.release(lag)
  }

  /** Unmounts, if it is still mounted. The kernel writes its dirty pages back meanwhile. */
  async #leave(evenIfBusy: boolean): Promise<void> {
    if (this.#ended || this.#takenAway) return
    const { cache, door } = this.#parts
    // What the kernel holds comes now, though the remote may be away and the dirty limit reached.
    cache.letIn(true)
    const flushed = door.flushKernel().catch(error => log.warn('the kernel kept dirty pages', { error }))
    await orAfter(flushed, FLUSH_MS_MAX)
    try {
      await this.#unmount()
    } catch (error) {
      if (!evenIfBusy || !isFerryError(error, 'BUSY')) {
        cache.letIn(false)
        throw error
      }
      await this.#takeAway()
    }
  }

  async #unmount(): Promise<void> {
    if (this.hidden) {
      // umount(8) may have returned before we saw the end of the connection; after umount -l it comes with the last user's leave.
      await orAfter(this.ended, HIDDEN_MS)
      if (this.#ended) return
      throw new FerryError('BUSY', { detail: `${this.mountpoint} was detached, and programs still use files of it` })
    }
    try {
      await this.#unmountInTime()
    } catch (error) {
      // Somebody was faster, if it really is gone.
      if (!isFerryError(error, 'INVALID', 'NOT_FOUND')) throw error
      await orAfter(this.ended, HIDDEN_MS)
      if (!this.hidden) throw error
    }
    await this.ended
  }

  /** What uses it and cannot be named is on its way out: a helper of ours, or a file that the kernel is closing. */
  async #unmountInTime(): Promise<void> {
    for (const until = performance.now() + LEAVING_MS; ; await sleep(LOOK_MS)) {
      try {
        return await this.#parts.door.unmount()
      } catch (error) {
        if (!isFerryError(error, 'BUSY')) throw error
        await this.#refuseIfBusy(error)
        if (performance.now() > until) throw error
      }
    }
  }

  async #takeAway(): Promise<void> {
    this.#takenAway = true
    if (!this.hidden) await this.#parts.door.unmount({ lazy: true })
    if (this.#device) await abortFuse(this.#device.minor).catch(error => log.debug('not aborted', { error }))
  }

  async #refuseIfBusy(cause?: unknown): Promise<void> {
    if (this.hidden) return
    // We and our helpers come and go by ourselves.
    const holders = (await holdersOf(this.mountpoint)).filter(({ pid }) => !pid || !isOurs(pid))
    if (holders.length === 0) return
    throw new FerryError('BUSY', { cause, detail: `${this.mountpoint} is used by ${named(holders)}` })
  }
}

/** How long the end of the connection may come after the mount is out of sight. */
const HIDDEN_MS = 1000
/** How long whatever cannot be named may still use a mount that ends, and how often to look. */
const LEAVING_MS = 1000
const LOOK_MS = 20
/** How long the kernel may take to hand over what it holds, when an unmount follows that makes it do so anyway. */
const FLUSH_MS_MAX = 30_000

/** Resolves with `work`, or after `ms` at the latest. */
async function orAfter(work: Promise<unknown>, ms: number): Promise<void> {
  const done = new AbortController()
  await Promise.race([work, sleep(ms, done.signal).catch(() => {})])
  done.abort()
}

const isOurs = (pid: number) => pid === process.pid || parentOf(pid) === process.pid

const named = (holders: Holder[]) => {
  const names = holders
    .slice(0, HOLDERS_MAX)
    .map(({ pid, command, what }) => `${command}${pid ? ` (pid ${pid})` : ''}, ${what}`)
  if (holders.length > HOLDERS_MAX) names.push(`and ${holders.length - HOLDERS_MAX} more`)
  return names.join('; ')
}
