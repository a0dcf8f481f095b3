// Regions as memory of one's own program: page faults, writes that go back, the end. Each program is test/fixtures/map-region.mjs.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { chownSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, beforeEach, expect } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { redisBlob } from '../../src/remote/redis-blob.js'
import { memoryGroup } from '../fixtures/memory-group.js'
import { randomFile } from '../fixtures/random-file.js'
import { startRedis } from '../fixtures/redis.js'
import { long, requires } from '../fixtures/requires.js'
import { makeBucket, putObject, rgwEnv, startRgw } from '../fixtures/rgw.js'

const MiB = 2 ** 20
const PAGE = 4096
const NOBODY = 65_534
const TEST_MS = 90_000
const SEED = Number(process.env.SEED ?? freshSeed())
const dist = resolve(process.env.PAGEFERRY_DIST ?? 'dist')
const { describe, test } = requires('userfaultfd', 'built')

let directory = ''
const children = new Set<ChildProcess>()
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'pageferry-map-'))
})
afterEach(() => {
  for (const child of children) child.kill('SIGKILL')
  children.clear()
  rmSync(directory, { recursive: true, force: true })
})
const servers: { end(): Promise<void> }[] = []
afterEach(async () => {
  for (const server of servers.splice(0)) await server.end()
})
const at = (name: string) => join(directory, name)

const sourceOf = (bytes: number): Buffer => randomFile(at('source'), bytes, SEED)

const argumentsOf = (what: string, argument?: string | number) => [
  ...[resolve('test/fixtures/map-region.mjs'), dist, what, at('source'), at('cache')],
  ...(argument === undefined ? [] : [String(argument)]),
]
const env = () => ({ ...process.env, XDG_STATE_HOME: at('state'), XDG_RUNTIME_DIR: undefined })

/** What a program says, and how it ends. `first` is done in its process. */
const says = (
  what: string,
  argument?: string | number,
  more: NodeJS.ProcessEnv = {},
  { first = ':', uid }: { first?: string; uid?: number } = {},
) =>
  new Promise<{ end: number | string; lines: unknown[]; stderr: string }>(done => {
    const timeout = long ? 30 * TEST_MS : TEST_MS
    const child = execFile(
      'sh',
      ['-c', `${first}; exec "$@"`, 'sh', process.execPath, ...argumentsOf(what, argument)],
      { env: { ...env(), ...more }, timeout, uid, gid: uid },
      (error, out, stderr) => {
        children.delete(child)
        const lines = out
          .split('\n')
          .filter(line => line !== '')
          .map(line => JSON.parse(line) as unknown)
        done({ end: error ? (error.signal ?? Number(error.code ?? 1)) : 0, lines, stderr })
      },
    )
    children.add(child)
  })

describe(`a region as memory (SEED=${SEED})`, () => {
  test(
    'is its bytes, in any order, for the program and for the kernel',
    async () => {
      const bytes = 12 * MiB + 1_234
      sourceOf(bytes)
      expect(await says('content', SEED)).toEqual({
        end: 0,
        stderr: '',
        lines: [
          { wrong: 0, isSame: true, size: bytes, read: 0 },
          { poisoned: 0, isAll: true, availability: 1, url: `file://${at('source')}` },
        ],
      })
    },
    TEST_MS,
  )

  test(
    'has the size that it has until it is unmapped',
    async () => {
      sourceOf(MiB)
      expect(await says('sized')).toEqual({
        ...{ end: 0, stderr: '' },
        lines: [['in use: the region is mapped as memory', 4096]],
      })
      expect(statSync(at('source')).size).toBe(4096)
    },
    TEST_MS,
  )

  test.each(['grpc', 'nbd', 'redis'])(
    'of a remote by %s, in any order',
    async kind => {
      const bytes = 5 * MiB
      const content = sourceOf(bytes)
      const region = await remoteOf(kind, content)
      const { end, lines, stderr } = await says('content', SEED, { REGION: region })
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      expect(lines[0]).toEqual({ wrong: 0, isSame: true, size: bytes, read: 0 })
    },
    TEST_MS,
  )

  requires('userfaultfd', 'built', 'rgw').test(
    'of an object of a bucket, in any order, and what is written to it goes back',
    async () => {
      const content = sourceOf(5 * MiB)
      const rgw = await startRgw()
      const bucket = await makeBucket(rgw)
      await putObject(rgw, bucket, 'state', content)
      const more = { ...rgwEnv(rgw), REGION: `s3://${bucket}/state` }
      const { end, lines, stderr } = await says('content', SEED, more)
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      expect(lines[0]).toEqual({ wrong: 0, isSame: true, size: content.length, read: 0 })
      expect(await says('resident', 'written back', more)).toMatchObject({
        end: 0,
        lines: [{ wrong: 0, isSame: true }],
      })
    },
    4 * TEST_MS,
  )

  test.each([
    ['far away', 'rtt=20ms,jitter=5ms,rate=20M'],
    ['unreliable', 'errors=0.2,short=0.1'],
  ])(
    'of a remote that is %s, in any order',
    async (_, how) => {
      const content = sourceOf(5 * MiB)
      const { end, lines, stderr } = await says('content', SEED, { SIMULATE: `${how},seed=${SEED % 2 ** 31}` })
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      expect(lines[0]).toEqual({ wrong: 0, isSame: true, size: content.length, read: 0 })
    },
    TEST_MS,
  )

  test.each([undefined, 'descending', 'stride:4M'])(
    'with prefetch all of it is there before it is touched (as the region is pulled: %s)',
    async order => {
      sourceOf(20 * MiB + 1)
      const { end, lines, stderr } = await says('prefetch', order)
      expect({ end, stderr, lines }).toEqual({ end: 0, stderr: '', lines: [{ isSame: true, before: 0, after: 0 }] })
    },
    TEST_MS,
  )

  test(
    'parts of it come when they are asked for',
    async () => {
      sourceOf(12 * MiB)
      const { end, lines, stderr } = await says('ahead')
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      expect(lines).toEqual([
        { isSame: true, faults: 0, isPart: true },
        expect.stringMatching(/^the remote returned fewer bytes than asked: .*: the file was cut/),
        `invalid argument: 1 bytes at ${12 * MiB} of ${12 * MiB}`,
      ])
    },
    TEST_MS,
  )

  requires('userfaultfd', 'built', 'memoryGroup').test(
    'larger than the memory that there may be',
    async () => {
      // Zeros, which take as much memory as anything else.
      writeFileSync(at('source'), '')
      truncateSync(at('source'), 1_200 * MiB)
      const { procs, remove } = memoryGroup(600 * MiB)
      try {
        const { end, lines, stderr } = await says('through', '64M', {}, { first: `echo $$ > ${procs}` })
        expect({ end, lines, stderr }).toEqual({ end: 0, lines: [{ sum: 0, isBelow: true }], stderr: '' })
      } finally {
        await remove()
      }
    },
    TEST_MS,
  )

  requires('built', 'root').test(
    'a user who may not have page faults is told so in one line, and has hashes',
    async () => {
      sourceOf(MiB + 5)
      for (const name of ['.', 'source']) chownSync(at(name), NOBODY, NOBODY)
      const { end, lines, stderr } = await says('ordinary', undefined, {}, { uid: NOBODY })
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      const need =
        'operation not permitted: userfaultfd needs root, a /dev/userfaultfd that this user may open, or sysctl vm.unprivileged_userfaultfd=1'
      const isAllowed = readFileSync('/proc/sys/vm/unprivileged_userfaultfd', 'utf8').trim() === '1'
      expect(lines).toEqual([
        isAllowed ? null : need,
        { isSame: true, isThere: true },
        'not supported: to refresh memory needs userfaultfd: a write meanwhile would be lost',
      ])
    },
    TEST_MS,
  )

  test(
    'may have its thread from the start',
    async () => {
      const content = sourceOf(2 * MiB)
      const { end, lines, stderr } = await says('owned')
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      expect(lines).toEqual([
        { isSame: true, isThere: true, size: content.length },
        'not supported: a region of mem: cannot be taken to another thread',
        expect.stringMatching(/^bad usage: .*nowhere/),
        expect.stringMatching(/abort/i),
      ])
    },
    TEST_MS,
  )

  test.each(['read only', 'written back'])(
    'what somebody else changed at the remote is taken in by a refresh (%s)',
    async kind => {
      sourceOf(6 * MiB + 1)
      const { end, lines, stderr } = await says('refresh', kind)
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      const first = (lines[0] as { part: number[] }).part
      // A part is a part: the rest is as it was.
      expect(lines.slice(0, 5)).toEqual([
        { part: [first[0], 1, first[2]] },
        ...[2, 3, 4, 5].map(round => ({ part: [round - 1, round, round - 1] })),
      ])
      expect(lines[5]).toEqual({ isSame: true, isThere: true })
    },
    TEST_MS,
  )

  test(
    'pages that leave take nothing back of what another door has written',
    async () => {
      sourceOf(16 * MiB)
      const { end, lines, stderr } = await says('beside', SEED)
      expect({ end, lines, stderr }).toEqual({ end: 0, lines: [{ isSame: true }], stderr: '' })
    },
    TEST_MS,
  )

  test.each(['faults', 'hashes'])(
    'what is written goes back: to the region with a flush, to the remote with a sync (by %s)',
    async DETECT => {
      sourceOf(3 * MiB + 4)
      const { end, lines, stderr } = await says('writes', SEED, { DETECT })
      expect({ end, lines, stderr }).toEqual({ end: 0, lines: [{ differs: [], isThere: true }], stderr: '' })
    },
    TEST_MS,
  )

  test.each(['written back', 'private'])(
    'larger than what may be there at once: pages leave, and come again with what was written (%s)',
    async kind => {
      sourceOf(40 * MiB)
      const { end, lines, stderr } = await says('resident', kind)
      const isBack = kind !== 'private'
      const expected = { wrong: 0, isSame: true, isBack, isBelow: true, cameAgain: true }
      expect({ end, stderr, lines }).toEqual({ end: 0, stderr: '', lines: [expected] })
    },
    TEST_MS,
  )

  test(
    'killed in the middle: what was synced is there, and of the rest no page is torn',
    async () => {
      const bytes = 2 * MiB
      const random = randomOf(SEED)
      for (let n = 0; n < (long ? 20 : 3); n++) {
        writeFileSync(at('source'), Buffer.alloc(bytes))
        rmSync(at('cache'), { recursive: true, force: true })
        const seed = SEED + n
        const child = spawn(process.execPath, argumentsOf('rounds', seed), {
          env: env(),
          stdio: ['ignore', 'pipe', 'inherit'],
        })
        children.add(child)
        let [written, synced, begun] = [0, 0, false]
        for await (const line of createInterface({ input: child.stdout! })) {
          const told = JSON.parse(line) as { written?: number; synced?: number }
          written = told.written ?? written
          synced = told.synced ?? synced
          if (synced > 0 && !begun) {
            begun = true
            setTimeout(() => child.kill('SIGKILL'), random.next() * 1_500)
          }
        }
        expect(synced).toBeGreaterThan(0)
        const after = await says('after')
        expect(after).toMatchObject({ end: 0, lines: [{ lag: 0 }] })
        expect(wrongWords(readFileSync(at('source')), { seed, synced, written: written + 1 })).toEqual([])
      }
    },
    TEST_MS * (long ? 10 : 1),
  )

  test.each(['1G', '6M'])(
    'written all over, and here and there (at most %s there at once)',
    async resident => {
      sourceOf(12 * MiB + 8)
      const { end, lines, stderr } = await says('dense', resident)
      expect({ end, lines, stderr }).toEqual({ end: 0, lines: [{ differs: [], isThere: true }], stderr: '' })
    },
    TEST_MS,
  )

  test(
    'consistent: what comes back is one moment, though it is written to all the time, also when it is killed',
    async () => {
      const random = randomOf(SEED)
      for (let n = 0; n < (long ? 20 : 3); n++) {
        writeFileSync(at('source'), Buffer.alloc(MiB))
        rmSync(at('cache'), { recursive: true, force: true })
        const child = spawn(process.execPath, argumentsOf('moments', 'consistent'), {
          env: env(),
          stdio: ['ignore', 'pipe', 'inherit'],
        })
        children.add(child)
        let isBegun = false
        for await (const _ of createInterface({ input: child.stdout! })) {
          if (!isBegun) setTimeout(() => child.kill('SIGKILL'), 500 + random.next() * 1_500)
          isBegun = true
        }
        expect(await says('after')).toMatchObject({ end: 0, lines: [{ lag: 0 }] })
        const image = readFileSync(at('source'))
        const rounds = Array.from({ length: MiB / PAGE }, (_, page) => image.readUInt32LE(page * PAGE))
        // Of one moment: this round up to some page, and the one before from there on.
        const [first] = rounds
        const behind = rounds.findIndex(round => round !== first)
        const rest = behind === -1 ? [] : rounds.slice(behind)
        expect({ first: first > 5, rest: rest.filter(round => round !== first - 1) }).toEqual({ first: true, rest: [] })
      }
    },
    TEST_MS * (long ? 10 : 1),
  )

  test(
    'ends: views are empty, nothing is left of threads and descriptors',
    async () => {
      const content = sourceOf(MiB)
      const { end, lines, stderr } = await says('ends', 10_000)
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      const [{ fd, task, bytes }] = lines as [{ fd: number; task: number; bytes: number }]
      expect(task).toBe(0)
      expect(bytes).toBeLessThan(64 * MiB)
      // Every mapping has five; the journal opens and closes one by itself.
      expect(fd).toBeLessThan(4)
      expect(lines.slice(1)).toEqual([
        {
          // Written by a mapping that is written back.
          first: expect.any(Number),
          ...{ bytes: 0, window: 0, at: null, thrown: 'CLOSED', sync: 'already closed' },
        },
        { read: 'already closed', pid: true },
      ])
      expect(statSync(at('source')).size).toBe(content.length)
    },
    TEST_MS * (long ? 20 : 1),
  )

  test(
    'what cannot be is one line',
    async () => {
      sourceOf(64 * 1024)
      const { end, lines, stderr } = await says('refusals')
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      expect(lines).toEqual([
        'read-only: a region with writeBack',
        'bad usage: onFault: got "zeros"; allowed: poison, wait',
        expect.stringMatching(/^bad usage: .*color/),
        'bad usage: consistent: of what is written back; allowed with writeBack',
        "bad usage: resident: of memory with faults; not allowed with detect: 'hashes'",
        'in use: 1 calls of the region are not answered yet',
        'invalid argument: 65537 bytes at 0 of 65536',
        'invalid argument: 1 bytes at -1 of 65536',
        'invalid argument: 1 bytes at 0.5 of 65536',
        'not supported: a region of mem: cannot be taken to another thread',
      ])
    },
    TEST_MS,
  )

  test(
    'of a terabyte, which no Uint8Array has, windows do',
    async () => {
      sourceOf(PAGE)
      const { end, lines, stderr } = await says('large', 2 ** 40)
      expect({ end, stderr }).toEqual({ end: 0, stderr: '' })
      const [whole, touched] = lines
      expect(['TOO_LARGE', 2 ** 40]).toContain(whole)
      expect(touched).toEqual({ end: [7, 0], pushed: 2 * PAGE })
      expect(statSync(at('source')).blocks * 512).toBeLessThan(8 * MiB)
    },
    TEST_MS,
  )

  test(
    'what cannot be had is SIGBUS, never zeros',
    async () => {
      sourceOf(8 * MiB)
      expect(await says('lost')).toMatchObject({ end: 'SIGBUS', lines: [] })
    },
    TEST_MS,
  )

  const failing = { NODE_OPTIONS: `--import ${resolve('test/fixtures/failing-thread.mjs')}` }

  test(
    'should its thread fail, who waits for bytes ends, and reads no zeros',
    async () => {
      sourceOf(8 * MiB)
      const { end, lines, stderr } = await says('failing', 'waits', { ...failing, SIMULATE: 'rtt=1s' })
      expect({ end, lines }).toEqual({ end: 'SIGSEGV', lines: [] })
      expect(stderr).toContain(
        "a region's thread failed, and its memory is gone: Error: as if there were a fault in it",
      )
    },
    TEST_MS,
  )

  test(
    'should its thread fail, and nobody waits: views are empty, and calls say so',
    async () => {
      const first = sourceOf(8 * MiB)[0]
      const { end, lines } = await says('failing', 'looks', failing)
      expect({ end, lines }).toEqual({
        end: 0,
        lines: [{ first, after: null, thrown: ['CLOSED', 'CLOSED', 'CLOSED'], codes: ['CLOSED', 'IO', 'IO', 'IO'] }],
      })
    },
    TEST_MS,
  )
})

/** The source, served to others; a URL. */
async function remoteOf(kind: string, content: Buffer): Promise<string> {
  if (kind === 'redis') {
    const server = await startRedis()
    servers.push(server)
    const blob = await redisBlob({ host: '127.0.0.1', port: server.port }, { size: content.length })
    await blob.write(0, content)
    await blob.close()
    return `redis://127.0.0.1:${server.port}/0?size=${content.length}`
  }
  const socket = at('served.sock')
  const command = kind === 'nbd' ? ['nbd', 'serve', '--cache-dir', at('served')] : ['serve']
  const args = [join(dist, 'cli.js'), ...command, at('source'), '--listen', `unix:${socket}`, '--read-only']
  const child = spawn(process.execPath, args, { env: env(), stdio: ['ignore', 'inherit', 'pipe'] })
  children.add(child)
  for await (const line of createInterface({ input: child.stderr! })) if (line.includes('Ctrl-C')) break
  return `${kind}+unix:///?socket=${socket}`
}

/** Words that are not what they were when it was synced, nor what one of the rounds after that made of them. */
function wrongWords(bytes: Buffer, { seed, synced, written }: { seed: number; synced: number; written: number }) {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  const allowed = new Map<number, Set<number>>()
  for (let round = 1; round <= written; round++) {
    const random = randomOf(seed + round)
    for (let n = 0; n < 200; n++) {
      const word = Math.floor(random.next() * words.length)
      if (round <= synced) allowed.set(word, new Set([round]))
      else allowed.set(word, (allowed.get(word) ?? new Set([0])).add(round))
    }
  }
  return [...words.keys()].filter(word => !(allowed.get(word) ?? new Set([0])).has(words[word]))
}
