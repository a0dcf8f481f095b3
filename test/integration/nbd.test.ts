// NBD: regions as block devices, to clients that are not ours.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, expect } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { openRegion, type Region } from '../../src/open-region.js'
import type { RegionOptions } from '../../src/options.js'
import { type ServeNbdOptions, serveNbd } from '../../src/serve-nbd.js'
import * as wire from '../../src/wire/nbd.js'
import { viewOf } from '../../src/wire/reader.js'
import { long, requires } from '../fixtures/requires.js'

const MiB = 2 ** 20
const SIZE = 16 * MiB
const TEST_MS = 60_000
const SEED = Number(process.env.SEED ?? freshSeed())
/** With a Debian package of python's libnbd, whatever python else there is. */
const env = { ...process.env, PATH: `/usr/bin:${process.env.PATH}` }

interface Closing {
  close(): Promise<void>
}
const opened: Closing[] = []
let directory = ''
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'pageferry-nbd-'))
  process.env.XDG_STATE_HOME = join(directory, 'state')
  process.env.XDG_RUNTIME_DIR = join(directory, 'run')
})
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each.close()
  rmSync(directory, { recursive: true, force: true })
})

interface Ended {
  status: number
  stdout: string
  stderr: string
}

const runs = (program: string, ...args: string[]) =>
  new Promise<Ended>(done =>
    execFile(program, args, { env, timeout: TEST_MS, maxBuffer: 64 * MiB }, (error, stdout, stderr) =>
      done({ status: error ? Number(error.code ?? 1) : 0, stdout, stderr }),
    ),
  )
/** @returns what it printed */
async function works(program: string, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await runs(program, ...args)
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${status}\n${stdout}${stderr}`)
  return stdout
}

async function region(url = `mem:?size=${SIZE}`, options: RegionOptions = {}): Promise<Region> {
  const cacheDir = join(directory, `cache${opened.length}`)
  const one = await openRegion(url, { cacheDir, flushInterval: '100ms', ...options })
  opened.push(one)
  return one
}

async function serving(what: Parameters<typeof serveNbd>[0], options: Partial<ServeNbdOptions> = {}) {
  const path = join(directory, `socket${opened.length}`)
  const server = await serveNbd(what, { listen: `unix:${path}`, ...options })
  opened.push(server)
  return { server, path, uri: (name = '') => `nbd+unix:///${name}?socket=${path}` }
}

const file = (name: string, bytes: Uint8Array | string) => {
  const path = join(directory, name)
  writeFileSync(path, bytes)
  return path
}

const { describe, test } = requires('built', 'nbd')

describe('clients that are not ours', () => {
  test('nbdinfo is told of every export, and all there is to know of each', async () => {
    const [one, other] = [await region(), await region('mem:other?size=1M', { readOnly: true })]
    const { uri } = await serving([
      { name: 'dísk', description: 'a disk', region: one },
      { name: 'other', region: other },
    ])
    const { exports } = JSON.parse(await works('nbdinfo', '--list', '--json', uri()))
    expect(exports).toMatchObject([
      {
        'export-name': 'dísk',
        ...{ description: 'a disk', 'export-size': SIZE, is_read_only: false, is_rotational: false },
        ...{ can_cache: true, can_df: true, can_fast_zero: true, can_flush: true, can_fua: true },
        ...{ can_multi_conn: true, can_trim: true, can_zero: true, contexts: ['base:allocation'] },
        ...{ block_size_minimum: 1, block_size_preferred: 65536, block_size_maximum: 32 * MiB },
      },
      { 'export-name': 'other', 'export-size': MiB, is_read_only: true, can_trim: false, can_zero: false },
    ])
    expect(await runs('nbdinfo', uri('nobody'))).toMatchObject({ status: 1 })
  })

  test(
    'nbdcopy and qemu-img write an image and read it back',
    async () => {
      const random = randomOf(SEED)
      const image = file('image', Buffer.concat([random.bytes(5 * MiB), Buffer.alloc(6 * MiB), random.bytes(5 * MiB)]))
      const one = await region()
      const { uri, path } = await serving(one, { name: 'disk' })
      await works('nbdcopy', image, uri('disk'))
      await works('nbdcopy', '--connections=1', uri('disk'), join(directory, 'back'))
      expect(readFileSync(join(directory, 'back')).equals(readFileSync(image))).toBe(true)
      const qemu = `nbd:unix:${path}:exportname=disk`
      await works('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', image, qemu)
      const other = file('other', random.bytes(SIZE))
      await works('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', other, qemu)
      await works(
        'qemu-io',
        '-f',
        'raw',
        '-c',
        'write -P 7 12345 6789',
        '-c',
        'read -P 7 12345 6789',
        '-c',
        'flush',
        qemu,
      )
      await one.sync()
      const expected = readFileSync(other).fill(7, 12345, 12345 + 6789)
      const got = Buffer.alloc(SIZE)
      await one.read(0, got)
      expect(got.equals(expected)).toBe(true)
      expect(await works('nbdinfo', '--map', uri('disk'))).toMatch(/^\s*0\s+16777216\s+0\s+data/)
      await works('qemu-io', '-f', 'raw', '-c', 'write -z 1M 2M', '-c', 'discard 8M 1M', qemu)
      const map = (await works('nbdinfo', '--map', uri('disk'))).trim().split(/\s*\n\s*/)
      expect(map.map(line => line.split(/\s+/).slice(0, 3).map(Number))).toEqual([
        [0, MiB, 0],
        [MiB, 2 * MiB, 3],
        [3 * MiB, 5 * MiB, 0],
        [8 * MiB, MiB, 3],
        [9 * MiB, 7 * MiB, 0],
      ])
    },
    TEST_MS,
  )

  test(
    'libnbd asks what a careful client never asks, and is answered as the specification says',
    async () => {
      const { uri } = await serving(await region())
      expect(await works('/usr/bin/python3', resolve('test/fixtures/nbd-edges.py'), uri())).toBe('')
    },
    TEST_MS,
  )

  test(
    'fio finds what it wrote, over four connections, deep',
    async () => {
      const { uri } = await serving(await region('mem:?size=64M', { cacheSize: '32M', dirtyLimit: '8M' }))
      const common = ['--ioengine=nbd', `--uri=${uri()}`, '--iodepth=16', '--size=12M', '--offset_increment=16M']
      const work = [
        '--rw=randrw',
        '--bsrange=512-64k',
        '--bs_unaligned',
        '--verify=crc32c',
        '--verify_fatal=1',
        '--verify_state_save=0',
      ]
      await works('fio', '--name=x', ...common, ...work, '--numjobs=4', `--output=${join(directory, 'fio')}`)
    },
    TEST_MS,
  )

  test('nbdkit passes us on, without structured replies and with errors in between', async () => {
    const random = randomOf(SEED)
    const image = file('image', random.bytes(SIZE))
    const { path, uri } = await serving(await region())
    await works('nbdcopy', image, uri())
    const through = ['-U', '-', '--filter=noextents', '--no-sr', 'nbd', `socket=${path}`, '--run']
    await works('nbdkit', ...through, `nbdcopy "$uri" ${join(directory, 'back')}`)
    expect(readFileSync(join(directory, 'back')).equals(readFileSync(image))).toBe(true)
  })
})

describe('a server', () => {
  test('on one region and through the library: one disk', async () => {
    const one = await region()
    const { uri } = await serving(one)
    one.write(5_000, Buffer.from('from within'))
    const script = `
h.pwrite(b'from outside', 9000, nbd.CMD_FLAG_FUA)
assert bytes(h.pread(11, 5000)) == b'from within'`
    await works('nbdsh', '-u', uri(), '-c', script)
    const into = Buffer.alloc(12)
    await one.read(9_000, into)
    expect(into.toString()).toBe('from outside')
  })

  test('refuses changes to what is read-only', async () => {
    const image = file('image', Buffer.alloc(MiB, 'r'))
    const { uri } = await serving(await region(image), { readOnly: true })
    const script = `
import errno
h.set_strict_mode(0)
for work in (lambda: h.pwrite(b'x', 0), lambda: h.zero(1, 0), lambda: h.trim(1, 0)):
    try: work(); assert False
    except nbd.Error as error: assert error.errnum == errno.EPERM, error
assert bytes(h.pread(1, 0)) == b'r'
h.flush()`
    await works('nbdsh', '-u', uri(), '-c', script)
    expect(readFileSync(image).equals(Buffer.alloc(MiB, 'r'))).toBe(true)
  })

  test('says why bytes cannot be had, and goes on', async () => {
    const image = file('image', Buffer.alloc(MiB, 'i'))
    const { uri } = await serving(await region(image, { deadline: '2s' }))
    truncateSync(image, 0)
    const script = `
import errno
try: h.pread(1, 0); assert False
except nbd.Error as error: assert error.errnum == errno.EIO, error
h.pwrite(bytes(4096), 8192); assert bytes(h.pread(4096, 8192)) == bytes(4096)`
    await works('nbdsh', '-u', uri(), '-c', script)
  })

  test(
    'a flush on one connection makes what was written on all of them survive kill -9',
    async () => {
      const image = file('image', Buffer.alloc(MiB))
      const socket = join(directory, 'killed')
      const args = [resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'cli.js'), 'nbd', 'serve', image]
      const daemon = spawn(process.execPath, [...args, '--listen', `unix:${socket}`, '--flush-interval', '1h'], {
        env: { ...process.env, XDG_CACHE_HOME: join(directory, 'cache') },
        stdio: ['ignore', 'ignore', 'pipe'],
      })
      try {
        await once(daemon.stderr, 'data')
        const script = `
other = nbd.NBD(); other.connect_unix('${socket}')
other.pwrite(b'written on one', 70000); h.flush()`
        await works('nbdsh', '-u', `nbd+unix:///?socket=${socket}`, '-c', script)
      } finally {
        daemon.kill('SIGKILL')
        await once(daemon, 'close')
      }
      expect(readFileSync(image).equals(Buffer.alloc(MiB))).toBe(true)
      // The socket that it left behind is in nobody's way.
      const again = spawn(process.execPath, [...args, '--listen', `unix:${socket}`], {
        env: { ...process.env, XDG_CACHE_HOME: join(directory, 'cache') },
        stdio: ['ignore', 'ignore', 'pipe'],
      })
      await once(again.stderr, 'data')
      const script = `assert bytes(h.pread(14, 70000)) == b'written on one'`
      await works('nbdsh', '-u', `nbd+unix:///?socket=${socket}`, '-c', script)
      again.kill('SIGTERM')
      const [status] = await once(again, 'close')
      expect(status).toBe(0)
      expect(readFileSync(image).subarray(70_000, 70_014).toString()).toBe('written on one')
    },
    TEST_MS,
  )

  test('answers what is quick before what is slow', async () => {
    const { uri } = await serving(await region('mem:?size=8M', { simulate: 'rtt=300ms', prefetch: 'off' }))
    const script = `
import time
h.pwrite(bytes(4096), 0)
slow = nbd.Buffer(4096); quick = nbd.Buffer(4096); order = []
h.aio_pread(slow, 4 << 20, completion=lambda *a: order.append('slow') or 1)
h.aio_pread(quick, 0, completion=lambda *a: order.append('quick') or 1)
while h.aio_in_flight() > 0: h.poll(-1)
assert order == ['quick', 'slow'], order`
    await works('nbdsh', '-u', uri(), '-c', script)
  })

  test('lets in no more than it may, and the next one when one has left', async () => {
    const { path, server, uri } = await serving(await region(), { maxConnections: 2 })
    const held = [connect(path), connect(path)]
    await Promise.all(held.map(socket => once(socket, 'data')))
    expect(await runs('nbdinfo', uri())).toMatchObject({ status: 1 })
    held[0].destroy()
    while (server.connections > 1) await sleep(10)
    await works('nbdinfo', '--size', uri())
    held[1].destroy()
  })

  test('is closed with what was asked answered, and closing twice is fine', async () => {
    const one = await region('mem:?size=8M', { simulate: 'rtt=200ms' })
    const { server, path } = await serving(one)
    const client = await Client.open(path)
    client.ask(wire.Command.READ, 0, 4096)
    await sleep(50)
    const closed = server.close()
    expect(await client.answer(4096)).toMatchObject({ error: 0 })
    await closed
    await server.close()
    expect(client.socket.closed || client.socket.readableEnded || (await once(client.socket, 'end'))).toBeTruthy()
  })

  test('where nobody can listen it says so in one line', async () => {
    const one = await region()
    const taken = createServer()
    taken.listen(0, '127.0.0.1')
    await once(taken, 'listening')
    const { port } = taken.address() as { port: number }
    await expect(serveNbd(one, { listen: port })).rejects.toThrow(`nobody can listen at 127.0.0.1:${port} (EADDRINUSE)`)
    taken.close()
    await expect(serveNbd(one, { listen: '0.0.0.0:0' })).rejects.toThrow(/listen: 0.0.0.0 is seen by other machines/)
    await expect(serveNbd(one, { listen: 'unix:/nowhere/at/all' })).rejects.toThrow(/nobody can listen.*ENOENT/)
    await expect(serveNbd([{ region: one }, { region: one }], { listen: 0 })).rejects.toThrow(
      /two exports are called ""/,
    )
    await expect(serveNbd(one, { listen: 0, tlsCert: 'x' })).rejects.toThrow('tlsCert and tlsKey go together')
    await expect(serveNbd(one, { listen: 0, pskFile: file('psk', 'no key') })).rejects.toThrow(
      /line 1 of .* is not NAME:HEX/,
    )
  })
})

describe('TLS', () => {
  test(
    'with a certificate; nobody is told anything without it, unless that is asked for',
    async () => {
      const key = join(directory, 'key.pem')
      const certificate = join(directory, 'ca-cert.pem')
      const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1']
      const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key]
      await works('openssl', 'req', '-x509', ...kind, '-out', certificate, '-days', '2', ...subject)
      const one = await region()
      const tls = { tlsCert: certificate, tlsKey: key }
      const { server } = await serving(one, { listen: 0, ...tls })
      const { port } = server.address as { port: number }
      const secure = `nbds://localhost:${port}/?tls-certificates=${directory}`
      expect(await works('nbdinfo', secure)).toMatch(/with TLS, using structured packets/)
      const image = file('image', randomOf(SEED).bytes(SIZE))
      await works('nbdcopy', image, secure)
      await works('nbdcopy', secure, join(directory, 'back'))
      expect(readFileSync(join(directory, 'back')).equals(readFileSync(image))).toBe(true)
      expect(await runs('nbdinfo', `nbd://localhost:${port}`)).toMatchObject({ status: 1 })
      const both = await serving(one, { listen: 0, ...tls, insecure: true })
      const { port: open } = both.server.address as { port: number }
      await works('nbdinfo', `nbd://localhost:${open}`)
      await works('nbdinfo', `nbds://localhost:${open}/?tls-certificates=${directory}`)
    },
    TEST_MS,
  )

  test('with a key that both sides have', async () => {
    const keys = file('keys.psk', `alice:${'0123456789abcdef'.repeat(4)}\n`)
    const wrong = file('wrong.psk', `alice:${'f'.repeat(64)}\n`)
    const { server } = await serving(await region(), { listen: 0, pskFile: keys })
    const { port } = server.address as { port: number }
    const uri = (file: string) => `nbds://alice@localhost:${port}/?tls-psk-file=${file}`
    expect(await works('nbdinfo', uri(keys))).toMatch(/with TLS/)
    expect(await runs('nbdinfo', uri(wrong))).toMatchObject({ status: 1 })
    expect(await runs('nbdinfo', `nbd://localhost:${port}`)).toMatchObject({ status: 1 })
  })

  test('what is said in the same breath as STARTTLS does not count', async () => {
    const key = join(directory, 'key.pem')
    const certificate = join(directory, 'ca-cert.pem')
    const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key]
    await works('openssl', 'req', '-x509', ...kind, '-out', certificate, '-days', '2', '-subj', '/CN=localhost')
    const { path } = await serving(await region(), { tlsCert: certificate, tlsKey: key })
    const socket = connect(path)
    socket.write(wire.ClientFlags.toBytes({ flags: 3 }))
    socket.write(Buffer.concat([wire.option(wire.Option.STARTTLS), wire.option(wire.Option.LIST)]))
    const got: Buffer[] = []
    socket.on('data', bytes => got.push(bytes))
    await once(socket, 'close')
    // The greeting and the answer to STARTTLS, and no list.
    expect(Buffer.concat(got)).toHaveLength(wire.Greeting.size + wire.OptionReplyHeader.size)
  })
})

/** A client that says whatever it likes. Simple replies. */
class Client {
  readonly socket: Socket
  #bytes = Buffer.alloc(0)
  #cookie = 0

  constructor(socket: Socket) {
    this.socket = socket.setMaxListeners(0)
    socket.on('error', () => {})
    socket.on('data', bytes => {
      this.#bytes = Buffer.concat([this.#bytes, bytes])
    })
  }

  /** Of the export. */
  flags = 0

  static async open(path: string, name = ''): Promise<Client> {
    const client = new Client(connect(path))
    await client.take(wire.Greeting.size)
    client.socket.write(wire.ClientFlags.toBytes({ flags: 3 }))
    client.socket.write(wire.option(wire.Option.EXPORT_NAME, Buffer.from(name)))
    client.flags = wire.ExportReply.decode(viewOf(await client.take(wire.ExportReply.size))).flags
    return client
  }

  async take(length: number): Promise<Buffer> {
    while (this.#bytes.length < length) {
      if (this.socket.destroyed) throw new Error('closed')
      await Promise.race([once(this.socket, 'data'), once(this.socket, 'close')])
    }
    const taken = this.#bytes.subarray(0, length)
    this.#bytes = this.#bytes.subarray(length)
    return taken
  }

  ask(type: number, at: number, length: number, bytes = Buffer.alloc(0)): void {
    const cookieLow = ++this.#cookie
    const offset = { offsetHigh: Math.floor(at / 2 ** 32), offsetLow: at % 2 ** 32 }
    const request = { magic: wire.REQUEST_MAGIC, flags: 0, type, cookieHigh: 7, cookieLow, ...offset, length }
    this.socket.write(Buffer.concat([wire.Request.toBytes(request), bytes]))
  }

  async answer(bytes = 0): Promise<{ error: number; cookieLow: number; data: Buffer }> {
    const { error, cookieLow } = wire.SimpleReply.decode(viewOf(await this.take(wire.SimpleReply.size)))
    return { error, cookieLow, data: error === 0 ? await this.take(bytes) : Buffer.alloc(0) }
  }
}

describe('extended headers', () => {
  test('carry lengths beyond 32 bits, and payloads where they say so', async () => {
    const one = await region('mem:?size=5G')
    const { path } = await serving(one, { name: 'disk' })
    const client = new Client(connect(path))
    const { Command, CommandFlag, Option, OptionReply } = wire
    await client.take(wire.Greeting.size)
    client.socket.write(wire.ClientFlags.toBytes({ flags: 3 }))
    const reply = async () => {
      const { type, length } = wire.OptionReplyHeader.decode(viewOf(await client.take(wire.OptionReplyHeader.size)))
      return { type, data: await client.take(length) }
    }
    client.socket.write(wire.option(Option.EXTENDED_HEADERS))
    expect(await reply()).toMatchObject({ type: OptionReply.ACK })
    client.socket.write(wire.option(Option.SET_META_CONTEXT, wire.contextRequest('disk', ['base:allocation'])))
    expect(wire.parseMetaContext((await reply()).data)).toEqual({ id: 1, name: 'base:allocation' })
    await reply()
    client.socket.write(wire.option(Option.GO, wire.infoRequest('disk', [])))
    expect([(await reply()).type, (await reply()).type]).toEqual([OptionReply.INFO, OptionReply.ACK])

    const ask = async (type: number, flags: number, at: number, length: number, bytes = Buffer.alloc(0)) => {
      const identity = { cookieHigh: 9, cookieLow: type }
      const offset = { offsetHigh: Math.floor(at / 2 ** 32), offsetLow: at % 2 ** 32 }
      const request = { magic: wire.EXTENDED_REQUEST_MAGIC, flags, type, ...identity, ...offset, length }
      client.socket.write(Buffer.concat([wire.ExtendedRequest.toBytes(request), bytes]))
      const header = wire.ExtendedChunkHeader.decode(viewOf(await client.take(wire.ExtendedChunkHeader.size)))
      expect(header).toMatchObject({ magic: wire.EXTENDED_CHUNK_MAGIC, flags: 1, ...identity, ...offset })
      return { type: header.type, data: await client.take(header.length) }
    }
    const { PAYLOAD_LEN } = CommandFlag
    const at = 2 ** 32 + 5
    expect(await ask(Command.WRITE, PAYLOAD_LEN, at, 3, Buffer.from('abc'))).toMatchObject({
      type: wire.ChunkType.NONE,
    })
    expect(await ask(Command.READ, 0, at - 1, 4)).toEqual({
      type: wire.ChunkType.OFFSET_DATA,
      data: Buffer.concat([wire.DataOffset.toBytes({ offset: at - 1 }), Buffer.from('\0abc')]),
    })
    const isInvalid = { type: wire.ChunkType.ERROR, data: expect.objectContaining({ 3: wire.NbdError.EINVAL }) }
    // A payload where none belongs is taken off the line; a write without one, and offsets that no disk has, are refused.
    expect(await ask(Command.FLUSH, PAYLOAD_LEN, 0, 5, Buffer.from('12345'))).toMatchObject(isInvalid)
    expect(await ask(Command.BLOCK_STATUS, PAYLOAD_LEN, 0, 12, Buffer.alloc(12))).toMatchObject(isInvalid)
    expect(await ask(Command.WRITE, 0, 0, 10)).toMatchObject(isInvalid)
    expect(await ask(Command.READ, 0, 2 ** 63 + 2 ** 40, 1)).toMatchObject(isInvalid)
    // Not offered, and so not for clients to ask for.
    const isNotPermitted = { type: wire.ChunkType.ERROR, data: expect.objectContaining({ 3: wire.NbdError.EPERM }) }
    expect(await ask(Command.RESIZE, 0, 2 ** 30, 0)).toMatchObject(isNotPermitted)
    const status = await ask(Command.BLOCK_STATUS, 0, 0, 5 * 2 ** 30)
    expect(status.type).toBe(wire.ChunkType.BLOCK_STATUS_EXT)
    const { context, count } = wire.ExtendedBlockStatus.decode(viewOf(status.data))
    expect([context, status.data.length]).toEqual([1, 8 + 16 * count])
    client.socket.destroy()
  })
})

describe('RESIZE', () => {
  // As doc/proto.md of the branch extension-resize has it: the offset of the request is the new size, and there is no more to it.
  const OFFERED = 1 << 9
  const MAGIC = { request: '25609513', reply: '67446698' }
  const frame = (type: string, offset: string, length = '00000000') =>
    Buffer.from([MAGIC.request, '0000', type, '0102030405060708', offset, length].join(''), 'hex')
  const golden = {
    grow: frame('0008', '0000000000300000'),
    shrink: frame('0008', '0000000000000200'),
    readPast: frame('0000', '0000000000000200', '00000001'),
    readBeyondAll: frame('0000', '0000000000300000', '00000001'),
    readLast: frame('0000', '00000000002fffff', '00000001'),
  }
  const answered = (error: string) => `${MAGIC.reply}${error}0102030405060708`
  const [OK, EPERM, EINVAL, ENOSPC] = ['00000000', '00000001', '00000016', '0000001c'].map(answered)
  const says = async (client: Client, bytes: Buffer) => {
    client.socket.write(bytes)
    return (await client.take(16)).toString('hex')
  }

  test('makes the region larger and smaller, for all who have it', async () => {
    const path = file('disk', Buffer.alloc(MiB, 'x'))
    const one = await region(path)
    const { path: socket, uri } = await serving(one, { resizable: true })
    const client = await Client.open(socket)
    expect(await says(client, golden.readLast)).toBe(EINVAL)
    expect(await says(client, golden.grow)).toBe(OK)
    expect(await says(client, golden.readLast)).toBe(OK)
    expect(await client.take(1)).toEqual(Buffer.alloc(1))
    expect(await works('nbdinfo', '--size', uri())).toBe('3145728\n')
    const other = await Client.open(socket)
    // What another client has does not shrink under it.
    expect(await says(client, golden.shrink)).toBe(EPERM)
    other.socket.destroy()
    while ((await says(client, golden.shrink)) !== OK) await sleep(10)
    expect(one.size).toBe(512)
    // What was there and is not any more is no space; what never was is no place.
    expect(await says(client, golden.readPast)).toBe(ENOSPC)
    expect(await says(client, golden.readBeyondAll)).toBe(EINVAL)
    await one.sync()
    expect(readFileSync(path)).toEqual(Buffer.alloc(512, 'x'))
    client.socket.destroy()
  })

  test('is offered where it was said that clients may, and the region is to be written, and may have another size', async () => {
    const path = file('disk', Buffer.alloc(MiB))
    const upstream = await serving(await region('mem:?size=1M'))
    const fixed = `nbd+unix:///?socket=${upstream.path}`
    const regions = [await region(path), await region(`mem:read?size=1M`, { readOnly: true }), await region(fixed)]
    const flagsOf = async (options: Partial<ServeNbdOptions>) => {
      const named = regions.map((each, n) => ({ name: `${n}`, region: each }))
      const { path: socket } = await serving(named, options)
      return Promise.all(
        named.map(async ({ name }) => {
          const client = await Client.open(socket, name)
          client.socket.destroy()
          return client.flags & OFFERED
        }),
      )
    }
    expect(await flagsOf({})).toEqual([0, 0, 0])
    expect(await flagsOf({ resizable: true })).toEqual([OFFERED, 0, 0])
    const { path: socket } = await serving(regions[1], { resizable: true })
    expect(await says(await Client.open(socket), golden.grow)).toBe(EPERM)
  })
})

describe('a client that speaks the protocol badly', () => {
  test('or leaves in the middle of anything, is in nobody else’s way', async () => {
    const { server, path, uri } = await serving(await region('mem:?size=8M', { simulate: 'rtt=20ms' }))
    const states: ((client: Client) => Promise<unknown> | unknown)[] = [
      () => {},
      ({ socket }) => socket.write(Buffer.alloc(10)),
      client => client.ask(wire.Command.WRITE, 0, 4096),
      client => client.ask(wire.Command.WRITE, 0, 4096, Buffer.alloc(100)),
      client => client.ask(wire.Command.READ, 0, 4 * MiB),
      client => client.ask(99, 0, 0),
      client => client.ask(wire.Command.DISC, 0, 0),
      ({ socket }) => socket.write(Buffer.alloc(28, 0xff)),
      async client => {
        for (let n = 0; n < 300; n++) client.ask(wire.Command.READ, 0, 64 * 1024)
        await client.take(1)
      },
    ]
    for (const state of states)
      for (const leave of ['destroy', 'end'] as const) {
        const client = await Client.open(path)
        await state(client)
        client.socket[leave]()
      }
    const greeted = connect(path)
    await once(greeted, 'data')
    greeted.destroy()
    for (let waited = 0; server.connections > 0 && waited < 5_000; waited += 20) await sleep(20)
    expect(server.connections).toBe(0)
    await works('nbdinfo', '--size', uri())
  })

  test(
    `gets nothing that is not of the export, and does no harm: messages by chance (SEED=${SEED})`,
    async () => {
      const messages = long ? 1_000_000 : 20_000
      const random = randomOf(SEED)
      const one = await region('mem:?size=1M')
      const { server, path, uri } = await serving(one)
      const rest = Buffer.alloc(MiB / 2, 'k')
      one.write(MiB / 2, rest)
      for (let sent = 0; sent < messages; ) {
        const client = await Client.open(path)
        const parts: Buffer[] = []
        for (let n = 0; n < 400 && sent < messages; n++, sent++) {
          const at = random.pick([0, random.below(MiB / 2), MiB, random.below(2 ** 50)])
          const type = random.pick([0, 0, 2 + random.below(200), 3, 4, 5, 6, 6, 7, 1])
          const isWrite = type === wire.Command.WRITE
          const asked = random.pick([0, 1, 512, 4096, 70_000, random.below(2 ** 32)])
          const length = isWrite ? Math.min(asked, 70_000) : asked
          // Only the first half is ever changed.
          const isHarmful = at + length > MiB / 2 && at + length <= MiB
          const request = {
            magic: random.chance(0.999) ? wire.REQUEST_MAGIC : random.below(2 ** 32),
            ...{ flags: random.chance(0.8) ? 0 : random.below(2 ** 16), type: isHarmful ? wire.Command.FLUSH : type },
            ...{ cookieHigh: random.below(2 ** 32), cookieLow: sent },
            ...{ offsetHigh: Math.floor(at / 2 ** 32), offsetLow: at % 2 ** 32 },
            length,
          }
          parts.push(Buffer.from(wire.Request.toBytes(request)))
          if (isWrite && !isHarmful) parts.push(Buffer.from(random.bytes(length)))
          if (random.chance(0.002)) parts.push(Buffer.from(random.bytes(random.below(64))))
        }
        const closed = new Promise(done => client.socket.on('close', done))
        client.socket.end(Buffer.concat(parts))
        await Promise.race([closed, sleep(5_000)])
        client.socket.destroy()
      }
      for (let waited = 0; server.connections > 0 && waited < 5_000; waited += 20) await sleep(20)
      expect(server.connections).toBe(0)
      const kept = Buffer.alloc(MiB / 2)
      await one.read(MiB / 2, kept)
      expect(kept.equals(rest)).toBe(true)
      await works('nbdinfo', '--size', uri())
    },
    long ? 900_000 : TEST_MS,
  )
})

describe('the command', () => {
  test(
    'serves several regions, tells of them in status, sends with sync, and ends with umount',
    async () => {
      const paths = [file('one', Buffer.alloc(MiB)), file('two', Buffer.alloc(2 * MiB))]
      mkdirSync(join(directory, 'home'))
      const cli = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'cli.js')
      const socket = join(directory, 'listens')
      const home = { XDG_CACHE_HOME: join(directory, 'home'), XDG_STATE_HOME: join(directory, 'state') }
      Object.assign(env, { ...home, XDG_RUNTIME_DIR: join(directory, 'run') })
      const pageferry = (...args: string[]) => runs(process.execPath, cli, ...args)
      const [one, two] = paths
      const begun = await pageferry('nbd', 'serve', '--daemon', one, `two=${two}`, '--listen', `unix:${socket}`)
      const address = `nbd+unix:///?socket=${socket}`
      expect(begun).toMatchObject({ status: 0, stderr: '', stdout: expect.stringContaining(`at ${address} (daemon`) })
      await works('nbdsh', '-u', `nbd+unix:///two?socket=${socket}`, '-c', `h.pwrite(b'hello', 3)`)
      const status = await pageferry('status', '--json', address)
      expect(JSON.parse(status.stdout)).toMatchObject({
        address,
        regions: [
          { name: '', size: MiB, presence: [] },
          { name: 'two', size: 2 * MiB, lag: { operations: 1 }, presence: [[0, expect.any(Number)]] },
        ],
      })
      expect((await pageferry('status')).stdout).toMatch(/two {2}file:.*\n {2}daemon .*\n {2}size +2 MiB/)
      expect(await pageferry('sync', address)).toMatchObject({ status: 0 })
      expect(readFileSync(two).subarray(0, 8).toString()).toBe('\0\0\0hello')
      expect((await pageferry('nbd', 'serve', one, '--listen', '0')).stderr).toMatch(
        /daemon \d+ serves it at nbd\+unix/,
      )
      expect(await pageferry('umount', address)).toMatchObject({ status: 0, stdout: '', stderr: '' })
      expect((await pageferry('status')).stdout).toBe('nothing is mounted, and nothing is left to send\n')
      expect(statSync(socket, { throwIfNoEntry: false })).toBeUndefined()
    },
    TEST_MS,
  )

  test('says in one line what is wrong', async () => {
    const cli = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'cli.js')
    const image = file('image', Buffer.alloc(MiB))
    const cases: [args: string[], message: RegExp][] = [
      [['nbd', 'serve', image], /^pageferry: --listen: nothing was given; allowed: unix:PATH/],
      [['nbd', 'serve', image, '--listen', 'here'], /^pageferry: --listen: got "here"; allowed: unix:PATH/],
      [['nbd', 'serve', image, '--listen', '0.0.0.0:1'], /^pageferry: --listen: 0.0.0.0 is seen by other machines/],
      [['nbd', 'serve', `${image}.no`, '--listen', '0'], /^pageferry: .*image.no: no such file/],
      [['nbd', 'serve', image, image, '--listen', '0'], /^pageferry: of several regions each needs a name/],
      [
        ['nbd', 'serve', `a=${image}`, `b=${image}`, '--listen', '0', '--cache-dir', 'x'],
        /--cache-dir is for one region/,
      ],
      [['nbd', 'serve', image, '--listen', '0', '--tls-cert', image], /--tls-cert and --tls-key go together/],
      [['nbd'], /^Usage: pageferry nbd/],
    ]
    for (const [args, message] of cases) {
      const { status, stderr } = await runs(process.execPath, cli, ...args)
      expect({ args, status, stderr }).toMatchObject({ status: 2, stderr: expect.stringMatching(message) })
    }
  })
})
