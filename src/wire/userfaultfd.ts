// userfaultfd(2): structs and numbers, transcribed from <linux/userfaultfd.h>.
import { ior, iowr } from './ioctl.js'
import { array, len64, pad, s64, struct, u8, u32, u64 } from './struct.js'

const MAGIC = 0xaa
/** What the kernel is asked for: UFFD_API. */
export const UFFD_API = 0xaan

/** Of REGISTER: faults at pages that are not there. */
export const REGISTER_MISSING = 1n
/** Of REGISTER: pages can be protected against writes. */
export const REGISTER_WP = 2n
/** Of COPY: the page arrives protected. */
export const COPY_WP = 2n
/** Of REGISTER: faults at pages of shared memory that are there, and not in this mapping. */
export const REGISTER_MINOR = 4n
/** A feature: MINOR faults of memfd (Linux 5.14). */
export const FEATURE_MINOR_SHMEM = 1n << 10n
/** A feature: a write to a protected page takes the protection away, and nobody is asked (Linux 6.7). */
export const FEATURE_WP_ASYNC = 1n << 15n
/** The kernel has MOVE; it need not be asked for. */
export const FEATURE_MOVE = 1n << 16n

export const uffdioApi = struct({ api: u64, features: u64, ioctls: u64 })
export const uffdioRange = struct({ start: len64, length: len64 })
export const uffdioRegister = struct({ start: len64, length: len64, mode: u64, ioctls: u64 })
/** `copied`: bytes, or -errno. */
export const uffdioCopy = struct({ to: len64, from: len64, length: len64, mode: u64, copied: s64 })
/** Linux 6.8. `moved`: bytes, or -errno. */
export const uffdioMove = struct({ to: len64, from: len64, length: len64, mode: u64, moved: s64 })
export const uffdioProtect = struct({ start: len64, length: len64, mode: u64 })
/** Of WRITEPROTECT: protect; without it the protection goes, and who waits is woken. */
export const WRITEPROTECT_ON = 1n
/** Also of ZEROPAGE, CONTINUE and POISON: `done` in bytes, or -errno. */
export const uffdioFill = struct({ start: len64, length: len64, mode: u64, done: s64 })

export const UFFDIO_API = iowr(MAGIC, 0x3f, uffdioApi.size)
export const UFFDIO_REGISTER = iowr(MAGIC, 0x00, uffdioRegister.size)
export const UFFDIO_WAKE = ior(MAGIC, 0x02, uffdioRange.size)
export const UFFDIO_COPY = iowr(MAGIC, 0x03, uffdioCopy.size)
export const UFFDIO_ZEROPAGE = iowr(MAGIC, 0x04, uffdioFill.size)
export const UFFDIO_MOVE = iowr(MAGIC, 0x05, uffdioMove.size)
export const UFFDIO_WRITEPROTECT = iowr(MAGIC, 0x06, uffdioProtect.size)
export const UFFDIO_CONTINUE = iowr(MAGIC, 0x07, uffdioFill.size)
export const UFFDIO_POISON = iowr(MAGIC, 0x08, uffdioFill.size)

/** What a message is about. */
export const Event = { PAGEFAULT: 0x12, FORK: 0x13, REMAP: 0x14, REMOVE: 0x15, UNMAP: 0x16 } as const

const head = { event: u8, reserved: pad(7) }
export const uffdMessage = struct({ ...head, words: array(u64, 3) })
/** Of a fault: the page is there, and protected. */
export const FAULT_WP = 2n
export const faultMessage = struct({ ...head, flags: u64, address: len64, thread: u32, unused: pad(4) })
export const forkMessage = struct({ ...head, descriptor: u32, unused: pad(20) })
export const remapMessage = struct({ ...head, from: len64, to: len64, length: len64 })
/** Also of UNMAP. */
export const removeMessage = struct({ ...head, start: len64, end: len64, unused: pad(8) })
export const MESSAGE_BYTES = uffdMessage.size

// PAGEMAP_SCAN on /proc/PID/pagemap, <linux/fs.h> (Linux 6.7).
export const pmScanArg = struct({
  size: len64,
  flags: u64,
  start: len64,
  end: len64,
  /** Out. It may lag behind the last range that was found. */
  walkEnd: len64,
  ranges: len64,
  rangesMax: len64,
  pagesMax: len64,
  inverted: u64,
  /** All of these must be true of a page, */
  mask: u64,
  /** and one of these. */
  anyOf: u64,
  returned: u64,
})
export const pageRange = struct({ start: len64, end: len64, categories: u64 })
export const PAGEMAP_SCAN = iowr('f'.charCodeAt(0), 16, pmScanArg.size)
export const ScanFlag = { PROTECT: 1n, CHECK_WP_ASYNC: 2n } as const
export const PageCategory = { WRITTEN: 2n, PRESENT: 8n, SWAPPED: 16n } as const
