// SQLite 3: the schema, then the inner pages of every B-tree, level by level, so that a query waits for its leaf and nothing else.
// https://www.sqlite.org/fileformat2.html
import { type FileView, type Format, merged, need, type Part, type Plan, type Range } from './format.js'

const MAGIC = 'SQLite format 3\0'
const HEADER_BYTES = 100
/** Pages looked at in one file, and their bytes, at most. */
const PAGES_MAX = 1024
const BYTES_MAX = 16 * 1024 * 1024
/** Pages asked for at once. */
const BATCH_PAGES = 32
/** The format's own limit: no page has fewer bytes for content. */
const USABLE_BYTES_MIN = 480
/** Columns of sqlite_schema before the root page: type, name, tbl_name. */
const ROOTPAGE_COLUMN = 3

/** Types of pages. */
const INNER_INDEX = 0x02
const INNER_TABLE = 0x05
const LEAF_TABLE = 0x0d

export const sqlite: Format = {
  name: 'sqlite',
  recognises: first => Buffer.from(first.subarray(0, MAGIC.length)).toString('latin1') === MAGIC,
  plan,
}

function* plan(file: FileView): Plan {
  const header = yield* need(file, 0, HEADER_BYTES)
  const pageBytes = header.getUint16(16) === 1 ? 65_536 : header.getUint16(16)
  const usableBytes = pageBytes - header.getUint8(20)
  if (pageBytes < 512 || (pageBytes & (pageBytes - 1)) !== 0 || usableBytes < USABLE_BYTES_MIN) return
  const pages = new Pages(file, { pageBytes, usableBytes })
  yield* inner(pages, yield* schema(pages))
}

/** All of the schema, as whoever opens the file reads it. @returns the root pages of tables and indexes */
function* schema(pages: Pages): Part<number[]> {
  const roots: number[] = []
  const overflows: number[] = []
  for (let level = [1]; level.length; ) {
    const below: number[] = []
    yield* pages.each(level, page => {
      if (page.isInner) below.push(...page.children())
      else if (page.type === LEAF_TABLE) page.schemaRows(roots, overflows)
    })
    level = below
  }
  for (let level = overflows; level.length; ) {
    const next: number[] = []
    yield* pages.each(level, page => next.push(page.overflow))
    level = next
  }
  return roots
}

/** A tree is equally deep everywhere: one page of a level tells whether those beside it are inner ones as well. */
function* inner(pages: Pages, roots: number[]): Part<void> {
  let trees = roots.map(root => [root])
  while (trees.length) {
    const childrenOf = new Map<number, number[]>()
    const below = trees.map(tree => {
      const children: number[] = []
      for (const page of tree) childrenOf.set(page, children)
      return children
    })
    yield* pages.each(trees.flat(), page => {
      if (page.isInner) childrenOf.get(page.number)?.push(...page.children())
    })
    const firsts = below.flatMap(([first]) => first ?? [])
    const innerFirsts = new Set<number>()
    yield* pages.each(firsts, page => page.isInner && innerFirsts.add(page.number))
    trees = below.filter(([first]) => innerFirsts.has(first))
  }
}

class Pages {
  readonly #count: number
  /** Each look costs one, at a page seen before as well: what is damaged may go round in circles. */
  #left: number

  constructor(
    readonly file: FileView,
    readonly geometry: { pageBytes: number; usableBytes: number },
  ) {
    this.#count = Math.floor(file.size / geometry.pageBytes)
    this.#left = Math.min(PAGES_MAX, Math.floor(BYTES_MAX / geometry.pageBytes))
  }

  /** Asks for these pages, many at once, and visits each; for as many as the bounds allow, and the file has. */
  *each(numbers: number[], visit: (page: Page) => unknown): Part<void> {
    const { pageBytes, usableBytes } = this.geometry
    const wanted = numbers.filter(number => number > 0 && number <= this.#count).slice(0, this.#left)
    this.#left -= wanted.length
    for (let first = 0; first < wanted.length; first += BATCH_PAGES) {
      const batch = wanted.slice(first, first + BATCH_PAGES)
      yield { ranges: merged(batch.map(number => this.#range(number))), until: 'here' }
      for (const number of batch) {
        const bytes = yield* need(this.file, this.#range(number).from, pageBytes)
        visit(new Page(number, bytes, usableBytes))
      }
    }
  }

  #range(number: number): Range {
    const { pageBytes } = this.geometry
    return { from: (number - 1) * pageBytes, to: number * pageBytes }
  }
}

/** A page, read without believing any of it. */
class Page {
  readonly #at: number

  constructor(
    readonly number: number,
    readonly bytes: DataView,
    readonly usableBytes: number,
  ) {
    this.#at = number === 1 ? HEADER_BYTES : 0
  }

  get type() {
    return this.bytes.getUint8(this.#at)
  }

  get isInner() {
    return this.type === INNER_TABLE || this.type === INNER_INDEX
  }

  /** Of a page in a chain of them: the next, or 0. */
  get overflow() {
    return this.#u32(0)
  }

  /** In the order of their keys. */
  children(): number[] {
    const children: number[] = []
    for (const cell of this.#cells(12)) children.push(this.#u32(cell))
    children.push(this.#u32(this.#at + 8))
    return children.slice(0, PAGES_MAX)
  }

  /** What rows of sqlite_schema say: root pages, and where a row goes on that is too long for this page. */
  schemaRows(roots: number[], overflows: number[]) {
    for (const cell of this.#cells(8)) {
      const [payloadBytes, rowid] = this.#varint(cell)
      const payload = this.#varint(rowid)[1]
      const localBytes = this.#localBytes(payloadBytes)
      if (localBytes < payloadBytes) overflows.push(this.#u32(payload + localBytes))
      roots.push(this.#rootpage(payload))
      if (roots.length >= PAGES_MAX) return
    }
  }

  /** A record: the length of its header, a type for each column, then the columns. */
  #rootpage(record: number): number {
    const [headerBytes, types] = this.#varint(record)
    let at = record + headerBytes
    let next = types
    for (let column = 0; ; column++) {
      const [type, after] = this.#varint(next)
      if (column === ROOTPAGE_COLUMN) return type === 9 ? 1 : this.#integer(at, type)
      at += type >= 12 ? Math.floor((type - 12) / 2) : type
      next = after
    }
  }

  /** 0, unless it is an integer of up to 32 bits, as page numbers are. */
  #integer(at: number, bytes: number): number {
    if (bytes < 1 || bytes > 4) return 0
    let value = 0
    for (let n = 0; n < bytes; n++) value = value * 256 + this.#u8(at + n)
    return value
  }

  /** How much of a row of a table is in the page itself. */
  #localBytes(payloadBytes: number): number {
    const most = this.usableBytes - 35
    if (payloadBytes <= most) return payloadBytes
    const least = Math.floor(((this.usableBytes - 12) * 32) / 255) - 23
    const some = least + ((payloadBytes - least) % (this.usableBytes - 4))
    return some <= most ? some : least
  }

  #cells(headerBytes: number): number[] {
    const cells: number[] = []
    const first = this.#at + headerBytes
    const end = Math.min(first + 2 * this.#u16(this.#at + 3), this.bytes.byteLength - 1)
    for (let at = first; at < end; at += 2) cells.push(this.bytes.getUint16(at))
    return cells
  }

  /** A number of up to 64 bits, seven in each byte, and where it ends. Beyond 2^53 it is not exact. */
  #varint(at: number): [value: number, end: number] {
    let value = 0
    for (let n = 0; n < 8; n++) {
      const byte = this.#u8(at + n)
      value = value * 128 + (byte & 0x7f)
      if (byte < 0x80) return [value, at + n + 1]
    }
    return [value * 256 + this.#u8(at + 8), at + 9]
  }

  #u8(at: number) {
    return at < this.bytes.byteLength ? this.bytes.getUint8(at) : 0
  }

  #u16(at: number) {
    return at + 2 <= this.bytes.byteLength ? this.bytes.getUint16(at) : 0
  }

  #u32(at: number) {
    return at + 4 <= this.bytes.byteLength ? this.bytes.getUint32(at) : 0
  }
}
