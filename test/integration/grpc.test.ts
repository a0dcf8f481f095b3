// gRPC: directories and regions of one host on another, and what becomes of them when connections and servers break.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect as connectHttp2 } from 'node:http2'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, describe as always, beforeEach, expect, test as plain } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { openBeside, openRemote } from '../../src/open.js'
import { openRegion } from '../../src/open-region.js'
import { memBlob } from '../../src/remote/mem-blob.js'
import { memTree } from '../../src/remote/mem-tree.js'
import { retry } from '../../src/remote/retry.js'
import type { Store } from '../../src/remote/store.js'
import { type ServeOptions, serve } from '../../src/serve-remote.js'
import { cliPath, makePlace, run } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { bytes, fails, fileNode, text } from '../remotes/primitives.js'

const MiB = 2 ** 20
const TEST_MS = 120_000
const SEED = Number(process.env.SEED ?? freshSeed())
const settings = ['TOKEN', 'CA', 'CERT', 'KEY'].map(name => `PAGEFERRY_GRPC_${name}`)

interface Closing {
  close(): Promise<void>
}
const opened: Closing[] = []
let directory = ''
beforeEach(() => {
  for (const name of settings) delete process.env[name]
  directory = mkdtempSync(join(tmpdir(), 'pageferry-grpc-'))
  process.env.XDG_STATE_HOME = join(directory, 'state')
  process.env.XDG_RUNTIME_DIR = join(directory, 'run')
})
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each.close()
  rmSync(directory, { recursive: true, force: true })
})
const closing = <C extends Closing>(one: C): C => {
  opened.push(one)
  return one
}
const file = (name: string, content: string) => {
  const path = join(directory, name)
  writeFileSync(path, content)
  return path
}

/** A server on a port of its own, unless it is said where. */
async function serving(what: Parameters<typeof serve>[0], options: Partial<ServeOptions> = {}) {
  const server = closing(await serve(what, { listen: 0, ...options }))
  const { port } = server.address as { port: number }
  const scheme = options.tlsCert ? 'grpcs' : 'grpc'
  return { server, port, target: `127.0.0.1:${port}`, url: `${scheme}://127.0.0.1:${port}/` }
}

/** Passes on what comes, or keeps what a client says until it is released, even if the client has gone. */
async function between(port: number) {
  let isHolding = false
  let release = () => 0
  const sockets = new Set<Socket>()
  const clients = new Set<Socket>()
  const server = createServer({ allowHalfOpen: true }, near => {
    const far = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    const kept: Buffer[] = []
    near.on('data', part => (isHolding || kept.length > 0 ? kept.push(part) : far.write(part)))
    if (clients.size === 0)
      release = () => {
        const late = Buffer.concat(kept.splice(0))
        far.write(late)
        return late.length
      }
    clients.add(near)
    far.on('data', part => near.writable && near.write(part))
    for (const socket of [near, far]) sockets.add(socket.on('error', () => {}).on('end', () => {}))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return closing({
    url: `grpc://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    hold: (on: boolean) => {
      isHolding = on
    },
    /** Ends the connections of the clients, who know nothing of what is kept. */
    cut: () => {
      for (const socket of clients) socket.destroy()
    },
    /** Sends on what was kept of the first connection: how many bytes. */
    release: () => release(),
    async close() {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  })
}

always('who is let in', () => {
  plain('whoever shows the token, if there is one', async () => {
    const tokenFile = file('token', 'correct-horse-battery\nand a comment\n')
    const { url } = await serving(memTree(), { tokenFile })
    const refused = /the server wants its token \(PAGEFERRY_GRPC_TOKEN\)/
    await expect(openRemote(url, { shape: 'tree' })).rejects.toThrow(refused)
    process.env.PAGEFERRY_GRPC_TOKEN = 'correct-horse-batterz'
    await expect(openRemote(url, { shape: 'tree' })).rejects.toMatchObject({ code: 'UNREACHABLE', lasting: true })
    process.env.PAGEFERRY_GRPC_TOKEN = 'correct-horse-battery'
    const tree = closing(await openRemote(url, { shape: 'tree' }))
    expect(await tree.stat('nothing')).toBeNull()
    await expect(serve(memTree(), { listen: 0, tokenFile: file('short', 'abc\n') })).rejects.toThrow(
      /--token-file: the first line of .*short is to be 16 to 1,024/,
    )
    await expect(openRemote('grpc://192.0.2.1:4711/', { shape: 'tree' })).rejects.toThrow(/not sent in the clear/)
  })

  requires('openssl').test('whoever has a certificate of the authority, and trusts ours', async () => {
    const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: directory, stdio: 'pipe' })
    const key = (name: string) => ['-newkey', 'rsa:2048', '-nodes', '-keyout', `${name}.key`]
    const authority = (name: string) =>
      openssl('req', '-x509', ...key(name), '-days', '2', '-out', `${name}.pem`, '-subj', `/CN=${name}`)
    const signed = (name: string, by: string, alternative: string) => {
      openssl('req', ...key(name), '-out', `${name}.csr`, '-subj', `/CN=${name}`)
      file(`${name}.ext`, `subjectAltName=${alternative}\n`)
      const from = ['-CA', `${by}.pem`, '-CAkey', `${by}.key`, '-CAcreateserial', '-days', '2']
      openssl('x509', '-req', '-in', `${name}.csr`, ...from, '-extfile', `${name}.ext`, '-out', `${name}.pem`)
    }
    authority('ca')
    authority('other')
    signed('server', 'ca', 'DNS:storage.test')
    signed('client', 'ca', 'DNS:client')
    signed('stranger', 'other', 'DNS:client')
    const of = (name: string) => ({ cert: join(directory, `${name}.pem`), key: join(directory, `${name}.key`) })
    const { url } = await serving(memTree(), {
      ...{ tlsCert: of('server').cert, tlsKey: of('server').key, tlsCa: join(directory, 'ca.pem') },
    })
    const named = `${url}?tls-hostname=storage.test`
    const as = async (name: string | null, where = named) => {
      Object.assign(process.env, { PAGEFERRY_GRPC_CA: join(directory, 'ca.pem') })
      for (const which of ['cert', 'key'] as const) {
        const variable = `PAGEFERRY_GRPC_${which.toUpperCase()}`
        if (name === null) delete process.env[variable]
        else process.env[variable] = of(name)[which]
      }
      return openRemote(where, { shape: 'tree' })
    }
    const tree = closing(await as('client'))
    await tree.make('a', fileNode)
    await fails(as(null), 'UNREACHABLE')
    await fails(as('stranger'), 'UNREACHABLE')
    // It is not whom the URL names.
    await fails(as('client', url), 'UNREACHABLE')
    await fails(as('client', url.replace('grpcs', 'grpc')), 'UNREACHABLE')
    delete process.env.PAGEFERRY_GRPC_KEY
    await expect(openRemote(named, { shape: 'tree' })).rejects.toThrow(/go together/)
    process.env.PAGEFERRY_GRPC_CERT = ''
    delete process.env.PAGEFERRY_GRPC_CA
    await expect(openRemote(named, { shape: 'tree' })).rejects.toThrow(/unable to verify|self.signed/)
  })

  plain('no more than so many at once', async () => {
    const { url, server } = await serving(memTree(), { maxConnections: 2 })
    const two = [closing(await openRemote(url, { shape: 'tree' })), closing(await openRemote(url, { shape: 'tree' }))]
    expect(server.connections).toBe(2)
    await fails(openRemote(url, { shape: 'tree' }), 'UNREACHABLE')
    await two[0].close()
    for (let n = 0; server.connections === 2 && n < 200; n++) await sleep(10)
    closing(await openRemote(url, { shape: 'tree' }))
  })

  plain('nobody changes anything where it is read-only', async () => {
    const blob = memBlob({ size: MiB })
    const { url } = await serving(blob, { readOnly: true })
    const remote = closing(await openRemote(url, { shape: 'blob' }))
    expect(remote.capabilities.write).toBe(false)
    await fails(remote.write(0, bytes('x')), 'READ_ONLY')
    await fails(remote.trim!(0, 1), 'READ_ONLY')
    expect(text(await remote.read(0, 1))).toBe('\0')
  })
})

always('what is there', () => {
  plain('is called by what it is, in one line', async () => {
    const tree = await serving(memTree())
    const blob = await serving(memBlob({ size: MiB }))
    await expect(openRemote(tree.url, { shape: 'blob' })).rejects.toThrow(/is a directory, not a file/)
    await expect(openRemote(blob.url, { shape: 'tree' })).rejects.toThrow(/is not a directory/)
    await expect(openRemote(`${blob.url}?size=2M`, { shape: 'blob' })).rejects.toThrow(
      `the region there has ${MiB} bytes, not ${2 * MiB}`,
    )
    await expect(openRemote('grpc://127.0.0.1:1/', { shape: 'tree' })).rejects.toThrow(
      /^the remote cannot be reached: grpc:\/\/127.0.0.1:1\/: No connection established. Last error: Error: connect ECONNREFUSED 127.0.0.1:1$/,
    )
    for (const wrong of ['grpc://host', 'grpc:///', 'grpc://host:1/deep', 'grpc+unix:///', 'grpc://host:1/?socket=/x'])
      await expect(openRemote(wrong, { shape: 'tree' })).rejects.toThrow(/a URL of gRPC is like grpcs:\/\/host:4711\//)
    await expect(openRemote('grpc://host:99999/', { shape: 'tree' })).rejects.toThrow('99999 is no port')
    await expect(openRemote('grpc://host:1/?tls-hostname=x', { shape: 'tree' })).rejects.toThrow(/belongs to grpcs/)
  })

  plain('is not taken for something else that is served there later', async () => {
    const listen = `unix:${join(directory, 'socket')}`
    const url = `grpc+unix:///?socket=${join(directory, 'socket')}`
    const first = await serve(memBlob({ size: MiB }), { listen })
    const blob = closing(await openRemote(url, { shape: 'blob' }))
    await blob.write(0, bytes('here'))
    await first.close()
    await fails(blob.read(0, 4), 'UNREACHABLE')
    closing(await serve(memBlob({ size: 2 * MiB }), { listen }))
    await expect(async () => {
      for (;;) {
        await blob.read(0, 4).catch(error => {
          if (error.lasting) throw error
        })
        await sleep(50)
      }
    }).rejects.toThrow(/something else is served there by now/)
  })

  plain(
    'is not asked for in another version of the protocol, and nonsense ends nobody but its sender',
    async () => {
      const { url, port } = await serving(memTree())
      const tree = closing(await openRemote(url, { shape: 'tree' }))
      const random = randomOf(SEED)
      for (let n = 0; n < 20; n++) {
        const socket = connect(port, '127.0.0.1')
          .on('error', () => {})
          .resume()
        socket.end(random.bytes(1 + random.below(5000)))
        await once(socket, 'close')
      }
      // Right HTTP/2, and then frames and messages of any kind.
      for (let n = 0; n < 100; n++) {
        const session = connectHttp2(`http://127.0.0.1:${port}`).on('error', () => {})
        const method = random.pick(['Stat', 'List', 'Read', 'Write', 'Make', 'SetXattrs', 'Sync', 'Nothing'])
        const stream = session.request({
          ...{ ':method': 'POST', ':path': `/pageferry.v1.${random.pick(['Tree', 'Store'])}/${method}` },
          ...{ 'content-type': 'application/grpc', te: 'trailers', 'pageferry-session': 'x', 'pageferry-epoch': '1' },
        })
        const message = random.bytes(random.below(300))
        const head = Buffer.alloc(5)
        head.writeUInt32BE(random.chance(0.2) ? random.below(2 ** 32) : message.length, 1)
        stream.on('error', () => {})
        stream.end(Buffer.concat([head, message]))
        stream.resume()
        await Promise.race([once(stream, 'close'), sleep(500)])
        session.destroy()
      }
      expect(await tree.stat('nothing')).toBeNull()
    },
    TEST_MS,
  )

  plain('no message makes a server keep more than it may', async () => {
    const { url } = await serving(memBlob({ size: 64 * MiB }), { store: undefined })
    const blob = closing(await openRemote(url, { shape: 'blob' }))
    const { requestBytesMax } = blob.capabilities
    await fails(blob.read(0, requestBytesMax + 1), 'TOO_LARGE')
    await fails(blob.write(0, new Uint8Array(requestBytesMax + 1)), 'TOO_LARGE')
    expect((await blob.read(0, requestBytesMax)).length).toBe(requestBytesMax)
    // By whoever does not keep to it.
    const { GrpcConnection } = await import('../../src/remote/grpc-client.js')
    const { service, REQUEST_BYTES_MAX, MESSAGE_BYTES_MAX } = await import('../../src/remote/grpc-proto.js')
    const rude = closing(new GrpcConnection({ target: url.slice('grpc://'.length, -1), tls: null, shown: url }))
    const long = { at: 0, bytes: Buffer.alloc(REQUEST_BYTES_MAX + 1) }
    await fails(rude.ask(service('Blob'), 'Write', long, { changes: true }), 'PROTOCOL')
    await fails(
      rude.ask(service('Blob'), 'Write', { at: 0, bytes: Buffer.alloc(MESSAGE_BYTES_MAX) }),
      'IO',
      'UNREACHABLE',
    )
    await fails(rude.ask(service('Blob'), 'Write', { at: 0, bytes: bytes('x') }), 'PROTOCOL')
    expect((await blob.read(0, 10)).length).toBe(10)
  })
})

always('a client that is slow', () => {
  plain('is given up, and holds up nobody', async () => {
    const blob = closing(await openRemote(`file://${join(directory, 'disk')}?size=64M`, { shape: 'blob' }))
    const store = closing((await openBeside(join(directory, 'disk'))) as Store)
    const { listenGrpc } = await import('../../src/serve/server.js')
    const server = closing(
      await listenGrpc(
        { remote: blob, store },
        {
          ...{ listen: { host: '127.0.0.1', port: 0 }, tls: null, readOnly: false },
          ...{ connectionsMax: 10, callMsMax: 300 },
        },
      ),
    )
    const target = `127.0.0.1:${(server.address as { port: number }).port}`
    const { Client, credentials, Metadata } = await import('@grpc/grpc-js')
    const { procedure, service } = await import('../../src/remote/grpc-proto.js')
    // With a window of 64 KiB, of which nothing is taken.
    const client = new Client(target, credentials.createInsecure())
    const { path, requestSerialize, responseDeserialize } = procedure(service('Blob'), 'Read')
    const reads = Array.from({ length: 100 }, (_, n) => {
      const stream = client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, {
        ...{ at: (n % 16) * 4 * MiB, length: 4 * MiB },
      })
      return new Promise<number>(done => stream.on('error', error => done((error as { code?: number }).code ?? -1)))
    })
    const put = procedure(service('Store'), 'Put')
    const puts = Array.from({ length: 8 }, (_, n) => {
      const headers = new Metadata()
      headers.set('pageferry-session', 'slow')
      headers.set('pageferry-epoch', '1')
      return new Promise<number>(done => {
        const end = (error: { code: number } | null) => done(error?.code ?? 0)
        const stream = client.makeClientStreamRequest(
          put.path,
          put.requestSerialize,
          put.responseDeserialize,
          headers,
          end,
        )
        stream.write({ name: Buffer.from(`n${n}`), bytes: Buffer.alloc(1000) })
      })
    })
    const other = closing(await openRemote(`grpc://${target}/`, { shape: 'blob' }))
    const began = performance.now()
    expect((await other.read(0, 4 * MiB)).length).toBe(4 * MiB)
    expect(performance.now() - began).toBeLessThan(10_000)
    const DEADLINE_EXCEEDED = 4
    expect(new Set(await Promise.all(puts))).toEqual(new Set([DEADLINE_EXCEEDED]))
    // Those that wait for their turn are answered as late.
    for (const code of await Promise.all(reads)) expect(code).toBe(DEADLINE_EXCEEDED)
    client.close()
  })
})

always('when connections and servers break', () => {
  plain('what was given up is not done after what was asked for since', async () => {
    const blob = memBlob({ size: MiB })
    const { port } = await serving(blob)
    const line = await between(port)
    const remote = closing(await openRemote(line.url, { shape: 'blob' }))
    await remote.write(0, bytes('first'))
    line.hold(true)
    await fails(remote.write(0, bytes('late!'), AbortSignal.timeout(100)), 'ABORTED')
    line.hold(false)
    line.cut()
    const again = retry(remote, { firstMs: 20 })
    await again.write(0, bytes('newer'))
    expect(line.release()).toBeGreaterThan(0)
    await sleep(200)
    expect(text(await remote.read(0, 5))).toBe('newer')
  })

  plain('a sync says so when another run of the server may have lost what was to be synced', async () => {
    const tree = memTree()
    const listen = `unix:${join(directory, 'socket')}`
    const url = `grpc+unix:///?socket=${join(directory, 'socket')}`
    let server = await serve(tree, { listen })
    const remote = closing(await openRemote(url, { shape: 'tree' }))
    const again = async () => {
      await server.close()
      server = closing(await serve(tree, { listen }))
      for (;;)
        try {
          return await remote.stat('a')
        } catch {
          await sleep(20)
        }
    }
    await remote.make('a', fileNode)
    await again()
    await fails(remote.sync(['a'], AbortSignal.abort()), 'ABORTED')
    await fails(remote.sync(['a']), 'STALE')
    // Whoever was told makes it again.
    await remote.write('a', 0, bytes('x'))
    await remote.sync(['a'])
    await again()
    await remote.sync(['a'])
  })

  plain('what is uploaded far away needs few round trips', async () => {
    const { port } = await serving(memBlob({ size: 64 * MiB }))
    const RTT_MS = 40
    const slow = createServer(near => {
      const far = connect(port, '127.0.0.1')
      const late = (from: Socket, to: Socket) =>
        from.on('data', part => setTimeout(() => to.writable && to.write(part), RTT_MS / 2)).on('error', () => {})
      late(near, far)
      late(far, near)
      near.on('close', () => far.destroy())
    })
    slow.listen(0, '127.0.0.1')
    await once(slow, 'listening')
    const remote = closing(
      await openRemote(`grpc://127.0.0.1:${(slow.address() as AddressInfo).port}/`, { shape: 'blob' }),
    )
    closing({ close: async () => void slow.close() })
    const [piece, began] = [new Uint8Array(4 * MiB), performance.now()]
    await remote.write(0, piece)
    expect((await remote.read(0, piece.length)).length).toBe(piece.length)
    // With 64 KiB on their way at once it would be 64 round trips each.
    expect(performance.now() - began).toBeLessThan(40 * RTT_MS)
  })
})

const { test } = requires('built', 'fuse')

/** The command line's server, which can be killed. */
async function startServer(args: string[], env: NodeJS.ProcessEnv): Promise<{ child: ChildProcess; line: string }> {
  const child = spawn(process.execPath, [cliPath(), 'serve', ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [child.stdout!, child.stderr!]) stream.on('data', part => (said += part))
  for (let n = 0; !said.includes('Ctrl-C ends'); n++) {
    if (child.exitCode !== null || n > 1000) throw new Error(`no server: ${said}`)
    await sleep(20)
  }
  return { child, line: said }
}
const kill = async (child: ChildProcess, signal: NodeJS.Signals = 'SIGKILL') => {
  const over = once(child, 'exit')
  child.kill(signal)
  await over
}

test(
  `a directory of another host is mounted, and loses nothing while its server is killed again and again (SEED=${SEED})`,
  async () => {
    const random = randomOf(SEED)
    const place = await makePlace()
    const kept = join(place.folder, 'kept')
    mkdirSync(kept)
    const socket = join(place.folder, 'socket')
    const start = () => startServer([place.remote, '--listen', `unix:${socket}`], place.env)
    let { child, line } = await start()
    expect(line).toContain(`file://${place.remote} at grpc+unix:///?socket=${socket}`)
    place.url = `grpc+unix:///?socket=${socket}`
    const mount = await place.mount('--flush-interval', '50ms')
    for (let n = 0; n < 12; n++) {
      const content = Buffer.from(random.bytes(1 + random.below(400_000)))
      writeFileSync(join(kept, `f${n % 7}`), content)
      writeFileSync(join(place.folder, 'next'), content)
      await run(
        'sh',
        ['-c', `mkdir -p d${n % 3} && cp ${place.folder}/next f${n % 7} && mv f${n % 7} x && mv x f${n % 7}`],
        {
          cwd: place.mountpoint,
        },
      )
      if (n % 2) await kill(child)
      if (n % 2) ({ child } = await start())
    }
    await mount.sync()
    await run('diff', ['-r', kept, place.remote, '--exclude=.pageferry', '--exclude=d?'])
    const status = JSON.parse((await place.pageferry('status', '--json')).stdout)
    expect(status.servers).toEqual([
      expect.objectContaining({ serves: 'tree', remote: { url: `file://${place.remote}` }, readOnly: false }),
    ])
    expect((await place.pageferry('status')).stdout).toMatch(/serves\s+a directory/)
    await mount.unmount()
    await kill(child, 'SIGTERM')
    expect(child.exitCode).toBe(0)
  },
  TEST_MS,
)

test(
  'a copy in a directory of another host is made there',
  async () => {
    const place = await makePlace()
    const socket = join(place.folder, 'socket')
    const { child } = await startServer([place.remote, '--listen', `unix:${socket}`], place.env)
    place.url = `grpc+unix:///?socket=${socket}`
    const mount = await place.mount()
    await run('sh', ['-c', 'head -c 20000000 /dev/urandom > a'], { cwd: place.mountpoint })
    await mount.sync()
    const { bytesWritten } = (await mount.status()).remote
    await run('sh', ['-c', 'cp a b; echo more >> b'], { cwd: place.mountpoint })
    await mount.sync()
    const { remote, batches } = await mount.status()
    expect(batches.copiedBytes).toBeGreaterThan(19_800_000)
    expect(remote.bytesWritten - bytesWritten).toBeLessThan(MiB)
    await run('sh', ['-c', 'cmp -n 20000000 a b; tail -c 5 b | grep -qx more'], { cwd: place.remote })
    await mount.unmount()
    await kill(child, 'SIGTERM')
  },
  TEST_MS,
)

test(
  'a region of another host commits whole batches, for one writer at a time',
  async () => {
    const path = join(directory, 'disk')
    const listen = `unix:${join(directory, 'socket')}`
    const url = `grpc+unix:///?socket=${join(directory, 'socket')}`
    const blob = closing(await openRemote(`file://${path}?size=8M`, { shape: 'blob' }))
    const store = closing((await openBeside(path)) as Store)
    closing(await serve(blob, { listen, store }))
    const region = await openRegion(url, { cacheDir: join(directory, 'cache'), flushInterval: '20ms' })
    expect(region.status().contract).toBe('remote')
    await region.write(MiB, bytes('from afar'))
    await region.trim(0, 4096)
    await region.sync()
    expect(
      readFileSync(path)
        .subarray(MiB, MiB + 9)
        .toString(),
    ).toBe('from afar')
    const other = openRegion(url, { cacheDir: join(directory, 'other') })
    await expect(other).rejects.toMatchObject({ code: 'LEASE_HELD' })
    await region.close()
    const again = closing(await openRegion(url, { cacheDir: join(directory, 'other') }))
    const into = Buffer.alloc(9)
    await again.read(MiB, into)
    expect(into.toString()).toBe('from afar')
  },
  TEST_MS,
)

const python = requires('grpcio')
const PYTHON = '/usr/bin/python3'
const script = resolve('test/fixtures/r3map.py')
/** What protoc makes of r3map's messages. */
const modules = () => {
  const options = [`-I${resolve('proto')}`, `--python_out=${directory}`, `--grpc_python_out=${directory}`]
  execFileSync(PYTHON, ['-m', 'grpc_tools.protoc', ...options, 'r3map.proto'], { stdio: 'pipe' })
  return directory
}

python.test(
  "a program that knows r3map's service uses a region of ours",
  async () => {
    const { target } = await serving(memBlob({ size: MiB }))
    const { stdout } = { stdout: await run(PYTHON, [script, modules(), 'client', target]) }
    expect(JSON.parse(stdout)).toEqual({
      ...{ written: 11, n: 16, p: Buffer.from('\0\0\0\0\0from python').toString('hex'), end: [10, 10] },
      codes: {
        ...{ beyond: 'INVALID_ARGUMENT', negative: 'INVALID_ARGUMENT', before: 'INVALID_ARGUMENT' },
        ...{ huge: 'INVALID_ARGUMENT', 'write beyond': 'INVALID_ARGUMENT', long: 'RESOURCE_EXHAUSTED' },
      },
    })
  },
  TEST_MS,
)

python.test(
  "a region is one of a server that has r3map's service alone",
  async () => {
    const child = spawn(PYTHON, [script, modules(), 'server', String(4 * MiB)], { stdio: ['pipe', 'pipe', 'inherit'] })
    closing({
      async close() {
        const over = once(child, 'exit')
        child.stdin.end()
        await over
      },
    })
    const [line] = (await once(child.stdout, 'data')) as [Buffer]
    const url = `grpc://127.0.0.1:${Number(line)}/`
    await expect(openRemote(url, { shape: 'blob' })).rejects.toThrow(/tells no size: \?size=1G/)
    const region = closing(
      await openRegion(`${url}?size=4M`, { cacheDir: join(directory, 'cache'), flushInterval: '20ms' }),
    )
    expect(region.status()).toMatchObject({ size: 4 * MiB, contract: 'local' })
    const model = randomOf(SEED).bytes(3 * MiB)
    await region.write(1000, model)
    await region.sync()
    const blob = closing(await openRemote(`${url}?size=4M`, { shape: 'blob' }))
    expect(Buffer.from(await blob.read(1000, MiB)).equals(model.subarray(0, MiB))).toBe(true)
    // What is fetched at once is more than such a server takes in one request.
    const cold = { cacheDir: join(directory, 'cold'), readOnly: true, fetchSize: '4M', pull: 'all' } as const
    const again = closing(await openRegion(`${url}?size=4M`, cold))
    const into = new Uint8Array(model.length)
    await again.read(1000, into)
    expect(Buffer.from(into).equals(model)).toBe(true)
    await fails(blob.read(0, blob.capabilities.requestBytesMax + 1), 'TOO_LARGE')
    await fails(blob.read(4 * MiB, 1), 'INVALID')
  },
  TEST_MS,
)
