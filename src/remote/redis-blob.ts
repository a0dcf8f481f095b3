// A blob in Redis: a key for each chunk of 128 KiB.
//
//   PREFIX + 'size'      `pageferry blob 1.0 BYTES ID`, put once; the id is another one if it is ever made again
//   PREFIX + 'version'   another one with each change
//   PREFIX + 'chunk:N'   the bytes of chunk N, in decimal; what is missing or beyond the end of a short one is zeros
//   PREFIX + '.pageferry/...'  what commits to it (see open.ts)
import { randomUUID } from 'node:crypto'
import { inParallel, mapLimit, throwIfAborted } from '../base/async.js'
import { takeBytes } from '../base/buffers.js'
import { FerryError } from '../base/errors.js'
import type { Blob } from './blob.js'
import { checkRange, checkRequest, checkWithin } from './path.js'
import {
  type RedisArgument,
  type RedisCommand,
  RedisConnection,
  type RedisOptions,
  type RedisReply,
  type RedisScript,
  redisScript,
} from './redis-client.js'
import { RedisDurable } from './redis-durable.js'

const CHUNK_BYTES = 128 * 1024
const REQUEST_BYTES_MAX = 64 * 1024 * 1024
/** Of one pipeline, and of one script, while which the server does nothing else. A multiple of the chunk. */
const PIECE_BYTES = 4 * 1024 * 1024
const PIECES_AT_ONCE = 2
const TRIM_BYTES = 1000 * CHUNK_BYTES

// The blob may have gone with all that the server had, and a new one may be there: nothing is written to it unless it is the one that
// was opened. KEYS: size, version, chunks. ARGV: what size was, the new version, then for each chunk its offset and bytes.
const WRITE = redisScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
for i = 3, #KEYS do redis.call('SETRANGE', KEYS[i], ARGV[2 * i - 3], ARGV[2 * i - 2]) end
return 1`)

// The same; for each chunk the ends of what becomes zeros. 'all': the key goes. Those first: a full server takes nothing before.
const TRIM = redisScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 3, #KEYS do
  if ARGV[2 * i - 3] == 'all' then redis.call('UNLINK', KEYS[i]) end
end
redis.call('SET', KEYS[2], ARGV[2])
for i = 3, #KEYS do
  if ARGV[2 * i - 3] ~= 'all' then
    local from = tonumber(ARGV[2 * i - 3])
    local to = math.min(tonumber(ARGV[2 * i - 2]), redis.call('STRLEN', KEYS[i]))
    if from < to then redis.call('SETRANGE', KEYS[i], from, string.rep('\\0', to - from)) end
  end
end
return 1`)

/**
 * INVALID for a size other than the one that it has, and if none is kept there and no `size` is given. Should it go away (a server
 * that came back without its data), every call says UNREACHABLE. A flush waits for the server's log, if the server has one and can
 * say so (Redis 7.2); otherwise what it has acknowledged is as durable as its own settings make it. STALE if the server was started again
 * since a write that no flush had covered: it may be lost, and must be made again.
 */
export async function redisBlob(options: RedisOptions, { size: wanted }: { size?: number } = {}): Promise<Blob> {
  const redis = new RedisConnection(options)
  const durable = new RedisDurable(options)
  const sizeKey = redis.key('size')
  const versionKey = redis.key('version')
  const made = await agree().catch(async error => {
    await redis.close()
    throw error
  })
  const size = bytesIn(made)
  const writer = randomUUID()
  let changes = 0
  /** How often the server had been started again before the first change that no flush has covered. */
  let unflushedSince: number | null = null

  async function agree(): Promise<Buffer> {
    if (wanted !== undefined) {
      checkRange({ at: 0, length: wanted })
      await redis.ask([['setnx', sizeKey, `pageferry blob 1.0 ${wanted} ${randomUUID()}`]])
    }
    const [there] = (await redis.ask([['get', sizeKey]])) as (Buffer | null)[]
    if (!there) throw new FerryError('INVALID', { detail: 'no blob is kept there; "size=1G" makes one' })
    const bytes = bytesIn(there)
    if (wanted !== undefined && wanted !== bytes)
      throw new FerryError('INVALID', { detail: `the blob there has ${bytes} bytes, not ${wanted}` })
    return there
  }

  const isMade = (reply: RedisReply) => Buffer.isBuffer(reply) && reply.equals(made)
  const gone = () =>
    new FerryError('UNREACHABLE', {
      detail: `${redis.url}: the blob that was opened is not there any more`,
      lasting: true,
    })
  const chunkKey = (index: number) => redis.key(`chunk:${index}`)

  async function readPiece({ from, to }: Span, into: Uint8Array, signal?: AbortSignal): Promise<void> {
    const spans = cut(from, to, CHUNK_BYTES)
    const gets = spans.map((span): RedisCommand => {
      const { index, start } = chunkOf(span)
      return ['getrange', chunkKey(index), start, start + span.to - span.from - 1]
    })
    const keep = (reply: RedisReply, n: number) => {
      if (n === spans.length) return
      const bytes = reply as Buffer
      into.set(bytes, spans[n].from - from)
      into.fill(0, spans[n].from - from + bytes.length, spans[n].to - from)
    }
    // The last one: had the blob gone before, it would be seen.
    const replies = await redis.ask([...gets, ['get', sizeKey]], signal, keep)
    if (!isMade(replies[spans.length])) throw gone()
  }

  async function writePiece({ from, to }: Span, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    const spans = cut(from, to, CHUNK_BYTES)
    const args = spans.flatMap(span => [
      chunkOf(span).start,
      Buffer.from(bytes.buffer, bytes.byteOffset + span.from - from, span.to - span.from),
    ])
    await change(WRITE, spans, args, signal)
  }

  async function trimPiece({ from, to }: Span, signal?: AbortSignal): Promise<void> {
    const spans = cut(from, to, CHUNK_BYTES)
    const args = spans.flatMap((span): RedisArgument[] => {
      const { index, start } = chunkOf(span)
      const whole = span.to - span.from === Math.min(CHUNK_BYTES, size - index * CHUNK_BYTES)
      return whole ? ['all', ''] : [start, start + span.to - span.from]
    })
    await change(TRIM, spans, args, signal)
  }

  async function change(
    script: RedisScript,
    spans: Span[],
    args: RedisArgument[],
    signal?: AbortSignal,
  ): Promise<void> {
    const keys = [sizeKey, versionKey, ...spans.map(span => chunkKey(chunkOf(span).index))]
    const { restarts } = redis
    const done = await redis.run(script, keys, [made, `${writer}-${changes++}`, ...args], signal)
    if (done === 0) throw gone()
    unflushedSince ??= restarts
  }

  return {
    shape: 'blob',
    url: redis.url,
    size,
    capabilities: { write: true, trim: true, alignment: 1, requestBytesMax: REQUEST_BYTES_MAX },

    async read(at, length, signal) {
      checkWithin({ at, length }, size, signal)
      checkRequest(length, REQUEST_BYTES_MAX)
      const bytes = takeBytes(length)
      await mapLimit(cut(at, at + length, PIECE_BYTES), PIECES_AT_ONCE, piece =>
        readPiece(piece, bytes.subarray(piece.from - at, piece.to - at), signal),
      )
      return bytes
    },

    async write(at, from, signal) {
      checkWithin({ at, length: from.byteLength }, size, signal)
      checkRequest(from.byteLength, REQUEST_BYTES_MAX)
      await inParallel(cut(at, at + from.byteLength, PIECE_BYTES), PIECES_AT_ONCE, piece =>
        writePiece(piece, from.subarray(piece.from - at, piece.to - at), signal),
      )
    },

    async flush(signal) {
      throwIfAborted(signal)
      const since = unflushedSince
      unflushedSince = null
      try {
        const [there] = await redis.ask([['get', sizeKey]], signal)
        if (!isMade(there)) throw gone()
        const { waitsForLog, runId } = redis.facts
        if (waitsForLog) await durable.wait(runId, signal)
      } catch (error) {
        unflushedSince = since ?? unflushedSince
        throw error
      }
      if (since !== null && redis.restarts > since)
        throw new FerryError('STALE', {
          detail: `${redis.url}: the server was started again, and may have lost writes`,
        })
    },

    async trim(at, length, signal) {
      checkWithin({ at, length }, size, signal)
      await inParallel(cut(at, at + length, TRIM_BYTES), PIECES_AT_ONCE, piece => trimPiece(piece, signal))
    },

    async version(signal) {
      throwIfAborted(signal)
      const [[there, version]] = (await redis.ask([['mget', sizeKey, versionKey]], signal)) as [RedisReply[]]
      if (!isMade(there)) throw gone()
      return `${String(made).split(' ').at(-1)}/${version ?? ''}`
    },

    async close() {
      await Promise.all([redis.close(), durable.close()])
    },
  }
}

interface Span {
  from: number
  to: number
}

/** [from, to) in parts that end on multiples of `bytes`. */
function cut(from: number, to: number, bytes: number): Span[] {
  const spans: Span[] = []
  for (let start = from; start < to; ) {
    const end = Math.min(to, (Math.floor(start / bytes) + 1) * bytes)
    spans.push({ from: start, to: end })
    start = end
  }
  return spans
}

const chunkOf = ({ from }: Span) => {
  const index = Math.floor(from / CHUNK_BYTES)
  return { index, start: from - index * CHUNK_BYTES }
}

function bytesIn(made: Buffer): number {
  const [, major, bytes] = /^pageferry blob (\d+)\.\d+ (\d+) /.exec(made.toString('latin1')) ?? []
  if (major === undefined) throw new FerryError('BAD_FORMAT', { detail: 'the key that has its size' })
  if (major !== '1') throw new FerryError('TOO_NEW', { detail: `a blob of format ${major}` })
  return Number(bytes)
}
