// One object of a bucket as a run of bytes, to be read: the very version that was there when it was opened.
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import type { Blob } from './blob.js'
import type { Key, Objects } from './objects.js'
import { checkRange, printable, urlPath } from './path.js'

const REQUEST_BYTES_MAX = 64 * 2 ** 20

/** NOT_FOUND if it is not there, ARCHIVED if it is that; STALE for every read once it was replaced. It closes what it stands on. */
export async function objectBlob(objects: Objects, key: Key): Promise<Blob> {
  const head = await objects.head(key).catch(async error => {
    await objects.close()
    throw error
  })
  if (!head || head.archived) {
    await objects.close()
    if (!head) throw new FerryError('NOT_FOUND', { detail: printable(key) })
    throw new FerryError('ARCHIVED', { detail: printable(key) })
  }
  const { size, etag } = head
  const [base, query] = objects.url.split('?', 2)
  return {
    shape: 'blob',
    url: `${base}/${urlPath(Buffer.from(key, 'latin1'))}${query ? `?${query}` : ''}`,
    size,
    capabilities: { write: false, trim: false, alignment: 1, requestBytesMax: REQUEST_BYTES_MAX },

    async read(at, length, signal) {
      throwIfAborted(signal)
      checkRange({ at, length })
      if (at + length > size) throw new FerryError('INVALID', { detail: `${length} bytes at ${at} of ${size}` })
      if (length > REQUEST_BYTES_MAX) throw new FerryError('TOO_LARGE', { detail: `${length} bytes at once` })
      if (length === 0) return new Uint8Array()
      const bytes = await objects.get(key, { at, length, etag }, signal)
      if (bytes.byteLength < length) throw new FerryError('SHORT_READ', { detail: `${length} bytes at ${at}` })
      return bytes
    },

    async write() {
      throw new FerryError('READ_ONLY', { detail: printable(key) })
    },

    async flush(signal) {
      throwIfAborted(signal)
    },

    version: async () => etag,

    close: () => objects.close(),
  }
}
