// Large buffers that are used again: memory that is new to the process costs a page fault for every 4 KiB, and to be rid of it the
// garbage collector. One pool in each thread.

/** Smaller ones are not worth it. */
const BYTES_MIN = 128 * 1024
/** Kept for later, at most. */
const KEPT_BYTES_MAX = 64 * 1024 * 1024

const kept = new Map<number, ArrayBufferLike[]>()
let keptBytes = 0
let areShared = false
const ours = new WeakSet<ArrayBufferLike>()

/**
 * From now on what this thread takes is memory that others see, too: for those who hand it to another thread and get it back. V8 counts
 * what is transferred to a thread as allocated there, and collects the whole heap for some megabytes of it, however soon they leave again;
 * shared memory it does not count, and so it does not hurry to be rid of it either.
 */
export function shareBytes(): void {
  areShared = true
}

/** At the beginning of a buffer that may be larger. What is in them is whatever was there before. */
export function takeBytes(length: number): Uint8Array {
  if (length < BYTES_MIN) return new Uint8Array(length)
  const size = 2 ** Math.ceil(Math.log2(length))
  const known = kept.get(size)?.pop()
  if (known) keptBytes -= size
  const buffer = known ?? (areShared ? new SharedArrayBuffer(size) : new ArrayBuffer(size))
  ours.add(buffer)
  return new Uint8Array(buffer, 0, length)
}

/** All of its buffer belongs to these bytes, though they may be fewer. */
export const isTaken = ({ buffer }: Uint8Array): boolean => ours.has(buffer)

/** Nobody needs these bytes any more: what was taken for them is kept for later. */
export function giveBack({ buffer }: Uint8Array): void {
  if (ours.has(buffer)) giveBytes(buffer)
}

/** Nobody has a view of it any more. The oldest sizes go when there are too many. */
export function giveBytes(buffer: ArrayBufferLike): void {
  const size = buffer.byteLength
  if (size < BYTES_MIN || size > KEPT_BYTES_MAX || 2 ** Math.floor(Math.log2(size)) !== size) return
  const same = kept.get(size) ?? []
  kept.delete(size)
  kept.set(size, same)
  same.push(buffer)
  keptBytes += size
  for (const [one, buffers] of kept) {
    while (keptBytes > KEPT_BYTES_MAX && buffers.length > 0) {
      buffers.pop()
      keptBytes -= one
    }
    if (buffers.length === 0) kept.delete(one)
  }
}
