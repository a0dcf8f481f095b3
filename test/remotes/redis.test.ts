// The suites over a real Redis server, and what may become of it.
import { execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { openBeside, openRemote } from '../../src/open.js'
import { openRegion } from '../../src/open-region.js'
import { ChunkStore } from '../../src/remote/chunk-store.js'
import { deadline } from '../../src/remote/deadline.js'
import { redisBlob } from '../../src/remote/redis-blob.js'
import type { RedisOptions } from '../../src/remote/redis-client.js'
import { redisStore } from '../../src/remote/redis-store.js'
import { retry } from '../../src/remote/retry.js'
import { rollforwardChunks } from '../../src/remote/rollforward-chunks.js'
import { type RedisServer, startRedis } from '../fixtures/redis.js'
import { requires } from '../fixtures/requires.js'
import { blobKind, chunkKind, flatSuite, storeKind } from './commits-flat.js'
import { compileOnce } from './compiled.js'
import { aborted, blobSuite, bytes, fails, storeSuite, text } from './primitives.js'

const MiB = 2 ** 20
const CHUNK = 128 * 1024
const SEED = Number(process.env.SEED ?? freshSeed())

const settings = ['REDIS_USERNAME', 'REDIS_PASSWORD', 'REDIS_CA_FILE']
beforeEach(() => {
  for (const name of settings) delete process.env[name]
})

const disposable = <R extends { close(): Promise<void> }>(remote: R) =>
  Object.assign(remote, { [Symbol.asyncDispose]: () => remote.close() })
const openBlob = async (options: RedisOptions, size?: number) => disposable(await redisBlob(options, { size }))
const openStore = async (options: RedisOptions) => disposable(await redisStore(options))

/** Every connection but the admin's. */
const killOthers = ({ admin }: RedisServer) => admin.call('client', 'kill', 'type', 'normal', 'skipme', 'yes')

const needed = requires('redis-server')

needed.describe('Redis', () => {
  let server: RedisServer
  beforeAll(async () => {
    server = await startRedis()
  })
  afterAll(() => server.end())
  afterEach(async () => {
    await server.admin.flushall()
  })

  const where = (prefix: string = `${randomUUID()}:`) => ({ host: '127.0.0.1', port: server.port, prefix })
  const urlOf = (query: string) => `${server.url}?${query}`
  const keys = async () => (await server.admin.keys('*')).sort()

  blobSuite('Redis', async size => ({ remote: await redisBlob(where(), { size }) }))
  storeSuite('Redis', async () => ({ remote: await redisStore(where()) }))

  const flatStore = async () => {
    const store = await redisStore(where())
    return { remote: store, hidden: store, hiddenPrefix: '.pageferry/', dispose: () => store.close() }
  }
  const flatBlob = async () => {
    const url = urlOf(`prefix=${randomUUID()}&size=64K`)
    const [remote, hidden] = [await openRemote(url, { shape: 'blob' }), (await openBeside(url))!]
    const dispose = async () => {
      await Promise.all([remote.close(), hidden.close()])
    }
    return { remote, hidden, hiddenPrefix: '', dispose }
  }
  const geometry = { size: 64 * 1024, chunkBytes: 8192 }
  const flatChunks = async () => {
    const store = await redisStore(where())
    const remote = rollforwardChunks(await ChunkStore.open(store, geometry))
    return { remote, hidden: store, hiddenPrefix: '.pageferry/', dispose: () => store.close() }
  }
  flatSuite('Redis store', storeKind(flatStore), { rounds: 1, share: 1 })
  flatSuite('Redis blob', blobKind(flatBlob), { rounds: 1, share: 1 })
  flatSuite('chunks in Redis', chunkKind(flatChunks, geometry), { rounds: 1, share: 1 })

  describe('as a blob', () => {
    test('has a key for each chunk that was written, and every key has the prefix', async () => {
      await using blob = await openRemote(urlOf('prefix=disk/&size=1M'), { shape: 'blob' })
      expect(await keys()).toEqual(['disk/size'])
      await blob.write(CHUNK - 2, bytes('over'))
      expect(await keys()).toEqual(['disk/chunk:0', 'disk/chunk:1', 'disk/size', 'disk/version'])
      expect(await server.admin.strlen('disk/chunk:1')).toBe(2)
      expect(text(await blob.read(CHUNK - 3, 6))).toBe('\0over\0')
    })

    test('reads zeros where a chunk is missing or short', async () => {
      await using blob = await openBlob(where('z:'), 3 * CHUNK)
      await blob.write(0, new Uint8Array(3 * CHUNK).fill(7))
      await server.admin.del('z:chunk:1')
      await server.admin.set('z:chunk:2', 'short')
      const now = await blob.read(0, 3 * CHUNK)
      expect(now.subarray(0, CHUNK).every(byte => byte === 7)).toBe(true)
      expect(text(now.subarray(2 * CHUNK, 2 * CHUNK + 6))).toBe('short\0')
      expect(now.subarray(CHUNK, 2 * CHUNK).every(byte => byte === 0)).toBe(true)
      expect(now.subarray(2 * CHUNK + 5).every(byte => byte === 0)).toBe(true)
    })

    test('gives back whole chunks when they are trimmed, and makes none', async () => {
      const size = 3 * CHUNK + 1000
      await using blob = await openBlob(where('t:'), size)
      await blob.write(0, new Uint8Array(CHUNK + 10).fill(7))
      await blob.write(size - 1000, new Uint8Array(1000).fill(7))
      await blob.trim!(100, size - 100)
      expect(await keys()).toEqual(['t:chunk:0', 't:size', 't:version'])
      const now = await blob.read(0, size)
      expect(now.lastIndexOf(7)).toBe(99)
      expect(now.subarray(0, 100).every(byte => byte === 7)).toBe(true)
      await blob.write(CHUNK, bytes('0123456789'))
      await blob.trim!(CHUNK + 5, 100)
      await blob.trim!(2 * CHUNK + 5, 100)
      expect(await keys()).toEqual(['t:chunk:0', 't:chunk:1', 't:size', 't:version'])
      expect(await server.admin.get('t:chunk:1')).toBe('01234\0\0\0\0\0')
    })

    test(`is what a buffer would be, through requests of many pieces (SEED=${SEED})`, async () => {
      const random = randomOf(SEED)
      const model = Buffer.alloc(9 * MiB + 777)
      await using blob = await openBlob(where(), model.length)
      for (let n = 0; n < 60; n++) {
        const at = random.below(model.length)
        const length = Math.min(model.length - at, random.below(random.pick([10, CHUNK, 6 * MiB])))
        if (random.chance(0.3)) {
          model.fill(0, at, at + length)
          await blob.trim!(at, length)
        } else {
          const fresh = random.bytes(length)
          model.set(fresh, at)
          await blob.write(at, fresh)
        }
        const [from, to] = [random.below(model.length), random.below(model.length)].sort((a, b) => a - b)
        expect(model.subarray(from, to).equals(await blob.read(from, to - from))).toBe(true)
      }
      expect(model.equals(await blob.read(0, model.length))).toBe(true)
    })

    test('refuses requests beyond the largest', async () => {
      await using blob = await openBlob(where(), 1024 * MiB)
      const { requestBytesMax } = blob.capabilities
      await fails(blob.read(0, requestBytesMax + 1), 'TOO_LARGE')
      await fails(blob.write(0, new Uint8Array(requestBytesMax + 1)), 'TOO_LARGE')
    })

    test('has another version after each change, the same one for every opener', async () => {
      await using blob = await openBlob(where('v:'), MiB)
      await using again = await openBlob(where('v:'))
      const seen = new Set<string>()
      for (const change of [
        async () => {},
        () => blob.write(0, bytes('a')),
        () => again.write(0, bytes('a')),
        () => blob.trim!(0, 1),
        () => again.trim!(0, MiB),
      ]) {
        await change()
        const version = await blob.version!()
        expect(await again.version!()).toBe(version)
        seen.add(version)
      }
      expect(seen.size).toBe(5)
    })

    test('has the size that its first opener gave it', async () => {
      await fails(openRemote(urlOf('prefix=s:'), { shape: 'blob' }), 'USAGE')
      await expect(openRemote(urlOf('prefix=s:'), { shape: 'blob' })).rejects.toThrow(
        `${urlOf('prefix=s:')}: no blob is kept there; "size=1G" makes one`,
      )
      const racing = await Promise.allSettled([1, 2, 3, 4].map(n => redisBlob(where('s:'), { size: n * MiB })))
      const made = racing.flatMap(one => (one.status === 'fulfilled' ? [one.value] : []))
      expect(made).toHaveLength(1)
      await using again = await openRemote(urlOf('prefix=s:'), { shape: 'blob' })
      expect(again.size).toBe(made[0].size)
      await made[0].close()
      await expect(openRemote(urlOf('prefix=s:&size=5M'), { shape: 'blob' })).rejects.toThrow(
        `the blob there has ${again.size} bytes, not ${5 * MiB}`,
      )
    })

    test('of another format is refused', async () => {
      await server.admin.set('f:size', 'pageferry blob 2.0 100 x')
      await fails(redisBlob(where('f:')), 'TOO_NEW')
      await server.admin.set('f:size', '100')
      await fails(redisBlob(where('f:')), 'BAD_FORMAT')
      await server.admin.del('f:size')
      await server.admin.lpush('f:size', 'x')
      await fails(redisBlob(where('f:')), 'BAD_FORMAT')
    })

    test('that is gone is neither zeros nor written to, nor is one that was made anew', async () => {
      await using blob = await openBlob(where('g:'), MiB)
      await blob.write(0, bytes('here'))
      await server.admin.flushall()
      const allFail = async () => {
        for (const call of [
          blob.read(0, 4),
          blob.write(0, bytes('lost')),
          blob.trim!(0, 4),
          blob.flush(),
          blob.version!(),
        ])
          await expect(call).rejects.toThrow(/cannot be reached: .*the blob that was opened is not there any more/)
      }
      await allFail()
      expect(await keys()).toEqual([])
      await using fresh = await openBlob(where('g:'), MiB)
      await allFail()
      expect(text(await fresh.read(0, 4))).toBe('\0\0\0\0')
    })
  })

  describe('as a store', () => {
    test('is opened by its URL, with names and a prefix of any bytes, beside other keys', async () => {
      await server.admin.set('other', 'x')
      await using store = await openRemote(urlOf('prefix=%C3%A9+%26/'), { shape: 'store' })
      expect(store.url).toBe(`${server.url}?prefix=%c3%a9%20%26/`)
      const version = await store.put('a/\xff\xfe', bytes('content'))
      await using again = await openRemote(store.url, { shape: 'store' })
      expect(await again.list('')).toEqual([{ name: 'a/\xff\xfe', size: 7, version }])
      await using elsewhere = await openRemote(server.url, { shape: 'store' })
      expect([elsewhere.url, await elsewhere.list('')]).toEqual([server.url, []])
      const found = await server.admin.callBuffer('keys', '*')
      expect((found as Buffer[]).map(String).filter(key => !key.startsWith('é &/'))).toEqual(['other'])
    })

    test('is one of the databases that the server has', async () => {
      const url = server.url.replace(/0$/, '9')
      await using store = await openRemote(url, { shape: 'store' })
      await store.put('a', bytes('x'))
      expect(await keys()).toEqual([])
      expect(await server.admin.info('keyspace')).toMatch(/^db9:keys=2/m)
      await expect(openRemote(url.replace(/9$/, '99'), { shape: 'store' })).rejects.toThrow(
        /^bad usage: .*the server has no database of this number/,
      )
    })

    test('moves the bytes of a range and no others', async () => {
      await using store = await openStore(where())
      await store.put('large', new Uint8Array(8 * MiB))
      const sent = async () => Number(/total_net_output_bytes:(\d+)/.exec(await server.admin.info('stats'))![1])
      const before = await sent()
      expect((await store.get('large', { at: 7 * MiB, length: 1000 })).length).toBe(1000)
      expect(await store.head('large')).toMatchObject({ size: 8 * MiB })
      expect((await sent()) - before).toBeLessThan(20_000)
    })

    test('lists without looking at the keys of the database', async () => {
      await using store = await openStore(where())
      for (let n = 0; n < 20; n++) await store.put(`n${n}`, bytes(''))
      await server.admin.config('RESETSTAT')
      expect((await store.list('n1')).length).toBe(11)
      const stats = await server.admin.info('commandstats')
      expect(stats).toMatch(/cmdstat_zrangebylex:calls=1,/)
      expect(stats).not.toMatch(/cmdstat_(scan|keys)/)
    })

    test('passes over a name whose object somebody dropped', async () => {
      await using store = await openStore(where('d:'))
      const wanted = Array.from({ length: 1010 }, (_, n) => `n${String(n).padStart(4, '0')}`)
      await Promise.all(wanted.map(name => store.put(name, bytes('x'))))
      await server.admin.del(...wanted.slice(0, 1005).map(name => `d:${name}`))
      expect((await store.list('n')).map(one => one.name)).toEqual(wanted.slice(1005))
      expect(await store.list('n', 'n1009')).toEqual([])
    })

    test('removes many at once, in one request', async () => {
      await using store = await openStore(where('r:'))
      const names = Array.from({ length: 1000 }, (_, n) => `n${n}`)
      await Promise.all([...names, 'left'].map(name => store.put(name, bytes('x'))))
      await server.admin.config('RESETSTAT')
      await store.removeAll!([...names, 'never was'])
      expect(await server.admin.info('commandstats')).toMatch(/cmdstat_evalsha:calls=1,/)
      expect((await store.list('')).map(one => one.name)).toEqual(['left'])
      expect(await keys()).toEqual(['r:/names', 'r:left'])
      expect(await server.admin.zcard('r:/names')).toBe(1)
      await store.removeAll!([])
    })

    test('refuses what is too large, and what is not its own', async () => {
      await using store = await openStore(where('o:'))
      const { objectBytesMax } = store.capabilities
      await fails(store.put('a', new Uint8Array(objectBytesMax + 1)), 'TOO_LARGE')
      await store.put('a', new Uint8Array(objectBytesMax))
      expect((await store.get('a')).length).toBe(objectBytesMax)
      await server.admin.set('o:text', 'x'.repeat(100))
      await fails(store.get('text'), 'BAD_FORMAT')
      await fails(store.head('text'), 'BAD_FORMAT')
      await server.admin.lpush('o:list', 'x')
      await fails(store.get('list'), 'BAD_FORMAT')
      await fails(store.put('list', bytes('x')), 'BAD_FORMAT')
      await fails(store.put('a', bytes('x'), { ifAbsent: true, ifVersion: 'x' }), 'INVALID')
      await fails(store.put('a', bytes('x'), { ifVersion: 'no version of ours' }), 'CONFLICT')
      await fails(store.remove('a', { ifVersion: 'no version of ours' }), 'CONFLICT')
    })
  })

  test('is opened in a thread of its own', async () => {
    compileOnce()
    await using blob = await openRemote(urlOf('prefix=w:&size=1M'), { shape: 'blob', worker: true })
    await blob.write(5, bytes('thread'))
    expect(text(await blob.read(4, 8))).toBe('\0thread\0')
    await using store = await openRemote(urlOf('prefix=w:&layout=chunks&size=1M'), { shape: 'blob' })
    expect(store.size).toBe(MiB)
    await fails(openRemote(urlOf('prefix=w:'), { shape: 'tree' }), 'USAGE')
  })

  describe('when the connection breaks', () => {
    test('what was asked is UNREACHABLE, and the next call connects again', async () => {
      await using store = await openStore(where())
      await store.put('a', bytes('x'))
      // So that it is on its way for as long as it takes.
      await server.admin.client('PAUSE', 60_000, 'WRITE')
      const asked = fails(store.put('a', bytes('y')), 'UNREACHABLE')
      await server.admin.ping()
      await killOthers(server)
      await asked
      await server.admin.client('UNPAUSE')
      expect((await store.get('a')).length).toBe(1)
    })

    test('no call is lost on the way, however often it breaks', async () => {
      const store = retry(await redisStore(where()), { firstMs: 1 })
      let over = false
      const killing = (async () => {
        while (!over) {
          await killOthers(server)
          await sleep(20)
        }
      })()
      try {
        for (let n = 0; n < 200; n++) {
          await store.put('a', bytes(String(n)))
          expect(text(await store.get('a'))).toBe(String(n))
        }
      } finally {
        over = true
        await killing
        await store.close()
      }
    })

    test('what it still had on its way is not done after what was written since', async () => {
      let held: (() => void) | undefined
      let isHolding = false
      // Keeps what a client has sent, and sends it on when the client has long gone.
      const slow = createServer({ allowHalfOpen: true }, near => {
        const far = connect({ port: server.port, host: '127.0.0.1', allowHalfOpen: true })
        const kept: Buffer[] = []
        near.on('data', bytes_ => (isHolding || kept.length > 0 ? kept.push(bytes_) : far.write(bytes_)))
        if (!isHolding) held ??= () => far.end(Buffer.concat(kept))
        far.on('data', bytes_ => near.write(bytes_))
        for (const socket of [near, far]) socket.on('error', () => {}).on('end', () => {})
      })
      slow.listen(0, '127.0.0.1')
      await once(slow, 'listening')
      const { port } = slow.address() as AddressInfo
      const store = await redisStore({ ...where('late:'), port, replyMs: 300 })
      try {
        await store.put('a', bytes('first'))
        isHolding = true
        await fails(store.put('a', bytes('late')), 'UNREACHABLE')
        isHolding = false
        await store.put('a', bytes('newer'))
        held!()
        await sleep(100)
        expect(text(await store.get('a'))).toBe('newer')
      } finally {
        await store.close()
        slow.close()
      }
    })

    test('what was closed stays closed', async () => {
      const connections = async () => /total_connections_received:(\d+)/.exec(await server.admin.info('stats'))![1]
      const store = await redisStore(where())
      const before = await connections()
      await store.close()
      await fails(store.get('a'), 'CLOSED')
      await sleep(50)
      await fails(store.get('a'), 'CLOSED')
      expect(await connections()).toBe(before)
    })
  })

  test('whose scripts were dropped gets them again', async () => {
    await using store = await openStore(where())
    await store.put('a', bytes('x'))
    await server.admin.script('FLUSH')
    await store.put('a', bytes('y'))
    expect(text(await store.get('a'))).toBe('y')
  })

  test('that is silent is not waited for: by the caller until its deadline, by the others until it is given up', async () => {
    await using store = await openStore({ ...where(), replyMs: 500 })
    await store.put('a', bytes('x'))
    server.process.kill('SIGSTOP')
    try {
      await fails(deadline(store, { ms: 50 }).get('a'), 'DEADLINE')
      const controller = new AbortController()
      const waiting = fails(store.get('a', undefined, controller.signal), 'ABORTED')
      controller.abort()
      await waiting
      await fails(store.get('a'), 'UNREACHABLE')
    } finally {
      server.process.kill('SIGCONT')
    }
    expect(text(await store.get('a'))).toBe('x')
    await fails(store.get('a', undefined, aborted()), 'ABORTED')
  })
})

needed.describe('a Redis server', () => {
  const started: RedisServer[] = []
  const start = async (...how: Parameters<typeof startRedis>) => {
    const server = await startRedis(...how)
    started.push(server)
    return server
  }
  afterEach(async () => {
    for (const server of started.splice(0)) await server.end()
  })

  test('that went away is UNREACHABLE, and all is well when it is back', async () => {
    const server = await start(['--appendonly', 'yes', '--appendfsync', 'always'])
    await using blob = await openRemote(`${server.url}?size=1M`, { shape: 'blob' })
    await using store = await openRemote(`${server.url}?prefix=s:`, { shape: 'store' })
    await blob.write(10, bytes('kept'))
    await store.put('a', bytes('kept'))
    await server.kill()
    await fails(blob.read(10, 4), 'UNREACHABLE')
    await fails(store.get('a'), 'UNREACHABLE')
    await fails(store.head('a'), 'UNREACHABLE')
    await expect(openRemote(server.url, { shape: 'store' })).rejects.toThrow(
      `the remote cannot be reached: ${server.url} (ECONNREFUSED)`,
    )
    await server.start()
    expect(text(await blob.read(10, 4))).toBe('kept')
    expect(text(await store.get('a'))).toBe('kept')
  })

  test('that lost what it had acknowledged, and was started again, has not flushed it', async () => {
    const server = await start(['--appendonly', 'yes', '--appendfsync', 'everysec'])
    await using blob = await openRemote(`${server.url}?size=1M`, { shape: 'blob' })
    await blob.write(0, bytes('kept'))
    await blob.flush()
    await blob.write(0, bytes('lost'))
    await server.kill()
    await server.start()
    await expect(blob.flush()).rejects.toThrow(/the server was started again, and may have lost writes/)
    await blob.write(0, bytes('made again'))
    await blob.flush()
    await server.kill()
    await server.start()
    await blob.flush()
  })

  test('with a password takes the one of the environment, of this user or the default one', async () => {
    const server = await start(['--requirepass', 'hunter2'], { password: 'hunter2' })
    const open = () => openRemote(server.url, { shape: 'store' })
    const refused = async (line: string) => {
      const error = await open().catch(thrown => thrown)
      expect(error).toMatchObject({ code: 'UNREACHABLE', lasting: true })
      expect(error.message).toBe(`the remote cannot be reached: ${server.url}: ${line}`)
    }
    await refused('the server wants a password; set REDIS_PASSWORD (NOAUTH)')
    process.env.REDIS_PASSWORD = 'wrong'
    await refused('the user or the password is wrong; check REDIS_USERNAME and REDIS_PASSWORD (WRONGPASS)')
    process.env.REDIS_PASSWORD = 'hunter2'
    await (await open()).close()

    await server.admin.call('acl', 'setuser', 'reader', 'on', '>secret', '~*', '+@read', '+eval', '+evalsha')
    process.env.REDIS_PASSWORD = 'secret'
    await refused('the user or the password is wrong; check REDIS_USERNAME and REDIS_PASSWORD (WRONGPASS)')
    process.env.REDIS_USERNAME = 'reader'
    await using store = await open()
    expect(await store.head('a')).toBeNull()
    await expect(store.put('a', bytes('x'))).rejects.toThrow(/access denied: .*this user may not do that/)
    process.env.REDIS_USERNAME = 'somebody'
    await using again = await openRemote(server.url.replace('//', '//reader@'), { shape: 'store' })
    expect([again.url, await again.head('a')]).toEqual([server.url, null])
  })

  test('without a password is as good as one with', async () => {
    const server = await start()
    process.env.REDIS_PASSWORD = 'for another one'
    await using store = await openRemote(server.url, { shape: 'store' })
    expect(await store.head('a')).toBeNull()
  })

  test('that is full is NO_SPACE: what it took is there, what is removed makes room, and then it goes on', async () => {
    const server = await start(['--maxmemory', '8mb', '--maxmemory-policy', 'noeviction'])
    await using blob = await openRemote(`${server.url}?size=64M`, { shape: 'blob' })
    await using store = await openRemote(`${server.url}?prefix=s:`, { shape: 'store' })
    let written = 0
    const full = await (async () => {
      for (;;) {
        await blob.write(written * CHUNK, new Uint8Array(CHUNK).fill(written + 1))
        written++
      }
    })().catch((error: unknown) => error)
    expect(full).toMatchObject({ code: 'NO_SPACE' })
    expect(String(full)).toMatch(/the server has reached its maxmemory \(OOM\)/)
    await fails(store.put('a', new Uint8Array(MiB)), 'NO_SPACE')
    expect(await store.head('a')).toBeNull()
    for (let n = 0; n < written; n++)
      expect((await blob.read(n * CHUNK, CHUNK)).every(byte => byte === n + 1)).toBe(true)
    await blob.trim!(10, 20 * CHUNK)
    await blob.write(written * CHUNK, bytes('goes on'))
    await store.put('a', bytes('x'))
    expect((await blob.read(0, CHUNK)).lastIndexOf(1)).toBe(9)
    await store.remove('a')
  })

  test('that drops keys when it is full is not taken', async () => {
    const server = await start(['--maxmemory', '100mb', '--maxmemory-policy', 'allkeys-lru'])
    await expect(openRemote(server.url, { shape: 'store' })).rejects.toThrow(
      /drops keys of ours \(maxmemory-policy allkeys-lru\); it must be noeviction/,
    )
    await server.admin.config('SET', 'maxmemory-policy', 'volatile-lru')
    await (await openRemote(server.url, { shape: 'store' })).close()
  })

  test('that is part of a cluster is not taken', async () => {
    const server = await start(['--cluster-enabled', 'yes'])
    await expect(openRemote(server.url, { shape: 'store' })).rejects.toThrow('this is a cluster; it must be a single')
  })

  test('that is a replica takes no changes, until it is a master again', async () => {
    const server = await start()
    await using store = await openRemote(server.url, { shape: 'store' })
    await store.put('a', bytes('x'))
    await server.admin.call('replicaof', '127.0.0.1', '1')
    await expect(store.put('a', bytes('y'))).rejects.toThrow('the server is a replica (READONLY)')
    expect(text(await store.get('a'))).toBe('x')
    await server.admin.call('replicaof', 'no', 'one')
    await store.put('a', bytes('y'))
  })

  requires('redis-server', 'openssl').test('behind TLS is spoken to when its certificate is trusted', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'pageferry-tls-'))
    const [key, certificate] = [join(folder, 'key.pem'), join(folder, 'certificate.pem')]
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost']
    const made = ['-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-keyout', key, '-out', certificate]
    execFileSync('openssl', ['req', ...made, ...subject], { stdio: 'ignore' })
    const files = ['--tls-cert-file', certificate, '--tls-key-file', key, '--tls-ca-cert-file', certificate]
    const server = await start([...files, '--tls-auth-clients', 'no'], { tls: true })
    await expect(openRemote(server.url, { shape: 'store' })).rejects.toThrow(
      `the remote cannot be reached: ${server.url} (DEPTH_ZERO_SELF_SIGNED_CERT)`,
    )
    process.env.REDIS_CA_FILE = join(folder, 'none.pem')
    await expect(openRemote(server.url, { shape: 'store' })).rejects.toThrow(/the CA file .*none.pem cannot be read/)
    process.env.REDIS_CA_FILE = certificate
    await using store = await openRemote(server.url, { shape: 'store' })
    await store.put('a', bytes('x'))
    expect([store.url, text(await store.get('a'))]).toEqual([server.url, 'x'])
    rmSync(folder, { recursive: true })
  })
})

// Debian's server is older than WAITAOF, so this one is played: it says that it is new, and has a log.
describe('a server that can say when its log is on its disk', () => {
  let logged = true
  let run = 1
  const heard: string[] = []
  const kept = new Map<string, string>()
  const bulk = (value: string | undefined) => (value === undefined ? '$-1\r\n' : `$${value.length}\r\n${value}\r\n`)
  const replies: Record<string, (args: string[]) => string> = {
    info: () => bulk(`redis_version:7.2.4\r\naof_enabled:1\r\nrun_id:${run}`),
    client: () => ':7\r\n',
    setnx: ([key, value]) => {
      if (kept.has(key)) return ':0\r\n'
      kept.set(key, value)
      return ':1\r\n'
    },
    get: ([key]) => bulk(kept.get(key)),
    set: () => '+OK\r\n',
    evalsha: () => ':1\r\n',
    waitaof: () => (logged ? '*2\r\n:1\r\n:0\r\n' : '*2\r\n:0\r\n:0\r\n'),
  }
  const server = createServer((socket: Socket) => {
    socket.on('data', data => {
      const words = data.toString('latin1').split('\r\n')
      for (let at = 0; words[at]?.startsWith('*'); ) {
        const end = at + 1 + 2 * Number(words[at].slice(1))
        const [name, ...args] = words.slice(at + 1, end).filter((_, n) => n % 2 === 1)
        heard.push(name)
        socket.write(replies[name](args))
        at = end
      }
    })
  })
  let place: { host: string; port: number }
  beforeAll(async () => {
    await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
    place = { host: '127.0.0.1', port: (server.address() as { port: number }).port }
  })
  afterAll(() => {
    server.close()
  })
  beforeEach(() => {
    logged = true
    heard.length = 0
  })

  test('is asked for that by a flush and by a put, after a change on the same connection', async () => {
    await using blob = await openBlob(place, MiB)
    await blob.flush()
    expect(heard.slice(-2)).toEqual(['set', 'waitaof'])
    await using store = await openStore(place)
    await store.put('a', bytes('x'))
    expect(heard.slice(-2)).toEqual(['set', 'waitaof'])
  })

  test('and cannot, has not flushed', async () => {
    await using blob = await openBlob(place, MiB)
    logged = false
    await fails(blob.flush(), 'DEADLINE')
  })

  test('and is another run by then, has not either', async () => {
    await using blob = await openBlob(place, MiB)
    await using store = await openStore(place)
    run++
    await fails(blob.flush(), 'UNREACHABLE')
    await fails(store.put('a', bytes('x')), 'UNREACHABLE')
  })
})

requires('built', 'redis-server').test(
  `a region in Redis is what was written, whatever becomes of its connections (SEED=${SEED})`,
  async () => {
    const random = randomOf(SEED)
    const folder = mkdtempSync(join(tmpdir(), 'pageferry-region-'))
    process.env.XDG_STATE_HOME = join(folder, 'state')
    process.env.XDG_RUNTIME_DIR = join(folder, 'run')
    const server = await startRedis()
    const model = Buffer.alloc(5 * MiB + 321)
    const url = `${server.url}?prefix=disk:`
    const open = (cache: string, query = '') =>
      openRegion(`${url}${query}`, { cacheDir: join(folder, cache), flushInterval: '20ms' })
    try {
      const region = await open('cache', `&size=${model.length}`)
      for (let n = 0; n < 120; n++) {
        const at = random.below(model.length)
        const length = Math.min(model.length - at, 1 + random.below(random.pick([100, 10_000, 500_000])))
        if (random.chance(0.2)) {
          model.fill(0, at, at + length)
          await region.trim(at, length)
        } else {
          const fresh = random.bytes(length)
          model.set(fresh, at)
          await region.write(at, fresh)
        }
        if (n % 10 === 5) await killOthers(server)
        if (n % 40 === 39) await region.sync()
        await sleep(5)
      }
      await region.sync()
      expect(region.status()).toMatchObject({ lag: { bytes: 0, operations: 0 }, problems: [] })
      await expect(open('other')).rejects.toMatchObject({ code: 'LEASE_HELD' })
      await region.close()

      const wholeOf = async (cache: string) => {
        const opened = await open(cache)
        const into = Buffer.alloc(model.length)
        await opened.read(0, into)
        await opened.close()
        expect(into.equals(model)).toBe(true)
        return opened.status().remote.bytesRead
      }
      // What is here is believed, since the blob has its version still.
      const [kept, fetched] = [await wholeOf('cache'), await wholeOf('fresh')]
      expect(fetched).toBeGreaterThan(MiB)
      expect(kept).toBeLessThan(fetched / 2)
      expect((await server.admin.keys('*')).filter(key => !key.startsWith('disk:'))).toEqual([])
      expect((await server.admin.keys('disk:.pageferry/log/*')).length).toBeGreaterThan(0)
      expect((await server.admin.keys('disk:.pageferry/stage/*')).length).toBe(0)
    } finally {
      await server.end()
      rmSync(folder, { recursive: true, force: true })
    }
  },
)
