// INIT: what we ask of the kernel, and why.
import {
  type Args,
  type Dialect,
  InitFlag,
  InitFlag2,
  InitOut,
  KERNEL_MINOR_VERSION,
  KERNEL_VERSION,
} from '../wire/fuse.js'
import { PAYLOAD_AT, PAYLOAD_BYTES_MAX } from './answer.js'

/** Requests that the kernel sends without a program waiting for them (readahead, writeback): at most, and when it begins to hold back. */
const BACKGROUND_MAX = 128
const CONGESTION_THRESHOLD = 96
const PAGE_BYTES = 4096

const wanted =
  InitFlag.ASYNC_READ |
  InitFlag.ATOMIC_O_TRUNC | // OPEN truncates: one request less
  InitFlag.EXPORT_SUPPORT | // numbers last: what the kernel has forgotten can be looked up by its own
  InitFlag.BIG_WRITES |
  InitFlag.DO_READDIRPLUS |
  InitFlag.READDIRPLUS_AUTO |
  InitFlag.ASYNC_DIO |
  InitFlag.PARALLEL_DIROPS |
  InitFlag.MAX_PAGES |
  InitFlag.CACHE_SYMLINKS |
  InitFlag.NO_OPENDIR_SUPPORT |
  InitFlag.EXPLICIT_INVAL_DATA | // the page cache goes when we say so, not whenever an mtime differs
  // We clear set-uid bits when told to. Without it every write(2) would ask for the xattr security.capability.
  InitFlag.HANDLE_KILLPRIV_V2 |
  InitFlag.SETXATTR_EXT |
  InitFlag.INIT_EXT
// Not POSIX_LOCKS nor FLOCK_LOCKS: without them the kernel keeps the locks of this mount itself. DONT_MASK only with ACLs: it applies the umask.

/** What RESEND needs, so that another daemon can take the connection over. */
const wanted2 = InitFlag2.HAS_RESEND

export interface Settled {
  dialect: Dialect
  /** Another process can go on with the connection: Linux 6.9. */
  canResume: boolean
  /** The kernel reads files by itself that it is given: Linux 6.9. */
  canPass: boolean
  /** The kernel asks for access control lists, and leaves the umask to us. */
  hasAcl: boolean
  /** Writes the answer behind the header; returns its bytes. */
  encode(view: DataView): number
}

/** Of what lies below us: a directory that is no part of a union itself. Two more may be stacked on a file system of depth 0. */
const STACK_DEPTH_MAX = 1

export interface Wishes {
  readOnly: boolean
  /** The kernel is to read by itself what it can; it does that for readers only. */
  passthrough: boolean
  /** It is to obey access control lists. */
  acl: boolean
}

export function negotiate(kernel: Args<'INIT'>, { readOnly, passthrough, acl }: Wishes): Settled {
  // The kernel collects dirty pages and knows size and times of a file best: right for one writer, wrong for a tree that others change.
  const lists = acl ? InitFlag.POSIX_ACL | InitFlag.DONT_MASK : 0
  const flags = (wanted | lists | (readOnly ? 0 : InitFlag.WRITEBACK_CACHE)) & kernel.flags
  const wishes2 = wanted2 | (passthrough && readOnly ? InitFlag2.PASSTHROUGH : 0)
  const flags2 = kernel.flags & InitFlag.INIT_EXT ? wishes2 & kernel.flags2 : 0
  const canPass = (flags2 & InitFlag2.PASSTHROUGH) !== 0
  return {
    dialect: { setxattrExt: (flags & InitFlag.SETXATTR_EXT) !== 0 },
    canResume: (flags2 & InitFlag2.HAS_RESEND) !== 0,
    canPass,
    hasAcl: lists !== 0 && (flags & lists) === lists,
    encode(view) {
      InitOut.encode(view, PAYLOAD_AT, {
        major: KERNEL_VERSION,
        minor: Math.min(KERNEL_MINOR_VERSION, kernel.major === KERNEL_VERSION ? kernel.minor : KERNEL_MINOR_VERSION),
        maxReadahead: kernel.maxReadahead,
        flags: flags >>> 0,
        maxBackground: BACKGROUND_MAX,
        congestionThreshold: CONGESTION_THRESHOLD,
        maxWrite: PAYLOAD_BYTES_MAX,
        timeGran: 1,
        maxPages: PAYLOAD_BYTES_MAX / PAGE_BYTES,
        mapAlignment: 0,
        flags2,
        maxStackDepth: canPass ? STACK_DEPTH_MAX : 0,
        requestTimeout: 0,
      })
      return InitOut.size
    },
  }
}
