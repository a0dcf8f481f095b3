// What a journal found on the disk says, and where it stops saying it. Changes nothing on the disk.
import { KIND_MARK, SEGMENT_HEADER_BYTES, type SegmentHeader } from './journal-format.js'
import type { SegmentReader } from './journal-reader.js'
import type { StorageFile } from './storage.js'

export interface Segment extends SegmentHeader {
  readonly name: string
  readonly file: StorageFile
  /** Where the next record goes. */
  tail: number
  /** Its last record's LSN; firstLsn - 1 while it has none. */
  lastLsn: number
  /** Holds records that no sync has covered. */
  dirty: boolean
}

/** Called for each record in order; `body` is valid until it returns. False: what the record names does not match it. */
export type Visit = (lsn: number, kind: number, body: Uint8Array) => boolean

/** Whether a record of this kind counts only with the one after it; they lie in one segment. */
export type Grouping = (kind: number) => boolean

interface Stop {
  /** Of the segment in the chain. */
  index: number
  at: number
  refused: boolean
}

export interface Survey {
  /** The last record that was visited, or what replay began after. */
  lastLsn: number
  records: number
  /** Of these, everything up to here was known to be durable. */
  durableLsn: number
  /** Segments with visited records. */
  live: Segment[]
  /** Segments that hold nothing that is needed. */
  idle: Segment[]
  end: End | undefined
}

/** Where the records that follow on each other end, if not at the end of a segment that was closed, and what is behind. */
export interface End {
  segment: Segment
  /** Byte offset in it. */
  at: number
  /** By `visit`. */
  refused: boolean
  /** Segments behind this one. */
  later: Segment[]
  /** Good records found behind it, a refused one included. */
  leftover: number
  /** The highest LSN that is known to have existed. */
  lastLsnKnown: number
  /** What is missing had been durable: damage, and not the torn tail of a power failure. */
  wasDurable: boolean
}

/**
 * Visits every record after `afterLsn` of the chain (all readable segments in the order of their serials).
 * A segment's records count up to the first LSN of any later one: that one began anew there, after a crash.
 * Yields after each record, and can be left for a while there.
 */
export function* survey(
  chain: Segment[],
  reader: SegmentReader,
  afterLsn: number,
  { visit, isPart = () => false }: { visit: Visit; isPart?: Grouping },
): Generator<void, Survey> {
  const walk = new Walk(chain, reader, afterLsn, { visit, isPart })
  const stop = yield* walk.run()
  const end = stop && inspect(walk, stop)
  const { live, records, durableLsn, need } = walk
  const idle = chain.filter(one => !live.includes(one) && one !== end?.segment && !end?.later.includes(one))
  return { lastLsn: need - 1, records, durableLsn: Math.min(durableLsn, need - 1), live, idle, end }
}

class Walk {
  readonly live: Segment[] = []
  records = 0
  durableLsn: number
  /** By index: from this LSN on, a segment's records are void. */
  readonly limits: number[]
  /** The LSN that has to come next. */
  need: number
  readonly #visit: Visit
  readonly #isPart: Grouping

  constructor(
    readonly chain: Segment[],
    readonly reader: SegmentReader,
    afterLsn: number,
    { visit, isPart }: { visit: Visit; isPart: Grouping },
  ) {
    this.#visit = visit
    this.#isPart = isPart
    this.need = afterLsn + 1
    this.durableLsn = afterLsn
    let limit = Number.POSITIVE_INFINITY
    this.limits = chain.map(() => 0)
    for (let i = chain.length - 1; i >= 0; i--) {
      this.limits[i] = limit
      limit = Math.min(limit, chain[i].firstLsn)
    }
  }

  *run(): Generator<void, Stop | undefined> {
    let stop: Stop | undefined
    for (let index = 0; index < this.chain.length; index++) {
      const segment = this.chain[index]
      if (this.isVoid(index)) continue
      // What the segment before lacked did not matter if this one goes on where it ended.
      if (segment.firstLsn > this.need) return stop ?? { index, at: SEGMENT_HEADER_BYTES, refused: false }
      stop = yield* this.#segment(index)
      if (stop?.refused) return stop
    }
    return stop
  }

  isVoid(index: number) {
    const { closedLsn } = this.chain[index]
    return this.limits[index] <= this.need || (closedLsn > 0 && closedLsn <= this.need)
  }

  /** Undefined when it ended where it should: at the limit, or where it was closed. */
  *#segment(index: number): Generator<void, Stop | undefined> {
    const { chain, reader, limits } = this
    const segment = chain[index]
    const before = this.records
    reader.load(segment.file, segment)
    let at = SEGMENT_HEADER_BYTES
    let expected = segment.firstLsn
    let refused = false
    let isPart = false
    while (expected < limits[index]) {
      if (!this.#next(at, expected)) break
      at = reader.at
      expected = reader.lsn
      if (expected >= limits[index]) break
      if (expected >= this.need) {
        if (this.#isPart(reader.kind) && !isPart) {
          if (!this.#isWhole(at, expected)) break
          reader.look(at)
        }
        isPart = this.#isPart(reader.kind)
        refused = !this.#visit(expected, reader.kind, reader.body())
        if (refused) break
        this.records++
        this.need = expected + 1
        yield
      }
      this.durableLsn = Math.max(this.durableLsn, reader.durableLsn)
      at += reader.recordBytes
      expected++
    }
    if (this.records > before) {
      segment.tail = at
      segment.lastLsn = this.need - 1
      this.live.push(segment)
    }
    const closed = segment.closedLsn === this.need
    if (closed) this.durableLsn = this.need - 1
    return closed || this.need >= limits[index] ? undefined : { index, at, refused }
  }

  /** All records from `at` on that belong together are there. */
  #isWhole(at: number, lsn: number): boolean {
    const { reader } = this
    for (let next = at, expected = lsn; ; next = reader.at + reader.recordBytes, expected++) {
      if (!reader.look(next) || reader.kind === KIND_MARK || reader.lsn !== expected) return false
      if (!this.#isPart(reader.kind)) return true
    }
  }

  /** The record at `at`; where only records before `need` are damaged, the first good one behind them. */
  #next(at: number, expected: number): boolean {
    const { reader } = this
    if (reader.look(at) && reader.kind !== KIND_MARK && reader.lsn === expected) return true
    if (expected >= this.need) return false
    for (let from = at; reader.search(from); from = reader.at + reader.recordBytes)
      if (reader.kind !== KIND_MARK && reader.lsn > expected) return reader.lsn <= this.need
    return false
  }
}

/** What lies behind the stop, and what it tells about the record that is missing there. */
function inspect(walk: Walk, { index, at, refused }: Stop): End {
  const { chain, reader, need } = walk
  const segment = chain[index]
  const later = chain.slice(index + 1).filter((_, i) => walk.limits[index + 1 + i] > need)
  let leftover = 0
  let lastLsnKnown = need - 1
  for (const one of [segment, ...later]) {
    walk.durableLsn = Math.max(walk.durableLsn, one.closedLsn - 1)
    reader.load(one.file, one)
    for (let from = one === segment ? at : 0; reader.search(from); from = reader.at + reader.recordBytes) {
      walk.durableLsn = Math.max(walk.durableLsn, reader.durableLsn)
      if (reader.kind === KIND_MARK || reader.lsn < need) continue
      leftover++
      lastLsnKnown = Math.max(lastLsnKnown, reader.lsn)
    }
  }
  lastLsnKnown = Math.max(lastLsnKnown, walk.durableLsn)
  return { segment, at, refused, later, leftover, lastLsnKnown, wasDurable: walk.durableLsn >= need }
}
