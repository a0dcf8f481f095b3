// A blob behind NBD: our own server and those of others, servers that go away, and servers that talk nonsense.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { openRemote } from '../../src/open.js'
import { openRegion, type Region } from '../../src/open-region.js'
import type { Blob } from '../../src/remote/blob.js'
import { serveNbd } from '../../src/serve-nbd.js'
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

function answers(socket: string): Promise<boolean> {
  const probe = connect(socket)
  return new Promise(done => {
    probe.on('connect', () => done(true)).on('error', () => done(false))
  }).finally(() => probe.destroy()) as Promise<boolean>
}

async function listening(program: string, socket: string, args: string[]): Promise<ChildProcess> {
  const child = spawn(program, args, { stdio: 'ignore' })
  // The socket is there before anybody listens at it.
  for (let waited = 0; !(await answers(socket)); waited += 10) {
    if (waited > 5_000 || child.exitCode !== null) throw new Error(`${program} ${args.join(' ')} does not listen`)
    await sleep(10)
  }
  return child
}

/** An export of a program, as a blob. */
async function served(program: string, args: (socket: string) => string[], name = ''): Promise<Subject<Blob>> {
  const socket = fresh('socket')
  const child = await listening(program, socket, args(socket))
  const remote = await openRemote(`nbd+unix:///${name}?socket=${socket}`, { shape: 'blob' })
  return { remote, end: () => ended(child) }
}

const nbdkit = (...options: string[]) => {
  const [filters, rest] = [options.filter(one => one.startsWith('-')), options.filter(one => !one.startsWith('-'))]
  return (size: number) => (socket: string) => ['-f', '-U', socket, ...filters, 'memory', `size=${size}`, ...rest]
}

const ours = async (size: number): Promise<Subject<Blob>> => {
  const region = await openRegion(`mem:?size=${size}`, { cacheDir: fresh('cache') })
  const socket = fresh('socket')
  const server = await serveNbd(region, { listen: `unix:${socket}`, name: 'disk' })
  const remote = await openRemote(`nbd+unix:///disk?socket=${socket}`, { shape: 'blob' })
  return {
    remote,
    end: async () => {
      await server.close()
      await region.close()
    },
  }
}

const qemu = async (size: number): Promise<Subject<Blob>> => {
  const image = fresh('image')
  writeFileSync(image, '')
  truncateSync(image, size)
  return served('qemu-nbd', socket => ['-f', 'raw', '-t', '-e', '8', '-x', 'disk', '-k', socket, image], 'disk')
}

const servers: Record<string, (size: number) => Promise<Subject<Blob>>> = {
  'nbd: our own server': ours,
  'nbd: nbdkit': size => served('nbdkit', nbdkit()(size)),
  'nbd: nbdkit without structured replies': size => served('nbdkit', nbdkit('--no-sr')(size)),
  'nbd: nbdkit of long ago': size => served('nbdkit', nbdkit('--mask-handshake=0', '--no-sr')(size)),
  'nbd: nbdkit in blocks of 512': size =>
    served(
      'nbdkit',
      nbdkit('--filter=blocksize-policy', 'blocksize-minimum=512', 'blocksize-error-policy=error')(size),
    ),
  'nbd: qemu-nbd': qemu,
}
if (missing('nbd') === null) for (const [name, make] of Object.entries(servers)) blobSuite(name, make)

const open = async (url: string): Promise<Blob> => {
  const blob = await openRemote(url, { shape: 'blob' })
  opened.push(blob)
  return blob
}

needed.describe('a server that goes away', () => {
  needed.test('rejects what was on its way, and is found again when it is back', async () => {
    const socket = fresh('socket')
    const image = fresh('image')
    writeFileSync(image, Buffer.alloc(MiB, 'a'))
    const args = ['-f', 'raw', '-t', '-k', socket, image]
    const first = await listening('qemu-nbd', socket, args)
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    expect(Buffer.from(await blob.read(5, 3)).toString()).toBe('aaa')
    await ended(first)
    await expect(blob.read(0, 1)).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await expect(blob.read(0, 1)).rejects.toMatchObject({ code: 'UNREACHABLE' })
    rmSync(socket, { force: true })
    const second = await listening('qemu-nbd', socket, args)
    expect(Buffer.from(await blob.read(5, 3)).toString()).toBe('aaa')
    await ended(second)
    rmSync(socket, { force: true })
    truncateSync(image, 2 * MiB)
    children.push(await listening('qemu-nbd', socket, args))
    await expect(blob.read(0, 1)).rejects.toMatchObject({ code: 'STALE' })
  })

  needed.test('with errors of its own: each is what it was', async () => {
    const socket = fresh('socket')
    const errors = ['error-pread=ENOSPC', 'error-pread-rate=100%']
    const args = ['-f', '-U', socket, '--filter=error', 'memory', '1M', ...errors]
    children.push(await listening('nbdkit', socket, args))
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    await expect(blob.read(0, 10)).rejects.toMatchObject({ code: 'NO_SPACE' })
    await blob.write(0, Buffer.alloc(10))
  })

  needed.test('slowly: who aborts waits no longer, and the rest goes on', async () => {
    const socket = fresh('socket')
    children.push(
      await listening('nbdkit', socket, ['-f', '-U', socket, '--filter=delay', 'memory', '1M', 'rdelay=400ms']),
    )
    const blob = await open(`nbd+unix:///?socket=${socket}`)
    const begun = performance.now()
    const patient = blob.read(0, 4096)
    await expect(blob.read(0, 4096, AbortSignal.timeout(30))).rejects.toMatchObject({ code: 'ABORTED' })
    expect(performance.now() - begun).toBeLessThan(390)
    expect(await patient).toHaveLength(4096)
  })
})

needed.describe('a region of an export', () => {
  needed.test(
    `is what the model says, there as well, and after its server was gone (SEED=${SEED})`,
    async () => {
      const random = randomOf(SEED)
      const socket = fresh('socket')
      const image = fresh('image')
      const store = fresh('store')
      mkdirSync(store)
      const model = Buffer.from(random.bytes(6 * MiB))
      writeFileSync(image, model)
      const args = ['-f', 'raw', '-t', '-e', '8', '-k', socket, image]
      let server = await listening('qemu-nbd', socket, args)
      children.push(server)
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
        rmSync(socket, { force: true })
        await sleep(100)
        server = await listening('qemu-nbd', socket, args)
        children.push(server)
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
    ['nbd:///disk', /such a URL is like nbd:\/\/host:10809\/export, or nbd\+unix/],
    ['nbd://host/disk?socket=/x', /such a URL is like/],
    ['nbd+unix:///disk', /such a URL is like/],
    ['nbd://user:secret@host/disk', /credentials come from the environment/],
    ['nbd://127.0.0.1:1/disk?size=1G', /unknown "size" in the query of a blob/],
  ] as const)
    await expect(openRemote(url, { shape: 'blob' })).rejects.toMatchObject({
      code: 'USAGE',
      message: expect.stringMatching(message),
    })
  await expect(openRemote('nbd://127.0.0.1:1/disk', { shape: 'blob' })).rejects.toMatchObject({ code: 'UNREACHABLE' })
})

/** Answers each request with what `answer` makes of it, after a handshake as it should be. */
async function impostor(answer: (request: wire.Asked & { at: number; length: number }, socket: Socket) => void) {
  const details = {
    ...{ name: '', size: MiB, flags: wire.TransmissionFlag.HAS_FLAGS },
    blockSize: { minimum: 1, preferred: 4096, maximum: 32 * MiB },
  }
  const server: Server = createServer(socket => {
    socket.on('error', () => {})
    function* talk(): wire.Conversation {
      const send = (bytes: Uint8Array) => socket.write(bytes)
      yield* wire.serveHandshake({ exports: [details], tls: 'none', send, startTls: () => {} })
      for (;;) {
        const bytes = Buffer.from(yield wire.Request.size)
        const [cookieHigh, cookieLow, offsetHigh, offsetLow, length] = [8, 12, 16, 20, 24].map(at =>
          bytes.readUInt32BE(at),
        )
        answer({ cookieHigh, cookieLow, offsetHigh, offsetLow, at: offsetLow, length }, socket)
      }
    }
    const intake = new wire.Intake(talk())
    socket.on('data', bytes => intake.feed(bytes))
  })
  const path = fresh('impostor')
  server.listen(path)
  await once(server, 'listening')
  opened.push({ close: () => new Promise(done => server.close(done)) })
  return open(`nbd+unix:///?socket=${path}`)
}

test('a server that talks nonsense is hung up on, and what was asked of it fails', async () => {
  const nonsense: Record<string, (asked: wire.Asked & { at: number; length: number }) => Uint8Array> = {
    'no reply at all': () => Buffer.alloc(64, 0xff),
    'a cookie of nobody': asked => wire.done('structured', { ...asked, cookieLow: 12345 }),
    'nothing, and that it is all': asked => wire.done('structured', asked),
    'data from elsewhere': asked => wire.data('structured', asked, asked.at + 1, asked.length).bytes,
    'data from before': asked => wire.data('structured', asked, Math.max(0, asked.at - 1), asked.length).bytes,
    'too little': asked => wire.data('structured', asked, asked.at, asked.length - 1).bytes,
    'an error that is none': asked => wire.failed('structured', asked, 0, 'fine'),
    'a status that nobody asked for': asked => wire.blockStatus('structured', asked, 1, [{ length: 1, flags: 0 }]),
  }
  for (const [what, answer] of Object.entries(nonsense)) {
    const blob = await impostor((asked, socket) => socket.write(answer(asked)))
    const error = await blob.read(4096, 4096).catch((error: unknown) => error)
    expect({ what, error }).toMatchObject({ what, error: { code: 'PROTOCOL' } })
  }
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
        const answers = { waiting: () => waiting, settled: () => {} }
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
