// One connection to a server of NBD: many requests on their way, each answered when it is done.
import { connect, type NetConnectOpts, type Socket } from 'node:net'
import { type ConnectionOptions, connect as connectTls } from 'node:tls'
import { deferred } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { Intervals } from '../chunk/intervals.js'
import {
  askHandshake,
  Command,
  type Conversation,
  Intake,
  type Opened,
  REQUEST_MAGIC,
  Request,
  readAnswers,
  type Waiting,
} from '../wire/nbd.js'
import { malformed } from '../wire/reader.js'

const KEEPALIVE_MS = 30_000
/** From the first byte to the first request. */
const HANDSHAKE_MS_MAX = 15_000
/** How long the answer to a request that nobody waits for any more may still take: then the server is taken to be gone. */
const ABANDONED_MS_MAX = 5_000

export interface NbdAddress {
  /** Where the server listens. */
  to: NetConnectOpts
  /** Of the export: bytes. */
  name: string
  /** null: without TLS. */
  tls: ConnectionOptions | null
  /** At most so many at once. */
  connections: number
  /** For messages. */
  shown: string
}

export interface Asking {
  type: number
  at: number
  length: number
  /** What goes with it: it must not change until the request is answered. */
  payload?: Uint8Array
  /** To be filled with what comes back. */
  into?: Uint8Array
}

export class NbdConnection {
  readonly #address: NbdAddress
  readonly #waiting = new Map<number, Waiting>()
  readonly #opened = deferred<Opened>()
  /** Below TLS, if there is any. */
  readonly #plain: Socket
  #socket: Socket
  readonly #intake: Intake<void>
  #isOpen = false
  #cookie = 0
  #failure: FerryError | null = null

  private constructor(address: NbdAddress) {
    this.#address = address
    this.#plain = connect({ noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS, ...address.to })
    this.#socket = this.#plain
    this.#listen(this.#socket)
    this.#intake = new Intake(this.#converse())
  }

  /** @throws what the server says to it (see askHandshake), FORBIDDEN: it is not whom its certificate should show; UNREACHABLE */
  static async open(address: NbdAddress): Promise<{ connection: NbdConnection; opened: Opened }> {
    const connection = new NbdConnection(address)
    const timer = setTimeout(
      () => connection.#giveUp(`no handshake within ${HANDSHAKE_MS_MAX / 1000} s`),
      HANDSHAKE_MS_MAX,
    )
    try {
      return { connection, opened: await connection.#opened.promise }
    } finally {
      clearTimeout(timer)
    }
  }

  /** Why it is over; null: it is not. */
  get failure(): FerryError | null {
    return this.#failure
  }

  /**
   * Resolves when it is answered; `into` is full then. An abort of `signal` does not end that: what was sent may still be done. But the
   * server has only so long to say so, then the connection is over.
   */
  async request({ type, at, length, payload, into }: Asking, signal?: AbortSignal): Promise<void> {
    if (this.#failure) throw this.#failure
    const { promise, resolve, reject } = deferred()
    const cookieLow = this.#cookie
    this.#cookie = (this.#cookie + 1) % 2 ** 32
    this.#waiting.set(cookieLow, { at, into: into ?? null, filled: new Intervals(), error: null, resolve, reject })
    const offset = { offsetHigh: Math.floor(at / 2 ** 32), offsetLow: at % 2 ** 32 }
    this.#socket.cork()
    this.#socket.write(Request.toBytes({ ...none, type, cookieLow, ...offset, length }))
    if (payload) this.#socket.write(payload)
    this.#socket.uncork()
    let timer: NodeJS.Timeout | undefined
    const abandon = () => {
      timer = setTimeout(() => this.#giveUp('it does not answer'), ABANDONED_MS_MAX)
    }
    signal?.addEventListener('abort', abandon, { once: true })
    try {
      await promise
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', abandon)
    }
  }

  /** Takes leave, without waiting for anything. */
  end(): void {
    if (!this.#failure) {
      this.#socket.write(Request.toBytes({ ...none, type: Command.DISC }))
      this.#socket.destroySoon()
    }
    this.#fail(new FerryError('CLOSED'))
  }

  /** What waits to be sent is not sent any more: it may be too late for it by the time that it arrives. */
  #giveUp(why: string) {
    this.#fail(new FerryError('UNREACHABLE', { detail: `${this.#address.shown}: ${why}` }))
    if ('port' in this.#address.to) this.#plain.resetAndDestroy()
    this.#socket.destroy()
  }

  #listen(socket: Socket) {
    const broke = (error?: Error) => {
      if (socket === this.#socket) this.#fail(this.#brokenBy(error))
    }
    socket.on('data', bytes => {
      if (socket === this.#socket) this.#take(() => this.#intake.feed(bytes))
    })
    socket
      .on('error', broke)
      .on('end', () => broke())
      .on('close', () => broke())
  }

  /** What is no error of the system is one of TLS: nothing that goes away by itself. */
  #brokenBy(error?: Error): FerryError {
    const { shown } = this.#address
    if (!error) return new FerryError('UNREACHABLE', { detail: `${shown}: the server has closed the connection` })
    const isRefused = !this.#isOpen && !('syscall' in error)
    return new FerryError(isRefused ? 'FORBIDDEN' : 'UNREACHABLE', {
      cause: error,
      detail: `${shown}: ${error.message}`,
      lasting: isRefused,
    })
  }

  /** Who does not speak NBD, or refuses us, is left. */
  #take(work: () => void) {
    try {
      work()
    } catch (error) {
      if (!isFerryError(error)) throw error
      const { code, lasting } = error
      const detail = `${this.#address.shown}: ${error.message.replace(/^[^:]*: /, '')}`
      this.#fail(new FerryError(code, { cause: error, detail, lasting }))
      this.#socket.destroy()
    }
  }

  *#converse(): Conversation {
    const { name, tls } = this.#address
    const opened = yield* askHandshake({
      ...{ name, tls: tls !== null },
      send: bytes => this.#socket.write(bytes),
      startTls: () => this.#startTls(),
    })
    this.#isOpen = true
    this.#opened.resolve(opened)
    yield* readAnswers({
      style: opened.style,
      waiting: (high, low) => (high === 0 ? this.#waiting.get(low) : undefined),
      settled: (_, low) => this.#waiting.delete(low),
    })
  }

  #startTls() {
    // What came in the same breath, whoever sent it, does not count as said in TLS.
    setImmediate(() => {
      if (this.#failure) return
      if (this.#intake.restBytes > 0)
        return this.#take(() => {
          throw malformed('the server speaks on without TLS')
        })
      this.#socket = connectTls({ socket: this.#plain, ...this.#address.tls })
      this.#listen(this.#socket)
      this.#socket.once('secureConnect', () => this.#take(() => this.#intake.resume()))
    })
  }

  #fail(error: FerryError) {
    if (this.#failure) return
    this.#failure = error
    this.#opened.promise.catch(() => {})
    this.#opened.reject(error)
    for (const { reject } of this.#waiting.values()) reject(error)
    this.#waiting.clear()
  }
}

/** A request for nothing. */
const none = {
  ...{ magic: REQUEST_MAGIC, flags: 0, type: 0, cookieHigh: 0, cookieLow: 0 },
  ...{ offsetHigh: 0, offsetLow: 0, length: 0 },
}
