// One inode: what it is now, what the remote has of it, and which of its changes are on their way.
import { Intervals } from '../chunk/intervals.js'
import type { Attributes, Entry, Xattrs } from '../remote/tree.js'
import type { Ino, InodeAttributes } from './filesystem.js'
import { Zeros, type ZerosRecord } from './zeros.js'

export const S_IFMT = 0o170000
export const S_IFDIR = 0o040000
export const S_IFREG = 0o100000
export const S_IFLNK = 0o120000

/** What changed since the remote's state. `times`: somebody said which mtime it has. */
export const Changed = { new: 1, attributes: 2, data: 4, xattrs: 8, names: 16, times: 32 } as const

/** Where the remote keeps a file that lost its last name while it is still open: `.pageferry/orphans/WRITER-INO`. */
export const ORPHANS: Ino = -1

export interface Dentry {
  ino: Ino
  /** S_IFMT bits; 0: unknown until its attributes are asked for. */
  type: number
  cookie: number
}

/** An inode as the database and the journal keep it. */
export type InodeRecord = [
  ino: Ino,
  mode: number,
  uid: number,
  gid: number,
  rdev: number,
  nlink: number,
  size: number,
  atimeNs: bigint,
  mtimeNs: bigint,
  ctimeNs: bigint,
  link: string,
  xattrs: [string, Uint8Array][] | null,
  parent: Ino,
  name: string,
  version: string | null,
  baseSize: number,
  floor: number,
  remoteParent: Ino,
  remoteName: string,
  changed: number,
  flight: [flags: number, parent: Ino, name: string, size: number, floor: number],
  listed: boolean,
  nextCookie: number,
  id: string | null,
  allocated: number,
  guessed: boolean,
  zeros: ZerosRecord | null,
  btimeNs: bigint | null,
  reserved: number[] | null,
]

/** Runs of a file that are only reserved. Of one that has more, it is not remembered any more which of its pages they are. */
export const RESERVED_RUNS_MAX = 1_024

/** Longer ones are no targets of symlinks (PATH_MAX). */
const LINK_BYTES_MAX = 4_096

/** The first cookies belong to `.` and `..`. */
const COOKIE_FIRST = 3

export class Inode implements InodeAttributes {
  mode = 0
  uid = 0
  gid = 0
  rdev = 0
  nlink = 1
  size = 0
  /** Bytes that are not holes, as the remote said and as written since: never too few to tell a sparse file from a full one. */
  allocated = 0
  /** Holes that fallocate(2) asked for: nothing is set aside for them, but they count as allocated. Never a page that was written. */
  reserved: Intervals | null = null
  readonly blksize = 4096
  atimeNs = 0n
  mtimeNs = 0n
  ctimeNs = 0n
  btimeNs: bigint | undefined = undefined
  /** A symlink's target. */
  link = ''
  /** null: the remote's, not asked for yet. */
  xattrs: Xattrs | null = new Map()

  /** One of its names now; parent 0: it has none. */
  parent: Ino = 0
  name = ''

  /** Of the remote's bytes that show through; null: the remote has none of it. */
  version: string | null = null
  /** Bytes of `version` that show through where no page is here; beyond are zeros, and so is what `zeros` says. */
  baseSize = 0
  zeros: Zeros | null = null
  /** The smallest size since the last cut. */
  floor = 0
  /** Its name at the remote, as last committed; parent 0: none. */
  remoteParent: Ino = 0
  remoteName = ''
  /** Identity at the remote of a file with several names. */
  id: string | null = null

  /** Flags of `Changed`: since the last cut, and in the batch that is on its way. */
  changed = 0
  flight = 0
  flightParent: Ino = 0
  flightName = ''
  flightSize = 0
  flightFloor = 0

  /** Of a directory: every name is known (as of some listing). */
  listed = false
  listedAtMs = -Infinity
  /** How long that took, ms; 0 if it was one request. */
  listingMs = 0
  nextCookie = COOKIE_FIRST
  /** Of a directory: its names, loaded from the database when first needed. */
  children: Map<string, Dentry> | null = null

  /** The kernel's references; open handles; those of them that write. */
  lookups = 0
  opens = 0
  writers = 0
  /** The kernel has let go of it since an earlier process served it. */
  forgotten = false
  /** The journal or the database knows it as it is: a record may name it. */
  durable = false
  /** Only appended to, without an fsync, since a writer opened it; and then the remote had all of it. */
  growing = false
  /** Wall clock of the first change since then that no batch has taken, ms; 0: none. */
  grownSinceMs = 0
  /** A listing named it, and nobody asked for its attributes yet: these are guesses, and a small file may be a symlink. */
  guessed = false
  /** A listing has named it again, and could not tell whether its attributes are the same. */
  outdated = false
  /** Its pages at the remote are gone: somebody else replaced them while it was open here. */
  stale = false
  /** Of a file: what the pull knows of how it is read, while it is open. */
  reading: unknown = null

  constructor(readonly ino: Ino) {}

  get isDirectory() {
    return (this.mode & S_IFMT) === S_IFDIR
  }

  get isFile() {
    return (this.mode & S_IFMT) === S_IFREG
  }

  /** Its attributes are to be asked for, unless there are changes of ours, which the remote is going to have. */
  get partial() {
    return this.guessed || (this.outdated && this.changed === 0 && this.flight === 0)
  }

  /** S_IFMT bits; 0: nobody knows yet. */
  get type() {
    return this.guessed && this.isFile && this.size <= LINK_BYTES_MAX ? 0 : this.mode & S_IFMT
  }

  /** Units of 512 B. None at all would mean to some programs (tar) that the file is one hole: the kernel may have pages for it. */
  get blocks() {
    if (this.isDirectory) return this.size / 512
    const some = this.isFile && (this.baseSize > 0 || this.writers > 0)
    // FALLOC_FL_KEEP_SIZE reserves beyond the end as well.
    const within = this.#reservedWithin()
    const allocated = this.#grown(within) + (this.reserved?.bytes ?? 0) - within
    return Math.max(Math.ceil(allocated / 512), some ? 1 : 0)
  }

  /** Bytes that are not holes, if so many more are none: not more than there are. */
  #grown(bytes: number): number {
    const most = Math.ceil(this.size / this.blksize) * this.blksize
    return Math.max(this.allocated, Math.min(this.allocated + bytes, most))
  }

  #reservedWithin(): number {
    let bytes = 0
    const end = Math.ceil(this.size / this.blksize) * this.blksize
    for (const [from, to] of this.reserved?.within(0, end) ?? []) bytes += to - from
    return bytes
  }

  /** Pages were written, some of which were not there before. `size` is the new one. */
  allocate(pages: number, pagesNew: number): void {
    this.allocated = this.#grown(Math.max(pagesNew * this.blksize, pages * this.blksize - this.allocated))
  }

  /** So many bytes, in whole pages, are allocated; of these it is known that they are holes: edges of runs. */
  reserve(bytes: number, edges: number[]): void {
    const holes = new Intervals(edges)
    this.reserved ??= new Intervals()
    for (const [from, to] of holes) this.reserved.add(from, to)
    this.allocated = this.#grown(Math.max(0, bytes - holes.bytes - this.allocated))
    this.#boundReserved()
  }

  /** These pages are written, cut off, or made holes again. */
  unreserve(from: number, to: number): void {
    if (!this.reserved) return
    this.reserved.remove(from, to)
    this.#boundReserved()
  }

  /** Of one that is too large it is remembered that all of it is allocated. */
  #boundReserved() {
    if (!this.reserved) return
    const isTooLarge = this.reserved.count > RESERVED_RUNS_MAX
    if (isTooLarge) this.allocated = this.#grown(this.#reservedWithin())
    if (isTooLarge || this.reserved.isEmpty) this.reserved = null
  }

  /** Pages of a chunk that are known to be zeros, though nothing of them is here. */
  zerosMask(index: number): number {
    return this.zeros ? this.zeros.mask(index) : 0
  }

  get attributes(): Attributes {
    return { mode: this.mode, uid: this.uid, gid: this.gid, atimeNs: this.atimeNs, mtimeNs: this.mtimeNs }
  }

  /** Take over what a listing of the remote says. */
  takeEntry(entry: Entry): void {
    this.mode = entry.mode
    this.uid = entry.uid
    this.gid = entry.gid
    this.rdev = entry.rdev
    this.nlink = entry.nlink
    this.size = this.isDirectory ? 4096 : entry.size
    this.allocated = entry.allocated
    this.atimeNs = entry.atimeNs
    this.mtimeNs = entry.mtimeNs
    this.ctimeNs = entry.ctimeNs
    this.btimeNs = entry.btimeNs
    this.link = entry.link ?? ''
    this.xattrs = null
    this.version = entry.version
    this.baseSize = entry.size
    this.floor = entry.size
    this.id = entry.id ?? null
    this.stale = false
    this.zeros = null
    this.reserved = null
    this.guessed = entry.partial ?? false
    this.outdated = false
  }

  toRecord(): InodeRecord {
    return [
      this.ino,
      this.mode,
      this.uid,
      this.gid,
      this.rdev,
      this.nlink,
      this.size,
      this.atimeNs,
      this.mtimeNs,
      this.ctimeNs,
      this.link,
      this.xattrs && [...this.xattrs],
      this.parent,
      this.name,
      this.version,
      this.baseSize,
      this.floor,
      this.remoteParent,
      this.remoteName,
      this.changed,
      [this.flight, this.flightParent, this.flightName, this.flightSize, this.flightFloor],
      this.listed,
      this.nextCookie,
      this.id,
      this.allocated,
      this.guessed,
      this.zeros?.toRecord() ?? null,
      this.btimeNs ?? null,
      this.reserved?.edges ?? null,
    ]
  }

  static fromRecord(record: InodeRecord): Inode {
    const inode = new Inode(record[0])
    inode.takeRecord(record)
    return inode
  }

  takeRecord(record: InodeRecord): void {
    let xattrs: [string, Uint8Array][] | null
    let flight: InodeRecord[20]
    let zeros: ZerosRecord | null
    let btimeNs: bigint | null
    let reserved: number[] | null
    ;[
      ,
      this.mode,
      this.uid,
      this.gid,
      this.rdev,
      this.nlink,
      this.size,
      this.atimeNs,
      this.mtimeNs,
      this.ctimeNs,
      this.link,
      xattrs,
      this.parent,
      this.name,
      this.version,
      this.baseSize,
      this.floor,
      this.remoteParent,
      this.remoteName,
      this.changed,
      flight,
      this.listed,
      this.nextCookie,
      this.id,
      this.allocated = this.size,
      this.guessed = false,
      zeros = null,
      btimeNs = null,
      reserved = null,
    ] = record
    this.atimeNs = BigInt(this.atimeNs)
    this.mtimeNs = BigInt(this.mtimeNs)
    this.ctimeNs = BigInt(this.ctimeNs)
    this.xattrs = xattrs && new Map(xattrs)
    this.zeros = zeros && Zeros.fromRecord(zeros)
    this.btimeNs = btimeNs === null ? undefined : BigInt(btimeNs)
    this.reserved = reserved && new Intervals(reserved)
    ;[this.flight, this.flightParent, this.flightName, this.flightSize, this.flightFloor] = flight
  }
}
