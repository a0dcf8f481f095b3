// Tells the kernel what changed behind its back. A thread that waits inside such a message cannot be killed (see flusher.ts), so only
// those are sent that need not wait for anything; the rest is done by a program from outside.
import { isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { FileSystem, Ino, KernelCache } from '../cache/filesystem.js'
import { notify } from '../wire/fuse.js'
import type { FlushVerb } from './flusher.js'
import type { Handles } from './handles.js'

const log = logger('fs')

const S_IFMT = 0o170000
const S_IFDIR = 0o040000
/** INC_EPOCH: every name is looked up again at its next use. It takes no lock, where naming one name takes its directory's. */
const EPOCH_MINOR = 44
/** With more names than that waiting to be named one by one, the rest has to expire. */
const NAMES_MAX = 10_000
/** With more inodes than that marked, every open drops the pages: slower, and never wrong. */
const STALE_MAX = 100_000
const MARKS_PER_MS = 256

/** Writes one message to the kernel, on the thread pool. */
export type Notify = (message: Uint8Array) => Promise<unknown>
/** Has a program from outside do something to an inode; false if there is none that may. */
export type FromOutside = (verb: FlushVerb, ino: Ino) => Promise<boolean>

export class Invalidations implements KernelCache {
  readonly #fs: FileSystem
  readonly #handles: Handles
  readonly #send: Notify
  readonly #fromOutside: FromOutside
  readonly #names = new Map<string, { parent: Ino; name: string }>()
  readonly #inodes = new Set<Ino>()
  /**
   * Inodes whose pages in the kernel are out of date, each with a mark of its own: every open drops them, until one has that is known to be
   * through. (The kernel drops them after it has our answer, and meanwhile another open would find them.)
   */
  readonly #stale = new Map<Ino, number>()
  /** Not one that an earlier process gave: its handles may still be there. */
  #mark = Date.now() * MARKS_PER_MS
  /** Of those that an earlier process gave to the kernel: nobody knows any more what of them is out of date, and these were asked for. */
  readonly #opened = new Set<Ino>()
  /** Inodes that are open and were written past the kernel's page cache, and whether pages of them were asked for since. */
  readonly #direct = new Map<Ino, boolean>()
  #draining = false
  /** What the kernel said at INIT. */
  kernelMinor = 0

  constructor(fs: FileSystem, handles: Handles, send: Notify, fromOutside: FromOutside) {
    this.#fs = fs
    this.#handles = handles
    this.#send = send
    this.#fromOutside = fromOutside
  }

  invalidateEntry(parent: Ino, name: string): void {
    if (this.#names.size < NAMES_MAX) this.#names.set(`${parent}/${name}`, { parent, name })
    // A new epoch makes the kernel look up names again, but leaves the listing that it keeps of the directory.
    this.#inodes.add(parent)
    this.#drain()
  }

  invalidateInode(ino: Ino): void {
    this.#inodes.add(ino)
    if (!this.#isDirectory(ino)) this.#markStale(ino)
    this.#drain()
  }

  #markStale(ino: Ino) {
    if (this.#stale.size <= STALE_MAX || this.#stale.has(ino)) this.#stale.set(ino, ++this.#mark)
  }

  /** Whether an open that is answered now must make the kernel drop its pages: if not 0, its handle has this mark. */
  staleMark(ino: Ino): number {
    if (this.#fs.isOutlived?.(ino) && !this.#opened.has(ino)) {
      if (this.#opened.size <= STALE_MAX) this.#opened.add(ino)
      this.#markStale(ino)
    }
    if (this.#stale.size === 0) return 0
    return this.#stale.get(ino) ?? (this.#stale.size > STALE_MAX ? this.#mark : 0)
  }

  /** A handle is used, or closed: what its opening dropped is gone. */
  used(ino: Ino, mark: number): void {
    if (mark > 0 && this.#stale.get(ino) === mark) this.#stale.delete(ino)
  }

  /**
   * A write past the page cache. The kernel drops the pages there before it sends an asynchronous one, and not when it is done
   * (fs/fuse/file.c, fuse_aio_complete): who reads in between leaves old pages in its cache. Synchronous ones look the same here.
   */
  directWrite(ino: Ino): void {
    if (!this.#direct.has(ino)) this.#direct.set(ino, true)
  }

  /** It has been done. Who opens the file now drops its pages; others that have it open need somebody who does. */
  directWritten(ino: Ino): void {
    if (this.#direct.get(ino) && this.#handles.count(ino) > 1) this.invalidateInode(ino)
    else this.#markStale(ino)
    this.#direct.set(ino, false)
  }

  /** The kernel asks for pages. */
  read(ino: Ino): void {
    if (this.#direct.size > 0 && this.#direct.has(ino)) this.#direct.set(ino, true)
  }

  /** A handle is closed. */
  released(ino: Ino, mark: number): void {
    this.used(ino, mark)
    if (this.#direct.size > 0 && this.#handles.count(ino) === 0) this.#direct.delete(ino)
  }

  /** The kernel asks for them anew once this has resolved. It waits for nothing, whoever has the inode locked. */
  async dropAttributes(ino: Ino): Promise<void> {
    await this.#deliver(notify.invalInode({ nodeid: ino, offset: -1, length: 0 }))
  }

  /** The kernel's dirty pages of it have come when this resolves; with `fsync` its times as well, for which it must not be locked. */
  async launder(ino: Ino, verb: 'fsync' | 'write'): Promise<void> {
    if (await this.#fromOutside(verb, ino)) return
    await this.#deliver(notify.invalInode({ nodeid: ino, offset: 0, length: 0 }))
  }

  /** Begins a turn later: whoever changed the state has then sent its answer, and much may have come together. */
  #drain() {
    if (this.#draining) return
    this.#draining = true
    setImmediate(async () => {
      while (this.#names.size + this.#inodes.size > 0) {
        if (this.#names.size > 0) await this.#tellNames()
        for (const ino of this.#inodes) {
          this.#inodes.delete(ino)
          await this.#tellInode(ino)
        }
      }
      this.#draining = false
    })
  }

  async #tellNames() {
    if (this.kernelMinor >= EPOCH_MINOR) {
      this.#names.clear()
      await this.#deliver(notify.incEpoch())
      return
    }
    for (const [key, entry] of this.#names) {
      this.#names.delete(key)
      await this.#deliver(notify.invalEntry(entry))
    }
  }

  /** A listing that the kernel keeps can be dropped without waiting; pages of a file may wait for a READ, so only its attributes go. */
  async #tellInode(ino: Ino) {
    const offset = this.#isDirectory(ino) ? 0 : -1
    await this.#deliver(notify.invalInode({ nodeid: ino, offset, length: 0 }))
    if (offset === 0 || !this.#handles.isOpen(ino)) return
    if (await this.#fromOutside('open', ino)) return
    await this.#deliver(notify.invalInode({ nodeid: ino, offset: 0, length: 0 }))
  }

  #isDirectory(ino: Ino): boolean {
    try {
      const attributes = this.#fs.attributes(ino)
      if (!(attributes instanceof Promise)) return (attributes.mode & S_IFMT) === S_IFDIR
      attributes.catch(() => {})
    } catch {}
    return false
  }

  /** NOT_FOUND: the kernel does not know what it is about, so there is nothing to forget. */
  async #deliver(message: Uint8Array) {
    try {
      await this.#send(message)
    } catch (error) {
      if (!isFerryError(error, 'NOT_FOUND')) log.warn('the kernel refused a notification', { error })
    }
  }
}
