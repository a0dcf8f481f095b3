// The namespace as of the last checkpoint, in lmdb: inodes, names, chunks, and what is not yet at the remote.
//
// Numbers in keys are 6 bytes, big-endian. A value is in msgpack, then the CRC-32 (little-endian) of the key and of that.
import fs from 'node:fs'
import path from 'node:path'
import { type Database as Lmdb, open } from 'lmdb'
import { Packr } from 'msgpackr'
import { FerryError, isFerryError } from '../base/errors.js'
import { crc32Within } from '../chunk/digest.js'
import { hasSum, removeSum, walk, writeSum } from './database-file.js'
import type { Ino } from './filesystem.js'
import type { Dentry, InodeRecord } from './inode.js'
import type { OutcomesRecord } from './outcomes.js'
import type { Storage } from './storage.js'

/** [slot, valid, dirty, flight, flightSlot, sumLow, sumHigh] */
export type ChunkRecord = [number, number, number, number, number, number, number]

type ChangesRecord = { names: [Ino, string, Ino][]; inodes: Ino[]; orphans: Ino[]; operations: number; sinceMs: number }

/** What is true of the whole tree as of the checkpoint. */
export interface Meta {
  lsn: number
  /** Of the journal's newest segment then; absent in databases of before. */
  serial?: number
  inoReserved: number
  batch: number
  flightBatch: number
  open: ChangesRecord
  flight: ChangesRecord | null
  quarantine: [Ino, string, string, string][]
  conflicts: [string, string, number][]
  /** Inodes without a name; absent in databases of before. */
  nameless?: Ino[]
  /** Requests of the kernel whose answers may not have been sent; absent in databases of before. */
  outcomes?: OutcomesRecord
}

const INODE = 'i'
const NAME = 'n'
const CHUNK = 'c'
const ID = 'h'
const META = Buffer.from('meta')
const FORMAT = Buffer.from('format')

const NAME_BYTE = NAME.charCodeAt(0)
const NUMBER_BYTES = 6
const CRC_BYTES = 4
/** What lmdb reserves of the address space: the database cannot become larger. */
const MAP_BYTES = 2 ** 36

const DATA_FILE = 'data.mdb'
const LOCK_FILE = 'lock.mdb'

/** What is used here of lmdb's own. */
interface Stats {
  pageSize: number
  lastPageNumber: number
}

const MAGIC = 'PFNAMES'
const MAJOR = 2
const MINOR = 0

interface Format {
  magic: string
  major: number
  minor: number
  /** Bits of what a reader must know about; none are defined yet. */
  features: number
}

const ENOSPC = 28
/** lmdb's file grows by less than this when a checkpoint only forgets what has left the cache. */
const SPARE_PAGES_MIN = 256
const SPARE_PAGES_MAX = 4_096
/** Root, free list and meta pages of one transaction. */
const PAGES_BESIDE = 64
/** A page that is changed is written elsewhere, and may be split there. */
const PAGES_PER_WRITE = 2
const REASON_MS_MAX = 100

const quiet = (reason: unknown) => {
  if (reason instanceof Promise) reason.catch(() => {})
}

/** What a promise rejects with, if it does so soon. */
const within = (reason: Promise<unknown>): Promise<unknown> =>
  Promise.race([
    reason.catch(error => error),
    new Promise(resolve => setTimeout(resolve, REASON_MS_MAX, new Error('the transaction failed'))),
  ])

export type Write = { key: Buffer; value: unknown } | { key: Buffer; remove: true }

type ChunkKey = [ino: Ino, index: number]
type NameKey = [parent: Ino, name: string]
type NameRecord = [ino: Ino, type: number, cookie: number]

/** A kind, numbers, then a text to the end. */
function keyOf(kind: string, numbers: number[], text = '', encoding: BufferEncoding = 'latin1'): Buffer {
  const textAt = 1 + numbers.length * NUMBER_BYTES
  const key = Buffer.allocUnsafe(textAt + Buffer.byteLength(text, encoding))
  key.write(kind, 'latin1')
  for (let i = 0; i < numbers.length; i++) key.writeUIntBE(numbers[i], 1 + i * NUMBER_BYTES, NUMBER_BYTES)
  key.write(text, textAt, encoding)
  return key
}

export const inodeKey = (ino: Ino) => keyOf(INODE, [ino])
export const nameDbKey = (parent: Ino, name: string) => keyOf(NAME, [parent], name)
export const chunkKey = (ino: Ino, index: number) => keyOf(CHUNK, [ino, index])
export const idKey = (id: string) => keyOf(ID, [], id, 'utf8')

/** Of what is read in ranges. */
function decodeKey(bytes: Buffer, at: number, end: number): ChunkKey | NameKey {
  const ino = bytes.readUIntBE(at + 1, NUMBER_BYTES)
  const rest = at + 1 + NUMBER_BYTES
  return bytes[at] === NAME_BYTE
    ? [ino, bytes.toString('latin1', rest, end)]
    : [ino, bytes.readUIntBE(rest, NUMBER_BYTES)]
}

/** All keys of a kind, or those of them that begin with a number. */
const keysOf = (kind: string, number?: number) =>
  number === undefined
    ? { start: keyOf(kind, []), end: keyOf(String.fromCharCode(kind.charCodeAt(0) + 1), []) }
    : { start: keyOf(kind, [number]), end: keyOf(kind, [number + 1]) }

/** lmdb reads everything into the same buffer, so what is unpacked must not point into it. */
const packr = new Packr({ useRecords: false, moreTypes: true, copyBuffers: true })

const sumOfKey = (key: Buffer) => crc32Within(key, 0, key.length)

function seal(key: Buffer, value: unknown): Buffer {
  const packed = packr.pack(value)
  const sealed = Buffer.allocUnsafe(packed.length + CRC_BYTES)
  sealed.set(packed)
  sealed.writeUInt32LE(crc32Within(packed, 0, packed.length, sumOfKey(key)), packed.length)
  return sealed
}

/** Does the value match its checksum, which goes on from that of its key? */
function isWhole(sealed: Buffer, at: number, end: number, keySum: number): boolean {
  const crcAt = end - CRC_BYTES
  return crcAt > at && crc32Within(sealed, at, crcAt, keySum) === sealed.readUInt32LE(crcAt)
}

const unseal = (sealed: Buffer) => packr.unpack(sealed, sealed.length - CRC_BYTES)

/** Before 2.0 it had no checksum, like everything else. */
function formatOf(bytes: Buffer): Format | undefined {
  try {
    return isWhole(bytes, 0, bytes.length, sumOfKey(FORMAT)) ? unseal(bytes) : packr.unpack(bytes)
  } catch {
    return undefined
  }
}

/** What is damaged in the database that lies there, if anything is: lmdb must not see it then. Nothing at all is fine. */
export function damageOf(directory: string): string | undefined {
  if (hasSum(directory)) return
  let entries = 0
  let damaged = 0
  let format: Format | undefined
  const damage = walk(directory, MAP_BYTES, (bytes, at, valueAt, end) => {
    entries++
    if (!isWhole(bytes, valueAt, end, crc32Within(bytes, at, valueAt))) damaged++
    if (FORMAT.equals(bytes.subarray(at, valueAt))) format = formatOf(bytes.subarray(valueAt, end))
  })
  if (damage) return damage
  // Another version's entries are not ours to judge.
  if (format?.magic === MAGIC && format.major !== MAJOR) return
  if (damaged) return `${damaged} of ${entries} entries do not match their checksum`
  if (entries && !format) return 'its format is missing'
  return
}

export class Database {
  readonly #directory: string
  readonly #lmdb: Lmdb<unknown, Buffer>
  /** Of the key whose value lmdb is about to have decoded. */
  #keySum = 0
  /** What the first read that failed found, and how many failed: nothing is written any more. */
  damage: { what: string; reads: number } | null = null

  /** Bytes of lmdb's file that have their space on the disk. */
  #reserved = 0
  readonly #disk: Pick<Storage, 'reserve'>

  /** `directory` exists, and nothing in it is damaged; `disk` takes the names of files in it. */
  constructor(directory: string, disk: Pick<Storage, 'reserve'>) {
    this.#directory = directory
    this.#disk = disk
    try {
      this.#lmdb = open({
        path: directory,
        compression: false,
        keyEncoder: {
          writeKey: (key: Buffer, into: Buffer, at: number) => {
            into.set(key, at)
            return at + key.length
          },
          readKey: (bytes: Buffer, at: number, end: number) => {
            this.#keySum = crc32Within(bytes, at, end)
            return decodeKey(bytes, at, end)
          },
        },
        encoder: { encode: (sealed: Buffer) => sealed, decode: (sealed: Buffer) => this.#decode(sealed) },
        mapSize: MAP_BYTES,
        overlappingSync: true,
      })
    } catch (cause) {
      throw new FerryError('CORRUPT', { cause, detail: `the database in ${directory} cannot be opened` })
    }
    removeSum(directory)
    this.#checkFormat()
    this.#reserve(this.#pagesUsed + SPARE_PAGES_MIN)
    // It is mapped: where a page of it has no space, who touches it is ended by SIGBUS.
    disk.reserve(LOCK_FILE, fs.statSync(path.join(directory, LOCK_FILE)).size)
  }

  #checkFormat() {
    const bytes = this.#lmdb.getBinary(FORMAT)
    if (bytes === undefined) return
    const format = formatOf(bytes)
    if (format?.magic !== MAGIC) throw new FerryError('BAD_FORMAT', { detail: `the database in ${this.#directory}` })
    const reads = `the database in ${this.#directory} has format ${format.major}.${format.minor}, this version reads`
    if (format.major > MAJOR || format.features !== 0)
      throw new FerryError('TOO_NEW', { detail: `${reads} up to ${MAJOR}.x` })
    if (format.major < MAJOR) throw new FerryError('BAD_FORMAT', { detail: `${reads} ${MAJOR}.x` })
  }

  #decode(sealed: Buffer): unknown {
    if (isWhole(sealed, 0, sealed.length, this.#keySum)) return unseal(sealed)
    throw new FerryError('CORRUPT', { detail: 'an entry of the database of names' })
  }

  #damaged(error: unknown): FerryError {
    const { message } = error as Error
    this.damage ??= { what: message, reads: 0 }
    this.damage.reads++
    return new FerryError('CORRUPT', { cause: error, detail: 'the database of names' })
  }

  #get(key: Buffer): unknown {
    this.#keySum = sumOfKey(key)
    try {
      return this.#lmdb.get(key)
    } catch (error) {
      throw this.#damaged(error)
    }
  }

  *#range<K, V>(keys: { start: Buffer; end: Buffer }): Iterable<{ key: K; value: V }> {
    try {
      yield* this.#lmdb.getRange(keys) as Iterable<unknown> as Iterable<{ key: K; value: V }>
    } catch (error) {
      throw this.#damaged(error)
    }
  }

  meta(): Meta | null {
    return (this.#get(META) as Meta | undefined) ?? null
  }

  inode(ino: Ino): InodeRecord | undefined {
    return this.#get(inodeKey(ino)) as InodeRecord | undefined
  }

  byId(id: string): Ino | undefined {
    return this.#get(idKey(id)) as Ino | undefined
  }

  /** The names of a directory, in the order of their cookies. */
  dentries(parent: Ino): Map<string, Dentry> {
    const found: [string, Dentry][] = []
    for (const { key, value } of this.#range<NameKey, NameRecord>(keysOf(NAME, parent))) {
      const [ino, type, cookie] = value
      found.push([key[1], { ino, type, cookie }])
    }
    found.sort((a, b) => a[1].cookie - b[1].cookie)
    return new Map(found)
  }

  /** Every name there is. */
  *names(): Iterable<{ parent: Ino; name: string; ino: Ino }> {
    for (const { key, value } of this.#range<NameKey, NameRecord>(keysOf(NAME)))
      yield { parent: key[0], name: key[1], ino: value[0] }
  }

  *chunks(): Iterable<{ ino: Ino; index: number; chunk: ChunkRecord }> {
    for (const { key, value } of this.#range<ChunkKey, ChunkRecord>(keysOf(CHUNK)))
      yield { ino: key[0], index: key[1], chunk: value }
  }

  get inodesKnown(): number {
    return this.damage ? 0 : this.#lmdb.getCount(keysOf(INODE))
  }

  /** All or nothing, and durable when it resolves. NO_SPACE when there is too little of it, or the disk says so. */
  async write(writes: Write[], meta: Meta): Promise<void> {
    if (this.damage) throw new FerryError('CORRUPT', { detail: `the database of names: ${this.damage.what}` })
    const all: Write[] = [
      ...writes,
      { key: META, value: meta },
      { key: FORMAT, value: { magic: MAGIC, major: MAJOR, minor: MINOR, features: 0 } satisfies Format },
    ]
    const sealed = all.map(write => ('remove' in write ? undefined : seal(write.key, write.value)))
    const used = this.#pagesUsed
    const changed = Math.min(used, all.length * PAGES_PER_WRITE)
    const added = (PAGES_PER_WRITE * sealed.reduce((sum, bytes) => sum + (bytes?.length ?? 0), 0)) / this.#pageBytes
    this.#reserve(Math.ceil(used + changed + added) + PAGES_BESIDE)
    const parts = new Set<Promise<unknown>>()
    const done = this.#lmdb.batch(() => {
      all.forEach(({ key }, i) => {
        const bytes = sealed[i]
        parts.add(bytes ? this.#lmdb.put(key, bytes) : this.#lmdb.remove(key))
      })
    })
    // Each of them rejects for itself when the transaction fails, and so does the reason that they give.
    for (const part of parts) part.then(undefined, error => quiet((error as { commitError?: unknown }).commitError))
    try {
      await done
      await this.#lmdb.flushed
      this.#reserveAhead()
    } catch (error) {
      const cause = (error as { commitError?: unknown }).commitError
      const reason = cause instanceof Promise ? await within(cause) : error
      const full = (reason as { code?: unknown }).code === ENOSPC
      throw new FerryError(full ? 'NO_SPACE' : 'IO', { cause: reason, detail: 'the database was not written' })
    }
  }

  get #pagesUsed(): number {
    return (this.#lmdb.getStats() as Stats).lastPageNumber + 1
  }

  get #pageBytes(): number {
    return (this.#lmdb.getStats() as Stats).pageSize
  }

  /**
   * So many pages of lmdb's file have their space. When the disk is full under it, lmdb (3.5.6) writes beyond its own buffers and the
   * process ends, so nothing is begun that could need more than it has.
   */
  #reserve(pages: number) {
    const bytes = pages * this.#pageBytes
    if (bytes <= this.#reserved) return
    this.#disk.reserve(DATA_FILE, bytes)
    this.#reserved = bytes
  }

  /** For the next checkpoint, which may be the one that makes room. */
  #reserveAhead() {
    const used = this.#pagesUsed
    const pages = used + Math.min(Math.max(used, SPARE_PAGES_MIN), SPARE_PAGES_MAX)
    if (pages * this.#pageBytes <= this.#reserved) return
    try {
      this.#reserve(pages + SPARE_PAGES_MIN)
    } catch (error) {
      if (!isFerryError(error, 'NO_SPACE')) throw error
    }
  }

  async close(): Promise<void> {
    await this.#lmdb.close()
    if (!this.damage) writeSum(this.#directory)
  }
}
