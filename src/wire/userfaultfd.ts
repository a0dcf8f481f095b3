// userfaultfd(2): structs and numbers, transcribed from <linux/userfaultfd.h>.
import { ior, iowr } from './ioctl.js'
import { array, len64, pad, s64, struct, u8, u32, u64 } from './struct.js'

const MAGIC = 0xaa
/** What the kernel is asked for: UFFD_API. */
export const UFFD_API = 0xaan

/** Of REGISTER: faults at pages that are not there. */
export const REGISTER_MISSING = 1n

export const uffdioApi = struct({ api: u64, features: u64, ioctls: u64 })
export const uffdioRange = struct({ start: len64, length: len64 })
export const uffdioRegister = struct({ start: len64, length: len64, mode: u64, ioctls: u64 })
/** `copied`: bytes, or -errno. */
export const uffdioCopy = struct({ to: len64, from: len64, length: len64, mode: u64, copied: s64 })
/** Also of ZEROPAGE, CONTINUE and POISON: `done` in bytes, or -errno. */
export const uffdioFill = struct({ start: len64, length: len64, mode: u64, done: s64 })

export const UFFDIO_API = iowr(MAGIC, 0x3f, uffdioApi.size)
export const UFFDIO_REGISTER = iowr(MAGIC, 0x00, uffdioRegister.size)
export const UFFDIO_WAKE = ior(MAGIC, 0x02, uffdioRange.size)
export const UFFDIO_COPY = iowr(MAGIC, 0x03, uffdioCopy.size)
export const UFFDIO_ZEROPAGE = iowr(MAGIC, 0x04, uffdioFill.size)
export const UFFDIO_POISON = iowr(MAGIC, 0x08, uffdioFill.size)

/** What a message is about. */
export const Event = { PAGEFAULT: 0x12, FORK: 0x13, REMAP: 0x14, REMOVE: 0x15, UNMAP: 0x16 } as const

const head = { event: u8, reserved: pad(7) }
export const uffdMessage = struct({ ...head, words: array(u64, 3) })
export const faultMessage = struct({ ...head, flags: u64, address: len64, thread: u32, unused: pad(4) })
export const forkMessage = struct({ ...head, descriptor: u32, unused: pad(20) })
export const remapMessage = struct({ ...head, from: len64, to: len64, length: len64 })
/** Also of UNMAP. */
export const removeMessage = struct({ ...head, start: len64, end: len64, unused: pad(8) })
export const MESSAGE_BYTES = uffdMessage.size
