// The life of a mount from ready to gone: it answers its control socket, and ends by request, by signal, or after umount(8) has taken it away.
import { deferred, sleep } from './base/async.js'
import { FerryError, isFerryError, toFerryError } from './base/errors.js'
import { logger } from './base/log.js'
import type { Progress } from './cache/tree-cache.js'
import type { ControlContext, ControlRequest } from './control.js'
import type { MountedTree, UnmountOptions, Unsent } from './mounted-tree.js'

const log = logger('mount')

/** How long after a signal that was refused, because programs use the mount, another one takes it away from them. */
const FORCE_MS = 10_000
/** How long the end of the connection may come after the mount is out of sight. */
const HIDDEN_MS = 3000

/** How it ended. */
export interface Ending {
  /** What the remote does not have; null: it has everything. */
  unsent: Unsent | null
  /** Another daemon goes on with it: with what is to be sent, or with the mount itself. */
  handedOver: 'journal' | 'mount' | null
}

export interface DaemonOptions {
  /** Shown while signals make it drain. */
  onProgress?: (progress: Progress) => void
  /** Has another daemon go on with the mount, by this command line, as soon as this one has ended. Default: nobody can. */
  next?: (program: string[]) => void
}

/** What `Daemon` needs of a mount. */
export type Mount = Pick<
  MountedTree,
  | 'mountpoint'
  | 'mounted'
  | 'hidden'
  | 'failure'
  | 'ended'
  | 'status'
  | 'measure'
  | 'sync'
  | 'pull'
  | 'evict'
  | 'refresh'
  | 'conflicts'
  | 'unmount'
  | 'close'
  | 'leave'
>

export class Daemon {
  /** Resolves when the mount and everything behind it is closed; rejects when that failed. */
  readonly ending: Promise<Ending>
  readonly #mount: Mount
  readonly #options: DaemonOptions
  readonly #end = deferred<Ending>()
  /** Stops sending, and goes on with what comes after it. */
  readonly #skip = new AbortController()
  /** Sending in the background, after umount(8). */
  #draining: AbortController | undefined
  #unmounting: Promise<Unsent | null> | undefined
  #handingOver = false
  #signalled = false
  #refusedMs = Number.NEGATIVE_INFINITY

  constructor(mount: Mount, options: DaemonOptions = {}) {
    this.#mount = mount
    this.#options = options
    this.ending = this.#end.promise
    void mount.ended.then(() => this.#goOnDraining())
  }

  /** Answers one request of the control socket. */
  readonly handle = async (request: ControlRequest, { progress, signal }: ControlContext): Promise<unknown> => {
    const mount = this.#mount
    switch (request.do) {
      case 'status':
        await mount.measure()
        return mount.status()
      case 'sync':
        return mount.sync({ onProgress: progress, signal })
      case 'umount':
        return this.unmount({ stalledMsMax: request.stalledMsMax, onProgress: progress, signal })
      case 'pull':
        return mount.pull(request.path, { onProgress: progress, signal })
      case 'evict':
        return mount.evict(request.path)
      case 'refresh':
        return mount.refresh(request.path)
      case 'conflicts':
        return mount.conflicts()
      case 'handover':
        return this.handOver()
      case 'upgrade':
        return this.upgrade(request.program)
    }
  }

  /** Drains, unmounts, ends. @throws BUSY (programs use it, or it is on its way already), ABORTED: it stays as it is */
  async unmount(options: UnmountOptions): Promise<Unsent | null> {
    if (this.#unmounting || this.#handingOver)
      throw new FerryError('BUSY', { detail: `${this.#mount.mountpoint} is being unmounted already` })
    this.#draining?.abort()
    this.#unmounting = this.#mount.unmount({ skip: this.#skip.signal, ...options })
    try {
      const unsent = await this.#unmounting
      this.#end.resolve({ unsent, handedOver: null })
      return unsent
    } catch (error) {
      this.#unmounting = undefined
      if (!this.#mount.mounted) void this.#goOnDraining()
      throw error
    }
  }

  /** SIGINT, SIGTERM: the first one drains and unmounts, the second one skips the drain. */
  async signal(): Promise<void> {
    if (this.#signalled || this.#unmounting) {
      if (!this.#signalled) log.info('it is being unmounted already; once more skips the drain')
      else this.#skip.abort(new FerryError('ABORTED', { detail: 'the drain was skipped' }))
      this.#signalled = true
      return
    }
    this.#signalled = true
    const force = performance.now() - this.#refusedMs < FORCE_MS
    try {
      const how = force ? { evenIfBusy: true, stalledMsMax: 0 } : { onProgress: this.#options.onProgress }
      await this.unmount(how)
    } catch (error) {
      this.#signalled = false
      this.#refusedMs = performance.now()
      const again = isFerryError(error, 'BUSY') ? '; once more takes it away from them' : ''
      log.error(`not unmounted: ${toFerryError(error).message}${again}`)
    }
  }

  /** Lets another daemon have the cache directory, if this one only goes on sending. @throws BUSY: it is in use */
  async handOver(): Promise<void> {
    const mount = this.#mount
    const busy = (why: string) => new FerryError('BUSY', { detail: `${mount.mountpoint} ${why}` })
    if (!mount.hidden) throw busy('is mounted')
    if (mount.mounted) await Promise.race([mount.ended, sleep(HIDDEN_MS)])
    if (mount.mounted) throw busy('was detached, and programs still use files of it')
    if (this.#unmounting) return this.#skip.abort(new FerryError('ABORTED', { detail: 'another daemon goes on' }))
    this.#handingOver = true
    log.info('another daemon takes over')
    this.#draining?.abort()
    // Not awaited: the other side is answered now, and waits for the lock.
    void this.#endBy(() => this.#mount.close(), 'journal')
  }

  /**
   * Another daemon goes on with the mount, by this command line.
   * @throws BUSY: it is being unmounted; UNSUPPORTED: nobody holds it, or does so any more
   */
  async upgrade(program: string[]): Promise<void> {
    const { next } = this.#options
    const { mountpoint } = this.#mount
    if (!next)
      throw new FerryError('UNSUPPORTED', { detail: `nobody holds ${mountpoint}: it was mounted with --no-hold` })
    if (this.#unmounting || this.#handingOver || this.#mount.hidden)
      throw new FerryError('BUSY', { detail: `${mountpoint} is being unmounted` })
    next(program)
    this.#handingOver = true
    log.info('another daemon goes on with the mount', { program })
    // Not awaited: who asked is answered by this daemon.
    setImmediate(() => void this.#endBy(() => this.#mount.leave(), 'mount'))
  }

  /** After umount(8): nobody waits, so it goes on until the remote has everything, however long that takes. */
  async #goOnDraining(): Promise<void> {
    if (this.#unmounting || this.#handingOver || this.#draining?.signal.aborted === false) return
    const abort = new AbortController()
    this.#draining = abort
    log.info(`${this.#mount.mountpoint} was unmounted`)
    const failure = await this.#mount.failure()
    if (failure) return this.#end.reject(failure)
    try {
      await this.#mount.sync({ signal: abort.signal })
    } catch (error) {
      if (abort.signal.aborted) return
      log.error('what is left cannot be sent; the next mount will try again', { error: toFerryError(error) })
    }
    if (this.#unmounting || this.#handingOver) return
    try {
      const unsent = await this.unmount({ stalledMsMax: 0 })
      if (unsent) log.warn(`${unsent.operations} changes are left for the next mount`)
    } catch (error) {
      this.#end.reject(error)
    }
  }

  async #endBy(work: () => Promise<void>, handedOver: Ending['handedOver']): Promise<void> {
    try {
      await work()
      this.#end.resolve({ unsent: null, handedOver })
    } catch (error) {
      this.#end.reject(error)
    }
  }
}
