// A cached tree: what a front door asks, answered from the state at hand, from the journal's past, or from the remote.
import fs from 'node:fs'
import path from 'node:path'
import { lasting, throwIfAborted } from '../base/async.js'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import { MemoryBudget } from '../base/memory-budget.js'
import { PAGE_BYTES, popcount } from '../chunk/geometry.js'
import { ACCESS_ACL, DEFAULT_ACL, HIDDEN, HIDDEN_BESIDE, isAcl, isCarried, type Usage } from '../remote/tree.js'
import { aclWithMode, inheritAcl, setAcl } from './acl.js'
import { checkpoint, checkpointDue, restore } from './checkpoint.js'
import { Claiming } from './claiming.js'
import { Completion } from './completion.js'
import { Content, FILE_BYTES_MAX, nowNs, type Write } from './content.js'
import { Database, damageOf, type Meta } from './database.js'
import type { RegionExtent } from './door.js'
import { Durability } from './durability.js'
import {
  type AttributeChange,
  type DirectoryEntry,
  type Ino,
  type InodeAttributes,
  type KernelCache,
  type Maybe,
  type NewInode,
  ROOT,
  type Space,
  type Stamped,
  type Whiteout,
} from './filesystem.js'
import { globs } from './globs.js'
import { type Dentry, type Inode, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from './inode.js'
import { Journal, type ReplayResult } from './journal.js'
import { Listing } from './listing.js'
import { checkName, NAME_BYTES_MAX, Names } from './names.js'
import { Profile } from './profile.js'
import { Pull } from './pull.js'
import { Push } from './push.js'
import { Kind } from './records.js'
import { replayRecord } from './replay.js'
import { Room } from './room.js'
import { type CopyRange, Sharing, unshared } from './sharing.js'
import { Slots } from './slots.js'
import { join, rootInode, TreeState, UNKNOWN_VERSION } from './state.js'
import { Subtrees } from './subtrees.js'
import type { CommittingTree, Conflict, Progress, TreeCache, TreeCacheOptions, TreeCacheStatus } from './tree-cache.js'
import { Wholes } from './wholes.js'

const CHECKPOINT_MS = 5_000
/** Replay lets others have the loop after so long. */
const REPLAY_TURN_MS = 10
/** Changed rows, inodes and names that make a checkpoint due before its time. */
const CHECKPOINT_ITEMS = 8_192
const CHECKPOINT_JOURNAL_BYTES = 64 * 1024 * 1024
/** Inodes kept in memory although nobody refers to them. */
const INODES_MAX = 100_000
/** Bytes that one copy_file_range answers at once, if it cannot share them. */
const COPY_BYTES_MAX = 1024 * 1024
const USAGE_TTL_MS = 10_000
const XATTR_NAME_BYTES_MAX = 255
const LISTINGS_OPEN_MAX = 64
/** Directory of the database, in the cache directory. */
const NAMES = 'names'
/** Of the cache, for files that have files of their own. */
const WHOLES_SHARE = 0.5
/** What freed slots may keep of the disk, beyond the budget, so that they are used again without a hole; nothing of a small disk. */
const WARM_BYTES_MAX = 64 * 1024 * 1024
const WARM_DISK_BYTES_MIN = 4 * 1024 ** 3
const NO_DATA = new FerryError('NO_DATA')

/** Opens the cache of a tree: restores what is at hand, takes the lease, and answers from then on. */
export async function openTreeCache(remote: CommittingTree, options: TreeCacheOptions): Promise<TreeCache> {
  const cache = await beginTreeCache(remote, options)
  try {
    await cache.replayed
  } catch (error) {
    await cache.close().catch(() => {})
    throw error
  }
  return cache
}

/** The same, while its journal is still being replayed: see `replayed`. */
export async function beginTreeCache(
  remote: CommittingTree,
  options: TreeCacheOptions,
  signal?: AbortSignal,
): Promise<TreeCache> {
  throwIfAborted(signal)
  const engine = new Engine(remote, options)
  const giveUp = () => void engine.close().catch(() => {})
  signal?.addEventListener('abort', giveUp, { once: true })
  try {
    await engine.open()
    throwIfAborted(signal)
  } catch (error) {
    // The directory is somebody else's only when nothing here touches it any more.
    await engine.close().catch(() => {})
    throwIfAborted(signal)
    throw error
  } finally {
    signal?.removeEventListener('abort', giveUp)
  }
  return engine
}

class Engine implements TreeCache {
  kernel: KernelCache = { invalidateInode: () => {}, invalidateEntry: () => {} }
  readonly state: TreeState
  readonly names: Names
  readonly content: Content
  readonly #sharing: Sharing
  readonly pullQueue: Pull
  readonly push: Push
  readonly listing: Listing
  readonly #journal: Journal
  readonly #slots: Slots
  readonly #database: Database
  readonly #profile: Profile | null
  readonly #durability: Durability
  readonly #memory: MemoryBudget
  readonly #room: Room
  readonly #completion: Completion
  readonly #subtrees: Subtrees
  readonly #claiming: Claiming
  readonly backing: Wholes | undefined
  replayed: Promise<void> = Promise.resolve()
  #isReplayed = false
  #timers: NodeJS.Timeout[] = []
  #checkpointing: Promise<void> | null = null
  #usage: { at: number; usage: Usage | null } = { at: -Infinity, usage: null }
  #usageLooking: Promise<void> | null = null
  /** The last records, up to the first of these, set nothing but times; the other is what came before them. */
  #timesLsn = 0
  #beforeTimesLsn = 0
  #listings = new Map<Ino, { after: number; rest: Iterator<[string, Dentry]> }>()
  #problems = new Map<string, string>()
  #closed = false
  #closing: Promise<void> | undefined
  #background: Promise<void> = Promise.resolve()
  readonly #stop = lasting()

  constructor(
    readonly remote: CommittingTree,
    readonly options: TreeCacheOptions,
  ) {
    const directory = path.join(options.cacheDir, NAMES)
    const damage = damageOf(directory)
    if (damage) this.#setAside(directory, damage)
    fs.mkdirSync(directory, { recursive: true, mode: 0o700 })
    const { storage } = options
    this.#journal = Journal.open(storage, { freeBytesMin: options.cacheBytesFreeMin })
    const spacious = options.storage.freeBytes() > WARM_DISK_BYTES_MIN
    this.#slots = Slots.open(options.storage, {
      warmBytesMax: spacious ? Math.min(WARM_BYTES_MAX, options.cacheBytesMax / 64) : 0,
    })
    this.#database = new Database(directory, {
      reserve: (name, bytes) => storage.reserve(path.join(NAMES, name), bytes),
    })
    const started = performance.now()
    const clock = {
      ms: Date.now,
      ns: options.nowNs,
      second: () => Math.floor((performance.now() - started) / 1000),
    }
    this.state = new TreeState(this.#journal, this.#slots, this.#database, globs(options.localOnly), clock, {
      connection: options.connection,
      writer: options.identity.writer,
    })
    this.names = new Names(this.state)
    this.#memory = new MemoryBudget(options.memoryBytesMax)
    this.backing = options.wholes ? this.#openWholes() : undefined
    if (!options.wholes) Wholes.remove(options.cacheDir)
    this.#room = new Room(this.state, this.#slots, options, {
      evictWhole: () => this.backing?.evictOne() ?? 0,
      poke: () => this.push.hurry(),
      send: signal => this.push.flush('settled', { signal }),
      checkpoint: () => this.#checkpoint(),
    })
    this.pullQueue = new Pull(
      remote,
      this.state,
      {
        fetchBytesMax: options.fetchBytesMax,
        cacheBytesMax: options.cacheBytesMax,
        memoryBytesMax: options.memoryBytesMax,
        deadlineMs: options.deadlineMs,
        workers: options.pullWorkers,
        prefetch: options.prefetch !== 'off',
      },
      {
        makeRoom: bytes => this.#room.forClean(bytes),
        roomMade: bytes => this.#room.arrived(bytes),
        diskFull: () => this.#room.giveBack(),
        surprised: inode => this.#surprised(inode),
      },
      this.#memory,
    )
    this.#durability = new Durability(this.#journal, this.#slots)
    this.content = new Content(
      this.state,
      this.pullQueue,
      this.#durability,
      Math.min(FILE_BYTES_MAX, remote.capabilities.fileBytesMax),
    )
    this.#sharing = new Sharing(this.state, this.content, options.dirtyBytesMax)
    this.push = new Push(
      remote,
      this.state,
      {
        flushIntervalMs: options.flushIntervalMs,
        // A turn is no time to wait for the end of a file.
        delayMsMax: options.shared ? 0 : options.delayMsMax,
        dirtyBytesMax: options.dirtyBytesMax,
        dirtyOperationsMax: options.dirtyOperationsMax,
        workers: options.pushWorkers,
        leaseMs: options.leaseMs,
        shared: options.shared,
      },
      {
        claim: {
          ...options.identity,
          ...{ leaseMs: options.leaseMs, takeOver: options.takeOver, shared: options.shared },
        },
        plan: {
          capabilities: remote.capabilities,
          unknownVersion: options.shared ? UNKNOWN_VERSION : undefined,
          get conflictSuffix() {
            return `.conflict-${options.identity.host}-${new Date().toISOString().replace(/[-:]|\.\d+/g, '')}`
          },
          copies: remote.stageCopy !== undefined,
          complete: inode => this.pullQueue.complete(inode),
        },
        applying: () => this.listing.becomesBusy(),
        settled: conflicts => this.#settled(conflicts),
        durable: async () => this.#durability.reach(),
        replayed: () => this.replayed,
        random: Math.random,
      },
      this.#memory,
    )
    this.listing = new Listing(
      remote,
      this.state,
      {
        ttlMs: options.dirTtlMs,
        deadlineMs: options.deadlineMs,
        readOnly: options.readOnly,
        isRegion: options.isRegion,
      },
      {
        kernel: () => this.kernel,
        serial: () => this.push.serial,
        settled: () => this.push.applying,
      },
    )
    this.#completion = new Completion(remote, this.state, this.listing, this.#stop.signal)
    this.#subtrees = new Subtrees(this.state, this.listing, this.pullQueue, options, this.backing)
    this.#claiming = new Claiming(
      { ...options, host: options.identity.host },
      {
        claim: signal => this.push.claim(signal),
        holder: signal => remote.holder(signal),
        canGoOn: async () => {
          await this.replayed
          return this.#hasSomething
        },
      },
    )
    this.#profile = options.record ? new Profile(options.record) : null
  }

  #openWholes(): Wholes {
    const { cacheDir, cacheBytesMax, connection } = this.options
    return new Wholes(
      this.state,
      { cacheDir, bytesMax: cacheBytesMax * WHOLES_SHARE, connection },
      {
        isComplete: inode => this.pullQueue.complete(inode),
        read: (inode, at, into) => this.content.take(inode, at, into),
        makeRoom: bytes => this.#room.forClean(bytes),
        roomMade: bytes => this.#room.arrived(bytes),
      },
    )
  }

  /** Without the names neither the data nor the journal mean anything: all three are kept for whoever can read them, and we begin anew. */
  #setAside(directory: string, damage: string) {
    const { storage } = this.options
    const end = `.damaged-${Date.now()}`
    for (const name of storage.list())
      if (name === 'data' || /^journal-\d+$/.test(name)) storage.rename(name, name + end)
    // Last: as long as it is there, whoever comes next sets aside what is left.
    fs.renameSync(directory, directory + end)
    this.#problems.set(
      'names',
      `the database of names was damaged (${damage}): it, the data and the journal were set aside as *${end}, with what was not sent`,
    )
  }

  get readOnly() {
    return this.options.readOnly
  }

  // --- life

  async open(): Promise<void> {
    const { state } = this
    const meta = this.#database.meta()
    if (meta) restore(state, meta)
    if (!this.#database.inode(ROOT)) {
      const root = rootInode(nowNs(state))
      state.inodes.set(ROOT, root)
      state.persist(root)
      root.durable = true
    }
    this.replayed = this.#replay(meta)
    this.replayed.catch(() => {}) // whoever goes on with us asks for it
    const root = this.#lookAtRoot()
    if (this.readOnly) await root
    else await Promise.all([root, this.#claiming.claim().finally(() => this.push.opened())])
    this.#background = this.replayed.then(() => this.#subtrees.pullAhead()).catch(error => this.#problem('pull', error))
  }

  /** In turns, so that what goes on beside it (the lease, the mount) is not held up. */
  async #replay(meta: Meta | null): Promise<void> {
    const { state } = this
    state.replaying = true
    const replaying = this.#journal.replaying(
      meta?.lsn ?? 0,
      (_lsn, kind, body) => replayRecord(state, this.names, this.content, kind, body),
      meta?.serial,
      kind => kind === Kind.part,
    )
    let step = replaying.next()
    for (let until = performance.now() + REPLAY_TURN_MS; !step.done; step = replaying.next()) {
      if (performance.now() < until) continue
      await new Promise(setImmediate)
      until = performance.now() + REPLAY_TURN_MS
    }
    state.replayed()
    this.#afterReplay(step.value)
    this.#isReplayed = true
    void this.#slots.reclaim()
    if (this.#closed) return
    this.push.start()
    this.#every(CHECKPOINT_MS, () => this.#checkpoint())
  }

  #afterReplay({ damaged }: ReplayResult) {
    const { state } = this
    if (this.options.outlived) state.outlivedBelow = state.nextIno
    for (const inode of [...state.inodes.values()]) {
      if (inode.children) inode.children = new Map([...inode.children].sort((a, b) => a[1].cookie - b[1].cookie))
      state.reap(inode)
    }
    if (damaged)
      this.#problems.set(
        'journal',
        `the journal is damaged at record ${damaged.lsn}: what came after it was set aside in ${damaged.setAside.join(', ')}`,
      )
  }

  #every(ms: number, work: () => unknown) {
    this.#timers.push(setInterval(() => void work(), ms).unref())
  }

  /** To go on with while the remote is out of reach: names that were listed once, or work that it does not have. */
  get #hasSomething(): boolean {
    const { state } = this
    return state.inode(ROOT).listed || state.flight !== null || !state.open.empty
  }

  /** The root's attributes, and whether the remote answers at all. Offline with something at hand is fine. */
  async #lookAtRoot(): Promise<void> {
    const root = this.state.inode(ROOT)
    try {
      const entry = await this.remote.stat('', this.#stop.signal)
      if (!entry) throw new FerryError('NOT_FOUND', { detail: this.remote.url })
      const take = () => {
        if (root.changed || root.flight) return
        root.mode = entry.mode
        root.uid = entry.uid
        root.gid = entry.gid
        root.mtimeNs = entry.mtimeNs
        root.ctimeNs = entry.ctimeNs
        root.atimeNs = entry.atimeNs
        this.state.persist(root)
      }
      void this.replayed.then(take, () => {})
    } catch (error) {
      await this.replayed
      if (!this.#hasSomething) throw error
      this.listing.unreachable = toFerryError(error)
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#closed = true
    for (const timer of this.#timers) clearInterval(timer)
    this.#claiming.close()
    this.#stop.abort()
    this.#room.close()
    this.#subtrees.close()
    await this.replayed.catch(() => {})
    await this.#background
    await Promise.all([this.pullQueue.close(), this.listing.close(), this.#completion.close(), this.push.close()])
    await this.backing?.close()
    await this.#checkpointing
    try {
      // Half of a journal is no state that anybody should find.
      if (this.#isReplayed) {
        await this.#durability.reach()
        if (!this.#database.damage) await checkpoint(this.state)
      }
    } finally {
      await this.#journal.close()
      this.#slots.close()
      await this.#database.close()
      this.#profile?.save()
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  // --- names

  lookup(parent: Ino, name: string): Maybe<InodeAttributes | null> {
    const directory = this.state.directory(parent)
    const wait = this.listing.freshName(directory, name)
    return wait ? wait.then(() => this.#whole(directory, name)) : this.#whole(directory, name)
  }

  /** With its attributes: what a listing has told may turn out to be gone. */
  #whole(directory: Inode, name: string): Maybe<Inode | null> {
    const inode = this.state.child(directory, name)
    const wait = inode && this.#completion.of(inode)
    return wait ? wait.then(() => this.state.child(directory, name)) : inode
  }

  atHand(ino: Ino): InodeAttributes | null {
    const inode = this.state.inode(ino)
    return inode.partial ? null : inode
  }

  attributes(ino: Ino): InodeAttributes {
    return this.state.inode(ino)
  }

  examine(ino: Ino): Maybe<InodeAttributes> {
    const inode = this.state.inode(ino)
    const listed = inode.isDirectory && inode.listed ? this.listing.fresh(inode) : undefined
    const wait = listed ? listed.then(() => this.#completion.of(inode)) : this.#completion.of(inode)
    // Gone at the remote, it is still what this inode was.
    return wait
      ? wait.then(
          () => inode,
          () => inode,
        )
      : inode
  }

  parentOf(ino: Ino): Ino {
    return this.state.inode(ino).parent || ROOT
  }

  outcome(request: number): Ino | undefined {
    return this.state.outcomes.of(request)
  }

  forgetOutcome(request: number): void {
    this.state.outcomes.answered(request)
  }

  keepOutcomes(requests: ReadonlySet<number>): void {
    this.state.outcomes.keep(requests)
  }

  isOutlived(ino: Ino): boolean {
    return this.state.isOutlived(ino)
  }

  remember(ino: Ino): void {
    const { state } = this
    const inode = state.inode(ino)
    inode.lookups++
    if (!this.options.connection || inode.durable) return
    try {
      state.ensureKnown(inode)
    } catch (error) {
      // Should this process be killed before the next checkpoint, programs that have it open get ESTALE.
      inode.durable = false
      this.#problem('names', error)
    }
  }

  forget(ino: Ino, count: number): void {
    const { state } = this
    const inode = state.isOutlived(ino) ? state.find(ino) : state.inodes.get(ino)
    if (!inode) return
    // The kernel gives all of its references back at once: those that an earlier process gave are among them.
    if (count > inode.lookups) inode.forgotten = true
    inode.lookups = Math.max(0, inode.lookups - count)
    if (inode.lookups === 0) state.reap(inode)
  }

  readLink(ino: Ino): string {
    return this.state.inode(ino).link
  }

  entries(ino: Ino, after: number, countMax: number): Maybe<DirectoryEntry[]> {
    const directory = this.state.directory(ino)
    if (!this.listing.isListed(directory)) return this.#entriesSoFar(directory, after, countMax)
    const wait = this.listing.fresh(directory)
    return wait ? wait.then(() => this.#entries(directory, after, countMax)) : this.#entries(directory, after, countMax)
  }

  /** Of a directory that is being listed: page by page, as they come. */
  async #entriesSoFar(directory: Inode, after: number, countMax: number): Promise<DirectoryEntry[]> {
    for (let last = after; ; last = directory.nextCookie - 1) {
      const isMore = await this.listing.more(directory, last)
      const entries = this.#entries(directory, after, countMax)
      if (entries.length > 0 || !isMore) return entries
    }
  }

  /** A listing goes on where it stopped; a Map's iterator lives on while names come and go. */
  #entries(directory: Inode, after: number, countMax: number): DirectoryEntry[] {
    const paused = this.#listings.get(directory.ino)
    this.#listings.delete(directory.ino)
    const rest = paused?.after === after ? paused.rest : this.state.children(directory).entries()
    const entries: DirectoryEntry[] = []
    let last = after
    while (entries.length < countMax) {
      const next = rest.next()
      if (next.done) return entries
      const [name, dentry] = next.value
      if (dentry.cookie <= after) continue
      entries.push({ name, ino: dentry.ino, type: dentry.type, cookie: dentry.cookie })
      last = dentry.cookie
    }
    if (this.#listings.size >= LISTINGS_OPEN_MAX) this.#listings.clear()
    this.#listings.set(directory.ino, { after: last, rest })
    return entries
  }

  make(parent: Ino, name: string, node: NewInode, request = 0): Maybe<InodeAttributes> {
    const { capabilities } = this.remote
    const type = node.mode & S_IFMT
    if (type === S_IFLNK && !capabilities.symlinks) refuse('the remote has no symlinks')
    if (type !== S_IFLNK && type !== S_IFREG && type !== S_IFDIR && !capabilities.specialFiles)
      refuse('the remote has no special files')
    return this.#change(parent, () =>
      this.#begun(parent, node, (begun, xattrs) => {
        this.#checkPlace(parent, name)
        this.#room.check()
        return this.names.make(parent, name, begun, { request, xattrs })
      }),
    )
  }

  /** What the directory's access control list makes of something new, or else the umask. */
  #begun<T>(parent: Ino, node: NewInode, make: (node: NewInode, xattrs?: Map<string, Uint8Array>) => T): Maybe<T> {
    const { mode, umask } = node
    if (umask === undefined || (mode & S_IFMT) === S_IFLNK) return make(node)
    return this.#withXattrs(parent, ({ xattrs }) => {
      const byDefault = xattrs?.get(DEFAULT_ACL)
      if (!byDefault) return make({ ...node, mode: mode & ~umask })
      const begun = inheritAcl(byDefault, mode)
      const own = new Map<string, Uint8Array>()
      if (begun.acl) own.set(ACCESS_ACL, begun.acl)
      if ((mode & S_IFMT) === S_IFDIR) own.set(DEFAULT_ACL, byDefault)
      return make({ ...node, mode: begun.mode }, own)
    })
  }

  makeNameless(parent: Ino, node: NewInode, request = 0): Maybe<InodeAttributes> {
    return this.#change(parent, () =>
      this.#begun(parent, node, (begun, xattrs) => {
        this.#room.check()
        return this.names.makeNameless(begun, { request, xattrs })
      }),
    )
  }

  link(ino: Ino, parent: Ino, name: string, request = 0): Maybe<InodeAttributes> {
    return this.#change(parent, () => {
      this.#checkPlace(parent, name)
      const inode = this.state.inode(ino)
      if (inode.nlink > 0 && !this.remote.capabilities.hardLinks) refuse('the remote has no hard links')
      this.#checkSide(inode, inode.name, name)
      return this.names.link(ino, parent, name, request)
    })
  }

  unlink(parent: Ino, name: string, request = 0): Maybe<void> {
    return this.#change(parent, () => {
      if (this.#named(parent, name).isDirectory) throw new FerryError('IS_DIRECTORY')
      this.names.remove(parent, name, request)
    })
  }

  removeDirectory(parent: Ino, name: string, request = 0): Maybe<void> {
    return this.#change(parent, () => {
      const inode = this.#named(parent, name)
      if (!inode.isDirectory) throw new FerryError('NOT_DIRECTORY')
      return this.#whenListed(inode, () => {
        if (this.state.children(inode).size) throw new FerryError('NOT_EMPTY')
        this.names.remove(parent, name, request)
      })
    })
  }

  rename(
    source: { parent: Ino; name: string },
    target: { parent: Ino; name: string },
    how: 'replace' | 'noreplace' | 'exchange',
    { whiteout, request }: { whiteout?: Whiteout; request?: number } = {},
  ): Maybe<void> {
    if (whiteout && !this.remote.capabilities.specialFiles) refuse('the remote has no special files')
    return this.#change(source.parent, () =>
      this.#whenListed(this.state.directory(target.parent), () => {
        this.#checkPlace(target.parent, target.name)
        const inode = this.#named(source.parent, source.name)
        const other = this.state.child(this.state.directory(target.parent), target.name)
        this.#checkSide(inode, source.name, target.name)
        if (other && how === 'exchange') this.#checkSide(other, target.name, source.name)
        const move = () => this.names.rename(source, target, { exchange: how === 'exchange', whiteout, request })
        if (how === 'exchange' || !other || other === inode) return move()
        if (how === 'noreplace') throw new FerryError('EXISTS')
        if (inode.isDirectory && !other.isDirectory) throw new FerryError('NOT_DIRECTORY')
        if (!inode.isDirectory && other.isDirectory) throw new FerryError('IS_DIRECTORY')
        if (!other.isDirectory) return move()
        return this.#whenListed(other, () => {
          if (this.state.children(other).size) throw new FerryError('NOT_EMPTY')
          move()
        })
      }),
    )
  }

  /** What the remote could not hold under this name is refused here, not when it is sent. */
  #checkPlace(parent: Ino, name: string) {
    const { pathBytesMax, nameBytesMax } = this.remote.capabilities
    checkName(name)
    if ((parent === ROOT && name === HIDDEN) || name.startsWith(HIDDEN_BESIDE)) refuse(`${name} is pageferry's own`)
    if (this.state.isLocalOnly(name)) return
    const bytes = join(this.state.path(this.state.inode(parent)) ?? '', name).length
    if (name.length > nameBytesMax || bytes > pathBytesMax)
      throw new FerryError('NAME_TOO_LONG', { detail: `${bytes} bytes of path` })
  }

  /** Files whose names never travel are as on a device of their own: one that had both kinds would be at the remote by halves. */
  #checkSide(inode: Inode, name: string, wanted: string) {
    if (!inode.isDirectory && this.state.isLocalOnly(name) !== this.state.isLocalOnly(wanted))
      throw new FerryError('CROSS_DEVICE')
  }

  #named(parent: Ino, name: string): Inode {
    const inode = this.state.child(this.state.directory(parent), name)
    if (!inode) throw new FerryError('NOT_FOUND')
    return inode
  }

  #whenListed<T>(directory: Inode, then: () => Maybe<T>): Maybe<T> {
    const wait = this.listing.fresh(directory)
    return wait ? wait.then(then) : then()
  }

  /** A change in a directory whose names are known, when there is room for one more. */
  #change<T>(parent: Ino, change: () => Maybe<T>): Maybe<T> {
    this.#writable()
    const listed = () => this.#whenListed(this.state.directory(parent), () => this.#done(change()))
    const wait = this.#room.forChange(0)
    return wait ? wait.then(listed) : listed()
  }

  #done<T>(value: Maybe<T>): Maybe<T> {
    if (value instanceof Promise) return value.then(result => this.#done(result))
    this.push.poke()
    if (checkpointDue(this.state) > CHECKPOINT_ITEMS || this.#journal.bytes > CHECKPOINT_JOURNAL_BYTES)
      void this.#checkpoint()
    return value
  }

  #writable() {
    if (this.readOnly) throw new FerryError('READ_ONLY')
    // What the kernel's page cache still holds goes to the journal; nothing new is begun that could never be sent.
    if (this.push.lease.state === 'lost') throw new FerryError('READ_ONLY', { detail: this.push.lease.why })
    if (this.#closed) throw new FerryError('CLOSED')
  }

  // --- attributes

  setAttributes(ino: Ino, change: AttributeChange): Maybe<InodeAttributes> {
    this.#writable()
    const { size, ...rest } = change
    const inode = this.state.inode(ino)
    if (size !== undefined) {
      if (inode.isDirectory) throw new FerryError('IS_DIRECTORY')
      if (size > inode.size) this.#room.check()
    }
    const others = (rest.uid ?? inode.uid) !== inode.uid || (rest.gid ?? inode.gid) !== inode.gid
    if (others && !this.remote.capabilities.owners) refuse('the remote keeps no owners')
    const timesOnly = size === undefined && rest.mode === undefined && rest.uid === undefined && rest.gid === undefined
    // The kernel sends the last times of what was just removed: whoever has it open may ask for them, and nobody after that.
    if (timesOnly && inode.nlink === 0) {
      const { atimeNs = inode.atimeNs, mtimeNs = inode.mtimeNs, ctimeNs = inode.ctimeNs } = rest
      return Object.assign(inode, { atimeNs, mtimeNs, ctimeNs })
    }
    const followsMode = rest.mode !== undefined && this.options.acl && (inode.mode & S_IFMT) !== S_IFLNK
    const apply = () => {
      const before = this.#journal.headLsn
      const acl = followsMode ? inode.xattrs?.get(ACCESS_ACL) : undefined
      if (size !== undefined) this.content.truncate(inode, size, change.mtimeNs ?? nowNs(this.state))
      if (Object.values(rest).some(value => value !== undefined))
        this.names.setAttributes(ino, rest, acl && aclWithMode(acl, rest.mode!))
      if (timesOnly) {
        if (before !== this.#timesLsn) this.#beforeTimesLsn = before
        this.#timesLsn = this.#journal.headLsn
      }
      return inode
    }
    const known = inode.guessed ? this.#completion.of(inode) : undefined
    const room = this.#room.forChange(0)
    const list = followsMode ? this.#withXattrs(ino, () => {}) : undefined
    if (known || room || list instanceof Promise)
      return Promise.all([known, room, list]).then(() => this.#done(apply()))
    return this.#done(apply())
  }

  getXattr(ino: Ino, name: string): Maybe<Uint8Array> {
    return this.#withXattrs(ino, inode => {
      const value = this.#isShown(name) ? inode.xattrs?.get(name) : undefined
      // Asked for all day (security.capability of every new file): not worth an error of its own.
      if (!value) throw NO_DATA
      return value
    })
  }

  listXattrs(ino: Ino): Maybe<string[]> {
    return this.#withXattrs(ino, inode => [...(inode.xattrs?.keys() ?? [])].filter(name => this.#isShown(name)))
  }

  /** Access control lists that the remote has stay as they are, where they mean nothing. */
  #isShown(name: string): boolean {
    return this.options.acl || !isAcl(name)
  }

  setXattr(
    ino: Ino,
    name: string,
    value: Uint8Array,
    how: 'set' | 'create' | 'replace',
    { request, keepsSetGid = true }: { request?: number; keepsSetGid?: boolean } = {},
  ): Maybe<void> {
    this.#writable()
    if (!isCarried(name) || !this.#isShown(name))
      throw new FerryError('UNSUPPORTED', { detail: `${name}: user.* and trusted.* are kept` })
    if (name.length > XATTR_NAME_BYTES_MAX) throw new FerryError('RANGE', { detail: name })
    const copy = new Uint8Array(value)
    const set = isAcl(name) ? setAcl(copy) : null
    return this.#withXattrs(ino, inode => {
      const has = inode.xattrs?.has(name) ?? false
      if (how === 'create' && has) throw new FerryError('EXISTS', { detail: name })
      if (how === 'replace' && !has) throw new FerryError('NO_DATA', { detail: name })
      let bytes = name.length + copy.length
      for (const [other, held] of inode.xattrs ?? []) if (other !== name) bytes += other.length + held.length
      if (this.remote.capabilities.xattrBytesMax === 0)
        throw new FerryError('UNSUPPORTED', { detail: 'the remote has no extended attributes' })
      if (bytes > this.remote.capabilities.xattrBytesMax)
        throw new FerryError('NO_SPACE', { detail: `${bytes} bytes of extended attributes` })
      if (set && name === ACCESS_ACL) {
        const kept = inode.mode & (keepsSetGid ? 0o7000 : 0o5000)
        this.#done(this.names.setXattr(inode, name, set.acl, { request, mode: kept | set.permissions }))
      } else this.#done(this.names.setXattr(inode, name, copy, { request }))
    })
  }

  removeXattr(ino: Ino, name: string, request = 0): Maybe<void> {
    this.#writable()
    return this.#withXattrs(ino, inode => {
      if (!inode.xattrs?.has(name) || !this.#isShown(name)) throw new FerryError('NO_DATA', { detail: name })
      this.#done(this.names.setXattr(inode, name, null, { request }))
    })
  }

  #withXattrs<T>(ino: Ino, use: (inode: Inode) => T): Maybe<T> {
    const inode = this.state.inode(ino)
    if (inode.xattrs) return use(inode)
    if (this.state.remotePath(inode) === null || this.remote.capabilities.xattrBytesMax === 0) {
      inode.xattrs = new Map()
      return use(inode)
    }
    return this.listing
      .ask(inode, path => this.remote.xattrs(path, this.#stop.signal))
      .then(xattrs => {
        inode.xattrs ??= xattrs ?? new Map()
        this.state.persist(inode)
        return use(inode)
      })
  }

  // --- bytes

  opened(ino: Ino, writable: boolean): void {
    const inode = this.state.inode(ino)
    inode.opens++
    if (!writable) return
    // Whatever an earlier writer has left goes with the next batch.
    const isNew = inode.remoteParent === 0 && inode.size === 0
    if (inode.writers === 0) {
      inode.growing = inode.isFile && inode.flight === 0 && (inode.changed === 0 || isNew)
      inode.grownSinceMs = inode.changed === 0 ? 0 : inode.grownSinceMs || this.state.now.ms()
    }
    inode.writers++
  }

  released(ino: Ino, writable: boolean): void {
    const inode = this.state.inodes.get(ino)
    if (!inode) return
    // None of ours: an earlier process was told that it is open.
    if (inode.opens > 0) inode.opens--
    if (writable && inode.writers > 0) inode.writers--
    if (inode.opens > 0) return
    inode.reading = null
    this.backing?.unused(ino)
    this.backing?.consider(inode)
    this.state.reap(inode)
  }

  read(ino: Ino, at: number, into: Uint8Array): Maybe<number> {
    const inode = this.state.inode(ino)
    this.#profile?.touch(() => this.state.path(inode), inode.ino, at, into.length)
    return this.backing?.read(inode, at, into) ?? this.content.read(inode, at, into)
  }

  write(ino: Ino, at: number, from: Uint8Array, stamped?: Stamped): Maybe<void> {
    if (this.readOnly) throw new FerryError('READ_ONLY')
    if (this.#closed) throw new FerryError('CLOSED')
    const inode = this.state.inode(ino)
    if (stamped === 'by-kernel') this.#durability.written()
    const wait = this.#room.forChange(from.length)
    const write = () => this.#done(this.content.write(inode, at, from, stamped))
    if (wait) return wait.then(() => this.#write(write))
    return this.#untilRoom(write)
  }

  /** Once, or again and again while the disk is full. */
  #untilRoom(write: () => Maybe<void>): Maybe<void> {
    const again = (error: unknown) => {
      if (!isFerryError(error, 'NO_SPACE')) throw error
      return this.#write(write)
    }
    try {
      const written = write()
      return written instanceof Promise ? written.catch(again) : written
    } catch (error) {
      return again(error)
    }
  }

  writeAll(ino: Ino, writes: readonly Write[]): Maybe<void> {
    if (this.readOnly) throw new FerryError('READ_ONLY')
    if (this.#closed) throw new FerryError('CLOSED')
    const inode = this.state.inode(ino)
    const bytes = writes.reduce((sum, { from }) => sum + from.length, 0)
    if (bytes === 0) return
    const write = () => this.#untilRoom(() => this.#done(this.content.writeAll(inode, writes)))
    const wait = this.#room.forChange(bytes)
    return wait ? wait.then(write) : write()
  }

  /** The disk is full: what was accepted by write(2) is never refused while anything can still be given back. */
  async #write(write: () => Maybe<void>): Promise<void> {
    const until = performance.now() + this.options.deadlineMs
    for (;;) {
      try {
        await write()
        this.#problems.delete('disk')
        return
      } catch (error) {
        if (!isFerryError(error, 'NO_SPACE') || performance.now() > until) throw error
        this.#problem('disk', error)
        await this.#room.giveBack()
      }
    }
  }

  fsync(ino: Ino, what: 'all' | 'data' = 'all'): Maybe<void> {
    const inode = this.state.inodes.get(ino)
    if (inode) inode.growing = false
    const { headLsn } = this.#journal
    const durable = this.#durability.reach(
      what === 'data' && headLsn === this.#timesLsn ? this.#beforeTimesLsn : headLsn,
    )
    if (this.options.fsync === 'local') return durable
    return Promise.resolve(durable).then(() => this.push.flush('committed'))
  }

  answered(): void {
    if (this.options.fsync === 'local') this.#durability.ahead()
  }

  allocate(
    ino: Ino,
    { at, length }: { at: number; length: number },
    how: { kind: 'allocate' | 'punch' | 'zero'; keepSize: boolean; stamped?: Stamped },
  ): Maybe<void> {
    this.#writable()
    const inode = this.state.inode(ino)
    if (!inode.isFile) throw new FerryError('INVALID', { detail: 'not a file' })
    const end = at + length
    const sizeAfter = how.keepSize || how.kind === 'punch' ? inode.size : Math.max(inode.size, end)
    if (how.kind === 'allocate') {
      const allocate = (space: Space) => {
        this.#room.check()
        if (end - inode.size > space.blocksFree * space.blockBytes)
          throw new FerryError('NO_SPACE', { detail: 'the remote has not so much' })
        if (sizeAfter > inode.size) this.content.truncate(inode, sizeAfter, nowNs(this.state), how.stamped)
        this.#done(this.content.reserve(inode, at, length))
      }
      // A remote that is away is not waited for.
      const space = this.listing.unreachable ? this.#space() : this.space()
      return space instanceof Promise ? space.then(allocate) : allocate(space)
    }
    const zeroed = this.#zero(inode, at, Math.min(end, inode.size), sizeAfter, how.stamped)
    if (how.kind === 'punch') return zeroed
    const reserve = () => this.content.reserve(inode, at, length)
    return zeroed instanceof Promise ? zeroed.then(reserve) : reserve()
  }

  /** The pages at the edges are written, those between them are dropped. */
  #zero(inode: Inode, at: number, end: number, sizeAfter: number, stamped?: Stamped): Maybe<void> {
    const firstPage = Math.ceil(at / PAGE_BYTES) * PAGE_BYTES
    const lastPage =
      end === inode.size ? Math.ceil(end / PAGE_BYTES) * PAGE_BYTES : Math.floor(end / PAGE_BYTES) * PAGE_BYTES
    const edges: [number, number][] =
      firstPage >= end
        ? [[at, end]]
        : [
            [at, firstPage],
            [Math.max(lastPage, firstPage), end],
          ]
    const middle = () => {
      if (lastPage > firstPage) this.content.zero(inode, firstPage, lastPage - firstPage, inode.size, stamped)
      if (sizeAfter > inode.size) this.content.truncate(inode, sizeAfter, nowNs(this.state), stamped)
      return this.#done(undefined)
    }
    let work: Maybe<void> = undefined as Maybe<void>
    for (const [from, to] of edges) {
      if (from >= to) continue
      const write = () => this.write(inode.ino, from, new Uint8Array(to - from), stamped)
      work = work instanceof Promise ? work.then(write) : write()
    }
    return work instanceof Promise ? work.then(middle) : middle()
  }

  seek(ino: Ino, at: number, wanted: 'data' | 'hole'): number {
    return this.content.seek(this.state.inode(ino), at, wanted)
  }

  copy(
    source: { ino: Ino; at: number },
    target: { ino: Ino; at: number },
    length: number,
    stamped?: Stamped,
  ): Maybe<number> {
    this.#writable()
    const inode = this.state.inode(source.ino)
    const range = { source: inode, at: source.at, target: this.state.inode(target.ino), to: target.at, length }
    const rest = (shared: number) => shared || this.#copyBytes(range, stamped)
    const shared = this.#share(range, stamped)
    return shared instanceof Promise ? shared.then(rest) : rest(shared)
  }

  /** What is not here, or not clean, or no whole chunk. What is fetched for it can be shared then. */
  #copyBytes(range: CopyRange, stamped?: Stamped): Maybe<number> {
    const { source, target } = range
    const length = Math.min(unshared(range), COPY_BYTES_MAX, source.size - range.at)
    if (length <= 0) return 0
    const bytes = new Uint8Array(length)
    const write = (count: number): Maybe<number> => {
      const written = this.write(target.ino, range.to, bytes.subarray(0, count), stamped)
      return written instanceof Promise ? written.then(() => count) : count
    }
    const read = this.read(source.ino, range.at, bytes)
    return read instanceof Promise
      ? read.then(async count => (await this.#share(range, stamped)) || write(count))
      : write(read)
  }

  /** Chunks at the start of the range that are clean change hands without being read. 0: there is none. */
  #share(range: CopyRange, stamped?: Stamped): Maybe<number> {
    const bytes = this.#sharing.bytes(range)
    if (bytes === 0) return 0
    const share = (): Maybe<number> => {
      let shared = 0
      const done = this.#untilRoom(() => {
        shared = this.#sharing.share(range, stamped)
        return this.#done(undefined)
      })
      return done instanceof Promise ? done.then(() => shared) : shared
    }
    const wait = this.#room.forChange(bytes)
    return wait ? wait.then(share) : share()
  }

  space(): Maybe<Space> {
    const age = performance.now() - this.#usage.at
    if (age > USAGE_TTL_MS) {
      this.#usageLooking ??= this.remote
        .usage(this.#stop.signal)
        .then(
          usage => {
            this.#usage = { at: performance.now(), usage }
          },
          () => {
            this.#usage = { at: performance.now(), usage: this.#usage.usage }
          },
        )
        .finally(() => {
          this.#usageLooking = null
        })
      if (this.#usage.at === -Infinity) return this.#usageLooking.then(() => this.#space())
    }
    return this.#space()
  }

  #space(): Space {
    const blockBytes = 4096
    const usage = this.#usage.usage ?? {
      bytesTotal: 2 ** 50,
      bytesFree: 2 ** 50,
      filesTotal: 2 ** 32,
      filesFree: 2 ** 32,
    }
    return {
      blockBytes,
      blocksTotal: Math.floor(usage.bytesTotal / blockBytes),
      blocksFree: Math.floor(usage.bytesFree / blockBytes),
      filesTotal: usage.filesTotal,
      filesFree: usage.filesFree,
      nameBytesMax: Math.min(NAME_BYTES_MAX, this.remote.capabilities.nameBytesMax),
    }
  }

  // --- what its owner asks

  async sync(
    options: {
      flushKernel?: () => Promise<void>
      onProgress?: (progress: Progress) => void
      signal?: AbortSignal
    } = {},
  ): Promise<void> {
    await this.replayed
    await options.flushKernel?.()
    if (this.readOnly) return
    await this.push.flush('settled', options)
    if (this.#problems.has('checkpoint')) await this.#checkpoint()
  }

  status(): TreeCacheStatus {
    const { state, options, push } = this
    const oldest = state.flight?.sinceMs || state.open.sinceMs
    const problems = [...this.#problems.values()]
    if (!this.#isReplayed) problems.push('the journal is being replayed: programs wait for it')
    const { damage } = this.#database
    if (damage)
      problems.push(
        `the database of names is damaged (${damage.what}), ${damage.reads} reads of it failed: the journal keeps what changes until the next mount`,
      )
    if (push.lease.state === 'lost' && !this.readOnly)
      problems.push(`writing has stopped: ${push.lease.why}; the journal keeps what was not sent`)
    if (!push.exclusive)
      problems.push('the remote has no conditional puts: two hosts that mount it at the same moment may both write')
    if (this.#claiming.problem) problems.push(`the lease could not be taken yet: ${this.#claiming.problem.message}`)
    if (push.lastError && push.lastError.code !== 'LEASE_LOST')
      problems.push(`changes cannot be sent: ${push.lastError.message}`)
    if (this.listing.unreachable) problems.push(`the remote cannot be listed: ${this.listing.unreachable.message}`)
    const { archived } = this.pullQueue
    if (archived.size)
      problems.push(
        `${archived.size} of the files that were read are archived, and must be restored before they can be: ${JSON.stringify(Buffer.from(archived.values().next().value ?? '', 'latin1').toString())}`,
      )
    if (state.quarantine.size) problems.push(`${state.quarantine.size} refused by the remote for good: see quarantine`)
    return {
      readOnly: this.readOnly,
      contract: this.remote.capabilities.contract ?? 'remote',
      lag: {
        bytes: state.dirtyBytes,
        operations: state.open.operations + (state.flight?.operations ?? 0),
        ageMs: oldest ? Math.max(0, Date.now() - oldest) : 0,
        kernelBytes: 0,
      },
      cache: {
        bytes: state.cachedBytes,
        bytesMax: options.cacheBytesMax,
        dirtyBytes: state.dirtyBytes,
        chunks: state.chunks.count,
        corrupt: state.corrupt,
      },
      memory: { bytes: this.#memory.bytes, bytesMax: options.memoryBytesMax },
      reads: { hits: this.content.hits, misses: this.content.misses, bytes: this.content.bytesRead },
      prefetch: { bytes: this.pullQueue.guessedBytes, usedBytes: this.content.guessedBytesUsed },
      hedged: { asked: this.pullQueue.hedge.asked, won: this.pullQueue.hedge.won },
      batches: {
        committed: push.committedCount,
        copiedBytes: push.copiedBytes,
        inFlight: state.flight ? state.flightBatch : null,
        lastError: push.lastError?.message ?? null,
      },
      lease:
        push.lease.state === 'held'
          ? { holder: `${options.identity.host}:${options.identity.pid}`, epoch: push.lease.epoch }
          : null,
      conflicts: this.conflicts(),
      quarantine: [...state.quarantine.values()],
      problems,
      inodes: { memory: state.inodes.size, known: this.#database.inodesKnown },
    }
  }

  unsent(countMax: number): string[] {
    const { state } = this
    const paths: string[] = []
    for (const changes of [state.flight, state.open]) {
      for (const ino of changes?.inodes ?? []) {
        const inode = state.inode(ino)
        const at = state.path(inode)
        if (at !== null && !inode.isDirectory && !state.isLocalOnly(inode.name)) paths.push(at)
        if (paths.length >= countMax) return paths
      }
    }
    return paths
  }

  conflicts(): Conflict[] {
    return this.state.conflicts
  }

  present(ino: Ino): number {
    const { chunks } = this.state
    const inode = this.state.inode(ino)
    if (this.backing?.has(inode)) return Math.ceil(inode.size / PAGE_BYTES) * PAGE_BYTES
    const zeroBytes = inode.zeros?.bytes ?? 0
    return chunks.rowsOf(ino).reduce((sum, row) => sum + popcount(chunks.valid[row]) * PAGE_BYTES, zeroBytes)
  }

  presence(ino: Ino, countMax: number): [from: number, to: number][] {
    const inode = this.state.inode(ino)
    return this.backing?.has(inode) ? [[0, inode.size]] : this.content.presence(inode, countMax)
  }

  prefetch(ino: Ino, at: number, length: number): Promise<void> {
    const inode = this.state.inode(ino)
    return this.backing?.has(inode) ? Promise.resolve() : this.pullQueue.need(inode, at, length)
  }

  extents(ino: Ino, at: number, length: number, countMax: number): RegionExtent[] {
    return this.content.extents(this.state.inode(ino), at, length, countMax)
  }

  async pull(
    at: string,
    options: { onProgress?: (progress: Progress) => void; signal?: AbortSignal } = {},
  ): Promise<{ files: number; bytes: number }> {
    await this.replayed
    return this.#subtrees.pull(at, options)
  }

  async evict(at: string): Promise<{ files: number; bytes: number }> {
    await this.replayed
    const evicted = await this.#subtrees.evict(at, ino => this.kernel.invalidateInode(ino))
    await this.#checkpoint()
    await this.#slots.trim()
    return evicted
  }

  async refresh(at: string): Promise<{ entries: number; changed: number }> {
    await this.replayed
    return this.#subtrees.refresh(at)
  }

  // --- in the background

  #settled(conflicts: { parent: Ino; name: string; keptAs: string }[]) {
    this.listing.unreachable = null
    for (const { parent, name, keptAs } of conflicts) {
      this.kernel.invalidateEntry(parent, name)
      this.kernel.invalidateEntry(parent, keptAs.slice(keptAs.lastIndexOf('/') + 1))
    }
    this.#room.look()
  }

  letIn(on: boolean): void {
    this.#room.letIn(on)
  }

  async #surprised(inode: Inode): Promise<void> {
    if (this.#closed) throw new FerryError('CLOSED')
    await this.listing.again(inode)
  }

  #checkpoint(): Promise<void> {
    if (this.#checkpointing) return this.#checkpointing
    if (this.#database.damage) return Promise.resolve()
    if (checkpointDue(this.state) === 0 && this.state.changesPersisted && this.#slots.pendingSlots === 0)
      return Promise.resolve()
    this.state.changesPersisted = true
    this.#checkpointing = checkpoint(this.state)
      .then(
        () => {
          if (this.#room.checkpointed()) this.#problems.delete('disk')
          this.#trim()
        },
        error => {
          this.state.changesPersisted = false
          this.#problem('checkpoint', error)
        },
      )
      .finally(() => {
        this.#checkpointing = null
      })
    return this.#checkpointing
  }

  /** Inodes that nobody refers to and the database knows as they are leave the memory. */
  #trim() {
    const { state } = this
    this.#problems.delete('checkpoint')
    if (state.inodes.size <= INODES_MAX) return
    const pending = new Set([...state.persistDentries.values()].map(({ parent }) => parent))
    for (const [ino, inode] of state.inodes) {
      if (state.inodes.size <= INODES_MAX / 2) return
      const isNameless = inode.parent === 0 && state.isHeld(inode)
      const busy =
        inode.lookups || inode.opens || isNameless || inode.changed || inode.flight || !inode.durable || ino === ROOT
      if (busy || pending.has(ino) || state.persistInodes.has(inode) || state.open.inodes.has(ino)) continue
      state.inodes.delete(ino)
    }
  }

  #problem(about: string, error: unknown) {
    this.#problems.set(about, `${about}: ${toFerryError(error).message}`)
  }
}

/** EPERM, where it is asked for, instead of a surprise when it is sent. */
function refuse(detail: string): never {
  throw new FerryError('NOT_PERMITTED', { detail })
}
