// A directory: names, attributes, and a blob behind each file.
import type { Store } from './store.js'

/**
 * A path below the tree's root: '' is the root itself, parts are joined by '/', and each char is one byte (latin1),
 * since names are bytes and need not be UTF-8. INVALID: NUL, and parts that are empty, '.' or '..'.
 */
export type Path = string

/**
 * Opaque; equal versions mean equal bytes of the file. Neither a chmod nor a rename makes another; another mtime may. (In a
 * directory of a host an mtime that was set back, or two changes in place within one tick of the kernel's clock, can hide a change
 * of the same size.)
 */
export type Version = string

/** POSIX attributes. Times are nanoseconds since the epoch and may be negative. `mode` includes the type (S_IFMT). */
export interface Attributes {
  mode: number
  uid: number
  gid: number
  atimeNs: bigint
  mtimeNs: bigint
}

/** One name in a directory and what is behind it. */
export interface Entry extends Attributes {
  /** The last part of the path; '' for the root. */
  name: string
  /** Bytes of a file; the length of a symlink's target; 0 for what else there is. */
  size: number
  /** Bytes really allocated, if the remote knows; else the size. */
  allocated: number
  rdev: number
  nlink: number
  ctimeNs: bigint
  /** When it was made, if the remote knows. */
  btimeNs?: bigint
  version: Version
  /** Two names with one id are one file (hard links). Absent when the remote has none. */
  id?: string
  /** A symlink's target, as bytes (latin1). */
  link?: string
  /** Of a listing: only the name, the size, the version, and whether it is a directory are known. `complete` tells the rest. */
  partial?: true
}

/** Of an entry of a listing, what tells how to go on with it. */
export interface PartialName {
  name: string
  isDirectory: boolean
}

export interface TreeCapabilities {
  /** 'local': what commits to it is lost with this process, so that a lost host may leave a mixture. Default 'remote'. */
  contract?: 'remote' | 'local'
  /** False: it never takes a change, and mounts of it are read-only by themselves. */
  write: boolean
  hardLinks: boolean
  symlinks: boolean
  /** Devices, FIFOs and sockets. */
  specialFiles: boolean
  /** mode, uid and gid are kept; otherwise `mount` shows what its options say. */
  owners: boolean
  /** Bytes of all extended attributes of one file together; 0: none are kept. */
  xattrBytesMax: number
  nameBytesMax: number
  pathBytesMax: number
  fileBytesMax: number
  /** Part of a file can be changed in place. Otherwise every change sends the file whole. */
  patch: boolean
  /** Its files keep the size that they have. Default false. */
  fixedSize?: boolean
  /** Versions of different openers say nothing of each other: what was read before may have been another. Default false. */
  unversioned?: boolean
}

/** Extended attributes by name; names and values are bytes. */
export type Xattrs = Map<string, Uint8Array>

export interface Usage {
  bytesTotal: number
  bytesFree: number
  filesTotal: number
  filesFree: number
}

/** `length` bytes from `at` of one file go to `to` in another. */
export interface CopyRange {
  at: number
  length: number
  to: number
  version?: Version
}

/** A new thing without content: a directory, symlink, device, FIFO, socket, or an empty file. */
export interface NewNode extends Attributes {
  rdev: number
  link?: string
}

/**
 * A directory tree. The first group is all that the engine reads with; the second is what `rollforward` stands on and nobody
 * else calls (see commits.ts for how the engine writes). Arguments can be cloned to another thread, but for `signal`.
 * Every method rejects with a FerryError. `null` and NOT_FOUND are positive knowledge that nothing is there: a remote that
 * cannot be reached says UNREACHABLE or DEADLINE instead. The tree hides `.pageferry` in its root from `list` and `stat`; what
 * is below that, every method reaches by its path.
 *
 * Bytes that a method resolves with are the caller's alone, and may be handed on to another thread. Bytes that are given to a
 * method stay as they are until it has settled; if that was with DEADLINE or ABORTED, they may still be read later: let them go.
 * NOT_DIRECTORY and IS_DIRECTORY are as in POSIX; INVALID: bytes of what is neither file nor directory, and ranges below 0.
 */
export interface Tree {
  readonly shape: 'tree'
  /** Without credentials: may be printed. */
  readonly url: string
  readonly capabilities: TreeCapabilities
  stat(path: Path, signal?: AbortSignal): Promise<Entry | null>
  /**
   * A page of at most 1,000 entries in an order of the remote's own; go on with `cursor` until there is none (a page may be
   * empty before that). A page can be asked for again. What is there all the while is listed exactly once.
   */
  list(path: Path, cursor?: string, signal?: AbortSignal): Promise<{ entries: Entry[]; cursor?: string }>
  /**
   * The partial entries of a listing of `path`, many at once; null: it is not there any more, or is a directory and was none, or was
   * one. Present if a listing may have such.
   */
  complete?(path: Path, partial: PartialName[], signal?: AbortSignal): Promise<(Entry | null)[]>
  /** Bytes of a file; fewer only at its end. With `version`: STALE if the file is another version now. */
  read(path: Path, range: { at: number; length: number; version?: Version }, signal?: AbortSignal): Promise<Uint8Array>
  /** Bytes that `read` resolved with, of which nobody has a view any more: their memory is used again. */
  giveBack?(bytes: Uint8Array): void
  /** Those that are carried, and that we may read. */
  xattrs(path: Path, signal?: AbortSignal): Promise<Xattrs>
  usage(signal?: AbortSignal): Promise<Usage | null>
  close(): Promise<void>

  /** The objects under `.pageferry/`: intents, lease, small staged things. */
  readonly hidden: Store
  /** Bytes into a file that exists; it grows if need be. */
  write(path: Path, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void>
  /**
   * Bytes of one file into another one, both of which exist, without a detour by way of the caller; not more than fit into one request's
   * deadline. `version` as in `read`; SHORT_READ where the source ends before: what it has is there
   * then. Absent where the remote cannot.
   */
  copy?(source: Path, range: CopyRange, target: Path, signal?: AbortSignal): Promise<void>
  /** Cut or extend (with zeros) to `size` bytes. */
  truncate(path: Path, size: number, signal?: AbortSignal): Promise<void>
  /** These bytes read as zeros from now on; the size stays. */
  punch(path: Path, at: number, length: number, signal?: AbortSignal): Promise<void>
  /** With these attributes; EXISTS if the name is taken, NOT_FOUND without its directory. */
  make(path: Path, node: NewNode, signal?: AbortSignal): Promise<void>
  /** Another name for a file that exists; EXISTS if the new name is taken. */
  link(source: Path, target: Path, signal?: AbortSignal): Promise<void>
  /** Atomic. Replaces a file, or an empty directory by a directory (else NOT_EMPTY). `source` is gone even if both are names of one file. */
  rename(source: Path, target: Path, signal?: AbortSignal): Promise<void>
  /** A file, or an empty directory (else NOT_EMPTY). Not idempotent: NOT_FOUND if there is none. */
  remove(path: Path, signal?: AbortSignal): Promise<void>
  /** Those that are given; a symlink's own, whose mode cannot change. Owners are ignored where `owners` is false. */
  setAttributes(path: Path, attributes: Partial<Attributes>, signal?: AbortSignal): Promise<void>
  /** All of them: those not named are removed. UNSUPPORTED for other name spaces, TOO_LARGE beyond `xattrBytesMax`. */
  setXattrs(path: Path, xattrs: Xattrs, signal?: AbortSignal): Promise<void>
  /**
   * What was changed at these paths, and the names in their directories, survives a crash of the remote. Paths of what was
   * removed are fine; for a rename name both.
   */
  sync(paths: Path[], signal?: AbortSignal): Promise<void>
}

/** As coarse as times are anywhere: those of FAT. */
const MTIME_NS_MAX = 2_000_000_000n

/** It has the size and the time that it was given, as exactly as the remote keeps them: nobody has changed it since. */
export function isAsGiven(entry: Entry, { size, mtimeNs }: Pick<Entry, 'size' | 'mtimeNs'>): boolean {
  const earlierNs = mtimeNs - entry.mtimeNs
  return entry.size === size && earlierNs >= 0n && earlierNs < MTIME_NS_MAX
}

/** The prefix in a tree's root under which everything of ours lies. */
export const HIDDEN = '.pageferry'

/** Extended attributes that are access control lists: acl(5). */
export const ACCESS_ACL = 'system.posix_acl_access'
/** Of a directory: what is made in it begins with. */
export const DEFAULT_ACL = 'system.posix_acl_default'
export const isAcl = (name: string): boolean => name === ACCESS_ACL || name === DEFAULT_ACL

/** Extended attributes of users and of root's own, and access control lists; labels and capabilities mean something on one host only. */
export const isCarried = (name: string): boolean =>
  name.startsWith('user.') || name.startsWith('trusted.') || isAcl(name)

/** What a file that is a region of its own has beside it, in whatever directory: `.pageferry-NAME`. No tree shows it. */
export const HIDDEN_BESIDE = '.pageferry-'

/** Bytes of a changed file: inside the change itself, or staged before under an id. Extents are ascending and do not overlap. */
export type Content =
  | { inline: { at: number; bytes: Uint8Array }[] }
  | { staged: string; extents: { at: number; length: number }[] }

/**
 * One line of a batch: what is different at the remote after it. `path` and `to` are names as they are *after* the batch;
 * `from` and the `path` of a removal are names as they were *before* it. The order of the lines does not matter.
 *
 * `expect` is the version that must still be there (null: nothing may be there; undefined: do not look). If it is not, theirs
 * keeps the name and ours is placed at `otherwise`, which stands in the intent, so that whoever finishes the batch does the same.
 *
 * Only `put` replaces what has its name. A committed name that a `make`, `move` or `link` takes has a line of its own, which
 * removes or moves what was there; without one, what is there counts as somebody else's. `xattrs` left out: as they are (for a
 * `put`: those of the file that it replaces; for a `make`: none).
 */
export type TreeChange =
  /** A committed name is gone. A directory is removed after everything in it. Somebody else's newer version stays. */
  | { do: 'remove'; path: Path; expect?: Version }
  /** A committed name, with all that is below it, is at another place now. */
  | { do: 'move'; from: Path; to: Path; otherwise: Path }
  /** Something without content is new. */
  | { do: 'make'; path: Path; node: NewNode; xattrs?: Xattrs; otherwise: Path }
  /** A file, whole: what `content` does not cover is zeros (and nothing else was staged under its id). */
  | {
      do: 'put'
      path: Path
      size: number
      attributes: Attributes
      xattrs?: Xattrs
      content: Content
      expect?: Version | null
      otherwise: Path
    }
  /**
   * A file changed in place: these bytes, then this size, then `zeros` are punched (apart from the content). `floor`: the smallest
   * size it had meanwhile, at most its committed one; bytes from there on that `content` does not cover are zeros.
   */
  | {
      do: 'patch'
      path: Path
      size: number
      floor: number
      attributes: Attributes
      xattrs?: Xattrs
      content: Content
      zeros?: { at: number; length: number }[]
      expect?: Version
      otherwise: Path
    }
  /** Another name for the file that is at `target` after the batch. */
  | { do: 'link'; path: Path; target: Path }
  /** `expect` refuses nothing here: what has the name gets them. The outcome tells the file's new version only if it was this one. */
  | { do: 'attributes'; path: Path; attributes: Attributes; xattrs?: Xattrs; expect?: Version }
