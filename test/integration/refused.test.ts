// What the remote refuses for good is put aside and shown; everything else goes on.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { run, runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { cleanup, leftovers, placeForTest, sh, until } from '../fixtures/trees.js'

const TEST_MS = 120_000
const { describe, test } = requires('built', 'fuse', 'root', 'chattr')
const QUICK = ['--flush-interval', '200ms']

/** Makes a thing at the remote that even root may not change, until the test ends. */
async function immutable(path: string): Promise<() => Promise<unknown>> {
  await run('chattr', ['+i', path])
  const undo = () => runs('chattr', ['-i', path])
  cleanup(undo)
  return undo
}

describe('a refusal for good', () => {
  test(
    'a directory that may not be changed: what belongs there is quarantined with what depends on it, the rest is sent',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount(...QUICK)
      const at = { cwd: place.mountpoint }
      await sh('mkdir locked open; echo old > locked/old; echo old > open/old', at)
      await daemon.sync()
      const unlock = await immutable(join(place.remote, 'locked'))
      await sh(
        'echo new > locked/new; mkdir locked/sub; echo deep > locked/sub/deep; echo new > open/new; echo changed > open/old',
        at,
      )
      await daemon.sync()
      expect(readFileSync(join(place.remote, 'open/new'), 'utf8')).toBe('new\n')
      expect(readFileSync(join(place.remote, 'open/old'), 'utf8')).toBe('changed\n')
      expect(readdirSync(join(place.remote, 'locked'))).toEqual(['old'])
      const status = await daemon.status()
      expect(status.quarantine.map(({ path }) => path)).toEqual(expect.arrayContaining(['locked/new', 'locked/sub']))
      expect(status.quarantine[0].detail).not.toBe('')
      expect(status.problems.join()).toMatch(/refused by the remote for good/)
      expect((await place.pageferry('status', place.mountpoint)).stdout).toMatch(/refused +locked\/new: .*permitted/)
      // Here it is as it was written, and goes on working; so does everything else.
      expect(
        await sh('cat locked/new locked/sub/deep locked/old; echo more >> locked/new; cat locked/new; ls locked', at),
      ).toBe('new\ndeep\nold\nnew\nmore\nnew\nold\nsub\n')
      await sh('echo later > open/later', at)
      await daemon.sync()
      expect(readFileSync(join(place.remote, 'open/later'), 'utf8')).toBe('later\n')
      // The end says what is not sent.
      const left = await place.pageferry('umount', place.mountpoint, '--timeout', '5s')
      expect(left.status).toBe(1)
      expect(left.stderr).toMatch(/\n {2}locked\/new\n/)
      await daemon.ended
      await unlock()
      const next = await place.mount(...QUICK)
      expect(await sh('cat locked/new locked/sub/deep', at)).toBe('new\nmore\ndeep\n')
      await next.sync()
      expect((await next.status()).quarantine).toEqual([])
      expect(await next.unmount()).toBe(0)
      expect(readFileSync(join(place.remote, 'locked/new'), 'utf8')).toBe('new\nmore\n')
      expect(readFileSync(join(place.remote, 'locked/sub/deep'), 'utf8')).toBe('deep\n')
      expect(await leftovers(place.remote)).toEqual([])
    },
    TEST_MS,
  )

  test(
    'a file that may not be changed, in place or as a whole, or removed',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount(...QUICK)
      const at = { cwd: place.mountpoint }
      await sh('for f in small large removed; do head -c 300000 /dev/zero > $f; done; echo 1 > small', at)
      await daemon.sync()
      for (const name of ['small', 'large', 'removed']) await immutable(join(place.remote, name))
      await sh(
        'echo 2 > small; printf changed | dd of=large bs=1 seek=100000 conv=notrunc status=none; rm removed; echo fine > fine',
        at,
      )
      await daemon.sync()
      expect(readFileSync(join(place.remote, 'fine'), 'utf8')).toBe('fine\n')
      expect(readFileSync(join(place.remote, 'small'), 'utf8')).toBe('1\n')
      const { quarantine } = await until(daemon, status => status.quarantine.length > 0)
      expect(quarantine.map(({ path }) => path)).toEqual(expect.arrayContaining(['large', 'small']))
      expect(await sh('cat small; tail -c +100001 large | head -c 7', at)).toBe('2\nchanged')
      await sh('echo also > also', at)
      await daemon.sync()
      expect(readFileSync(join(place.remote, 'also'), 'utf8')).toBe('also\n')
      expect((await place.pageferry('umount', place.mountpoint, '--timeout', '5s')).status).toBe(1)
      await daemon.ended
    },
    TEST_MS,
  )

  test(
    'names too long for any remote are refused at once; those of 255 bytes and of any bytes are kept',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount(...QUICK)
      const at = { cwd: place.mountpoint }
      expect((await runs('touch', ['x'.repeat(256)], at)).stderr).toContain('File name too long')
      await sh(
        `touch ${'y'.repeat(255)} "$(printf '\\377\\376 latin')" "$(printf 'tab\\tand\\nbreak')"; setfattr -n user.ok -v 1 ${'y'.repeat(255)}`,
        at,
      )
      const large = await runs('setfattr', ['-n', 'user.large', '-v', 'z'.repeat(70_000), 'y'.repeat(255)], at)
      expect(large.status).not.toBe(0)
      await daemon.sync()
      const names = readdirSync(place.remote, { encoding: 'latin1' })
      expect(names).toEqual(expect.arrayContaining(['y'.repeat(255), '\xff\xfe latin', 'tab\tand\nbreak']))
      expect((await daemon.status()).quarantine).toEqual([])
      expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'a size that the remote cannot hold',
    async () => {
      const place = await placeForTest()
      const daemon = await place.mount(...QUICK)
      const at = { cwd: place.mountpoint }
      // 16 TiB less one page is more than ext4 with 4 KiB blocks takes; at most the file is refused here, at once.
      const grown = await runs('truncate', ['-s', '17592186040321', 'huge'], at)
      await sh('echo fine > fine; truncate -s 17592186044417 huger 2>&1 | grep -q "File too large"', at)
      await daemon.sync()
      expect(readFileSync(join(place.remote, 'fine'), 'utf8')).toBe('fine\n')
      const { quarantine } = await daemon.status()
      if (grown.status === 0 && quarantine.length > 0) {
        expect(quarantine.map(({ path }) => path)).toContain('huge')
        await sh('rm huge; echo again > again', at)
        await daemon.sync()
        expect((await daemon.status()).quarantine).toEqual([])
      }
      await sh('rm -f huge huger', at)
      expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )
})
