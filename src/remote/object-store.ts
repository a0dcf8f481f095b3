// A store in a bucket: each of its objects is one there, with 16 bytes before its own.
//
// FORMATS: `magic u32 major u8 minor u8 features u16`, big-endian, then 8 random bytes. A bucket's tags are digests of the bytes: without
// these, what is put twice would have one version, and a writer of yesterday would not notice what happened in between.
//
// A store's names are any bytes, a bucket's keys are UTF-8, and both have an order. So each byte of a name is one char of the key
// (U+0000 to U+00FF): ASCII is itself.
import { randomBytes } from 'node:crypto'
import { FerryError } from '../base/errors.js'
import type { Key, ObjectEntry, Objects } from './objects.js'
import { checkPath, checkRange, printable } from './path.js'
import type { ObjectInfo, Store } from './store.js'

const HEADER_BYTES = 16
const MAGIC = 0x50464f42 // PFOB
const MAJOR = 1

/** The objects whose keys begin with `prefix`, which is '' or ends in a slash. It closes what it stands on. */
export function objectStore(objects: Objects, prefix = ''): Store {
  const { capabilities } = objects

  function keyOf(name: string): Key {
    checkPath(name)
    if (name === '') throw new FerryError('INVALID', { detail: 'an object has a name' })
    const key = prefix + Buffer.from(name, 'utf8').toString('latin1')
    if (key.length > capabilities.keyBytesMax) throw new FerryError('NAME_TOO_LONG', { detail: printable(name) })
    return key
  }

  /** null: not one of ours. */
  function infoOf({ key, size, etag }: ObjectEntry): ObjectInfo | null {
    const name = Buffer.from(key.slice(prefix.length), 'latin1').toString('utf8')
    if (size < HEADER_BYTES || !isName(name)) return null
    return { name, size: size - HEADER_BYTES, version: etag }
  }

  async function head(name: string, signal?: AbortSignal): Promise<ObjectInfo | null> {
    const found = await objects.head(keyOf(name), signal)
    if (!found) return null
    return infoOf(found) ?? notOurs(name)
  }

  return {
    shape: 'store',
    url: objects.url,
    capabilities: {
      conditionalCreate: capabilities.putIfAbsent,
      conditionalReplace: capabilities.putIfMatch && capabilities.removeIfMatch,
      // Of bytes beyond ASCII, half as many.
      nameBytesMax: capabilities.keyBytesMax - prefix.length,
      objectBytesMax: Math.min(capabilities.putBytesMax, 2 ** 31 - 1) - HEADER_BYTES,
    },

    head,

    async get(name, range, signal) {
      const key = keyOf(name)
      if (!range) {
        const bytes = await objects.get(key, undefined, signal)
        checkHeader(name, bytes)
        // A copy: it is to be the caller's alone, and may be handed over with the memory that it lies in.
        return bytes.slice(HEADER_BYTES)
      }
      checkRange(range)
      const { at, length, version } = range
      return objects.get(key, { at: at + HEADER_BYTES, length, etag: version }, signal)
    },

    async put(name, bytes, { ifAbsent, ifVersion } = {}, signal) {
      return objects.put(keyOf(name), Buffer.concat([freshHeader(), bytes]), { ifAbsent, ifMatch: ifVersion }, signal)
    },

    async remove(name, { ifVersion } = {}, signal) {
      await objects.remove(keyOf(name), { ifMatch: ifVersion }, signal)
    },

    removeAll: (names, signal) => objects.removeAll(names.map(keyOf), signal),

    async list(wanted, after, signal) {
      const toKey = (text: string) => prefix + Buffer.from(text, 'utf8').toString('latin1')
      // A page in which nothing is ours is not the end.
      for (let cursor: string | undefined; ; ) {
        const from = cursor === undefined ? { after: after === undefined ? undefined : toKey(after) } : { cursor }
        const page = await objects.list({ prefix: toKey(wanted), ...from }, signal)
        const found = page.objects.map(infoOf).filter(one => one !== null)
        if (found.length > 0 || page.cursor === undefined) return found
        cursor = page.cursor
      }
    },

    close: () => objects.close(),
  }
}

function isName(name: string): boolean {
  try {
    checkPath(name)
    return name !== ''
  } catch {
    return false
  }
}

function freshHeader(): Buffer {
  const header = randomBytes(HEADER_BYTES)
  header.writeUInt32BE(MAGIC, 0)
  header.writeUInt8(MAJOR, 4)
  header.fill(0, 5, 8)
  return header
}

function checkHeader(name: string, bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.byteLength < HEADER_BYTES || view.getUint32(0) !== MAGIC) notOurs(name)
  if (view.getUint8(4) > MAJOR || view.getUint16(6) !== 0) throw new FerryError('TOO_NEW', { detail: printable(name) })
}

const notOurs = (name: string): never => {
  throw new FerryError('BAD_FORMAT', { detail: `${printable(name)} is not an object of a store of ours` })
}
