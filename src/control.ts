// The control socket of a daemon: one request a line (JSON), answered by lines of progress and then a result or an error.
import { chmodSync } from 'node:fs'
import { createConnection, createServer, type Socket } from 'node:net'
import * as z from 'zod/mini'
import { deferred, sleep } from './base/async.js'
import { type Code, codes, FerryError, toFerryError } from './base/errors.js'
import { logger } from './base/log.js'

const log = logger('control')

/** A request is a few words and a path. */
const REQUEST_BYTES_MAX = 64 * 1024
/** An answer may list many paths. */
const ANSWER_BYTES_MAX = 64 * 1024 * 1024
const CONNECTIONS_MAX = 64
/** A connection that asks nothing is closed. */
const IDLE_MS_MAX = 60_000
/** How long closing waits for answers that are on their way. */
const LAST_ANSWERS_MS_MAX = 2000

/** Paths are below the mount point, as bytes (latin1). */
const requestShape = z.discriminatedUnion('do', [
  z.object({ do: z.literal('status') }),
  z.object({ do: z.literal('sync') }),
  z.object({ do: z.literal('umount'), stalledMsMax: z.number().check(z.nonnegative()) }),
  z.object({ do: z.literal('pull'), path: z.string() }),
  z.object({ do: z.literal('evict'), path: z.string() }),
  z.object({ do: z.literal('refresh'), path: z.string() }),
  z.object({ do: z.literal('conflicts') }),
  z.object({ do: z.literal('handover') }),
  z.object({ do: z.literal('upgrade'), program: z.array(z.string()) }),
])

export type ControlRequest = z.infer<typeof requestShape>

export interface ControlContext {
  /** Sends a line of progress; dropped while the client does not keep up. */
  progress(value: unknown): void
  /** Aborted when the client goes away. */
  signal: AbortSignal
}

/** Does what is asked; the result must survive JSON. Errors go to the client. */
export type ControlHandler = (request: ControlRequest, context: ControlContext) => Promise<unknown>

export interface ControlServer {
  /** Ends the server and its connections; answers that were given are sent first. */
  close(): Promise<void>
}

/** Listens at `path`, for this user alone. @throws what listen(2) says, e.g. EXISTS when the socket is there */
export async function serveControl(path: string, handle: ControlHandler): Promise<ControlServer> {
  /** Open connections, each with how to wait for the answer that is on its way. */
  const connections = new Map<Socket, () => Promise<void>>()
  const server = createServer(socket => {
    connections.set(socket, converse(socket, handle))
    socket.on('close', () => connections.delete(socket))
  })
  server.maxConnections = CONNECTIONS_MAX
  const listening = deferred()
  server.on('error', error => {
    listening.reject(toFerryError(error, `control socket ${path}`))
    log.error('the control socket failed', { error })
  })
  server.listen(path, () => listening.resolve())
  await listening.promise
  chmodSync(path, 0o600)
  return {
    close: async () => {
      const closed = deferred()
      server.close(() => closed.resolve())
      const answers = Promise.all([...connections.values()].map(answered => answered()))
      await Promise.race([answers, sleep(LAST_ANSWERS_MS_MAX)])
      for (const socket of connections.keys()) socket.end(() => socket.destroy())
      await closed.promise
    },
  }
}

/** One client: one request at a time. Returns how to wait until the one that is being answered has been. */
function converse(socket: Socket, handle: ControlHandler): () => Promise<void> {
  let busy: AbortController | undefined
  let answered = Promise.resolve()
  const send = (message: unknown) => void (socket.writable && socket.write(`${JSON.stringify(message)}\n`))
  const answer = async (request: ControlRequest) => {
    const abort = new AbortController()
    busy = abort
    socket.setTimeout(0)
    const progress = (value: unknown) => void (socket.writableNeedDrain || send({ progress: value }))
    try {
      send({ result: (await handle(request, { progress, signal: abort.signal })) ?? null })
    } catch (error) {
      send({ error: asMessage(error) })
    } finally {
      busy = undefined
      socket.setTimeout(IDLE_MS_MAX)
    }
  }
  socket.setTimeout(IDLE_MS_MAX, () => socket.destroy())
  socket.on('error', () => socket.destroy())
  socket.on('close', () => busy?.abort())
  eachLine(socket, REQUEST_BYTES_MAX, {
    line: text => {
      if (busy) return send({ error: asMessage(new FerryError('BUSY', { detail: 'one request at a time' })) })
      const request = requestShape.safeParse(parseJson(text))
      if (request.success) answered = answer(request.data)
      else send({ error: asMessage(new FerryError('PROTOCOL', { detail: 'not a request of this daemon' })) })
    },
    tooLong: () => {
      send({
        error: asMessage(new FerryError('PROTOCOL', { detail: `more than ${REQUEST_BYTES_MAX} bytes in a line` })),
      })
      socket.end()
    },
  })
  return () => answered
}

const parseJson = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

interface ErrorMessage {
  code: Code
  detail: string | undefined
}

/** What went wrong, without the words of the code itself, which the other side adds again. */
function asMessage(error: unknown): ErrorMessage {
  const { code, message } = toFerryError(error)
  return { code, detail: message === codes[code] ? undefined : message.slice(codes[code].length + 2) }
}

const asError = ({ code, detail }: { code: string; detail?: string }) =>
  new FerryError(Object.hasOwn(codes, code) ? (code as Code) : 'IO', { detail })

/** Cuts a stream into lines; `tooLong` ends it. */
function eachLine(
  socket: Socket,
  bytesMax: number,
  { line, tooLong }: { line: (text: string) => void; tooLong: () => void },
): void {
  let parts: Buffer[] = []
  let bytes = 0
  const take = (chunk: Buffer) => {
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10)) {
      if (bytes + end > bytesMax) return refuse()
      line(Buffer.concat([...parts, chunk.subarray(0, end)]).toString())
      parts = []
      bytes = 0
      chunk = chunk.subarray(end + 1)
    }
    bytes += chunk.length
    if (bytes > bytesMax) return refuse()
    if (chunk.length > 0) parts.push(chunk)
  }
  const refuse = () => {
    socket.off('data', take)
    socket.resume()
    parts = []
    tooLong()
  }
  socket.on('data', take)
}

export interface CallOptions {
  onProgress?: (value: unknown) => void
  /** Going away tells the daemon to give the request up. */
  signal?: AbortSignal
  /** DEADLINE when not even a line of progress came for this long. */
  silenceMsMax?: number
}

const has = (key: string) => z.refine<object>(message => Object.hasOwn(message, key))

const answerShape = z.union([
  z.object({ error: z.object({ code: z.string(), detail: z.optional(z.string()) }) }),
  z.object({ progress: z.unknown() }).check(has('progress')),
  z.object({ result: z.unknown() }).check(has('result')),
])

/**
 * Asks the daemon behind a control socket.
 * @throws the daemon's error; UNREACHABLE (nobody listens, or it went away), DEADLINE, ABORTED, PROTOCOL
 */
export function callControl(
  path: string,
  request: ControlRequest,
  { onProgress, signal, silenceMsMax = 0 }: CallOptions = {},
): Promise<unknown> {
  const answered = deferred<unknown>()
  const socket = createConnection(path)
  const fail = (code: Code, detail: string) => {
    answered.reject(new FerryError(code, { detail }))
    socket.destroy()
  }
  const abort = () => fail('ABORTED', `${request.do} was given up`)
  if (signal?.aborted) abort()
  signal?.addEventListener('abort', abort, { once: true })
  socket.setTimeout(silenceMsMax, () => fail('DEADLINE', `no answer from the daemon at ${path}`))
  socket.on('connect', () => socket.write(`${JSON.stringify(request)}\n`))
  socket.on('error', () => fail('UNREACHABLE', `no daemon answers at ${path}`))
  socket.on('close', () => {
    signal?.removeEventListener('abort', abort)
    fail('UNREACHABLE', `the daemon at ${path} went away`)
  })
  eachLine(socket, ANSWER_BYTES_MAX, {
    line: text => {
      const parsed = answerShape.safeParse(parseJson(text))
      if (!parsed.success) return fail('PROTOCOL', `the daemon at ${path} answered with something else`)
      const answer = parsed.data
      if ('progress' in answer) return onProgress?.(answer.progress)
      if ('error' in answer) answered.reject(asError(answer.error))
      else answered.resolve(answer.result)
      socket.end()
    },
    tooLong: () => fail('PROTOCOL', `the daemon at ${path} answered with too much`),
  })
  return answered.promise
}
