// What other ends of a mount leave: umount(8), umount -l, a killed daemon, signals; and how the next mount begins.
import { existsSync, readFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { isMounted, run, runs, start } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { differences, eventually, leftovers, placeForTest, sh, until } from '../fixtures/trees.js'

const TEST_MS = 120_000
const { describe, test } = requires('built', 'fuse', 'root', 'rsync')
const SLOW = ['--flush-interval', '1h', '--simulate', 'rtt=20ms,rate=1M']

describe('what is left of a mount', () => {
  test(
    'after a plain umount the daemon goes on sending, and a new mount of the cache directory takes over from it',
    async () => {
      const place = await placeForTest()
      const first = await place.mount(...SLOW)
      await sh('for i in 1 2 3; do head -c 4000000 /dev/urandom > f$i; done; echo end > end; md5sum f* end > sums', {
        cwd: place.mountpoint,
      })
      await run('umount', [place.mountpoint])
      expect(isMounted(place.mountpoint)).toBe(false)
      const draining = await until(first, ({ state }) => state === 'draining')
      expect(draining.lag.bytes).toBeGreaterThan(0)
      expect((await place.pageferry('status')).stdout).toContain('unmounted, sending what is left')
      const begun = Date.now()
      const next = await place.mount('--flush-interval', '100ms')
      expect(Date.now() - begun).toBeLessThan(15_000)
      expect(await first.ended).toBe(0)
      expect(await sh('md5sum --quiet -c sums; cat end', { cwd: place.mountpoint })).toBe('end\n')
      await sh('echo more >> end', { cwd: place.mountpoint })
      expect(await next.unmount()).toBe(0)
      expect(readFileSync(join(place.remote, 'end'), 'utf8')).toBe('end\nmore\n')
      await sh('md5sum --quiet -c sums 2>/dev/null || md5sum -c sums | grep -c OK', { cwd: place.remote })
      expect(await leftovers(place.remote)).toEqual([])
    },
    TEST_MS,
  )

  test(
    'left alone after a plain umount, the daemon sends everything and ends',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount('--flush-interval', '1h')
      await sh('head -c 3000000 /dev/urandom > file; cp file ../file', { cwd: place.mountpoint })
      await run('umount', [place.mountpoint])
      expect(await daemon.ended).toBe(0)
      await run('cmp', [join(place.folder, 'file'), join(place.remote, 'file')])
      expect((await place.pageferry('status')).stdout).toContain('nothing is mounted, and nothing is left to send')
    },
    TEST_MS,
  )

  test(
    'umount -l: whoever has a file open goes on with it, and what they write arrives',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount('--flush-interval', '100ms')
      await sh('echo before > file', { cwd: place.mountpoint })
      const user = start('bash', ['-c', `exec 3>>${join(place.mountpoint, 'file')}; echo open; read; echo after >&3`])
      await eventually('it is open', () => user.out.stdout === 'open\n')
      await run('umount', ['-l', place.mountpoint])
      // Nobody may have its cache directory yet, and that is said with the pid.
      await expect(place.mount()).rejects.toThrow(new RegExp(`daemon ${daemon.pid}`))
      user.child.stdin.end('\n')
      await user.ran
      expect(await daemon.ended).toBe(0)
      expect(readFileSync(join(place.remote, 'file'), 'utf8')).toBe('before\nafter\n')
      const next = await place.mount()
      expect(await next.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'a mount point whose daemon was killed is detached with one line, then mounted; nothing is lost',
    async () => {
      const place = await placeForTest()
      const first = await place.mount('--flush-interval', '1h')
      await sh('echo kept > kept; sync kept; mkdir d; echo too > d/too', { cwd: place.mountpoint })
      await sh('sync -f .', { cwd: place.mountpoint })
      process.kill(first.pid, 'SIGKILL')
      // Not with `kill()`, which detaches it itself.
      await first.ended
      expect((await runs('ls', [place.mountpoint])).stderr).toMatch(/not connected|aborted/)
      const status = await place.pageferry('status')
      expect(status.stdout).toMatch(/not mounted .*\n.*cache in/)
      const next = await place.mount('--flush-interval', '100ms')
      const about = next.output
        .split('\n')
        .filter(line => line.includes(place.mountpoint) && !line.includes('is mounted at'))
      expect(about).toHaveLength(1)
      expect(about[0]).toMatch(/detached|dead|gone/)
      expect(await sh('cat kept d/too', { cwd: place.mountpoint })).toBe('kept\ntoo\n')
      process.kill(next.pid, 'SIGKILL')
      await next.ended
      const detached = await place.pageferry('umount', place.mountpoint)
      expect(detached).toMatchObject({ status: 0, stderr: expect.stringMatching(/^pageferry: detached .*\n$/) })
      expect(isMounted(place.mountpoint)).toBe(false)
      const last = await place.mount()
      expect(await last.unmount()).toBe(0)
      expect(readFileSync(join(place.remote, 'd/too'), 'utf8')).toBe('too\n')
    },
    TEST_MS,
  )

  test(
    'SIGTERM sends everything; a second one keeps the rest in the journal, which status lists until it is mounted again',
    async () => {
      const place = await placeForTest()
      const first = await place.mount('--flush-interval', '1h')
      await sh('echo one > one', { cwd: place.mountpoint })
      first.signal('SIGTERM')
      expect(await first.ended).toBe(0)
      expect(readFileSync(join(place.remote, 'one'), 'utf8')).toBe('one\n')
      const second = await place.mount(...SLOW)
      await sh('head -c 20000000 /dev/urandom > large; md5sum large > sum', { cwd: place.mountpoint })
      second.signal('SIGTERM')
      await eventually('it sends', () => second.output.includes('sending'), 20_000)
      expect(second.dead).toBe(false)
      const begun = Date.now()
      second.signal('SIGTERM')
      expect(await second.ended).toBe(1)
      expect(Date.now() - begun).toBeLessThan(10_000)
      expect(second.output).toMatch(/not sent: .*\n {2}(large|sum)\n/)
      expect(existsSync(join(place.remote, 'large'))).toBe(false)
      const status = await place.pageferry('status')
      expect(status.stdout).toContain(`not mounted  file://${place.remote}`)
      expect(status.stdout).toMatch(/lag +19\.1 MiB/)
      const third = await place.mount()
      expect(await sh('md5sum -c sum', { cwd: place.mountpoint })).toBe('large: OK\n')
      expect(await third.unmount()).toBe(0)
      expect(await sh('md5sum -c sum', { cwd: place.remote })).toBe('large: OK\n')
      place.loseCache()
      const fresh = await place.mount()
      expect(await differences(place.remote, place.mountpoint)).toEqual([])
      expect(await fresh.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'umount of a busy mount is refused, naming who uses it, and changes nothing',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount('--flush-interval', '100ms')
      await sh('echo x > file', { cwd: place.mountpoint })
      const user = start('sleep', ['60'], { cwd: place.mountpoint })
      const refused = await place.pageferry('umount', place.mountpoint)
      expect(refused.status).toBe(1)
      expect(refused.stderr).toContain(`sleep (pid ${user.child.pid})`)
      expect(await sh('cat file; echo y > file; cat file', { cwd: place.mountpoint })).toBe('x\ny\n')
      user.child.kill()
      await user.ran
      expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
      expect(await daemon.ended).toBe(0)
    },
    TEST_MS,
  )

  test(
    'journals of remotes that cannot be had any more stay listed, each with its cache directory',
    async () => {
      const [one, two] = [await placeForTest(), await placeForTest()]
      Object.assign(two.env, one.env)
      for (const place of [one, two]) {
        const daemon = await place.mount('--flush-interval', '1h')
        await sh('echo unsent > unsent', { cwd: place.mountpoint })
        renameSync(place.remote, `${place.remote}.away`)
        expect((await place.pageferry('umount', place.mountpoint, '--timeout', '1s')).status).toBe(1)
        await daemon.ended
      }
      const { mounts, journals } = JSON.parse((await one.pageferry('status', '--json')).stdout)
      expect(mounts).toEqual([])
      expect(journals.map(({ cacheDir }: { cacheDir: string }) => cacheDir).sort()).toEqual(
        [one.cacheDir, two.cacheDir].sort(),
      )
      two.loseCache()
      const left = JSON.parse((await one.pageferry('status', '--json')).stdout)
      expect(left.journals).toHaveLength(1)
    },
    TEST_MS,
  )
})
