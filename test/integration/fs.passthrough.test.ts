// Files that are complete in the cache of a reader, which the kernel reads by itself.
import { createHash } from 'node:crypto'
import { readdirSync, renameSync, rmSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from '@jest/globals'
import { freshSeed } from '../../src/base/random.js'
import { makePlace, type Place, runs, start } from '../fixtures/daemon.js'
import { randomFile } from '../fixtures/random-file.js'
import { requires } from '../fixtures/requires.js'

const { test } = requires('fuse', 'built', 'root', 'python3')
const MiB = 2 ** 20
const seed = Number(process.env.SEED ?? freshSeed())

/** A file of the remote that nobody has changed for long. */
function oldFile(place: Place, name: string, bytes: number, more = 0): Buffer {
  const content = randomFile(join(place.remote, name), bytes, seed + more)
  utimesSync(join(place.remote, name), 1_000_000_000, 1_000_000_000)
  return content
}

const wholes = ({ cacheDir }: Place) => readdirSync(join(cacheDir, 'whole')).filter(name => /^\d+-/.test(name))

async function soon(what: () => boolean | Promise<boolean>): Promise<void> {
  for (const until = Date.now() + 20_000; !(await what()); await sleep(50))
    if (Date.now() > until) throw new Error(`never: ${what}`)
}

const read = async (place: Place, name: string) => {
  const { stdout } = await runs('sha256sum', [join(place.mountpoint, name)])
  return stdout.split(' ')[0]
}
const sum = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')

/** Bytes that programs have read through the daemon. */
async function bytesRead(place: Place): Promise<number> {
  const { stdout } = await place.pageferry('status', '--json', place.mountpoint)
  return JSON.parse(stdout).reads.bytes
}

/** Prints the digest of a part of the open file for each line of its input. */
const HOLDING = `
import hashlib, mmap, sys
file = open('big', 'rb')
memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print('open', flush=True)
for n, line in enumerate(sys.stdin):
    file.seek(0)
    print(hashlib.sha256(file.read() if n % 2 else memory).hexdigest(), flush=True)
`

async function holding(place: Place) {
  const program = start('python3', ['-c', HOLDING], { cwd: place.mountpoint })
  const lines = () => program.out.stdout.split('\n').slice(0, -1)
  await soon(() => lines().length === 1)
  return {
    async digest() {
      const before = lines().length
      program.child.stdin.write('\n')
      await soon(() => lines().length > before || program.child.exitCode !== null)
      return lines()[before]
    },
    async end() {
      program.child.stdin.end()
      await program.ran
    },
  }
}

test('a complete file is read without the daemon, by read and by mmap, also after a restart', async () => {
  const place = await makePlace()
  const content = oldFile(place, 'big', 8 * MiB)
  randomFile(join(place.remote, 'young'), 2 * MiB, seed)
  oldFile(place, 'small', 1000)
  const digest = sum(content)
  const first = await place.mount('--read-only')
  for (const name of ['big', 'young', 'small']) await read(place, name)
  await soon(() => wholes(place).length === 1)
  const before = await bytesRead(place)
  expect(before).toBe(10 * MiB + 1000)
  expect(await read(place, 'big')).toBe(digest)
  const program = await holding(place)
  expect([await program.digest(), await program.digest()]).toEqual([digest, digest])
  await program.end()
  expect(await bytesRead(place)).toBe(before)
  const { cache } = JSON.parse((await place.pageferry('status', '--json', place.mountpoint)).stdout)
  expect(cache.bytes).toBe(10 * MiB + 4096)
  // What changed lately, and what is small, is none.
  expect(wholes(place).length).toBe(1)
  await first.unmount()
  const again = await place.mount('--read-only')
  expect(await read(place, 'big')).toBe(digest)
  expect(await bytesRead(place)).toBe(0)
  await again.unmount()
  // Whoever threw it away has it fetched again.
  const thrower = await place.mount('--read-only')
  for (const name of wholes(place)) rmSync(join(place.cacheDir, 'whole', name))
  expect(await read(place, 'big')).toBe(digest)
  expect(thrower.output).toContain('a complete file in the cache cannot be opened')
  await soon(() => wholes(place).length === 1)
  await thrower.unmount()
  // A writer has none of them.
  const writer = await place.mount()
  expect(await read(place, 'big')).toBe(digest)
  expect(readdirSync(place.cacheDir)).not.toContain('whole')
  expect(await writer.unmount()).toBe(0)
}, 60_000)

test('whoever has it open keeps what it had, when it is replaced at the remote or its daemon is killed', async () => {
  const place = await makePlace()
  place.env.PAGEFERRY_HOLD = 'true'
  const [one, two] = [oldFile(place, 'big', 4 * MiB), oldFile(place, 'next', 4 * MiB, 1)]
  const [digest, next] = [sum(one), sum(two)]
  const holder = await place.mount('--read-only', '--dir-ttl', '100ms')
  const isServed = async () => (await place.pageferry('status', place.mountpoint)).status === 0
  await read(place, 'big')
  await soon(() => wholes(place).length === 1)
  const [first] = wholes(place)
  const before = await bytesRead(place)
  const program = await holding(place)
  expect(await program.digest()).toBe(digest)
  renameSync(join(place.remote, 'next'), join(place.remote, 'big'))
  expect((await place.pageferry('refresh', place.mountpoint)).status).toBe(0)
  expect(await program.digest()).toBe(digest)
  // Who opens it now has the new one.
  expect(await bytesRead(place)).toBe(before)
  expect(await read(place, 'big')).toBe(next)
  for (let kill = 0; kill < 2; kill++) {
    const { pid } = JSON.parse((await place.pageferry('status', '--json', place.mountpoint)).stdout)
    process.kill(pid, 'SIGKILL')
    await soon(isServed)
    expect([await program.digest(), await program.digest()]).toEqual([digest, digest])
    expect(await read(place, 'big')).toBe(next)
  }
  await program.end()
  // The kernel forgets the file.
  writeFileSync('/proc/sys/vm/drop_caches', '2')
  await soon(() => wholes(place).some(name => name !== first))
  expect(await read(place, 'big')).toBe(next)
  expect(await holder.unmount()).toBe(0)
}, 60_000)

test('they have half of the cache, leave when there is no room, and with `evict`; pull makes them', async () => {
  const place = await makePlace()
  const contents = [0, 1, 2].map(n => oldFile(place, `f${n}`, 6 * MiB, n))
  const daemon = await place.mount('--read-only', '--cache-size', '32M')
  const pulled = await place.pageferry('pull', place.mountpoint)
  expect(pulled.stdout).toBe('3 files local now, 18 MiB fetched\n')
  await soon(() => wholes(place).length === 2)
  for (const [n, content] of contents.entries()) expect(await read(place, `f${n}`)).toBe(sum(content))
  await soon(() => wholes(place).length === 2)
  // The rest of the cache is for chunks; what they need these give.
  oldFile(place, 'large', 60 * MiB)
  await read(place, 'large')
  const { cache } = JSON.parse((await place.pageferry('status', '--json', place.mountpoint)).stdout)
  expect(cache.bytes).toBeLessThanOrEqual(32 * MiB)
  expect((await place.pageferry('evict', place.mountpoint)).status).toBe(0)
  expect(wholes(place)).toEqual([])
  truncateSync(join(place.remote, 'f0'), 5 * MiB)
  await place.pageferry('refresh', place.mountpoint)
  expect(await read(place, 'f0')).toBe(sum(contents[0].subarray(0, 5 * MiB)))
  await daemon.unmount()
}, 60_000)

test('--mode says whether', async () => {
  const place = await makePlace()
  const content = oldFile(place, 'big', 4 * MiB)
  const daemon = await place.mount('--read-only', '--mode', 'writeback')
  for (let n = 0; n < 2; n++) expect(await read(place, 'big')).toBe(sum(content))
  expect(await bytesRead(place)).toBeGreaterThanOrEqual(4 * MiB)
  expect(readdirSync(place.cacheDir)).not.toContain('whole')
  await daemon.unmount()
  const refused = await place.pageferry('mount', '--mode', 'passthrough', place.url, place.mountpoint)
  expect(refused).toMatchObject({ status: 2, stdout: '' })
  expect(refused.stderr).toBe(
    'pageferry: --mode: got passthrough; allowed with --read-only: writers have the writeback cache\n',
  )
}, 60_000)
