// Readiness of a file descriptor: as an event of node's loop, or by asking once.

import assert from 'node:assert/strict'
import { isMainThread } from 'node:worker_threads'
import koffi from 'koffi'
import { checked, errno, lastErrno, self, systemError } from './libc.js'

/** poll(2) events. */
export const POLLIN = 1
export const POLLOUT = 4
export const POLLERR = 8
export const POLLHUP = 16

const pollCall = self.func('poll', 'int', ['void *', 'ulong', 'int']) as (
  fds: Int32Array,
  count: number,
  timeoutMs: number,
) => number

/** One struct pollfd: { int fd; short events; short revents }. */
const pollfd = new Int32Array(2)

/**
 * poll(2) of one descriptor, blocking the process for at most `timeoutMs` (0: only look).
 * @returns the events that are there (POLLIN, POLLHUP, …), 0 when none came in time
 */
export function pollFd(fd: number, timeoutMs: number, events: number = POLLIN): number {
  pollfd[0] = fd
  pollfd[1] = events
  const ready = pollCall(pollfd, 1, timeoutMs)
  if (ready === -1 && lastErrno() === errno.EINTR) return 0
  return checked(ready, 'poll') === 0 ? 0 : pollfd[1] >>> 16
}

/** Blocks this thread until one of the descriptors is readable or in error; poll(2). */
export function waitForAny(fds: number[]): void {
  const all = Int32Array.from(fds.flatMap(fd => [fd, POLLIN]))
  while (pollCall(all, fds.length, -1) === -1) {
    const number = lastErrno()
    if (number !== errno.EINTR) throw systemError(number, 'poll')
  }
}

const Handle = 'void *'
const UV_POLL = 8
const UV_READABLE = 1
const UV_WRITABLE = 2

const PollCallback = koffi.proto('void', [Handle, 'int', 'int'])
const CloseCallback = koffi.proto('void', [Handle])

type Pointer = bigint
const uv = {
  loop: self.func('uv_default_loop', Handle, []) as () => Pointer,
  handleSize: self.func('uv_handle_size', 'size_t', ['int']) as (type: number) => number,
  init: self.func('uv_poll_init', 'int', [Handle, Handle, 'int']) as (loop: Pointer, h: Pointer, fd: number) => number,
  start: self.func('uv_poll_start', 'int', [Handle, 'int', koffi.pointer(PollCallback)]) as (
    handle: Pointer,
    events: number,
    callback: Pointer,
  ) => number,
  stop: self.func('uv_poll_stop', 'int', [Handle]) as (handle: Pointer) => number,
  close: self.func('uv_close', 'void', [Handle, koffi.pointer(CloseCallback)]) as (h: Pointer, cb: Pointer) => void,
  ref: self.func('uv_ref', 'void', [Handle]) as (handle: Pointer) => void,
  unref: self.func('uv_unref', 'void', [Handle]) as (handle: Pointer) => void,
}

export interface Watcher {
  /** Calls back whenever the descriptor is readable, or also when it takes bytes (level triggered). Starting again is fine. */
  start(wanted?: 'readable' | 'both'): void
  stop(): void
  /** Whether it keeps the process alive while started (it does unless told otherwise). */
  ref(): void
  unref(): void
  /** Resolves when libuv has let go: only then may the descriptor be closed. Closing twice is fine. */
  close(): Promise<void>
}

/**
 * Watches `fd` in the main thread's loop (uv_poll of libuv; the descriptor must be O_NONBLOCK and be closed after
 * the watcher). `onReady(failed)` runs in the loop; `failed` means that libuv stopped watching because the descriptor is in
 * error, as /dev/fuse is after an unmount: read it to learn why. What the callback throws becomes an uncaught exception.
 */
export function watchDescriptor(fd: number, onReady: (failed: boolean) => void): Watcher {
  assert(isMainThread, "uv_default_loop() is the main thread's, and libuv takes no calls from others")
  // Memory of ours until libuv calls the close callback; koffi's callback slots likewise.
  const handle = koffi.alloc('uint8_t', uv.handleSize(UV_POLL)) as Pointer
  const failure = uv.init(uv.loop(), handle, fd)
  if (failure < 0) {
    koffi.free(handle)
    throw systemError(-failure, 'uv_poll_init', `fd ${fd}`)
  }
  const callback = koffi.register((_handle: Pointer, status: number, _events: number) => {
    try {
      onReady(status < 0)
    } catch (error) {
      // There is no JavaScript below us that could catch it.
      process.nextTick(() => {
        throw error
      })
    }
  }, koffi.pointer(PollCallback))
  let closed: Promise<void> | undefined

  return {
    start(wanted = 'readable') {
      if (closed) return
      const events = wanted === 'both' ? UV_READABLE | UV_WRITABLE : UV_READABLE
      const result = uv.start(handle, events, callback)
      if (result < 0) throw systemError(-result, 'uv_poll_start', `fd ${fd}`)
    },
    stop() {
      if (!closed) uv.stop(handle)
    },
    ref() {
      if (!closed) uv.ref(handle)
    },
    unref() {
      if (!closed) uv.unref(handle)
    },
    close() {
      closed ??= new Promise(resolve => {
        const done = koffi.register(() => {
          koffi.free(handle)
          resolve()
          // Not from inside the callback: its own slot is still in use.
          setImmediate(() => {
            koffi.unregister(callback)
            koffi.unregister(done)
          })
        }, koffi.pointer(CloseCallback))
        uv.close(handle, done)
      })
      return closed
    },
  }
}
