// Several who write to one remote by turns (--shared), one who only reads, and a program that changes the directory itself.
import { once } from 'node:events'
import { appendFileSync, existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { type MountDaemon, type Place, start } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { beside, differences, eventually, leftovers, placeForTest, sh, until } from '../fixtures/trees.js'

const TEST_MS = 120_000
const DIR_TTL_MS = 1_000
/** What a turn and the kernel add. */
const SLACK_MS = 10_000
const { describe, test } = requires('built', 'fuse', 'root', 'rsync')
const SHARED = ['--shared', '--flush-interval', '100ms', '--dir-ttl', `${DIR_TTL_MS}ms`]

const at = (place: Place, name: string) => join(place.mountpoint, name)
const text = (place: Place, name: string) => sh(`cat '${name}' 2>/dev/null || true`, { cwd: place.mountpoint })
const seen = (what: string, place: Place, name: string, content: string) =>
  eventually(what, async () => (await text(place, name)) === content, DIR_TTL_MS + SLACK_MS)
const conflicts = async (place: Place) => (await place.pageferry('conflicts', place.mountpoint)).stdout

async function two(): Promise<[Place, MountDaemon, Place, MountDaemon]> {
  const place = await placeForTest()
  const first = await place.mount(...SHARED)
  const other = await beside(place)
  return [place, first, other, await other.mount(...SHARED)]
}

describe('writers who share', () => {
  test(
    'see what the others write, and so do readers and plain programs, and the other way round',
    async () => {
      const [one, first, other, second] = await two()
      const reading = await beside(one)
      const reader = await reading.mount('--read-only', '--dir-ttl', `${DIR_TTL_MS}ms`)
      await sh('mkdir d; echo one > d/one; echo both > both', { cwd: one.mountpoint })
      for (const place of [other, reading]) await seen(`${place.mountpoint} sees the first`, place, 'd/one', 'one\n')
      await sh('echo other > d/other; echo changed >> both; mv d/one moved', { cwd: other.mountpoint })
      for (const place of [one, reading]) {
        await seen('the second is seen', place, 'd/other', 'other\n')
        await seen('its change is seen', place, 'both', 'both\nchanged\n')
        await seen('what it moved is seen', place, 'moved', 'one\n')
      }
      writeFileSync(join(one.remote, 'plain'), 'plain')
      for (const place of [one, other, reading]) await seen('a plain program is seen', place, 'plain', 'plain')
      for (const daemon of [first, second]) expect((await daemon.status()).problems).toEqual([])
      for (const daemon of [first, second, reader]) expect(await daemon.unmount()).toBe(0)
      expect(readdirSync(one.remote).sort()).toEqual(['.pageferry', 'both', 'd', 'moved', 'plain'])
      expect(await leftovers(one.remote)).toEqual([])
    },
    TEST_MS,
  )

  test(
    'keep both of two changes to one file, and say so',
    async () => {
      const [one, first, other, second] = await two()
      await sh('echo base > file', { cwd: one.mountpoint })
      await seen('the file is there', other, 'file', 'base\n')
      // Within one listing's time, and before either has sent anything.
      await Promise.all([one, other].map((place, n) => sh(`echo by-${n} > file`, { cwd: place.mountpoint })))
      for (const daemon of [first, second]) await daemon.sync()
      const names = readdirSync(one.remote).filter(name => name.startsWith('file'))
      expect(names).toEqual(['file', expect.stringMatching(/^file\.conflict-.*-\d{8}T\d{6}Z$/)])
      const contents = names.map(name => readFileSync(join(one.remote, name), 'utf8'))
      expect(contents.sort()).toEqual(['by-0\n', 'by-1\n'])
      expect((await conflicts(one)) + (await conflicts(other))).toContain(names[1])
      for (const daemon of [first, second]) expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'go on when one of them is killed, and have what it had sent when it is back',
    async () => {
      const [one, first, other, second] = await two()
      await sh('for i in $(seq 200); do echo $i > a$i; done; sync a200', { cwd: one.mountpoint })
      await first.kill()
      await sh('for i in $(seq 200); do echo $i > b$i; done', { cwd: other.mountpoint })
      await second.sync()
      expect(existsSync(join(one.remote, 'b200'))).toBe(true)
      const again = await one.mount(...SHARED)
      await again.sync()
      await eventually(
        'both have everything',
        async () => (await differences(other.mountpoint, one.remote)).length === 0,
      )
      expect(readdirSync(one.remote).filter(name => /^[ab]\d+$/.test(name))).toHaveLength(400)
      for (const daemon of [again, second]) expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'do not share with who writes alone: whoever comes second is refused, or waits',
    async () => {
      const place = await placeForTest()
      const alone = await place.mount()
      const other = await beside(place)
      await expect(other.mount(...SHARED)).rejects.toThrow(
        new RegExp(`by pid ${alone.pid} on .*; --take-over takes it`),
      )
      expect(await alone.unmount()).toBe(0)
      const shared = await other.mount(...SHARED, '--lease', '1s')
      const next = await place.mount()
      await sh('echo waits > waits', { cwd: other.mountpoint })
      const { problems } = await until(shared, status => status.problems.length > 0)
      expect(problems.join()).toMatch(/changes cannot be sent: another writer holds the lease/)
      expect(existsSync(at(place, 'waits'))).toBe(false)
      expect(await next.unmount()).toBe(0)
      await until(shared, ({ lag }) => lag.operations === 0)
      expect(readFileSync(join(place.remote, 'waits'), 'utf8')).toBe('waits\n')
      expect(await shared.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test('are writers', async () => {
    const place = await placeForTest()
    await expect(place.mount('--shared', '--read-only')).rejects.toThrow(
      /--shared: of those who write in turns; not allowed with --read-only/,
    )
    await expect(place.mount('--shared', '--take-over')).rejects.toThrow(/not allowed with --take-over/)
  })
})

describe('a reader that has a file open', () => {
  const KiB = 1024
  /** Opens it, reads so many bytes, waits for a line, and reads on to its end: what it has read, or the error. */
  const READER = `import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
got = os.read(fd, int(sys.argv[2]))
print(len(got), flush=True)
sys.stdin.readline()
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
try:
    while True:
        more = os.read(fd, 65536)
        if not more: break
        got += more
    print(sorted(set(got.decode())), len(got), flush=True)
except OSError as error:
    print(error.errno, flush=True)
`
  async function reads(
    bytes: number,
    change: (place: Place) => Promise<unknown>,
  ): Promise<[said: string, now: string]> {
    const place = await placeForTest()
    writeFileSync(join(place.remote, 'file'), 'a'.repeat(4096 * KiB))
    const reader = await place.mount('--read-only', '--dir-ttl', '100ms', '--prefetch', 'off', '--mode', 'writeback')
    const { child, ran } = start('python3', ['-c', READER, at(place, 'file'), String(bytes)])
    await once(child.stdout, 'data')
    await change(place)
    await seen('the new one is there', place, 'other', 'other')
    await sh('head -c 1 file', { cwd: place.mountpoint })
    child.stdin.end('on\n')
    const { stdout, stderr } = await ran
    expect(stderr).toBe('')
    const now = await sh('head -c 1 file; stat -c %s file', { cwd: place.mountpoint })
    expect(await reader.unmount()).toBe(0)
    return [stdout.trim().split('\n').at(-1)!, now]
  }
  const replaced = (size: number) => async (place: Place) => {
    writeFileSync(join(place.remote, 'new'), 'b'.repeat(size))
    writeFileSync(join(place.remote, 'other'), 'other')
    renameSync(join(place.remote, 'new'), join(place.remote, 'file'))
  }

  test.each([100, 4096 * KiB, 5000 * KiB])(
    'that is replaced by one of %d bytes keeps what is here of it, and gets ESTALE for what nobody has any more',
    async size => {
      expect(await reads(4096 * KiB, replaced(size))).toEqual([`['a'] ${4096 * KiB}`, `b${size}\n`])
      expect(await reads(4 * KiB, replaced(size))).toEqual([String(constants.errno.ESTALE), `b${size}\n`])
    },
    TEST_MS,
  )

  test(
    'that grows reads on',
    async () => {
      const grows = async (place: Place) => {
        appendFileSync(join(place.remote, 'file'), 'a'.repeat(100))
        writeFileSync(join(place.remote, 'other'), 'other')
      }
      expect(await reads(4096 * KiB, grows)).toEqual([`['a'] ${4096 * KiB + 100}`, `a${4096 * KiB + 100}\n`])
    },
    TEST_MS,
  )
})
