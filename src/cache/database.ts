// The namespace as of the last checkpoint, in lmdb: inodes, names, chunks, and what is not yet at the remote.
import fs from 'node:fs'
import path from 'node:path'
import { type Database as Lmdb, open } from 'lmdb'
import { FerryError } from '../base/errors.js'
import type { Ino } from './filesystem.js'
import type { Dentry, InodeRecord } from './inode.js'

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
}

type Key = (string | number)[]

const INODE = 'i'
const NAME = 'n'
const CHUNK = 'c'
const ID = 'h'
const META = ['meta']
const FORMAT = ['format']

const MAGIC = 'PFNAMES'
const MAJOR = 1
const MINOR = 0

interface Format {
  magic: string
  major: number
  minor: number
  /** Bits of what a reader must know about; none are defined yet. */
  features: number
}

const ENOSPC = 28
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

export type Write = { key: Key; value: unknown } | { key: Key; remove: true }

export const inodeKey = (ino: Ino): Key => [INODE, ino]
export const nameDbKey = (parent: Ino, name: string): Key => [NAME, parent, name]
export const chunkKey = (ino: Ino, index: number): Key => [CHUNK, ino, index]
export const idKey = (id: string): Key => [ID, id]

/** Both of lmdb's meta pages begin with this; a file without it would end the process instead of failing to open (lmdb's mdb.c). */
const LMDB_MAGIC = 0xbeefc0de
const LMDB_MAGIC_AT = [24, 4096 + 24]

/** Does what lies there look like a database, as far as can be seen without opening it? Nothing at all is fine. */
export function isSound(directory: string): boolean {
  const file = path.join(directory, 'data.mdb')
  if (!fs.existsSync(file)) return true
  const fd = fs.openSync(file, 'r')
  try {
    const magic = Buffer.alloc(4)
    return LMDB_MAGIC_AT.every(at => fs.readSync(fd, magic, 0, 4, at) === 4 && magic.readUInt32LE() === LMDB_MAGIC)
  } finally {
    fs.closeSync(fd)
  }
}

export class Database {
  readonly #lmdb: Lmdb<unknown, Key>

  /** `directory` exists. */
  constructor(directory: string) {
    try {
      this.#lmdb = open({
        path: directory,
        compression: false,
        encoding: 'msgpack',
        mapSize: 2 ** 36,
        overlappingSync: true,
      })
    } catch (cause) {
      throw new FerryError('CORRUPT', { cause, detail: `the database in ${directory} cannot be opened` })
    }
    const format = this.#lmdb.get(FORMAT) as Format | undefined
    if (format === undefined) return
    if (format.magic !== MAGIC) throw new FerryError('BAD_FORMAT', { detail: `the database in ${directory}` })
    if (format.major > MAJOR || format.features !== 0) {
      const detail = `the database in ${directory} has format ${format.major}.${format.minor}, this version reads up to ${MAJOR}.x`
      throw new FerryError('TOO_NEW', { detail })
    }
  }

  meta(): Meta | null {
    return (this.#lmdb.get(META) as Meta | undefined) ?? null
  }

  inode(ino: Ino): InodeRecord | undefined {
    return this.#lmdb.get(inodeKey(ino)) as InodeRecord | undefined
  }

  byId(id: string): Ino | undefined {
    return this.#lmdb.get(idKey(id)) as Ino | undefined
  }

  /** The names of a directory, in the order of their cookies. */
  dentries(parent: Ino): Map<string, Dentry> {
    const found: [string, Dentry][] = []
    for (const { key, value } of this.#lmdb.getRange({ start: [NAME, parent], end: [NAME, parent + 1] })) {
      const [ino, type, cookie] = value as [Ino, number, number]
      found.push([(key as [string, Ino, string])[2], { ino, type, cookie }])
    }
    found.sort((a, b) => a[1].cookie - b[1].cookie)
    return new Map(found)
  }

  /** Every name there is. */
  *names(): Iterable<{ parent: Ino; name: string; ino: Ino }> {
    for (const { key, value } of this.#lmdb.getRange({ start: [NAME], end: [`${NAME}~`] })) {
      const [, parent, name] = key as [string, Ino, string]
      yield { parent, name, ino: (value as [Ino, number, number])[0] }
    }
  }

  *chunks(): Iterable<{ ino: Ino; index: number; chunk: ChunkRecord }> {
    for (const { key, value } of this.#lmdb.getRange({ start: [CHUNK], end: [`${CHUNK}~`] })) {
      const [, ino, index] = key as [string, Ino, number]
      yield { ino, index, chunk: value as ChunkRecord }
    }
  }

  get inodesKnown(): number {
    return this.#lmdb.getCount({ start: [INODE], end: [`${INODE}~`] })
  }

  /** All or nothing, and durable when it resolves. */
  async write(writes: Write[], meta: Meta): Promise<void> {
    const parts = new Set<Promise<unknown>>()
    const done = this.#lmdb.batch(() => {
      for (const write of writes)
        parts.add('remove' in write ? this.#lmdb.remove(write.key) : this.#lmdb.put(write.key, write.value))
      parts.add(this.#lmdb.put(META, meta))
      parts.add(this.#lmdb.put(FORMAT, { magic: MAGIC, major: MAJOR, minor: MINOR, features: 0 } satisfies Format))
    })
    // Each of them rejects for itself when the transaction fails, and so does the reason that they give.
    for (const part of parts) part.then(undefined, error => quiet((error as { commitError?: unknown }).commitError))
    try {
      await done
      await this.#lmdb.flushed
    } catch (error) {
      const cause = (error as { commitError?: unknown }).commitError
      const reason = cause instanceof Promise ? await within(cause) : error
      const full = (reason as { code?: unknown }).code === ENOSPC
      throw new FerryError(full ? 'NO_SPACE' : 'IO', { cause: reason, detail: 'the database was not written' })
    }
  }

  async close(): Promise<void> {
    await this.#lmdb.close()
  }
}
