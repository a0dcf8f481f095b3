// From a URL to a region: every layer, in order, and taken down again in reverse.
import { Once, orAborted } from './base/async.js'
import { FerryError } from './base/errors.js'
import { logger } from './base/log.js'
import type { Write } from './cache/content.js'
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
  if (asked.ownThread) {
    const { ownThread: _, ...others } = options
    const origin = { url, options: others }
    refuseThread(origin)
    const { RegionInThread } = await import('./region-in-thread.js')
    return new Region(await RegionInThread.open(origin, signal), origin)
  }
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
    const engine = {
      ...settings,
      dirTtl: NEVER_MS,
      localOnly: [],
      maxDelay: 0,
      kernelBytesMax: KERNEL_BYTES,
      isRegion: true,
    }
    const cache = await beginTreeCache(remote, engineOptions(engine, cacheDir), signal)
    opened.unshift(cache)
    await orAborted(cache.replayed, signal)
    const { unversioned, fixedSize } = remote.capabilities
    const region = await RegionCache.open(cache, fileOf(url), { ...settings, unversioned, fixedSize }).catch(error => {
      throw error instanceof FerryError && (error.code === 'NOT_FOUND' || error.code === 'IS_DIRECTORY')
        ? new FerryError('USAGE', { cause: error, detail: `${remote.url}: no such object` })
        : error
    })
    opened[0] = region
    const { readOnly } = settings
    const note = readOnly
      ? null
      : keepNoted(registry, { remote: remote.url, cacheDir: path }, () => region.status().lag)
    const release = async () => {
      const { lag } = region.status()
      await closeOpened()
      await note?.close(lag)
    }
    return new Region(hereOf(region, { cacheDir: path, remote: status, release }), { url, options })
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

/** Where a region's cache is: in this thread, or in another. */
export interface RegionPlace extends RegionDoor {
  writeAll(writes: readonly Write[]): Maybe<void>
  resize(size: number): Maybe<void>
  presence(countMax: number): [from: number, to: number][]
  prefetch(at: number, length: number): Promise<void>
  sync(options?: Watching): Promise<void>
  pull(options?: Watching): Promise<void>
  refresh(options?: Watching): Promise<void>
  status(): RegionStatus
  close(): Promise<void>
  /** The tree that it is the one file of. Absent: it is in another thread. */
  fileSystem?: RegionCache['fileSystem']
}

/** Of what takes long. */
export interface Watching {
  onProgress?: (progress: Progress) => void
  signal?: AbortSignal
}

function hereOf(region: RegionCache, { cacheDir, remote, release }: RegionParts): RegionPlace {
  const { readOnly, fixedSize, fileSystem } = region
  return {
    ...{ readOnly, fixedSize, fileSystem },
    get size() {
      return region.size
    },
    read: region.read.bind(region),
    write: region.write.bind(region),
    writeAll: region.writeAll.bind(region),
    trim: region.trim.bind(region),
    resize: region.resize.bind(region),
    flush: region.flush.bind(region),
    prefetch: region.prefetch.bind(region),
    extents: region.extents.bind(region),
    presence: region.presence.bind(region),
    sync: region.sync.bind(region),
    pull: region.pull.bind(region),
    refresh: region.refresh.bind(region),
    status: () => ({ pid: process.pid, cacheDir, ...region.status(), remote: remote() }),
    close: release,
  }
}

/** How a region was opened, to open it again. */
export interface RegionOrigin {
  url: string
  options: RegionOptions
}

/** @throws UNSUPPORTED: what it stands on is only in this thread */
function refuseThread({ url, options }: RegionOrigin): void {
  const isHere = url.startsWith('mem:')
    ? 'a region of mem:'
    : typeof options.pull === 'function' && 'a function for pull'
  if (isHere) throw new FerryError('UNSUPPORTED', { detail: `${isHere} cannot be taken to another thread` })
}

// Set by Region, whose insides they need.

/** As long as a device, or memory of others, has the size that the region has now. @returns a function that ends that */
export let keepSize: (region: Region) => () => void
export let fileSystemOf: (region: Region) => RegionCache['fileSystem']
/** Closes the region where it is, and goes on with what `open` finds: its cache in another place. @throws BUSY: it is in use */
export let moveRegion: (region: Region, open: (origin: RegionOrigin) => Promise<RegionPlace>) => Promise<RegionPlace>

/** A region that is open. `close` ends it: locally durable, then released, not sent (call `sync` first). */
export class Region implements RegionDoor, AsyncDisposable {
  readonly readOnly: boolean
  /** What it stands on keeps its size. */
  readonly fixedSize: boolean
  readonly #origin: RegionOrigin
  #place: RegionPlace
  /** Calls that have not been answered. */
  #running = 0
  #isFile = false
  /** Devices and memory that have its size. */
  #keepers = 0
  #moving: Promise<RegionPlace> | undefined
  readonly #closing = new Once(() => this.#close())

  constructor(place: RegionPlace, origin: RegionOrigin) {
    this.readOnly = place.readOnly
    this.fixedSize = place.fixedSize ?? false
    this.#place = place
    this.#origin = origin
  }

  static {
    keepSize = region => {
      region.#keepers++
      return () => {
        region.#keepers--
      }
    }
    fileSystemOf = region => {
      const { fileSystem } = region.#place
      if (!fileSystem)
        throw new FerryError('BUSY', { detail: 'a region that is mapped as memory cannot be attached in this process' })
      region.#isFile = true
      return fileSystem
    }
    moveRegion = async (region, open) => {
      region.#refuseMove()
      region.#moving ??= region.#move(open)
      return region.#moving
    }
  }

  /** @throws why it cannot be in another place */
  #refuseMove(): void {
    if (this.#closing.isBegun) throw new FerryError('CLOSED')
    if (this.#moving) return
    if (!this.#place.fileSystem) return
    refuseThread(this.#origin)
    if (this.#isFile) throw new FerryError('BUSY', { detail: 'the region is attached' })
    const calls = this.#running
    if (calls > 0) throw new FerryError('BUSY', { detail: `${calls} calls of the region are not answered yet` })
  }

  async #move(open: (origin: RegionOrigin) => Promise<RegionPlace>): Promise<RegionPlace> {
    if (!this.#place.fileSystem) return this.#place
    const { url, options } = this.#origin
    const { cacheDir } = this.#place.status()
    await this.#place.close()
    this.#place = await open({ url, options: { ...options, cacheDir } })
    return this.#place
  }

  /** In bytes. */
  get size(): number {
    return this.#place.size
  }

  /** Fills `into` with the bytes from `at` on: at once, without a promise, if they are here. INVALID beyond the end. */
  read(at: number, into: Uint8Array): Maybe<void> {
    return this.#counted(() => this.#place.read(at, into))
  }

  /** Acknowledged: it survives the end of this process; after `flush` also a loss of power. INVALID beyond the end. */
  write(at: number, from: Uint8Array): Maybe<void> {
    return this.#counted(() => this.#place.write(at, from))
  }

  /**
   * Several writes as one, each of whole pages of 4 KiB (or to the end): a crash leaves all of them or none, and so does every batch that the
   * remote has. INVALID: beyond the end, or no whole pages; TOO_LARGE: more than about 200 MiB at once.
   */
  writeAll(writes: readonly { at: number; from: Uint8Array }[]): Maybe<void> {
    return this.#counted(() => this.#place.writeAll(writes))
  }

  /** These bytes are zeros from now on. */
  trim(at: number, length: number): Maybe<void> {
    return this.#counted(() => this.#place.trim(at, length))
  }

  /**
   * Cut, or extended with zeros, to so many bytes: here at once, at the remote with the next batch. Not where `fixedSize`.
   * @throws UNSUPPORTED: what it stands on has one size; BUSY: it is attached or mapped; INVALID, READ_ONLY, TOO_LARGE
   */
  async resize(size: number): Promise<void> {
    if (this.#keepers > 0) throw new FerryError('BUSY', { detail: 'a device or memory has the size of the region' })
    await this.#counted(() => this.#place.resize(size))
  }

  /** These bytes are here when it resolves. */
  async prefetch(at: number, length: number): Promise<void> {
    await this.#counted(() => this.#place.prefetch(at, length))
  }

  /** Runs of bytes that are here or known to be zeros, ascending: the first 1,000 of them, if no other number is asked for. */
  presence(countMax = PRESENCE_RUNS): [from: number, to: number][] {
    return this.#place.presence(countMax)
  }

  /**
   * What is known to be zeros, in runs from `at` on, neighbours different, at most `countMax`. It may end before `length`, but is never
   * empty; `zeros: false` says that nobody knows.
   */
  extents(at: number, length: number, countMax = Number.POSITIVE_INFINITY): RegionExtent[] {
    return this.#place.extents(at, length, countMax)
  }

  /** Every earlier write is durable here; with `fsync: 'remote'` it is committed at the remote. */
  flush(): Maybe<void> {
    return this.#counted(() => this.#place.flush())
  }

  /** The remote has every earlier write. Goes on trying until it has; rejects when `signal` aborts. */
  async sync(options: Watching = {}): Promise<void> {
    await this.#counted(() => this.#place.sync(options))
  }

  /** All of it is here when it resolves. */
  async pull(options: Watching = {}): Promise<void> {
    await this.#counted(() => this.#place.pull(options))
  }

  /**
   * What the remote has now is what is read from here on, as one version. What is written and not sent yet is sent first. Memory that is
   * mapped keeps the pages that it has: see `MappedRegion.refresh`.
   * @throws BUSY: the region is written to all the time; what the remote says
   */
  async refresh(options: Pick<Watching, 'signal'> = {}): Promise<void> {
    await this.#counted(() => this.#place.refresh(options))
  }

  /** The same bytes behind the methods of node's FileHandle: reads, writes, streams. */
  file(): RegionFile {
    return new RegionFile(this)
  }

  status(): RegionStatus {
    return this.#place.status()
  }

  /**
   * Closing twice is fine. @throws what stands in the way of memory's last writes (NO_SPACE): the region is still open then, and may be
   * closed again
   */
  close(): Promise<void> {
    return this.#closing.run()
  }

  async #close(): Promise<void> {
    // On its way to another place: there, then, if it gets there.
    await this.#moving?.catch(() => {})
    await this.#place.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #counted(call: () => Maybe<void>): Maybe<void> {
    if (this.#moving && this.#place.fileSystem)
      return this.#moving.then(
        () => call(),
        () => call(),
      )
    const answer = call()
    if (!answer) return
    this.#running++
    return answer.finally(() => {
      this.#running--
    })
  }
}
