// A blob in memory, sparse.
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import type { Blob } from './blob.js'
import { MemBytes } from './mem-bytes.js'
import { checkRange, checkRequest, checkWithin } from './path.js'

const REQUEST_BYTES_MAX = 64 * 1024 * 1024

/** A blob in memory: `snapshot` is a moment, `restore` goes back to it, any number of times. */
export interface MemBlob extends Blob {
  snapshot(): MemBytes
  restore(snapshot: MemBytes): void
}

export interface MemBlobOptions {
  /** All openers of one name in this process see the same bytes; without one they are the caller's own. */
  name?: string
  /** In bytes. Needed by the first opener; INVALID if it is not the size that the blob already has. */
  size?: number
}

const named = new Map<string, { bytes: MemBytes }>()

export function memBlob({ name, size }: MemBlobOptions = {}): MemBlob {
  const there = name === undefined ? undefined : named.get(name)
  const wanted = size ?? there?.bytes.size
  if (wanted === undefined) throw new FerryError('INVALID', { detail: 'a blob in memory needs a size' })
  checkRange({ at: 0, length: wanted })
  if (there && there.bytes.size !== wanted)
    throw new FerryError('INVALID', { detail: `mem:${name} has ${there.bytes.size} bytes, not ${wanted}` })
  const state = there ?? { bytes: new MemBytes(wanted) }
  if (name !== undefined) named.set(name, state)

  return {
    shape: 'blob',
    url: `mem:${name ?? ''}`,
    get size() {
      return state.bytes.size
    },
    capabilities: { write: true, trim: true, alignment: 1, requestBytesMax: REQUEST_BYTES_MAX },
    snapshot: () => state.bytes.clone(),
    restore: snapshot => {
      state.bytes = snapshot.clone()
    },
    async read(at, length, signal) {
      checkWithin({ at, length }, state.bytes.size, signal)
      checkRequest(length, REQUEST_BYTES_MAX)
      return state.bytes.read(at, length)
    },
    async write(at, from, signal) {
      checkWithin({ at, length: from.byteLength }, state.bytes.size, signal)
      checkRequest(from.byteLength, REQUEST_BYTES_MAX)
      state.bytes.write(at, from)
    },
    async flush(signal) {
      throwIfAborted(signal)
    },
    async trim(at, length, signal) {
      checkWithin({ at, length }, state.bytes.size, signal)
      state.bytes.punch(at, length)
    },
    async resize(size, signal) {
      throwIfAborted(signal)
      checkRange({ at: 0, length: size })
      state.bytes.truncate(size)
    },
    async close() {},
  }
}
