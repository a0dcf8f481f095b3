// What is done to everything at and below a path: made local, given back, looked at again; and what is pulled before anybody asks.
import { mapLimit } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { PAGE_BYTES } from '../chunk/geometry.js'
import { type Ino, ROOT } from './filesystem.js'
import type { Inode } from './inode.js'
import type { Listing } from './listing.js'
import { Profile } from './profile.js'
import type { Pull } from './pull.js'
import { inOrder } from './pull-order.js'
import type { TreeState } from './state.js'
import type { Progress, TreeCacheOptions } from './tree-cache.js'
import type { Wholes } from './wholes.js'

/** Listed at once, of one directory's own. */
const DIRECTORIES_AT_ONCE = 16
/** Pulled at once. */
const FILES_AT_ONCE = 16

export class Subtrees {
  #guesses: Promise<unknown>[] = []
  #closed = false

  constructor(
    readonly state: TreeState,
    readonly listing: Listing,
    readonly queue: Pull,
    readonly options: TreeCacheOptions,
    readonly wholes?: Wholes,
  ) {}

  /** Nothing more is pulled ahead. */
  close(): void {
    this.#closed = true
  }

  async pull(
    at: string,
    options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal } = {},
  ): Promise<{ files: number; bytes: number }> {
    let files = 0
    let bytes = 0
    const progress = (count: number) => {
      bytes += count
      options.onProgress?.({ bytesDone: bytes, bytesTotal: bytes, operationsDone: files, operationsTotal: files })
    }
    const pulling = new Set<Promise<void>>()
    let failed: { error: unknown } | undefined
    for await (const inode of this.#below(await this.#at(at), true)) {
      if (failed) break
      files++
      if (this.wholes?.has(inode)) {
        progress(inode.size)
        continue
      }
      const done = this.queue
        .whole(inode, progress, options.signal)
        .then(() => this.wholes?.consider(inode))
        .catch(error => {
          failed ??= { error }
        })
        .finally(() => pulling.delete(done))
      pulling.add(done)
      if (pulling.size >= FILES_AT_ONCE) await Promise.race(pulling)
    }
    await Promise.all(pulling)
    if (failed) throw failed.error
    return { files, bytes }
  }

  /** Clean chunks leave; what is punched when is the caller's affair. */
  async evict(at: string, invalidate: (ino: Ino) => void): Promise<{ files: number; bytes: number }> {
    const { state } = this
    let files = 0
    const before = state.pages
    for await (const inode of this.#below(await this.#at(at), false)) {
      let any = this.wholes?.evict(inode.ino) ?? false
      for (const row of state.chunks.rowsOf(inode.ino)) {
        if (state.chunks.dirty[row] || state.chunks.flight[row]) continue
        state.dropRow(row)
        any = true
      }
      if (any) files++
      invalidate(inode.ino)
    }
    return { files, bytes: (before - state.pages) * PAGE_BYTES }
  }

  async refresh(at: string): Promise<{ entries: number; changed: number }> {
    const { state } = this
    const start = await this.#at(at)
    if (!start.isDirectory) {
      const version = start.version
      await this.listing.look(state.inode(start.parent || ROOT))
      return { entries: 1, changed: start.version === version && !start.stale ? 0 : 1 }
    }
    let entries = 0
    let changed = 0
    const visit = async (directory: Inode): Promise<Inode[]> => {
      const before = new Map(
        [...state.children(directory)].map(([name, dentry]) => [
          name,
          `${dentry.ino}:${state.inode(dentry.ino).version}`,
        ]),
      )
      await this.listing.look(directory)
      const children = state.children(directory)
      for (const [name, dentry] of children) {
        entries++
        if (before.get(name) !== `${dentry.ino}:${state.inode(dentry.ino).version}`) changed++
        before.delete(name)
      }
      changed += before.size
      return [...children.values()]
        .map(({ ino }) => state.inode(ino))
        .filter(child => child.isDirectory && child.listed)
    }
    for (let level = [start]; level.length > 0; )
      level = (await mapLimit(level, DIRECTORIES_AT_ONCE, directory => visit(directory))).flat()
    return { entries, changed }
  }

  async #at(at: string): Promise<Inode> {
    let inode = this.state.inode(ROOT)
    for (const name of at.split('/').filter(Boolean)) {
      const directory = this.state.directory(inode.ino)
      await this.listing.fresh(directory)
      const child = this.state.child(directory, name)
      if (!child) throw new FerryError('NOT_FOUND', { detail: at })
      inode = child
    }
    return inode
  }

  /** The files at and below an inode; directories that were never listed are listed only if `look`. */
  async *#below(inode: Inode, look: boolean): AsyncIterable<Inode> {
    if (inode.isFile) yield inode
    if (!inode.isDirectory) return
    if (look) await this.listing.fresh(inode)
    const children = [...this.state.children(inode).values()].map(({ ino }) => this.state.inode(ino))
    const directories = children.filter(child => child.isDirectory)
    let ahead = 0
    let passed = 0
    for (const child of children) {
      if (child.isDirectory && look) {
        // Those that come next are listed meanwhile. Should it fail, it is said when they are reached.
        for (; ahead < Math.min(directories.length, passed + DIRECTORIES_AT_ONCE); ahead++)
          void Promise.resolve(this.listing.fresh(directories[ahead])).catch(() => {})
        passed++
      }
      if (child.isFile || child.isDirectory) yield* this.#below(child, look)
    }
  }

  /** A recorded profile, then (`--pull all`) everything, as guesses: demand goes before. */
  async pullAhead(): Promise<void> {
    const { prefetch, pull, pullWorkers, cacheBytesMax } = this.options
    if (pullWorkers === 0) return
    if (typeof prefetch === 'object') {
      for (const touch of Profile.load(prefetch.file)) {
        if (this.#closed) return
        const inode = await this.#at(touch.path).catch(() => null)
        if (inode?.isFile) await this.#guessed(inode, touch.at, touch.at + touch.length)
      }
    }
    if (pull !== 'all') return
    for await (const inode of this.#below(this.state.inode(ROOT), true)) {
      if (this.wholes?.has(inode)) continue
      for await (const at of inOrder(this.options.pullOrder, inode.baseSize, this.options.fetchBytesMax)) {
        if (this.#closed || this.state.cachedBytes > cacheBytesMax * 0.9) return
        await this.#guessed(inode, at, Math.min(inode.baseSize, at + this.options.fetchBytesMax))
      }
    }
  }

  async #guessed(inode: Inode, from: number, to: number): Promise<void> {
    this.#guesses.push(...this.queue.guess(inode, { from, to }, false).map(done => done.catch(() => {})))
    while (this.#guesses.length > this.options.pullWorkers) await this.#guesses.shift()
  }
}
