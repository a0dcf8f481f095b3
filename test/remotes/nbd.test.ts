// A blob behind NBD: our own server and those of others, servers that go away, and servers that talk nonsense.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type NetConnectOpts, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { openRemote } from '../../src/open.js'
import { openRegion, type Region } from '../../src/open-region.js'
import type { Blob } from '../../src/remote/blob.js'
import { type ServeNbdOptions, serveNbd } from '../../src/serve-nbd.js'
import * as wire from '../../src/wire/nbd.js'
import { missing, requires } from '../fixtures/requires.js'
import { blobSuite, type Subject } from './primitives.js'

const MiB = 2 ** 20
const TEST_MS = 60_000
const SEED = Number(process.env.SEED ?? freshSeed())
const needed = requires('nbd')

let directory = ''
let count = 0
const children: ChildProcess[] = []
const opened: { close(): Promise<unknown> }[] = []
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'pageferry-nbd-'))
  process.env.XDG_STATE_HOME = join(directory, 'state')
  process.env.XDG_RUNTIME_DIR = join(directory, 'run')
})
afterEach(async () => {
  for (const one of opened.splice(0).reverse()) await one.close()
  for (const child of children.splice(0)) await ended(child)
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const fresh = (name: string) => join(directory, `${name}${count++}`)

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGKILL')
  await once(child, 'close')
}

/** Until somebody answers there. */
async function answering(to: NetConnectOpts, what: string): Promise<void> {
  for (let waited = 0; ; waited += 20) {
    const socket = connect(to)
    const answers = await new Promise(done => socket.on('data', () => done(true)).on('error', () => done(false)))
    socket.destroy()
    if (answers) return
    if (waited > 5_000) throw new Error(`${what} does not listen`)
    await sleep(20)
  }
}

async function listening(program: string, to: NetConnectOpts | string, args: string[]): Promise<ChildProcess> {
  if (typeof to === 'string') rmSync(to, { force: true })
  const child = spawn(program, args, { stdio: 'ignore' })
  children.push(child)
  await answering(typeof to === 'string' ? { path: to } : to, `${program} ${args.join(' ')}`)
  return child
}

async function freePort(): Promise<number> {
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  await new Promise(done => server.close(done))
  return port
}

/** An export of a program, as a blob. */
async function served(program: string, args: (socket: string) => string[], name = ''): Promise<Subject<Blob>> {
  const socket = fresh('socket')
  const child = await listening(program, socket, args(socket))
  const remote = await openRemote(`nbd+unix:///${name}?socket=${socket}`, { shape: 'blob' })
  return { remote, end: () => ended(child) }
}

/** What it says on the command line for a disk in memory: filters and flags, then what filters take. */
const nbdkit = (...options: string[]) => {
  const [flags, rest] = [options.filter(one => one.startsWith('-')), options.filter(one => !one.startsWith('-'))]
  return (size: number) => (socket: string) => ['-f', '-U', socket, ...flags, 'memory', `size=${size}`, ...rest]
}

const zerosOf = (size: number): string => {
  const image = fresh('image')
  writeFileSync(image, '')
  truncateSync(image, size)
  return image
}

async function ours(size: number, tls: Partial<ServeNbdOptions> = {}): Promise<Subject<Blob>> {
  const region = await openRegion(`mem:?size=${size}`, { cacheDir: fresh('cache') })
  const socket = fresh('socket')
  const server = await serveNbd(region, { listen: `unix:${socket}`, name: 'disk', ...tls })
  const scheme = tls.tlsCert || tls.pskFile ? 'nbds' : 'nbd'
  const remote = await openRemote(`${scheme}+unix:///disk?socket=${socket}`, { shape: 'blob' })
  return {
    remote,
    end: async () => {
      await server.close()
      await region.close()
    },
  }
}

const qemu = (size: number) =>
  served('qemu-nbd', socket => ['-f', 'raw', '-t', '-e', '8', '-x', 'disk', '-k', socket, zerosOf(size)], 'disk')

/** It goes into the background by itself. */
async function nbdServer(size: number): Promise<Subject<Blob>> {
  const [socket, config, pidFile] = [fresh('socket'), fresh('config'), fresh('pid')]
  const disk = { exportname: zerosOf(size), filesize: size, flush: true, fua: true, trim: true }
  const lines = Object.entries(disk).map(([key, value]) => `${key} = ${value}`)
  writeFileSync(config, ['[generic]', `unixsock = ${socket}`, '[disk]', ...lines, ''].join('\n'))
  spawn('nbd-server', ['-C', config, '-p', pidFile], { stdio: 'ignore' })
  await answering({ path: socket }, 'nbd-server')
  const pid = Number(readFileSync(pidFile, 'utf8'))
  const remote = await openRemote(`nbd+unix:///disk?socket=${socket}`, { shape: 'blob' })
  return {
    remote,
    async end() {
      process.kill(pid, 'SIGKILL')
      while (existsSync(`/proc/${pid}`)) await sleep(10)
    },
  }
}

const policy = ['--filter=blocksize-policy', 'blocksize-error-policy=error']
const servers: Record<string, (size: number) => Promise<Subject<Blob>>> = {
  'our own server': ours,
  nbdkit: size => served('nbdkit', nbdkit()(size)),
  'nbdkit without structured replies': size => served('nbdkit', nbdkit('--no-sr')(size)),
  'nbdkit that knows no options': size => served('nbdkit', nbdkit('--mask-handshake=0')(size)),
  'nbdkit in blocks of 512': size => served('nbdkit', nbdkit(...policy, 'blocksize-minimum=512')(size)),
  'nbdkit in blocks of 4096': size => served('nbdkit', nbdkit(...policy, 'blocksize-minimum=4096')(size)),
  'nbdkit that takes 1 MiB at once': size => served('nbdkit', nbdkit(...policy, 'blocksize-maximum=1M')(size)),
  'nbdkit without zeroes': size => served('nbdkit', nbdkit('--filter=nozero')(size)),
  'qemu-nbd': qemu,
  'nbd-server': nbdServer,
}
if (missing('nbd') === null) for (const [name, make] of Object.entries(servers)) blobSuite(`nbd: ${name}`, make)

const open = async (url: string): Promise<Blob> => {
  const blob = await openRemote(url, { shape: 'blob' })
  opened.push(blob)
  return blob
}

/** All of these variables, for as long as `work` takes. */
async function withEnvironment<T>(variables: Record<string, string>, work: () => Promise<T>): Promise<T> {
  Object.assign(process.env, variables)
  try {
    return await work()
  } finally {
    for (const name of Object.keys(variables)) delete process.env[name]
  }
}

needed.describe('a server that goes away', () => {
  needed.test('rejects what was on its way, and is found again when it is back', async () => {
    const [socket, image] = [fresh('socket'), fresh('image')]
    writeFileSync(image, Buffer.alloc(MiB, 'a'))
    const args = ['-f', '-U', socket, '--filter=delay', 'file', image, 'rdelay=500ms']
    const first = await listening('nbdkit', socket, args)
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    const outcomes = Promise.allSettled(Array.from({ length: 20 }, (_, n) => blob.read(n, 1)))
    await sleep(100)
    await ended(first)
    for (const outcome of await outcomes) expect(outcome).toMatchObject({ reason: { code: 'UNREACHABLE' } })
    await expect(blob.read(0, 1)).rejects.toMatchObject({ code: 'UNREACHABLE' })
    const second = await listening('nbdkit', socket, args)
    expect(Buffer.from(await blob.read(5, 3)).toString()).toBe('aaa')
    await ended(second)
    truncateSync(image, 2 * MiB)
    await listening('nbdkit', socket, args)
    await expect(blob.read(0, 1)).rejects.toMatchObject({
      code: 'STALE',
      message: expect.stringMatching(/had 1048576 bytes, and has 2097152 now/),
    })
  })

  needed.test('and comes back with other rules refuses nothing for good', async () => {
    const socket = fresh('socket')
    const first = await listening('qemu-nbd', socket, ['-f', 'raw', '-t', '-x', 'disk', '-k', socket, zerosOf(MiB)])
    const blob = await open(`nbd+unix:///disk?socket=${socket}`)
    await ended(first)
    await listening('qemu-nbd', socket, ['-f', 'raw', '-t', '-x', 'other', '-k', socket, zerosOf(MiB)])
    const error = await blob.write(0, Buffer.from('x')).catch((error: unknown) => error)
    expect(error).toMatchObject({ code: 'UNREACHABLE', lasting: true, message: expect.stringMatching(/disk/) })
  })

  needed.test('lets in no second connection: one does', async () => {
    const socket = fresh('socket')
    await listening('nbdkit', socket, nbdkit('--filter=limit', 'limit=1')(MiB)(socket))
    // The one of `answering` may take a moment to be forgotten.
    await sleep(200)
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    await Promise.all(Array.from({ length: 100 }, (_, n) => blob.write(n * 1000, Buffer.alloc(1000, n))))
    expect((await blob.read(99_000, 1))[0]).toBe(99)
  })

  needed.test('has errors of its own: each is what it was', async () => {
    for (const [name, code] of Object.entries({
      ENOSPC: 'NO_SPACE',
      EPERM: 'READ_ONLY',
      EINVAL: 'INVALID',
      EIO: 'IO',
    })) {
      const socket = fresh('socket')
      const filter = nbdkit('--filter=error', `error-pread=${name}`, 'error-pread-rate=100%')
      await listening('nbdkit', socket, filter(MiB)(socket))
      const blob = await open(`nbd+unix:///?socket=${socket}`)
      await expect(blob.read(0, 10)).rejects.toMatchObject({ code })
      await blob.write(0, Buffer.alloc(10))
    }
  })

  needed.test('fails one request in three: these, and no other', async () => {
    const socket = fresh('socket')
    await listening('nbdkit', socket, nbdkit('--filter=error', 'error=EIO', 'error-rate=33%')(MiB)(socket))
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    const works = async <T>(work: () => Promise<T>): Promise<T> => {
      for (let attempt = 0; ; attempt++)
        try {
          return await work()
        } catch (error) {
          expect(error).toMatchObject({ code: 'IO' })
          expect(attempt).toBeLessThan(100)
        }
    }
    const each = Array.from({ length: 200 }, (_, n) => n)
    await Promise.all(each.map(n => works(() => blob.write(n * 5000, Buffer.alloc(5000, n + 1)))))
    const parts = await Promise.all(each.map(n => works(() => blob.read(n * 5000, 5000))))
    for (const n of each) expect(Buffer.from(parts[n]).equals(Buffer.alloc(5000, n + 1))).toBe(true)
  })

  needed.test('is slow: who aborts waits no longer, and the rest goes on', async () => {
    const socket = fresh('socket')
    await listening('nbdkit', socket, nbdkit('--filter=delay', 'rdelay=400ms')(MiB)(socket))
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    const begun = performance.now()
    const patient = blob.read(0, 4096)
    await expect(blob.read(0, 4096, AbortSignal.timeout(30))).rejects.toMatchObject({ code: 'ABORTED' })
    expect(performance.now() - begun).toBeLessThan(390)
    expect(await patient).toHaveLength(4096)
  })

  needed.test('has as many connections as are of use', async () => {
    const region = await openRegion(`mem:?size=${MiB}`, { cacheDir: fresh('cache') })
    const socket = fresh('socket')
    const server = await serveNbd(region, { listen: `unix:${socket}` })
    opened.push(region, server)
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    await blob.read(0, 1)
    expect(server.connections).toBe(1)
    await Promise.all(Array.from({ length: 64 }, (_, n) => blob.read(n, 1)))
    expect(server.connections).toBe(4)
    await blob.close()
    while (server.connections > 0) await sleep(10)
    const single = await open(`nbd+unix:///?socket=${socket}&connections=1`)
    await Promise.all(Array.from({ length: 64 }, (_, n) => single.read(n, 1)))
    expect(server.connections).toBe(1)
  })
})

needed.describe('TLS', () => {
  /** An authority, and a certificate of it for each name, with SAN. */
  async function certificates(): Promise<string> {
    const place = fresh('tls')
    mkdirSync(place)
    const openssl = (...args: string[]) => promisify(execFile)('openssl', args, { cwd: place })
    const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
    await openssl('req', '-x509', ...curve, '-keyout', 'ca-key.pem', '-out', 'ca-cert.pem', '-subj', '/CN=ca')
    for (const who of ['server', 'client']) {
      writeFileSync(join(place, 'names'), 'subjectAltName=DNS:localhost,IP:127.0.0.1')
      await openssl('req', ...curve, '-keyout', `${who}-key.pem`, '-out', 'request', '-subj', `/CN=${who}`)
      const signed = ['-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial', '-extfile', 'names']
      await openssl('x509', '-req', '-in', 'request', ...signed, '-out', `${who}-cert.pem`)
    }
    return place
  }
  const environment = (place: string) => ({
    NBD_TLS_CA: join(place, 'ca-cert.pem'),
    NBD_TLS_CERT: join(place, 'client-cert.pem'),
    NBD_TLS_KEY: join(place, 'client-key.pem'),
  })
  const writesAndReads = async (blob: Blob) => {
    const bytes = randomOf(SEED).bytes(MiB)
    await blob.write(0, bytes)
    await blob.flush()
    expect(Buffer.from(await blob.read(0, MiB)).equals(bytes)).toBe(true)
  }

  needed.test(
    'with certificates on both sides; who is not the one that was meant is refused',
    async () => {
      const place = await certificates()
      const port = await freePort()
      const tls = ['--tls=require', `--tls-certificates=${place}`, '--tls-verify-peer']
      await listening('nbdkit', { port, host: '127.0.0.1' }, ['-f', '-p', `${port}`, ...tls, 'memory', '1M'])
      const url = (host: string) => `nbds://${host}:${port}/`
      const { NBD_TLS_CA } = environment(place)
      await withEnvironment(environment(place), async () => {
        await writesAndReads(await open(url('127.0.0.1')))
        await writesAndReads(await open(url('localhost')))
        await expect(open(`${url('127.0.0.1')}?tls-hostname=other.example`)).rejects.toMatchObject({
          ...{ code: 'FORBIDDEN', lasting: true, message: expect.stringMatching(/other\.example/) },
        })
      })
      await expect(open(url('127.0.0.1'))).rejects.toMatchObject({
        ...{ code: 'FORBIDDEN', message: expect.stringMatching(/certificate/) },
      })
      await withEnvironment({ NBD_TLS_CA }, () =>
        expect(open(url('127.0.0.1'))).rejects.toMatchObject({ code: expect.stringMatching(/FORBIDDEN|UNREACHABLE/) }),
      )
      await expect(open(`nbd://127.0.0.1:${port}/`)).rejects.toMatchObject({
        ...{ code: 'FORBIDDEN', message: expect.stringMatching(/nbds:\/\//) },
      })
    },
    TEST_MS,
  )

  needed.test('to our own server, over a Unix socket: whoever the authority vouches for', async () => {
    const place = await certificates()
    const tls = { tlsCert: join(place, 'server-cert.pem'), tlsKey: join(place, 'server-key.pem') }
    await withEnvironment({ NBD_TLS_CA: join(place, 'ca-cert.pem') }, async () => {
      const { remote, end } = await ours(MiB, tls)
      opened.push({ close: async () => end!() }, remote)
      await writesAndReads(remote)
    })
  })

  needed.test('with a key that both sides have', async () => {
    const [keys, wrong] = [fresh('keys'), fresh('keys')]
    writeFileSync(keys, `bob:${'00'.repeat(32)}\nalice:${'0123456789abcdef'.repeat(4)}\n`)
    writeFileSync(wrong, `alice:${'f'.repeat(64)}\n`)
    const socket = fresh('socket')
    await listening('nbdkit', socket, ['-f', '-U', socket, '--tls=require', `--tls-psk=${keys}`, 'memory', '1M'])
    const url = `nbds+unix:///?socket=${socket}`
    await withEnvironment({ NBD_PSK_FILE: keys, NBD_PSK_USERNAME: 'alice' }, async () => {
      await writesAndReads(await open(url))
      const { remote, end } = await ours(MiB, { pskFile: keys })
      opened.push({ close: async () => end!() }, remote)
      await writesAndReads(remote)
    })
    await withEnvironment({ NBD_PSK_FILE: wrong }, () =>
      expect(open(url)).rejects.toMatchObject({ code: expect.stringMatching(/FORBIDDEN|UNREACHABLE/) }),
    )
  })

  needed.test('is not done without where it was asked for', async () => {
    const socket = fresh('socket')
    await listening('nbdkit', socket, nbdkit()(MiB)(socket))
    await expect(open(`nbds+unix:///?socket=${socket}`)).rejects.toMatchObject({
      ...{ code: 'FORBIDDEN', message: expect.stringMatching(/the server has no TLS/) },
    })
  })

  test('begins with nothing that was said before it', async () => {
    const server = createServer(socket => {
      socket.on('error', () => {}).resume()
      const greeting = { magic: wire.SERVER_MAGIC, optionMagic: wire.OPTION_MAGIC, flags: 3 }
      socket.write(wire.Greeting.toBytes(greeting))
      // It says what it likes, and does not wait for being asked.
      const { STARTTLS, STRUCTURED_REPLY } = wire.Option
      const { ACK } = wire.OptionReply
      socket.write(
        Buffer.concat([STARTTLS, STRUCTURED_REPLY].map(option => Buffer.from(wire.optionReply(option, ACK)))),
      )
    })
    const path = fresh('socket')
    server.listen(path)
    await once(server, 'listening')
    opened.push({ close: () => new Promise(done => server.close(done)) })
    await expect(open(`nbds+unix:///?socket=${path}`)).rejects.toMatchObject({
      ...{ code: 'PROTOCOL', message: expect.stringMatching(/speaks on without TLS/) },
    })
  })
})

needed.describe('a region of an export', () => {
  const programs: Record<string, (socket: string, image: string) => [program: string, args: string[]]> = {
    'qemu-nbd': (socket, image) => ['qemu-nbd', ['-f', 'raw', '-t', '-e', '8', '-k', socket, image]],
    nbdkit: (socket, image) => ['nbdkit', ['-f', '-U', socket, 'file', image]],
    'nbdkit in blocks of 4096': (socket, image) => [
      'nbdkit',
      ['-f', '-U', socket, ...policy.slice(0, 1), 'file', image, ...policy.slice(1), 'blocksize-minimum=4096'],
    ],
  }
  for (const [name, command] of Object.entries(programs))
    needed.test(
      `is what the model says, there as well, and after its server was gone: ${name} (SEED=${SEED})`,
      async () => {
        const random = randomOf(SEED)
        const [socket, image, store] = [fresh('socket'), fresh('image'), fresh('store')]
        mkdirSync(store)
        const model = Buffer.from(random.bytes(6 * MiB))
        writeFileSync(image, model)
        const serve = () => listening(command(socket, image)[0], socket, command(socket, image)[1])
        let server = await serve()
        const region: Region = await openRegion(`nbd+unix:///?socket=${socket}`, {
          ...{ cacheDir: fresh('cache'), commitStore: store, flushInterval: '50ms' },
        })
        opened.push(region)
        expect(region.status().contract).toBe('remote')
        for (let round = 0; round < 3; round++) {
          for (let n = 0; n < 40; n++) {
            const at = random.below(model.length)
            const length = Math.min(model.length - at, 1 + random.below(200_000))
            if (random.chance(0.2)) {
              model.fill(0, at, at + length)
              await region.trim(at, length)
            } else {
              const bytes = random.bytes(length)
              model.set(bytes, at)
              await region.write(at, bytes)
            }
          }
          await ended(server)
          await sleep(100)
          server = await serve()
          const into = Buffer.alloc(model.length)
          await region.read(0, into)
          expect(into.equals(model)).toBe(true)
          await region.sync()
          expect(region.status()).toMatchObject({ lag: { bytes: 0, operations: 0 }, problems: [] })
          const copied = fresh('copied')
          await promisify(execFile)('nbdcopy', [`nbd+unix:///?socket=${socket}`, copied])
          expect(readFileSync(copied).equals(model)).toBe(true)
        }
      },
      TEST_MS,
    )

  test('takes no store for the commits of what has a place for them', async () => {
    const given = { cacheDir: fresh('cache'), commitStore: directory }
    await expect(openRegion(zerosOf(MiB), given)).rejects.toMatchObject({
      ...{ code: 'USAGE', message: expect.stringMatching(/kept beside it; --commit-store is for/) },
    })
  })

  needed.test('takes no store for its commits that is for another one', async () => {
    const store = fresh('store')
    mkdirSync(store)
    const serve = async (socket: string) => {
      await listening('nbdkit', socket, ['-f', '-U', socket, 'memory', '1M'])
      return (cache: string) =>
        openRegion(`nbd+unix:///?socket=${socket}`, { cacheDir: fresh(cache), commitStore: store })
    }
    const [one, other] = [await serve(fresh('one')), await serve(fresh('other'))]
    await (await one('cache')).close()
    await expect(other('cache-other')).rejects.toMatchObject({
      ...{ code: 'USAGE', message: expect.stringMatching(/--commit-store: .* is for nbd\+unix:.*one/) },
    })
    await (await one('cache-again')).close()
  })

  needed.test('without a store for its commits: what is promised is less, and said', async () => {
    const { remote, end } = await ours(MiB)
    opened.push({ close: async () => end!() }, remote)
    const region = await openRegion(remote.url, { cacheDir: fresh('cache') })
    opened.push(region)
    await region.write(10, Buffer.from('hello'))
    await region.sync()
    expect(region.status().contract).toBe('local')
    expect(Buffer.from(await remote.read(10, 5)).toString()).toBe('hello')
  })
})

test('a URL that is wrong is said to be so in one line', async () => {
  for (const [url, message] of [
    ['nbd:///disk', /a URL of NBD is like nbd:\/\/host:10809\/export, or nbd\+unix/],
    ['nbd://host/disk?socket=/x', /a URL of NBD is like/],
    ['nbd+unix:///disk', /a URL of NBD is like/],
    ['nbd+unix:///disk?socket=', /a URL of NBD is like/],
    ['nbd://user@host/disk', /a URL of NBD is like/],
    ['nbd://user:secret@host/disk', /credentials come from the environment/],
    ['nbd://host:70000/disk', /70000 is no port/],
    ['nbd://host/disk?connections=0', /connections is a number from 1 to 16/],
    ['nbd://host/disk?tls-hostname=x', /tls-hostname belongs to nbds/],
    ['nbd://127.0.0.1:1/disk?size=1G', /unknown "size" in the query of a blob/],
  ] as const)
    await expect(openRemote(url, { shape: 'blob' })).rejects.toMatchObject({
      code: 'USAGE',
      message: expect.stringMatching(message),
    })
  for (const [variables, message] of [
    [{ NBD_TLS_CA: '/nowhere' }, /NBD_TLS_CA: \/nowhere cannot be read \(ENOENT\)/],
    [{ NBD_TLS_CERT: '/dev/null' }, /NBD_TLS_CERT and NBD_TLS_KEY go together/],
    [{ NBD_PSK_FILE: '/dev/null' }, /NBD_PSK_USERNAME says which/],
    [{ NBD_PSK_FILE: '/dev/null', NBD_PSK_USERNAME: 'bob' }, /no line bob:HEX in \/dev\/null/],
  ] as const)
    await withEnvironment(variables, () =>
      expect(openRemote('nbds://127.0.0.1:1/', { shape: 'blob' })).rejects.toMatchObject({
        code: 'USAGE',
        message: expect.stringMatching(message),
      }),
    )
  await expect(openRemote('nbd://127.0.0.1:1/disk', { shape: 'blob' })).rejects.toMatchObject({ code: 'UNREACHABLE' })
})

needed.test('an export that is not there is said not to be there', async () => {
  const { remote, end } = await ours(MiB)
  opened.push({ close: async () => end!() }, remote)
  await expect(open(remote.url.replace('disk', 'other'))).rejects.toMatchObject({
    ...{ code: 'USAGE', message: expect.stringMatching(/no such export/) },
  })
})

type Asked = wire.Asked & { type: number; at: number; length: number; payload: Uint8Array }

/** Answers each request as `answer` says, after a handshake as it should be. `sockets`: those that are open. */
async function impostor(
  answer: (request: Asked, socket: Socket) => void,
  flags: number = wire.TransmissionFlag.HAS_FLAGS,
): Promise<{ url: string; sockets: Set<Socket> }> {
  const details = {
    ...{ name: '', size: MiB, flags },
    blockSize: { minimum: 1, preferred: 4096, maximum: MiB },
  }
  const sockets = new Set<Socket>()
  const server: Server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {}).on('close', () => sockets.delete(socket))
    function* talk(): wire.Conversation {
      const send = (bytes: Uint8Array) => socket.write(bytes)
      yield* wire.serveHandshake({ exports: [details], tls: 'none', send, startTls: () => {} })
      for (;;) {
        const header = Buffer.from(yield wire.Request.size)
        const type = header.readUInt16BE(6)
        const [cookieHigh, cookieLow, offsetHigh, offsetLow, length] = [8, 12, 16, 20, 24].map(at =>
          header.readUInt32BE(at),
        )
        const payload = type === wire.Command.WRITE ? Uint8Array.from(yield length) : new Uint8Array(0)
        answer({ type, cookieHigh, cookieLow, offsetHigh, offsetLow, at: offsetLow, length, payload }, socket)
      }
    }
    const intake = new wire.Intake(talk())
    socket.on('data', bytes => intake.feed(bytes))
  })
  const path = fresh('impostor')
  server.listen(path)
  await once(server, 'listening')
  opened.push({
    close: () => {
      for (const socket of sockets) socket.destroy()
      return new Promise(done => server.close(done))
    },
  })
  return { url: `nbd+unix:///?socket=${path}`, sockets }
}

/** A disk in the memory of an impostor. */
function disk(bytes: Uint8Array, asked: Asked, socket: Socket): void {
  const { type, at, length, payload } = asked
  const { Command } = wire
  if (type === Command.READ) {
    const { bytes: reply, into } = wire.data('structured', asked, at, length)
    into.set(bytes.subarray(at, at + length))
    socket.write(reply)
    return
  }
  if (type === Command.WRITE) bytes.set(payload, at)
  if (type === Command.WRITE_ZEROES) bytes.fill(0, at, at + length)
  socket.write(wire.done('structured', asked))
}

const { HAS_FLAGS, SEND_FLUSH, SEND_WRITE_ZEROES, CAN_MULTI_CONN } = wire.TransmissionFlag

test('a server that talks nonsense is hung up on, and what was asked of it fails', async () => {
  const nonsense: Record<string, (asked: Asked) => Uint8Array> = {
    'no reply at all': () => Buffer.alloc(64, 0xff),
    'a cookie of nobody': asked => wire.done('structured', { ...asked, cookieLow: 12345 }),
    'nothing, and that it is all': asked => wire.done('structured', asked),
    'data from elsewhere': asked => wire.data('structured', asked, asked.at + 1, asked.length).bytes,
    'data from before': asked => wire.data('structured', asked, Math.max(0, asked.at - 1), asked.length).bytes,
    'too little': asked => wire.data('structured', asked, asked.at, asked.length - 1).bytes,
    'an error that is none': asked => wire.failed('structured', asked, 0, 'fine'),
    'a status that nobody asked for': asked => wire.blockStatus('structured', asked, 1, [{ length: 1, flags: 0 }]),
    'data without a chunk': asked => wire.data('simple', asked, asked.at, asked.length).bytes,
  }
  for (const [what, answer] of Object.entries(nonsense)) {
    const { url, sockets } = await impostor((asked, socket) => socket.write(answer(asked)))
    const blob = await open(url)
    const error = await blob.read(4096, 4096).catch((error: unknown) => error)
    expect({ what, error }).toMatchObject({ what, error: { code: 'PROTOCOL' } })
    while (sockets.size > 0) await sleep(5)
  }
})

test('a write that was given up does not undo a newer one', async () => {
  const bytes = new Uint8Array(MiB)
  let writes = 0
  const { url } = await impostor((asked, socket) => {
    if (asked.type === wire.Command.WRITE && writes++ === 0) setTimeout(() => disk(bytes, asked, socket), 300)
    else disk(bytes, asked, socket)
  }, HAS_FLAGS | CAN_MULTI_CONN)
  const blob = await open(url)
  await expect(blob.write(0, Buffer.from('older'), AbortSignal.timeout(50))).rejects.toMatchObject({ code: 'ABORTED' })
  await Promise.all([blob.write(0, Buffer.from('newer')), blob.write(5, Buffer.from(' beside'))])
  await sleep(400)
  expect(Buffer.from(await blob.read(0, 12)).toString()).toBe('newer beside')
})

test(
  'a server that owes an answer for too long is left',
  async () => {
    const bytes = new Uint8Array(MiB)
    let writes = 0
    const { url } = await impostor((asked, socket) => {
      if (asked.type !== wire.Command.WRITE || writes++ > 0) disk(bytes, asked, socket)
    })
    const blob = await open(url)
    await expect(blob.write(0, Buffer.from('older'), AbortSignal.timeout(50))).rejects.toMatchObject({
      code: 'ABORTED',
    })
    const begun = performance.now()
    // It waits for the first one, and goes to another connection.
    await blob.write(0, Buffer.from('newer'))
    expect(performance.now() - begun).toBeGreaterThan(4_500)
    expect(Buffer.from(await blob.read(0, 5)).toString()).toBe('newer')
  },
  TEST_MS,
)

test('zeros that are too many for the server are asked for in smaller parts', async () => {
  const bytes = new Uint8Array(MiB).fill(1)
  const { url } = await impostor((asked, socket) => {
    const isRefused = asked.type === wire.Command.WRITE_ZEROES && asked.length > MiB / 2
    if (isRefused) socket.write(wire.failed('structured', asked, wire.NbdError.EINVAL, 'too many'))
    else disk(bytes, asked, socket)
  }, HAS_FLAGS | SEND_WRITE_ZEROES)
  const blob = await open(url)
  await expect(blob.trim!(0, MiB)).rejects.toMatchObject({
    code: 'INVALID',
    message: expect.stringMatching(/too many/),
  })
  await blob.trim!(7, MiB / 2)
  expect(bytes.indexOf(0)).toBe(7)
  expect(bytes.indexOf(1, 7)).toBe(7 + MiB / 2)
})

describe('a server that forgets, when it dies, what was not flushed', () => {
  /** `dies` says when: then it hangs up on everybody. */
  async function forgetful(dies: (asked: Asked) => boolean) {
    const durable = new Uint8Array(MiB)
    const bytes = new Uint8Array(MiB)
    const { url, sockets } = await impostor(
      (asked, socket) => {
        if (dies(asked)) {
          bytes.set(durable)
          for (const each of sockets) each.destroy()
          return
        }
        if (asked.type === wire.Command.FLUSH) durable.set(bytes)
        disk(bytes, asked, socket)
      },
      HAS_FLAGS | SEND_FLUSH | SEND_WRITE_ZEROES | CAN_MULTI_CONN,
    )
    return { url, durable }
  }

  test('is not believed by the next flush', async () => {
    const { url, durable } = await forgetful(({ type, at }) => type === wire.Command.READ && at === 999)
    const blob = await open(url)
    await blob.write(0, Buffer.from('first'))
    await blob.flush()
    await expect(blob.read(999, 1)).rejects.toMatchObject({ code: 'UNREACHABLE' })
    // Nothing was at stake.
    await blob.flush()
    await blob.write(10, Buffer.from('second'))
    await expect(blob.read(999, 1)).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await expect(blob.flush()).rejects.toMatchObject({ code: 'STALE' })
    expect(Buffer.from(durable.subarray(0, 16)).toString()).toBe('first\0\0\0\0\0\0\0\0\0\0\0')
    await blob.write(10, Buffer.from('second'))
    await blob.flush()
    expect(Buffer.from(durable.subarray(10, 16)).toString()).toBe('second')
  })

  test(
    `loses nothing of a region (SEED=${SEED})`,
    async () => {
      const random = randomOf(SEED)
      const model = Buffer.alloc(MiB)
      let flushes = 0
      const { url, durable } = await forgetful(({ type }) => type === wire.Command.FLUSH && flushes++ % 3 === 1)
      const region = await openRegion(url, { cacheDir: fresh('cache'), flushInterval: '20ms' })
      opened.push(region)
      for (let round = 0; round < 3; round++) {
        for (let n = 0; n < 10; n++) {
          const at = random.below(MiB - 50_000)
          const bytes = random.bytes(1 + random.below(50_000))
          model.set(bytes, at)
          await region.write(at, bytes)
        }
        await region.sync()
        expect(Buffer.from(durable).equals(model)).toBe(true)
      }
      expect(flushes).toBeGreaterThan(3)
    },
    TEST_MS,
  )
})

test('a reply in many pieces, holes among them and in any order, is put together', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 1, max: 900 }), { minLength: 1, maxLength: 12 }),
      fc.infiniteStream(fc.boolean()),
      fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1, maxLength: 10 }),
      async (lengths, holes, cuts) => {
        const total = lengths.reduce((sum, one) => sum + one, 0)
        const expected = Buffer.alloc(total)
        let at = 1000
        const pieces = lengths.map(length => {
          const isHole = holes.next().value
          const from = at
          at += length
          if (!isHole) expected.fill((from % 255) + 1, from - 1000, at - 1000)
          return { isHole, from, length }
        })
        const into = new Uint8Array(total)
        const filled = new (await import('../../src/chunk/intervals.js')).Intervals()
        let outcome = 'waits'
        const waiting: wire.Waiting = {
          ...{ at: 1000, into, filled, error: null },
          resolve: () => {
            outcome = 'answered'
          },
          reject: error => {
            outcome = error.message
          },
        }
        const asked = { cookieHigh: 0, cookieLow: 7, offsetHigh: 0, offsetLow: 1000 }
        const frames = pieces.reverse().map(({ isHole, from, length }) => {
          const { bytes, into: data } = wire.data('structured', asked, from, isHole ? 4 : length)
          const frame = Buffer.from(bytes)
          // Not the last one yet.
          frame.writeUInt16BE(0, 4)
          if (isHole) {
            frame.writeUInt16BE(wire.ChunkType.OFFSET_HOLE, 6)
            frame.writeUInt32BE(length, frame.length - 4)
          } else frame.fill((from % 255) + 1, frame.length - data.length)
          return frame
        })
        const stream = Buffer.concat([...frames, wire.done('structured', asked)])
        const answers = { style: 'structured' as const, waiting: () => waiting, settled: () => {} }
        const intake = new wire.Intake(wire.readAnswers(answers))
        for (let from = 0, n = 0; from < stream.length; n++) {
          const part = stream.subarray(from, from + cuts[n % cuts.length])
          intake.feed(part)
          from += part.length
        }
        expect(outcome).toBe('answered')
        expect(Buffer.from(into).equals(expected)).toBe(true)
      },
    ),
    { numRuns: 200 },
  )
})
