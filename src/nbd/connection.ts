// One client, from its greeting to its end. Its requests run side by side, and are answered as they are done.
import type { Socket } from 'node:net'
import type { TLSSocketOptions } from 'node:tls'
import { deferred } from '../base/async.js'
import type { Awake } from '../base/awake.js'
import { giveBack, takeBytes } from '../base/buffers.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import type { Maybe } from '../cache/filesystem.js'
import { takeDescriptor } from '../linux/descriptors.js'
import {
  type Agreed,
  Allocation,
  type Asked,
  blockStatus,
  Command,
  CommandFlag,
  type Conversation,
  data,
  done,
  EXTENDED_REQUEST_MAGIC,
  EXTENTS_MAX,
  type ExportDetails,
  ExtendedRequest,
  failed,
  Intake,
  NbdError,
  REQUEST_MAGIC,
  type ReplyStyle,
  Request,
  STOP,
  serveHandshake,
  TransmissionFlag,
} from '../wire/nbd.js'
import { viewOf } from '../wire/reader.js'
import { DescriptorTransport } from './descriptor-transport.js'
import { nbdErrorOf } from './errors.js'
import { SocketTransport, type Transport, type TransportEvents } from './transport.js'

const log = logger('nbd')

/** Requests of one connection that wait for their answers. */
const REQUESTS_MAX = 256
/** What they hold, and what waits to be sent, in bytes: then nothing more is read. */
const HELD_BYTES_MAX = 64 * 1024 * 1024
/** From the first byte to the first request. */
const HANDSHAKE_MS_MAX = 15_000
/** A WRITE with more than was agreed is refused; one with more than this ends the connection. */
const REFUSED_BYTES_MAX = 64 * 1024 * 1024

/** A region under its name. */
export interface Export {
  details: ExportDetails
  region: RegionDoor
  /** Connections that have it. */
  users: number
}

export interface ConnectionOptions {
  awake: Awake
  exports: readonly Export[]
  tls: { mode: 'none' | 'offered' | 'required'; options: TLSSocketOptions }
}

interface AskedRequest extends Asked {
  type: number
  flags: number
  at: number
  length: number
}

/** Known of each kind of request; everything else is refused. */
const flagsAllowed: Record<number, number> = {
  [Command.READ]: CommandFlag.DF,
  [Command.WRITE]: CommandFlag.FUA,
  [Command.DISC]: 0,
  [Command.FLUSH]: 0,
  [Command.TRIM]: CommandFlag.FUA,
  [Command.CACHE]: 0,
  [Command.WRITE_ZEROES]: CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
  [Command.BLOCK_STATUS]: CommandFlag.REQ_ONE,
  [Command.RESIZE]: 0,
}
const changing = new Set<number>([Command.WRITE, Command.TRIM, Command.WRITE_ZEROES, Command.RESIZE])

export class Connection {
  /** Resolves when it is over. */
  readonly ended: Promise<void>
  readonly #events: TransportEvents = {
    onBytes: bytes => this.#take(() => this.#intake.feed(bytes)),
    place: () => this.#intake.place,
    onPlaced: count => this.#take(() => this.#intake.filled(count)),
    onSent: () => this.#goOn(),
    onEnded: error => {
      if (error) log.debug('a connection broke', { error })
      clearTimeout(this.#timer)
      this.#isDone = true
      if (this.#export) this.#export.users--
      this.#ended.resolve()
    },
  }
  readonly #options: ConnectionOptions
  readonly #ended = deferred()
  readonly #timer: NodeJS.Timeout
  #transport: Transport
  readonly #intake: Intake<void>
  #requests = 0
  #heldBytes = 0
  /** For the reply to a read. */
  #room = new Uint8Array(0)
  #isDone = false
  #isEnding = false
  /** What it has; null: nothing has been agreed. */
  #export: Export | null = null
  /** The largest size that it has had meanwhile, in bytes. */
  #sizeMax = 0

  constructor(socket: Socket | number, options: ConnectionOptions, agreed?: Agreed) {
    this.#options = options
    this.ended = this.#ended.promise
    this.#timer = setTimeout(() => this.#transport.destroy(), HANDSHAKE_MS_MAX)
    // TLS needs a socket of node's.
    this.#transport =
      typeof socket === 'object' && options.tls.mode !== 'none'
        ? new SocketTransport(socket.resume(), this.#events)
        : new DescriptorTransport(typeof socket === 'object' ? takeDescriptor(socket) : socket, this.#events)
    this.#intake = new Intake(this.#converse(agreed))
  }

  /** Of a descriptor (O_NONBLOCK; the connection closes it) whose other end has been told everything already: the kernel. */
  static ofDescriptor(
    fd: number,
    { awake, region, details }: { awake: Awake; region: RegionDoor; details: ExportDetails },
  ): Connection {
    const options: ConnectionOptions = {
      awake,
      exports: [{ details, region, users: 0 }],
      tls: { mode: 'none', options: {} },
    }
    return new Connection(fd, options, { details, style: 'simple', contextId: null })
  }

  /** What is being done is answered, and then it is over; what is asked meanwhile is refused. */
  end(): void {
    this.#isEnding = true
    if (this.#requests === 0) this.#transport.end()
  }

  destroy(): void {
    this.#transport.destroy()
  }

  /** Whoever does not speak NBD is shown out. */
  #take(work: () => void): void {
    this.#options.awake.stir()
    try {
      work()
    } catch (error) {
      if (!isFerryError(error, 'PROTOCOL')) throw error
      log.info('a connection was closed', { error })
      this.#transport.destroy()
      return
    }
    if (this.#intake.isStopped) this.#transport.pause()
    else if (this.#intake.result && this.#requests === 0) this.#transport.end()
  }

  *#converse(known?: Agreed): Conversation {
    const { exports, tls } = this.#options
    const agreed =
      known ??
      (yield* serveHandshake({
        exports: exports.map(({ details }) => details),
        tls: tls.mode,
        send: bytes => this.#transport.send(bytes),
        startTls: () => this.#startTls(),
      }))
    clearTimeout(this.#timer)
    if (!agreed) return
    this.#export = exports.find(({ details }) => details.name === agreed.details.name)!
    this.#export.users++
    yield* this.#serve(this.#export.region, agreed)
  }

  #startTls(): void {
    // What comes in the same breath, whoever sent it, does not count as said in TLS.
    setImmediate(() => {
      if (this.#isDone) return
      if (this.#intake.restBytes > 0) return this.#transport.destroy()
      const socket = (this.#transport as SocketTransport).secure(this.#options.tls.options)
      this.#transport = new SocketTransport(socket, this.#events)
      this.#take(() => this.#intake.resume())
    })
  }

  *#serve(region: RegionDoor, agreed: Agreed): Conversation {
    const isExtended = agreed.style === 'extended'
    const type = isExtended ? ExtendedRequest : Request
    const magic = isExtended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC
    const header = new Uint8Array(type.size)
    const cursor = type.cursor().bind(viewOf(header), 0)
    const { maximum } = agreed.details.blockSize
    for (;;) {
      while (this.#isFull) yield STOP
      yield header
      if (cursor.magic !== magic) throw new FerryError('PROTOCOL', { detail: 'no request where one belongs' })
      const { cookieHigh, cookieLow, offsetHigh, offsetLow, flags, length } = cursor
      const at = offsetHigh * 2 ** 32 + offsetLow
      const asked = cursor.type
      const request: AskedRequest = { cookieHigh, cookieLow, offsetHigh, offsetLow, type: asked, flags, at, length }
      const hasPayload = isExtended ? (flags & CommandFlag.PAYLOAD_LEN) !== 0 : request.type === Command.WRITE
      if (request.type === Command.DISC) return
      if (!hasPayload) this.#answer(region, agreed, request, null)
      else if (length <= maximum) {
        const payload = takeBytes(length)
        this.#heldBytes += length
        yield payload
        this.#heldBytes -= length
        this.#answer(region, agreed, request, payload)
      } else {
        if (length > REFUSED_BYTES_MAX) throw new FerryError('PROTOCOL', { detail: `a request with ${length} bytes` })
        for (let left = length; left > 0; left -= Math.min(left, REFUSED_BYTES_MAX >> 10))
          yield Math.min(left, REFUSED_BYTES_MAX >> 10)
        this.#transport.send(failed(agreed.style, request, NbdError.EINVAL, `more than ${maximum} bytes at once`))
      }
    }
  }

  get #isFull(): boolean {
    return this.#requests >= REQUESTS_MAX || this.#heldBytes + this.#transport.backlogBytes > HELD_BYTES_MAX
  }

  #goOn(): void {
    if (this.#requests === 0 && (this.#isEnding || this.#intake.result)) this.#transport.end()
    else if (this.#intake.isStopped && !this.#isFull) {
      this.#transport.resume()
      this.#take(() => this.#intake.resume())
    }
  }

  #answer(region: RegionDoor, agreed: Agreed, request: AskedRequest, payload: Uint8Array | null): void {
    let reply: Maybe<Uint8Array>
    try {
      this.#check(region, agreed, request, payload)
      reply =
        request.type === Command.READ ? this.#read(region, agreed, request) : perform(region, agreed, request, payload)
    } catch (error) {
      this.#transport.send(refusal(agreed.style, request, error))
      return
    }
    if (reply instanceof Promise) {
      this.#requests++
      const heldBytes = request.type === Command.READ ? request.length : (payload?.length ?? 0)
      void this.#answerLater(
        agreed,
        request,
        payload ? reply.then(bytes => gaveBack(payload, bytes)) : reply,
        heldBytes,
      )
    } else {
      this.#transport.send(reply)
      if (payload) giveBack(payload)
    }
  }

  /** The reply lies in the connection's own room while it is copied from there at once. */
  #read(region: RegionDoor, { style }: Agreed, request: AskedRequest): Maybe<Uint8Array> {
    const { at, length } = request
    // Of nothing there is no chunk of data.
    if (length === 0 && style !== 'simple') return done(style, request)
    if (this.#room.length !== this.#transport.gatheredBytesMax)
      this.#room = new Uint8Array(this.#transport.gatheredBytesMax)
    const { bytes, into } = data(style, request, at, length, this.#room)
    const read = region.read(at, into)
    if (!(read instanceof Promise)) return bytes
    if (bytes.buffer === this.#room.buffer) this.#room = new Uint8Array(this.#room.length)
    return read.then(() => bytes)
  }

  async #answerLater(agreed: Agreed, request: AskedRequest, reply: Promise<Uint8Array>, heldBytes: number) {
    this.#heldBytes += heldBytes
    const bytes = await reply.catch(error => refusal(agreed.style, request, error))
    this.#heldBytes -= heldBytes
    this.#requests--
    if (this.#isDone) return
    this.#transport.send(bytes)
    this.#goOn()
  }

  #check(region: RegionDoor, agreed: Agreed, request: AskedRequest, payload: Uint8Array | null): void {
    const { type, flags, at, length } = request
    const { details, style, contextId } = agreed
    const refuse = (code: 'INVALID' | 'NO_SPACE' | 'NOT_PERMITTED' | 'READ_ONLY' | 'CLOSED', detail: string) => {
      throw new FerryError(code, { detail })
    }
    if (this.#isEnding) refuse('CLOSED', 'the server is ending')
    const isExtended = style === 'extended'
    if (payload && type !== Command.WRITE) refuse('INVALID', `request ${type} takes no bytes`)
    if (!payload && type === Command.WRITE) refuse('INVALID', 'a write without its bytes')
    const allowed = flagsAllowed[type]
    if (allowed === undefined) refuse('INVALID', `no request ${type}`)
    const known = isExtended && payload ? allowed | CommandFlag.PAYLOAD_LEN : allowed
    if (flags & ~(style === 'simple' ? known & ~CommandFlag.DF : known)) refuse('INVALID', `flags ${flags}`)
    if (type === Command.FLUSH) return
    if (changing.has(type) && (region.readOnly || details.flags & TransmissionFlag.READ_ONLY))
      refuse('READ_ONLY', 'the export is read-only')
    this.#sizeMax = Math.max(this.#sizeMax, region.size)
    if (type === Command.RESIZE) {
      if (!(details.flags & TransmissionFlag.SEND_RESIZE))
        refuse('NOT_PERMITTED', 'the size is not for clients to change')
      if (at < region.size && this.#export!.users > 1)
        refuse('NOT_PERMITTED', 'other clients have it, and it would shrink')
      return
    }
    if (at + length > region.size) {
      const wasThere = at + length <= this.#sizeMax
      refuse(changing.has(type) || wasThere ? 'NO_SPACE' : 'INVALID', `${length} bytes at ${at} of ${region.size}`)
    }
    const { minimum, maximum } = details.blockSize
    if (at % minimum || length % minimum) refuse('INVALID', `${length} bytes at ${at}: not multiples of ${minimum}`)
    if (type === Command.READ && length > maximum) refuse('INVALID', `more than ${maximum} bytes at once`)
    if (type === Command.BLOCK_STATUS && (contextId === null || length === 0))
      refuse('INVALID', 'no status was agreed on, or none of nothing')
  }
}

function gaveBack<T>(payload: Uint8Array, result: T): T {
  giveBack(payload)
  return result
}

/** What is no error of ours is a bug, and thrown. */
function refusal(style: ReplyStyle, request: AskedRequest, error: unknown): Uint8Array {
  const code = nbdErrorOf(error)
  if (code === null) throw error
  log.debug('a request was refused', { error, type: request.type })
  return failed(style, request, code, (error as FerryError).message)
}

/** Anything but a read. @returns the reply */
function perform(
  region: RegionDoor,
  { style, contextId }: Agreed,
  request: AskedRequest,
  payload: Uint8Array | null,
): Maybe<Uint8Array> {
  const { type, flags, at, length } = request
  const ok = () => done(style, request)
  const durably = (work: Maybe<void>): Maybe<Uint8Array> => {
    const flushed = flags & CommandFlag.FUA ? after(work, () => region.flush()) : work
    return after(flushed, ok)
  }
  switch (type) {
    case Command.WRITE:
      return durably(region.write(at, payload!))
    case Command.FLUSH:
      return after(region.flush(), ok)
    case Command.TRIM:
    case Command.WRITE_ZEROES:
      return durably(region.trim(at, length))
    case Command.RESIZE:
      // The offset is the size that is asked for.
      return after(region.resize!(at), ok)
    case Command.CACHE:
      return after(region.prefetch(at, length), ok)
    default: {
      const countMax = flags & CommandFlag.REQ_ONE ? 1 : EXTENTS_MAX
      const extents = region.extents(at, length, countMax).map(({ length, zeros }) => ({
        length,
        flags: zeros ? Allocation.HOLE | Allocation.ZERO : 0,
      }))
      return blockStatus(style as 'structured' | 'extended', request, contextId!, extents)
    }
  }
}

const after = <T, R>(work: Maybe<T>, next: (value: T) => Maybe<R>): Maybe<R> =>
  work instanceof Promise ? work.then(next) : next(work)
