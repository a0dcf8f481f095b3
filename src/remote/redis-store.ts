// Objects in Redis: each one is a string there, with 24 bytes before its own; a sorted set has their names in order.
//
//   PREFIX + name      `magic u32 major u8 minor u8 features u16`, big-endian, 16 random bytes (the version), then the object's own
//   PREFIX + '/names'  every name with score 0: in byte order. No name begins with a slash
import { randomFillSync } from 'node:crypto'
import { takeBytes } from '../base/buffers.js'
import { FerryError } from '../base/errors.js'
import { checkPath, checkRange, printable } from './path.js'
import { RedisConnection, type RedisOptions, redisScript } from './redis-client.js'
import { RedisDurable } from './redis-durable.js'
import type { ObjectInfo, Store } from './store.js'

const HEADER_BYTES = 24
const VERSION_AT = 8
const MAGIC = 0x50464f52 // PFOR
const MAJOR = 1

const NAME_BYTES_MAX = 1024
/** Redis keeps up to 512 MiB in one string, but does nothing else while it takes it in. */
const OBJECT_BYTES_MAX = 64 * 1024 * 1024
const PAGE_MAX = 1000

// Scripts, not transactions: a full server takes none of these, not even to read or to remove.

// KEYS: object. ARGV: first and last byte. Header, bytes.
const GET = redisScript(`
return {redis.call('GETRANGE', KEYS[1], 0, 23), redis.call('GETRANGE', KEYS[1], ARGV[1], ARGV[2])}`)

// KEYS: object. Bytes with header, header.
const HEAD = redisScript(`
return {redis.call('STRLEN', KEYS[1]), redis.call('GETRANGE', KEYS[1], 0, 23)}`)

// KEYS: object, names. ARGV: name, '' | 'absent' | 'version', the version, header, bytes. 0: the condition does not hold.
const PUT = redisScript(`
local there = redis.call('GETRANGE', KEYS[1], 8, 23)
if ARGV[2] == 'absent' and there ~= '' then return 0 end
if ARGV[2] == 'version' and there ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[4] .. ARGV[5])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1`)

// KEYS: object, names. ARGV: name, the version ('': any). 0: it is another one.
const REMOVE = redisScript(`
local there = redis.call('GETRANGE', KEYS[1], 8, 23)
if there ~= '' and ARGV[2] ~= '' and there ~= ARGV[2] then return 0 end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1`)

// KEYS: names, objects. ARGV: the objects' names.
const REMOVE_ALL = redisScript(`
for i, name in ipairs(ARGV) do
  redis.call('UNLINK', KEYS[i + 1])
  redis.call('ZREM', KEYS[1], name)
end
return 1`)

// KEYS: names. ARGV: prefix of keys, from, to, how many. Three replies a name: name, bytes with header, version. A key may have been
// dropped by somebody who knows nothing of the names: such a name is passed over.
const LIST = redisScript(`
local found, from = {}, ARGV[2]
repeat
  local names = redis.call('ZRANGEBYLEX', KEYS[1], from, ARGV[3], 'LIMIT', 0, ARGV[4])
  for _, name in ipairs(names) do
    local key = ARGV[1] .. name
    local size = redis.call('STRLEN', key)
    if size >= 24 then
      table.insert(found, name)
      table.insert(found, size)
      table.insert(found, redis.call('GETRANGE', key, 8, 23))
    end
    from = '(' .. name
  end
until #found > 0 or #names == 0
return found`)

/**
 * The objects whose keys begin with the options' `prefix`. A put is durable when the server's log is on its disk, if the server has a
 * log and can say so (Redis 7.2); otherwise as its own settings make it. UNREACHABLE if the server is not there.
 */
export async function redisStore(options: RedisOptions): Promise<Store> {
  const redis = new RedisConnection(options)
  const durable = new RedisDurable(options)
  await redis.open()
  const names = redis.key('/names')

  const keyOf = (name: string) => {
    checkPath(name)
    if (name === '') throw new FerryError('INVALID', { detail: 'an object has a name' })
    if (name.length > NAME_BYTES_MAX) throw new FerryError('NAME_TOO_LONG', { detail: printable(name) })
    return redis.key(name)
  }

  return {
    shape: 'store',
    url: redis.url,
    capabilities: {
      conditionalCreate: true,
      conditionalReplace: true,
      nameBytesMax: NAME_BYTES_MAX,
      objectBytesMax: OBJECT_BYTES_MAX,
    },

    async get(name, range = { at: 0, length: OBJECT_BYTES_MAX }, signal) {
      checkRange(range)
      const key = keyOf(name)
      const from = HEADER_BYTES + range.at
      const [header, found] = (await redis.run(GET, [key], [from, from + range.length - 1], signal)) as Buffer[]
      if (header.length === 0) throw new FerryError('NOT_FOUND', { detail: printable(name) })
      const version = versionOf(name, header)
      if (range.version !== undefined && range.version !== version)
        throw new FerryError('STALE', { detail: printable(name) })
      const bytes = takeBytes(found.length)
      bytes.set(found)
      return bytes
    },

    async head(name, signal) {
      const key = keyOf(name)
      const [size, header] = (await redis.run(HEAD, [key], [], signal)) as [number, Buffer]
      return size === 0 ? null : { name, size: size - HEADER_BYTES, version: versionOf(name, header) }
    },

    async put(name, bytes, { ifAbsent, ifVersion } = {}, signal) {
      const key = keyOf(name)
      if (ifAbsent && ifVersion !== undefined)
        throw new FerryError('INVALID', { detail: 'ifAbsent and ifVersion exclude each other' })
      if (bytes.byteLength > OBJECT_BYTES_MAX)
        throw new FerryError('TOO_LARGE', { detail: `${printable(name)}: ${bytes.byteLength} bytes` })
      const header = freshHeader()
      const condition = ifAbsent ? 'absent' : ifVersion === undefined ? '' : 'version'
      const args = [latin1(name), condition, bytesOf(ifVersion), header, viewOf(bytes)]
      if ((await redis.run(PUT, [key, names], args, signal)) === 0)
        throw new FerryError('CONFLICT', { detail: `${printable(name)} is another version, or gone` })
      const { waitsForLog, runId } = redis.facts
      if (waitsForLog) await durable.wait(runId, signal)
      return versionOf(name, header)
    },

    async remove(name, { ifVersion } = {}, signal) {
      const args = [latin1(name), bytesOf(ifVersion)]
      if ((await redis.run(REMOVE, [keyOf(name), names], args, signal)) === 0)
        throw new FerryError('CONFLICT', { detail: `${printable(name)} is another version` })
    },

    async removeAll(gone, signal) {
      await redis.run(REMOVE_ALL, [names, ...gone.map(keyOf)], gone.map(latin1), signal)
    },

    async list(prefix, after, signal) {
      const from = after !== undefined && after >= prefix ? `(${after}` : `[${prefix}`
      const args = [redis.key(''), latin1(from), latin1(beyond(prefix)), PAGE_MAX]
      const found = (await redis.run(LIST, [names], args, signal)) as (Buffer | number)[]
      const page: ObjectInfo[] = []
      for (let i = 0; i < found.length; i += 3) {
        const [name, size, version] = found.slice(i, i + 3) as [Buffer, number, Buffer]
        page.push({ name: name.toString('latin1'), size: size - HEADER_BYTES, version: version.toString('hex') })
      }
      return page
    },

    async close() {
      await Promise.all([redis.close(), durable.close()])
    },
  }
}

const latin1 = (text: string) => Buffer.from(text, 'latin1')
const viewOf = ({ buffer, byteOffset, byteLength }: Uint8Array) => Buffer.from(buffer, byteOffset, byteLength)

/** What is no version of ours matches none. */
const bytesOf = (version = '') => (/^[\da-f]{32}$/.test(version) ? Buffer.from(version, 'hex') : latin1(version && '?'))

function freshHeader(): Buffer {
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt32BE(MAGIC, 0)
  header.writeUInt8(MAJOR, 4)
  return randomFillSync(header, VERSION_AT)
}

function versionOf(name: string, header: Buffer): string {
  if (header.length < HEADER_BYTES || header.readUInt32BE(0) !== MAGIC)
    throw new FerryError('BAD_FORMAT', { detail: `${printable(name)} is not an object of a store of ours` })
  if (header.readUInt8(4) > MAJOR || header.readUInt16BE(6) !== 0)
    throw new FerryError('TOO_NEW', { detail: printable(name) })
  return header.toString('hex', VERSION_AT)
}

/** The end of the names that begin with `prefix`, as ZRANGEBYLEX wants it. */
function beyond(prefix: string): string {
  const head = prefix.replace(/\xff+$/, '')
  return head === '' ? '+' : `(${head.slice(0, -1)}${String.fromCharCode(head.charCodeAt(head.length - 1) + 1)}`
}
