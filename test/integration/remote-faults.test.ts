// A remote that is gone, slow, unreliable, full, read-only, changed by others or damaged: nothing dirty is lost, and everything is said.
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import type { MountDaemon, Place } from '../fixtures/daemon.js'
import { run, runs, start } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { beside, differences, eventually, leftovers, placeForTest, sh, smallDisk, until } from '../fixtures/trees.js'

const TEST_MS = 120_000
const { describe, test } = requires('built', 'fuse', 'root', 'rsync')
const QUICK = ['--flush-interval', '100ms', '--dir-ttl', '200ms']

/** Mounts again from an empty cache and compares with the remote. */
async function asSeenByOthers(place: Place): Promise<void> {
  expect(await leftovers(place.remote)).toEqual([])
  place.loseCache()
  const fresh = await place.mount()
  expect(await differences(place.remote, place.mountpoint)).toEqual([])
  expect((await fresh.status()).problems).toEqual([])
  expect(await fresh.unmount()).toBe(0)
}

const timesOf = (cwd: string) => sh("find . -path ./.pageferry -prune -o -type f -printf '%p %T@\\n' | sort", { cwd })

const noProblems = (daemon: MountDaemon) =>
  until(daemon, ({ lag, problems }) => lag.operations === 0 && problems.length === 0, {
    what: 'a status without problems',
  })

describe('a remote that is gone', () => {
  test(
    'cached data goes on working, what is written meanwhile arrives when it is back',
    async () => {
      const place = await placeForTest()
      mkdirSync(join(place.remote, 'd'))
      writeFileSync(join(place.remote, 'd/cached'), Buffer.alloc(300_000, 'c'))
      writeFileSync(join(place.remote, 'd/uncached'), Buffer.alloc(300_000, 'u'))
      const daemon = await place.mount(...QUICK, '--deadline', '3s')
      const at = { cwd: place.mountpoint }
      await sh('cat d/cached > /dev/null; ls -l d', at)
      renameSync(place.remote, `${place.remote}.away`)
      const begun = Date.now()
      expect((await runs('cat', ['d/uncached'], at)).stderr).toMatch(/Input\/output error/)
      expect(Date.now() - begun).toBeLessThan(10_000)
      const digest = createHash('md5').update(Buffer.alloc(300_000, 'c')).digest('hex')
      expect(await sh('md5sum < d/cached', at)).toContain(digest)
      expect(await sh('ls d; sleep 1; ls d; test -e d/uncached', at)).toBe('cached\nuncached\ncached\nuncached\n')
      await sh('echo new > d/new; mkdir e; echo over > d/cached; mv d/new e/moved; sync e/moved; df . >/dev/null', at)
      expect(await sh('cat e/moved d/cached', at)).toBe('new\nover\n')
      const bad = await until(daemon, ({ remote, batches }) => !remote.reachable && batches.lastError !== null)
      expect(bad.problems.join()).toMatch(/changes cannot be sent: the remote cannot be reached/)
      expect(bad.lag.operations).toBeGreaterThan(0)
      expect((await place.pageferry('status', place.mountpoint)).stdout).toMatch(/remote\s+cannot be reached/)
      // Another directory in its place (the disk is not mounted) is not the remote either.
      mkdirSync(place.remote)
      await sh('sleep 1; test -e d/uncached; test -e e/moved', at)
      expect(readdirSync(place.remote)).toEqual([])
      await run('rmdir', [place.remote])
      renameSync(`${place.remote}.away`, place.remote)
      await daemon.sync()
      const good = await noProblems(daemon)
      expect(good.remote.reachable).toBe(true)
      expect(readFileSync(join(place.remote, 'e/moved'), 'utf8')).toBe('new\n')
      expect(await sh('cat d/uncached | wc -c', at)).toBe('300000\n')
      expect(await daemon.unmount()).toBe(0)
      await asSeenByOthers(place)
    },
    TEST_MS,
  )

  test(
    'umount gives up after its timeout, lists what is left and exits 1; the next mount carries on',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount(...QUICK, '--deadline', '1s')
      await sh('echo one > one; mkdir sub; head -c 200000 /dev/zero > sub/two', { cwd: place.mountpoint })
      await daemon.sync()
      renameSync(place.remote, `${place.remote}.away`)
      await sh('echo changed > one; head -c 300000 /dev/zero > sub/three', { cwd: place.mountpoint })
      const left = await place.pageferry('umount', place.mountpoint, '--timeout', '2s')
      expect(left.status).toBe(1)
      expect(left.stderr).toMatch(
        /not sent: \d+ changes?, [\d.]+ KiB \(.*cannot be reached.*\); kept in .*cache, mount again/,
      )
      expect(left.stderr).toMatch(/\n {2}one\n/)
      expect(left.stderr).toMatch(/\n {2}sub\/three\n/)
      expect(left.stderr).not.toContain('sub/two')
      expect(await daemon.ended).toBe(1)
      const { journals } = JSON.parse((await place.pageferry('status', '--json')).stdout)
      expect(journals).toMatchObject([{ remote: `file://${place.remote}`, cacheDir: place.cacheDir }])
      expect(journals[0].lag.bytes).toBeGreaterThan(300_000)
      expect((await place.pageferry('status')).stdout).toMatch(/not mounted .*\n.*\n.*lag .*changes/)
      renameSync(`${place.remote}.away`, place.remote)
      const next = await place.mount(...QUICK)
      expect(await sh('cat one; wc -c < sub/three', { cwd: place.mountpoint })).toBe('changed\n300000\n')
      expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
      expect(await next.ended).toBe(0)
      expect(readFileSync(join(place.remote, 'one'), 'utf8')).toBe('changed\n')
      expect(JSON.parse((await place.pageferry('status', '--json')).stdout).journals).toEqual([])
      await asSeenByOthers(place)
    },
    TEST_MS,
  )

  test(
    'a mount with its remote out of reach starts with what is cached, and its work is kept',
    async () => {
      const place = await placeForTest()
      writeFileSync(join(place.remote, 'old'), 'old\n')
      const first = await place.mount(...QUICK)
      await sh('cat old; echo mine > mine', { cwd: place.mountpoint })
      expect(await first.unmount()).toBe(0)
      const offline = await place.mount(...QUICK, '--simulate', 'errors=1,seed=1', '--deadline', '1s')
      expect(await sh('cat old mine; echo offline > offline; ls', { cwd: place.mountpoint })).toBe(
        'old\nmine\nmine\noffline\nold\n',
      )
      const status = await offline.status()
      expect(status.lease).toBeNull()
      expect(status.remote.reachable).toBe(false)
      expect(status.problems.join()).toMatch(/lease/)
      const left = await place.pageferry('umount', place.mountpoint, '--timeout', '1s')
      expect(left).toMatchObject({ status: 1, stderr: expect.stringContaining('offline') })
      expect(left.stderr).not.toMatch(/\bat .*:\d+:\d+/)
      const next = await place.mount(...QUICK)
      expect(await next.unmount()).toBe(0)
      expect(readFileSync(join(place.remote, 'offline'), 'utf8')).toBe('offline\n')
      await asSeenByOthers(place)
    },
    TEST_MS,
  )

  test(
    'no call hangs beyond its deadline when the remote never answers',
    async () => {
      const place = await placeForTest()
      mkdirSync(join(place.remote, 'd'))
      writeFileSync(join(place.remote, 'd/file'), Buffer.alloc(500_000, 'f'))
      const first = await place.mount(...QUICK)
      await sh('ls -l d; head -c 5000 d/file | wc -c', { cwd: place.mountpoint })
      expect(await first.unmount()).toBe(0)
      const daemon = await place.mount(...QUICK, '--prefetch', 'off', '--simulate', 'hang=1,seed=2', '--deadline', '2s')
      const timed = async (script: string) => {
        const begun = Date.now()
        const ran = await runs('bash', ['-c', script], { cwd: place.mountpoint, timeoutMs: 30_000 })
        return { ...ran, seconds: (Date.now() - begun) / 1000 }
      }
      expect(await timed('head -c 4096 d/file | wc -c')).toMatchObject({ status: 0, stdout: '4096\n' })
      const read = await timed('cat d/file > /dev/null')
      expect(read.stderr).toMatch(/Input\/output error|timed out/i)
      expect(read.seconds).toBeLessThan(12)
      // A reader that is told to stop does so at once.
      const reader = start('cat', [join(place.mountpoint, 'd/file')])
      await new Promise(resolve => setTimeout(resolve, 500))
      const begun = Date.now()
      reader.child.kill('SIGINT')
      await reader.ran
      expect(Date.now() - begun).toBeLessThan(1500)
      for (const script of ['ls d', 'stat d/file', 'df .', 'echo x > new; cat new'])
        expect((await timed(script)).seconds).toBeLessThan(12)
      expect((await daemon.status()).remote.reachable).toBe(false)
      expect((await place.pageferry('umount', place.mountpoint, '--timeout', '1s')).status).toBe(1)
      await daemon.ended
      const next = await place.mount(...QUICK)
      expect(await next.unmount()).toBe(0)
      expect(readFileSync(join(place.remote, 'new'), 'utf8')).toBe('x\n')
    },
    TEST_MS,
  )
})

describe('a remote that is unreliable', () => {
  const work = `
    mkdir -p a/b; for i in $(seq 1 40); do head -c $((i * 4000)) /dev/urandom > a/f$i; done
    head -c 3000000 /dev/urandom > a/b/big; mv a/f1 a/b/moved; rm a/f2; ln a/f3 a/b/hard; ln -s f4 a/link
    dd if=/dev/urandom of=a/b/big bs=10000 count=7 seek=99 conv=notrunc status=none; chmod 640 a/f5; touch -d 2001-01-01 a/f6
    truncate -s 1000 a/f7; truncate -s 900000 a/f8; cp -r a copy; mv copy/b copy/c
  `
  for (const [how, simulate] of [
    ['failing one call in ten', 'errors=0.1,seed=11'],
    ['failing one call in three, with short answers', 'errors=0.3,short=0.1,seed=12'],
    ['slow', 'rtt=60ms,jitter=20ms,rate=4M,seed=13'],
  ])
    test(
      `${how}: everything gets through, and is read back`,
      async () => {
        const place = await placeForTest()
        const plain = join(place.folder, 'plain')
        mkdirSync(plain)
        const daemon = await place.mount('--flush-interval', '300ms', '--simulate', simulate, '--deadline', '20s')
        await sh(work, { cwd: place.mountpoint })
        await run('rsync', ['-aHAX', `${place.mountpoint}/`, `${plain}/`])
        await daemon.sync()
        const status = await daemon.status()
        expect(status.lag.operations).toBe(0)
        expect(status.conflicts).toEqual([])
        expect(status.quarantine).toEqual([])
        expect(await differences(plain, place.remote)).toEqual([])
        // To the nanosecond, which rsync does not look at.
        expect(await timesOf(place.remote)).toBe(await timesOf(place.mountpoint))
        expect(await daemon.unmount()).toBe(0)
        place.loseCache()
        const reader = await place.mount('--simulate', simulate, '--deadline', '20s')
        expect(await differences(plain, place.mountpoint)).toEqual([])
        expect(await reader.unmount()).toBe(0)
        await asSeenByOthers(place)
      },
      TEST_MS,
    )
})

describe('a remote that takes nothing more', () => {
  test(
    'out of space: writers go on, status says it, and all of it arrives when there is room again',
    async () => {
      const place = await placeForTest()
      await smallDisk(place.remote, '24M')
      // Each file in one batch: a change of one that is there needs room for what is staged as well.
      const daemon = await place.mount('--flush-interval', '1h')
      await sh('head -c 15000000 /dev/urandom > first', { cwd: place.mountpoint })
      await daemon.sync()
      await sh('head -c 15000000 /dev/urandom > second; echo small > small; sync second', { cwd: place.mountpoint })
      void daemon.sync().catch(() => {})
      const full = await until(daemon, ({ batches }) => batches.lastError !== null)
      expect(full.problems.join()).toMatch(/changes cannot be sent: no space left/)
      expect(full.quarantine).toEqual([])
      // A first part of it may have found its place.
      expect(full.lag.bytes).toBeGreaterThan(4_000_000)
      const digests = await sh('md5sum first second small', { cwd: place.mountpoint })
      const left = await place.pageferry('umount', place.mountpoint, '--timeout', '1s')
      expect(left.status).toBe(1)
      expect(left.stderr).toMatch(/no space left/)
      expect(left.stderr).toMatch(/\n {2}second\n/)
      await daemon.ended
      // Still full: usable at once, from the journal.
      const next = await place.mount(...QUICK)
      expect(await sh('md5sum first second small', { cwd: place.mountpoint })).toBe(digests)
      await run('mount', ['-o', 'remount,size=64M', place.remote])
      await next.sync()
      await noProblems(next)
      expect(await next.unmount()).toBe(0)
      expect(await sh('md5sum first second small', { cwd: place.remote })).toBe(digests)
      await asSeenByOthers(place)
    },
    TEST_MS,
  )

  test(
    'out of space, and then something is deleted: that makes the room',
    async () => {
      const place = await placeForTest()
      await smallDisk(place.remote, '24M')
      const daemon = await place.mount('--flush-interval', '1h')
      await sh('head -c 15000000 /dev/urandom > first', { cwd: place.mountpoint })
      await daemon.sync()
      await sh('head -c 15000000 /dev/urandom > second', { cwd: place.mountpoint })
      void daemon.sync().catch(() => {})
      await until(daemon, ({ batches }) => batches.lastError !== null)
      await run('rm', [join(place.remote, 'first')])
      await daemon.sync()
      expect(statSync(join(place.remote, 'second')).size).toBe(15_000_000)
      expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'read-only: changes wait, and are sent when it is writable again',
    async () => {
      const place = await placeForTest()
      await smallDisk(place.remote, '24M')
      const daemon = await place.mount(...QUICK)
      await sh('echo before > file', { cwd: place.mountpoint })
      await daemon.sync()
      // As soon as no file of it is open for writing any more.
      await eventually('read-only', async () => (await runs('mount', ['-o', 'remount,ro', place.remote])).status === 0)
      await sh('echo during > file; echo more > new; cat file new', { cwd: place.mountpoint })
      const status = await until(daemon, ({ batches }) => batches.lastError !== null)
      expect(status.problems.join()).toMatch(/changes cannot be sent: read-only/)
      expect(status.quarantine).toEqual([])
      const left = await place.pageferry('umount', place.mountpoint, '--timeout', '1s')
      expect(left).toMatchObject({ status: 1, stderr: expect.stringMatching(/read-only(.|\n)*\n {2}file/) })
      await daemon.ended
      // A remote that cannot be written to can be looked at, with or without work that is left.
      const reader = await place.mount('--read-only')
      expect(await sh('ls', { cwd: place.mountpoint })).toContain('file')
      expect(await reader.unmount()).toBe(1)
      const next = await place.mount(...QUICK)
      expect(await sh('cat file new', { cwd: place.mountpoint })).toBe('during\nmore\n')
      await run('mount', ['-o', 'remount,rw', place.remote])
      await next.sync()
      expect(await next.unmount()).toBe(0)
      expect(readFileSync(join(place.remote, 'file'), 'utf8')).toBe('during\n')
      await asSeenByOthers(place)
    },
    TEST_MS,
  )
})

describe('a remote that is changed behind our back', () => {
  test(
    'both are kept: theirs has the name, ours is beside it, and status and conflicts say so',
    async () => {
      const place = await placeForTest()
      for (const name of ['small', 'gone']) writeFileSync(join(place.remote, name), `${name}\n`)
      writeFileSync(join(place.remote, 'large'), Buffer.alloc(400_000, 'l'))
      const daemon = await place.mount('--flush-interval', '1h', '--dir-ttl', '1h')
      await sh(
        `cat small large gone > /dev/null; echo ours > small; echo ours > created; echo ours >> gone
         printf ours | dd of=large bs=1 seek=200000 conv=notrunc status=none`,
        { cwd: place.mountpoint },
      )
      writeFileSync(join(place.remote, 'small'), 'theirs, and longer\n')
      writeFileSync(join(place.remote, 'created'), 'theirs\n')
      appendFileSync(join(place.remote, 'large'), 'theirs')
      await run('rm', [join(place.remote, 'gone')])
      await daemon.sync()
      const names = readdirSync(place.remote).filter(name => name !== '.pageferry')
      const kept = (name: string) => {
        const [found, ...rest] = names.filter(each => each.startsWith(`${name}.conflict-`))
        expect(rest).toEqual([])
        expect(found).toMatch(/\.conflict-.+-\d{8}T\d{6}Z$/)
        return readFileSync(join(place.remote, found))
      }
      const theirs = (name: string) => readFileSync(join(place.remote, name))
      expect(theirs('small').toString()).toBe('theirs, and longer\n')
      expect(kept('small').toString()).toBe('ours\n')
      expect(theirs('created').toString()).toBe('theirs\n')
      expect(kept('created').toString()).toBe('ours\n')
      expect(theirs('large').subarray(-6).toString()).toBe('theirs')
      expect(theirs('large').includes('ours')).toBe(false)
      expect(kept('large').subarray(200_000, 200_004).toString()).toBe('ours')
      const status = await daemon.status()
      expect(status.conflicts.map(({ path }) => path).sort()).toEqual(
        expect.arrayContaining(['created', 'large', 'small']),
      )
      const said = (await place.pageferry('conflicts', place.mountpoint)).stdout
      for (const name of ['small', 'large', 'created']) expect(said).toContain(`${name}.conflict-`)
      expect((await place.pageferry('status', place.mountpoint)).stdout).toMatch(/conflicts\s+\d+/)
      await daemon.refresh()
      // What we wrote to a file that they removed is somewhere.
      const all = await sh('cat gone* | grep -c ours', { cwd: place.remote })
      expect(all).toBe('1\n')
      expect(await sh('cat small created', { cwd: place.mountpoint })).toBe('theirs, and longer\ntheirs\n')
      expect(await differences(place.remote, place.mountpoint, { directoryTimes: false })).toEqual([])
      expect(await daemon.unmount()).toBe(0)
      await asSeenByOthers(place)
    },
    TEST_MS,
  )

  test(
    "what we did ourselves is nobody else's change: times that were set, a mode, then a change of a part",
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount(...QUICK)
      const at = { cwd: place.mountpoint }
      await sh('head -c 500000 /dev/zero > file', at)
      await daemon.sync()
      for (const [n, change] of [
        'touch -d 2001-01-01 file',
        'chmod 600 file',
        'touch file',
        'mv file f; mv f file',
      ].entries()) {
        await sh(change, at)
        await daemon.sync()
        await sh(`printf ${n} | dd of=file bs=1 seek=${n * 100_000} conv=notrunc status=none`, at)
        await daemon.sync()
      }
      expect(readdirSync(place.remote).filter(name => name !== '.pageferry')).toEqual(['file'])
      expect((await daemon.status()).conflicts).toEqual([])
      expect(await daemon.unmount()).toBe(0)
      await asSeenByOthers(place)
    },
    TEST_MS,
  )

  test(
    'times that are set on a file whose bytes they changed: it is theirs that is read',
    async () => {
      const place = await placeForTest()
      writeFileSync(join(place.remote, 'file'), Buffer.alloc(300_000, 'o'))
      const daemon = await place.mount(...QUICK)
      const at = { cwd: place.mountpoint }
      await sh('head -c 100000 file > /dev/null', at)
      writeFileSync(join(place.remote, 'file'), Buffer.alloc(300_000, 't'))
      await sh('touch -d 2001-01-01 file', at)
      await daemon.sync()
      await eventually('theirs', async () => (await sh('tr -d t < file | wc -c', at)) === '0\n')
      expect(statSync(join(place.remote, 'file')).mtimeMs).toBe(Date.parse('2001-01-01'))
      expect(await daemon.unmount()).toBe(0)
      await asSeenByOthers(place)
    },
    TEST_MS,
  )

  test(
    'new, changed and removed files are seen within the time that a listing is believed',
    async () => {
      const place = await placeForTest()
      writeFileSync(join(place.remote, 'changed'), 'before\n')
      writeFileSync(join(place.remote, 'removed'), 'x\n')
      const daemon = await place.mount('--dir-ttl', '300ms')
      await sh('cat changed removed', { cwd: place.mountpoint })
      writeFileSync(join(place.remote, 'changed'), 'afterwards\n')
      writeFileSync(join(place.remote, 'new'), 'new\n')
      await run('rm', [join(place.remote, 'removed')])
      await eventually(
        'the change is seen',
        async () =>
          (await runs('bash', ['-c', 'cat changed new; test ! -e removed'], { cwd: place.mountpoint })).stdout ===
          'afterwards\nnew\n',
        5000,
      )
      expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )
})

describe('wrong data', () => {
  test(
    'a chunk that went bad on the local disk is found by its checksum, counted, and fetched again',
    async () => {
      const place = await placeForTest()
      writeFileSync(join(place.remote, 'file'), Buffer.alloc(1_000_000, 'right '))
      const daemon = await place.mount(...QUICK)
      await sh('cat file > /dev/null', { cwd: place.mountpoint })
      expect(await daemon.unmount()).toBe(0)
      for (const name of readdirSync(place.cacheDir).filter(name => /^data/.test(name))) {
        const bytes = readFileSync(join(place.cacheDir, name))
        const at = bytes.indexOf('right right')
        if (at >= 0)
          await run('dd', [`of=${join(place.cacheDir, name)}`, 'bs=1', `seek=${at + 70_001}`, 'conv=notrunc'], {
            input: 'WRONG',
          })
      }
      const next = await place.mount(...QUICK)
      await run('cmp', [join(place.remote, 'file'), join(place.mountpoint, 'file')])
      expect((await next.status()).cache.corrupt).toBeGreaterThan(0)
      expect(await next.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'an intent at the remote that was damaged is refused by name, not applied',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount('--flush-interval', '1h', '--simulate', 'rtt=80ms')
      await sh('for i in $(seq 1 30); do echo $i > f$i; done', { cwd: place.mountpoint })
      const syncing = daemon.sync().catch(() => {})
      // Between the intent and the end of its application.
      await eventually('an intent', () => existsSync(join(place.remote, '.pageferry/log/0000000000000002')))
      await daemon.kill()
      await syncing
      const intent = join(place.remote, '.pageferry/log/0000000000000002')
      const bytes = readFileSync(intent)
      bytes[bytes.length >> 1] ^= 1
      writeFileSync(intent, bytes)
      const other = await beside(place)
      await expect(other.mount(...QUICK)).rejects.toThrow(/ended with 1.*log\/0000000000000002/s)
      await expect(other.mount('--read-only')).rejects.toThrow(/ended with 1.*log\/0000000000000002/s)
      bytes[bytes.length >> 1] ^= 1
      writeFileSync(intent, bytes)
      const next = await other.mount(...QUICK)
      expect(await sh('cat f1 f30; ls | wc -l', { cwd: other.mountpoint })).toBe('1\n30\n30\n')
      expect(await next.unmount()).toBe(0)
      const again = await place.mount(...QUICK)
      expect(await sh('ls | wc -l', { cwd: place.mountpoint })).toBe('30\n')
      expect(await again.unmount()).toBe(0)
      await asSeenByOthers(place)
    },
    TEST_MS,
  )
})
