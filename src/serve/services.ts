// What a remote answers to the procedures of its shape, and a run of bytes to those of r3map.
import { once } from 'node:events'
import type {
  handleClientStreamingCall,
  handleServerStreamingCall,
  handleUnaryCall,
  Metadata,
  ServerReadableStream,
  UntypedServiceImplementation,
} from '@grpc/grpc-js'
import { lasting } from '../base/async.js'
import { giveBack } from '../base/buffers.js'
import { FerryError } from '../base/errors.js'
import { MemoryBudget } from '../base/memory-budget.js'
import type { Blob } from '../remote/blob.js'
import type { GrpcCall } from '../remote/grpc-calls.js'
import { Header, type Message, OBJECT_BYTES_MAX, PART_BYTES, REQUEST_BYTES_MAX } from '../remote/grpc-proto.js'
import type { Store } from '../remote/store.js'
import { methods, type Remote } from '../remote/wrap.js'
import { malformed } from '../wire/reader.js'
import { toServiceError } from './errors.js'
import { Sessions } from './sessions.js'

/** What is held in memory for all calls together, but for objects that are being put. */
const MEMORY_BYTES = 256 * 1024 * 1024
/** What is held of those. */
const PUT_BYTES = 4 * OBJECT_BYTES_MAX
/** Who has not sent his request, or not taken his answer, by then is given up. */
export const CALL_MS_MAX = 60_000

/** What every call has in common. */
interface Call {
  metadata: Metadata
  sendMetadata(headers: Metadata): void
  once(event: 'cancelled', heard: () => void): unknown
}

interface Allowed {
  /** Throws for who is not let in, or has come for something else. */
  check(metadata: Metadata): void
  readOnly: boolean
  /** Of this run of the server; goes with every answer. */
  run: string
  headers: Metadata
  callMsMax: number
}

type Handler = (args: unknown[], signal: AbortSignal | undefined) => Promise<unknown>

/** The services of one server. */
export class Services {
  readonly #allowed: Allowed
  readonly #sessions = new Sessions()
  readonly #memory = new MemoryBudget(MEMORY_BYTES)
  readonly #puts = new MemoryBudget(PUT_BYTES)
  readonly #working = new Set<Promise<unknown>>()

  constructor(allowed: Allowed) {
    this.#allowed = allowed
  }

  /** Resolves when nothing is being done any more. */
  async idle(): Promise<void> {
    while (this.#working.size > 0) await Promise.allSettled([...this.#working])
  }

  /** The calls of a table, as the methods of this remote. */
  of(remote: Remote, calls: Record<string, GrpcCall>): UntypedServiceImplementation {
    const made = Object.entries(calls).map(([name, row]) => {
      const { signalAt, changes } = methods[remote.shape][name]
      const method = Reflect.get(remote, name) as ((...args: unknown[]) => Promise<unknown>) | undefined
      const syncs = name === 'flush' || name === 'sync'
      const handle: Handler = async (args, signal) => {
        if (!method) throw new FerryError('UNSUPPORTED', { detail: name })
        // A change that was begun is made, so that it is known when it is over.
        const all = Array.from({ length: signalAt + 1 }, (_, n) =>
          n === signalAt ? (changes ? undefined : signal) : args[n],
        )
        return method.apply(remote, all)
      }
      const how = { changes, syncs }
      if (row.toParts) return [row.name, this.#parts(row, handle, how)]
      if (row.bytesMax) return [row.name, this.#stream(row, remote, handle)]
      return [row.name, this.#unary(row, handle, how)]
    })
    return Object.fromEntries(made)
  }

  /** One message, one answer. */
  unary(answer: (request: Message, signal: AbortSignal) => Promise<Message>): handleUnaryCall<Message, Message> {
    return (call, done) => {
      this.#answer(call, signal => answer(call.request, signal)).then(
        reply => done(null, reply),
        error => done(toServiceError(error)),
      )
    }
  }

  /** r3map's service, of bytes that have a size of their own. */
  backend(blob: Blob): UntypedServiceImplementation {
    return {
      ReadAt: this.unary(async ({ Length, Off }, signal) => {
        if (Length < 0 || Length > REQUEST_BYTES_MAX) throw malformed(`${Length} bytes at once`)
        if (Off < 0 || Off > blob.size)
          throw new FerryError('INVALID', { detail: `${Length} bytes at ${Off} of ${blob.size}` })
        const length = Math.min(Length, blob.size - Off)
        const P = await this.#within(length, () => blob.read(Off, length, signal))
        return { N: P.length, P }
      }),
      WriteAt: this.unary(async ({ Off, P }) => {
        this.#checkWritable()
        if (P.length > REQUEST_BYTES_MAX) throw malformed(`${P.length} bytes at once`)
        await this.#within(P.length, () => blob.write(Off, P))
        return { Length: P.length }
      }),
      Sync: this.unary(async () => {
        await blob.flush()
        return {}
      }),
    }
  }

  #unary(row: GrpcCall, handle: Handler, { changes, syncs }: How): handleUnaryCall<Message, Message> {
    return (call, done) => {
      const answered = this.#answer(call, async signal => {
        const args = row.fromRequest(call.request)
        if (syncs) this.#checkRun(call.metadata)
        const bytes = call.request.bytes?.length ?? 0
        const result = changes
          ? await this.#change(call.metadata, () => this.#within(bytes, () => handle(args, signal)))
          : await handle(args, signal)
        return row.toReply(result)
      })
      answered.then(
        reply => done(null, reply),
        error => done(toServiceError(error)),
      )
    }
  }

  #stream(row: GrpcCall, remote: Remote, handle: Handler): handleServerStreamingCall<Message, Message> {
    return call => {
      const answered = this.#answer(call, async signal => {
        const args = row.fromRequest(call.request)
        const wanted = remote.shape === 'store' ? await objectBytes(remote, args, signal) : row.bytesMax!(...args)
        await this.#within(wanted, async () => {
          const bytes = (await handle(args, signal)) as Uint8Array
          if (bytes.length > row.bytesMax!(...args))
            throw new FerryError('TOO_LARGE', { detail: `${bytes.length} bytes` })
          for (let at = 0; at < bytes.length; at += PART_BYTES)
            if (!call.write({ bytes: bytes.subarray(at, at + PART_BYTES) })) await drained(call, signal)
          giveBack(bytes)
        })
      })
      answered.then(
        () => call.end(),
        error => call.emit('error', toServiceError(error)),
      )
    }
  }

  #parts(row: GrpcCall, handle: Handler, { changes }: How): handleClientStreamingCall<Message, Message> {
    return (call, done) => {
      const answered = this.#answer(call, async signal => {
        // What has not come yet waits with its sender.
        const put = async () => {
          const args = row.fromRequest(await whole(call, signal))
          return changes ? this.#change(call.metadata, () => handle(args, signal)) : handle(args, signal)
        }
        const result = await this.#within(OBJECT_BYTES_MAX, put, this.#puts)
        return row.toReply(result)
      })
      answered.then(
        reply => done(null, reply),
        error => done(toServiceError(error)),
      )
    }
  }

  async #answer<T>(call: Call, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const controller = lasting()
    call.once('cancelled', () => controller.abort(new FerryError('ABORTED', { detail: 'nobody waits for it' })))
    const { callMsMax } = this.#allowed
    const late = () => controller.abort(new FerryError('DEADLINE', { detail: `not within ${callMsMax / 1000} s` }))
    const timer = setTimeout(late, callMsMax)
    const working = (async () => {
      this.#allowed.check(call.metadata)
      call.sendMetadata(this.#allowed.headers)
      return work(controller.signal)
    })()
    this.#working.add(working)
    try {
      return await working
    } finally {
      clearTimeout(timer)
      this.#working.delete(working)
    }
  }

  #change<T>(metadata: Metadata, change: () => Promise<T>): Promise<T> {
    this.#checkWritable()
    const [client] = metadata.get(Header.SESSION)
    const epoch = Number(metadata.get(Header.EPOCH)[0])
    if (typeof client !== 'string' || !Number.isSafeInteger(epoch))
      throw malformed(`a change comes with ${Header.SESSION} and ${Header.EPOCH}`)
    return this.#sessions.run(client, epoch, change)
  }

  async #within<T>(bytes: number, work: () => Promise<T>, memory = this.#memory): Promise<T> {
    await memory.take(bytes, false)
    try {
      return await work()
    } finally {
      memory.give(bytes)
    }
  }

  #checkWritable() {
    if (this.#allowed.readOnly) throw new FerryError('READ_ONLY')
  }

  #checkRun(metadata: Metadata) {
    const [run] = metadata.get(Header.RUN)
    if (run !== undefined && run !== this.#allowed.run)
      throw new FerryError('STALE', {
        detail: 'the server was started again, and may have lost what it had not synced',
      })
  }
}

interface How {
  changes: boolean
  syncs?: boolean
}

/** How much of an object will be read, unless it grows meanwhile. */
async function objectBytes(store: Store, args: unknown[], signal: AbortSignal): Promise<number> {
  const [name, range] = args as Parameters<Store['get']>
  if (range) return range.length
  const size = (await store.head(name, signal))?.size ?? 0
  if (size > OBJECT_BYTES_MAX) throw new FerryError('TOO_LARGE', { detail: `${size} bytes` })
  return size
}

/** Whoever it is for has taken enough to be given more. */
async function drained(call: NodeJS.EventEmitter, signal: AbortSignal): Promise<void> {
  try {
    await once(call, 'drain', { signal })
  } catch (error) {
    throw signal.aborted ? signal.reason : error
  }
}

/** One request of all its parts. */
async function whole(call: ServerReadableStream<Message, Message>, signal: AbortSignal): Promise<Message> {
  let first: Message
  const parts: Uint8Array[] = []
  let length = 0
  const giveUp = () => call.destroy()
  signal.addEventListener('abort', giveUp, { once: true })
  try {
    for await (const part of call as AsyncIterable<Message>) {
      first ??= part
      parts.push(part.bytes)
      length += part.bytes.length
      if (length > OBJECT_BYTES_MAX) throw malformed(`more than ${OBJECT_BYTES_MAX} bytes`)
    }
  } catch (error) {
    throw signal.aborted ? signal.reason : error
  } finally {
    signal.removeEventListener('abort', giveUp)
  }
  if (signal.aborted) throw signal.reason
  if (!first) throw malformed('a request of no parts')
  return { ...first, bytes: Buffer.concat(parts) }
}
