// Regions that a process serves to others: what one can ask of them through its control socket, and how it ends.
import { deferred } from './base/async.js'
import { FerryError, isFerryError, toFerryError } from './base/errors.js'
import { logger } from './base/log.js'
import type { Lag, Progress } from './cache/tree-cache.js'
import type { ControlContext, ControlRequest } from './control.js'
import { drain } from './drain.js'
import { STALLED_MS_MAX, type Unsent } from './mounted-tree.js'
import type { Region, RegionStatus } from './open-region.js'
import { hasWork } from './registry.js'

const log = logger('region')

/** What `status --json` prints of a server. */
export interface ServerStatus {
  /** Its URI. */
  address: string
  pid: number
  /** Of a server of the network. */
  connections?: number
  /** Each with what clients call it, and the first 1,000 runs of bytes that are here or known to be zeros. */
  regions: (RegionStatus & { name: string; presence: [from: number, to: number][] })[]
}

/** What listens. */
interface Door {
  /** Absent: it has none. */
  readonly connections?: number
  close(): Promise<void>
}

export interface ServedOptions {
  address: string
  regions: { name: string; region: Region }[]
  door: Door
  /** Shown while a signal makes it drain. */
  onProgress?: (progress: Progress) => void
}

/** It owns the regions and the door. */
export class ServedRegions {
  /** Resolves with what the remotes do not have when everything is closed; rejects when that failed. */
  readonly ending: Promise<Unsent | null>
  readonly #options: ServedOptions
  readonly #end = deferred<Unsent | null>()
  readonly #skip = new AbortController()
  #stopping: Promise<Unsent | null> | undefined

  constructor(options: ServedOptions) {
    this.#options = options
    this.ending = this.#end.promise
  }

  /** Answers one request of the control socket. */
  readonly handle = async (request: ControlRequest, { progress, signal }: ControlContext): Promise<unknown> => {
    switch (request.do) {
      case 'status':
        return this.status()
      case 'sync':
        return this.#sync({ onProgress: progress, signal })
      case 'umount':
        return this.stop({ stalledMsMax: request.stalledMsMax, onProgress: progress })
      case 'handover':
        throw new FerryError('BUSY', { detail: `${this.#options.address} is being served` })
      default:
        throw new FerryError('UNSUPPORTED', { detail: `${request.do}, of regions` })
    }
  }

  status(): ServerStatus {
    const { address, regions, door } = this.#options
    const { connections } = door
    const each = regions.map(({ name, region }) => ({ name, ...region.status(), presence: region.presence() }))
    return { address, pid: process.pid, connections, regions: each }
  }

  /**
   * Lets nobody in any more, sends what is left for as long as that gets anywhere, closes. Null when the remotes have it all.
   * @throws BUSY: it is in use, and stays as it is
   */
  stop(options: { stalledMsMax?: number; onProgress?: (progress: Progress) => void } = {}): Promise<Unsent | null> {
    this.#stopping ??= this.#stop(options).then(
      unsent => {
        this.#end.resolve(unsent)
        return unsent
      },
      error => {
        // In use: everything stays as it is.
        if (isFerryError(error, 'BUSY')) this.#stopping = undefined
        else this.#end.reject(error)
        throw error
      },
    )
    return this.#stopping
  }

  /** SIGINT, SIGTERM: the first one stops, the second one skips the drain. */
  signal(): void {
    if (this.#stopping) this.#skip.abort(new FerryError('ABORTED', { detail: 'the drain was skipped' }))
    else
      this.stop({ onProgress: this.#options.onProgress }).catch(error => {
        if (isFerryError(error, 'BUSY')) log.error(`not ended: ${error.message}`)
      })
  }

  async #sync(options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal }): Promise<void> {
    for (const { region } of this.#options.regions) await region.sync(options)
  }

  async #stop({
    stalledMsMax = STALLED_MS_MAX,
    onProgress,
  }: {
    stalledMsMax?: number
    onProgress?: (progress: Progress) => void
  }): Promise<Unsent | null> {
    const { regions, door } = this.#options
    await door.close()
    const committed = () => regions.reduce((sum, { region }) => sum + region.status().batches.committed, 0)
    const what = { committed, sync: this.#sync.bind(this) }
    const stopped = await drain(what, { stalledMsMax, onProgress, skip: this.#skip.signal })
    const left = regions.filter(({ region }) => hasWork(region.status().lag))
    const unsent = left.length > 0 ? unsentOf(left, stopped) : null
    for (const { region } of regions) await region.close()
    log.info('ended', { unsent })
    return unsent
  }
}

function unsentOf(left: { name: string; region: Region }[], stopped: FerryError | null): Unsent {
  const lag: Lag = { bytes: 0, operations: 0, ageMs: 0, kernelBytes: 0 }
  let reason: string | null = stopped ? toFerryError(stopped).message : null
  for (const { region } of left) {
    const status = region.status()
    lag.bytes += status.lag.bytes
    lag.operations += status.lag.operations
    lag.ageMs = Math.max(lag.ageMs, status.lag.ageMs)
    reason = status.batches.lastError ?? reason
  }
  return { ...lag, paths: left.map(({ name }) => name).filter(name => name !== ''), reason }
}
