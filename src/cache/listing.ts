// What the remote has, told to the namespace: directories listed when first needed, looked at again when their time is up.
import { LRUCache } from 'lru-cache'
import { type Deferred, deferred, lasting, orAborted } from '../base/async.js'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { type Entry, isAsGiven, type Tree } from '../remote/tree.js'
import type { Ino, KernelCache, Maybe } from './filesystem.js'
import { Changed, Inode, S_IFDIR, S_IFMT } from './inode.js'
import { join, nameKey, type TreeState, UNKNOWN_VERSION } from './state.js'

const log = logger('listing')

/** A page during which a batch was settled is old news; look again this often. */
const TRIES_MAX = 5
/** A directory of several pages is believed for so many times as long as its last listing took, if that is longer than its time. */
const LISTING_TTL = 10
/** Of a directory that was never listed, so many names are asked for one by one before it is. */
const NAMES_ASKED_MAX = 8
/** Directories of which that is counted. */
const ASKED_MAX = 10_000

export interface ListingOptions {
  ttlMs: number
  /** How long to wait for a batch that is being applied. */
  deadlineMs: number
  readOnly: boolean
  isRegion: boolean
}

export interface ListingHooks {
  kernel(): KernelCache
  /** Grows with each settled batch. */
  serial(): number
  /** Resolves when names at the remote are not in motion. */
  settled(): Promise<void> | null
}

/** Not of what a batch is about to give another version: nobody may hear of that one, and this would be taken for it. */
const mayLearn = ({ flight }: Inode) => flight === 0

/** Changed, rather than replaced by another one; where the remote tells no births, what has grown is taken for that. */
const isSameFile = ({ btimeNs, size }: Inode, entry: Entry) =>
  btimeNs === undefined || entry.btimeNs === undefined ? entry.size > size : entry.btimeNs === btimeNs

/** As we left it. What has changed here has another time. */
const isOurs = (inode: Inode, entry: Entry) =>
  inode.changed !== 0 ? inode.size === entry.size : isAsGiven(entry, inode)

/** A listing that is under way. */
interface Run {
  done: Promise<void>
  /** Names that it has told. */
  seen: Set<string>
  /** Resolves with the next page. */
  page: Deferred<void>
}

/** A page as of a serial; or it was old news when it came; or the directory is at another place, or the listing cannot go on at its cursor. */
type Asked = { page: { entries: Entry[]; cursor?: string }; path: string; serial: number } | 'old' | 'moved' | 'nowhere'

export class Listing {
  readonly #running = new Map<Ino, Run>()
  /** How many names of a directory were asked for. */
  readonly #asked = new LRUCache<Ino, number>({ max: ASKED_MAX })
  readonly #abort = lasting()
  readonly #untilBusy = new Set<Deferred<void>>()
  /** Wall of the last failure to reach the remote; listings at hand serve meanwhile. */
  unreachable: FerryError | null = null

  constructor(
    readonly remote: Tree,
    readonly state: TreeState,
    readonly options: ListingOptions,
    readonly hooks: ListingHooks,
  ) {}

  /** Every name of the directory is known, as of a listing that is not too old. Offline, an old one serves. */
  fresh(directory: Inode): Maybe<void> {
    const { state, options } = this
    if (directory.remoteParent <= 0) return
    const age = state.now.ms() - directory.listedAtMs
    const ttlMs = Math.max(options.ttlMs, directory.listingMs * LISTING_TTL)
    if (directory.listed && age < ttlMs) {
      if (age > ttlMs / 2) void this.look(directory).catch(() => {})
      return
    }
    if (directory.listed && this.isBusy) {
      void this.look(directory).catch(() => {})
      return
    }
    const looked = this.look(directory)
    return directory.listed ? this.whileIdle(looked) : looked
  }

  /** For who can do without: neither a remote that cannot be reached is in the way, nor one that is given a batch meanwhile. */
  async whileIdle(asked: Promise<void>): Promise<void> {
    const busy = deferred()
    this.#untilBusy.add(busy)
    try {
      await Promise.race([asked, busy.promise])
    } catch (error) {
      if (!isFerryError(error, 'UNREACHABLE', 'DEADLINE', 'IO', 'ABORTED')) throw error
    } finally {
      this.#untilBusy.delete(busy)
    }
  }

  /** A batch begins to be applied. */
  becomesBusy(): void {
    for (const busy of this.#untilBusy) busy.resolve()
  }

  /** What is known of this name is not too old; of the others only if that costs no more. */
  freshName(directory: Inode, name: string): Maybe<void> {
    const { ino, listed, remoteParent } = directory
    // Where a listing leaves questions open, it is the dearer way to one name.
    const isDear = this.remote.complete !== undefined
    if (!isDear || listed || remoteParent <= 0) return this.fresh(directory)
    const told = this.#running.get(ino)?.seen
    if (told?.has(name) || this.#isOurs(directory, name)) return
    const asked = this.#asked.get(ino) ?? 0
    if (asked >= NAMES_ASKED_MAX && !told?.size) return this.fresh(directory)
    this.#asked.set(ino, asked + 1)
    const isKnown = this.state.child(directory, name) !== null
    return this.#name(directory, name).catch(error => {
      if (!isKnown || !isFerryError(error, 'UNREACHABLE', 'DEADLINE', 'IO', 'ABORTED')) throw error
    })
  }

  async #name(directory: Inode, name: string): Promise<void> {
    const serial = this.hooks.serial()
    const path = this.hooks.settled() ? null : this.state.remotePath(directory)
    let entry: Entry | null = null
    try {
      // Nothing can be there that has too long a path.
      if (path !== null && join(path, name).length <= this.remote.capabilities.pathBytesMax)
        entry = await this.remote.stat(join(path, name), this.#abort.signal)
    } catch (caught) {
      const error = toFerryError(caught)
      if (isFerryError(error, 'UNREACHABLE', 'DEADLINE')) this.unreachable = error
      throw error
    }
    // What a batch has to do with it, a listing finds out.
    if (path === null || serial !== this.hooks.serial() || this.hooks.settled()) return this.look(directory)
    if (directory.listed || this.#isOurs(directory, name)) return
    this.unreachable = null
    const known = this.state.child(directory, name)
    if (entry) this.take(directory, { ...entry, name })
    else if (known) this.#forget(directory, name, known)
  }

  /** List it now; concurrent callers share one listing. */
  look(directory: Inode): Promise<void> {
    const running = this.#running.get(directory.ino)
    if (running) return running.done
    const run: Run = { done: Promise.resolve(), seen: new Set(), page: deferred() }
    this.state.settledNames ??= new Set()
    run.done = this.#list(directory, run).finally(() => {
      this.#running.delete(directory.ino)
      if (this.#running.size === 0) this.state.settledNames = null
    })
    this.#running.set(directory.ino, run)
    return run.done
  }

  /**
   * Waits for names beyond a cookie in a directory that was never listed: those of the next page are enough.
   * @returns false: it has told all there are
   */
  async more(directory: Inode, after: number): Promise<boolean> {
    const running = this.#running.get(directory.ino)
    const done = running?.done ?? this.look(directory)
    if (running && directory.nextCookie - 1 > after) return true
    const { page } = this.#running.get(directory.ino)!
    await Promise.race([done, page.promise])
    return !directory.listed && this.#running.has(directory.ino)
  }

  isListed({ listed, remoteParent }: Inode): boolean {
    return listed || remoteParent <= 0
  }

  async close(): Promise<void> {
    this.#abort.abort()
    await Promise.allSettled([...this.#running.values()].map(({ done }) => done))
  }

  async #list(directory: Inode, run: Run): Promise<void> {
    for (let tries = 0; tries < TRIES_MAX; tries++) {
      const beganMs = performance.now()
      const pages = await this.#pages(directory, run)
      if (pages === null) continue
      directory.listingMs = pages > 1 ? performance.now() - beganMs : 0
      return
    }
    // Batches are settled faster than this directory can be listed: what is known of it serves.
    if (!directory.listed)
      throw new FerryError('BUSY', { detail: 'the directory changes faster than it can be listed' })
  }

  /**
   * Page after page into the namespace, each of them as it comes, while the next one is asked for. What no page had is gone, unless
   * its name is ours, or was so since the first page.
   * @returns the number of pages; null: the directory moved about, or a page was old news whenever it came
   */
  async #pages(directory: Inode, run: Run): Promise<number | null> {
    const { state } = this
    const children = state.children(directory)
    const before = { cookie: directory.nextCookie, count: children.size }
    const seen = new Set<string>()
    run.seen = seen
    let tries = 0
    let pages = 0
    let asking = this.#ask(directory, undefined)
    for (let cursor: string | undefined; ; ) {
      const asked = await asking
      if (asked === 'nowhere') return pages
      if (asked === 'moved') return null
      const isOld = asked === 'old' || asked.serial !== this.hooks.serial() || this.hooks.settled() !== null
      if (isOld) {
        if (++tries === TRIES_MAX) return null
        asking = this.#ask(directory, cursor)
        continue
      }
      const { page, path } = asked
      if (path !== state.remotePath(directory)) return null
      pages++
      cursor = page.cursor
      if (cursor !== undefined) {
        asking = this.#ask(directory, cursor)
        asking.catch(() => {})
      }
      for (const entry of page.entries) {
        seen.add(entry.name)
        if (!this.#isOurs(directory, entry.name)) this.take(directory, entry)
      }
      run.page.resolve()
      run.page = deferred()
      if (cursor !== undefined) continue
      if (this.#listed(directory, seen, before)) await this.#takeTimes(directory, path)
      return pages
    }
  }

  async #ask(directory: Inode, cursor: string | undefined): Promise<Asked> {
    let serial = this.hooks.serial()
    let path: string | null = null
    try {
      await this.#untilSettled()
      path = this.state.remotePath(directory)
      if (path === null) return 'nowhere'
      serial = this.hooks.serial()
      const page = await this.remote.list(path, cursor, this.#abort.signal)
      this.unreachable = null
      return { page, path, serial }
    } catch (caught) {
      const error = toFerryError(caught)
      if (isFerryError(error, 'UNREACHABLE', 'DEADLINE')) this.unreachable = error
      if (error.code === 'STALE' && cursor !== undefined) return 'moved'
      if (!isFerryError(error, 'NOT_FOUND', 'NOT_DIRECTORY')) throw error
      if (serial !== this.hooks.serial() || this.hooks.settled()) return 'old'
      this.#listed(directory, new Set(), { cookie: 0, count: 0 })
      throw new FerryError('NOT_FOUND', { cause: error, detail: path ?? undefined })
    }
  }

  /** A remote that was lost in the middle of a batch may stay so: nobody waits for it longer than for any call. */
  async #untilSettled(): Promise<void> {
    const settled = this.hooks.settled()
    if (!settled) return
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      const error = new FerryError('DEADLINE', { detail: 'the batch that the remote is being given' })
      timer = setTimeout(() => reject(error), this.options.deadlineMs).unref()
    })
    try {
      await orAborted(Promise.race([settled, late]), this.#abort.signal)
    } finally {
      clearTimeout(timer)
    }
  }

  /** Others changed names in it: so did its times, by which the kernel knows that its own listing is old. */
  async #takeTimes(directory: Inode, path: string) {
    const serial = this.hooks.serial()
    const entry = await this.remote.stat(path, this.#abort.signal)
    if (!entry || serial !== this.hooks.serial() || directory.changed || directory.flight) return
    this.#takeAttributes(directory, entry)
  }

  /** All its names were seen. @returns whether others changed names that were known */
  #listed(directory: Inode, seen: Set<string>, before: { cookie: number; count: number }): boolean {
    const { state } = this
    const children = state.children(directory)
    const wasListed = directory.listed
    for (const [name, dentry] of [...children]) {
      const isOurs = this.#isOurs(directory, name) || state.settledNames?.has(nameKey(directory.ino, name))
      if (!seen.has(name) && !isOurs) this.#forget(directory, name, state.inode(dentry.ino))
    }
    if (!wasListed) state.persist(directory)
    directory.listed = true
    directory.listedAtMs = state.now.ms()
    return wasListed && (directory.nextCookie !== before.cookie || children.size !== before.count)
  }

  /** Is the name's fate decided here, by a change that the remote has not seen yet? */
  #isOurs(directory: Inode, name: string): boolean {
    const { state } = this
    const key = nameKey(directory.ino, name)
    return state.open.names.has(key) || (state.flight?.names.has(key) ?? false) || state.isLocalOnly(name)
  }

  /** Not to be waited for by who can do without: a remote out of reach, or a batch that is being applied there. */
  get isBusy(): boolean {
    return this.unreachable !== null || this.hooks.settled() !== null
  }

  /** What became of a name when the remote was asked for it; null: it is not there. */
  tell(directory: Inode, name: string, inode: Inode, entry: Entry | null): void {
    const isHere = !this.#isOurs(directory, name) && this.state.child(directory, name) === inode
    if (isHere && entry) this.take(directory, { ...entry, name })
    else if (isHere) this.#forget(directory, name, inode)
    // It has another name by now, which the remote does not know yet.
    else if (entry && inode.guessed && this.#isGuessOf(inode, entry)) this.#guessed(inode, entry)
  }

  /** The entry tells what the guess was about, rather than of another file that has its name now. */
  #isGuessOf(inode: Inode, entry: Entry): boolean {
    return inode.isDirectory ? (entry.mode & S_IFMT) === S_IFDIR : inode.version === entry.version
  }

  #guessed(inode: Inode, entry: Entry) {
    const { state } = this
    const { mode, uid, gid, atimeNs, mtimeNs, ctimeNs, btimeNs, link = '' } = entry
    Object.assign(inode, { mode, uid, gid, atimeNs, mtimeNs, ctimeNs, btimeNs, link, guessed: false, durable: false })
    const directory = inode.parent ? state.inode(inode.parent) : null
    const dentry = directory && state.children(directory).get(inode.name)
    if (dentry?.ino === inode.ino && dentry.type !== inode.type) state.setType(directory!, inode.name, inode)
    state.persist(inode)
  }

  /** One entry of the remote, into the namespace. */
  take(directory: Inode, entry: Entry): Inode {
    const { state } = this
    const known = state.child(directory, entry.name)
    if (known?.guessed && !entry.partial && !known.isDirectory && (entry.mode & S_IFMT) !== S_IFDIR) {
      this.#completed(directory, known, entry)
      return known
    }
    if (known && this.#same(known, entry)) {
      if (!known.changed && !known.flight) this.#takeAttributes(known, entry)
      return known
    }
    if (known && (known.changed || known.flight)) return known
    if (
      known &&
      (known.mode & S_IFMT) === (entry.mode & S_IFMT) &&
      !known.isDirectory &&
      this.#mayReplace(known, entry)
    ) {
      this.#replace(known, entry)
      return known
    }
    if (known) {
      log.info('another file is at the remote than the one that is open here', {
        path: join(state.path(directory) ?? '', entry.name),
        here: known.version,
        there: entry.version,
      })
      this.#forget(directory, entry.name, known)
    }
    return this.#add(directory, entry)
  }

  #same(inode: Inode, entry: Entry): boolean {
    // Whether a file is a symlink its version tells as well.
    if (entry.partial && !inode.isDirectory && inode.version === entry.version) return true
    if ((inode.mode & S_IFMT) !== (entry.mode & S_IFMT)) return false
    if (inode.isDirectory) return true
    if (inode.version === UNKNOWN_VERSION) {
      // Its time is asked for first.
      if (entry.partial) return inode.size === entry.size
      if (isOurs(inode, entry) && mayLearn(inode)) inode.version = entry.version
    }
    return inode.version === entry.version || (!inode.isFile && inode.link === (entry.link ?? ''))
  }

  /** What a guess was about. Nobody has seen it yet: it may become a symlink. */
  #completed(directory: Inode, inode: Inode, entry: Entry) {
    const { state } = this
    const dentry = state.children(directory).get(entry.name)!
    if (inode.version !== entry.version || (entry.mode & S_IFMT) !== (inode.mode & S_IFMT))
      for (const row of state.chunks.rowsOf(inode.ino)) state.dropRow(row)
    inode.takeEntry(entry)
    inode.durable = false
    if (dentry.type !== inode.type) state.setType(directory, entry.name, inode)
    state.persist(inode)
  }

  #takeAttributes(inode: Inode, entry: Entry) {
    if (entry.partial) {
      inode.outdated = true
      return
    }
    inode.outdated = false
    if (inode.guessed) {
      inode.guessed = false
      this.state.persist(inode)
    }
    const size = inode.isDirectory ? inode.size : entry.size
    const same =
      inode.mode === entry.mode &&
      inode.uid === entry.uid &&
      inode.gid === entry.gid &&
      inode.mtimeNs === entry.mtimeNs &&
      inode.nlink === entry.nlink &&
      inode.size === size
    // Not worth telling the kernel, which would forget the file's pages.
    inode.allocated = entry.allocated
    inode.btimeNs ??= entry.btimeNs
    if (same) return
    inode.mode = entry.mode
    inode.uid = entry.uid
    inode.gid = entry.gid
    inode.mtimeNs = entry.mtimeNs
    inode.atimeNs = entry.atimeNs
    inode.ctimeNs = entry.ctimeNs
    if (!inode.isDirectory) inode.nlink = entry.nlink
    inode.durable = false
    this.state.persist(inode)
    if (this.state.isHeld(inode)) this.hooks.kernel().invalidateInode(inode.ino)
  }

  /** A region is one; a writer's inode that somebody holds keeps its version, and so does a reader's that is open, unless the file is the same. */
  #mayReplace(inode: Inode, entry: Entry): boolean {
    if (this.options.isRegion) return true
    if (!this.options.readOnly) return !this.state.isHeld(inode)
    const mayBeOpen = inode.opens > 0 || this.state.isOutlived(inode.ino)
    return !mayBeOpen || isSameFile(inode, entry)
  }

  #replace(inode: Inode, entry: Entry) {
    const { state } = this
    for (const row of state.chunks.rowsOf(inode.ino)) state.dropRow(row)
    inode.takeEntry(entry)
    inode.durable = false
    state.persist(inode)
    if (this.state.isHeld(inode)) this.hooks.kernel().invalidateInode(inode.ino)
  }

  #add(directory: Inode, entry: Entry): Inode {
    const { state } = this
    const linked = entry.id === undefined ? undefined : (state.byId.get(entry.id) ?? state.database.byId(entry.id))
    const other = linked === undefined ? undefined : this.#living(linked)
    // What has changes of ours is the same file whatever its version: the batch that brings them finds out who was first.
    const same =
      other?.id === entry.id &&
      other?.parent &&
      (other.version === entry.version || other.version === UNKNOWN_VERSION || other.changed || other.flight)
    let inode: Inode
    if (other && same) inode = other
    else {
      inode = new Inode(state.newIno())
      inode.takeEntry(entry)
      inode.parent = directory.ino
      inode.name = entry.name
      inode.remoteParent = directory.ino
      inode.remoteName = entry.name
      if (entry.id !== undefined) state.byId.set(entry.id, inode.ino)
      state.inodes.set(inode.ino, inode)
    }
    inode.durable = false
    state.setDentry(directory, entry.name, inode)
    state.persist(inode)
    // The kernel may keep an older listing of it.
    if (directory.listed) this.hooks.kernel().invalidateInode(directory.ino)
    return inode
  }

  #living(ino: Ino): Inode | undefined {
    try {
      return this.state.inode(ino)
    } catch (error) {
      if (isFerryError(error, 'NOT_FOUND')) return undefined
      throw error
    }
  }

  /** Somebody else removed or replaced it. What is open here goes on with the pages it has. */
  #forget(directory: Inode, name: string, inode: Inode) {
    const { state } = this
    if (inode.isDirectory) {
      for (const [child, dentry] of [...state.children(inode)]) {
        if (this.#isOurs(inode, child)) return
        this.#forget(inode, child, state.inode(dentry.ino))
        if (state.children(inode).has(child)) return
      }
      if ((inode.changed | inode.flight) & ~(Changed.attributes | Changed.times)) return
      inode.changed = 0
      state.open.inodes.delete(inode.ino)
    } else if (inode.changed || inode.flight) return
    state.dropDentry(directory, name)
    if (inode.parent === directory.ino && inode.name === name) {
      if (inode.nlink > 1) state.findName(inode)
      else {
        inode.parent = 0
        inode.name = ''
      }
      inode.remoteParent = inode.parent
      inode.remoteName = inode.name
      inode.stale = inode.isFile && inode.parent === 0
      inode.nlink = inode.parent ? inode.nlink - 1 : 0
    }
    state.persist(inode)
    this.hooks.kernel().invalidateEntry(directory.ino, name)
    state.reap(inode)
  }

  /** What the remote says of an inode while no batch of ours moves it about; null: it has none of it. */
  async ask<T>(inode: Inode, question: (path: string) => Promise<T>): Promise<T | null> {
    for (let tries = 0; ; tries++) {
      await this.#untilSettled()
      const path = this.state.remotePath(inode)
      if (path === null) return null
      const serial = this.hooks.serial()
      const inMotion = () => serial !== this.hooks.serial() || this.hooks.settled() !== null
      try {
        const answer = await question(path)
        if (!inMotion() || tries === TRIES_MAX) return answer
      } catch (error) {
        if (!inMotion() || tries === TRIES_MAX) throw error
      }
    }
  }

  /** One file looked at by itself: what a fetch does when the remote surprised it. */
  async again(inode: Inode): Promise<void> {
    const { state } = this
    await this.#untilSettled()
    if (inode.remoteParent <= 0) return
    const directory = state.inode(inode.remoteParent)
    const path = state.remotePath(inode)
    if (path === null) return
    const serial = this.hooks.serial()
    const entry = await this.remote.stat(path, this.#abort.signal)
    if (serial !== this.hooks.serial() || this.hooks.settled()) return
    const isUnknown = inode.version === UNKNOWN_VERSION
    const isSame = isUnknown
      ? inode.changed || inode.flight || (entry && isOurs(inode, entry))
      : entry?.version === inode.version
    if (entry && isSame) {
      if (mayLearn(inode)) inode.version = entry.version
      return
    }
    if (inode.changed || inode.flight) {
      inode.stale = true
      return
    }
    if (!entry) this.#forget(directory, inode.remoteName, inode)
    else this.take(directory, { ...entry, name: inode.remoteName })
  }
}
