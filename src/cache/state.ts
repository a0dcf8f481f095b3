// The whole state of a cached tree in memory, and how it changes. Live operations and replay go through the same functions.

import { FerryError } from '../base/errors.js'
import { CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, popcount } from '../chunk/geometry.js'
import type { AheadRun } from './ahead.js'
import { CHECKPOINTED, ChunkTable, GUESSED, NAMED, type Row, SEALED } from './chunk-table.js'
import { CleanChunks } from './clean-chunks.js'
import type { Database } from './database.js'
import type { Ino } from './filesystem.js'
import { ROOT } from './filesystem.js'
import { Changed, type Dentry, Inode, S_IFDIR } from './inode.js'
import type { Journal } from './journal.js'
import { Outcomes } from './outcomes.js'
import { Kind, packRecord } from './records.js'
import type { Copied } from './sharing.js'
import type { Slots } from './slots.js'

/** A name that changed since a cut, and the inode that it stood for then (0: none). */
export interface NameChange {
  parent: Ino
  name: string
  base: Ino
}

/** Changes since one cut and up to the next. */
export class Changes {
  /** By number: they are loaded when the batch is cut. */
  readonly inodes = new Set<Ino>()
  readonly names = new Map<string, NameChange>()
  /** Rows with dirty pages. */
  readonly rows = new Set<Row>()
  /** Inodes that lost their last name while open, now forgotten: what the remote keeps of them can go. */
  readonly orphans = new Set<Ino>()
  operations = 0
  /** Wall clock of the first change; 0: none. */
  sinceMs = 0

  get empty() {
    return this.inodes.size === 0 && this.names.size === 0 && this.orphans.size === 0
  }
}

export interface Quarantined {
  path: string
  code: string
  detail: string
}

/** Of a chunk that is copied aside: a new one each time is a page fault for every 4 KiB, and work for the collector. */
const scratch = new Uint8Array(CHUNK_BYTES)

export const nameKey = (parent: Ino, name: string) => `${parent}/${name}`

/** Persisted with room to spare, so that an inode number is never used twice though the last ones were not persisted. */
const INO_RESERVE = 65_536

/** Files that one batch leaves out at most: their numbers stand in one record. */
const GROWING_MAX = 10_000

export class TreeState {
  readonly chunks = new ChunkTable()
  readonly clean: CleanChunks
  readonly inodes = new Map<Ino, Inode>()
  readonly byId = new Map<string, Ino>()
  open = new Changes()
  /** The batch that is on its way: frozen at its cut, until it is known to be committed. */
  flight: Changes | null = null
  flightBatch = 0
  /** Number of the last batch that was cut. */
  batch = 0
  nextIno: Ino = ROOT + 1
  inoReserved = 0
  readonly quarantine = new Map<Ino, Quarantined>()
  /** What was sent of files that grow, before their batch is cut; and of those that the flight has. */
  readonly ahead = new Map<Ino, AheadRun>()
  readonly flightAhead = new Map<Ino, AheadRun>()
  /** By file and chunk: dirty chunks whose bytes the remote has in another place. */
  readonly copies = new Map<Ino, Map<number, Copied>>()
  conflicts: { path: string; keptAs: string; atMs: number }[] = []
  /** Names that batches have settled while directories are being listed; null: none is. */
  settledNames: Set<string> | null = null

  /** Pages whose bytes are in the data file: clean, dirty, and copies that a batch still needs. */
  pages = 0
  dirtyPages = 0
  corrupt = 0

  /** What the next checkpoint must write. */
  readonly persistInodes = new Set<Inode>()
  readonly persistRows = new Set<Row>()
  readonly persistDentries = new Map<string, { parent: Ino; name: string }>()
  readonly removedRows: { ino: Ino; index: number }[] = []
  readonly removedInodes: Ino[] = []
  /** Forgotten here, and still in the database until the checkpoint that removes them is done. */
  readonly gone = new Set<Ino>()
  changesPersisted = false

  /** Smaller numbers an earlier process gave to a kernel that is still there: it has them until it forgets them. 0: none. */
  outlivedBelow: Ino = 0
  readonly outcomes: Outcomes

  replaying = false
  readonly #freedInReplay = new Set<number>()

  constructor(
    readonly journal: Journal,
    readonly slots: Slots,
    readonly database: Database,
    readonly isLocalOnly: (name: string) => boolean,
    readonly now: { ms: () => number; ns: () => bigint; second: () => number },
    /** `writer`: what the remote knows this cache directory by. */
    readonly options: { connection: number; writer: string },
  ) {
    this.outcomes = new Outcomes(options.connection)
    this.clean = new CleanChunks(this.chunks, row => this.dropRow(row))
  }

  // --- inodes and names

  /** NOT_FOUND for a number that nobody was given, or that was forgotten. */
  inode(ino: Ino): Inode {
    const inode = this.find(ino)
    if (!inode) throw new FerryError('NOT_FOUND', { detail: `inode ${ino}` })
    return inode
  }

  /** The same; null for such a number. */
  find(ino: Ino): Inode | null {
    const known = this.inodes.get(ino)
    if (known) return known
    const record = this.gone.has(ino) ? undefined : this.database.inode(ino)
    if (!record) return null
    const inode = Inode.fromRecord(record)
    inode.durable = true
    this.inodes.set(ino, inode)
    return inode
  }

  directory(ino: Ino): Inode {
    const inode = this.inode(ino)
    if (!inode.isDirectory) throw new FerryError('NOT_DIRECTORY')
    return inode
  }

  newIno(): Ino {
    return this.nextIno++
  }

  children(directory: Inode): Map<string, Dentry> {
    return (directory.children ??= this.database.dentries(directory.ino))
  }

  child(directory: Inode, name: string): Inode | null {
    const dentry = this.children(directory).get(name)
    return dentry ? this.inode(dentry.ino) : null
  }

  persist(inode: Inode): void {
    this.persistInodes.add(inode)
  }

  setDentry(directory: Inode, name: string, inode: Inode, cookie = directory.nextCookie++): void {
    const children = this.children(directory)
    children.delete(name)
    children.set(name, { ino: inode.ino, type: inode.type, cookie })
    this.#persistDentry(directory, name)
  }

  /** What kind of thing the name stands for turned out; its place in listings stays. */
  setType(directory: Inode, name: string, inode: Inode): void {
    this.children(directory).get(name)!.type = inode.type
    this.#persistDentry(directory, name)
  }

  dropDentry(directory: Inode, name: string): void {
    this.children(directory).delete(name)
    this.#persistDentry(directory, name)
  }

  #persistDentry(directory: Inode, name: string) {
    this.persistDentries.set(nameKey(directory.ino, name), { parent: directory.ino, name })
    this.persist(directory)
  }

  /** Another of its names, or none. */
  findName(inode: Inode): void {
    inode.parent = 0
    inode.name = ''
    if (inode.isDirectory || inode.nlink === 0) return
    for (const { parent, name } of this.#namesOf(inode)) {
      inode.parent = parent
      inode.name = name
      return
    }
  }

  /** Hard links are rare: everything is searched, the directories in memory and then the others. */
  *#namesOf(inode: Inode): Iterable<{ parent: Ino; name: string }> {
    for (const directory of this.inodes.values()) {
      for (const [name, dentry] of directory.children ?? [])
        if (dentry.ino === inode.ino) yield { parent: directory.ino, name }
    }
    for (const { parent, name, ino } of this.database.names())
      if (ino === inode.ino && !this.gone.has(parent) && !this.inodes.get(parent)?.children) yield { parent, name }
  }

  // --- what changed

  /** The inode is different from what the remote has. */
  mark(inode: Inode, flags: number): void {
    inode.changed |= flags
    this.persist(inode)
    this.open.inodes.add(inode.ino)
    this.#count()
    // Whatever changed may be what the remote would not take: it is tried again.
    this.quarantine.delete(inode.ino)
  }

  /** A name is about to stand for something else than `base`. */
  markName(parent: Ino, name: string, base: Ino): void {
    const key = nameKey(parent, name)
    if (!this.open.names.has(key)) this.open.names.set(key, { parent, name, base })
    this.#count()
  }

  #count() {
    this.open.operations++
    if (this.open.sinceMs === 0) this.open.sinceMs = this.now.ms()
    this.changesPersisted = false
  }

  // --- pages and slots

  rowOf(inode: Inode, index: number): Row {
    return this.chunks.find(inode.ino, index)
  }

  needRow(inode: Inode, index: number): Row {
    const row = this.chunks.find(inode.ino, index)
    if (row) return row
    const made = this.chunks.add(inode.ino, index)
    this.chunks.bornSecond[made] = this.now.second()
    return made
  }

  setValid(row: Row, mask: number): void {
    const { chunks } = this
    this.pages += popcount(mask) - popcount(chunks.valid[row])
    chunks.valid[row] = mask
    chunks.written[row] |= mask
    chunks.sumLow[row] = chunks.sumHigh[row] = 0
    this.persistRows.add(row)
  }

  /** Pages of a row changed: they are valid, dirty, and no longer anybody's guess. */
  dirty(row: Row, mask: number): void {
    const { chunks } = this
    this.#touch(row)
    this.clean.delete(row)
    this.setValid(row, (chunks.valid[row] | mask) >>> 0)
    const before = chunks.dirty[row]
    chunks.dirty[row] |= mask
    this.dirtyPages += popcount(chunks.dirty[row]) - popcount(before)
    chunks.flags[row] = (chunks.flags[row] & ~GUESSED) | NAMED
    this.open.rows.add(row)
    if (before === 0) this.persistRows.add(row)
  }

  /** What was sent ahead of a chunk, or is elsewhere at the remote, is not what it has now. */
  #touch(row: Row) {
    if (this.copies.size > 0) this.#forgetCopy(row)
    if (this.ahead.size > 0) this.ahead.get(this.chunks.ino[row])?.touch(this.chunks.index[row])
  }

  #free(slot: number, pages: number) {
    if (this.slots.unshare(slot)) return
    if (this.replaying) this.#freedInReplay.add(slot)
    else this.slots.free(slot, pages)
  }

  /** A record names the slot. What replay let go of, since it knows nothing of pages that were only fetched, it takes back. */
  adopt(slot: number): void {
    this.slots.markUsed(slot)
    this.#freedInReplay.delete(slot)
  }

  /** From now on the row has the slot of another one. In replay that one may have let go of it, or not be known. */
  shareSlot(row: Row, slot: number): void {
    if (this.chunks.slot[row] === slot) return
    if (this.slots.isUsed(slot) && !this.#freedInReplay.has(slot)) this.slots.share(slot)
    else this.adopt(slot)
    this.moveTo(row, slot, false)
  }

  /** A record names its slot for another row: whoever lets go of it last frees it as such. Its checksum is kept, by which replay finds it. */
  wasShared(row: Row): void {
    this.chunks.flags[row] |= NAMED
    this.persistRows.add(row)
  }

  /** The remote has the bytes of this chunk elsewhere. */
  copied(ino: Ino, index: number, copied: Copied): void {
    const copies = this.copies.get(ino) ?? new Map<number, Copied>()
    this.copies.set(ino, copies)
    copies.set(index, copied)
  }

  #forgetCopy(row: Row) {
    const ino = this.chunks.ino[row]
    const copies = this.copies.get(ino)
    copies?.delete(this.chunks.index[row])
    if (copies?.size === 0) this.copies.delete(ino)
  }

  /** What replay let go of and nothing took back is free. */
  replayed(): void {
    this.replaying = false
    for (const slot of this.#freedInReplay) this.slots.free(slot)
    this.#freedInReplay.clear()
  }

  /**
   * These pages of a row may be changed in place; otherwise the row must be copied aside first. Power loss may keep the new bytes and
   * lose the record of them: in a page that a checkpoint has as clean nobody would ever find that out.
   */
  mayOverwrite(row: Row, mask: number): boolean {
    const { chunks, slots } = this
    const clean = (mask & chunks.valid[row] & ~chunks.dirty[row]) !== 0
    return (
      (chunks.flags[row] & SEALED) === 0 &&
      !slots.isShared(chunks.slot[row]) &&
      !(clean && chunks.flags[row] & CHECKPOINTED) &&
      (chunks.flight[row] === 0 || chunks.flightSlot[row] !== chunks.slot[row])
    )
  }

  /** From now on the row's bytes are at `slot`; `copy` brings the valid pages along. */
  moveTo(row: Row, slot: number, copy: boolean): void {
    const { chunks, slots } = this
    const old = chunks.slot[row]
    if (old === slot) return
    if (copy && old && chunks.valid[row]) {
      slots.readSync(old, 0, scratch)
      slots.writeSync(slot, 0, scratch)
    }
    const pages = popcount(chunks.written[row])
    chunks.slot[row] = slot
    chunks.written[row] = copy ? chunks.valid[row] : 0
    chunks.flags[row] &= ~(SEALED | CHECKPOINTED)
    if (old) chunks.flags[row] |= NAMED
    this.persistRows.add(row)
    if (!old) return
    if (chunks.flight[row] && chunks.flightSlot[row] === old) this.pages += popcount(chunks.flight[row])
    else this.#free(old, pages)
  }

  /** Pages of a row are gone (cut off, or replaced at the remote): absent pages are zeros or the remote's. */
  dropPages(row: Row, mask: number): void {
    const { chunks } = this
    this.#touch(row)
    this.clean.delete(row)
    this.dirtyPages -= popcount(chunks.dirty[row] & mask)
    chunks.dirty[row] &= ~mask
    if (chunks.dirty[row] === 0) this.open.rows.delete(row)
    this.setValid(row, (chunks.valid[row] & ~mask) >>> 0)
    if (chunks.valid[row] === 0 && chunks.flight[row] === 0) this.dropRow(row)
    else this.settleRow(row)
  }

  /** A row that is neither dirty nor on its way may leave when room is needed. */
  settleRow(row: Row): void {
    const { chunks } = this
    if (chunks.dirty[row] || chunks.flight[row] || !chunks.valid[row]) return
    if (!this.#isOnlyHere(chunks.ino[row])) this.clean.set(row, popcount(chunks.valid[row]))
  }

  /** The remote will have none of it, and somebody has it open: there is no other copy from here on. */
  keepHere(inode: Inode): void {
    for (const row of this.chunks.rowsOf(inode.ino)) this.clean.delete(row)
  }

  /** What the remote has as well of its pages. */
  dropClean(inode: Inode): void {
    const { chunks } = this
    for (const row of chunks.rowsOf(inode.ino)) if (!chunks.dirty[row] && !chunks.flight[row]) this.dropRow(row)
  }

  /** A file that lost its name before the remote heard of it, and is open: there is no other copy. */
  #isOnlyHere(ino: Ino): boolean {
    const inode = this.inodes.get(ino)
    return inode !== undefined && inode.parent === 0 && inode.remoteParent === 0 && ino !== ROOT
  }

  dropRow(row: Row): void {
    const { chunks } = this
    this.clean.delete(row)
    this.pages -= popcount(chunks.valid[row])
    this.dirtyPages -= popcount(chunks.dirty[row])
    if (chunks.flight[row]) this.#releaseFlight(row)
    if (chunks.slot[row]) {
      // What was only fetched gives its space back at once: a full disk may have no room for a checkpoint.
      if (this.replaying || chunks.flags[row] & NAMED) this.#free(chunks.slot[row], popcount(chunks.written[row]))
      else this.slots.freeNow(chunks.slot[row])
    }
    this.open.rows.delete(row)
    this.persistRows.delete(row)
    this.removedRows.push({ ino: chunks.ino[row], index: chunks.index[row] })
    chunks.remove(row)
  }

  #releaseFlight(row: Row) {
    const { chunks } = this
    const pages = popcount(chunks.flight[row])
    this.dirtyPages -= pages
    if (chunks.flightSlot[row] !== chunks.slot[row]) {
      this.pages -= pages
      this.#free(chunks.flightSlot[row], CHUNK_PAGES)
    }
    chunks.flight[row] = 0
    chunks.flightSlot[row] = 0
    this.persistRows.add(row)
  }

  // --- batches

  /**
   * Files that may stay as the last batch had them until they are closed or `delayMsMax` have passed: somebody writes them, and only
   * appends. None whose name meant something else at the remote, or had another name there: names go with every batch.
   */
  growing(delayMsMax: number): Set<Ino> {
    const growing = new Set<Ino>()
    for (const ino of this.open.inodes) {
      const inode = this.inodes.get(ino)
      if (growing.size === GROWING_MAX) break
      if (inode?.growing && inode.writers > 0 && this.#isYoung(inode, delayMsMax) && this.#keepsName(inode))
        growing.add(ino)
    }
    return growing
  }

  /** A clock that was set back makes nothing young. */
  #isYoung({ grownSinceMs }: Inode, delayMsMax: number): boolean {
    const ageMs = this.now.ms() - grownSinceMs
    return ageMs >= 0 && ageMs < delayMsMax
  }

  #keepsName(inode: Inode): boolean {
    if (!(inode.changed & Changed.names)) return true
    if (inode.remoteParent !== 0 || inode.nlink !== 1) return false
    return this.open.names.get(nameKey(inode.parent, inode.name))?.base === 0
  }

  /** A cut that leaves these out would find nothing. */
  isOnly(inos: Set<Ino>): boolean {
    const { inodes, names, orphans } = this.open
    if (orphans.size > 0) return false
    for (const ino of inodes) if (!inos.has(ino) && !this.#held(this.inode(ino))) return false
    for (const change of names.values()) if (!inos.has(this.#inoNow(change)) && !this.#heldName(change)) return false
    return true
  }

  /** Freeze everything up to here, but for `held`: what is open becomes the flight. There must be none on its way. */
  cut(batch: number, held: Set<Ino>): void {
    const { chunks } = this
    const flight = this.open
    this.open = new Changes()
    this.flight = flight
    this.flightBatch = batch
    this.batch = batch
    for (const ino of flight.inodes) {
      const inode = this.inode(ino)
      if (held.has(ino) || this.#held(inode)) {
        flight.inodes.delete(ino)
        this.open.inodes.add(inode.ino)
        continue
      }
      inode.flight = inode.changed
      inode.changed = 0
      inode.flightParent = inode.parent
      inode.flightName = inode.name
      inode.flightSize = inode.size
      inode.flightFloor = inode.floor
      inode.floor = inode.size
      inode.zeros?.cut()
      inode.grownSinceMs = 0
      this.persist(inode)
      const sent = this.ahead.get(ino)
      if (sent) this.flightAhead.set(ino, sent)
      this.ahead.delete(ino)
    }
    for (const [key, change] of flight.names) {
      if (held.has(this.#inoNow(change)) || this.#heldName(change)) {
        flight.names.delete(key)
        this.open.names.set(key, change)
      }
    }
    for (const row of flight.rows) {
      if (!flight.inodes.has(chunks.ino[row])) {
        flight.rows.delete(row)
        this.open.rows.add(row)
        continue
      }
      chunks.flight[row] = chunks.dirty[row]
      chunks.flightSlot[row] = chunks.slot[row]
      chunks.dirty[row] = 0
      this.persistRows.add(row)
    }
    if (!this.open.empty) {
      this.open.operations = this.open.inodes.size + this.open.names.size
      const since = [...held].map(ino => this.inodes.get(ino)?.grownSinceMs || flight.sinceMs)
      this.open.sinceMs = this.quarantine.size || since.length === 0 ? flight.sinceMs : Math.min(...since)
    }
    this.changesPersisted = false
  }

  /** In quarantine, below something that is, or never to travel. */
  #held(inode: Inode): boolean {
    if (inode.parent && this.isLocalOnly(inode.name) && !inode.isDirectory && inode.remoteParent === 0) return true
    for (let at = inode; ; at = this.inode(at.parent)) {
      if (this.quarantine.has(at.ino)) return true
      if (at.ino === ROOT || at.parent === 0) return false
    }
  }

  #heldName(change: NameChange): boolean {
    const directory = this.find(change.parent)
    if (!directory) return false
    const now = this.#inoNow(change)
    return (now !== 0 && this.#held(this.inode(now))) || this.#held(directory)
  }

  /** What the name stands for now; 0: nothing. */
  #inoNow({ parent, name }: NameChange): Ino {
    const directory = this.find(parent)
    return directory ? (this.children(directory).get(name)?.ino ?? 0) : 0
  }

  /**
   * The flight is at the remote. `versions` tells those of the files. One whose bytes changed and that it leaves out has a version
   * that must be asked for; one that only got attributes keeps the version it had: should that be wrong, it was not we who changed it.
   */
  committed(versions: Map<Ino, string>, refused: Map<Ino, Quarantined>): void {
    const flight = this.flight
    if (!flight) return
    for (const ino of flight.inodes) {
      const inode = this.inode(ino)
      const refusal = refused.get(ino)
      if (refusal) {
        this.#restore(inode)
        this.quarantine.set(inode.ino, refusal)
        continue
      }
      const flags = inode.flight
      inode.flight = 0
      inode.zeros?.committed()
      if (inode.flightParent && !(this.isLocalOnly(inode.flightName) && !inode.isDirectory)) {
        inode.remoteParent = inode.flightParent
        inode.remoteName = inode.flightName
      }
      // Without a name, now and before, it was left out.
      const isThere = inode.flightParent !== 0 || inode.remoteParent !== 0
      if (isThere && flags & (Changed.new | Changed.data)) {
        inode.version = versions.get(inode.ino) ?? (inode.isFile ? UNKNOWN_VERSION : '')
        inode.baseSize = Math.min(inode.flightSize, inode.floor)
      } else if (inode.isFile) inode.version = versions.get(inode.ino) ?? inode.version
      this.persist(inode)
    }
    // Where a move makes another version, so has what lies in a directory that moved.
    for (const [ino, version] of versions) {
      const inode = flight.inodes.has(ino) ? null : this.find(ino)
      if (!inode) continue
      inode.version = version
      this.persist(inode)
    }
    for (const row of flight.rows) {
      if (this.chunks.flight[row] === 0) continue
      if (refused.has(this.chunks.ino[row])) continue
      this.#releaseFlight(row)
      if (this.chunks.dirty[row] === 0) this.#forgetCopy(row)
      if (this.chunks.valid[row] === 0) this.dropRow(row)
      else this.settleRow(row)
    }
    for (const [key, change] of flight.names) {
      const directory = this.find(change.parent)
      const now = directory && this.children(directory).get(change.name)
      if (refused.has(change.base) || (now && refused.has(now.ino))) {
        if (!this.open.names.has(key)) this.open.names.set(key, change)
        continue
      }
      const inode = this.find(change.base)
      // Not if it had another name at the cut, which it lost only since: there the remote still has it.
      if (inode && inode.parent === 0 && inode.flightParent === 0 && inode.remoteParent > 0) {
        inode.remoteParent = 0
        this.keepHere(inode)
        this.persist(inode)
      }
    }
    for (const key of flight.names.keys()) this.settledNames?.add(key)
    this.flight = null
    this.flightBatch = 0
    this.changesPersisted = false
    for (const ino of flight.inodes) this.reap(this.inode(ino))
  }

  /** The flight never was committed: it goes with what is open. */
  merged(): void {
    const flight = this.flight
    if (!flight) return
    this.flight = null
    this.flightBatch = 0
    for (const ino of flight.inodes) this.#restore(this.inode(ino))
    for (const [key, change] of flight.names) this.open.names.set(key, change)
    for (const ino of flight.orphans) this.open.orphans.add(ino)
    this.open.operations += flight.operations
    this.open.sinceMs = flight.sinceMs
    this.changesPersisted = false
  }

  #restore(inode: Inode) {
    const { chunks } = this
    inode.changed |= inode.flight
    inode.floor = Math.min(inode.floor, inode.flightFloor)
    inode.flight = 0
    inode.zeros?.merged()
    this.open.inodes.add(inode.ino)
    this.persist(inode)
    for (const row of chunks.rowsOf(inode.ino)) {
      if (chunks.flight[row] === 0) continue
      const again = (chunks.flight[row] & chunks.valid[row]) >>> 0
      const before = popcount(chunks.dirty[row])
      chunks.dirty[row] |= again
      this.dirtyPages += popcount(chunks.dirty[row]) - before
      this.open.rows.add(row)
      this.#releaseFlight(row)
      if (chunks.valid[row] === 0) this.dropRow(row)
    }
  }

  /** The kernel may ask for it. */
  isHeld(inode: Inode): boolean {
    return inode.lookups > 0 || inode.opens > 0 || this.isOutlived(inode.ino)
  }

  /** An earlier process gave it to the kernel, which has not let go of it since. */
  isOutlived(ino: Ino): boolean {
    return ino < this.outlivedBelow && !this.inodes.get(ino)?.forgotten
  }

  /** Drop an inode that has no name and no reference: its pages at once, the rest when the remote has none of it either. */
  reap(inode: Inode): void {
    // Then who had it open is not known, and later records may name it: its turn comes after the last one.
    if (this.replaying) return
    if (inode.parent !== 0 || this.isHeld(inode) || inode.flight || inode.ino === ROOT) return
    for (const row of this.chunks.rowsOf(inode.ino)) this.dropRow(row)
    if (inode.remoteParent > 0) return
    if (inode.remoteParent === -1) this.open.orphans.add(inode.ino)
    this.open.inodes.delete(inode.ino)
    this.copies.delete(inode.ino)
    this.inodes.delete(inode.ino)
    this.persistInodes.delete(inode)
    if (inode.id) this.byId.delete(inode.id)
    this.removedInodes.push(inode.ino)
    this.gone.add(inode.ino)
  }

  // --- where the remote has it

  /** Where the remote keeps a file without a name: numbers are this writer's own. */
  orphanPath(ino: Ino): string {
    return `.pageferry/orphans/${this.options.writer}-${ino}`
  }

  /** The path at the remote as of the last committed batch; null: it has none of it. */
  remotePath(inode: Inode): string | null {
    if (inode.ino === ROOT) return ''
    if (inode.remoteParent === 0) return null
    if (inode.remoteParent === -1) return this.orphanPath(inode.ino)
    const parent = this.remotePath(this.inode(inode.remoteParent))
    return parent === null ? null : join(parent, inode.remoteName)
  }

  /** Who has this path at the remote once the flight is there; null: nobody whom we know. */
  atFlightPath(path: string): Inode | null {
    let inode = this.inode(ROOT)
    for (const name of path.split('/')) {
      const { ino } = inode
      const changed = this.flight?.names.get(nameKey(ino, name))
      const isNext = (child: Inode) => {
        const { flightParent, flightName, remoteParent, remoteName } = child
        if (this.flight?.inodes.has(child.ino)) return flightParent === ino && flightName === name
        // The flight takes this name from it.
        return remoteParent === ino && remoteName === name && changed?.base !== child.ino
      }
      const dentry = this.children(inode).get(name)
      const now = dentry && this.inode(dentry.ino)
      // What got another name since the cut is in memory.
      const next = now && isNext(now) ? now : [...this.inodes.values()].find(isNext)
      if (!next) return null
      inode = next
    }
    return inode
  }

  /** The path now; null: it has no name. */
  path(inode: Inode): string | null {
    if (inode.ino === ROOT) return ''
    if (inode.parent === 0) return null
    const parent = this.path(this.inode(inode.parent))
    return parent === null ? null : join(parent, inode.name)
  }

  // --- the journal

  /** One record, before the reply. Everything it names is known to the journal or the database. */
  append(kind: number, record: readonly unknown[]): void {
    if (this.replaying) return
    const body = packRecord(record)
    this.journal.append(kind, [body], body.length)
  }

  /** Write down an inode that only a listing told of, with its directories, before a record names it. */
  ensureKnown(inode: Inode, parentIno = inode.parent, name = inode.name): void {
    if (inode.durable || this.replaying) return
    inode.durable = true
    if (inode.ino === ROOT || parentIno === 0) {
      this.append(Kind.known, [inode.toRecord(), null])
      return
    }
    const parent = this.inode(parentIno)
    this.ensureKnown(parent)
    const dentry = this.children(parent).get(name)
    this.append(Kind.known, [inode.toRecord(), dentry ? [parentIno, name, dentry.type, dentry.cookie] : null])
  }

  /** The same for a name of it that is about to change. A file that loses one must be found again by the others. */
  ensureNamed(inode: Inode, parent: Ino, name: string): void {
    this.ensureKnown(inode, parent, name)
    if (this.replaying || inode.isDirectory || (inode.id === null && inode.nlink === 1)) return
    for (const other of this.#namesOf(inode)) {
      const directory = this.inode(other.parent)
      this.ensureKnown(directory)
      const dentry = this.children(directory).get(other.name)
      if (dentry) this.append(Kind.known, [inode.toRecord(), [other.parent, other.name, dentry.type, dentry.cookie]])
    }
  }

  get dirtyBytes(): number {
    return this.dirtyPages * PAGE_BYTES
  }

  get cachedBytes(): number {
    return this.pages * PAGE_BYTES
  }

  reserveInos(): number {
    if (this.nextIno + INO_RESERVE / 2 > this.inoReserved) this.inoReserved = this.nextIno + INO_RESERVE
    return this.inoReserved
  }
}

/** A version that the remote gave while nobody here listened: not compared, learned at the next look. */
export const UNKNOWN_VERSION = '?'
export const join = (parent: string, name: string) => (parent ? `${parent}/${name}` : name)

export const rootInode = (nowNs: bigint): Inode => {
  const root = new Inode(ROOT)
  root.mode = S_IFDIR | 0o755
  root.nlink = 2
  root.size = 4096
  root.atimeNs = root.mtimeNs = root.ctimeNs = nowNs
  root.parent = ROOT
  root.remoteParent = ROOT
  root.version = ''
  return root
}
