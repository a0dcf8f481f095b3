// What it is worth that the pull knows formats: the same reads of the same bytes, recognised and not, over a remote that is 20 ms away.
import fs from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals'
import type { Storage } from '../../src/cache/storage.js'
import type { TreeCache } from '../../src/cache/tree-cache.js'
import { diskStorage } from '../../src/linux/storage.js'
import { latency } from '../../src/remote/latency.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Tree } from '../../src/remote/tree.js'
import { wrap } from '../../src/remote/wrap.js'
import { database, film, type Packet, packets, pageTypes } from '../fixtures/media.js'
import { requires } from '../fixtures/requires.js'
import { openEngine, temporaryDirectory } from './engine-harness.js'

const KiB = 1024
const MiB = 1024 * KiB
const RTT_MS = 20
/** What the kernel reads ahead at first. */
const READ_BYTES = 128 * KiB

const made = temporaryDirectory()
afterAll(() => fs.rmSync(made, { recursive: true, force: true }))

const opened: { cache: TreeCache; directory: string }[] = []
afterEach(async () => {
  for (const { cache, directory } of opened.splice(0)) {
    await cache.close()
    fs.rmSync(directory, { recursive: true, force: true })
  }
})

interface Far {
  cache: TreeCache
  ino: number
  size: number
  requests: { at: number; length: number }[]
  read(at: number, length: number): Promise<void>
  /** Round trips that reads waited for, one after the other: more than there were, on a machine that is busy. */
  waited(): number
  /** Resolves when all that was asked for is here. */
  quiet(): Promise<void>
}

async function far(
  bytes: Buffer,
  changes: Parameters<typeof openEngine>[2] = {},
  { directory = temporaryDirectory(), name = 'file' } = {},
): Promise<Far> {
  const tree = memTree()
  await tree.make(name, { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 1n, rdev: 0 })
  await tree.write(name, 0, bytes)
  const requests: Far['requests'] = []
  let running = 0
  let waitedMs = 0
  const remote = wrap(latency(tree as Tree, { rttMs: RTT_MS }), async (call, next) => {
    if (call.method !== 'read') return next()
    const { at, length } = call.args[1] as { at: number; length: number }
    requests.push({ at, length })
    running++
    try {
      return await next()
    } finally {
      running--
    }
  })
  const cache = await openEngine(remote, directory, { pullWorkers: 16, ...changes })
  opened.push({ cache, directory })
  const { ino } = (await cache.lookup(1, name))!
  cache.opened(ino, false)
  return {
    cache,
    ino,
    size: bytes.length,
    requests,
    async read(at, length) {
      const into = Buffer.alloc(Math.min(length, bytes.length - at))
      const started = performance.now()
      expect(await cache.read(ino, at, into)).toBe(into.length)
      waitedMs += performance.now() - started
      expect(into.equals(bytes.subarray(at, at + into.length))).toBe(true)
    },
    waited: () => Math.round((waitedMs / RTT_MS) * 10) / 10,
    async quiet() {
      for (let idle = 0; idle < 5; ) {
        await new Promise(resolve => setTimeout(resolve, 10))
        idle = running === 0 ? idle + 1 : 0
      }
    },
  }
}

const fetchedBytes = ({ requests }: Far) => requests.reduce((sum, { length }) => sum + length, 0)
const misses = ({ cache }: Far) => cache.status().reads.misses

/** The same bytes, as nobody recognises them. */
function unknown(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes)
  copy.write('free', 4, 'latin1')
  return copy
}

const moovOf = (bytes: Buffer) => bytes.lastIndexOf(Buffer.from('moov')) - 4

/** As a player reads: the head, the index at the tail, then from the start; then from five other places. */
async function play(file: Far, moov: number, all: Packet[], seeksS: number[]) {
  await file.read(0, READ_BYTES)
  for (let at = Math.floor(moov / 4096) * 4096; at < file.size; at += READ_BYTES) await file.read(at, READ_BYTES)
  const seconds = async (fromS: number) => {
    // Sound and picture in the order of time, as they are decoded: each from its own place where they are apart.
    const due = all.filter(({ timeS }) => timeS >= fromS && timeS < fromS + 1).sort((a, b) => a.timeS - b.timeS)
    const seen = new Set<number>()
    for (const { at, length } of due)
      for (let page = Math.floor(at / READ_BYTES); page * READ_BYTES < at + length; page++)
        if (!seen.has(page)) {
          seen.add(page)
          await file.read(page * READ_BYTES, READ_BYTES)
        }
  }
  await seconds(0)
  const start = { misses: misses(file), roundTrips: file.waited() }
  for (const seekS of seeksS) {
    // Whoever watches does not seek again at once.
    await file.quiet()
    await seconds(seekS)
  }
  const seeks = {
    misses: misses(file) - start.misses,
    roundTrips: Math.round(10 * (file.waited() - start.roundTrips)) / 10,
  }
  return { start, seeks, requests: file.requests.length, MiB: Math.round(fetchedBytes(file) / MiB) }
}

/** A disk that always has to be waited for, as those without RWF_NOWAIT; `reads`: how often it was. */
function waiting(directory: string): { storage: Storage; reads: () => number } {
  const disk = diskStorage(directory)
  const opens = disk.open.bind(disk)
  let reads = 0
  const open: Storage['open'] = (name, options) => {
    const file = opens(name, options)
    const read = file.read.bind(file)
    return Object.assign(file, {
      readNow: () => -1,
      read: (into: Uint8Array, at: number) => {
        reads++
        return read(into, at)
      },
    })
  }
  return { storage: Object.assign(disk, { open }), reads: () => reads }
}

test('on a disk that has nothing at once, each look is read once, and what the format wishes is here', async () => {
  // The schema's tree: its root leads to page 200, and that one to page 400, a leaf.
  const bytes = Buffer.alloc(512 * 4096)
  bytes.write('SQLite format 3\0', 'latin1')
  bytes.writeUInt16BE(4096, 16)
  for (const [at, child] of [
    [100, 200],
    [199 * 4096, 400],
  ]) {
    bytes[at] = 0x05
    bytes.writeUInt32BE(child, at + 8)
  }
  bytes[399 * 4096] = 0x0d
  const directory = temporaryDirectory()
  const { storage, reads } = waiting(directory)
  const file = await far(bytes, { storage }, { directory })
  await file.read(0, 4096)
  await file.quiet()
  const leaf = 399 * 4096
  expect(file.requests.some(({ at, length }) => at <= leaf && at + length > leaf)).toBe(true)
  expect(reads()).toBeLessThan(20)
})

requires('ffmpeg').describe('a film of 64 MiB with its index at the end', () => {
  const path = join(made, 'film.mp4')
  let bytes: Buffer
  let moov: number
  beforeAll(() => {
    bytes = film(path, { seconds: 32, noisy: true })
    moov = moovOf(bytes)
  })

  test('its first bytes are read: its index is here without anybody having read it', async () => {
    expect(bytes.length).toBeGreaterThan(60 * MiB)
    const file = await far(bytes)
    await file.read(0, 4096)
    await file.quiet()
    const before = misses(file)
    await file.read(moov, bytes.length - moov)
    expect(misses(file)).toBe(before)
    // The head, where the index is, the index, and what is played first.
    expect(fetchedBytes(file)).toBeLessThan(bytes.length * 0.1)
    console.info(`index at the end: ${file.requests.length} requests, ${fetchedBytes(file)} bytes of ${bytes.length}`)
  })

  const asksFor = ({ requests }: Far, from: number) =>
    requests.some(({ at, length }) => at <= from && at + length > from)
  const named = { name: 'film.mp4' }

  test('its first bytes are read, and its name says what it is: its index is on its way before they are here', async () => {
    const file = await far(bytes, {}, named)
    expect(file.requests).toEqual([])
    await file.read(0, 4096)
    expect(file.requests.map(({ at }) => at > bytes.length / 2)).toEqual([false, true])
    expect(asksFor(file, moov)).toBe(true)
    const before = file.waited()
    await file.read(moov, bytes.length - moov)
    expect(file.waited() - before).toBeLessThan(0.9)
    const without = await far(bytes)
    await without.read(0, 4096)
    expect(asksFor(without, moov)).toBe(false)
  })

  test('what its reader waits for is asked for first, then what is guessed for him', async () => {
    const file = await far(bytes, {}, named)
    await file.read(0, READ_BYTES)
    expect(file.requests[0]).toEqual({ at: 0, length: READ_BYTES })
    expect(file.requests.length).toBeGreaterThan(2)
  })

  test('whoever begins to read elsewhere is not given its end, nor is anybody with --prefetch off, or without room', async () => {
    const middle = await far(bytes, {}, named)
    await middle.read(20 * MiB, 4096)
    await middle.quiet()
    expect(middle.requests).toHaveLength(1)
    const off = await far(bytes, { prefetch: 'off' }, named)
    await off.read(0, 4096)
    await off.quiet()
    expect(off.requests).toHaveLength(1)
    const narrow = await far(bytes, { memoryBytesMax: 64 * KiB }, named)
    await narrow.read(0, 4096)
    expect(narrow.requests).toHaveLength(1)
  })

  test('--prefetch off: nothing but what is read', async () => {
    const file = await far(bytes, { prefetch: 'off' })
    await file.read(0, 4096)
    await file.quiet()
    expect(file.requests).toHaveLength(1)
  })

  test('what was written here is not looked at', async () => {
    const file = await far(bytes)
    await file.cache.write(file.ino, 0, bytes.subarray(0, 4096))
    await file.read(0, 4096)
    await file.quiet()
    expect(file.requests).toHaveLength(0)
  })

  test('a small share of memory for guesses is kept to', async () => {
    const file = await far(bytes, { memoryBytesMax: 2 * MiB })
    await file.read(0, 4096)
    await file.quiet()
    await file.read(moov, bytes.length - moov)
    expect(fetchedBytes(file)).toBeLessThan(8 * MiB)
  })

  test.each([
    ['interleaved', []],
    ['sound and picture apart', ['-chunk_duration', '8000000']],
  ])('%s: a player that seeks five times waits less often', async (name, args) => {
    const file = join(made, `${name}.mp4`)
    const played = args.length ? film(file, { seconds: 32, noisy: true, args: args as string[] }) : bytes
    const all = packets(args.length ? file : path)
    const seeksS = [20, 8, 26, 12, 30]
    const without = await play(await far(unknown(played)), moovOf(played), all, seeksS)
    const known = await play(await far(played), moovOf(played), all, seeksS)
    console.info(`${name}: without ${JSON.stringify(without)}, with ${JSON.stringify(known)}`)
    expect(known.seeks.misses).toBeLessThan(without.seeks.misses)
  })
})

requires('sqlite3').describe('a database of 100 MiB', () => {
  const path = join(made, 'data.db')
  let bytes: Buffer
  let inner: number[]
  beforeAll(() => {
    bytes = database(
      path,
      `create table t(a integer primary key, b text, c); create index i on t(b);
       insert into t select value, hex(randomblob(12)), zeroblob(800) from
         (with recursive n(value) as (select 1 union all select value + 1 from n where value < 100000) select value from n)`,
    )
    inner = [...pageTypes(path)].filter(([, type]) => type === 'internal').map(([page]) => page)
  })

  test('its first page is read: all inner pages of its trees are here', async () => {
    const file = await far(bytes)
    await file.read(0, 4096)
    await file.quiet()
    const before = misses(file)
    const fetched = fetchedBytes(file)
    for (const page of inner) await file.read((page - 1) * 4096, 4096)
    expect(misses(file)).toBe(before)
    expect(inner.length).toBeGreaterThan(50)
    expect(fetched).toBeLessThan((inner.length * 2 + 16) * 4096)
    console.info(`${inner.length} inner pages of ${bytes.length / 4096}: ${fetched} bytes`)
  })

  test('a query for one row waits for the leaf only', async () => {
    /** From the root of a tree down to a leaf: the pages that a search reads, one after the other. */
    const paths = (root: number, searches: number) =>
      Array.from({ length: searches }, (_, n) => {
        const pages = [root]
        for (;;) {
          const at = (pages.at(-1)! - 1) * 4096
          const type = bytes[at]
          if (type !== 0x05 && type !== 0x02) return pages
          const cells = bytes.readUInt16BE(at + 3)
          pages.push(bytes.readUInt32BE(at + bytes.readUInt16BE(at + 12 + 2 * ((n * 7919) % cells))))
        }
      })
    const searches = [...paths(2, 20), ...paths(3, 20)]
    const query = async (file: Far) => {
      await file.read(0, 4096)
      await file.quiet()
      const waited = file.waited()
      const before = misses(file)
      for (const pages of searches) for (const page of pages) await file.read((page - 1) * 4096, 4096)
      return {
        misses: misses(file) - before,
        roundTrips: Math.round(file.waited() - waited),
        requests: file.requests.length,
        KiB: Math.round(fetchedBytes(file) / KiB),
      }
    }
    const nameless = Buffer.from(bytes)
    nameless.write('sqlite', 0, 'latin1')
    const without = await query(await far(nameless))
    const known = await query(await far(bytes))
    console.info(`40 searches: without ${JSON.stringify(without)}, with ${JSON.stringify(known)}`)
    expect(known.misses).toBeLessThanOrEqual(searches.length)
    expect(known.misses).toBeLessThan(without.misses)
  })
})
