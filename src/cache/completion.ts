// What listings left open: the attributes of a name are asked for when somebody wants them, and those of the names behind it as well
// for who goes through a directory.
import { LRUCache } from 'lru-cache'
import { isFerryError, toFerryError } from '../base/errors.js'
import type { Tree } from '../remote/tree.js'
import type { Ino, Maybe } from './filesystem.js'
import type { Dentry, Inode } from './inode.js'
import type { Listing } from './listing.js'
import type { TreeState } from './state.js'

/** Names that are asked for in one call; the remote may ask for so many at once. */
const CALL_NAMES_MAX = 32
/** Names ahead of who goes through a directory, at most. */
const AHEAD_MAX = 256
/** Who asks for a name so close behind the last one goes through the directory; some names he may not need. */
const NEAR = 8
const SCANS_MAX = 64

/** How far somebody has come who goes through a directory. */
interface Scan {
  /** Of the last name that was asked for. */
  cookie: number
  /** Names that the last turn asked for. */
  names: number
  /** The names behind it. */
  rest: Iterator<[string, Dentry]> | null
}

export class Completion {
  readonly #running = new Map<Ino, Promise<void>>()
  readonly #scans = new LRUCache<Ino, Scan>({ max: SCANS_MAX })

  constructor(
    readonly remote: Tree,
    readonly state: TreeState,
    readonly listing: Listing,
    readonly signal: AbortSignal,
  ) {}

  /** The inode's attributes are known, and as new as the last listing. Offline, and while a batch is being applied, old ones serve. */
  of(inode: Inode): Maybe<void> {
    if (!inode.partial || inode.remoteParent <= 0 || !this.remote.complete) return
    const done = this.#running.get(inode.ino) ?? this.#begin(inode)
    if (inode.guessed) return done
    if (this.listing.isBusy) {
      done.catch(() => {})
      return
    }
    return this.listing.whileIdle(done)
  }

  #begin(inode: Inode): Promise<void> {
    const directory = this.state.inode(inode.remoteParent)
    const inodes = [inode, ...this.#ahead(directory, inode)]
    for (let from = 0; from < inodes.length; from += CALL_NAMES_MAX) {
      const some = inodes.slice(from, from + CALL_NAMES_MAX)
      const done = this.#ask(directory, some).finally(() => {
        for (const { ino } of some) this.#running.delete(ino)
      })
      done.catch(() => {})
      for (const { ino } of some) this.#running.set(ino, done)
    }
    return this.#running.get(inode.ino)!
  }

  /** Twice as many as the last time for who goes on where that ended, none for anybody else. */
  #ahead(directory: Inode, inode: Inode): Inode[] {
    const { state } = this
    const cookie = state.children(directory).get(inode.remoteName)?.cookie
    if (cookie === undefined) return []
    const scan = this.#scans.get(directory.ino)
    const isNext = scan !== undefined && cookie > scan.cookie && cookie <= scan.cookie + NEAR
    if (!isNext) {
      this.#scans.set(directory.ino, { cookie, names: 1, rest: null })
      return []
    }
    const names = Math.min(scan.names * 2, AHEAD_MAX)
    const rest = scan.rest ?? state.children(directory).entries()
    const ahead: Inode[] = []
    let last = cookie
    while (ahead.length < names - 1) {
      const next = rest.next()
      if (next.done) break
      const [, dentry] = next.value
      if (dentry.cookie <= cookie) continue
      const other = state.inode(dentry.ino)
      last = dentry.cookie
      if (other.partial && other.remoteParent === directory.ino && !this.#running.has(other.ino)) ahead.push(other)
    }
    this.#scans.set(directory.ino, { cookie: last, names, rest })
    return ahead
  }

  async #ask(directory: Inode, inodes: Inode[]): Promise<void> {
    const names = inodes.map(({ remoteName: name, isDirectory }) => ({ name, isDirectory }))
    try {
      const entries = await this.listing.ask(directory, path => this.remote.complete!(path, names, this.signal))
      this.listing.unreachable = null
      entries?.forEach((entry, n) => {
        this.listing.tell(directory, names[n].name, inodes[n], entry)
      })
    } catch (caught) {
      const error = toFerryError(caught)
      if (isFerryError(error, 'UNREACHABLE', 'DEADLINE')) this.listing.unreachable = error
      throw error
    }
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#running.values())
  }
}
