// The durable, ordered, local log of changes: segments that are preallocated, written with zeros, and recycled.
import { strict as assert } from 'node:assert'
import { FerryError, toFerryError } from '../base/errors.js'
import { GroupSync } from '../base/group-sync.js'
import { logger as loggerOf } from '../base/log.js'
import { crc32 } from '../chunk/digest.js'
import {
  aligned,
  decodeHeader,
  encodeHeader,
  freshId,
  KIND_MARK,
  RECORD_BODY_BYTES_MAX,
  RECORD_HEADER_BYTES,
  RECORD_MAGIC,
  SEGMENT_BYTES_MAX,
  SEGMENT_HEADER_BYTES,
  viewOf,
  writeU64,
} from './journal-format.js'
import { SegmentReader } from './journal-reader.js'
import { type End, type Grouping, type Segment, survey, type Visit } from './journal-replay.js'
import type { Storage, StorageFile } from './storage.js'

export interface JournalOptions {
  /** Of one segment. Default 16 MiB. */
  segmentBytes?: number
  /** Segments kept ready, written with zeros. Default 2. */
  spare?: number
  /** No spare takes the disk's free bytes below this. Default 0. */
  freeBytesMin?: number
  /** Default: a warning of the library's log. */
  log?: (line: string) => void
}

export interface ReplayResult {
  /** The last record of the journal, or `afterLsn`: the next one appended is one more. */
  lastLsn: number
  /** Visited, and not refused. */
  records: number
  /** Found behind the end, never synced: the torn tail of a power failure. They are gone. */
  discarded: number
  /** Records that had been made durable and are not there. What could still be of use is kept in the files `setAside`. */
  damaged?: {
    segment: string
    /** Byte offset in the segment. */
    at: number
    /** The first record that is missing. */
    lsn: number
    /** How many are missing, as far as it is known. */
    lost: number | undefined
    setAside: string[]
  }
}

const logger = loggerOf('journal')

const NAME = /^journal-(\d{6,})$/
const ZEROS = new Uint8Array(256 * 1024)
/** Records up to this size are gathered in one buffer and written at once: 128 KiB of data, and names. */
const GATHER_BYTES = 160 * 1024
/** Without a spare, an append has to make a segment itself: small, so that its zeros cost less than 0.1 ms; then doubling. */
const FIRST_BYTES = 256 * 1024
/** Larger ones are left sparse: slower to sync, but quick to have. */
const ZEROED_AT_ONCE_BYTES = 1024 * 1024
const DONE = Promise.resolve()

export class Journal {
  readonly #storage: Storage
  readonly #segmentBytes: number
  readonly #spareMax: number
  readonly #freeBytesMin: number
  readonly #log: (line: string) => void
  readonly #group = new GroupSync(() => this.#syncNow())
  readonly #gather = new Uint8Array(GATHER_BYTES)
  readonly #gatherView = viewOf(this.#gather)

  /** As found at the opening, by serial; until `replay`. */
  #chain: Segment[] | undefined = []
  /** Present, with a header that cannot be read. */
  #unreadable: string[] = []
  /** With records that are not released, oldest first; the last one is `#active` when that is set. */
  #live: Segment[] = []
  #active: Segment | undefined
  #spares: Segment[] = []
  #serial = 0
  #nameNext = 1
  #createBytes = FIRST_BYTES

  #headLsn = 0
  #durableLsn = 0
  /** What those who wait for a sync want to have. */
  #wantedLsn = 0
  #releasedLsn = 0
  /** After a failed sync nobody knows what the disk has; the kernel forgets that it was dirty. */
  #failure: FerryError | undefined
  #preparing: Promise<void> | undefined
  #closing: Promise<void> | undefined

  private constructor(
    storage: Storage,
    { segmentBytes = 16 * 1024 * 1024, spare = 2, freeBytesMin = 0, log = line => logger.warn(line) }: JournalOptions,
  ) {
    this.#storage = storage
    this.#segmentBytes = segmentBytes
    this.#spareMax = spare
    this.#freeBytesMin = freeBytesMin
    this.#log = log
  }

  /**
   * Finds the segments present; writes nothing. `replay` comes next.
   * @throws TOO_NEW
   */
  static open(storage: Storage, options: JournalOptions = {}): Journal {
    const journal = new Journal(storage, options)
    journal.#find()
    return journal
  }

  /** Of the newest segment; grows with each. */
  get serial(): number {
    return this.#serial
  }

  /** LSN of the last record appended. */
  get headLsn(): number {
    return this.#headLsn
  }

  /** Everything up to here survives power loss. */
  get durableLsn(): number {
    return this.#durableLsn
  }

  /** Of the records that are not released, about: within the segment that `release` cut, records count as equally long. */
  get bytes(): number {
    let sum = 0
    for (const { firstLsn, lastLsn, tail } of this.#live) {
      const released = Math.min(Math.max(this.#releasedLsn + 1 - firstLsn, 0) / Math.max(lastLsn + 1 - firstLsn, 1), 1)
      sum += (tail - SEGMENT_HEADER_BYTES) * (1 - released)
    }
    return Math.round(sum)
  }

  /** On the disk, spares included. */
  get bytesAllocated(): number {
    return [...this.#live, ...this.#spares].reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /**
   * Calls `visit` for every record after `afterLsn`, in order, and makes the journal ready for `append`. Ends at the first
   * record that is missing, damaged, or refused by `visit`. If that one had been durable, the rest is set aside under
   * `NAME.damaged-N`; the records visited stay in the journal until they are released.
   * @param serial what `serial` was when `afterLsn` was the last: a segment that was removed since, and that power loss brings
   *   back, must be older than all that come now
   * @param isPart says of a kind that such a record counts only with the one after it: an end between them is one before both
   */
  replay(afterLsn: number, visit: Visit, serial = 0, isPart?: Grouping): ReplayResult {
    const replaying = this.replaying(afterLsn, visit, serial, isPart)
    for (let step = replaying.next(); ; step = replaying.next()) if (step.done) return step.value
  }

  /** {@link replay}, a record a step. It has to be gone through to its end. */
  *replaying(afterLsn: number, visit: Visit, serial = 0, isPart?: Grouping): Generator<void, ReplayResult> {
    assert(this.#chain, 'a journal is replayed once')
    this.#serial = Math.max(this.#serial, serial)
    const reader = new SegmentReader()
    const { lastLsn, records, durableLsn, live, idle, end } = yield* survey(this.#chain, reader, afterLsn, {
      visit,
      isPart,
    })
    const result: ReplayResult = { lastLsn, records, discarded: 0 }
    this.#chain = undefined
    this.#headLsn = lastLsn
    this.#wantedLsn = this.#durableLsn = durableLsn
    this.#releasedLsn = afterLsn
    this.#live = live
    for (const segment of live) segment.dirty = segment.lastLsn > durableLsn
    if (end?.wasDurable || this.#unreadable.length > 0) result.damaged = this.#setAside(end, reader)
    else if (end) result.discarded = this.#cut(end)
    for (const segment of idle) this.#retire(segment)
    reader.close()
    return result
  }

  /**
   * Appends a record of `bytes` bytes, gathered from `parts`: in the page cache when this returns, durable after `sync`.
   * @param kind 1..255
   * @returns its LSN
   * @throws NO_SPACE: then nothing was appended
   */
  append(kind: number, parts: readonly Uint8Array[], bytes: number): number {
    assert(kind > KIND_MARK && kind < 256, 'a kind is 1 to 255')
    assert(bytes <= RECORD_BODY_BYTES_MAX, 'a record is at most 1 MiB')
    if (this.#failure) throw this.#failure
    const recordBytes = RECORD_HEADER_BYTES + bytes
    let segment = this.#active
    if (segment === undefined || segment.tail + recordBytes > segment.bytes) segment = this.#rotate(bytes)
    const lsn = this.#headLsn + 1
    if (recordBytes <= GATHER_BYTES) {
      const record = this.#gather
      let at = RECORD_HEADER_BYTES
      for (let i = 0; i < parts.length; i++) {
        record.set(parts[i], at)
        at += parts[i].length
      }
      assert(at === recordBytes, 'the parts are as long as was said')
      this.#putHeader(kind, lsn, bytes, lsn - 1 - this.#durableLsn)
      this.#gatherView.setUint32(0, crc32(record.subarray(4, recordBytes), segment.id), true)
      segment.file.writeSync(record.subarray(0, recordBytes), segment.tail)
    } else this.#appendLarge(segment, { kind, lsn, bytes }, parts)
    segment.tail += aligned(recordBytes)
    segment.lastLsn = lsn
    segment.dirty = true
    this.#headLsn = lsn
    return lsn
  }

  /**
   * The next records, `bytes` bytes in `count` of them, lie in one segment: so those that belong together can (see `Grouping`).
   * @throws NO_SPACE; TOO_LARGE: for a segment
   */
  reserve(bytes: number, count: number): void {
    const room = aligned(bytes) + count * aligned(RECORD_HEADER_BYTES + 1)
    if (SEGMENT_HEADER_BYTES + room > SEGMENT_BYTES_MAX) throw new FerryError('TOO_LARGE', { detail: `${bytes} bytes` })
    const segment = this.#active
    if (segment === undefined || segment.tail + room > segment.bytes) this.#rotate(room)
  }

  /**
   * Makes everything up to `uptoLsn` durable. Whoever asks while a sync runs shares the next one; costs nothing when it is
   * durable already. Give an LSN when the data that records name is only synced up to there: `durableLsn` will not claim more.
   */
  sync(uptoLsn: number = this.#headLsn): Promise<void> {
    if (uptoLsn <= this.#durableLsn) return DONE
    if (this.#failure) return Promise.reject(this.#failure)
    this.#wantedLsn = Math.max(this.#wantedLsn, Math.min(uptoLsn, this.#headLsn))
    return this.#group.request()
  }

  /** The same, blocking. */
  syncSync(uptoLsn: number = this.#headLsn): void {
    if (uptoLsn <= this.#durableLsn) return
    if (this.#failure) throw this.#failure
    try {
      // Those that an asynchronous sync is busy with are no longer marked as dirty, but not durable either.
      for (const segment of this.#live) if (segment.dirty || this.#group.running) segment.file.syncSync()
    } catch (error) {
      throw this.#fail(error)
    }
    for (const segment of this.#live) segment.dirty = false
    this.#becameDurable(Math.min(uptoLsn, this.#headLsn))
  }

  /** What the records up to `lsn` say is durable elsewhere, so they count as durable; segments with nothing else are recycled. */
  release(lsn: number): void {
    if (lsn <= this.#releasedLsn) return
    this.#releasedLsn = Math.min(lsn, this.#headLsn)
    this.#durableLsn = Math.max(this.#durableLsn, this.#releasedLsn)
    while (this.#live.length > 0 && this.#live[0] !== this.#active && this.#live[0].lastLsn <= this.#releasedLsn)
      this.#retire(this.#live.shift()!)
  }

  /** Syncs and closes. Closing twice is fine; a failed sync rejects, after everything is closed. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  // --- opening ---------------------------------------------------------------------------------------------------------

  #find() {
    const page = new Uint8Array(SEGMENT_HEADER_BYTES)
    const chain: Segment[] = []
    for (const name of this.#storage.list()) {
      const number = NAME.exec(name)?.[1]
      if (number === undefined) continue
      this.#nameNext = Math.max(this.#nameNext, Number(number) + 1)
      const file = this.#storage.open(name)
      file.readSync(page, 0)
      const header = decodeHeader(page, name)
      if (typeof header === 'string') {
        file.close()
        if (header === 'empty')
          this.#storage.remove(name) // its preparation was cut short
        else this.#unreadable.push(name)
        continue
      }
      this.#serial = Math.max(this.#serial, header.serial)
      const segment = { ...header, name, file, tail: SEGMENT_HEADER_BYTES, lastLsn: header.firstLsn - 1, dirty: false }
      if (header.firstLsn === 0) this.#retire(segment)
      else chain.push(segment)
    }
    this.#chain = chain.sort((a, b) => a.serial - b.serial)
  }

  /**
   * Nothing that was promised is behind the end. But records are there, of a history that did not happen, and a checkpoint of
   * the one that begins now would let a later replay go on with them: they are erased before anything else is written.
   */
  #cut({ segment, at, later, leftover }: End): number {
    const prefix = this.#live.includes(segment)
    const others = prefix ? later : [segment, ...later]
    if (leftover > 0) {
      this.#log(`${leftover} records after ${this.#headLsn} had not been synced and are gone`)
      if (prefix) this.#erase(segment, at)
      for (const one of others) this.#erase(one, 0)
    }
    for (const one of others) this.#retire(one)
    return leftover
  }

  /** Zeros from `at` to the end, durable when it returns. */
  #erase({ file, bytes }: Segment, at: number) {
    for (let from = at; from < bytes; from += ZEROS.length)
      file.writeSync(ZEROS.subarray(0, Math.min(ZEROS.length, bytes - from)), from)
    file.syncSync()
  }

  /** Keeps what is behind the end, and the segments that cannot be read, out of the journal's way. Repeatable if cut short. */
  #setAside(end: End | undefined, reader: SegmentReader): NonNullable<ReplayResult['damaged']> {
    const taken = new Set(this.#storage.list())
    const aside = (name: string) => {
      let number = 1
      while (taken.has(`${name}.damaged-${number}`)) number++
      taken.add(`${name}.damaged-${number}`)
      return `${name}.damaged-${number}`
    }
    const setAside: string[] = []
    const move = (name: string) => {
      this.#storage.rename(name, setAside[setAside.push(aside(name)) - 1])
    }
    const lsn = this.#headLsn + 1
    for (const name of this.#unreadable) move(name)
    if (end) {
      const { segment, at, later } = end
      const prefix = this.#live.includes(segment)
      if (prefix && end.lastLsnKnown >= lsn) {
        reader.load(segment.file, segment)
        setAside.push(aside(segment.name))
        this.#copy(reader.all(), setAside[setAside.length - 1])
      }
      for (const one of prefix ? later : [segment, ...later]) {
        one.file.close()
        move(one.name)
      }
      if (prefix) this.#erase(segment, at)
    }
    const where = end?.wasDurable ? { segment: end.segment.name, at: end.at } : { segment: this.#unreadable[0], at: 0 }
    const lost = end?.wasDurable ? end.lastLsnKnown + 1 - lsn : undefined
    this.#log(`${where.segment} is damaged at byte ${where.at}; kept: ${setAside.join(', ')}`)
    return { ...where, lsn, lost, setAside }
  }

  #copy(bytes: Uint8Array, name: string) {
    const copy = this.#storage.open(name, { bytes: bytes.length })
    try {
      copy.writeSync(bytes, 0)
      copy.syncSync()
    } finally {
      copy.close()
    }
  }

  // --- appending -------------------------------------------------------------------------------------------------------

  /** All of a record's header but the checksum, into the gather buffer. */
  #putHeader(kind: number, lsn: number, bytes: number, unsynced: number) {
    const view = this.#gatherView
    view.setUint16(4, RECORD_MAGIC, true)
    view.setUint16(6, kind, true)
    view.setUint32(8, bytes, true)
    view.setUint32(12, Math.min(unsynced, 0xffff_ffff), true)
    writeU64(view, 16, lsn)
  }

  /** The body is not copied: a crash between these writes leaves a torn tail, and the record was not acknowledged. */
  #appendLarge(
    segment: Segment,
    { kind, lsn, bytes }: { kind: number; lsn: number; bytes: number },
    parts: readonly Uint8Array[],
  ) {
    this.#putHeader(kind, lsn, bytes, lsn - 1 - this.#durableLsn)
    const header = this.#gather.subarray(0, RECORD_HEADER_BYTES)
    let crc = crc32(header.subarray(4), segment.id)
    let at = segment.tail + RECORD_HEADER_BYTES
    for (const part of parts) {
      crc = crc32(part, crc)
      segment.file.writeSync(part, at)
      at += part.length
    }
    assert(at === segment.tail + RECORD_HEADER_BYTES + bytes, 'the parts are as long as was said')
    this.#gatherView.setUint32(0, crc, true)
    segment.file.writeSync(header, segment.tail)
  }

  /** Begins another segment, with room for a record of `bytes` bytes. */
  #rotate(bytes: number): Segment {
    assert(!this.#chain, 'replay comes before append')
    assert(!this.#closing, 'the journal is open')
    const needed = SEGMENT_HEADER_BYTES + aligned(RECORD_HEADER_BYTES + bytes)
    const ready = this.#spares.findIndex(spare => spare.bytes >= needed)
    const segment = ready >= 0 ? this.#spares.splice(ready, 1)[0] : this.#create(needed)
    const { name, file } = segment
    const header = {
      id: freshId(),
      firstLsn: this.#headLsn + 1,
      serial: ++this.#serial,
      bytes: segment.bytes,
      closedLsn: 0,
    }
    try {
      file.writeSync(encodeHeader(header), 0)
    } catch (error) {
      this.#discard(segment)
      throw error
    }
    const active = { ...header, name, file, tail: SEGMENT_HEADER_BYTES, lastLsn: this.#headLsn, dirty: true }
    this.#live.push(active)
    this.#active = active
    this.#prepare()
    return active
  }

  #create(needed: number): Segment {
    const bytes = Math.max(Math.min(this.#createBytes, this.#segmentBytes), Math.ceil(needed / 4096) * 4096)
    const name = this.#newName()
    const file = this.#storage.open(name, { bytes, allocate: bytes <= ZEROED_AT_ONCE_BYTES })
    this.#createBytes *= 2
    return spareOf(name, file, bytes)
  }

  #newName() {
    return `journal-${String(this.#nameNext++).padStart(6, '0')}`
  }

  #retire(segment: Segment) {
    if (segment.bytes === this.#segmentBytes && this.#spares.length < this.#spareMax) this.#spares.push(segment)
    else this.#discard(segment)
  }

  #discard({ file, name }: Segment) {
    file.close()
    this.#storage.remove(name)
  }

  /** Sees to it, in the background, that there are spares. A disk that is full shows when a segment is needed, not here. */
  #prepare() {
    if (this.#preparing || this.#spares.length >= this.#spareMax || !this.#hasRoom()) return
    this.#preparing = this.#fillSpares()
      .catch(error => this.#log(`no spare segment: ${toFerryError(error).message}`))
      .finally(() => {
        this.#preparing = undefined
      })
  }

  async #fillSpares() {
    while (this.#spares.length < this.#spareMax && !this.#closing && this.#hasRoom()) {
      const name = this.#newName()
      const spare = spareOf(name, this.#storage.open(name), this.#segmentBytes)
      try {
        await this.#zero(spare)
        spare.file.writeSync(encodeHeader(spare), 0)
        await spare.file.sync()
      } catch (error) {
        this.#discard(spare)
        throw error
      }
      if (this.#closing) return spare.file.close()
      this.#spares.push(spare)
    }
  }

  #hasRoom() {
    return this.#storage.freeBytes() - this.#segmentBytes >= this.#freeBytesMin
  }

  async #zero({ file, bytes }: Segment) {
    for (let at = 0; at < bytes; at += ZEROS.length) {
      if (this.#closing) throw new FerryError('ABORTED')
      await file.write(ZEROS.subarray(0, Math.min(ZEROS.length, bytes - at)), at)
      // Little by little: whoever syncs a file meanwhile may have to wait for all zeros that are on their way.
      await file.sync()
    }
  }

  // --- durability ------------------------------------------------------------------------------------------------------

  async #syncNow() {
    if (this.#failure) throw this.#failure
    const wanted = this.#wantedLsn
    if (wanted <= this.#durableLsn) return
    const syncs: Promise<void>[] = []
    for (const segment of this.#live) {
      if (!segment.dirty) continue
      segment.dirty = false
      syncs.push(segment.file.sync())
    }
    try {
      if (syncs.length === 1) await syncs[0]
      else await Promise.all(syncs)
    } catch (error) {
      throw this.#fail(error)
    }
    this.#becameDurable(wanted)
  }

  #becameDurable(lsn: number) {
    if (lsn <= this.#durableLsn) return
    this.#durableLsn = lsn
    const segment = this.#active
    if (!segment || segment.tail + RECORD_HEADER_BYTES > segment.bytes) return
    this.#putHeader(KIND_MARK, lsn + 1, 0, 0)
    this.#gatherView.setUint32(0, crc32(this.#gather.subarray(4, RECORD_HEADER_BYTES), segment.id), true)
    try {
      segment.file.writeSync(this.#gather.subarray(0, RECORD_HEADER_BYTES), segment.tail)
    } catch {
      // A convenience of the next start; the next record says the same.
    }
  }

  #fail(error: unknown): FerryError {
    this.#failure ??= toFerryError(error, 'the journal could not be synced')
    return this.#failure
  }

  async #close() {
    const preparing = this.#preparing
    try {
      if (!this.#chain) await this.sync()
      await this.#group.idle()
      if (this.#active) this.#active.file.writeSync(encodeHeader({ ...this.#active, closedLsn: this.#headLsn + 1 }), 0)
    } finally {
      await preparing
      for (const { file } of [...(this.#chain ?? []), ...this.#live, ...this.#spares]) file.close()
    }
  }
}

const spareOf = (name: string, file: StorageFile, bytes: number): Segment => ({
  id: freshId(),
  firstLsn: 0,
  serial: 0,
  bytes,
  closedLsn: 0,
  name,
  file,
  tail: SEGMENT_HEADER_BYTES,
  lastLsn: 0,
  dirty: false,
})
