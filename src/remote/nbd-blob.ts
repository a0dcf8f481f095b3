// An export of a server of NBD as a blob.
import PQueue from 'p-queue'
import { KeyedMutex, throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { Command, type Opened, TransmissionFlag } from '../wire/nbd.js'
import type { Blob } from './blob.js'
import { type NbdAddress, NbdConnection } from './nbd-connection.js'
import { checkRange } from './path.js'

/** Where the server says that they see one disk. */
const CONNECTIONS = 4
/** Requests on their way, on all of them. */
const REQUESTS_MAX = 128
/** Of zeros at once: servers may have to write them. */
const ZEROES_BYTES_MAX = 256 * 1024 * 1024

/**
 * Not writable if the server says so. Trimmed bytes are zeros: by WRITE_ZEROES, since NBD's TRIM does not promise that. A connection that
 * breaks rejects what was on its way with UNREACHABLE, and the next request opens another; should the export have another size then: STALE.
 * @throws NOT_FOUND (no such export), FORBIDDEN, UNREACHABLE, PROTOCOL
 */
export async function nbdBlob(address: NbdAddress): Promise<Blob> {
  const first = await NbdConnection.open(address)
  return blobOf(new Connections(address, first), address, first.opened)
}

/** Up to so many connections, each opened when it is first needed, and again when it broke. */
class Connections {
  readonly #address: NbdAddress
  readonly #opened: Opened
  readonly #connections: (Promise<NbdConnection> | null)[]
  readonly #open: (NbdConnection | null)[]
  #isClosed = false

  constructor(address: NbdAddress, { connection, opened }: { connection: NbdConnection; opened: Opened }) {
    this.#address = address
    this.#opened = opened
    const count = opened.details.flags & TransmissionFlag.CAN_MULTI_CONN ? CONNECTIONS : 1
    this.#connections = new Array(count).fill(null)
    this.#open = new Array(count).fill(null)
    this.#connections[0] = Promise.resolve(connection)
    this.#open[0] = connection
  }

  /** The one that has least to do. */
  async use(signal?: AbortSignal): Promise<NbdConnection> {
    throwIfAborted(signal)
    if (this.#isClosed) throw new FerryError('CLOSED')
    let best = 0
    for (let n = 0; n < this.#open.length; n++) {
      if (this.#open[n]?.failure) this.#open[n] = this.#connections[n] = null
      if (this.#load(n) < this.#load(best)) best = n
    }
    this.#connections[best] ??= this.#connect(best)
    return this.#connections[best]!
  }

  close(): void {
    this.#isClosed = true
    for (const connection of this.#open) connection?.end(Command.DISC)
  }

  /** One that is not open yet costs as much as a few requests. */
  #load(n: number): number {
    return this.#open[n]?.requests ?? (n === 0 ? 0 : 4)
  }

  async #connect(n: number): Promise<NbdConnection> {
    try {
      const { connection, opened } = await NbdConnection.open(this.#address)
      const { size } = this.#opened.details
      if (opened.details.size !== size) {
        connection.end(Command.DISC)
        const detail = `${this.#address.shown} had ${size} bytes, and has ${opened.details.size} now`
        throw new FerryError('STALE', { detail })
      }
      if (this.#isClosed) connection.end(Command.DISC)
      this.#open[n] = connection
      return connection
    } catch (error) {
      this.#connections[n] = null
      throw error
    }
  }
}

function blobOf(connections: Connections, { shown }: NbdAddress, { details }: Opened): Blob {
  const { size, flags, blockSize } = details
  const { minimum, maximum } = blockSize
  const has = (flag: number) => (flags & flag) !== 0
  const canWrite = !has(TransmissionFlag.READ_ONLY)
  const canZero = canWrite && has(TransmissionFlag.SEND_WRITE_ZEROES)
  const queue = new PQueue({ concurrency: REQUESTS_MAX })
  /** Parts of blocks are written by reading, changing and writing them. */
  const blocks = new KeyedMutex()
  const requestBytesMax = maximum - (maximum % minimum)

  const check = (at: number, length: number, signal?: AbortSignal) => {
    throwIfAborted(signal)
    checkRange({ at, length })
    if (at + length > size) throw new FerryError('INVALID', { detail: `${length} bytes at ${at} of ${size}` })
  }
  const checkRequest = (length: number) => {
    if (length > requestBytesMax) throw new FerryError('TOO_LARGE', { detail: `${length} bytes in one request` })
  }
  const request = (
    asked: Parameters<NbdConnection['request']>[0],
    bytes?: Parameters<NbdConnection['request']>[1],
    signal?: AbortSignal,
  ) => queue.add(async () => (await connections.use(signal)).request(asked, bytes, signal))

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
      await request({ type: Command.READ, at: from + done, length: part.length }, { into: part }, signal)
    }
    return into
  }
  const writeWhole = async (from: number, payload: Uint8Array, signal?: AbortSignal) => {
    for (let done = 0; done < payload.length; done += requestBytesMax) {
      const part = payload.subarray(done, done + requestBytesMax)
      await request({ type: Command.WRITE, at: from + done, length: part.length }, { payload: part }, signal)
    }
  }
  const write = async (at: number, bytes: Uint8Array, signal?: AbortSignal) => {
    const { from, to } = around(at, bytes.length)
    if (from === at && to === at + bytes.length) return writeWhole(at, bytes, signal)
    const whole = await readWhole(from, to, signal)
    whole.set(bytes, at - from)
    await writeWhole(from, whole, signal)
  }
  const inTurn = (work: () => Promise<void>) => (minimum === 1 ? work() : blocks.run('', work))

  return {
    shape: 'blob',
    url: shown,
    size,
    capabilities: { write: canWrite, trim: canZero, alignment: minimum, requestBytesMax },

    async read(at, length, signal) {
      check(at, length, signal)
      checkRequest(length)
      if (length === 0) return new Uint8Array(0)
      const { from, to } = around(at, length)
      return (await readWhole(from, to, signal)).subarray(at - from, at - from + length)
    },

    async write(at, from, signal) {
      check(at, from.length, signal)
      checkRequest(from.length)
      if (!canWrite) throw new FerryError('READ_ONLY', { detail: shown })
      if (from.length > 0) await inTurn(() => write(at, from, signal))
    },

    async flush(signal) {
      check(0, 0, signal)
      if (has(TransmissionFlag.SEND_FLUSH)) await request({ type: Command.FLUSH, at: 0, length: 0 }, {}, signal)
    },

    ...(canZero && {
      async trim(at: number, length: number, signal?: AbortSignal) {
        check(at, length, signal)
        await inTurn(async () => {
          const first = Math.min(at + length, Math.ceil(at / minimum) * minimum)
          const last = Math.max(first, at + length === size ? size : at + length - ((at + length) % minimum))
          if (first > at) await write(at, new Uint8Array(first - at), signal)
          for (let from = first; from < last; from += ZEROES_BYTES_MAX) {
            const part = Math.min(ZEROES_BYTES_MAX, last - from)
            await request({ type: Command.WRITE_ZEROES, at: from, length: part }, {}, signal)
          }
          if (at + length > last) await write(last, new Uint8Array(at + length - last), signal)
        })
      },
    }),

    async close() {
      connections.close()
    },
  }
}
