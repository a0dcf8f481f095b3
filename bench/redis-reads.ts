// How fast a blob in Redis is read from front to end, 1 MiB at a time: through ours, or as the same keys by the bare client.
//
//   node redis-reads.js blob|bare PORT BYTES      prints seconds
import { Redis } from 'ioredis'
import { giveBack } from '../src/base/buffers.js'
import { redisBlob } from '../src/remote/redis-blob.js'

const CHUNK_BYTES = 128 * 1024
const REQUEST_BYTES = 1024 * 1024
const [who, port, bytes] = process.argv.slice(2)
const place = { host: '127.0.0.1', port: Number(port) }

interface Reader {
  read(at: number): Promise<unknown>
  close(): unknown
}

async function blob(): Promise<Reader> {
  const opened = await redisBlob(place)
  // As the engine does, when it has kept them.
  const read = async (at: number) => giveBack(await opened.read(at, REQUEST_BYTES))
  return { read, close: () => opened.close() }
}

async function bare(): Promise<Reader> {
  const redis = new Redis(place)
  const keysFrom = (at: number) =>
    Array.from({ length: REQUEST_BYTES / CHUNK_BYTES }, (_, n) => `pageferry:chunk:${at / CHUNK_BYTES + n}`)
  const read = (at: number) => redis.pipeline(keysFrom(at).map(key => ['getBuffer', key])).exec()
  return { read, close: () => redis.disconnect() }
}

const reader = await (who === 'blob' ? blob() : bare())
async function pass(): Promise<number> {
  const started = performance.now()
  for (let at = 0; at < Number(bytes); at += REQUEST_BYTES) await reader.read(at)
  return (performance.now() - started) / 1000
}
// The first one is for the compiler.
await pass()
console.log(await pass())
await reader.close()
