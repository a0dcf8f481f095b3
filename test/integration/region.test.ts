// Regions: one run of bytes, of a file, of memory, and of an object in a bucket.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, expect } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { openRemote } from '../../src/open.js'
import { openRegion, type Region } from '../../src/open-region.js'
import type { RegionOptions } from '../../src/options.js'
import { rollforward } from '../../src/remote/rollforward.js'
import { s3Objects } from '../../src/remote/s3.js'
import { serve } from '../../src/serve-remote.js'
import { requires } from '../fixtures/requires.js'
import { bucketForTests } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'

const MiB = 2 ** 20
const TEST_MS = 60_000
const SEED = Number(process.env.SEED ?? freshSeed())

const opened: Region[] = []
let directory = ''
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'pageferry-region-'))
  mkdirSync(join(directory, 'store'))
  process.env.XDG_STATE_HOME = join(directory, 'state')
  process.env.XDG_RUNTIME_DIR = join(directory, 'run')
})
afterEach(async () => {
  for (const region of opened.splice(0)) await region.close()
  rmSync(directory, { recursive: true, force: true })
})

async function open(url: string, options: RegionOptions = {}): Promise<Region> {
  const region = await openRegion(url, { cacheDir: join(directory, 'cache'), flushInterval: '100ms', ...options })
  opened.push(region)
  return region
}

async function bytesOf(region: Region, at = 0, length = region.size - at): Promise<Buffer> {
  const into = Buffer.alloc(length)
  await region.read(at, into)
  return into
}

/** Random writes and trims; the model does the same. */
async function scribble(region: Region, model: Buffer, random: ReturnType<typeof randomOf>, count: number) {
  for (let n = 0; n < count; n++) {
    const at = random.below(model.length)
    const length = Math.min(model.length - at, 1 + random.below(random.pick([100, 10_000, 500_000])))
    if (random.chance(0.2)) {
      model.fill(0, at, at + length)
      await region.trim(at, length)
    } else {
      const bytes = random.bytes(length)
      model.set(bytes, at)
      await region.write(at, bytes)
    }
    if (random.chance(0.1))
      expect((await bytesOf(region, at, length)).equals(model.subarray(at, at + length))).toBe(true)
  }
}

const { describe, test } = requires('built')

describe('a region of a file', () => {
  test(
    'is trimmed by the terabyte: it costs neither rows nor bytes, is a hole at the remote, and known as one from then on',
    async () => {
      const image = join(directory, 'disk.img')
      const TiB = 2 ** 40
      const bytes = randomOf(SEED).bytes(3 * MiB)
      const region = await open(`file://${image}?size=4T`)
      await region.write(TiB, bytes)
      await region.write(3 * TiB - 5, Buffer.from('kept'))
      await region.sync()
      await region.trim(4096, 3 * TiB - 4096 - 5)
      // The page of which only a part is trimmed.
      expect(region.status().lag.bytes).toBe(4096)
      const into = Buffer.alloc(MiB)
      await region.read(TiB + MiB, into)
      expect(into.equals(Buffer.alloc(MiB))).toBe(true)
      // A page within that is written again, before what it lies in was sent.
      await region.write(2 * TiB + 10, Buffer.from('new'))
      expect(region.status().cache.chunks).toBeLessThan(8)
      await region.sync()
      expect(statSync(image).blocks).toBeLessThan(64)
      const expected = [
        { length: 4096, zeros: false },
        { length: 2 * TiB - 4096, zeros: true },
        { length: 4096, zeros: false },
        { length: TiB - 8192, zeros: true },
      ]
      expect(region.extents(0, 3 * TiB, 4)).toEqual(expected)
      await region.close()
      opened.length = 0
      const again = await open(`file://${image}`)
      expect(again.extents(0, 3 * TiB, 4)).toEqual(expected)
      const { requests } = again.status().remote
      await again.read(TiB, into)
      expect(into.equals(Buffer.alloc(MiB))).toBe(true)
      expect(again.status().remote.requests).toBe(requests)
      const edges = Buffer.alloc(8)
      await again.read(3 * TiB - 5, edges)
      expect(edges.toString()).toBe('kept\0\0\0\0')
      await again.read(2 * TiB + 8, edges)
      expect(edges.toString()).toBe('\0\0new\0\0\0')
    },
    TEST_MS,
  )

  test(
    `has what was written, here at once and there after a sync; the next opener finds it here (SEED=${SEED})`,
    async () => {
      const random = randomOf(SEED)
      const path = join(directory, 'disk.img')
      const model = Buffer.from(random.bytes(9 * MiB + 1234))
      writeFileSync(path, model)
      const region = await open(path)
      expect(region.size).toBe(model.length)
      expect((await bytesOf(region)).equals(model)).toBe(true)
      for (let round = 0; round < 4; round++) {
        await scribble(region, model, random, 40)
        if (round % 2) await region.sync()
      }
      await region.sync()
      expect(region.status()).toMatchObject({ lag: { bytes: 0, operations: 0 }, problems: [], availability: 1 })
      expect((await bytesOf(region)).equals(model)).toBe(true)
      expect(readFileSync(path).equals(model)).toBe(true)
      expect(existsSync(join(directory, '.pageferry-disk.img'))).toBe(true)
      await region.close()
      await region.close()

      const again = await open(path)
      expect((await bytesOf(again)).equals(model)).toBe(true)
      expect(again.status().reads.misses).toBe(0)
      await again.close()
      const fresh = await open(path, { cacheDir: join(directory, 'other') })
      expect((await bytesOf(fresh)).equals(model)).toBe(true)
    },
    TEST_MS,
  )

  test('is made as large as its URL says, and refuses what is beyond its end', async () => {
    const region = await open(`file://${directory}/new.img?size=1M`)
    expect(region.size).toBe(MiB)
    const invalid = expect.objectContaining({ code: 'INVALID' })
    expect(() => region.read(MiB - 1, Buffer.alloc(2))).toThrow(invalid)
    expect(() => region.write(MiB, Buffer.alloc(1))).toThrow(invalid)
    expect(() => region.write(-1, Buffer.alloc(1))).toThrow(invalid)
    expect(() => region.trim(0.5, 1)).toThrow(invalid)
    await region.write(MiB, Buffer.alloc(0))
    await region.write(MiB - 3, Buffer.from('end'))
    await region.close()
    expect(() => region.read(0, Buffer.alloc(1))).toThrow(expect.objectContaining({ code: 'CLOSED' }))
    await expect(open(join(directory, 'none'))).rejects.toMatchObject({ code: 'USAGE' })
    await expect(open(join(directory, 'new.img'), { fetchSize: '3' })).rejects.toThrow(/fetchSize: got "3"/)
    await expect(open(join(directory, 'new.img'), { driver: 'kernel' } as RegionOptions)).rejects.toThrow(
      /no such option/,
    )
  })

  test('is a file to those who know node: positions, short reads at the end, streams', async () => {
    const region = await open('mem:?size=3M')
    const file = region.file()
    expect(await file.write('hello')).toMatchObject({ bytesWritten: 5 })
    expect(await file.write(Buffer.from('xworldx'), 1, 5)).toMatchObject({ bytesWritten: 5 })
    await file.write('far', 2 * MiB)
    expect(await file.read(Buffer.alloc(10), 0, 10, 0)).toMatchObject({
      bytesRead: 10,
      buffer: Buffer.from('helloworld'),
    })
    expect(await file.read({ buffer: Buffer.alloc(4), position: 2 * MiB })).toMatchObject({
      buffer: Buffer.from('far\0'),
    })
    // Where the last one without a position has ended.
    expect(await file.read({ length: 2 })).toMatchObject({ bytesRead: 2, buffer: expect.any(Uint8Array) })
    expect(await file.read(Buffer.alloc(10), 0, 10, 3 * MiB - 4)).toMatchObject({ bytesRead: 4 })
    expect(await file.read(Buffer.alloc(10), 0, 10, 9 * MiB)).toMatchObject({ bytesRead: 0 })
    await expect(file.write('beyond', 3 * MiB - 2)).rejects.toMatchObject({ code: 'NO_SPACE' })
    await expect(file.read(Buffer.alloc(2), 1, 2)).rejects.toMatchObject({ code: 'INVALID' })
    expect(await file.stat()).toMatchObject({ size: 3 * MiB, mode: 0o100600 })

    const bytes = Buffer.from(randomOf(SEED).bytes(2 * MiB + 123))
    await pipeline(
      Readable.from([bytes.subarray(0, 1_000_000), bytes.subarray(1_000_000)]),
      file.createWriteStream({ start: 77 }),
    )
    await file.sync()
    const parts = await file
      .createReadStream({ start: 77, end: 77 + bytes.length - 1, highWaterMark: 100_000 })
      .toArray()
    expect(Buffer.concat(parts).equals(bytes)).toBe(true)
    expect((await file.readFile()).subarray(77, 77 + bytes.length).equals(bytes)).toBe(true)
    const beyond = pipeline(Readable.from([Buffer.alloc(10)]), file.createWriteStream({ start: 3 * MiB - 5 }))
    await expect(beyond).rejects.toMatchObject({ code: 'NO_SPACE' })
    await file.close()
    await expect(file.read()).rejects.toMatchObject({ code: 'CLOSED' })
    await region.read(0, Buffer.alloc(1))
  })

  test('is pulled in the order that is asked for, and tells what of it is here', async () => {
    const path = join(directory, 'disk.img')
    writeFileSync(path, Buffer.alloc(12 * MiB, 'd'))
    const slow = { simulate: 'rtt=40ms', pullWorkers: 1, fetchSize: '1M', readOnly: true } as const
    const orders: [options: RegionOptions, first: number][] = [
      [{ pull: 'all' }, 0],
      [{ pull: 'all', pullOrder: 'descending' }, 11 * MiB],
      [{ pull: chunk => (chunk === 5 * 8 + 3 ? 1 : 0) }, 5 * MiB],
    ]
    for (const [n, [options, first]] of orders.entries()) {
      const region = await open(path, { ...slow, ...options, cacheDir: join(directory, `cache${n}`) })
      while (region.presence().length === 0) await sleep(5)
      expect(region.presence(1)[0][0]).toBe(first)
      while (region.status().availability < 1) await sleep(20)
      expect(region.presence()).toEqual([[0, 12 * MiB]])
    }
    await expect(open(path, { pullOrder: 'sideways' })).rejects.toThrow(
      'pullOrder: got "sideways"; allowed: ascending, descending, or stride:SIZE',
    )
  })

  test('is given up while it waits for the lease of another', async () => {
    const path = join(directory, 'disk.img')
    writeFileSync(path, Buffer.alloc(MiB, 'a'))
    await open(path)
    const options = { cacheDir: join(directory, 'other') }
    await expect(openRegion(path, options, AbortSignal.timeout(300))).rejects.toMatchObject({
      code: expect.stringMatching(/ABORTED|LEASE_HELD/),
    })
    await expect(openRegion(path, options, AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' })
  })

  test('has one writer; a reader beside it sees whole batches', async () => {
    const path = join(directory, 'disk.img')
    writeFileSync(path, Buffer.alloc(MiB, 'a'))
    const writer = await open(path)
    await expect(open(path, { cacheDir: join(directory, 'other') })).rejects.toMatchObject({ code: 'LEASE_HELD' })
    await writer.write(0, Buffer.alloc(MiB, 'b'))
    await writer.sync()
    const reader = await open(path, { cacheDir: join(directory, 'third'), readOnly: true })
    expect((await bytesOf(reader)).equals(Buffer.alloc(MiB, 'b'))).toBe(true)
    expect(() => reader.write(0, Buffer.alloc(1))).toThrow(expect.objectContaining({ code: 'READ_ONLY' }))
  })

  test('is a file like any other in a mount of its directory, and what is beside it is not there', async () => {
    const path = join(directory, 'store', 'disk.img')
    writeFileSync(path, Buffer.alloc(MiB, 'a'))
    const region = await open(path)
    await region.write(0, Buffer.from('b'))
    await region.sync()
    const tree = await openRemote(join(directory, 'store'), { shape: 'tree' })
    expect((await tree.list('')).entries.map(({ name }) => name)).toEqual(['disk.img'])
    expect(await tree.stat('.pageferry-disk.img')).toBeNull()
    await tree.close()
  })

  test('that somebody else wrote meanwhile is not made of halves: what was not sent is kept, and said', async () => {
    const path = join(directory, 'disk.img')
    writeFileSync(path, Buffer.alloc(MiB, 'a'))
    const region = await open(path, { flushInterval: '1h' })
    await region.write(0, Buffer.alloc(4096, 'b'))
    await region.close()
    writeFileSync(path, Buffer.alloc(MiB, 'c'))
    const again = await open(path)
    expect(await again.sync({ signal: AbortSignal.timeout(2_000) }).catch(error => error.message)).toMatch(
      /changed by somebody else/,
    )
    expect(readFileSync(path).equals(Buffer.alloc(MiB, 'c'))).toBe(true)
    expect(again.status().lag.bytes).toBe(4096)
    expect(again.status().problems.join()).toMatch(/changed by somebody else; what was not sent stays in the journal/)
  })

  test(
    'loses nothing that was acknowledged when its process is killed',
    async () => {
      const path = join(directory, 'disk.img')
      writeFileSync(path, Buffer.alloc(8 * MiB))
      const program = `
        import { openRegion } from ${JSON.stringify(resolve('dist/src/index.js'))}
        const [path, cacheDir, from] = process.argv.slice(1)
        const region = await openRegion(path, { cacheDir, flushInterval: '50ms', takeOver: true })
        for (let n = Number(from); ; n++) {
          const block = Buffer.alloc(4096, n % 251)
          block.writeUInt32LE(n)
          await region.write((n % 2048) * 4096, block)
          if (n % 16 === 0) await region.flush()
          process.stdout.write(n + '\\n')
          await new Promise(setImmediate)
        }`
      let last = 0
      for (let round = 0; round < 3; round++) {
        // With flags that a thread would refuse.
        const args = [
          '--expose-gc',
          '--input-type=module',
          '-e',
          program,
          path,
          join(directory, 'cache'),
          String(last + 1),
        ]
        const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
        let said = ''
        child.stdout.on('data', text => {
          said += text
        })
        await Promise.race([once(child.stdout, 'data'), once(child, 'close')])
        await new Promise(resolve => setTimeout(resolve, 300 + 200 * round))
        const over = once(child, 'close')
        expect(child.kill('SIGKILL')).toBe(true)
        await over
        last = Number(said.trim().split('\n').at(-1))
        expect(last).toBeGreaterThan(0)
      }
      const region = await open(path, { takeOver: true })
      for (let n = Math.max(1, last - 2000); n <= last; n++) {
        const block = await bytesOf(region, (n % 2048) * 4096, 4096)
        // One more may have been written than was said.
        expect([n, n + 2048]).toContain(block.readUInt32LE())
      }
      await region.sync()
      expect(readFileSync(path).equals(await bytesOf(region))).toBe(true)
    },
    TEST_MS,
  )
})

/** Written, synced, lost, and opened again; a last change that nobody waited for may be there or not. */
async function survives(url: string, random: ReturnType<typeof randomOf>) {
  const model = Buffer.alloc(20 * MiB + 4321)
  const region = await open(`${url}&size=${model.length}`)
  expect(region.size).toBe(model.length)
  for (let round = 0; round < 3; round++) {
    await scribble(region, model, random, 40)
    if (round === 1) await region.sync()
  }
  await region.sync()
  expect(region.status()).toMatchObject({ lag: { bytes: 0, operations: 0 }, problems: [] })
  // What was never written shares chunks with what was.
  expect((await bytesOf(region)).equals(model)).toBe(true)
  await region.close()
  const again = await open(url)
  expect((await bytesOf(again)).equals(model)).toBe(true)
  expect(again.status().remote.bytesRead).toBeLessThan(MiB)
  await again.close()
  const fresh = await open(url, { cacheDir: join(directory, 'fresh') })
  expect((await bytesOf(fresh)).equals(model)).toBe(true)
  await fresh.close()
  const { remote } = fresh.status()
  expect(remote.bytesRead).toBeLessThan(model.length + 2 * MiB)
  return model
}

describe('a region that is kept chunk by chunk', () => {
  test(
    `in a directory is all there for whoever opens it next (SEED=${SEED})`,
    async () => {
      await survives(`file://${directory}/store?layout=chunks`, randomOf(SEED))
    },
    TEST_MS,
  )

  test('is made when its size is said, and not otherwise; other layouts there are none', async () => {
    const url = `file://${directory}/store`
    await expect(open(`${url}?layout=chunks`)).rejects.toThrow(/none is kept there; "size=1G" makes one/)
    await (await open(`${url}?layout=chunks&size=1M`)).close()
    await expect(open(`${url}?layout=chunks&size=2M`)).rejects.toThrow(/has 1048576 bytes, not 2097152/)
    await expect(open(`${url}?layout=raid`)).rejects.toThrow(/layout is chunks/)
  })
})

describe('a region gets another size', () => {
  const atRemote = async (url: string) => {
    const reader = await open(url, { cacheDir: mkdtempSync(join(directory, 'reader-')), readOnly: true })
    const bytes = await bytesOf(reader)
    await reader.close()
    return bytes
  }

  test.each([
    ['a file', () => join(directory, 'disk.img')],
    ['chunks', () => `file://${directory}/store?layout=chunks`],
  ])(
    `%s: and is what was written, here and at the remote, through crashes and sizes of all kinds (SEED=${SEED})`,
    async (kind, urlOf) => {
      const random = randomOf(SEED)
      const url = urlOf()
      let model = Buffer.from(random.bytes(3 * MiB + 77))
      if (kind === 'chunks') {
        const made = await open(`${url}&size=${model.length}`)
        await made.write(0, model)
        await made.close()
      } else writeFileSync(url, model)
      let region = await open(url)
      for (let round = 0; round < 30; round++) {
        const size = random.pick([0, 1, 4096, 65_536, MiB - 1, 2 * MiB, 5 * MiB + 4321, random.below(6 * MiB)])
        const after = Buffer.alloc(size)
        model.copy(after)
        model = after
        await region.resize(size)
        expect(region.size).toBe(size)
        if (size > 0) await scribble(region, model, random, 3)
        await expect(Promise.resolve().then(() => region.read(size, Buffer.alloc(1)))).rejects.toMatchObject({
          code: 'INVALID',
        })
        if (random.chance(0.3)) expect((await bytesOf(region)).equals(model)).toBe(true)
        if (random.chance(0.3)) {
          await region.sync()
          expect((await atRemote(url)).equals(model)).toBe(true)
        }
        if (random.chance(0.3)) {
          await region.close()
          region = await open(url)
          expect((await bytesOf(region)).equals(model)).toBe(true)
        }
      }
      await region.sync()
      expect(region.status()).toMatchObject({ size: model.length, problems: [] })
      await region.close()
      expect((await atRemote(url)).equals(model)).toBe(true)
    },
    TEST_MS,
  )

  test('by its file, and in a thread of its own; a terabyte more costs nothing', async () => {
    const path = join(directory, 'disk.img')
    writeFileSync(path, 'first')
    const region = await open(path, { ownThread: true })
    const file = region.file()
    await file.truncate(2 ** 40)
    expect(await file.stat()).toMatchObject({ size: 2 ** 40 })
    await file.write('last', 2 ** 40 - 4)
    await region.sync()
    expect(statSync(path)).toMatchObject({ size: 2 ** 40 })
    expect(statSync(path).blocks).toBeLessThan(64)
    await file.truncate(3)
    await region.sync()
    expect(readFileSync(path, 'latin1')).toBe('fir')
  })

  test('but not where it is not to be written, or what it stands on has one size', async () => {
    const path = join(directory, 'disk.img')
    writeFileSync(path, Buffer.alloc(8192))
    const region = await open(path)
    for (const size of [-1, 0.5, Number.NaN])
      await expect(region.resize(size)).rejects.toThrow(/invalid argument: a size of/)
    await region.close()
    await expect(region.resize(1)).rejects.toMatchObject({ code: 'CLOSED' })

    const readOnly = await open(path, { readOnly: true })
    await expect(readOnly.resize(1)).rejects.toMatchObject({ code: 'READ_ONLY' })
    const mapped = await open('mem:?size=8K', { cacheDir: join(directory, 'mem') })
    await mapped.resize(3)
    expect(mapped.size).toBe(3)
    // Behind gRPC there may be one who has mapped it.
    const server = await serve(await openRemote(`mem:?size=${MiB}`, { shape: 'blob' }), {
      listen: `unix:${join(directory, 'socket')}`,
    })
    const far = await open(`grpc+unix:///?socket=${join(directory, 'socket')}`, { cacheDir: join(directory, 'far') })
    await expect(far.resize(1)).rejects.toThrow(/what has 1048576 bytes at the remote keeps that size/)
    expect(far.size).toBe(MiB)
    await far.close()
    await server.close()
  })
})

test('a region of memory needs nothing', async () => {
  const region = await open('mem:?size=1M')
  await region.write(5, Buffer.from('hello'))
  expect(String(await bytesOf(region, 4, 7))).toBe('\0hello\0')
  await region.flush()
  await region.sync()
})

const rgw = requires('built', 'rgw')
rgw.describe('a region of an object in a bucket', () => {
  let server: Rgw
  let bucket: string
  beforeAll(async () => {
    ;({ server, bucket } = await bucketForTests())
  }, 200_000)
  const objects = () => s3Objects({ bucket, endpoint: server.endpoint, prefix: '' })
  let kept: Awaited<ReturnType<typeof objects>>
  beforeAll(async () => {
    kept = await objects()
  })
  afterAll(() => kept.close())
  const urlOf = (key: string) => `s3://${bucket}/${key}?endpoint=${server.endpoint}&pathStyle=1`

  rgw.test(
    'is read in ranges, and changed in its parts; others see the object alone',
    async () => {
      const random = randomOf(SEED)
      const model = Buffer.from(random.bytes(24 * MiB + 77))
      await kept.put('images/disk.img', model)
      await kept.put('images/disk.img2', Buffer.from('another'))
      const region = await open(urlOf('images/disk.img'))
      expect(region.size).toBe(model.length)
      expect((await bytesOf(region, 20 * MiB, 4096)).equals(model.subarray(20 * MiB, 20 * MiB + 4096))).toBe(true)
      expect(region.status().remote.bytesRead).toBeLessThan(2 * MiB)
      await scribble(region, model, random, 30)
      await region.sync()
      const sent = region.status().remote.bytesWritten
      model.set(Buffer.from('small'), 12 * MiB)
      await region.write(12 * MiB, Buffer.from('small'))
      await region.sync()
      expect(region.status().remote.bytesWritten - sent).toBeLessThan(6 * MiB)
      expect(region.status()).toMatchObject({ lag: { bytes: 0 }, problems: [], conflicts: [] })
      expect(Buffer.from(await kept.get('images/disk.img')).equals(model)).toBe(true)
      await region.close()

      const fresh = await open(urlOf('images/disk.img'), { cacheDir: join(directory, 'fresh') })
      expect((await bytesOf(fresh)).equals(model)).toBe(true)
      const keys = (await kept.list({ prefix: 'images/' })).objects.map(one => one.key)
      expect(keys.filter(key => !key.startsWith('images/.pageferry-disk.img/'))).toEqual([
        'images/disk.img',
        'images/disk.img2',
      ])
      expect(String(Buffer.from(await kept.get('images/disk.img2')))).toBe('another')
      const tree = rollforward(await openRemote(urlOf('images'), { shape: 'objects' }))
      expect((await tree.list('')).entries.map(({ name }) => name)).toEqual(['disk.img', 'disk.img2'])
      await tree.close()
    },
    TEST_MS,
  )

  rgw.test(
    'gets another size with the next batch',
    async () => {
      const model = Buffer.from(randomOf(SEED).bytes(7 * MiB + 5))
      await kept.put('images/sized.img', model)
      const region = await open(urlOf('images/sized.img'))
      await region.resize(MiB + 1)
      await region.resize(9 * MiB)
      await region.write(9 * MiB - 3, Buffer.from('end'))
      await region.sync()
      const expected = Buffer.alloc(9 * MiB)
      model.copy(expected, 0, 0, MiB + 1)
      expected.write('end', 9 * MiB - 3)
      expect(Buffer.from(await kept.get('images/sized.img')).equals(expected)).toBe(true)
    },
    TEST_MS,
  )

  rgw.test(
    `kept chunk by chunk is all there for whoever opens it next (SEED=${SEED})`,
    async () => {
      await survives(`${urlOf('kept/here')}&layout=chunks`, randomOf(SEED))
      const keys = (await kept.list({ prefix: 'kept/here/' })).objects.map(one => one.key.slice('kept/here/'.length))
      expect(keys.filter(key => !/^(region|heads\/|runs\/|\.pageferry\/)/.test(key))).toEqual([])
      expect(keys.filter(key => key.startsWith('heads/')).length).toBe(1)
    },
    TEST_MS,
  )

  rgw.test('that is not there is refused in one line', async () => {
    await expect(open(urlOf('images/none'))).rejects.toThrow(/images\/none.*no such object/)
    await expect(open(urlOf('images/'))).rejects.toThrow(/one object, like s3:/)
  })
})
