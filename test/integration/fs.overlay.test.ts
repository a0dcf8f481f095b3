// A union of two trees of which ours is one: below, and above, where what was taken away is whiteouts and attributes of our mount.
import { mkdirSync, mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { run, runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { cleanup, differences, placeForTest, sh } from '../fixtures/trees.js'

const TEST_MS = 120_000
const { describe, test } = requires('built', 'fuse', 'root', 'rsync', 'overlay')

/** What is there first. */
const LOWER = `
  mkdir -p d/e/f keep; for i in $(seq 1 30); do head -c $((i * 3000)) /dev/urandom > d/f$i; done
  echo text > d/e/text; ln -s text d/e/link; ln d/f1 d/hard; echo deep > d/e/f/deep; setfattr -n user.tag -v blue d/f2
`
/** And what is done with it. */
const WORK = `
  echo new > d/new; echo more >> d/f3; rm d/f4 d/e/link; mv d/f5 d/moved; mv d/f6 keep/f6; truncate -s 100 d/f7; chmod 600 d/f8
  rm -r d/e/f; mkdir d/e/f; echo again > d/e/f/again; mv d/f9 d/f10; cp d/f11 d/copy; rm d/f12; mkdir d/f12; touch -d 2001-01-01 d/f13
  dd if=/dev/zero of=d/f14 bs=1000 seek=3 count=2 conv=notrunc status=none; mv d/e keep/e
`

describe('a union', () => {
  test(
    'above our mount: it changes nothing below',
    async () => {
      const place = await placeForTest()
      await sh(LOWER, { cwd: place.remote })
      const [plain, before] = [join(place.folder, 'plain'), join(place.folder, 'before')]
      for (const copy of [plain, before]) await run('rsync', ['-aHAX', `${place.remote}/`, `${copy}/`])
      const daemon = await place.mount()
      const union = await unionOf(place.folder, place.mountpoint, mkdtempSync(join(place.folder, 'layers-')))
      await workIn(union, plain)
      await daemon.sync()
      expect(await daemon.unmount()).toBe(0)
      expect(await changes(before, place.remote)).toEqual([])
    },
    TEST_MS,
  )

  test(
    'whose upper part is our mount: it is the same from an empty cache',
    async () => {
      const place = await placeForTest()
      const [lower, plain] = [join(place.folder, 'lower'), join(place.folder, 'plain')]
      mkdirSync(lower)
      await sh(LOWER, { cwd: lower })
      await run('rsync', ['-aHAX', `${lower}/`, `${plain}/`])
      const daemon = await place.mount()
      const union = await unionOf(place.folder, lower, place.mountpoint)
      await workIn(union, plain)
      await daemon.sync()
      expect(await daemon.unmount()).toBe(0)
      // Whiteouts are at the remote.
      expect(await sh('find upper -type c | wc -l', { cwd: place.remote })).not.toBe('0\n')
      place.loseCache()
      const again = await place.mount()
      const same = await unionOf(place.folder, lower, place.mountpoint)
      expect(await changes(plain, same)).toEqual([])
      await run('umount', [same])
      expect((await again.status()).problems).toEqual([])
      expect(await again.unmount()).toBe(0)
    },
    TEST_MS,
  )
})

/** The same in both: then they are the same, and the union is not mounted any more. */
async function workIn(union: string, plain: string): Promise<void> {
  for (const cwd of [union, plain]) await sh(WORK, { cwd })
  expect(await changes(plain, union)).toEqual([])
  await run('umount', [union])
}

/** What differs, but for when it was done. */
const changes = async (a: string, b: string): Promise<string[]> =>
  (await differences(a, b)).filter(line => !/^\.[dfL]\.\.t\.+ /.test(line))

/** @returns where it is mounted, until the test ends */
async function unionOf(folder: string, lower: string, layers: string): Promise<string> {
  const union = mkdtempSync(join(folder, 'union-'))
  for (const name of ['upper', 'work']) mkdirSync(join(layers, name), { recursive: true })
  const options = `lowerdir=${lower},upperdir=${join(layers, 'upper')},workdir=${join(layers, 'work')}`
  await run('mount', ['-t', 'overlay', 'overlay', '-o', options, union])
  cleanup(() => runs('umount', ['-l', union]))
  return union
}
