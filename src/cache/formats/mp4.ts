// MP4, MOV, M4A: the index (`moov`) at whichever end it is, then, wherever a player begins to read, what all tracks have there.
// ISO/IEC 14496-12. Of a file in fragments the parts that say where these are (`sidx`, `mfra`); without a `sidx` it is read in sequence.
import { PAGE_BYTES } from '../../chunk/geometry.js'
import { type FileView, type Format, merged, need, type Part, type Plan, type Range } from './format.js'

/** An index larger than this is left to its readers. */
const MOOV_BYTES_MAX = 64 * 1024 * 1024
/** Asked for beyond `mdat`: most often the index is all that is left, and one request brings it. */
const TAIL_BYTES = 1024 * 1024
/**
 * Asked for beside the head, on the name alone: the index of two minutes (about 500 bytes a second), as cameras write it. At 50
 * Mbit/s that takes 10 ms, less than the round trip that it saves; where the index is longer, or in front, no more is lost.
 */
const GUESSED_TAIL_BYTES = 64 * 1024
/** Boxes looked at, in all; tracks; entries of one table. */
const BOXES_MAX = 1024
const TRACKS_MAX = 8
const ENTRIES_MAX = 4 * 1024 * 1024
/** What is asked for from a play head on, and at most of one track. */
const SPAN_S = 2
const SPAN_BYTES_MAX = 4 * 1024 * 1024
/** A sync sample that comes so soon is meant by whoever reads just before it: reads begin at pages, not at samples. */
const SYNC_SLACK_S = 0.5
/** `mfra`, at the end of a file in fragments. */
const MFRA_BYTES_MAX = 1024 * 1024

/** Files of before there was `ftyp`, or with something in front of it, are believed if their name says the same. */
const FIRST_BOXES = ['moov', 'mdat', 'wide', 'free', 'skip', 'pnot']
const NAMES = /\.(mp4|m4a|m4v|mov|qt|3gp)$/i

export const mp4: Format = {
  name: 'mp4',
  recognises(first, name) {
    const type = Buffer.from(first.subarray(4, 8)).toString('latin1')
    return type === 'ftyp' || (FIRST_BOXES.includes(type) && NAMES.test(name))
  },
  plan,
  tail: { names: NAMES, bytes: GUESSED_TAIL_BYTES },
}

function* plan(file: FileView): Plan {
  const boxes = new Boxes(file)
  const moov = yield* boxes.find(['moov', 'moof'], 0)
  if (moov?.type !== 'moov' || moov.to - moov.from > MOOV_BYTES_MAX) return
  yield { ranges: [{ from: moov.from, to: moov.to }], until: 'here' }
  const tracks = yield* tracksOf(boxes, moov)
  if (tracks.length === 0) yield* fragments(boxes, moov)
  else for (;;) yield { ranges: yield* around(tracks, file.head), until: 'seek' }
}

// --- boxes

interface Box {
  type: string
  /** Where its content is, and where it ends. */
  from: number
  to: number
}

class Boxes {
  #left = BOXES_MAX

  constructor(readonly file: FileView) {}

  /** The first box of one of these types in the file itself, from `at` on; the others are jumped over. */
  *find(types: string[], at: number): Part<Box | null> {
    for (;;) {
      const box = yield* this.#at(at, this.file.size)
      if (!box || types.includes(box.type)) return box
      at = box.to
      if (box.type === 'mdat' && at < this.file.size)
        yield { ranges: [{ from: at, to: Math.min(this.file.size, at + TAIL_BYTES) }], until: 'here' }
    }
  }

  *in(outer: Range): Part<Box[]> {
    const found: Box[] = []
    for (let at = outer.from; ; ) {
      const box = yield* this.#at(at, outer.to)
      if (!box) return found
      found.push(box)
      at = box.to
    }
  }

  /** The box at the end of a path of types. */
  *within(outer: Range, ...types: string[]): Part<Box | null> {
    let box: Range & { type: string } = { type: '', ...outer }
    for (const type of types) {
      const inside = (yield* this.in(box)).find(each => each.type === type)
      if (!inside) return null
      box = inside
    }
    return box
  }

  /** null: there is none that ends where it may. */
  *#at(at: number, end: number): Part<Box | null> {
    if (at + 8 > end || this.#left-- <= 0) return null
    const header = yield* need(this.file, at, Math.min(16, end - at))
    const type = String.fromCharCode(...[4, 5, 6, 7].map(n => header.getUint8(n)))
    const short = header.getUint32(0)
    const isLong = short === 1 && header.byteLength === 16
    const bytes = isLong ? header.getUint32(8) * 2 ** 32 + header.getUint32(12) : short === 0 ? end - at : short
    const from = at + (isLong ? 16 : 8)
    return at + bytes < from || at + bytes > end ? null : { type, from, to: at + bytes }
  }
}

// --- the tables of a track

/** Entries of one size, one after the other in the file. */
interface Table {
  at: number
  count: number
  entryBytes: number
}

/** A run: so many units in a row with so much each. Samples with time or bytes, chunks with samples. */
interface Run {
  count(entries: DataView, at: number, isLast: boolean): number
  each(entries: DataView, at: number): number
}

/** Where in a table something is: what comes before the run, and the run. */
interface Place {
  units: number
  sum: number
  count: number
  each: number
}

/** Sums over a table of runs, which is read once from end to end; then any place in it is found with one more look. */
class Runs {
  /** The units, and their sum, before each so many entries. */
  static readonly #STEP = 128
  readonly #unitsAt: number[] = []
  readonly #sumsAt: number[] = []

  constructor(
    readonly file: FileView,
    readonly table: Table,
    /** What the entry at `at` means; `isLast`: no other comes after it. */
    readonly run: Run,
  ) {}

  *scan(): Part<this> {
    const { run, table } = this
    let units = 0
    let sum = 0
    for (let first = 0; first < table.count; first += Runs.#STEP) {
      this.#unitsAt.push(units)
      this.#sumsAt.push(sum)
      const entries = yield* this.#entries(first)
      for (let n = first; n < Math.min(first + Runs.#STEP, table.count); n++) {
        const at = (n - first) * table.entryBytes
        const count = run.count(entries, at, n === table.count - 1)
        units += count
        sum += count * run.each(entries, at)
      }
    }
    return this
  }

  /** The sum of all units before this one; of all of them, if it is beyond. */
  *sumBefore(unit: number): Part<number> {
    const place = yield* this.#find(this.#unitsAt, unit, place => place.units + place.count)
    return place.sum + Math.max(0, Math.min(unit - place.units, place.count)) * place.each
  }

  /** The unit before which the sum is at most this; where each has some, the last such one. */
  *unitAt(sum: number): Part<number> {
    const {
      units,
      sum: before,
      count,
      each,
    } = yield* this.#find(this.#sumsAt, sum, place => place.sum + place.count * place.each)
    return units + (each > 0 ? Math.max(0, Math.min(Math.floor((sum - before) / each), count)) : 0)
  }

  /** The run in which `target` is; the last one if it is beyond. */
  *#find(marks: number[], target: number, endOf: (place: Place) => number): Part<Place> {
    const { run, table } = this
    const step = lastAtMost(marks, target)
    const place: Place = { units: this.#unitsAt[step] ?? 0, sum: this.#sumsAt[step] ?? 0, count: 0, each: 0 }
    const first = step * Runs.#STEP
    if (first >= table.count) return place
    const entries = yield* this.#entries(first)
    for (let n = first; n < Math.min(first + Runs.#STEP, table.count); n++) {
      const at = (n - first) * table.entryBytes
      place.units += place.count
      place.sum += place.count * place.each
      place.count = run.count(entries, at, n === table.count - 1)
      place.each = run.each(entries, at)
      if (endOf(place) > target) break
    }
    return place
  }

  /** A step of them, and one more, by which an entry may tell its own length. */
  *#entries(first: number): Part<DataView> {
    const { at, count, entryBytes } = this.table
    return yield* need(this.file, at + first * entryBytes, Math.min(Runs.#STEP + 1, count - first) * entryBytes)
  }
}

/** Index of the last number, of ascending ones, that is at most `target`; 0 if none is. */
function lastAtMost(numbers: number[], target: number): number {
  let low = 0
  let high = numbers.length
  while (high - low > 1) {
    const middle = (low + high) >>> 1
    if (numbers[middle] <= target) low = middle
    else high = middle
  }
  return low
}

/** Where the samples of a track are, in bytes and in time. */
interface Track {
  file: FileView
  timescale: number
  /** Samples -> time. */
  times: Runs
  /** Chunks -> samples. */
  chunks: Runs
  /** Samples -> bytes. */
  sizes: Runs
  /** Of each chunk, as 32 or 64 bits. */
  offsets: Table
  /** Numbers of samples that can be decoded without others; null: all can. */
  syncs: Table | null
}

function* tracksOf(boxes: Boxes, moov: Box): Part<Track[]> {
  const tracks: Track[] = []
  for (const trak of yield* boxes.in(moov)) {
    if (trak.type !== 'trak' || tracks.length === TRACKS_MAX) continue
    const track = yield* trackOf(boxes, trak)
    if (track) tracks.push(track)
  }
  return tracks
}

/** Of video or sound, with all the tables that it takes; else null. */
function* trackOf(boxes: Boxes, trak: Box): Part<Track | null> {
  const { file } = boxes
  const mdia = yield* boxes.within(trak, 'mdia')
  if (!mdia) return null
  const parts = new Map((yield* boxes.in(mdia)).map(box => [box.type, box]))
  const [mdhd, hdlr, minf] = ['mdhd', 'hdlr', 'minf'].map(type => parts.get(type))
  const stbl = minf && (yield* boxes.within(minf, 'stbl'))
  if (!mdhd || !hdlr || !stbl) return null
  const handler = yield* need(file, hdlr.from, Math.min(12, hdlr.to - hdlr.from))
  const kind = handler.byteLength === 12 ? handler.getUint32(8) : 0
  if (kind !== VIDEO && kind !== SOUND) return null
  const head = yield* need(file, mdhd.from, Math.min(24, mdhd.to - mdhd.from))
  const at = head.byteLength === 24 && head.getUint8(0) === 1 ? 20 : 12
  const timescale = head.byteLength >= at + 4 ? head.getUint32(at) : 0
  const found = new Map((yield* boxes.in(stbl)).map(box => [box.type, box]))
  const tables = new Map<string, Table>()
  for (const [type, entryBytes] of ENTRY_BYTES) {
    const box = found.get(type)
    if (box) tables.set(type, yield* tableIn(file, box, entryBytes))
  }
  const offsets = tables.get('co64') ?? tables.get('stco')
  const sizes = yield* sizesIn(file, found.get('stsz') ?? found.get('stz2'))
  const [stts, stsc] = [tables.get('stts'), tables.get('stsc')]
  if (timescale === 0 || !offsets?.count || !stts?.count || !stsc?.count || !sizes) return null
  const times = new Runs(file, stts, {
    count: (entries, at) => entries.getUint32(at),
    each: (entries, at) => entries.getUint32(at + 4),
  })
  const chunks = new Runs(file, stsc, {
    count(entries, at, isLast) {
      const next = isLast ? offsets.count + 1 : entries.getUint32(at + 12)
      return Math.max(0, next - entries.getUint32(at))
    },
    each: (entries, at) => entries.getUint32(at + 4),
  })
  return {
    file,
    timescale,
    times: yield* times.scan(),
    chunks: yield* chunks.scan(),
    sizes: yield* sizes.scan(),
    offsets,
    syncs: tables.get('stss') ?? null,
  }
}

const VIDEO = 0x76696465
const SOUND = 0x736f756e
const ENTRY_BYTES = [
  ['stts', 8],
  ['stsc', 12],
  ['stco', 4],
  ['co64', 8],
  ['stss', 4],
] as const

/** Version and flags, the number of entries, the entries; never more of them than there is room for. */
function* tableIn(file: FileView, box: Box, entryBytes: number): Part<Table> {
  const header = yield* need(file, box.from, Math.min(8, box.to - box.from))
  const said = header.byteLength === 8 ? header.getUint32(4) : 0
  return bounded(said, { at: box.from + 8, entryBytes }, box)
}

const bounded = (said: number, { at, entryBytes }: { at: number; entryBytes: number }, box: Box): Table => ({
  at,
  entryBytes,
  count: Math.max(0, Math.min(said, ENTRIES_MAX, Math.floor((box.to - at) / entryBytes))),
})

function* sizesIn(file: FileView, box: Box | undefined): Part<Runs | null> {
  if (!box || box.to - box.from < 12) return null
  const header = yield* need(file, box.from, 12)
  const at = box.from + 12
  const count = header.getUint32(8)
  if (box.type === 'stsz') {
    const each = header.getUint32(4)
    // All of one size: that is a single run, for which the header itself stands.
    if (each > 0)
      return new Runs(file, { at: box.from, count: 1, entryBytes: 12 }, { count: () => count, each: () => each })
    return new Runs(file, bounded(count, { at, entryBytes: 4 }, box), {
      count: one,
      each: (sizes, at) => sizes.getUint32(at),
    })
  }
  const bits = header.getUint8(7)
  if (bits === 16)
    return new Runs(file, bounded(count, { at, entryBytes: 2 }, box), {
      count: one,
      each: (sizes, at) => sizes.getUint16(at),
    })
  if (bits === 8)
    return new Runs(file, bounded(count, { at, entryBytes: 1 }, box), {
      count: one,
      each: (sizes, at) => sizes.getUint8(at),
    })
  return null
}

const one = () => 1

function* entryOf(file: FileView, { at, entryBytes }: Table, index: number): Part<number> {
  const entry = yield* need(file, at + index * entryBytes, entryBytes)
  return entryBytes === 8 ? entry.getUint32(0) * 2 ** 32 + entry.getUint32(4) : entry.getUint32(0)
}

/** Index of the last entry that is at most `target`, or -1. */
function* lastEntryAtMost(file: FileView, table: Table, target: number): Part<number> {
  let low = -1
  let high = table.count
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if ((yield* entryOf(file, table, middle)) <= target) low = middle
    else high = middle
  }
  return low
}

// --- what is next

/** Of every track what it has from the play head on: where the head is, from there, and of the others from a sync sample on. */
function* around(tracks: Track[], head: Range): Part<Range[]> {
  const own = yield* playedAt(tracks, head)
  const startS = own ? (yield* own.track.times.sumBefore(own.sample)) / own.track.timescale : 0
  const ranges: Range[] = []
  for (const track of tracks) {
    const first = track === own?.track ? own.sample : yield* syncBefore(track, startS)
    const last = yield* track.times.unitAt((startS + SPAN_S) * track.timescale)
    const from = Math.max(0, yield* offsetOf(track, first))
    const to = Math.min(yield* offsetOf(track, last + 1), from + SPAN_BYTES_MAX, track.file.size)
    if (from < to) ranges.push({ from, to })
  }
  const ascending = merged(ranges)
  const ahead = ascending.filter(({ to }) => to > head.from)
  return [...ahead, ...ascending.filter(range => !ahead.includes(range))]
}

interface Played {
  track: Track
  sample: number
  at: number
}

/** The first sample that begins at or after the head. But a read begins at a page: a sync sample in it is what the reader is after. */
function* playedAt(tracks: Track[], head: Range): Part<Played | null> {
  let first: Played | null = null
  for (const track of tracks) {
    const next = yield* nextSample(track, head.from)
    if (!next) continue
    const sync = yield* syncFrom(track, next.sample)
    const at = sync === null ? Number.POSITIVE_INFINITY : yield* offsetOf(track, sync)
    if (sync !== null && at >= next.at && at < head.from + PAGE_BYTES) return { track, sample: sync, at }
    if (!first || next.at < first.at) first = { track, ...next }
  }
  return first
}

/** The first sample that begins at or after this byte, in the chunk that is there or the one after it. */
function* nextSample(track: Track, at: number): Part<{ sample: number; at: number } | null> {
  const { file, chunks, sizes, offsets } = track
  const chunk = yield* lastEntryAtMost(file, offsets, at)
  if (chunk >= 0) {
    const start = yield* entryOf(file, offsets, chunk)
    const bytesBefore = yield* sizes.sumBefore(yield* chunks.sumBefore(chunk))
    const end = yield* chunks.sumBefore(chunk + 1)
    let sample = yield* sizes.unitAt(bytesBefore + at - start)
    if ((yield* sizes.sumBefore(sample)) < bytesBefore + at - start) sample++
    if (sample < end) return { sample, at: start + (yield* sizes.sumBefore(sample)) - bytesBefore }
  }
  if (chunk + 1 >= offsets.count) return null
  return { sample: yield* chunks.sumBefore(chunk + 1), at: yield* entryOf(file, offsets, chunk + 1) }
}

/** From where a track can be decoded to show what is at this time. */
function* syncBefore({ file, times, timescale, syncs }: Track, timeS: number): Part<number> {
  if (!syncs) return yield* times.unitAt(timeS * timescale)
  const latest = yield* times.unitAt((timeS + SYNC_SLACK_S) * timescale)
  // Samples are counted from 1 there.
  const index = yield* lastEntryAtMost(file, syncs, latest + 1)
  return index < 0 ? 0 : (yield* entryOf(file, syncs, index)) - 1
}

/** The first sync sample that is this one or comes after it; null where it makes no difference. */
function* syncFrom({ file, syncs }: Track, sample: number): Part<number | null> {
  if (!syncs) return null
  const index = (yield* lastEntryAtMost(file, syncs, sample)) + 1
  return index < syncs.count ? (yield* entryOf(file, syncs, index)) - 1 : null
}

/** Where a sample begins; where the last one ends, if it is beyond. */
function* offsetOf({ file, chunks, sizes, offsets }: Track, sample: number): Part<number> {
  const chunk = Math.min(yield* chunks.unitAt(sample), offsets.count - 1)
  const bytesBefore = yield* sizes.sumBefore(yield* chunks.sumBefore(chunk))
  return (yield* entryOf(file, offsets, chunk)) + (yield* sizes.sumBefore(sample)) - bytesBefore
}

// --- fragments

function* fragments(boxes: Boxes, moov: Box): Part<void> {
  const { file } = boxes
  const end = yield* need(file, file.size - 16, 16)
  const mfraBytes = end.getUint32(12)
  if (end.getUint32(4) === MFRO && mfraBytes <= Math.min(MFRA_BYTES_MAX, file.size))
    yield { ranges: [{ from: file.size - mfraBytes, to: file.size }], until: 'here' }
  const sidx = yield* boxes.find(['sidx', 'moof'], moov.to)
  const segments = sidx?.type === 'sidx' && (yield* segmentsOf(file, sidx))
  while (segments) {
    const place = Math.max(0, file.head.from - segments.at)
    const segment = yield* segments.sizes.unitAt(place)
    const to = segments.at + (yield* segments.sizes.sumBefore(segment + 1))
    const from = segments.at + place
    yield { ranges: from < to ? [{ from, to: Math.min(to, from + SPAN_BYTES_MAX, file.size) }] : [], until: 'seek' }
  }
}

const MFRO = 0x6d66726f

/** Segments and their sizes, from the end of the index on. */
function* segmentsOf(file: FileView, sidx: Box): Part<{ at: number; sizes: Runs } | null> {
  const headerBytes = 32
  if (sidx.to - sidx.from < headerBytes) return null
  const header = yield* need(file, sidx.from, headerBytes)
  const isLong = header.getUint8(0) > 0
  const offset = isLong ? header.getUint32(20) * 2 ** 32 + header.getUint32(24) : header.getUint32(16)
  const counted = isLong ? 30 : 22
  const table = bounded(header.getUint16(counted), { at: sidx.from + counted + 2, entryBytes: 12 }, sidx)
  if (table.count === 0) return null
  const sizes = new Runs(file, table, { count: one, each: (entries, at) => entries.getUint32(at) & 0x7fff_ffff })
  return { at: sidx.to + offset, sizes: yield* sizes.scan() }
}
