// A blob behind r3map's service of mounts: ReadAt, WriteAt, Sync, and nothing else.
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { malformed } from '../wire/reader.js'
import type { Blob } from './blob.js'
import type { GrpcAddress } from './grpc-address.js'
import { GrpcConnection } from './grpc-client.js'
import { r3mapBackend } from './grpc-proto.js'
import { checkRequest, checkWithin } from './path.js'

/** Servers of Go take messages of up to 4 MiB, unless they are told otherwise. */
const REQUEST_BYTES_MAX = 1024 * 1024

/**
 * Of a size that the server does not tell. A write that was given up may still be made by the server, even after a later one: r3map's
 * service has nothing against that.
 */
export function r3mapBlob(address: GrpcAddress, size: number): Blob {
  // Servers of Go end connections that are asked too often for signs of life.
  const connection = new GrpcConnection(address, { pings: false })
  const check = (at: number, length: number, signal: AbortSignal | undefined) => {
    checkWithin({ at, length }, size, signal)
    checkRequest(length, REQUEST_BYTES_MAX)
  }
  return {
    shape: 'blob',
    url: connection.url,
    size,
    capabilities: { write: true, trim: false, alignment: 1, requestBytesMax: REQUEST_BYTES_MAX },

    async read(at, length, signal) {
      check(at, length, signal)
      if (length === 0) return new Uint8Array(0)
      const { N, P } = await connection.ask(r3mapBackend, 'ReadAt', { Length: length, Off: at }, { signal })
      if (N > length || P.length < N) throw malformed(`${connection.url}: ${N} bytes where there may be ${length}`)
      if (N < length) throw new FerryError('SHORT_READ', { detail: `${N} of ${length} bytes at ${at}` })
      return new Uint8Array(P.subarray(0, length))
    },

    async write(at, from, signal) {
      check(at, from.length, signal)
      if (from.length === 0) return
      const P = Buffer.from(from.buffer, from.byteOffset, from.byteLength)
      const { Length } = await connection.ask(r3mapBackend, 'WriteAt', { Off: at, P }, { signal })
      if (Length !== from.length)
        throw new FerryError('IO', { detail: `${Length} of ${from.length} bytes were written` })
    },

    async flush(signal) {
      throwIfAborted(signal)
      await connection.ask(r3mapBackend, 'Sync', {}, { signal })
    },

    close: () => connection.close(),
  }
}
