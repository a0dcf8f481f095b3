// What a mount and a region have in common: the engine's options out of the user's, and the note of what is unsent.
import { accessSync, constants, existsSync, statfsSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname } from 'node:path'
import { FerryError } from './base/errors.js'
import { logger } from './base/log.js'
import type { CacheDir } from './cache/cache-dir.js'
import type { PullOrder } from './cache/pull-order.js'
import type { Lag, TreeCacheOptions } from './cache/tree-cache.js'
import { coarseNowNs } from './linux/clock.js'
import { identityOf } from './linux/process.js'
import { diskStorage } from './linux/storage.js'
import type { MountSettings } from './options.js'
import { hasWork, type Journal, type Registry } from './registry.js'

const log = logger('mount')

const DIRTY_OPERATIONS_MAX = 1_000_000
const FREE_BYTES_MIN = 1024 ** 3
/** How often to note, for a reader after a crash, how much is unsent. */
const NOTE_MS = 1000

/** Of the options, those that the engine is made with. */
export type EngineSettings = Omit<
  MountSettings,
  | 'pullOrder'
  | 'cacheDir'
  | 'simulate'
  | 'uploadLimit'
  | 'downloadLimit'
  | 'uid'
  | 'gid'
  | 'umask'
  | 'allowOther'
  | 'suid'
  | 'dev'
  | 'driver'
  | 'mode'
  | 'acl'
  | 'shared'
> & {
  pullOrder: PullOrder
  /** Bytes the kernel may hold dirty. */
  kernelBytesMax: number
  isRegion: boolean
  /** Default: regions have none. */
  mode?: MountSettings['mode']
  acl?: boolean
  shared?: boolean
  /** Of a connection to the kernel that outlives this process, and whether an earlier one has served it. Default: of none. */
  connection?: number
  outlived?: boolean
}

/** What the engine is told, for a mount or a region. */
export function engineOptions(settings: EngineSettings, { path: cacheDir, writer }: CacheDir): TreeCacheOptions {
  return {
    cacheDir,
    storage: diskStorage(cacheDir),
    identity: { writer, host: hostname(), ...identityOf()! },
    readOnly: settings.readOnly,
    isRegion: settings.isRegion,
    takeOver: settings.takeOver,
    shared: settings.shared ?? false,
    cacheBytesMax: settings.cacheSize,
    cacheBytesFreeMin: settings.cacheMinFree ?? freeBytesMin(cacheDir),
    memoryBytesMax: settings.memory,
    fetchBytesMax: settings.fetchSize,
    fsync: settings.fsync,
    flushIntervalMs: settings.flushInterval,
    delayMsMax: settings.maxDelay,
    dirtyBytesMax: settings.dirtyLimit,
    dirtyOperationsMax: DIRTY_OPERATIONS_MAX,
    whenFull: settings.whenFull,
    pull: settings.pull,
    pullOrder: settings.pullOrder,
    pullWorkers: settings.pullWorkers,
    pushWorkers: settings.pushWorkers,
    prefetch: settings.prefetch,
    record: settings.record,
    leaseMs: settings.lease,
    deadlineMs: settings.deadline,
    dirTtlMs: settings.dirTtl,
    localOnly: settings.localOnly,
    kernelBytesMax: settings.kernelBytesMax,
    nowNs: coarseNowNs,
    connection: settings.connection ?? 0,
    outlived: settings.outlived ?? false,
    acl: settings.acl ?? false,
    wholes: settings.readOnly && !settings.isRegion && settings.mode !== 'writeback',
  }
}

/** A tenth of a small disk: a gigabyte may be all there is. */
function freeBytesMin(cacheDir: string): number {
  const { blocks, bsize } = statfsSync(cacheDir)
  return Math.min(FREE_BYTES_MIN, (blocks * bsize) / 10)
}

/** Files that are needed later are looked for now, while somebody reads what we say. USAGE. */
export function checkFiles({ prefetch, record }: Pick<MountSettings, 'prefetch' | 'record'>): void {
  const check = (path: string, mode: number, complaint: string) => {
    try {
      accessSync(path, mode)
    } catch (error) {
      const detail = `${complaint} (${(error as NodeJS.ErrnoException).code})`
      throw new FerryError('USAGE', { cause: error, detail })
    }
  }
  if (typeof prefetch === 'object') check(prefetch.file, constants.R_OK, `--prefetch: ${prefetch.file} cannot be read`)
  if (record)
    check(existsSync(record) ? record : dirname(record), constants.W_OK, `--record: ${record} cannot be written`)
}

/** Keeps the note of unsent work up to date, for whoever looks after a crash; closing makes the last one. */
export function keepNoted(registry: Registry, journal: Pick<Journal, 'remote' | 'cacheDir'>, lag: () => Lag) {
  let noted = ''
  const note = (now: Lag, closed: boolean) => {
    // Ages grow by themselves: only what else changes is worth a write.
    const mark = JSON.stringify([now.bytes, now.operations, closed])
    if (mark === noted) return
    noted = mark
    try {
      if (closed && !hasWork(now)) registry.dropJournal(journal.cacheDir)
      else registry.keepJournal({ ...journal, lag: now, closed })
    } catch (error) {
      log.warn('the list of unsent work cannot be written', { error })
    }
  }
  note(lag(), false)
  // The entry is durable from now on; its figures are only for show, and must not hold up the loop.
  let noting: Promise<void> = Promise.resolve()
  const timer = setInterval(() => {
    noting = noting.then(() => registry.refreshJournal({ ...journal, lag: lag(), closed: false })).catch(() => {})
  }, NOTE_MS).unref()
  return {
    /** Notes what is left at the end. */
    close: async (left: Lag) => {
      clearInterval(timer)
      await noting
      note(left, true)
    },
  }
}
