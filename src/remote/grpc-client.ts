// The way to one server of gRPC. What is asked is answered, or rejected; nothing is sent twice.
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { isIP } from 'node:net'
import { checkServerIdentity, type PeerCertificate } from 'node:tls'
import {
  type CallOptions,
  type ChannelOptions,
  Client,
  type ClientWritableStream,
  credentials,
  Metadata,
  type ServiceError,
  status,
} from '@grpc/grpc-js'
import { abortReason, deferred, throwIfAborted } from '../base/async.js'
import { takeBytes } from '../base/buffers.js'
import { type Code, codes, FerryError, isFerryError } from '../base/errors.js'
import { malformed } from '../wire/reader.js'
import type { GrpcAddress } from './grpc-address.js'
import type { GrpcCall } from './grpc-calls.js'
import {
  Header,
  MESSAGE_BYTES_MAX,
  type Message,
  type Procedure,
  procedure,
  type Service,
  WINDOW_BYTES,
} from './grpc-proto.js'

/** Of one call, whatever its caller thinks. */
const CALL_MS_MAX = 60_000
const RECONNECT_MS_MIN = 100
const RECONNECT_MS_MAX = 2_000
/** A connection that owes an answer and is silent is asked whether it is still there; without a sign it is given up. */
const KEEPALIVE_MS = 20_000
const KEEPALIVE_ANSWER_MS = 10_000

/** How a call is made. */
export interface Asked {
  /** It changes the remote. */
  changes?: boolean
  /** What was changed before it is durable when it is answered. */
  syncs?: boolean
  signal?: AbortSignal
}

export class GrpcConnection {
  readonly url: string
  readonly #client: Client
  readonly #headers: [name: string, value: string | Buffer][] = []
  readonly #session = randomUUID()
  /** Another one after each change of which nobody knows whether it was made. */
  #epoch = 1
  /** The run of the server that made the first change that nothing has synced; null: there is none. */
  #unsyncedRun: string | null = null
  #isClosed = false

  /** `pings`: whether a connection is asked for signs of life; some servers take that for an attack. */
  constructor({ target, tls, token, shown }: GrpcAddress, { pings = true }: { pings?: boolean } = {}) {
    this.url = shown
    if (token !== undefined) this.#headers.push([Header.AUTHORIZATION, `Bearer ${token}`])
    this.#client = new Client(target, credentialsOf(tls), {
      ...channelOptions,
      ...(tls && { 'grpc.ssl_target_name_override': sniOf(tls.name), 'grpc.default_authority': sniOf(tls.name) }),
      ...(pings && { 'grpc.keepalive_time_ms': KEEPALIVE_MS, 'grpc.keepalive_timeout_ms': KEEPALIVE_ANSWER_MS }),
    })
  }

  /** What every further call is meant for: a server that has something else by now refuses it. */
  meanOnly(exported: Buffer): void {
    this.#headers.push([Header.EXPORT, exported.toString('hex')])
  }

  /** One message, one answer. */
  ask(service: Service, name: string, request: Message, asked: Asked = {}): Promise<Message> {
    const { path, requestSerialize, responseDeserialize } = procedure(service, name)
    return this.#send(asked, (headers, options, done) =>
      this.#client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, headers, options, done),
    )
  }

  /** A call of the table. */
  async call(service: Service, row: GrpcCall, args: unknown[], asked: Asked): Promise<unknown> {
    if (row.toParts)
      return row.fromReply(await this.#sendParts(procedure(service, row.name), row.toParts(...args), asked), ...args)
    const request = row.toRequest!(...args)
    if (row.bytesMax) return this.#read(procedure(service, row.name), request, row.bytesMax(...args), asked.signal)
    const reply = await this.ask(service, row.name, request, asked)
    return row.fromReply(reply, ...args)
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#client.close()
  }

  async #sendParts(
    { path, requestSerialize, responseDeserialize }: Procedure,
    parts: Iterable<Message>,
    asked: Asked,
  ): Promise<Message> {
    return this.#send(asked, (headers, options, done) => {
      const stream = this.#client.makeClientStreamRequest(
        path,
        requestSerialize,
        responseDeserialize,
        headers,
        options,
        done,
      )
      void pour(parts, stream)
      return stream
    })
  }

  async #send(
    { changes = false, syncs = false, signal }: Asked,
    begin: (
      headers: Metadata,
      options: CallOptions,
      done: (error: ServiceError | null, reply?: Message) => void,
    ) => { cancel(): void; on(event: 'metadata', heard: (headers: Metadata) => void): unknown },
  ): Promise<Message> {
    const headers = this.#headersFor(signal)
    const epoch = this.#epoch
    const unsyncedRun = this.#unsyncedRun
    if (changes) {
      headers.set(Header.SESSION, this.#session)
      headers.set(Header.EPOCH, String(epoch))
    }
    if (syncs) {
      if (unsyncedRun !== null) headers.set(Header.RUN, unsyncedRun)
      this.#unsyncedRun = null
    }
    const { promise, resolve, reject } = deferred<Message>()
    let run = ''
    const running = begin(headers, { deadline: Date.now() + CALL_MS_MAX }, (error, reply) =>
      error ? reject(this.#refused(error)) : resolve(reply),
    )
    running.on('metadata', received => {
      run = String(received.get(Header.RUN)[0] ?? '')
    })
    const abort = () => {
      reject(abortReason(signal!))
      running.cancel()
    }
    signal?.addEventListener('abort', abort, { once: true })
    try {
      const reply = await promise
      if (changes) this.#unsyncedRun ??= run
      return reply
    } catch (error) {
      if (changes && this.#epoch === epoch && !isAnswer(error)) this.#epoch++
      // Whoever has been told makes everything again.
      if (syncs && !isFerryError(error, 'STALE')) this.#unsyncedRun = unsyncedRun ?? this.#unsyncedRun
      throw error
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  async #read(
    { path, requestSerialize, responseDeserialize }: Procedure,
    request: Message,
    bytesMax: number,
    signal: AbortSignal | undefined,
  ): Promise<Uint8Array> {
    const headers = this.#headersFor(signal)
    const { promise, resolve, reject } = deferred<void>()
    const options = { deadline: Date.now() + CALL_MS_MAX }
    const stream = this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      headers,
      options,
    )
    const parts: Uint8Array[] = []
    let length = 0
    stream.on('data', ({ bytes }: { bytes: Uint8Array }) => {
      parts.push(bytes)
      length += bytes.length
      if (length <= bytesMax) return
      reject(malformed(`${this.url}: more bytes than were asked for`))
      stream.cancel()
    })
    stream.on('end', resolve).on('error', error => reject(this.#refused(error as ServiceError)))
    const abort = () => {
      reject(abortReason(signal!))
      stream.cancel()
    }
    signal?.addEventListener('abort', abort, { once: true })
    try {
      await promise
    } finally {
      signal?.removeEventListener('abort', abort)
    }
    const whole = takeBytes(length)
    let at = 0
    for (const part of parts) {
      whole.set(part, at)
      at += part.length
    }
    return whole
  }

  #headersFor(signal: AbortSignal | undefined): Metadata {
    throwIfAborted(signal)
    if (this.#isClosed) throw new FerryError('CLOSED')
    const headers = new Metadata()
    for (const [name, value] of this.#headers) headers.set(name, value)
    return headers
  }

  #refused(error: ServiceError): FerryError {
    const said = error.metadata?.get(Header.CODE)[0]
    if (typeof said === 'string' && Object.hasOwn(codes, said)) {
      const code = said as Code
      const detail = error.details.startsWith(codes[code]) ? error.details.slice(codes[code].length + 2) : error.details
      return new Answer(code, { detail, lasting: error.metadata.get(Header.LASTING).length > 0 })
    }
    if (this.#isClosed) return new FerryError('CLOSED', { cause: error })
    const { code, lasting = false } = outcomes[error.code] ?? { code: 'IO' }
    return new FerryError(code, { cause: error, detail: `${this.url}: ${plain(error.details)}`, lasting })
  }
}

/** Without what gRPC says when it has nothing to say. */
const plain = (details: string) => details.replace(/ ?Resolution note: *$/, '').replace(/\.$/, '')

/** The server has said so: what was asked for is done, or not, and will not be done later. */
class Answer extends FerryError {}
const isAnswer = (error: unknown) => error instanceof Answer

/** There is no such service at the server. */
export const isUnimplemented = (error: unknown): boolean =>
  isFerryError(error) && (error.cause as ServiceError | undefined)?.code === status.UNIMPLEMENTED

/** What becomes of a call that our server has not answered. Who is not let in may be let in later: that is no fault of a path. */
const outcomes: Record<number, { code: Code; lasting?: boolean }> = {
  [status.CANCELLED]: { code: 'UNREACHABLE' },
  [status.UNAVAILABLE]: { code: 'UNREACHABLE' },
  [status.DEADLINE_EXCEEDED]: { code: 'DEADLINE' },
  [status.UNAUTHENTICATED]: { code: 'UNREACHABLE', lasting: true },
  [status.PERMISSION_DENIED]: { code: 'UNREACHABLE', lasting: true },
  [status.UNIMPLEMENTED]: { code: 'UNSUPPORTED', lasting: true },
  [status.OUT_OF_RANGE]: { code: 'INVALID' },
  [status.INVALID_ARGUMENT]: { code: 'INVALID' },
  [status.NOT_FOUND]: { code: 'NOT_FOUND' },
}

const channelOptions: ChannelOptions = {
  'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
  'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
  'grpc-node.flow_control_window': WINDOW_BYTES,
  'grpc.initial_reconnect_backoff_ms': RECONNECT_MS_MIN,
  'grpc.max_reconnect_backoff_ms': RECONNECT_MS_MAX,
  'grpc.enable_retries': 0,
  'grpc.enable_http_proxy': 0,
  'grpc.service_config_disable_resolution': 1,
  // What is opened here is closed here.
  'grpc.use_local_subchannel_pool': 1,
}

function credentialsOf(tls: GrpcAddress['tls']) {
  if (!tls) return credentials.createInsecure()
  const { ca = null, cert = null, key = null, name } = tls
  const identity = (_: string, shown: PeerCertificate) => (name === '' ? undefined : checkServerIdentity(name, shown))
  return credentials.createSsl(ca, key, cert, { checkServerIdentity: identity })
}

/** An address is no name that a client may ask for (RFC 6066). */
const sniOf = (name: string) => (name === '' || isIP(name) ? 'localhost' : name)

/** Part after part, no faster than they are taken. Why the stream ends before that, its answer tells. */
async function pour(parts: Iterable<Message>, stream: ClientWritableStream<Message>): Promise<void> {
  const over = new AbortController()
  stream.once('error', () => over.abort()).once('status', () => over.abort())
  try {
    for (const part of parts) {
      if (over.signal.aborted) return
      if (!stream.write(part)) await once(stream, 'drain', { signal: over.signal })
    }
    stream.end()
  } catch (error) {
    if (!over.signal.aborted) stream.destroy(error as Error)
  }
}
