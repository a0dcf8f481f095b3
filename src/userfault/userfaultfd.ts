// Page faults as messages, and their answers: userfaultfd(2), ioctl_userfaultfd(2).
import { closeSync } from 'node:fs'
import { FerryError } from '../base/errors.js'
import { ioctl } from '../linux/libc.js'
import { EAGAIN, readRaw } from '../linux/preadv2.js'
import { addressOf, openUserfaultfd, tryIoctl } from '../linux/userfaultfd.js'
import {
  Event,
  FAULT_WP,
  faultMessage,
  forkMessage,
  MESSAGE_BYTES,
  REGISTER_MISSING,
  remapMessage,
  removeMessage,
  UFFD_API,
  UFFDIO_API,
  UFFDIO_CONTINUE,
  UFFDIO_COPY,
  UFFDIO_MOVE,
  UFFDIO_POISON,
  UFFDIO_REGISTER,
  UFFDIO_WAKE,
  UFFDIO_WRITEPROTECT,
  UFFDIO_ZEROPAGE,
  uffdioApi,
  uffdioCopy,
  uffdioFill,
  uffdioMove,
  uffdioProtect,
  uffdioRange,
  uffdioRegister,
  WRITEPROTECT_ON,
} from '../wire/userfaultfd.js'

/** Taken at once. */
const MESSAGES_MAX = 64

export type UserfaultMessage =
  /** `isProtected`: the page is there, and the program was about to write to it. */
  | { event: 'fault'; address: number; isProtected: boolean }
  /** The process has a child; `descriptor` is that child's, ours to close. */
  | { event: 'fork'; descriptor: number }
  | { event: 'remap'; from: number; to: number; length: number }
  /** MADV_DONTNEED and the like: zeros from now on. */
  | { event: 'remove'; start: number; end: number }
  | { event: 'unmap'; start: number; end: number }

/** How far an answer got. `errno` (positive) 0: all of it. */
export interface Answered {
  bytes: number
  errno: number
}

/** What this kernel can do (bits of Feature). @throws as openUserfaultfd */
export function userfaultFeatures(): bigint {
  const fd = openUserfaultfd()
  try {
    return new Userfaultfd(fd).begin(0n)
  } finally {
    closeSync(fd)
  }
}

/** One descriptor; it does not own it. */
export class Userfaultfd {
  readonly #messages = new Uint8Array(MESSAGES_MAX * MESSAGE_BYTES)
  readonly #view = new DataView(this.#messages.buffer)
  // Filled and used within one synchronous call.
  readonly #struct = new Uint8Array(uffdioCopy.size)
  readonly #structView = new DataView(this.#struct.buffer)

  constructor(readonly fd: number) {}

  /** Once per descriptor. @returns what the kernel can do */
  begin(features: bigint): bigint {
    const api = uffdioApi.toBytes({ api: UFFD_API, features, ioctls: 0n })
    ioctl(this.fd, UFFDIO_API, api)
    return uffdioApi.decode(new DataView(api.buffer)).features
  }

  register(start: number, length: number, mode: bigint = REGISTER_MISSING): void {
    ioctl(this.fd, UFFDIO_REGISTER, uffdioRegister.toBytes({ start, length, mode, ioctls: 0n }))
  }

  /** What has happened, in order; empty: nothing more. @throws errno of read(2) */
  read(): UserfaultMessage[] {
    const count = readRaw(this.fd, this.#messages)
    if (count === EAGAIN) return []
    if (count < 0) throw new FerryError('IO', { detail: `read of userfaultfd: errno ${-count}` })
    const messages: UserfaultMessage[] = []
    for (let at = 0; at + MESSAGE_BYTES <= count; at += MESSAGE_BYTES) messages.push(this.#decode(at))
    return messages
  }

  #decode(at: number): UserfaultMessage {
    const event = this.#messages[at]
    switch (event) {
      case Event.PAGEFAULT: {
        const { address, flags } = faultMessage.decode(this.#view, at)
        return { event: 'fault', address, isProtected: (flags & FAULT_WP) !== 0n }
      }
      case Event.FORK:
        return { event: 'fork', descriptor: forkMessage.decode(this.#view, at).descriptor }
      case Event.REMAP: {
        const { from, to, length } = remapMessage.decode(this.#view, at)
        return { event: 'remap', from, to, length }
      }
      case Event.REMOVE:
      case Event.UNMAP: {
        const { start, end } = removeMessage.decode(this.#view, at)
        return { event: event === Event.REMOVE ? 'remove' : 'unmap', start, end }
      }
      default:
        throw new FerryError('PROTOCOL', { detail: `userfaultfd: event 0x${event.toString(16)}` })
    }
  }

  /** Puts bytes at pages that are not there, and wakes who waits for them. Stops at a page that is there (EEXIST). */
  copy(to: number, from: Uint8Array, mode = 0n): Answered {
    const length = from.byteLength
    uffdioCopy.encode(this.#structView, 0, { to, from: addressOf(from), length, mode, copied: 0n })
    const number = this.#ask(UFFDIO_COPY)
    const { copied } = uffdioCopy.decode(this.#structView)
    return answered(copied, number)
  }

  /** The same with zeros, without memory of their own until they are written to. */
  zero(start: number, length: number): Answered {
    return this.#fill(UFFDIO_ZEROPAGE, start, length)
  }

  /** Maps pages that shared memory has, and wakes who waits for them. Stops at one that it has not (EFAULT), or that is mapped (EEXIST). */
  continue(start: number, length: number): Answered {
    return this.#fill(UFFDIO_CONTINUE, start, length)
  }

  /** Whoever writes to these pages faults. */
  protect(start: number, length: number): void {
    ioctl(this.fd, UFFDIO_WRITEPROTECT, uffdioProtect.toBytes({ start, length, mode: WRITEPROTECT_ON }))
  }

  /** Nobody does any more, and who waits goes on. */
  unprotect(start: number, length: number): void {
    ioctl(this.fd, UFFDIO_WRITEPROTECT, uffdioProtect.toBytes({ start, length, mode: 0n }))
  }

  /** Who touches these pages gets SIGBUS. EINVAL: Linux before 6.6. */
  poison(start: number, length: number): Answered {
    return this.#fill(UFFDIO_POISON, start, length)
  }

  /**
   * Takes pages away, with all that was written to them until that moment, and puts them elsewhere, into registered memory where none are.
   * Stops at a page that is not there (ENOENT) or in use by the kernel (EBUSY, EAGAIN).
   */
  move(to: number, from: number, length: number): Answered {
    uffdioMove.encode(this.#structView, 0, { to, from, length, mode: 0n, moved: 0n })
    const number = this.#ask(UFFDIO_MOVE)
    return answered(uffdioMove.decode(this.#structView).moved, number)
  }

  /** Who waits there looks again. */
  wake(start: number, length: number): void {
    uffdioRange.encode(this.#structView, 0, { start, length })
    this.#ask(UFFDIO_WAKE)
  }

  #fill(request: number, start: number, length: number): Answered {
    uffdioFill.encode(this.#structView, 0, { start, length, mode: 0n, done: 0n })
    const number = this.#ask(request)
    return answered(uffdioFill.decode(this.#structView).done, number)
  }

  #ask(request: number): number {
    return tryIoctl(this.fd, request, this.#struct)
  }
}

const answered = (done: bigint, number: number): Answered => ({ bytes: done > 0n ? Number(done) : 0, errno: number })
