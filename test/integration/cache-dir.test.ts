// The cache directory: its disk full, in use by somebody else, or damaged.
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { Database, damageOf, inodeKey, type Meta } from '../../src/cache/database.js'
import { diskStorage } from '../../src/linux/storage.js'
import type { Place } from '../fixtures/daemon.js'
import { runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { differences, leftovers, placeForTest, sh, smallDisk, until } from '../fixtures/trees.js'

const TEST_MS = 120_000
const { describe, test } = requires('built', 'fuse', 'root', 'rsync')

const META: Meta = {
  lsn: 0,
  inoReserved: 100,
  batch: 1,
  flightBatch: 0,
  open: { names: [], inodes: [], orphans: [], operations: 0, sinceMs: 0 },
  flight: null,
  quarantine: [],
  conflicts: [],
}

/** Overwrites bytes of a file in the cache directory. */
function damage(path: string, at: number, bytes: Uint8Array) {
  const fd = openSync(path, 'r+')
  writeSync(fd, bytes, 0, bytes.length, at)
  closeSync(fd)
}

async function comparedFromEmpty(place: Place) {
  expect(await leftovers(place.remote)).toEqual([])
  place.loseCache({ keep: true })
  const fresh = await place.mount()
  expect(await differences(place.remote, place.mountpoint)).toEqual([])
  expect(await fresh.unmount()).toBe(0)
}

describe('the disk of the cache', () => {
  test(
    'small: more is read and written than fits, and every byte is right',
    async () => {
      const place = await placeForTest()
      mkdirSync(place.cacheDir)
      await smallDisk(place.cacheDir, '96M')
      writeFileSync(join(place.remote, 'large'), Buffer.alloc(120 << 20, 'remote bytes, '))
      const daemon = await place.mount('--flush-interval', '200ms', '--cache-size', '64M', '--dirty-limit', '16M')
      await sh(`cmp large '${join(place.remote, 'large')}'`, { cwd: place.mountpoint })
      await sh(`cp large copy; cmp large copy; sync copy`, { cwd: place.mountpoint })
      await daemon.sync()
      const { cache, problems } = await daemon.status()
      expect(cache.bytes).toBeLessThanOrEqual(64 << 20)
      expect(problems).toEqual([])
      expect(await daemon.unmount()).toBe(0)
      await comparedFromEmpty(place)
    },
    TEST_MS,
  )

  test(
    'full to its last byte: a checkpoint is refused or done, and one that only forgets is always done',
    async () => {
      const place = await placeForTest()
      mkdirSync(place.cacheDir)
      await smallDisk(place.cacheDir, '16M')
      const database = new Database(place.cacheDir, diskStorage(place.cacheDir))
      const pairs = (from: number, to: number) =>
        Array.from({ length: to - from }, (_, n) => ({ key: inodeKey(from + n), value: Buffer.alloc(200, n) }))
      await database.write(pairs(0, 2_000), META)
      await sh('head -c 16M /dev/zero > ballast || true', { cwd: place.cacheDir })
      let refused = 0
      for (let round = 0; round < 60; round++) {
        const written = await database.write(pairs(2_000 * round, 2_000 * round + 4_000), META).then(
          () => true,
          error => error.code,
        )
        if (written !== true) refused++
        expect([true, 'NO_SPACE']).toContain(written)
        await database.write(
          pairs(0, 256).map(({ key }) => ({ key, remove: true as const })),
          { ...META, lsn: round },
        )
        expect(database.meta()?.lsn).toBe(round)
      }
      expect(refused).toBeGreaterThan(50)
      await sh('rm ballast', { cwd: place.cacheDir })
      await database.write(pairs(0, 8_000), META)
      expect(database.inodesKnown).toBe(8_000)
      await database.close()
      expect(damageOf(place.cacheDir)).toBeUndefined()
    },
    TEST_MS,
  )

  test(
    'full because of somebody else: reads go on, writers get ENOSPC or wait, what was acknowledged is there',
    async () => {
      const place = await placeForTest()
      mkdirSync(place.cacheDir)
      await smallDisk(place.cacheDir, '128M')
      writeFileSync(join(place.remote, 'there'), Buffer.alloc(3_000_000, 'there '))
      const daemon = await place.mount(
        '--flush-interval',
        '200ms',
        '--cache-size',
        '96M',
        '--dirty-limit',
        '32M',
        '--deadline',
        '3s',
      )
      await sh('echo first > first; sync first; cat there > /dev/null', { cwd: place.mountpoint })
      await sh('head -c 200M /dev/zero > ballast || true', { cwd: place.cacheDir })
      const begun = Date.now()
      const wrote = await runs(
        'bash',
        ['-c', 'for i in $(seq 1 30); do head -c 1000000 /dev/urandom > f$i && sync f$i && echo $i; done'],
        {
          cwd: place.mountpoint,
        },
      )
      expect(Date.now() - begun).toBeLessThan(100_000)
      if (wrote.stderr) expect(wrote.stderr).toMatch(/No space left on device/)
      expect(wrote.stderr.replaceAll(/.*No space left on device\n/g, '')).toBe('')
      expect(await sh('cat first; tail -c 6 there', { cwd: place.mountpoint })).toBe('first\nthere ')
      expect(daemon.dead).toBe(false)
      await sh('rm ballast', { cwd: place.cacheDir })
      await sh('echo after > after; sync after', { cwd: place.mountpoint })
      await daemon.sync()
      for (const n of wrote.stdout.split('\n').filter(Boolean))
        expect(statSync(join(place.remote, `f${n}`)).size).toBe(1_000_000)
      expect(readFileSync(join(place.remote, 'after'), 'utf8')).toBe('after\n')
      expect((await until(daemon, ({ lag }) => lag.operations === 0)).problems).toEqual([])
      expect(await daemon.unmount()).toBe(0)
      await comparedFromEmpty(place)
    },
    TEST_MS,
  )

  test(
    'with no room at all a mount is refused in one line',
    async () => {
      const place = await placeForTest()
      mkdirSync(place.cacheDir)
      await smallDisk(place.cacheDir, '1M')
      await sh('head -c 2M /dev/zero > ballast || true', { cwd: place.cacheDir })
      await sh(
        'rm ballast; head -c 1040000 /dev/zero > .x || true; mv .x cache-lock 2>/dev/null || true; rm -f cache-lock',
        { cwd: place.cacheDir },
      )
      await sh('mkdir sub; head -c 2M /dev/zero > sub/ballast || true', { cwd: place.cacheDir })
      const failed = await place.mount('--cache-dir', join(place.cacheDir, 'sub', 'cache')).then(
        async daemon => void (await daemon.unmount()),
        (error: Error) => error.message,
      )
      if (failed) {
        expect(failed).toMatch(/no space left/i)
        expect(failed).not.toMatch(/\bat .*:\d+:\d+/)
      }
    },
    TEST_MS,
  )
})

describe('a cache directory', () => {
  test(
    'in use is refused, with the pid of the daemon that has it; so is one of another remote, and one that is something else',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount()
      const other = await placeForTest()
      other.cacheDir = place.cacheDir
      await expect(other.mount()).rejects.toThrow(
        new RegExp(
          `ended with [12].*${place.cacheDir}.*\\b${daemon.pid}\\b|ended with [12].*\\b${daemon.pid}\\b.*${place.cacheDir}`,
          's',
        ),
      )
      expect(await daemon.unmount()).toBe(0)
      await expect(other.mount()).rejects.toThrow(
        new RegExp(`ended with 2.*belongs to file://${place.remote}, not to`, 's'),
      )
      other.cacheDir = join(other.folder, 'documents')
      mkdirSync(other.cacheDir)
      writeFileSync(join(other.cacheDir, 'thesis.txt'), 'important')
      await expect(other.mount()).rejects.toThrow(/ended with 2.*is not a cache directory, and not empty/s)
      expect(readdirSync(other.cacheDir)).toEqual(['thesis.txt'])
    },
    TEST_MS,
  )

  test(
    'a damaged journal record is found by its checksum: what was before it is there, the rest is set aside, and status says so',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount('--flush-interval', '1h')
      await sh('echo early > early; sync early; for i in $(seq 1 20); do echo "marked-$i" > f$i; sync f$i; done', {
        cwd: place.mountpoint,
      })
      await daemon.kill()
      const journal = readdirSync(place.cacheDir).filter(name => /^journal-\d+$/.test(name))
      const found = journal
        .map(name => ({ name, at: readFileSync(join(place.cacheDir, name)).indexOf('marked-10\n') }))
        .find(({ at }) => at >= 0)
      expect(found).toBeDefined()
      damage(join(place.cacheDir, found!.name), found!.at, Buffer.from('MARRED'))
      const next = await place.mount('--flush-interval', '200ms')
      expect(await sh('cat early f1 f9', { cwd: place.mountpoint })).toBe('early\nmarked-1\nmarked-9\n')
      expect((await runs('cat', ['f20'], { cwd: place.mountpoint })).status).not.toBe(0)
      const status = await next.status()
      expect(status.problems.join()).toMatch(/the journal is damaged at record \d+.*set aside/)
      expect(readdirSync(place.cacheDir).some(name => name.includes('.damaged-'))).toBe(true)
      await sh('echo later > later', { cwd: place.mountpoint })
      await next.sync()
      expect(readFileSync(join(place.remote, 'f9'), 'utf8')).toBe('marked-9\n')
      expect(readFileSync(join(place.remote, 'later'), 'utf8')).toBe('later\n')
      expect(await next.unmount()).toBe(0)
      await comparedFromEmpty(place)
    },
    TEST_MS,
  )

  test(
    'a damaged data file: what is not sent and damaged is never served as right, clean pages are fetched again',
    async () => {
      const place = await placeForTest()
      writeFileSync(join(place.remote, 'clean'), Buffer.alloc(1 << 20, 'clean '))
      const first = await place.mount('--flush-interval', '1h')
      await sh('cat clean > /dev/null', { cwd: place.mountpoint })
      expect(await first.unmount()).toBe(0)
      for (const name of readdirSync(place.cacheDir).filter(name => name.startsWith('data'))) {
        const bytes = readFileSync(join(place.cacheDir, name))
        for (let at = bytes.indexOf('clean '); at >= 0; at = bytes.indexOf('clean ', at + 200_000))
          damage(join(place.cacheDir, name), at, Buffer.from('BROKEN'))
      }
      const next = await place.mount('--flush-interval', '200ms')
      await sh(`cmp clean '${join(place.remote, 'clean')}'; echo more > more`, { cwd: place.mountpoint })
      const { cache } = await next.status()
      expect(cache.corrupt).toBeGreaterThan(0)
      expect(await next.unmount()).toBe(0)
      await comparedFromEmpty(place)
    },
    TEST_MS,
  )

  test(
    'a damaged database is set aside, and said; what the remote has is there again',
    async () => {
      const place = await placeForTest()
      const first = await place.mount('--flush-interval', '200ms')
      await sh('for i in $(seq 1 50); do echo $i > f$i; done; mkdir d; echo deep > d/deep', { cwd: place.mountpoint })
      expect(await first.unmount()).toBe(0)
      const names = join(place.cacheDir, 'names')
      for (const name of readdirSync(names).filter(name => name.endsWith('.mdb') && !name.startsWith('lock'))) {
        const { size } = statSync(join(names, name))
        damage(join(names, name), 0, Buffer.alloc(size, 0xa5))
      }
      const outcome = await place.mount('--flush-interval', '200ms').then(
        daemon => ({ daemon, said: '' }),
        (error: Error) => ({ daemon: undefined, said: error.message }),
      )
      // Either it goes on without, saying so, or it says in one line what is to be done. Never wrong data, never a crash.
      if (outcome.daemon) {
        expect(await sh('cat f50 d/deep; ls | wc -l', { cwd: place.mountpoint })).toBe('50\ndeep\n51\n')
        expect((await outcome.daemon.status()).problems.join()).toMatch(/set aside/)
        expect(await outcome.daemon.unmount()).toBe(0)
      } else {
        expect(outcome.said).toMatch(/ended with [12]/)
        expect(outcome.said).toMatch(/names|database|format|checksum/)
        expect(outcome.said).not.toMatch(/\bat .*:\d+:\d+/)
      }
      expect(existsSync(join(place.remote, 'd/deep'))).toBe(true)
    },
    TEST_MS,
  )

  for (const [how, change] of [
    ['one bit of an inode', (file: string) => damage(file, readFileSync(file).lastIndexOf('f37'), Buffer.from('f77'))],
    ['a file that is cut short', (file: string) => truncateSync(file, statSync(file).size / 2)],
  ] as const)
    test(
      `damage inside the database is found before it is used: ${how}`,
      async () => {
        const place = await placeForTest()
        const first = await place.mount('--flush-interval', '1h')
        await sh('for i in $(seq 10 90); do echo $i > f$i; done', { cwd: place.mountpoint })
        await first.sync()
        await sh('echo unsent > unsent; sync unsent', { cwd: place.mountpoint })
        await first.kill()
        change(join(place.cacheDir, 'names/data.mdb'))
        const next = await place.mount('--flush-interval', '200ms')
        expect((await next.status()).problems.join()).toMatch(
          /database of names was damaged .*set aside as \*\.damaged-\d+/,
        )
        expect(await sh('cat f37 f90; ls | wc -l', { cwd: place.mountpoint })).toBe('37\n90\n81\n')
        const kept = readdirSync(place.cacheDir).filter(name => /^journal-\d+\.damaged-/.test(name))
        expect(kept.some(name => readFileSync(join(place.cacheDir, name)).includes('unsent\n'))).toBe(true)
        expect(await next.unmount()).toBe(0)
        const last = await place.mount()
        expect((await last.status()).problems).toEqual([])
        expect(await last.unmount()).toBe(0)
      },
      TEST_MS,
    )
})
