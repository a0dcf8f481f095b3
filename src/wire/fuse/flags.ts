// The constants of <linux/fuse.h> up to 7.45, a const object for each family.

import { constants } from 'node:fs'
import { io, ior, iow } from '../ioctl.js'
import { BackingMap, DevClone } from './structs.js'

export const KERNEL_VERSION = 7
/** The newest minor version that these tables know. Both sides use the smaller one. */
export const KERNEL_MINOR_VERSION = 45
export const ROOT_ID = 1
/** Set in the high half of `unique` when a request is delivered again after NotifyCode.RESEND. */
export const UNIQUE_RESEND_HIGH = 2 ** 31
/** Longest name or path (symlink target) the kernel sends, without its NUL: PATH_MAX - 1. */
export const NAME_BYTES_MAX = 4095
/** Longest name of an extended attribute, without its NUL: XATTR_NAME_MAX. */
export const XATTR_NAME_BYTES_MAX = 255
/** read(2) on /dev/fuse with less than the larger of this and 80 + max_write is refused with EINVAL. */
export const READ_BUFFER_BYTES_MIN = 8192

/** InitIn.flags and InitOut.flags */
export const InitFlag = {
  ASYNC_READ: 1 << 0,
  POSIX_LOCKS: 1 << 1,
  FILE_OPS: 1 << 2,
  ATOMIC_O_TRUNC: 1 << 3,
  EXPORT_SUPPORT: 1 << 4,
  BIG_WRITES: 1 << 5,
  DONT_MASK: 1 << 6,
  SPLICE_WRITE: 1 << 7,
  SPLICE_MOVE: 1 << 8,
  SPLICE_READ: 1 << 9,
  FLOCK_LOCKS: 1 << 10,
  HAS_IOCTL_DIR: 1 << 11,
  AUTO_INVAL_DATA: 1 << 12,
  DO_READDIRPLUS: 1 << 13,
  READDIRPLUS_AUTO: 1 << 14,
  ASYNC_DIO: 1 << 15,
  WRITEBACK_CACHE: 1 << 16,
  NO_OPEN_SUPPORT: 1 << 17,
  PARALLEL_DIROPS: 1 << 18,
  HANDLE_KILLPRIV: 1 << 19,
  POSIX_ACL: 1 << 20, // forces default_permissions
  ABORT_ERROR: 1 << 21,
  MAX_PAGES: 1 << 22,
  CACHE_SYMLINKS: 1 << 23,
  NO_OPENDIR_SUPPORT: 1 << 24,
  EXPLICIT_INVAL_DATA: 1 << 25, // ignored with AUTO_INVAL_DATA
  MAP_ALIGNMENT: 1 << 26,
  SUBMOUNTS: 1 << 27,
  HANDLE_KILLPRIV_V2: 1 << 28,
  SETXATTR_EXT: 1 << 29,
  INIT_EXT: 1 << 30, // without it flags2 does not count
  RESERVED: 2 ** 31,
} as const

/** InitIn.flags2 and InitOut.flags2: bit n is flag 32 + n of the header */
export const InitFlag2 = {
  SECURITY_CTX: 1 << 0,
  HAS_INODE_DAX: 1 << 1,
  CREATE_SUPP_GROUP: 1 << 2,
  HAS_EXPIRE_ONLY: 1 << 3,
  DIRECT_IO_ALLOW_MMAP: 1 << 4,
  PASSTHROUGH: 1 << 5, // silently off together with WRITEBACK_CACHE
  NO_EXPORT_SUPPORT: 1 << 6,
  HAS_RESEND: 1 << 7,
  ALLOW_IDMAP: 1 << 8, // needs default_permissions
  OVER_IO_URING: 1 << 9,
  REQUEST_TIMEOUT: 1 << 10,
} as const

/** OpenOut.openFlags */
export const OpenOutFlag = {
  DIRECT_IO: 1 << 0,
  KEEP_CACHE: 1 << 1,
  NONSEEKABLE: 1 << 2,
  CACHE_DIR: 1 << 3,
  STREAM: 1 << 4,
  NOFLUSH: 1 << 5, // ignored with the writeback cache
  PARALLEL_DIRECT_WRITES: 1 << 6, // needs DIRECT_IO
  PASSTHROUGH: 1 << 7,
} as const

/** SetattrIn.valid */
export const SetattrValid = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  ATIME: 1 << 4,
  MTIME: 1 << 5,
  FH: 1 << 6,
  ATIME_NOW: 1 << 7,
  MTIME_NOW: 1 << 8,
  LOCKOWNER: 1 << 9,
  CTIME: 1 << 10,
  KILL_SUIDGID: 1 << 11,
} as const

export const GetattrFlag = { FH: 1 << 0 } as const
export const OpenInFlag = { KILL_SUIDGID: 1 << 0 } as const
export const ReadFlag = { LOCKOWNER: 1 << 1 } as const
/** WriteIn.writeFlags. CACHE: from the page cache, so fh is a guess and uid, gid and pid are not the writer's. */
export const WriteFlag = { CACHE: 1 << 0, LOCKOWNER: 1 << 1, KILL_SUIDGID: 1 << 2 } as const
export const ReleaseFlag = { FLUSH: 1 << 0, FLOCK_UNLOCK: 1 << 1 } as const
export const FsyncFlag = { FDATASYNC: 1 << 0 } as const
export const LkFlag = { FLOCK: 1 << 0 } as const
export const AttrFlag = { SUBMOUNT: 1 << 0, DAX: 1 << 1 } as const
export const SetxattrFlag = { ACL_KILL_SGID: 1 << 0 } as const
export const PollFlag = { SCHEDULE_NOTIFY: 1 << 0 } as const
export const IoctlFlag = { COMPAT: 1, UNRESTRICTED: 2, RETRY: 4, BIT32: 8, DIR: 16, COMPAT_X32: 32 } as const
export const InvalEntryFlag = { EXPIRE_ONLY: 1 << 0 } as const
/** ExtHeader.type; types up to 31 are the number of security contexts in a SecctxHeader. */
export const ExtType = { MAX_NR_SECCTX: 31, GROUPS: 32 } as const

/** OpenIn.flags: those of open(2) on this architecture, and EXEC (FMODE_EXEC of the kernel). */
export const OpenFlag = {
  ACCMODE: 3,
  RDONLY: constants.O_RDONLY,
  WRONLY: constants.O_WRONLY,
  RDWR: constants.O_RDWR,
  EXEC: 0x20,
  CREAT: constants.O_CREAT,
  EXCL: constants.O_EXCL,
  TRUNC: constants.O_TRUNC,
  APPEND: constants.O_APPEND,
  NONBLOCK: constants.O_NONBLOCK,
  DSYNC: constants.O_DSYNC,
  SYNC: constants.O_SYNC,
  DIRECT: constants.O_DIRECT,
  DIRECTORY: constants.O_DIRECTORY,
  NOFOLLOW: constants.O_NOFOLLOW,
  NOATIME: constants.O_NOATIME,
} as const

/** Rename2In.flags, <linux/fs.h> */
export const RenameFlag = { NOREPLACE: 1, EXCHANGE: 2, WHITEOUT: 4 } as const
/** FallocateIn.mode, <linux/falloc.h>; 0 allocates */
export const FallocateMode = {
  KEEP_SIZE: 0x01,
  PUNCH_HOLE: 0x02,
  NO_HIDE_STALE: 0x04,
  COLLAPSE_RANGE: 0x08,
  ZERO_RANGE: 0x10,
  INSERT_RANGE: 0x20,
  UNSHARE_RANGE: 0x40,
} as const
/** LseekIn.whence; the kernel answers the others itself */
export const Whence = { SET: 0, CUR: 1, END: 2, DATA: 3, HOLE: 4 } as const
/** SetxattrIn.flags, <linux/xattr.h> */
export const XattrFlag = { CREATE: 1, REPLACE: 2 } as const
/** AccessIn.mask */
export const AccessMask = { X: 1, W: 2, R: 4 } as const
/** FileLock.type */
export const LockType = { RDLCK: 0, WRLCK: 1, UNLCK: 2 } as const
/** Dirent.type: the format bits of a mode, shifted by 12 */
export const DirentType = { UNKNOWN: 0, FIFO: 1, CHR: 2, DIR: 4, BLK: 6, REG: 8, LNK: 10, SOCK: 12 } as const
/** Statx.mask and StatxIn.sxMask, <linux/stat.h>: the basic fields, and the time of birth */
export const StatxMask = { BASIC_STATS: 0x7ff, BTIME: 0x800 } as const

/** OutHeader.error of a message with unique 0 */
export const NotifyCode = {
  POLL: 1,
  INVAL_INODE: 2,
  INVAL_ENTRY: 3,
  STORE: 4,
  RETRIEVE: 5,
  DELETE: 6,
  RESEND: 7, // 7.40
  INC_EPOCH: 8, // 7.44
  PRUNE: 9, // 7.45
} as const

const MAGIC = 229
/** Requests of ioctl(2) on /dev/fuse */
export const DevIoctl = {
  CLONE: ior(MAGIC, 0, DevClone.size),
  BACKING_OPEN: iow(MAGIC, 1, BackingMap.size),
  BACKING_CLOSE: iow(MAGIC, 2, DevClone.size),
  SYNC_INIT: io(MAGIC, 3),
} as const
