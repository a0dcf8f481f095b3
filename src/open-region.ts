// From a URL to a region: every layer, in order, and taken down again in reverse.
import { orAborted } from './base/async.js'
import { FerryError } from './base/errors.js'
import { logger } from './base/log.js'
import type { RegionDoor, RegionExtent } from './cache/door.js'
import type { Maybe } from './cache/filesystem.js'
import { RegionCache, type RegionCacheStatus } from './cache/region.js'
import type { Progress } from './cache/tree-cache.js'
import { claimCacheDir, defaultCacheDir } from './cache-dir.js'
import { checkFiles, engineOptions, keepNoted } from './engine-options.js'
import type { RemoteStatus } from './mounted-tree.js'
import { objectOfUrl } from './open.js'
import { type RegionOptions, regionSettings } from './options.js'
import { RegionFile } from './region-file.js'
import { Registry } from './registry.js'
import { BLOB_FILE } from './remote/blob-tree.js'
import { openStack } from './remote-stack.js'

const log = logger('region')

/** It is one file, which nobody lists: what it is at the remote is looked at when it is opened. */
const NEVER_MS = 2 ** 31
const KERNEL_BYTES = 0
const PRESENCE_RUNS = 1_000

/** What `status --json` prints of a region. */
export interface RegionStatus extends RegionCacheStatus {
  /** Of the process that has it. */
  pid: number
  cacheDir: string
  remote: RemoteStatus
}

/**
 * Opens one run of bytes: a file, an object of a bucket, keys of a Redis server, or memory. The options are those of `pageferry mount`
 * that have a meaning for it, in camelCase. Its bytes come when they are read, or before; what is written is durable here first, and
 * travels back in the background, in whole batches.
 * @throws FerryError USAGE (an option or the URL is wrong, or there is no such file), BUSY (the cache directory is in use), LEASE_HELD
 *   (another writer has it), UNREACHABLE, ABORTED
 */
export async function openRegion(url: string, options: RegionOptions = {}, signal?: AbortSignal): Promise<Region> {
  const asked = regionSettings(options)
  /** What was opened, the last one first. */
  const opened: { close(): unknown }[] = []
  const closeOpened = async () => {
    for (const each of opened.splice(0)) await each.close()
  }
  try {
    const opening = openStack(url, asked, 'region')
    const [{ tree: remote, status }, { beginTreeCache }] = await Promise.all([opening, import('./cache/engine.js')])
    opened.unshift(remote)
    const settings = { ...asked, readOnly: asked.readOnly || !remote.capabilities.write }
    const path = settings.cacheDir ?? defaultCacheDir(remote.url)
    checkFiles(settings)
    const registry = new Registry()
    const cacheDir = await claimCacheDir(path, { remote: remote.url, registry, signal })
    opened.unshift(cacheDir)
    const engine = { ...settings, dirTtl: NEVER_MS, localOnly: [], maxDelay: 0, kernelBytesMax: KERNEL_BYTES }
    const cache = await beginTreeCache(remote, engineOptions(engine, cacheDir), signal)
    opened.unshift(cache)
    await orAborted(cache.replayed, signal)
    const region = await RegionCache.open(cache, fileOf(url), settings).catch(error => {
      throw error instanceof FerryError && (error.code === 'NOT_FOUND' || error.code === 'IS_DIRECTORY')
        ? new FerryError('USAGE', { cause: error, detail: `${remote.url}: no such object` })
        : error
    })
    opened[0] = region
    const { readOnly } = settings
    const note = readOnly
      ? null
      : keepNoted(registry, { remote: remote.url, cacheDir: path }, () => region.status().lag)
    return new Region(region, {
      cacheDir: path,
      remote: status,
      async release() {
        const { lag } = region.status()
        await closeOpened()
        await note?.close(lag)
      },
    })
  } catch (error) {
    await closeOpened().catch(error => log.warn('not everything could be closed', { error }))
    throw error
  }
}

const fileOf = (url: string) => objectOfUrl(url)?.key.split('/').at(-1) ?? BLOB_FILE

interface RegionParts {
  cacheDir: string
  remote: () => RemoteStatus
  release: () => Promise<void>
}

const fileSystems = new WeakMap<Region, RegionCache['fileSystem']>()
/** The tree that a region is the one file of. */
export const fileSystemOf = (region: Region): RegionCache['fileSystem'] => fileSystems.get(region)!

/** A region that is open. `close` ends it: locally durable, then released, not sent (call `sync` first). */
export class Region implements RegionDoor, AsyncDisposable {
  readonly #region: RegionCache
  readonly #parts: RegionParts
  #closing: Promise<void> | undefined

  constructor(region: RegionCache, parts: RegionParts) {
    this.#region = region
    this.#parts = parts
    fileSystems.set(this, region.fileSystem)
  }

  /** In bytes; it never changes. */
  get size(): number {
    return this.#region.size
  }

  get readOnly(): boolean {
    return this.#region.readOnly
  }

  /** Fills `into` with the bytes from `at` on: at once, without a promise, if they are here. INVALID beyond the end. */
  read(at: number, into: Uint8Array): Maybe<void> {
    return this.#region.read(at, into)
  }

  /** Acknowledged: it survives the end of this process; after `flush` also a loss of power. INVALID beyond the end. */
  write(at: number, from: Uint8Array): Maybe<void> {
    return this.#region.write(at, from)
  }

  /** These bytes are zeros from now on. */
  trim(at: number, length: number): Maybe<void> {
    return this.#region.trim(at, length)
  }

  /** These bytes are here when it resolves. */
  prefetch(at: number, length: number): Promise<void> {
    return this.#region.prefetch(at, length)
  }

  /** Runs of bytes that are here or known to be zeros, ascending: the first 1,000 of them, if no other number is asked for. */
  presence(countMax = PRESENCE_RUNS): [from: number, to: number][] {
    return this.#region.presence(countMax)
  }

  /**
   * What is known to be zeros, in runs from `at` on, neighbours different, at most `countMax`. It may end before `length`, but is never
   * empty; `zeros: false` says that nobody knows.
   */
  extents(at: number, length: number, countMax = Number.POSITIVE_INFINITY): RegionExtent[] {
    return this.#region.extents(at, length, countMax)
  }

  /** Every earlier write is durable here; with `fsync: 'remote'` it is committed at the remote. */
  flush(): Maybe<void> {
    return this.#region.flush()
  }

  /** The remote has every earlier write. Goes on trying until it has; rejects when `signal` aborts. */
  sync(options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal } = {}): Promise<void> {
    return this.#region.sync(options)
  }

  /** All of it is here when it resolves. */
  pull(options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal } = {}): Promise<void> {
    return this.#region.pull(options)
  }

  /** The same bytes behind the methods of node's FileHandle: reads, writes, streams. */
  file(): RegionFile {
    return new RegionFile(this)
  }

  status(): RegionStatus {
    return {
      pid: process.pid,
      cacheDir: this.#parts.cacheDir,
      ...this.#region.status(),
      remote: this.#parts.remote(),
    }
  }

  /** Closing twice is fine. */
  close(): Promise<void> {
    this.#closing ??= this.#parts.release()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
