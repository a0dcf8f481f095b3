// What formats wish for, of real files and of garbage.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from '@jest/globals'
import fc from 'fast-check'
import type { Range } from '../../src/cache/formats/format.js'
import { formatOf, planOf } from '../../src/cache/formats/index.js'
import { mp4 } from '../../src/cache/formats/mp4.js'
import { sqlite } from '../../src/cache/formats/sqlite.js'
import { database, film, packets, pageTypes } from '../fixtures/media.js'
import { bytesOf, covers, follow, sourceOf } from '../fixtures/plans.js'
import { requires } from '../fixtures/requires.js'

const KiB = 1024
const MiB = 1024 * KiB

const directory = mkdtempSync(join(tmpdir(), 'pageferry-formats-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const at = (name: string) => join(directory, name)

/** The first box of a type in the file itself. */
function boxOf(bytes: Buffer, type: string): Range {
  for (let from = 0; from + 8 <= bytes.length; ) {
    const short = bytes.readUInt32BE(from)
    const to = from + (short === 1 ? Number(bytes.readBigUInt64BE(from + 8)) : short || bytes.length - from)
    if (bytes.toString('latin1', from + 4, from + 8) === type) return { from, to }
    from = to
  }
  throw new Error(`no ${type}`)
}

test('a format is told by its first bytes, and an old film by its name as well', () => {
  const first = (text: string) => Buffer.from(text.padEnd(64, '\0'), 'latin1')
  expect(formatOf(first('SQLite format 3\0'), 'x')).toBe(sqlite)
  expect(formatOf(first('\0\0\0\x20ftypisom'), 'x')).toBe(mp4)
  expect(formatOf(first('\0\0\0\x08wide\0\0\0\0mdat'), 'film.MOV')).toBe(mp4)
  expect(formatOf(first('\0\0\0\x08wide\0\0\0\0mdat'), 'film.bin')).toBeNull()
  expect(formatOf(first('#!/bin/sh'), 'film.mp4')).toBeNull()
  expect(formatOf(new Uint8Array(0), '')).toBeNull()
})

test('the end of a film is asked for beside its head, on its name alone, unless its reader begins elsewhere', () => {
  const size = 64 * MiB
  const first = (name: string, from: number) =>
    planOf({ name, size, head: { from, to: from + 4096 }, have: () => null }).next().value?.ranges
  const head = { from: 0, to: 64 }
  for (const name of ['film.mp4', 'a.b.MOV', 'tone.m4a', 'clip.m4v']) {
    expect(first(name, 0)).toEqual([head, { from: size - 64 * KiB, to: size }])
    expect(first(name, 20 * MiB)).toEqual([head])
  }
  for (const name of ['film.mkv', 'mp4', 'film.mp4.part', '']) expect(first(name, 0)).toEqual([head])
})

requires('ffmpeg').describe('a film', () => {
  test('with its index at the end: the index is found over the data, with little else', () => {
    const bytes = film(at('tail.mp4'), { seconds: 20 })
    const moov = boxOf(bytes, 'moov')
    expect(moov.from).toBeGreaterThan(boxOf(bytes, 'mdat').from)
    const { asked } = follow(mp4, sourceOf(bytes))
    expect(covers(asked[0], moov)).toBe(true)
    // The head, the tail, and the first two seconds.
    const first = packets(at('tail.mp4')).filter(({ timeS }) => timeS < 2)
    for (const { at, length } of first) expect(covers(asked[0], { from: at, to: at + length })).toBe(true)
    expect(bytesOf(asked[0])).toBeLessThan(bytes.length / 3)
  })

  test('with its index in front: the same', () => {
    const bytes = film(at('front.mp4'), { seconds: 20, args: ['-movflags', '+faststart'] })
    expect(boxOf(bytes, 'moov').from).toBeLessThan(boxOf(bytes, 'mdat').from)
    expect(covers(follow(mp4, sourceOf(bytes)).asked[0], boxOf(bytes, 'moov'))).toBe(true)
  })

  test('as MOV and as M4A', () => {
    const mov = film(at('film.mov'), { seconds: 5 })
    expect(covers(follow(mp4, sourceOf(mov), { name: 'film.mov' }).asked[0], boxOf(mov, 'moov'))).toBe(true)
    const m4a = film(at('tone.m4a'), { seconds: 60, args: ['-vn'] })
    const seek = packets(at('tone.m4a')).find(({ timeS }) => timeS > 40)!
    const { asked } = follow(mp4, sourceOf(m4a), { seeks: [{ from: seek.at, to: seek.at + 100 }] })
    expect(covers(asked[0], boxOf(m4a, 'moov'))).toBe(true)
    expect(covers(asked[1], { from: seek.at, to: seek.at + seek.length })).toBe(true)
  })

  // Sound after sound, picture after picture, 1 MiB each and more: as muxers write it that do not interleave.
  test.each([
    ['interleaved', []],
    ['in long turns', ['-chunk_duration', '4000000']],
  ])('%s: a seek asks for what all tracks have there, from a sync sample on', (name, args) => {
    const file = at(`${name}.mp4`)
    const bytes = film(file, { seconds: 24, args: args as string[] })
    const all = packets(file)
    for (const startS of [8, 14, 20]) {
      const key = all.find(({ isVideo, isKey, timeS }) => isVideo && isKey && timeS >= startS)!
      const sound = all.find(({ isVideo, timeS }) => !isVideo && timeS >= key.timeS)!
      for (const start of [key, sound]) {
        // As the kernel reads: from the start of a page.
        const from = Math.floor(start.at / 4096) * 4096
        const { asked } = follow(mp4, sourceOf(bytes), { seeks: [{ from, to: from + 128 * KiB }] })
        // A page before the sound that was meant there is half a second of it.
        const wanted = all.filter(({ timeS }) => timeS >= key.timeS + 0.05 && timeS < key.timeS + 1.5)
        const missing = wanted.filter(({ at, length }) => !covers(asked[1], { from: at, to: at + length }))
        expect(missing).toEqual([])
        expect(covers(asked[1], { from: key.at, to: key.at + key.length })).toBe(true)
        expect(bytesOf(asked[1])).toBeLessThan(2 * MiB)
      }
    }
  })

  test('in fragments: where its index says that the fragment ends', () => {
    const args = ['-movflags', 'frag_keyframe+empty_moov+default_base_moof+global_sidx']
    const bytes = film(at('fragments.mp4'), { seconds: 20, args })
    const sidx = boxOf(bytes, 'sidx')
    const from = Math.floor(bytes.length / 2)
    const { asked } = follow(mp4, sourceOf(bytes), { seeks: [{ from, to: from + 4096 }] })
    expect(covers(asked[0], sidx)).toBe(true)
    expect(covers(asked[0], boxOf(bytes, 'mfra'))).toBe(true)
    expect(asked[1]).toHaveLength(1)
    expect(asked[1][0].from).toBe(from)
    // A fragment begins where it ends.
    expect(bytes.toString('latin1', asked[1][0].to + 4, asked[1][0].to + 8)).toBe('moof')
  })

  test('cut off, or with bytes that were changed: no error, and no more than the bounds', () => {
    const bytes = film(at('whole.mp4'), { seconds: 3 })
    const moov = boxOf(bytes, 'moov')
    const change = fc.record({
      at: fc.oneof(fc.nat(64), fc.integer({ min: moov.from, max: moov.to - 1 })),
      byte: fc.oneof(fc.constant(0xff), fc.constant(0), fc.nat(255)),
    })
    fc.assert(
      fc.property(
        fc.array(change, { maxLength: 20 }),
        fc.nat(bytes.length),
        fc.nat(bytes.length),
        (changes, cut, seek) => {
          const broken = Buffer.from(bytes.subarray(0, changes.length % 3 === 0 ? cut : bytes.length))
          for (const { at, byte } of changes) if (at < broken.length) broken[at] = byte
          sane(mp4, broken, [{ from: seek, to: seek + 4096 }])
        },
      ),
      { numRuns: 200 },
    )
  })
})

requires('sqlite3').describe('a database', () => {
  const many = (rows: number) => `insert into t select value, hex(randomblob(20)), zeroblob(200)
    from (with recursive n(value) as (select 1 union all select value + 1 from n where value < ${rows}) select value from n)`

  test.each([512, 4096, 65_536])('with pages of %i bytes: all inner pages, and one leaf of each tree', pageBytes => {
    const file = at(`${pageBytes}.db`)
    const sql = `pragma page_size = ${pageBytes}; create table t(a integer primary key, b, c); create index i on t(b);
      create table small(x); ${many(pageBytes === 512 ? 2000 : 20_000)}`
    const bytes = database(file, sql)
    const { asked, ended } = follow(sqlite, sourceOf(bytes))
    const types = pageTypes(file)
    const got = [...types].filter(([page]) => covers(asked[0], { from: (page - 1) * pageBytes, to: page * pageBytes }))
    const inner = [...types].filter(([, type]) => type === 'internal')
    expect(inner.length).toBeGreaterThan(1)
    expect(got.filter(([, type]) => type === 'internal')).toHaveLength(inner.length)
    // The schema, the small table, one leaf of each tree, and what lies between pages that are near each other.
    expect(bytesOf(asked[0])).toBeLessThan(inner.length * pageBytes * 8 + 16 * pageBytes)
    expect(ended).toBe(true)
  })

  test('with a schema of many pages, and statements longer than one: all of it', () => {
    const columns = Array.from({ length: 900 }, (_, n) => `column_with_a_name_${n}`).join(', ')
    const tables = Array.from({ length: 200 }, (_, n) => `create table t${n}(a, b, c);`).join('')
    const file = at('schema.db')
    const bytes = database(file, `begin; ${tables} create table wide(${columns}); commit`)
    const { asked } = follow(sqlite, sourceOf(bytes))
    const missing = [...pageTypes(file).keys()].filter(
      page => !covers(asked[0], { from: (page - 1) * 4096, to: page * 4096 }),
    )
    expect(missing).toEqual([])
  })

  test('cut off, or with bytes that were changed: no error, and no more than the bounds', () => {
    const bytes = database(
      at('whole.db'),
      `create table t(a integer primary key, b, c); create index i on t(b); ${many(1000)}`,
    )
    const change = fc.record({
      at: fc.oneof(fc.nat(120), fc.nat(8192), fc.nat(bytes.length - 1)),
      byte: fc.oneof(fc.constant(0xff), fc.constant(5), fc.nat(255)),
    })
    fc.assert(
      fc.property(fc.array(change, { maxLength: 30 }), fc.nat(bytes.length), (changes, cut) => {
        const broken = Buffer.from(bytes.subarray(0, changes.length % 3 === 0 ? cut : bytes.length))
        for (const { at, byte } of changes) if (at < broken.length) broken[at] = byte
        sane(sqlite, broken)
      }),
      { numRuns: 200 },
    )
  })
})

/** It ends, asks for bytes of the file only, within the bounds, and twice for the same. */
function sane(format: typeof mp4, bytes: Uint8Array, seeks: Range[] = []) {
  const once = follow(format, sourceOf(bytes), { seeks, name: 'film.mov' })
  for (const { from, to } of once.asked.flat()) {
    expect(from).toBeGreaterThanOrEqual(0)
    expect(to).toBeGreaterThan(from)
    expect(to).toBeLessThanOrEqual(bytes.length)
  }
  expect(bytesOf(once.asked.flat())).toBeLessThanOrEqual(MiB + 3 * bytes.length + 2 * 8 * 4 * MiB)
  expect(once.looks).toBeLessThan(20_000)
  expect(follow(format, sourceOf(bytes), { seeks, name: 'film.mov' })).toEqual(once)
}

test('bytes of nothing at all: no error', () => {
  const noise = fc.uint8Array({ maxLength: 4096 })
  fc.assert(fc.property(noise, bytes => sane(mp4, bytes)))
  fc.assert(
    fc.property(noise, bytes => {
      const page = new Uint8Array(Math.max(1024, bytes.length))
      page.set(bytes)
      page.set(Buffer.from('SQLite format 3\0\x02\0'))
      page[20] = 0
      sane(sqlite, page)
    }),
  )
})

test('a table that says it has 2^32 entries, and boxes without end, cost no memory', () => {
  const box = (type: string, ...content: (number[] | Buffer)[]): Buffer => {
    const body = Buffer.concat(content.map(each => Buffer.from(each)))
    const head = Buffer.alloc(8)
    head.writeUInt32BE(8 + body.length)
    head.write(type, 4, 'latin1')
    return Buffer.concat([head, body])
  }
  const u32 = (...values: number[]) => {
    const bytes = Buffer.alloc(4 * values.length)
    for (const [n, value] of values.entries()) bytes.writeUInt32BE(value, 4 * n)
    return bytes
  }
  const most = 0xffff_ffff
  const stbl = box(
    'stbl',
    box('stts', u32(0, most, most, most)),
    box('stsc', u32(0, most, 1, most, 1)),
    box('stsz', u32(0, 0, most, most)),
    box('stco', u32(0, most, most)),
    box('stss', u32(0, most)),
  )
  const mdhd = box('mdhd', u32(0, 0, 0, 1, 0, 0))
  const hdlr = box('hdlr', u32(0, 0), Buffer.from('vide'), u32(0, 0, 0))
  const trak = box('trak', box('mdia', mdhd, hdlr, box('minf', stbl)))
  const hostile = Buffer.concat([box('ftyp', u32(0)), box('moov', trak, trak)])
  sane(mp4, hostile, [{ from: 4, to: 5 }])
  const endless = Buffer.concat(Array.from({ length: 100_000 }, () => box('free')))
  const { looks } = follow(mp4, sourceOf(endless))
  expect(looks).toBeLessThan(4096)
})
