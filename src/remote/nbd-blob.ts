// An export of a server of NBD as a blob.
import { orAborted, throwIfAborted } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { Command, type Opened, TransmissionFlag } from '../wire/nbd.js'
import type { Blob } from './blob.js'
import { type NbdAddress, NbdConnection } from './nbd-connection.js'
import { NbdConnections } from './nbd-connections.js'
import { checkRequest, checkWithin } from './path.js'
import { RangeLock } from './range-lock.js'

/** Of zeros at once: servers may have to write them. */
const ZEROES_BYTES_MAX = 256 * 1024 * 1024

/**
 * Not writable if the server says so. Trimmed bytes are zeros: by WRITE_ZEROES, since NBD's TRIM does not promise that. A connection that
 * breaks rejects what was on its way with UNREACHABLE, and the next request opens another; should the export be another one then: STALE.
 * A flush is STALE when a connection broke over writes that no flush had covered: they may be lost, and must be made again.
 * @throws NOT_FOUND (no such export), FORBIDDEN, UNREACHABLE, PROTOCOL
 */
export async function nbdBlob(address: NbdAddress): Promise<Blob> {
  const first = await NbdConnection.open(address)
  return blobOf(new NbdConnections(address, first), address, first.opened)
}

function blobOf(connections: NbdConnections, { shown }: NbdAddress, { details }: Opened): Blob {
  const { size, flags, blockSize } = details
  const { minimum, maximum } = blockSize
  const has = (flag: number) => (flags & flag) !== 0
  const canWrite = !has(TransmissionFlag.READ_ONLY)
  const canZero = canWrite && has(TransmissionFlag.SEND_WRITE_ZEROES)
  const requestBytesMax = maximum - (maximum % minimum)
  let zeroesBytesMax = ZEROES_BYTES_MAX
  /**
   * Of what is being changed. Parts of blocks are read, changed and written, and nobody may come between. And a change that was given up is
   * held until the server has answered it: done late, it would undo a newer one.
   */
  const changing = new RangeLock()
  /** How many connections had broken before the first change that no flush has covered. */
  let unflushedSince: number | null = null

  /** Whole blocks around these bytes; the last one of the export may be short. */
  const around = (at: number, length: number) => {
    const from = at - (at % minimum)
    const to = Math.min(size, Math.ceil((at + length) / minimum) * minimum)
    return { from, to }
  }
  const readWhole = async (from: number, to: number, signal?: AbortSignal) => {
    const into = new Uint8Array(to - from)
    for (let done = 0; done < into.length; done += requestBytesMax) {
      const part = into.subarray(done, done + requestBytesMax)
      await connections.request({ type: Command.READ, at: from + done, length: part.length, into: part }, signal)
    }
    return into
  }
  const writeWhole = async (from: number, bytes: Uint8Array, signal?: AbortSignal) => {
    for (let done = 0; done < bytes.length; done += requestBytesMax) {
      const payload = bytes.subarray(done, done + requestBytesMax)
      await connections.request({ type: Command.WRITE, at: from + done, length: payload.length, payload }, signal)
    }
  }
  const write = async (at: number, bytes: Uint8Array, signal?: AbortSignal) => {
    if (bytes.length === 0) return
    const { from, to } = around(at, bytes.length)
    if (from === at && to === at + bytes.length) return writeWhole(at, bytes, signal)
    const whole = await readWhole(from, to, signal)
    whole.set(bytes, at - from)
    await writeWhole(from, whole, signal)
  }
  /** Whole blocks. */
  const zero = async (first: number, last: number, signal?: AbortSignal) => {
    for (let at = first; at < last; ) {
      const length = Math.min(zeroesBytesMax, last - at)
      try {
        await connections.request({ type: Command.WRITE_ZEROES, at, length }, signal)
        at += length
      } catch (error) {
        // Some hold it to what they take of bytes.
        if (!isFerryError(error, 'INVALID', 'TOO_LARGE') || length <= requestBytesMax) throw error
        zeroesBytesMax = requestBytesMax
      }
    }
  }
  const change = (at: number, length: number, work: () => Promise<void>, signal?: AbortSignal) => {
    const inTurn = changing.run(around(at, length), async () => {
      const breaks = connections.countBreaks()
      await work()
      unflushedSince ??= breaks
    })
    return orAborted(inTurn, signal)
  }

  return {
    shape: 'blob',
    url: shown,
    size,
    capabilities: { write: canWrite, trim: canZero, alignment: minimum, requestBytesMax },

    async read(at, length, signal) {
      checkWithin({ at, length }, size, signal)
      checkRequest(length, requestBytesMax)
      if (length === 0) return new Uint8Array(0)
      const { from, to } = around(at, length)
      const whole = await orAborted(readWhole(from, to, signal), signal)
      return whole.subarray(at - from, at - from + length)
    },

    async write(at, from, signal) {
      checkWithin({ at, length: from.length }, size, signal)
      checkRequest(from.length, requestBytesMax)
      if (!canWrite) throw new FerryError('READ_ONLY', { detail: shown })
      if (from.length > 0) await change(at, from.length, () => write(at, from, signal), signal)
    },

    async flush(signal) {
      throwIfAborted(signal)
      const since = unflushedSince
      unflushedSince = null
      try {
        if (has(TransmissionFlag.SEND_FLUSH))
          await orAborted(connections.request({ type: Command.FLUSH, at: 0, length: 0 }, signal), signal)
      } catch (error) {
        unflushedSince = since ?? unflushedSince
        throw error
      }
      if (since !== null && connections.countBreaks() > since)
        throw new FerryError('STALE', { detail: `${shown}: a connection broke, and with it writes may be lost` })
    },

    ...(canZero && {
      async trim(at: number, length: number, signal?: AbortSignal) {
        checkWithin({ at, length }, size, signal)
        const end = at + length
        const first = Math.min(end, Math.ceil(at / minimum) * minimum)
        const last = Math.max(first, end === size ? size : end - (end % minimum))
        const work = async () => {
          await write(at, new Uint8Array(first - at), signal)
          await zero(first, last, signal)
          await write(last, new Uint8Array(end - last), signal)
        }
        if (length > 0) await change(at, length, work, signal)
      },
    }),

    async close() {
      connections.close()
    },
  }
}
