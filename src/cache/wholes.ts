// Files that are complete, each as a file of its own beside the cache's one data file: the kernel can read them by itself, without
// asking us. Only readers have them, since nothing of them is ever dirty. What became one takes no room among the chunks any more.
import fs from 'node:fs'
import path from 'node:path'
import { toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { digest } from '../chunk/digest.js'
import { PAGE_BYTES } from '../chunk/geometry.js'
import type { Backing, Ino } from './filesystem.js'
import type { Inode } from './inode.js'
import type { TreeState } from './state.js'

const log = logger('wholes')

/** Directory of them, in the cache directory. */
const WHOLE = 'whole'
/** The one that is being made. */
const FRESH = 'new'
/** A smaller file is read in a few requests, and then from the kernel's page cache. */
const WHOLE_BYTES_MIN = 1024 * 1024
/** What changed less than so long ago may change again, and who has it open would not see that. */
const CHANGED_MS_MIN = 3_600_000
/** Files that wait to become one. */
const WAITING_MAX = 1_000
const COPY_BYTES = 4 * 1024 * 1024

interface Whole {
  /** Of the file, and what it is a copy of. */
  name: string
  size: number
  /** While somebody uses it. */
  fd: number | null
  holders: number
}

type Opened = Whole & { fd: number }

export interface WholesOptions {
  cacheDir: string
  /** All of them together. */
  bytesMax: number
  /** Of the kernel's connection, which may outlive this process; 0: it does not. */
  connection: number
}

export interface WholesHooks {
  isComplete(inode: Inode): boolean
  read(inode: Inode, at: number, into: Uint8Array): number | Promise<number>
  makeRoom(bytes: number): Promise<void>
  roomMade(bytes: number): void
}

export class Wholes implements Backing {
  readonly noted = new Map<Ino, number>()
  readonly #directory: string
  /** The longest unused first. */
  readonly #known = new Map<Ino, Whole>()
  readonly #waiting = new Set<Inode>()
  /** On their way. */
  readonly #reads = new Set<Promise<number>>()
  #making: Promise<void> | null = null
  #bytes = 0
  #isOn = false
  #closed = false

  constructor(
    readonly state: TreeState,
    readonly options: WholesOptions,
    readonly hooks: WholesHooks,
  ) {
    this.#directory = path.join(options.cacheDir, WHOLE)
    fs.mkdirSync(this.#directory, { recursive: true, mode: 0o700 })
    for (const name of fs.readdirSync(this.#directory)) this.#recall(name)
  }

  /** Of a cache directory that a writer uses: there are none. */
  static remove(cacheDir: string): void {
    fs.rmSync(path.join(cacheDir, WHOLE), { recursive: true, force: true })
  }

  /** What an earlier process left. */
  #recall(name: string) {
    const [, ino] = /^(\d+)-[0-9a-f]+$/.exec(name) ?? []
    const [, connection, noted, id] = /^open-(\d+)-(\d+)-(\d+)$/.exec(name) ?? []
    const at = path.join(this.#directory, name)
    if (ino && !this.#known.has(Number(ino))) this.#add(Number(ino), { name, size: fs.statSync(at).size })
    else if (connection && Number(connection) === this.options.connection) this.noted.set(Number(noted), Number(id))
    else fs.rmSync(at)
  }

  #add(ino: Ino, { name, size }: { name: string; size: number }) {
    this.#known.set(ino, { name, size, fd: null, holders: 0 })
    this.#bytes += size
    this.state.pages += pagesOf(size)
  }

  // --- for the kernel

  begin(tryOut: (fd: number) => void): void {
    const at = path.join(this.#directory, FRESH)
    const fd = fs.openSync(at, 'w+', 0o600)
    try {
      tryOut(fd)
    } finally {
      fs.closeSync(fd)
      fs.rmSync(at)
    }
    this.#isOn = true
  }

  hold(ino: Ino): number | null {
    const inode = this.state.find(ino)
    const whole = inode && this.#of(inode)
    if (!whole) return null
    whole.holders++
    return whole.fd
  }

  release(ino: Ino): void {
    const whole = this.#known.get(ino)
    if (!whole) return
    whole.holders--
    this.unused(ino)
  }

  note(ino: Ino, id: number | null): void {
    const { connection } = this.options
    if (connection === 0) return
    const at = (id: number) => path.join(this.#directory, `open-${connection}-${ino}-${id}`)
    const before = this.noted.get(ino)
    if (id !== null) {
      fs.writeFileSync(at(id), '')
      this.noted.set(ino, id)
    } else if (before !== undefined) {
      fs.rmSync(at(before), { force: true })
      this.noted.delete(ino)
    }
  }

  // --- for the engine

  has(inode: Inode): boolean {
    return this.#known.get(inode.ino)?.name === nameOf(inode)
  }

  /** Bytes of it; undefined: it is none. */
  read(inode: Inode, at: number, into: Uint8Array): Promise<number> | undefined {
    const whole = this.#of(inode)
    if (!whole) return undefined
    // Its descriptor stays until then: its number may be another file's as soon as it is closed.
    whole.holders++
    const read = new Promise<number>((resolve, reject) =>
      fs.read(whole.fd, into, 0, Math.max(0, Math.min(into.length, inode.size - at)), at, (error, count) =>
        error ? reject(error) : resolve(count),
      ),
    ).finally(() => {
      this.#reads.delete(read)
      this.release(inode.ino)
    })
    this.#reads.add(read)
    return read
  }

  /** Nobody has it open any more. */
  unused(ino: Ino): void {
    const whole = this.#known.get(ino)
    const inode = this.state.find(ino)
    if (!whole || whole.holders > 0 || (inode?.opens ?? 0) > 0 || this.noted.has(ino)) return
    if (whole.fd !== null) fs.closeSync(whole.fd)
    whole.fd = null
    // Replaced or removed: nobody opens it again.
    if (!inode || inode.parent === 0) this.#remove(ino, whole)
  }

  /** It may have become complete: it gets a file of its own when there is time. */
  consider(inode: Inode): void {
    if (!this.#isOn || this.#closed || !this.#isFit(inode) || this.#waiting.size >= WAITING_MAX) return
    this.#waiting.add(inode)
    this.#making ??= this.#makeAll().finally(() => {
      this.#making = null
    })
  }

  /** @returns bytes that are free by that; 0: all that there are are in use */
  evictOne(): number {
    for (const [ino, whole] of this.#known) {
      if (whole.holders > 0 || whole.fd !== null) continue
      this.#remove(ino, whole)
      return pagesOf(whole.size) * PAGE_BYTES
    }
    return 0
  }

  /** Unless somebody uses it. @returns whether it was one */
  evict(ino: Ino): boolean {
    const whole = this.#known.get(ino)
    if (!whole || whole.holders > 0) return false
    this.#remove(ino, whole)
    return true
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#waiting.clear()
    await Promise.allSettled([this.#making, ...this.#reads])
    for (const { fd } of this.#known.values()) if (fd !== null) fs.closeSync(fd)
    this.#known.clear()
  }

  // --- how they are made

  #isFit(inode: Inode): boolean {
    const { size, mtimeNs, version } = inode
    if (!inode.isFile || version === null || size < WHOLE_BYTES_MIN || size > this.options.bytesMax) return false
    const ageMs = this.state.now.ms() - Number(mtimeNs / 1_000_000n)
    return ageMs > CHANGED_MS_MIN && !this.#known.has(inode.ino) && this.hooks.isComplete(inode)
  }

  async #makeAll() {
    for (const inode of this.#waiting) {
      this.#waiting.delete(inode)
      if (this.#closed) return
      // The files that are there serve without.
      await this.#make(inode).catch(error => log.info('a complete file did not become one of its own', { error }))
    }
  }

  async #make(inode: Inode) {
    if (!this.#isFit(inode)) return
    const { size, version, ino } = inode
    while (this.#bytes + size > this.options.bytesMax) if (this.evictOne() === 0) return
    const [name, fresh] = [nameOf(inode), path.join(this.#directory, FRESH)]
    await this.hooks.makeRoom(size)
    try {
      const file = await fs.promises.open(fresh, 'w', 0o600)
      try {
        const buffer = new Uint8Array(Math.min(size, COPY_BYTES))
        for (let at = 0; at < size && !this.#closed; ) {
          const count = await this.hooks.read(inode, at, buffer.subarray(0, Math.min(buffer.length, size - at)))
          if (count === 0) break
          await file.write(buffer, 0, count, at)
          at += count
        }
        await file.datasync()
        if (this.#closed || (await file.stat()).size !== size) return
      } finally {
        await file.close()
      }
    } finally {
      this.hooks.roomMade(size)
    }
    // Somebody may have replaced it at the remote meanwhile.
    if (this.#closed || inode.version !== version || inode.size !== size) return
    await fs.promises.rename(fresh, path.join(this.#directory, name))
    this.#add(ino, { name, size })
    for (const row of this.state.chunks.rowsOf(ino)) this.state.dropRow(row)
  }

  /** Open, if it is of the version that the inode has now. */
  #of(inode: Inode): Opened | null {
    const whole = this.#known.get(inode.ino)
    if (!whole) return null
    if (whole.name !== nameOf(inode)) {
      this.evict(inode.ino)
      return null
    }
    try {
      whole.fd ??= fs.openSync(path.join(this.#directory, whole.name), 'r')
    } catch (error) {
      // Its bytes are fetched again.
      log.warn('a complete file in the cache cannot be opened', { error: toFerryError(error) })
      this.evict(inode.ino)
      return null
    }
    this.#known.delete(inode.ino)
    this.#known.set(inode.ino, whole)
    return whole as Opened
  }

  #remove(ino: Ino, whole: Whole) {
    this.#known.delete(ino)
    this.#bytes -= whole.size
    this.state.pages -= pagesOf(whole.size)
    if (whole.fd !== null) fs.closeSync(whole.fd)
    fs.rmSync(path.join(this.#directory, whole.name), { force: true })
  }
}

const pagesOf = (size: number) => Math.ceil(size / PAGE_BYTES)

const nameOf = ({ ino, size, version }: Inode) =>
  `${ino}-${digest(Buffer.from(`${size} ${version}`, 'latin1')).toString(16)}`
