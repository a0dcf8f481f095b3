// The examples of the documents do what the documents say of them.
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { mkdir, open, readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { expect, test } from '@jest/globals'
import { mapTree } from '../examples/remote.js'
import { isMounted, run } from './fixtures/daemon.js'
import { requires } from './fixtures/requires.js'
import { makeBucket, placeOnRgw, putObject, startRgw } from './fixtures/rgw.js'
import { placeForTest } from './fixtures/trees.js'
import { treeSuite as commitsSuite } from './remotes/commits.js'
import { treeSuite as primitivesSuite } from './remotes/primitives.js'

const examples = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'examples')

test('every example has its test here', () => {
  expect(readdirSync('examples').sort()).toEqual([
    'handlers.ts',
    'hello.ts',
    'memory.py',
    'region.ts',
    'remote.ts',
    'search.ts',
    'todo.ts',
  ])
})

requires('built', 'fuse').test('hello.ts mounts, writes, and finds its file at the remote', async () => {
  const place = await placeForTest()
  await mkdir(join(place.folder, 'home'))
  const env = { ...place.env, HOME: join(place.folder, 'home') }
  const output = await run(process.execPath, [join(examples, 'hello.js'), place.remote, place.mountpoint], { env })
  expect(output).toBe('lag: true\nat the remote: hello\n\n')
  expect(isMounted(place.mountpoint)).toBe(false)
})

requires('built').test('region.ts reads, writes, and has its block at the remote', async () => {
  const place = await placeForTest()
  const image = join(place.remote, 'disk.img')
  await writeFile(image, Buffer.alloc(100_000))
  const output = await run(process.execPath, [join(examples, 'region.js'), image], { env: place.env })
  expect(output).toMatch(/^size: 100000 here: 0\.\d+ lag: 0\n$/)
  expect((await readFile(image)).subarray(0, 6).toString()).toBe('hello\0')
})

requires('built', 'userfaultfd').test('todo.ts is continued on another host', async () => {
  const place = await placeForTest()
  const image = join(place.remote, 'todo.img')
  await writeFile(image, Buffer.alloc(2 ** 20))
  const on = async (host: string, ...words: string[]) => {
    await mkdir(join(place.folder, host), { recursive: true })
    const env = { ...place.env, XDG_CACHE_HOME: join(place.folder, host) }
    return run(process.execPath, [join(examples, 'todo.js'), image, ...words], { env })
  }
  expect(await on('one', 'add', 'buy', 'bread')).toBe('1. buy bread\n')
  expect(await on('other')).toBe('1. buy bread\n')
  expect(await on('other', 'add', 'bake bread')).toBe('1. buy bread\n2. bake bread\n')
  expect(await on('third')).toBe('1. buy bread\n2. bake bread\n')
})

const NUMBERS = 2 ** 20
/** Numbers from 0 on, and what memory.py says of them. */
const numbers = () => Buffer.from(BigUint64Array.from({ length: NUMBERS }, (_, n) => BigInt(n)).buffer)
function saidOf(bytes: Buffer): string {
  const all = new BigUint64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8)
  const sum = all.slice(-1_000).reduce((one, other) => one + other)
  return (
    `${bytes.length} bytes, in the middle ${all[all.length / 2]}, at the end ${all.at(-1)}\n` +
    `written: 7, sum of the last 1,000: ${sum}\n`
  )
}
const inPython = (socket: string) => run('python3', [resolve('examples/memory.py'), socket])

requires('built', 'userfaultfd', 'python3').test('memory.py has a region as memory of Python', async () => {
  const place = await placeForTest()
  const image = join(place.remote, 'numbers')
  await writeFile(image, numbers())
  const socket = join(place.folder, 'memory.sock')
  const pageferry = (...args: string[]) =>
    run(process.execPath, [resolve(examples, '..', 'cli.js'), ...args], { env: place.env })
  await pageferry('memory', 'serve', image, '--socket', socket, '--share', '--daemon')
  try {
    expect(await inPython(socket)).toBe(saidOf(numbers()))
  } finally {
    await pageferry('umount', socket)
  }
  expect((await readFile(image)).readBigUInt64LE()).toBe(0n)
})

for (const kind of ['bytes', 'file', 'object'] as const)
  requires('built', 'userfaultfd', 'python3', ...(kind === 'object' ? (['rgw'] as const) : [])).test(
    `handlers.ts: memory from ${kind}`,
    async () => {
      const place = kind === 'object' ? await placeOnRgw(await startRgw(), '') : await placeForTest()
      const wanted = kind === 'bytes' ? Buffer.alloc(2 ** 24, 'abcdefghijklmnopqrstuvwxyz') : numbers()
      let what = 'bytes'
      if (kind === 'file') await writeFile((what = join(place.remote, 'numbers')), wanted)
      if (kind === 'object') {
        const rgw = await startRgw()
        const bucket = await makeBucket(rgw)
        await putObject(rgw, bucket, 'numbers', wanted)
        what = `s3://${bucket}/numbers`
      }
      const socket = join(place.folder, 'memory.sock')
      const server = spawn(process.execPath, [join(examples, 'handlers.js'), socket, what], {
        env: place.env,
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      try {
        const lines = createInterface({ input: server.stdout })[Symbol.asyncIterator]()
        expect((await lines.next()).value).toMatch(/^ready at /)
        expect(await inPython(socket)).toBe(saidOf(wanted))
        server.kill('SIGTERM')
        expect((await lines.next()).value).toMatch(/^faults: [1-9]/)
      } finally {
        server.kill('SIGKILL')
      }
    },
    200_000,
  )

requires('built', 'userfaultfd').test('search.ts finds numbers in 10 GiB, of which hardly anything comes', async () => {
  const place = await placeForTest()
  const file = join(place.remote, 'numbers')
  // Zeros, and at the end the numbers from 1 on: a file of 10 GiB that takes a megabyte.
  const [size, count] = [10 * 2 ** 30, 2 ** 17]
  const numbers = Buffer.from(BigUint64Array.from({ length: count }, (_, n) => 3n * BigInt(n + 1)).buffer)
  const handle = await open(file, 'w')
  await handle.truncate(size - numbers.length)
  await handle.write(numbers, 0, numbers.length, size - numbers.length)
  await handle.close()
  const output = await run(process.execPath, [join(examples, 'search.js'), file, '3000', '3001'], { env: place.env })
  const first = size / 8 - count
  expect(output).toMatch(/^3000 is number (\d+)\n3001 is not there\n0\.0\d\d% of it came\n$/)
  expect(Number(/number (\d+)/.exec(output)![1])).toBe(first + 999)
})

primitivesSuite('examples/remote.ts', async () => ({ remote: mapTree() }))
commitsSuite('examples/remote.ts', {
  open: async () => ({ tree: mapTree(), dispose: async () => {} }),
  fencedDirectories: false,
  batches: 1,
  operations: 6,
  share: 0.2,
})
