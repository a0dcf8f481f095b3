// What a tree looks like to a front door: inodes, names and bytes. Every method answers at once when it can (a hit) and
// otherwise with a promise; a door must not await a value that is already there. All errors are FerryErrors.

/** The value, or a promise of it when something has to be waited for. */
export type Maybe<T> = T | Promise<T>

/** Persistent per cache directory, below 2^53, never used twice. The root is 1. */
export type Ino = number

export const ROOT: Ino = 1

/** An inode's attributes. The object is live: read it before the next await, do not change it. Times in ns since the epoch. */
export interface InodeAttributes {
  readonly ino: Ino
  /** Type (S_IFMT) and permissions. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly rdev: number
  readonly nlink: number
  readonly size: number
  /** Units of 512 B. */
  readonly blocks: number
  /** Of I/O, in bytes. */
  readonly blksize: number
  readonly atimeNs: bigint
  readonly mtimeNs: bigint
  readonly ctimeNs: bigint
  /** When it was made; undefined: nobody knows. */
  readonly btimeNs?: bigint
}

/**
 * Whose clock says when bytes were changed. A kernel that writes back later has its own time of it, and tells that by itself if it is
 * news: the mtime stays until then. Default 'now'.
 */
export type Stamped = 'now' | 'by-kernel'

export interface AttributeChange {
  /** Permission bits only; the type stays. */
  mode?: number
  uid?: number
  gid?: number
  size?: number
  atimeNs?: bigint
  mtimeNs?: bigint
  ctimeNs?: bigint
}

export interface NewInode {
  /** Type and permissions. */
  mode: number
  uid: number
  gid: number
  rdev?: number
  /** Target of a symlink, as bytes. */
  link?: string
  /** Bits that the mode loses, unless the directory has an access control list that says what it begins with. */
  umask?: number
}

export interface DirectoryEntry {
  name: string
  ino: Ino
  /** S_IFMT bits of its mode. */
  type: number
  /** Grows along the listing and is never used twice in one directory: a listing goes on after it. Starts at 3. */
  cookie: number
}

export interface Space {
  blockBytes: number
  blocksTotal: number
  blocksFree: number
  filesTotal: number
  filesFree: number
  nameBytesMax: number
}

/** What the kernel has cached and must be told about; a door installs it. */
export interface KernelCache {
  /** Attributes and data of an inode changed behind the kernel's back. */
  invalidateInode(ino: Ino): void
  /** A name points elsewhere or nowhere. */
  invalidateEntry(parent: Ino, name: string): void
}

/** What a union mount takes for "nothing here": a character device 0:0, of this owner, where something was moved away. */
export interface Whiteout {
  uid: number
  gid: number
}

/** Files of which the kernel may read the bytes by itself, without asking. */
export interface Backing {
  /** It can, if `tryOut` says so of a file among them: they are made from now on. Throws what that throws. */
  begin(tryOut: (fd: number) => void): void
  /** A descriptor of a file that has all bytes of this one, and keeps them until `release`; null: there is none now. */
  hold(ino: Ino): number | null
  release(ino: Ino): void
  /** The kernel's number for it; null: it has none any more. */
  note(ino: Ino, id: number | null): void
  /** Those that are noted, also by an earlier process for the same connection. */
  readonly noted: ReadonlyMap<Ino, number>
}

/**
 * A file tree. Names are bytes (latin1 strings), without '/' and NUL; `.` and `..` are the door's affair. `request` is the number of the
 * kernel's request that a change answers: should this process end before the answer is sent, whoever goes on with the connection learns
 * from `outcome` that it was done.
 */
export interface FileSystem {
  readonly readOnly: boolean
  kernel: KernelCache

  /** null: known not to be there. */
  lookup(parent: Ino, name: string): Maybe<InodeAttributes | null>
  attributes(ino: Ino): Maybe<InodeAttributes>
  /** null: it would have to be waited for. */
  atHand?(ino: Ino): InodeAttributes | null
  /** The same for a program that asks: a directory whose names are known is looked at again first, when its time is up. */
  examine?(ino: Ino): Maybe<InodeAttributes>
  setAttributes(ino: Ino, change: AttributeChange): Maybe<InodeAttributes>
  /** What an earlier process made of this request: the inode, or 0; undefined: nothing. */
  outcome?(request: number): Ino | undefined
  /** Its answer was sent: it is not delivered again. */
  forgetOutcome?(request: number): void
  /** All that was to be delivered again has come; these are not answered yet. */
  keepOutcomes?(requests: ReadonlySet<number>): void
  /** Undefined: there are none. */
  readonly backing?: Backing
  /** An earlier process gave it to the kernel, which may have it open in whatever way. */
  isOutlived?(ino: Ino): boolean
  /** The kernel holds one more reference (a reply with an entry went out). The inode stays until `forget`, though it be unlinked. */
  remember(ino: Ino): void
  forget(ino: Ino, count: number): void

  readLink(ino: Ino): Maybe<string>
  /** A new file, directory, symlink or special file; EXISTS if the name is taken. */
  make(parent: Ino, name: string, node: NewInode, request?: number): Maybe<InodeAttributes>
  /** A file of that directory's disk which has no name until `link` gives it one: open(2) with O_TMPFILE. */
  makeNameless?(parent: Ino, node: NewInode, request?: number): Maybe<InodeAttributes>
  link(ino: Ino, parent: Ino, name: string, request?: number): Maybe<InodeAttributes>
  /** A name of anything but a directory. */
  unlink(parent: Ino, name: string, request?: number): Maybe<void>
  removeDirectory(parent: Ino, name: string, request?: number): Maybe<void>
  rename(
    source: { parent: Ino; name: string },
    target: { parent: Ino; name: string },
    how: 'replace' | 'noreplace' | 'exchange',
    more?: { whiteout?: Whiteout; request?: number },
  ): Maybe<void>
  /** Entries with a cookie above `after`, in the order of their cookies, as they are now. The array is the caller's. */
  entries(ino: Ino, after: number, countMax: number): Maybe<DirectoryEntry[]>
  /** The directory's parent; the root's is the root. */
  parentOf(ino: Ino): Ino

  /** `writable` handles may hide dirty pages in the kernel. */
  opened(ino: Ino, writable: boolean): void
  released(ino: Ino, writable: boolean): void
  /** Fills `into`; fewer bytes only at the end of the file. */
  read(ino: Ino, at: number, into: Uint8Array): Maybe<number>
  /** `from` is not used after the call has returned or its promise has resolved. */
  write(ino: Ino, at: number, from: Uint8Array, stamped?: Stamped): Maybe<void>
  /**
   * Resolves when all that was acknowledged before is durable as `--fsync` says. `data`: times that were set since the last other change
   * need not be (fdatasync(2)).
   */
  fsync(ino: Ino, what?: 'all' | 'data'): Maybe<void>
  /** The answer to a write was sent: there is a moment before its program asks for more. */
  answered?(): void
  /** fallocate(2): `allocate` extends the size unless `keepSize`; `punch` and `zero` make bytes read as zeros. */
  allocate(
    ino: Ino,
    range: { at: number; length: number },
    how: { kind: 'allocate' | 'punch' | 'zero'; keepSize: boolean; stamped?: Stamped },
  ): Maybe<void>
  /** lseek(2) SEEK_DATA and SEEK_HOLE; RANGE beyond the end (ENXIO at the door). */
  seek(ino: Ino, at: number, wanted: 'data' | 'hole'): Maybe<number>
  /** Bytes copied: may be fewer than asked. */
  copy(
    source: { ino: Ino; at: number },
    target: { ino: Ino; at: number },
    length: number,
    stamped?: Stamped,
  ): Maybe<number>

  getXattr(ino: Ino, name: string): Maybe<Uint8Array>
  listXattrs(ino: Ino): Maybe<string[]>
  /** `keepsSetGid` false: an access control list takes that bit from the mode. */
  setXattr(
    ino: Ino,
    name: string,
    value: Uint8Array,
    how: 'set' | 'create' | 'replace',
    more?: { request?: number; keepsSetGid?: boolean },
  ): Maybe<void>
  removeXattr(ino: Ino, name: string, request?: number): Maybe<void>
  space(): Maybe<Space>
}
