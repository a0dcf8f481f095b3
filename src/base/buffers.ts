// Large buffers that are used again: memory that is new to the process costs a page fault for every 4 KiB, and to be rid of it the
// garbage collector. Pools of each thread.

/** Smaller ones are not worth it. */
const BYTES_MIN = 128 * 1024
/** Kept for later by each pool, at most. */
const KEPT_BYTES_MAX = 64 * 1024 * 1024

/** Buffers whose sizes are powers of two. */
class Pool<Memory extends ArrayBufferLike> {
  readonly #make: (bytes: number) => Memory
  readonly #kept = new Map<number, Memory[]>()
  #keptBytes = 0

  constructor(make: (bytes: number) => Memory) {
    this.#make = make
  }

  take(length: number): Memory {
    const size = 2 ** Math.ceil(Math.log2(length))
    const known = this.#kept.get(size)?.pop()
    if (known) this.#keptBytes -= size
    return known ?? this.#make(size)
  }

  /** The oldest sizes go when there are too many. */
  give(buffer: Memory): void {
    const size = buffer.byteLength
    if (size < BYTES_MIN || size > KEPT_BYTES_MAX || 2 ** Math.floor(Math.log2(size)) !== size) return
    const same = this.#kept.get(size) ?? []
    this.#kept.delete(size)
    this.#kept.set(size, same)
    same.push(buffer)
    this.#keptBytes += size
    for (const [one, buffers] of this.#kept) {
      while (this.#keptBytes > KEPT_BYTES_MAX && buffers.length > 0) {
        buffers.pop()
        this.#keptBytes -= one
      }
      if (buffers.length === 0) this.#kept.delete(one)
    }
  }
}

const pool = new Pool(size => new ArrayBuffer(size))
const sharedPool = new Pool(size => new SharedArrayBuffer(size))
const ours = new WeakSet<ArrayBufferLike>()

/** At the beginning of a buffer that may be larger. What is in them is whatever was there before. */
export function takeBytes(length: number): Uint8Array {
  if (length < BYTES_MIN) return new Uint8Array(length)
  const buffer = pool.take(length)
  ours.add(buffer)
  return new Uint8Array(buffer, 0, length)
}

/** All of its buffer belongs to these bytes, though they may be fewer. */
export const isTaken = ({ buffer }: Uint8Array): boolean => ours.has(buffer)

/** Nobody needs these bytes any more: what was taken for them is kept for later. */
export function giveBack({ buffer }: Uint8Array): void {
  if (ours.has(buffer)) pool.give(buffer as ArrayBuffer)
}

/**
 * A copy in memory that another thread sees, too, and gives back (`giveShared`, in this one); of few bytes: they themselves. V8 counts what
 * is transferred to a thread as allocated there, and collects the whole heap for some megabytes of it, however soon they leave again; shared
 * memory it does not count. For that other thread alone: native modules that are given such bytes may read from anywhere (Node-API's
 * napi_get_arraybuffer_info refuses them; msgpackr's string reader does not ask whether it did).
 */
export function sharedCopy(bytes: Uint8Array): Uint8Array {
  const length = bytes.byteLength
  if (length < BYTES_MIN) return bytes
  const copy = new Uint8Array(sharedPool.take(length), 0, length)
  copy.set(bytes)
  giveBack(bytes)
  return copy
}

/** Nobody has a view of it any more. */
export const giveShared = (buffer: SharedArrayBuffer): void => sharedPool.give(buffer)
