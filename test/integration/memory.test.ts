// Memory of other processes that is a region: real page faults of a C program that hands its userfaultfd over, as Firecracker does.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, expect } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import type { MemoryOptions } from '../../src/options.js'
import { memoryGroup } from '../fixtures/memory-group.js'
import { randomFile } from '../fixtures/random-file.js'
import { requires } from '../fixtures/requires.js'

const MiB = 2 ** 20
const PAGE = 4096
const TEST_MS = 60_000
const SEED = Number(process.env.SEED ?? freshSeed())
const dist = resolve(process.env.PAGEFERRY_DIST ?? 'dist')
const { describe, test } = requires('userfaultfd', 'cc', 'built', 'memoryGroup')

let built = ''
let directory = ''
let client = ''
beforeAll(() => {
  built = mkdtempSync(join(tmpdir(), 'pageferry-uffd-'))
  client = join(built, 'uffd-client')
  execFileSync('cc', ['-O2', '-Wall', '-pthread', '-o', client, resolve('test/fixtures/uffd-client.c')])
})
afterAll(() => rmSync(built, { recursive: true, force: true }))

const children = new Set<ChildProcess>()
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'pageferry-memory-'))
  for (const name of ['run', 'state', 'home']) mkdirSync(join(directory, name), { mode: 0o700 })
})
afterEach(() => {
  for (const child of children) child.kill('SIGKILL')
  children.clear()
  rmSync(directory, { recursive: true, force: true })
})

const at = (name: string) => join(directory, name)
const socket = () => at('memory.sock')

const sourceOf = (bytes: number): Buffer => randomFile(at('source'), bytes, SEED)

interface Ended {
  status: number | string
  stdout: string
  stderr: string
}

const run = (program: string, args: string[], env: NodeJS.ProcessEnv = {}) =>
  new Promise<Ended>(done => {
    const options = { timeout: TEST_MS / 2, env: { ...process.env, ...env } }
    const child = execFile(program, args, options, (error, stdout, stderr) => {
      children.delete(child)
      done({ status: error ? (error.signal ?? Number(error.code ?? 1)) : 0, stdout: stdout.trim(), stderr })
    })
    children.add(child)
  })

/** A program whose `bytes` of memory are the region from `offset` on, and what it says. */
const uses = (bytes: number, offset: number, ...action: string[]) => says({}, bytes, offset, action)
/** The same where the memory comes from the server. */
const maps = (bytes: number, offset: number, ...action: string[]) => says({ SHARED: '1' }, bytes, offset, action)

async function says(env: NodeJS.ProcessEnv, bytes: number, offset: number, action: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(client, [socket(), String(bytes), String(offset), ...action], env)
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  return stdout
}

interface Counts {
  faults: number
  bytes: number
  poisoned: number
  connections: number
  residentBytes: number
}

class Daemon {
  readonly #lines: AsyncIterator<string>

  constructor(readonly child: ChildProcess) {
    children.add(child)
    const lines: Interface = createInterface({ input: child.stdout! })
    this.#lines = lines[Symbol.asyncIterator]()
  }

  async line(): Promise<string> {
    return (await this.#lines.next()).value ?? ''
  }

  async ask(line: string): Promise<Counts> {
    this.child.stdin!.write(`${line}\n`)
    return JSON.parse(await this.line())
  }
}

/** Bytes that can be lost. */
async function serves(options: Partial<MemoryOptions> = {}): Promise<Daemon> {
  const args = [resolve('test/fixtures/memory-daemon.mjs'), dist, socket(), at('source'), JSON.stringify(options)]
  const daemon = new Daemon(spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] }))
  await daemon.line()
  return daemon
}

/** `pageferry memory serve`. */
async function commandServes(region = at('source'), ...flags: string[]): Promise<ChildProcess> {
  const env = {
    ...process.env,
    XDG_RUNTIME_DIR: at('run'),
    XDG_STATE_HOME: at('state'),
    XDG_CACHE_HOME: at('home'),
  }
  const args = [join(dist, 'cli.js'), 'memory', 'serve', region, '--socket', socket(), ...flags]
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'inherit', 'pipe'] })
  children.add(child)
  for await (const line of createInterface({ input: child.stderr! })) if (line.includes('Ctrl-C')) break
  return child
}

describe(`memory of a process (SEED=${SEED})`, () => {
  test(
    'is the region, byte by byte, through the command line',
    async () => {
      const content = sourceOf(24 * MiB + 1_000)
      const daemon = await commandServes()
      const whole = 24 * MiB + PAGE
      expect(await uses(whole, 0, 'dump', at('dumped'))).toBe(String(whole))
      const dumped = readFileSync(at('dumped'))
      expect(dumped.subarray(0, content.length).equals(content)).toBe(true)
      expect(dumped.subarray(content.length).every(byte => byte === 0)).toBe(true)
      // Somewhere in it, and by several threads.
      expect(await uses(8 * MiB, 4 * MiB, 'dump', at('part'))).toBe(String(8 * MiB))
      expect(readFileSync(at('part')).equals(content.subarray(4 * MiB, 12 * MiB))).toBe(true)
      expect(await uses(24 * MiB, 0, 'walk', at('source'), String(SEED % 1_000))).toBe('0')
      daemon.kill('SIGTERM')
      expect(await once(daemon, 'exit')).toEqual([0, null])
    },
    TEST_MS,
  )

  test(
    'is a region of memory, in which nothing has been written yet',
    async () => {
      await commandServes('mem:empty?size=4M')
      expect(await uses(4 * MiB, 0, 'dump', at('dumped'))).toBe(String(4 * MiB))
      expect(readFileSync(at('dumped')).every(byte => byte === 0)).toBe(true)
    },
    TEST_MS,
  )

  test(
    'several processes at once each have their own',
    async () => {
      sourceOf(16 * MiB)
      await serves()
      const wrong = await Promise.all(
        [1, 2, 3, 4].map(seed => uses(16 * MiB, 0, 'walk', at('source'), String(seed + (SEED % 1_000)))),
      )
      expect(wrong).toEqual(['0', '0', '0', '0'])
    },
    TEST_MS,
  )

  test(
    'what it gives back is zeros, and what it has not touched stays the region',
    async () => {
      const content = sourceOf(4 * MiB)
      await serves()
      expect(await uses(4 * MiB, 0, 'remove')).toBe(`${content[5 * PAGE]} 0 0 0`)
    },
    TEST_MS,
  )

  test(
    'children, and memory that is moved and cut',
    async () => {
      const content = sourceOf(4 * MiB)
      await serves()
      expect(await uses(4 * MiB, 0, 'fork')).toBe(`${content[9 * PAGE]} ${content[9 * PAGE]}`)
      expect(await uses(4 * MiB, 0, 'remap')).toBe(`${content[0]} ${content[0]} ${content[7 * PAGE]}`)
    },
    TEST_MS,
  )

  test(
    'what cannot be had is SIGBUS and never zeros, and what comes later is right',
    async () => {
      const content = sourceOf(4 * MiB)
      const daemon = await serves()
      await daemon.ask('lose')
      expect(await uses(4 * MiB, 0, 'bus', String(2 * MiB))).toBe('1 1')
      expect((await daemon.ask('have')).poisoned).toBe(2)
      expect(await uses(4 * MiB, 0, 'bus', String(2 * MiB))).toBe('0 0')
      expect(await uses(4 * MiB, 0, 'touch', String(3 * MiB))).toBe(String(content[3 * MiB]))
    },
    TEST_MS,
  )

  test(
    'or it is waited for',
    async () => {
      const content = sourceOf(4 * MiB)
      const daemon = await serves({ onFault: 'wait' })
      await daemon.ask('lose')
      let isOver = false
      const touched = uses(4 * MiB, 0, 'touch', String(MiB)).finally(() => {
        isOver = true
      })
      await new Promise(done => setTimeout(done, 300))
      expect(isOver).toBe(false)
      await daemon.ask('have')
      expect(await touched).toBe(String(content[MiB]))
    },
    TEST_MS,
  )

  test(
    'a process that ends in the middle of a fault leaves nothing behind',
    async () => {
      sourceOf(4 * MiB)
      const daemon = await serves({ onFault: 'wait' })
      const descriptors = () => readdirSync(`/proc/${daemon.child.pid}/fd`).length
      await daemon.ask('lose')
      const before = descriptors()
      for (let n = 0; n < 3; n++) {
        const child = spawn(client, [socket(), String(4 * MiB), '0', 'touch', '0'])
        children.add(child)
        while ((await daemon.ask('lose')).faults < n + 1) await new Promise(done => setTimeout(done, 10))
        child.kill('SIGKILL')
        await once(child, 'exit')
      }
      while ((await daemon.ask('lose')).connections > 0) await new Promise(done => setTimeout(done, 10))
      expect(descriptors()).toBe(before)
      await daemon.ask('have')
      expect(await uses(4 * MiB, 0, 'walk', at('source'), '1')).toBe('0')
    },
    TEST_MS,
  )

  test(
    'a process with little address space, and one that gives back what it has seen, under a limit of memory',
    async () => {
      sourceOf(128 * MiB)
      await serves()
      const uses = [socket(), String(128 * MiB), '0', 'through', at('source')]
      const limited = (how: string) => run('sh', ['-c', `${how}; exec "$@"`, 'sh', client, ...uses])
      // Twice the mapping: it, and the source to compare with.
      expect(await limited(`ulimit -v ${(2 * 128 + 16) * 1024}`)).toEqual({ status: 0, stdout: '0', stderr: '' })
      const { procs, remove } = memoryGroup(100 * MiB)
      try {
        expect(await limited(`echo $$ > ${procs}`)).toEqual({ status: 0, stdout: '0', stderr: '' })
      } finally {
        await remove()
      }
    },
    TEST_MS,
  )

  test(
    'shared: several processes map one copy, of which so much is there as there may be',
    async () => {
      sourceOf(16 * MiB)
      const daemon = await serves({ share: true })
      const seeds = [1, 2, 3, 4].map(seed => String(seed + (SEED % 1_000)))
      const wrong = await Promise.all(seeds.map(seed => maps(16 * MiB, 0, 'walk', at('source'), seed)))
      expect(wrong).toEqual(['0', '0', '0', '0'])
      const { residentBytes, poisoned } = await daemon.ask('counts')
      expect(residentBytes).toBeLessThanOrEqual(16 * MiB)
      expect({ poisoned, isOnce: residentBytes > 8 * MiB }).toEqual({ poisoned: 0, isOnce: true })
      expect(await maps(8 * MiB, 4 * MiB, 'dump', at('part'))).toBe(String(8 * MiB))
      expect(readFileSync(at('part')).equals(readFileSync(at('source')).subarray(4 * MiB, 12 * MiB))).toBe(true)
    },
    TEST_MS,
  )

  test(
    'shared: larger than what may be there at once',
    async () => {
      const content = sourceOf(40 * MiB)
      const daemon = await serves({ share: true, resident: '6M' })
      const seeds = [1, 2].map(seed => String(seed + (SEED % 1_000)))
      const walks = seeds.map(seed => maps(40 * MiB, 0, 'walk', at('source'), seed))
      expect(await maps(40 * MiB, 0, 'dump', at('dumped'))).toBe(String(40 * MiB))
      expect(readFileSync(at('dumped')).equals(content)).toBe(true)
      expect(await Promise.all(walks)).toEqual(['0', '0'])
      expect((await daemon.ask('counts')).residentBytes).toBeLessThan(8 * MiB)
    },
    TEST_MS,
  )

  test(
    'shared: a process that does not map what it was given ends, and others go on',
    async () => {
      sourceOf(4 * MiB)
      await serves({ share: true })
      expect((await run(client, [socket(), String(4 * MiB), '0', 'touch', String(5 * PAGE)])).status).toBe('SIGBUS')
      expect(await maps(4 * MiB, 0, 'walk', at('source'), '1')).toBe('0')
    },
    TEST_MS,
  )

  test(
    'shared: what a process writes is its own, and what it gives back is the region again',
    async () => {
      const content = sourceOf(4 * MiB)
      const daemon = await serves({ share: true })
      const before = content[5 * PAGE]
      expect(await maps(4 * MiB, 0, 'own')).toBe(`${before} ${(before + 1) % 256} ${before}`)
      expect(await maps(4 * MiB, 0, 'own')).toBe(`${before} ${(before + 1) % 256} ${before}`)
      await daemon.ask('lose')
      expect(await maps(4 * MiB, 0, 'bus', String(3 * MiB))).toBe('1 1')
      await daemon.ask('have')
      expect(await maps(4 * MiB, 0, 'walk', at('source'), '1')).toBe('0')
    },
    TEST_MS,
  )

  test.each([
    ['their own', {}],
    ['shared', { share: true }],
  ])(
    'a server that is killed again and again: whoever needs a page waits for the next one, and never reads zeros (%s)',
    async (_, options) => {
      sourceOf(16 * MiB)
      const env = { TRUSTING: '1', ...('share' in options && { SHARED: '1' }) }
      let daemon = await serves(options)
      const clients = [1, 2, 3].map(() => says(env, 16 * MiB, 0, ['slowly', at('source')]))
      const random = randomOf(SEED)
      let isOver = false
      const over = Promise.all(clients).finally(() => {
        isOver = true
      })
      let kills = 0
      for (; !isOver && kills < 12; kills++) {
        await Promise.race([over, sleep(30 + random.next() * 200)])
        if (isOver) break
        daemon.child.kill('SIGKILL')
        await once(daemon.child, 'exit')
        // Nobody is there for a while.
        await sleep(random.next() * 100)
        daemon = await serves(options)
      }
      expect((await over).map(said => said.replaceAll('.', ''))).toEqual(['0', '0', '0'])
      expect(kills).toBeGreaterThan(3)
      // Who ended is not kept any more; and the one that keeps ends after its server.
      while ((await daemon.ask('counts')).connections > 0) await sleep(10)
    },
    TEST_MS,
  )

  test(
    'processes that an earlier server has left are not served another way',
    async () => {
      sourceOf(4 * MiB)
      const daemon = await serves({ share: true })
      const client = says({ SHARED: '1' }, 4 * MiB, 0, ['slowly', at('source')])
      while ((await daemon.ask('counts')).faults < 10) await sleep(10)
      daemon.child.kill('SIGKILL')
      const other = await run(process.execPath, [
        join(dist, 'cli.js'),
        'memory',
        'serve',
        at('source'),
        '--socket',
        socket(),
      ])
      expect(other.status).toBe(2)
      expect(other.stderr).toMatch(/^pageferry: .*: processes of an earlier server are kept, with --share\n/)
      writeFileSync(at('longer'), Buffer.alloc(8 * MiB))
      const longer = await run(process.execPath, [
        ...[join(dist, 'cli.js'), 'memory', 'serve', at('longer'), '--share', '--socket', socket()],
      ])
      expect(longer.stderr).toMatch(/: processes of an earlier server are kept, of a region of 4194304 bytes\n/)
      await serves({ share: true })
      expect((await client).replaceAll('.', '')).toBe('0')
    },
    TEST_MS,
  )

  test(
    'who says what is not so is let go, and others go on',
    async () => {
      sourceOf(4 * MiB)
      const daemon = await serves()
      const mapping = { base_host_virt_addr: 0x7f0000000000, size: PAGE, offset: 0, page_size: PAGE }
      const lies = [
        'nonsense',
        '{}',
        '[]',
        '[1]',
        JSON.stringify([{ ...mapping, size: 8 * MiB }]),
        JSON.stringify([{ ...mapping, offset: -1 }]),
        JSON.stringify([{ ...mapping, offset: 2 ** 60 }]),
        JSON.stringify([{ ...mapping, base_host_virt_addr: 2 ** 50 }]),
        JSON.stringify([{ ...mapping, base_host_virt_addr: 12 }]),
        JSON.stringify([{ ...mapping, page_size: 3 }]),
        JSON.stringify([mapping, mapping]),
        JSON.stringify([mapping]),
      ]
      // The connection is closed: the client reads its end. The last one is right, but no userfaultfd comes with it, or none at all.
      for (const lie of lies)
        for (const descriptor of [[], ['descriptor']])
          expect(await uses(0, 0, 'say', lie, ...descriptor)).toMatch(/^(0|-1)$/)
      expect((await daemon.ask('counts')).connections).toBe(0)
      expect(await uses(4 * MiB, 0, 'walk', at('source'), '1')).toBe('0')
    },
    TEST_MS,
  )

  test(
    'a wrong option is one line',
    async () => {
      sourceOf(PAGE)
      const cli = (...args: string[]) => run(process.execPath, [join(dist, 'cli.js'), 'memory', 'serve', ...args])
      expect((await cli(at('source'))).stderr).toMatch(/--socket/)
      const { stderr, status } = await cli(at('source'), '--socket', socket(), '--on-fault', 'zeros')
      expect(status).toBe(2)
      expect(stderr).toMatch(/^pageferry: --on-fault: got "zeros"; allowed: poison, wait\n/)
    },
    TEST_MS,
  )
})
