// One connection to a server of NBD: many requests on their way, each answered when it is done.
import { connect, type NetConnectOpts, type Socket } from 'node:net'
import { type ConnectionOptions, connect as connectTls } from 'node:tls'
import { deferred, orAborted } from '../base/async.js'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import { Intervals } from '../chunk/intervals.js'
import {
  askHandshake,
  type Conversation,
  Intake,
  type Opened,
  REQUEST_MAGIC,
  Request,
  readAnswers,
  type Waiting,
} from '../wire/nbd.js'

const KEEPALIVE_MS = 30_000
/** Requests that nobody waits for any more, and that the server still has not answered: then it is taken to be gone. */
const WAITING_MAX = 1024

export interface NbdAddress {
  /** Where the server listens. */
  to: NetConnectOpts
  /** Of the export: bytes. */
  name: string
  /** null: without TLS. */
  tls: ConnectionOptions | null
  /** For messages. */
  shown: string
}

export class NbdConnection {
  readonly #address: NbdAddress
  readonly #waiting = new Map<number, Waiting>()
  readonly #opened = deferred<Opened>()
  #socket: Socket
  readonly #intake: Intake<void>
  #cookie = 0
  #failure: FerryError | null = null

  private constructor(address: NbdAddress) {
    this.#address = address
    this.#socket = connect({ noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS, ...address.to })
    this.#listen(this.#socket)
    this.#intake = new Intake(this.#converse())
  }

  /** @throws what the server says to it (see askHandshake), UNREACHABLE, ABORTED */
  static async open(address: NbdAddress, signal?: AbortSignal): Promise<{ connection: NbdConnection; opened: Opened }> {
    const connection = new NbdConnection(address)
    try {
      return { connection, opened: await orAborted(connection.#opened.promise, signal) }
    } catch (error) {
      connection.destroy()
      throw error
    }
  }

  /** Why it is over; null: it is not. */
  get failure(): FerryError | null {
    return this.#failure
  }

  /** Requests on their way. */
  get requests(): number {
    return this.#waiting.size
  }

  /** Resolves when it is answered; `into` is full then. When `signal` aborts nobody waits for it any more, and what comes is dropped. */
  async request(
    { type, flags = 0, at, length }: { type: number; flags?: number; at: number; length: number },
    { payload, into = null }: { payload?: Uint8Array; into?: Uint8Array | null } = {},
    signal?: AbortSignal,
  ): Promise<void> {
    if (this.#waiting.size >= WAITING_MAX) {
      this.#fail(new FerryError('UNREACHABLE', { detail: `${this.#address.shown}: it does not answer` }))
      this.#socket.destroy()
    }
    if (this.#failure) throw this.#failure
    const answered = deferred()
    answered.promise.catch(() => {})
    const cookieLow = this.#cookie
    this.#cookie = (this.#cookie + 1) % 2 ** 32
    const { resolve, reject } = answered
    this.#waiting.set(cookieLow, { at, into, filled: new Intervals(), error: null, resolve, reject })
    const offset = { offsetHigh: Math.floor(at / 2 ** 32), offsetLow: at % 2 ** 32 }
    const header = { magic: REQUEST_MAGIC, flags, type, cookieHigh: 0, cookieLow, ...offset, length }
    this.#socket.cork()
    this.#socket.write(Request.toBytes(header))
    // Who has gone away may do with the bytes what he likes.
    if (payload) this.#socket.write(signal ? Uint8Array.from(payload) : payload)
    this.#socket.uncork()
    await orAborted(answered.promise, signal)
  }

  /** Says that it is over, without waiting for anything. */
  end(type: number): void {
    const header = {
      magic: REQUEST_MAGIC,
      flags: 0,
      type,
      cookieHigh: 0,
      cookieLow: 0,
      offsetHigh: 0,
      offsetLow: 0,
      length: 0,
    }
    if (!this.#failure) this.#socket.end(Request.toBytes(header))
    this.#fail(new FerryError('CLOSED'))
  }

  destroy(): void {
    this.#fail(new FerryError('CLOSED'))
    this.#socket.destroy()
  }

  #listen(socket: Socket) {
    const { shown } = this.#address
    const broke = (error?: Error) => {
      if (socket !== this.#socket) return
      const cause = error && toFerryError(error)
      const detail = `${shown}: ${error ? error.message : 'the server has closed the connection'}`
      this.#fail(new FerryError('UNREACHABLE', { cause, detail }))
    }
    socket.on('data', bytes => {
      if (socket === this.#socket) this.#take(() => this.#intake.feed(bytes))
    })
    socket
      .on('error', broke)
      .on('end', () => broke())
      .on('close', () => broke())
  }

  #take(work: () => void) {
    try {
      work()
    } catch (error) {
      if (!(error instanceof FerryError)) throw error
      const { code, lasting } = error
      const detail = `${this.#address.shown}: ${error.message.replace(/^[^:]*: /, '')}`
      this.#fail(isFerryError(error, 'PROTOCOL') ? error : new FerryError(code, { cause: error, detail, lasting }))
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
    this.#opened.resolve(opened)
    yield* readAnswers({
      waiting: (high, low) => (high === 0 ? this.#waiting.get(low) : undefined),
      settled: (_, low) => this.#waiting.delete(low),
    })
  }

  #startTls() {
    const plain = this.#socket
    setImmediate(() => {
      if (this.#failure) return
      this.#socket = connectTls({ socket: plain, ...this.#address.tls })
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
