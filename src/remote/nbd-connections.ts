// The connections to one export: as many as are of use, opened when they are needed, and again when they broke.
import PQueue from 'p-queue'
import { throwIfAborted } from '../base/async.js'
import { FerryError, isFerryError, isPermanent } from '../base/errors.js'
import { type Opened, TransmissionFlag } from '../wire/nbd.js'
import { type Asking, type NbdAddress, NbdConnection } from './nbd-connection.js'

/** Requests on their way, on each connection. */
const REQUESTS_MAX = 64
/** As many requests at least, before another connection is worth being opened. */
const WORTH_OPENING = 4
/** A further connection that was refused is not asked for again so soon. */
const REFUSED_MS = 5_000

/** What an export must say again when it is opened again. */
const FLAGS_KEPT = TransmissionFlag.READ_ONLY | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_WRITE_ZEROES

interface Line {
  connection: NbdConnection | null
  opening: Promise<NbdConnection> | null
  requests: number
  refusedAtMs: number
}

export class NbdConnections {
  readonly #address: NbdAddress
  readonly #opened: Opened
  readonly #lines: Line[]
  readonly #queue: PQueue
  #breaks = 0
  #isClosed = false

  constructor(address: NbdAddress, { connection, opened }: { connection: NbdConnection; opened: Opened }) {
    this.#address = address
    this.#opened = opened
    const count = opened.details.flags & TransmissionFlag.CAN_MULTI_CONN ? address.connections : 1
    this.#lines = Array.from({ length: count }, (_, n) => ({
      connection: n === 0 ? connection : null,
      ...{ opening: null, requests: 0, refusedAtMs: Number.NEGATIVE_INFINITY },
    }))
    this.#queue = new PQueue({ concurrency: count * REQUESTS_MAX })
  }

  /** How many broke so far; they are opened again when they are needed. */
  countBreaks(): number {
    for (const line of this.#lines)
      if (line.connection?.failure) {
        line.connection = null
        this.#breaks++
      }
    return this.#breaks
  }

  /** Settles when it is answered, or can not be any more; `signal` keeps it from being sent. */
  request(asking: Asking, signal?: AbortSignal): Promise<void> {
    return this.#queue.add(async () => {
      throwIfAborted(signal)
      if (this.#isClosed) throw new FerryError('CLOSED')
      const line = this.#leastBusy()
      line.requests++
      try {
        const connection = line.connection ?? (await this.#open(line))
        throwIfAborted(signal)
        await connection.request(asking, signal)
      } finally {
        line.requests--
      }
    })
  }

  close(): void {
    this.#isClosed = true
    for (const { connection } of this.#lines) connection?.end()
  }

  #leastBusy(): Line {
    this.countBreaks()
    const isThere = ({ connection, opening }: Line) => connection !== null || opening !== null
    const isAnyThere = this.#lines.some(isThere)
    const load = (line: Line) => {
      if (isThere(line)) return line.requests
      const isRefused = isAnyThere && performance.now() - line.refusedAtMs < REFUSED_MS
      return isRefused ? Number.POSITIVE_INFINITY : line.requests + WORTH_OPENING
    }
    return this.#lines.reduce((best, line) => (load(line) < load(best) ? line : best))
  }

  /** Where there is one already, it will do. */
  async #open(line: Line): Promise<NbdConnection> {
    line.opening ??= this.#connect().finally(() => {
      line.opening = null
    })
    try {
      line.connection = await line.opening
      return line.connection
    } catch (error) {
      line.refusedAtMs = performance.now()
      const other = this.#lines.find(({ connection }) => connection && !connection.failure)
      if (!other) throw error
      return other.connection!
    }
  }

  async #connect(): Promise<NbdConnection> {
    const { connection, opened } = await NbdConnection.open(this.#address).catch(error => {
      // What the server thinks of us now is no refusal of what we were to write.
      throw isPermanent(error) || isFerryError(error, 'NOT_FOUND')
        ? new FerryError('UNREACHABLE', { cause: error, detail: error.message, lasting: true })
        : error
    })
    const was = this.#opened.details
    const now = opened.details
    const changed = [
      was.size !== now.size && `had ${was.size} bytes, and has ${now.size} now`,
      (was.flags & FLAGS_KEPT) !== (now.flags & FLAGS_KEPT) && 'does not take the same requests as before',
      was.blockSize.minimum !== now.blockSize.minimum && 'has blocks of another size now',
      was.blockSize.maximum > now.blockSize.maximum && 'takes less at once than before',
    ].find(Boolean)
    if (changed || this.#isClosed) connection.end()
    if (changed) throw new FerryError('STALE', { detail: `${this.#address.shown} ${changed}` })
    return connection
  }
}
