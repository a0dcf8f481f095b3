// The file of the database, walked without lmdb, which believes what it reads: where a page is damaged it ends the process, or answers
// with other entries.
//
// What lmdb writes (its mdb.c, data version 2), little-endian; offsets in a page count from the end of its header:
//
//   page    0 number u64   8 transaction u64   16 pad u16   18 flags u16   20 lower u16   22 upper u16 (of a run: 20 pages u32)
//           24 offsets of nodes, u16 each, up to `lower`; the nodes fill the page from `upper`
//   node    0 length of the value u32   4 flags u16   6 length of the key u16   8 key, value
//           in a branch, bytes 0 to 6 are the number of the page below
//   run     0 number u64   8 transaction u64   16 pages u64: the value of a node whose value has pages of its own
//   meta    in pages 0 and 1 at 24, and as of the last sync in the middle of page 0, without the first 8 bytes:
//           0 magic u32   4 version u32   8 address u64   16 bytes of the map u64   24 tree of free pages   72 tree of entries
//           120 last page u64   128 transaction u64   136 id of the boot i64
//   tree    0 bytes of a page u32   4 flags u16   6 depth u16   8 branches u64   16 leaves u64   24 pages of runs u64   32 entries u64
//           40 root u64
import fs from 'node:fs'
import path from 'node:path'
import { crc32 } from '../chunk/digest.js'

const MAGIC = 0xbeefc0de
const VERSION = 2
const HEADER_BYTES = 24
const META_BYTES = 144
const NODE_HEADER_BYTES = 8
const RUN_BYTES = 24
const PAGE_BYTES_MIN = 512
const PAGE_BYTES_MAX = 65_536
const METAS = 2
/** Read at once for the sum of the whole file. */
const READ_BYTES = 1024 * 1024
const DEPTH_MAX = 32
const NO_ROOT = 2 ** 64

const BRANCH = 0x01
const LEAF = 0x02
const OVERFLOW = 0x04
const META = 0x08
const BIG_VALUE = 0x01
const INTEGER_KEY = 0x08
const NOT_SYNCED = 0x1000

/** One entry: the key begins at `at`, the value at `valueAt` and ends at `end`. The bytes are valid during the call. */
export type Visit = (bytes: Buffer, at: number, valueAt: number, end: number) => void

/** Thrown and caught in this file. */
class Damage extends Error {}

interface Tree {
  flags: number
  depth: number
  branches: number
  leaves: number
  runPages: number
  entries: number
  root: number
}

interface Meta {
  pageBytes: number
  synced: boolean
  free: Tree
  entries: Tree
  lastPage: number
  transaction: number
  boot: bigint
}

const fileOf = (directory: string) => path.join(directory, 'data.mdb')
const sumFileOf = (directory: string) => path.join(directory, 'sum')

/** The file as a clean end left it: there is nothing to walk then, which takes five times as long. */
export function hasSum(directory: string): boolean {
  try {
    return fs.readFileSync(sumFileOf(directory), 'latin1') === sumOf(fileOf(directory))
  } catch {
    return false
  }
}

export const removeSum = (directory: string) => fs.rmSync(sumFileOf(directory), { force: true })

/** Once nobody has it open any more. */
export function writeSum(directory: string): void {
  try {
    fs.writeFileSync(sumFileOf(directory), sumOf(fileOf(directory)))
  } catch {
    // Without it the file is walked.
  }
}

function sumOf(file: string): string {
  const fd = fs.openSync(file, 'r')
  try {
    const part = Buffer.allocUnsafe(READ_BYTES)
    let sum = 0
    for (let at = 0; ; ) {
      const bytes = fs.readSync(fd, part, 0, READ_BYTES, at)
      if (bytes === 0) return `${at} bytes ${sum.toString(16).padStart(8, '0')}\n`
      sum = crc32(part.subarray(0, bytes), sum)
      at += bytes
    }
  } finally {
    fs.closeSync(fd)
  }
}

type Compare = (a: Buffer, aAt: number, aEnd: number, b: Buffer, bAt: number, bEnd: number) => number

/** Every entry of the database in `directory`, in the order of their keys; returns what is damaged, if anything is. */
export function walk(directory: string, mapBytes: number, visit: Visit): string | undefined {
  const file = fileOf(directory)
  if (!fs.existsSync(file)) return
  const fd = fs.openSync(file, 'r')
  try {
    // What lmdb begins with as well.
    if (fs.fstatSync(fd).size > 0) new Walk(fd, mapBytes).walk(visit)
    return
  } catch (error) {
    if (error instanceof Damage) return error.message
    throw error
  } finally {
    fs.closeSync(fd)
  }
}

class Walk {
  readonly #meta: Meta
  readonly #pageBytes: number
  /** Pages met so far. */
  readonly #met: Uint8Array
  readonly #buffers: Buffer[] = []
  #branches = 0
  #leaves = 0
  #runPages = 0
  #entries = 0

  constructor(
    readonly fd: number,
    mapBytes: number,
  ) {
    this.#meta = this.#pickMeta()
    this.#pageBytes = this.#meta.pageBytes
    if (!((this.#meta.lastPage + 1) * this.#pageBytes <= mapBytes)) throw new Damage('the last page is beyond the map')
    this.#met = new Uint8Array(this.#meta.lastPage + 1)
    this.#met.fill(1, 0, METAS)
  }

  walk(visit: Visit): void {
    const { free, entries } = this.#meta
    this.#tree(free, compareNumbers, (bytes, _at, valueAt, end) => this.#meetFree(bytes, valueAt, end))
    this.#tree(entries, compareBytes, visit)
  }

  #read(at: number, into: Buffer, what: string) {
    if (fs.readSync(this.fd, into, 0, into.length, at) < into.length)
      throw new Damage(`${what} is beyond the end of the file`)
  }

  // --- metas

  /** The one that lmdb would go on from (mdb_pick_meta): what was not synced counts only if the machine was not started since. */
  #pickMeta(): Meta {
    const first = this.#readMeta(0, 0)
    const { pageBytes } = first
    const second = this.#readMeta(1, pageBytes)
    const synced = decodeMeta(this.#metaAt(pageBytes / 2))
    if (second.pageBytes !== pageBytes) throw new Damage('page 1 has another size of pages')
    const boot = bootId()
    const latest = first.transaction >= second.transaction ? first : second
    const isOfThisBoot = latest.boot !== 0n && latest.boot === boot
    const apart = Math.abs(first.transaction - second.transaction)
    if (isOfThisBoot && apart !== 1) throw new Damage('pages 0 and 1 are not of transactions behind each other')
    if (synced.transaction > 0 && (!synced.synced || synced.pageBytes !== pageBytes)) throw new Damage('page 0')
    const pick = (a: Meta, b: Meta) => {
      if (b.transaction === 0) return a
      const [older, newer] = a.transaction >= b.transaction ? [b, a] : [a, b]
      return newer.synced || (newer.boot !== 0n && newer.boot === boot) ? newer : older
    }
    const picked = pick(pick(first, second), synced)
    const { free, entries } = picked
    if ((free.flags & ~NOT_SYNCED) !== INTEGER_KEY || entries.flags !== 0) throw new Damage('the flags of a tree')
    return picked
  }

  #metaAt(at: number): Buffer {
    const bytes = Buffer.alloc(HEADER_BYTES + META_BYTES)
    this.#read(at, bytes, 'a meta page')
    return bytes
  }

  #readMeta(page: number, at: number): Meta {
    const bytes = this.#metaAt(at)
    const version = bytes.readUInt32LE(HEADER_BYTES + 4)
    if (bytes.readUInt32LE(HEADER_BYTES) !== MAGIC || version !== VERSION)
      throw new Damage(`page ${page} is none of lmdb's`)
    if (readU64(bytes, 0) !== page || readU16(bytes, 18) !== META) throw new Damage(`page ${page} is not a meta page`)
    const meta = decodeMeta(bytes)
    const { pageBytes, transaction } = meta
    if (pageBytes < PAGE_BYTES_MIN || pageBytes > PAGE_BYTES_MAX || (pageBytes & (pageBytes - 1)) !== 0)
      throw new Damage(`page ${page} has no size of pages`)
    if (transaction > 0 && transaction % METAS !== page)
      throw new Damage(`page ${page} is of another page's transaction`)
    return meta
  }

  // --- trees

  #tree(tree: Tree, compare: Compare, visit: Visit) {
    this.#branches = this.#leaves = this.#runPages = this.#entries = 0
    if (tree.root === NO_ROOT) {
      if (tree.depth || tree.entries) throw new Damage('a tree has no root')
      return
    }
    if (tree.depth < 1 || tree.depth > DEPTH_MAX) throw new Damage('the depth of a tree')
    this.#page(tree.root, tree.depth, null, null, compare, visit)
    if (
      this.#branches !== tree.branches ||
      this.#leaves !== tree.leaves ||
      this.#runPages !== tree.runPages ||
      this.#entries !== tree.entries
    )
      throw new Damage(`a tree has ${this.#entries} entries, and should have ${tree.entries}`)
  }

  #meet(page: number, what: string) {
    if (!(page < this.#met.length)) throw new Damage(`page ${page} is beyond the last`)
    if (this.#met[page]++) throw new Damage(`page ${page}, which is ${what}, is in use elsewhere`)
  }

  /** A list of free pages: how many numbers follow, and these; a negative one is how many pages are free from the next on. */
  #meetFree(bytes: Buffer, at: number, end: number) {
    const count = readU64(bytes, at)
    const last = at + 8 * count
    if (!(last + 8 <= end)) throw new Damage('a list of free pages')
    for (let next = at + 8; next <= last; next += 8) {
      const entry = Number(bytes.readBigInt64LE(next))
      if (entry === 0) continue
      if (entry > 0) {
        this.#meet(entry, 'free')
        continue
      }
      next += 8
      if (next > last || -entry > this.#met.length) throw new Damage('a list of free pages')
      const from = readU64(bytes, next)
      for (let page = from; page < from - entry; page++) this.#meet(page, 'free')
    }
  }

  /** Keys below it are at or after `low`, and before `high`. */
  #page(page: number, depth: number, low: Buffer | null, high: Buffer | null, compare: Compare, visit: Visit): void {
    this.#meet(page, 'part of a tree')
    this.#buffers[depth] ??= Buffer.alloc(this.#pageBytes)
    const bytes = this.#buffers[depth]
    this.#read(page * this.#pageBytes, bytes, `page ${page}`)
    const isLeaf = depth === 1
    if (readU64(bytes, 0) !== page || readU16(bytes, 18) !== (isLeaf ? LEAF : BRANCH))
      throw new Damage(`page ${page} is another one`)
    if (readU64(bytes, 8) > this.#meta.transaction) throw new Damage(`page ${page} is of a later transaction`)
    const lower = readU16(bytes, 20)
    const upper = readU16(bytes, 22)
    const room = this.#pageBytes - HEADER_BYTES
    if (lower % 2 || lower === 0 || lower > upper || upper > room) throw new Damage(`page ${page}`)
    let used = 0
    let before = -1
    let beforeEnd = -1
    let lowest = room
    for (let at = HEADER_BYTES; at < HEADER_BYTES + lower; at += 2) {
      const offset = readU16(bytes, at)
      const node = HEADER_BYTES + offset
      if (offset % 2 || offset < upper || node + NODE_HEADER_BYTES > this.#pageBytes) throw new Damage(`page ${page}`)
      if (offset < lowest) lowest = offset
      const flags = isLeaf ? readU16(bytes, node + 4) : 0
      if (flags & ~BIG_VALUE) throw new Damage(`page ${page}`)
      const key = node + NODE_HEADER_BYTES
      const keyEnd = key + readU16(bytes, node + 6)
      const valueBytes = isLeaf ? bytes.readUInt32LE(node) : 0
      const end = keyEnd + (flags ? RUN_BYTES : valueBytes)
      if (end > this.#pageBytes) throw new Damage(`page ${page}`)
      used += end - node + ((end - node) & 1)
      // The first key of a branch stands for all that are lower.
      const isFirst = at === HEADER_BYTES
      if (isLeaf || !isFirst) {
        if (before >= 0 && compare(bytes, before, beforeEnd, bytes, key, keyEnd) >= 0) throw new Damage(`page ${page}`)
        before = key
        beforeEnd = keyEnd
      }
      if (!isLeaf) continue
      if (isFirst && low && compare(bytes, key, keyEnd, low, 0, low.length) < 0) throw new Damage(`page ${page}`)
      this.#entries++
      if (flags) this.#run(bytes, key, keyEnd, valueBytes, visit)
      else visit(bytes, key, keyEnd, end)
    }
    if (lowest !== upper || used !== room - upper) throw new Damage(`page ${page}`)
    if (isLeaf) {
      if (high && compare(bytes, before, beforeEnd, high, 0, high.length) >= 0) throw new Damage(`page ${page}`)
      this.#leaves++
      return
    }
    this.#branches++
    this.#below(bytes, lower, depth, low, high, compare, visit)
  }

  #below(
    bytes: Buffer,
    lower: number,
    depth: number,
    low: Buffer | null,
    high: Buffer | null,
    compare: Compare,
    visit: Visit,
  ): void {
    const keyOf = (at: number) => {
      const node = HEADER_BYTES + readU16(bytes, at)
      const key = node + NODE_HEADER_BYTES
      return bytes.subarray(key, key + readU16(bytes, node + 6))
    }
    const end = HEADER_BYTES + lower
    for (let at = HEADER_BYTES; at < end; at += 2) {
      const page = bytes.readUIntLE(HEADER_BYTES + readU16(bytes, at), 6)
      const from = at === HEADER_BYTES ? low : keyOf(at)
      const to = at + 2 === end ? high : keyOf(at + 2)
      this.#page(page, depth - 1, from, to, compare, visit)
    }
  }

  #run(bytes: Buffer, key: number, keyEnd: number, valueBytes: number, visit: Visit): void {
    const page = readU64(bytes, keyEnd)
    const pages = readU64(bytes, keyEnd + 16)
    const filled = Math.floor((HEADER_BYTES - 1 + valueBytes) / this.#pageBytes) + 1
    // A value that became shorter keeps its pages.
    if (!(filled <= pages && pages <= this.#met.length)) throw new Damage(`the length of what begins at page ${page}`)
    for (let each = page; each < page + pages; each++) this.#meet(each, 'part of a value')
    this.#runPages += pages
    const keyBytes = keyEnd - key
    // The value comes behind its key, as it does in a page.
    const runAt = Math.max(0, keyBytes - HEADER_BYTES)
    const whole = Buffer.alloc(runAt + filled * this.#pageBytes)
    const run = whole.subarray(runAt)
    this.#read(page * this.#pageBytes, run, `page ${page}`)
    if (readU64(run, 0) !== page || readU16(run, 18) !== OVERFLOW || run.readUInt32LE(20) !== pages)
      throw new Damage(`page ${page} is another one`)
    if (readU64(run, 8) > this.#meta.transaction) throw new Damage(`page ${page} is of a later transaction`)
    const valueAt = runAt + HEADER_BYTES
    bytes.copy(whole, valueAt - keyBytes, key, keyEnd)
    visit(whole, valueAt - keyBytes, valueAt, valueAt + valueBytes)
  }
}

function decodeMeta(bytes: Buffer): Meta {
  const tree = (at: number): Tree => ({
    flags: readU16(bytes, at + 4),
    depth: readU16(bytes, at + 6),
    branches: readU64(bytes, at + 8),
    leaves: readU64(bytes, at + 16),
    runPages: readU64(bytes, at + 24),
    entries: readU64(bytes, at + 32),
    root: readU64(bytes, at + 40),
  })
  const free = tree(HEADER_BYTES + 24)
  return {
    pageBytes: bytes.readUInt32LE(HEADER_BYTES + 24),
    synced: (free.flags & NOT_SYNCED) === 0,
    free,
    entries: tree(HEADER_BYTES + 72),
    lastPage: readU64(bytes, HEADER_BYTES + 120),
    transaction: readU64(bytes, HEADER_BYTES + 128),
    boot: bytes.readBigInt64LE(HEADER_BYTES + 136),
  }
}

/** As lmdb reads it: the hexadecimal digits up to the first dash. */
function bootId(): bigint {
  try {
    const [digits] = fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').split('-')
    return BigInt(`0x${digits}`)
  } catch {
    return 0n
  }
}

/** Four times as fast as Buffer's, which matters here alone. */
const readU16 = (bytes: Buffer, at: number) => bytes[at] | (bytes[at + 1] << 8)
/** Beyond 2^53 not exact: no page or count is that large. */
const readU64 = (bytes: Buffer, at: number) => bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 0x1_0000_0000

const compareBytes: Compare = (a, aAt, aEnd, b, bAt, bEnd) => {
  const length = Math.min(aEnd - aAt, bEnd - bAt)
  for (let i = 0; i < length; i++) {
    const difference = a[aAt + i] - b[bAt + i]
    if (difference) return difference
  }
  return aEnd - aAt - (bEnd - bAt)
}

const compareNumbers: Compare = (a, aAt, _aEnd, b, bAt) => readU64(a, aAt) - readU64(b, bAt)
