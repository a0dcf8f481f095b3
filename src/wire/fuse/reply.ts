// Answers and notifications as bytes. Encoders take the (view, at) of a buffer of the caller; notifications are messages of their own.

import { putLatin1, viewOf } from '../reader.js'
import { host, len64, type Value } from '../struct.js'
import { InvalEntryFlag, NotifyCode, StatxMask } from './flags.js'
import type { Unique } from './request.js'
import * as s from './structs.js'

const little = host === 'le'

/** The attributes of a file as the engine keeps them. */
export interface Attributes {
  ino: number
  /** bytes */
  size: number
  /** of 512 bytes */
  blocks: number
  /** since the epoch; may be negative */
  atimeNs: bigint
  mtimeNs: bigint
  ctimeNs: bigint
  /** type and permissions */
  mode: number
  nlink: number
  uid: number
  gid: number
  /** as encoded by makedev(3) in 32 bits */
  rdev: number
  blksize: number
}

/** The name was found, or made: takes one lookup count of `nodeid` in the kernel. */
export interface Entry {
  nodeid: number
  /** nodeid and generation together are never used again for another file */
  generation: number
  entryTtlMs: number
  attrTtlMs: number
  attr: Attributes
}

export interface DirectoryEntry {
  ino: number
  /** The offset of READDIR that goes on after this entry: not 0. */
  next: number
  /** DirentType */
  type: number
  /** 1 to 1024 bytes, one character a byte */
  name: string
}

/** The header of an answer of `length` bytes, itself included. `errno` is positive, or 0 for success. */
export function encodeOutHeader(
  view: DataView,
  at: number,
  to: Unique,
  { length, errno = 0 }: { length: number; errno?: number },
) {
  view.setUint32(at, length, little)
  view.setInt32(at + 4, -errno, little)
  view.setUint32(at + 8, to.uniqueLow, little)
  view.setUint32(at + 12, to.uniqueHigh, little)
}

const GIGA = 1_000_000_000
const TWO_32 = 2 ** 32
const scratch = new DataView(new ArrayBuffer(8))
const INT64_MAX = 2n ** 63n - 1n
const INT64_MIN = -(2n ** 63n)

/** Seconds, rounded down, and the nanoseconds above them, of any bigint. */
function divideExactly(timeNs: bigint): [seconds: number, nsec: number] {
  const nsec = ((timeNs % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n
  return [Number((timeNs - nsec) / 1_000_000_000n), Number(nsec)]
}

/**
 * Seconds at `at` and nanoseconds at `nsecAt`. Dividing a bigint costs more than all other fields together, so the division is done on doubles: the quotient is
 * at most one off, the remainder is exact modulo 2^32 and thus tells.
 */
function encodeTime(view: DataView, at: number, nsecAt: number, timeNs: bigint) {
  let seconds: number
  let nsec: number
  if (timeNs > INT64_MAX || timeNs < INT64_MIN) {
    ;[seconds, nsec] = divideExactly(timeNs)
  } else {
    scratch.setBigInt64(0, timeNs, true)
    const low = scratch.getUint32(0, true)
    seconds = Math.floor((scratch.getInt32(4, true) * TWO_32 + low) / GIGA)
    nsec = (low - Math.imul(seconds, GIGA)) | 0
    if (nsec < 0) {
      seconds--
      nsec += GIGA
    } else if (nsec >= GIGA) {
      seconds++
      nsec -= GIGA
    }
  }
  view.setUint32(little ? at : at + 4, seconds, little)
  view.setUint32(little ? at + 4 : at, Math.floor(seconds / TWO_32), little)
  view.setUint32(nsecAt, nsec, little)
}

/** The other way: the times of SETATTR as the engine keeps them. */
export const timeNs = (seconds: number, nsec: number): bigint => BigInt(seconds) * 1_000_000_000n + BigInt(nsec)

const { offsets: attrAt } = s.Attr

/** 88 bytes. */
export function encodeAttr(view: DataView, at: number, attr: Attributes): void {
  len64.put(view, at, attr.ino, little)
  len64.put(view, at + attrAt.size, attr.size, little)
  len64.put(view, at + attrAt.blocks, attr.blocks, little)
  encodeTime(view, at + attrAt.atime, at + attrAt.atimensec, attr.atimeNs)
  encodeTime(view, at + attrAt.mtime, at + attrAt.mtimensec, attr.mtimeNs)
  encodeTime(view, at + attrAt.ctime, at + attrAt.ctimensec, attr.ctimeNs)
  view.setUint32(at + attrAt.mode, attr.mode, little)
  view.setUint32(at + attrAt.nlink, attr.nlink, little)
  view.setUint32(at + attrAt.uid, attr.uid, little)
  view.setUint32(at + attrAt.gid, attr.gid, little)
  view.setUint32(at + attrAt.rdev, attr.rdev, little)
  view.setUint32(at + attrAt.blksize, attr.blksize, little)
  view.setUint32(at + attrAt.flags, 0, little)
}

/** For ever, as far as the kernel is concerned: it cuts what its clock cannot hold. */
const TTL_MAX_MS = 2 ** 31 * 1000
function encodeTtl(view: DataView, at: number, nsecAt: number, ttlMs: number) {
  const ms = Math.min(Math.max(ttlMs, 0), TTL_MAX_MS)
  const seconds = Math.floor(ms / 1000)
  len64.put(view, at, seconds, little)
  view.setUint32(nsecAt, Math.floor((ms - seconds * 1000) * 1e6), little)
}

const { offsets: entryAt } = s.EntryOut

/** 128 bytes: the answer to LOOKUP and its kin, the first part of the answer to CREATE and TMPFILE. */
export function encodeEntry(view: DataView, at: number, entry: Entry): void {
  len64.put(view, at, entry.nodeid, little)
  len64.put(view, at + entryAt.generation, entry.generation, little)
  encodeTtl(view, at + entryAt.entryValid, at + entryAt.entryValidNsec, entry.entryTtlMs)
  encodeTtl(view, at + entryAt.attrValid, at + entryAt.attrValidNsec, entry.attrTtlMs)
  encodeAttr(view, at + entryAt.attr, entry.attr)
}

/** 128 bytes: there is no such name, and the kernel may believe so for `entryTtlMs`. */
export function encodeNegativeEntry(view: DataView, at: number, entryTtlMs: number): void {
  for (let i = 0; i < s.EntryOut.size; i += 8) len64.put(view, at + i, 0, little)
  encodeTtl(view, at + entryAt.entryValid, at + entryAt.entryValidNsec, entryTtlMs)
}

const { offsets: attrOutAt } = s.AttrOut

/** 104 bytes: the answer to GETATTR and SETATTR. */
export function encodeAttrOut(view: DataView, at: number, attr: Attributes, attrTtlMs: number): void {
  encodeTtl(view, at, at + attrOutAt.attrValidNsec, attrTtlMs)
  view.setUint32(at + attrOutAt.dummy, 0, little)
  encodeAttr(view, at + attrOutAt.attr, attr)
}

const sxTime = (timeNs: bigint): Value<typeof s.SxTime> => {
  const [tvSec, tvNsec] = divideExactly(timeNs)
  return { tvSec, tvNsec }
}

/** 288 bytes: the answer to STATX. `btimeNs` is left out if it is not known. */
export function encodeStatxOut(
  view: DataView,
  at: number,
  attr: Attributes & { btimeNs?: bigint },
  attrTtlMs: number,
): void {
  s.StatxOut.encode(view, at, {
    attrValid: 0,
    attrValidNsec: 0,
    flags: 0,
    stat: {
      mask: StatxMask.BASIC_STATS | (attr.btimeNs === undefined ? 0 : StatxMask.BTIME),
      blksize: attr.blksize,
      attributes: 0n,
      nlink: attr.nlink,
      uid: attr.uid,
      gid: attr.gid,
      mode: attr.mode,
      ino: attr.ino,
      size: attr.size,
      blocks: attr.blocks,
      attributesMask: 0n,
      atime: sxTime(attr.atimeNs),
      btime: sxTime(attr.btimeNs ?? 0n),
      ctime: sxTime(attr.ctimeNs),
      mtime: sxTime(attr.mtimeNs),
      // the kernel's new_encode_dev, undone
      rdevMajor: (attr.rdev >>> 8) & 0xfff,
      rdevMinor: (attr.rdev & 0xff) | ((attr.rdev >>> 12) & 0xfff00),
      devMajor: 0,
      devMinor: 0,
    },
  })
  encodeTtl(view, at, at + s.StatxOut.offsets.attrValidNsec, attrTtlMs)
}

const aligned8 = (size: number) => (size + 7) & ~7

/**
 * One entry of READDIR at `at` in `target`, which is as long as the kernel asked for.
 * Returns the bytes written, a multiple of 8; or 0, with nothing written, if they do not fit.
 */
export function packDirent(target: Uint8Array, at: number, entry: DirectoryEntry): number {
  const { name } = entry
  const size = aligned8(s.Dirent.size + name.length)
  if (size > target.length - at) return 0
  const view = viewOf(target)
  len64.put(view, at, entry.ino, little)
  len64.put(view, at + 8, entry.next, little)
  view.setUint32(at + 16, name.length, little)
  view.setUint32(at + 20, entry.type, little)
  putLatin1(target, at + s.Dirent.size, name)
  target.fill(0, at + s.Dirent.size + name.length, at + size)
  return size
}

/**
 * One entry of READDIRPLUS, likewise. Without `entry` the kernel learns the name and the type only, and takes no lookup count (so for `.` and `..`);
 * with it, it takes one, but only if it was written.
 */
export function packDirentplus(target: Uint8Array, at: number, dirent: DirectoryEntry, entry?: Entry): number {
  const size = s.EntryOut.size + aligned8(s.Dirent.size + dirent.name.length)
  if (size > target.length - at) return 0
  if (entry) encodeEntry(viewOf(target), at, entry)
  else encodeNegativeEntry(viewOf(target), at, 0)
  packDirent(target, at + s.EntryOut.size, dirent)
  return size
}

/** A message with unique 0: its header and `parts`. `following` bytes are counted that the caller will send along. */
function notification(code: number, parts: readonly Uint8Array[], following = 0): Uint8Array {
  const size = s.OutHeader.size + parts.reduce((sum, part) => sum + part.length, 0)
  const message = new Uint8Array(size)
  s.OutHeader.encode(viewOf(message), 0, { len: size + following, error: code, uniqueLow: 0, uniqueHigh: 0 })
  let at = s.OutHeader.size
  for (const part of parts) {
    message.set(part, at)
    at += part.length
  }
  return message
}
const zeroTerminated = (name: string) => {
  const bytes = new Uint8Array(name.length + 1)
  putLatin1(bytes, 0, name)
  return bytes
}

/**
 * Messages to the kernel that nobody asked for, each as one write(2) to /dev/fuse. Never write one on the thread that answers requests: most of them wait for
 * locks which a request in flight holds, or for a WRITE to be answered.
 */
export const notify = {
  /** Forget cached pages from `offset` (`length` 0: to the end); attributes only if `offset` is negative. */
  invalInode: ({ nodeid, offset = -1, length = 0 }: { nodeid: number; offset?: number; length?: number }) =>
    notification(NotifyCode.INVAL_INODE, [
      s.NotifyInvalInodeOut.toBytes({ ino: nodeid, off: BigInt(offset), len: BigInt(length) }),
    ]),
  /** Forget a name; with `expireOnly` look it up again at the next use instead of dropping it. */
  invalEntry: ({ parent, name, expireOnly = false }: { parent: number; name: string; expireOnly?: boolean }) =>
    notification(NotifyCode.INVAL_ENTRY, [
      s.NotifyInvalEntryOut.toBytes({
        parent,
        namelen: name.length,
        flags: expireOnly ? InvalEntryFlag.EXPIRE_ONLY : 0,
      }),
      zeroTerminated(name),
    ]),
  /** As invalEntry, and inotify reports a deletion if the name still leads to `child`. */
  delete: ({ parent, child, name }: { parent: number; child: number; name: string }) =>
    notification(NotifyCode.DELETE, [
      s.NotifyDeleteOut.toBytes({ parent, child, namelen: name.length }),
      zeroTerminated(name),
    ]),
  /** Put pages into the page cache. Only the head: `size` bytes of data follow in the same writev(2). */
  storeHead: ({ nodeid, offset, size }: { nodeid: number; offset: number; size: number }) =>
    notification(NotifyCode.STORE, [s.NotifyStoreOut.toBytes({ nodeid, offset, size })], size),
  /** Ask for cached pages; the answer is a NOTIFY_REPLY whose unique is `notifyUnique`. */
  retrieve: (what: { notifyUnique: number; nodeid: number; offset: number; size: number }) =>
    notification(NotifyCode.RETRIEVE, [s.NotifyRetrieveOut.toBytes(what)]),
  /** A poll that asked to be told should poll again. */
  poll: (kh: bigint) => notification(NotifyCode.POLL, [s.NotifyPollWakeupOut.toBytes({ kh })]),
  /** Deliver again all that was read and not answered, with UNIQUE_RESEND_HIGH set (7.40). */
  resend: () => notification(NotifyCode.RESEND, []),
  /** Every cached name and listing is out of date (7.44). */
  incEpoch: () => notification(NotifyCode.INC_EPOCH, []),
  /** Drop unused names of these nodes, so that FORGETs arrive (7.45). */
  prune: (nodeids: readonly number[]) => {
    const list = new Uint8Array(nodeids.length * len64.size)
    for (const [i, nodeid] of nodeids.entries()) len64.put(viewOf(list), i * len64.size, nodeid, little)
    return notification(NotifyCode.PRUNE, [s.NotifyPruneOut.toBytes({ count: nodeids.length }), list])
  },
}
