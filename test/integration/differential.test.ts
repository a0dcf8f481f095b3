// One file on the mount and a plain one, under the same random operations: always the same bytes, also after a mount with an empty cache.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { freshSeed } from '../../src/base/random.js'
import { makePlace, run, runs } from '../fixtures/daemon.js'
import { long, requires } from '../fixtures/requires.js'

const { test } = requires('fuse', 'built', 'python3')
const DRIVER = join('test', 'fixtures', 'differential.py')
const seed = process.env.SEED ? Number(process.env.SEED) : freshSeed()
const legs = 5
const count = Number(process.env.COUNT ?? (long ? 200_000 : 20_000))

test(`${legs * count} random operations on a file and a plain one (seed ${seed})`, async () => {
  const place = await makePlace()
  const file = join(place.mountpoint, 'file')
  const plain = join(place.folder, 'plain')
  const total: Record<string, number> = {}
  for (let leg = 0; leg < legs; leg++) {
    const daemon = await place.mount('--flush-interval', ['50ms', '1s', '1h'][leg % 3], '--simulate', 'rtt=1ms')
    const args = [DRIVER, file, plain, String(seed + leg), String(count), daemon.socket, place.mountpoint]
    const { status, stdout, stderr } = await runs('python3', args, { timeoutMs: 1_200_000 })
    if (status !== 0) {
      const { conflicts, problems, quarantine } = await daemon.status()
      const listing = await run('ls', ['-la', place.mountpoint, place.remote])
      const what = JSON.stringify({ conflicts, problems, quarantine })
      throw new Error(`seed ${seed}, leg ${leg}, ${status}: ${stdout}${stderr}\n${what}\n${listing}`)
    }
    for (const [, kind, times] of stdout.matchAll(/'(\w+)': (\d+)/g)) total[kind] = (total[kind] ?? 0) + Number(times)
    if (leg % 2) {
      await run('cmp', [file, plain])
      expect(await daemon.unmount()).toBe(0)
    } else {
      // The kernel has nothing left after this, and the journal is what there is.
      await run('python3', ['-c', 'import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))', file])
      await daemon.kill()
      const again = await place.mount()
      await run('cmp', [file, plain])
      await again.sync()
      await again.kill()
    }
    // What the remote has is plain files.
    expect(readFileSync(join(place.remote, 'file')).equals(readFileSync(plain))).toBe(true)
    place.loseCache()
  }
  const last = await place.mount()
  await run('cmp', [file, plain])
  await last.unmount()
  process.stderr.write(`  differential: ${JSON.stringify(total)}\n`)
}, 3_600_000)
