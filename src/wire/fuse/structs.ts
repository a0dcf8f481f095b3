// The structs of <linux/fuse.h>, same names (camel case, without `fuse_`) and same order of fields. Host byte order, C alignment.
// Up to 7.38 they are checked against the system's header in test/unit/wire.offsets.test.ts; newer ones against numbers written down there.
//
// Three kinds of 64-bit numbers: len64 for what we chose (nodeid, fh), pos64 for what a program chose (offsets, sizes), u64 for opaque bits.
// `unique` is two u32: it is only ever echoed, and a bigint would cost more than the rest of the header together.

import { len64, pad, pos64, s32, s64, sec64, struct, u16, u32, u64 } from '../struct.js'

// Frames

export const InHeader = struct({
  len: u32, // of the whole message, this header included
  opcode: u32,
  uniqueLow: u32,
  uniqueHigh: u32,
  nodeid: len64,
  uid: u32,
  gid: u32,
  pid: u32,
  totalExtlen: u16, // in units of 8 bytes
  padding: pad(2),
})
export const OutHeader = struct({
  len: u32,
  error: s32, // 0 or -errno; in a notification (unique 0) its code
  uniqueLow: u32,
  uniqueHigh: u32,
})
export const ExtHeader = struct({ size: u32, type: u32 })
export const SecctxHeader = struct({ size: u32, nrSecctx: u32 })
export const Secctx = struct({ size: u32, padding: pad(4) })

// Attributes

export const Attr = struct({
  ino: len64,
  size: pos64,
  blocks: pos64, // 512 bytes each
  atime: sec64, // signed, as stat(2) has it; the header says uint64_t
  mtime: sec64,
  ctime: sec64,
  atimensec: u32,
  mtimensec: u32,
  ctimensec: u32,
  mode: u32,
  nlink: u32,
  uid: u32,
  gid: u32,
  rdev: u32,
  blksize: u32,
  flags: u32, // AttrFlag
})
export const EntryOut = struct({
  nodeid: len64, // 0: there is no such name, and entryValid says for how long
  generation: len64,
  entryValid: pos64, // seconds
  attrValid: pos64,
  entryValidNsec: u32,
  attrValidNsec: u32,
  attr: Attr,
})
export const AttrOut = struct({ attrValid: pos64, attrValidNsec: u32, dummy: pad(4), attr: Attr })
export const GetattrIn = struct({ getattrFlags: u32, dummy: pad(4), fh: len64 })
export const SetattrIn = struct({
  valid: u32, // SetattrValid
  padding: pad(4),
  fh: len64,
  size: pos64,
  lockOwner: u64,
  atime: sec64,
  mtime: sec64,
  ctime: sec64,
  atimensec: u32,
  mtimensec: u32,
  ctimensec: u32,
  mode: u32,
  unused4: pad(4),
  uid: u32,
  gid: u32,
  unused5: pad(4),
})
export const SxTime = struct({ tvSec: sec64, tvNsec: u32, reserved: pad(4) })
export const Statx = struct({
  mask: u32,
  blksize: u32,
  attributes: u64,
  nlink: u32,
  uid: u32,
  gid: u32,
  mode: u16,
  spare0: pad(2),
  ino: len64,
  size: pos64,
  blocks: pos64,
  attributesMask: u64,
  atime: SxTime,
  btime: SxTime,
  ctime: SxTime,
  mtime: SxTime,
  rdevMajor: u32,
  rdevMinor: u32,
  devMajor: u32,
  devMinor: u32,
  spare2: pad(112),
})
export const StatxIn = struct({ getattrFlags: u32, reserved: pad(4), fh: len64, sxFlags: u32, sxMask: u32 })
export const StatxOut = struct({
  attrValid: pos64,
  attrValidNsec: u32,
  flags: u32,
  spare: pad(16),
  stat: Statx,
})

// Names

export const ForgetIn = struct({ nlookup: pos64 })
export const ForgetOne = struct({ nodeid: len64, nlookup: pos64 })
export const BatchForgetIn = struct({ count: u32, dummy: pad(4) })
export const MknodIn = struct({ mode: u32, rdev: u32, umask: u32, padding: pad(4) })
export const MkdirIn = struct({ mode: u32, umask: u32 })
export const RenameIn = struct({ newdir: len64 })
export const Rename2In = struct({ newdir: len64, flags: u32, padding: pad(4) })
export const LinkIn = struct({ oldnodeid: len64 })
export const AccessIn = struct({ mask: u32, padding: pad(4) })
export const Dirent = struct({ ino: len64, off: pos64, namelen: u32, type: u32 })
export const Direntplus = struct({ entryOut: EntryOut, dirent: Dirent })

// Open files

export const OpenIn = struct({ flags: u32, openFlags: u32 })
export const CreateIn = struct({ flags: u32, mode: u32, umask: u32, openFlags: u32 })
export const OpenOut = struct({ fh: len64, openFlags: u32, backingId: s32 }) // 7.40; padding before
export const ReleaseIn = struct({ fh: len64, flags: u32, releaseFlags: u32, lockOwner: u64 })
export const FlushIn = struct({ fh: len64, unused: pad(4), padding: pad(4), lockOwner: u64 })
export const ReadIn = struct({
  fh: len64,
  offset: pos64,
  size: u32,
  readFlags: u32,
  lockOwner: u64,
  flags: u32,
  padding: pad(4),
})
export const WriteIn = struct({
  fh: len64,
  offset: pos64,
  size: u32,
  writeFlags: u32,
  lockOwner: u64,
  flags: u32,
  padding: pad(4),
})
export const WriteOut = struct({ size: u32, padding: pad(4) })
export const FsyncIn = struct({ fh: len64, fsyncFlags: u32, padding: pad(4) })
export const FallocateIn = struct({ fh: len64, offset: pos64, length: pos64, mode: u32, padding: pad(4) })
export const LseekIn = struct({ fh: len64, offset: pos64, whence: u32, padding: pad(4) })
export const LseekOut = struct({ offset: pos64 })
export const CopyFileRangeIn = struct({
  fhIn: len64,
  offIn: pos64,
  nodeidOut: len64,
  fhOut: len64,
  offOut: pos64,
  len: pos64,
  flags: u64,
})
export const CopyFileRangeOut = struct({ bytesCopied: pos64 }) // 7.45, COPY_FILE_RANGE_64 only
export const FileLock = struct({ start: u64, end: u64, type: u32, pid: u32 })
export const LkIn = struct({ fh: len64, owner: u64, lk: FileLock, lkFlags: u32, padding: pad(4) })
export const LkOut = struct({ lk: FileLock })
export const PollIn = struct({ fh: len64, kh: u64, flags: u32, events: u32 })
export const PollOut = struct({ revents: u32, padding: pad(4) })
export const IoctlIn = struct({ fh: len64, flags: u32, cmd: u32, arg: u64, inSize: u32, outSize: u32 })
export const IoctlIovec = struct({ base: u64, len: u64 })
export const IoctlOut = struct({ result: s32, flags: u32, inIovs: u32, outIovs: u32 })
export const BmapIn = struct({ block: pos64, blocksize: u32, padding: pad(4) })
export const BmapOut = struct({ block: pos64 })

// Extended attributes

export const SetxattrIn = struct({ size: u32, flags: u32, setxattrFlags: u32, padding: pad(4) }) // the first 8 bytes without SETXATTR_EXT
export const GetxattrIn = struct({ size: u32, padding: pad(4) })
export const GetxattrOut = struct({ size: u32, padding: pad(4) })

// The file system as a whole

export const InitIn = struct({ major: u32, minor: u32, maxReadahead: u32, flags: u32, flags2: u32, unused: pad(44) })
export const InitOut = struct({
  major: u32,
  minor: u32,
  maxReadahead: u32, // bytes
  flags: u32, // InitFlag
  maxBackground: u16, // requests
  congestionThreshold: u16,
  maxWrite: u32, // bytes
  timeGran: u32, // ns
  maxPages: u16, // needs InitFlag.MAX_PAGES
  mapAlignment: u16,
  flags2: u32, // InitFlag2; counts only with InitFlag.INIT_EXT
  maxStackDepth: u32, // 7.40
  requestTimeout: u16, // seconds; 7.43
  unused: pad(22),
})
export const Kstatfs = struct({
  blocks: pos64, // of frsize bytes, as bfree and bavail
  bfree: pos64,
  bavail: pos64,
  files: pos64,
  ffree: pos64,
  bsize: u32,
  namelen: u32,
  frsize: u32,
  padding: pad(4),
  spare: pad(24),
})
export const StatfsOut = struct({ st: Kstatfs })
export const SyncfsIn = struct({ padding: pad(8) })
export const InterruptIn = struct({ uniqueLow: u32, uniqueHigh: u32 })
export const SetupmappingIn = struct({ fh: len64, foffset: pos64, len: pos64, flags: u64, moffset: pos64 })
export const RemovemappingIn = struct({ count: u32 })
export const RemovemappingOne = struct({ moffset: pos64, len: pos64 })

// Notifications

export const NotifyPollWakeupOut = struct({ kh: u64 })
export const NotifyInvalInodeOut = struct({ ino: len64, off: s64, len: s64 })
export const NotifyInvalEntryOut = struct({ parent: len64, namelen: u32, flags: u32 })
export const NotifyDeleteOut = struct({ parent: len64, child: len64, namelen: u32, padding: pad(4) })
export const NotifyStoreOut = struct({ nodeid: len64, offset: pos64, size: u32, padding: pad(4) })
export const NotifyRetrieveOut = struct({
  notifyUnique: len64,
  nodeid: len64,
  offset: pos64,
  size: u32,
  padding: pad(4),
})
export const NotifyRetrieveIn = struct({
  dummy1: pad(8),
  offset: pos64,
  size: u32,
  dummy2: pad(4),
  dummy3: pad(8),
  dummy4: pad(8),
})
export const NotifyPruneOut = struct({ count: u32, padding: pad(4), spare: pad(8) }) // 7.45; u64 nodeids follow

// ioctl arguments

export const BackingMap = struct({ fd: s32, flags: u32, padding: pad(8) }) // 7.40
export const DevClone = struct({ fd: u32 })

export const none = struct({})
