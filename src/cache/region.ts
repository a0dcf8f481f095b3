// The local, cached face of one blob: what a front door reads and writes.
import { FerryError } from '../base/errors.js'
import { PAGE_BYTES } from '../chunk/geometry.js'
import type { Write } from './content.js'
import type { RegionDoor, RegionExtent } from './door.js'
import { type FileSystem, type Ino, type Maybe, ROOT } from './filesystem.js'
import type { Progress, TreeCache, TreeCacheStatus } from './tree-cache.js'

/** What `status --json` prints of a region, but for what only its owner knows. */
export interface RegionCacheStatus extends Omit<TreeCacheStatus, 'inodes' | 'quarantine'> {
  /** In bytes. */
  size: number
  /** Share of its bytes that are here: 0 to 1. */
  availability: number
}

/** Asked for at once by a prefetch: others have their turn in between. */
const PREFETCHED_BYTES = 16 * 1024 * 1024
/** Looks at the remote of one refresh. */
const REFRESHES_MAX = 16

export interface RegionCacheOptions {
  readOnly: boolean
  /** Of the tree: see TreeCapabilities. */
  unversioned?: boolean
  fixedSize?: boolean
}

/**
 * Reads and writes are answered at once when they need nothing from the remote, and with a promise otherwise.
 * They reject with a FerryError: INVALID beyond the end, READ_ONLY, CLOSED, NO_SPACE, and what the remote says of bytes that are not here.
 */
export class RegionCache implements RegionDoor {
  readonly readOnly: boolean
  readonly fixedSize: boolean
  #size: number
  readonly #cache: TreeCache
  readonly #ino: Ino
  readonly #name: string
  readonly #unversioned: boolean
  #closing: Promise<void> | undefined
  #last: RegionCacheStatus | undefined

  private constructor(
    cache: TreeCache,
    { ino, size }: { ino: Ino; size: number },
    name: string,
    { readOnly, unversioned = false, fixedSize = false }: RegionCacheOptions,
  ) {
    this.#unversioned = unversioned
    this.fixedSize = fixedSize
    this.#cache = cache
    this.#ino = ino
    this.#name = name
    this.#size = size
    this.readOnly = readOnly
  }

  /** Of the file of this name in a tree that has it. It owns the cache from now on. @throws NOT_FOUND, IS_DIRECTORY */
  static async open(cache: TreeCache, name: string, options: RegionCacheOptions): Promise<RegionCache> {
    const found = await cache.lookup(ROOT, name)
    if (!found) throw new FerryError('NOT_FOUND', { detail: name })
    if ((found.mode & 0o170000) !== 0o100000) throw new FerryError('IS_DIRECTORY', { detail: name })
    cache.remember(found.ino)
    cache.opened(found.ino, !options.readOnly)
    return new RegionCache(cache, found, name, options)
  }

  /** In bytes. */
  get size(): number {
    return this.#size
  }

  /** The tree that it is the one file of, for those who can only mount. */
  get fileSystem(): { fs: FileSystem; name: string } {
    return { fs: this.#cache, name: this.#name }
  }

  /** Fills `into` with the bytes from `at` on. */
  read(at: number, into: Uint8Array): Maybe<void> {
    this.#check(at, into.byteLength)
    if (into.byteLength === 0) return
    const whole = (count: number) => {
      if (count < into.byteLength)
        throw new FerryError('SHORT_READ', { detail: `${count} of ${into.byteLength} bytes at ${at}` })
    }
    const read = this.#cache.read(this.#ino, at, into)
    return typeof read === 'number' ? whole(read) : read.then(whole)
  }

  /** Acknowledged: it survives the end of this process, and after `flush` a loss of power. */
  write(at: number, from: Uint8Array): Maybe<void> {
    this.#check(at, from.byteLength)
    if (this.readOnly) throw new FerryError('READ_ONLY')
    if (from.byteLength > 0) return this.#cache.write(this.#ino, at, from)
  }

  /** As one: see Region. */
  writeAll(writes: readonly Write[]): Maybe<void> {
    for (const { at, from } of writes) {
      this.#check(at, from.byteLength)
      const end = at + from.byteLength
      if (at % PAGE_BYTES !== 0 || (end % PAGE_BYTES !== 0 && end !== this.size))
        throw new FerryError('INVALID', {
          detail: `${from.byteLength} bytes at ${at} are no whole pages of ${PAGE_BYTES}`,
        })
    }
    if (this.readOnly) throw new FerryError('READ_ONLY')
    return this.#cache.writeAll(this.#ino, writes)
  }

  /** These bytes are zeros from now on; what they took of the cache is given back. */
  trim(at: number, length: number): Maybe<void> {
    this.#check(at, length)
    if (this.readOnly) throw new FerryError('READ_ONLY')
    if (length > 0) return this.#cache.allocate(this.#ino, { at, length }, { kind: 'punch', keepSize: true })
  }

  /** What is beyond is gone at once; what comes in addition are zeros. See RegionDoor. */
  async resize(size: number): Promise<void> {
    this.#check(0, 0)
    if (!Number.isSafeInteger(size) || size < 0) throw new FerryError('INVALID', { detail: `a size of ${size} bytes` })
    if (this.readOnly) throw new FerryError('READ_ONLY')
    if (size === this.#size) return
    if (this.fixedSize)
      throw new FerryError('UNSUPPORTED', { detail: `what has ${this.#size} bytes at the remote keeps that size` })
    const former = this.#size
    // Nobody comes to what is about to go.
    this.#size = Math.min(former, size)
    try {
      await this.#cache.setAttributes(this.#ino, { size })
      this.#size = size
    } catch (error) {
      this.#size = former
      throw error
    }
  }

  /** They are here when it resolves. */
  async prefetch(at: number, length: number): Promise<void> {
    this.#check(at, length)
    const end = at + length
    for (let from = at; from < end; from += PREFETCHED_BYTES)
      await this.#cache.prefetch(this.#ino, from, Math.min(PREFETCHED_BYTES, end - from))
  }

  /** Runs that are here or known to be zeros, ascending, at most so many. */
  presence(countMax: number): [from: number, to: number][] {
    return this.#cache.presence(this.#ino, countMax)
  }

  /** What is known to be zeros: see RegionDoor. */
  extents(at: number, length: number, countMax: number): RegionExtent[] {
    this.#check(at, length)
    return this.#cache.extents(this.#ino, at, length, countMax)
  }

  /** Every earlier write is durable here; with `fsync: 'remote'` at the remote. */
  flush(): Maybe<void> {
    return this.#cache.fsync(this.#ino)
  }

  /** The remote has every earlier write. Rejects with what stands in the way only when `signal` aborts. */
  sync(options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal } = {}): Promise<void> {
    return this.#cache.sync(options)
  }

  /**
   * What the remote has now is what is read from here on. What it does not have yet is sent first.
   * @throws BUSY: more is written all the time; what the remote says
   */
  async refresh({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    const isAllSent = () => this.#cache.status().lag.operations === 0
    for (let tries = 0; tries < REFRESHES_MAX; tries++) {
      if (!isAllSent()) await this.#cache.sync({ signal })
      const wasAllSent = isAllSent()
      await this.#cache.refresh('')
      if (this.#unversioned) await this.#cache.evict('')
      // What has changes here keeps the version that they are of.
      if (wasAllSent && isAllSent()) return
    }
    throw new FerryError('BUSY', { detail: 'the region is written to all the time' })
  }

  /** Everything is here when it resolves. */
  async pull(options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal } = {}): Promise<void> {
    await this.#cache.pull('', options)
  }

  /** Once it is closed: as it was then. */
  status(): RegionCacheStatus {
    return this.#last ?? this.#status()
  }

  #status(): RegionCacheStatus {
    const { inodes: _, quarantine, ...status } = this.#cache.status()
    const refused = quarantine.map(
      ({ code, detail }) => `the remote will not take what was written: ${detail} (${code})`,
    )
    return {
      size: this.size,
      availability: this.size === 0 ? 1 : Math.min(1, this.#cache.present(this.#ino) / this.size),
      ...status,
      problems: [...status.problems, ...refused],
    }
  }

  /** Locally durable, then released, not sent. Closing twice is fine. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close() {
    this.#last = this.#status()
    this.#cache.released(this.#ino, !this.readOnly)
    this.#cache.forget(this.#ino, 1)
    await this.#cache.close()
  }

  #check(at: number, length: number) {
    if (this.#closing) throw new FerryError('CLOSED')
    if (!Number.isSafeInteger(at) || !Number.isSafeInteger(length) || at < 0 || length < 0 || at + length > this.size)
      throw new FerryError('INVALID', { detail: `${length} bytes at ${at} of ${this.size}` })
  }
}
