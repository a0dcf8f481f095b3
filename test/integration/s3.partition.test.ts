// A bucket that is out of reach for a while, under load: who uses what is here notices nothing, who writes goes on until the limit, and
// everything arrives afterwards, in the order in which it was written.
import { randomUUID } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { beforeAll, expect } from '@jest/globals'
import { run } from '../fixtures/daemon.js'
import { faultProxy } from '../fixtures/fault-proxy.js'
import { long, requires } from '../fixtures/requires.js'
import { bucketForTests, placeOnRgw } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'
import { eventually } from '../fixtures/trees.js'

const rgw = requires('rgw', 'fuse', 'built', 'root', 'python3')

const MiB = 1024 * 1024
const PARTITION_MS = long ? 600_000 : 20_000
const DIRTY_LIMIT = 8 * MiB
const FILE_BYTES = 32 * 1024

/** Reads what is here again and again, until it is told to end. */
const reader = `
import os, sys, time
loops = 0
while not os.path.exists(sys.argv[1]):
    for n in range(20):
        assert open(f'here/{n}', 'rb').read() == b'%d\\n' % n * 1000, n
        os.stat(f'here/{n}')
    assert len(os.listdir('here')) == 20
    loops += 1
    time.sleep(0.05)
print(loops)
`
/** One file after the other, each noted when it was closed. */
const writer = `
import os, sys, time
notes, n = open(sys.argv[2], 'w', buffering=1), 0
while not os.path.exists(sys.argv[1]):
    with open(f'w/{n:06d}', 'wb') as f: f.write((b'%06d\\n' % n * ${FILE_BYTES})[:${FILE_BYTES}])
    notes.write(f'{n}\\n')
    n += 1
    time.sleep(0.02)
print(n)
`
const check = `
import os, sys
for n in range(int(sys.argv[1])):
    assert open(f'w/{n:06d}', 'rb').read() == (b'%06d\\n' % n * ${FILE_BYTES})[:${FILE_BYTES}], n
print(len(os.listdir('w')))
`

rgw.describe('a bucket behind a line that is cut', () => {
  let server: Rgw
  let bucket: string
  beforeAll(async () => {
    ;({ server, bucket } = await bucketForTests())
  }, 200_000)

  rgw.test(
    `for ${PARTITION_MS / 1000} s, under load`,
    async () => {
      const proxy = await faultProxy({ target: server.endpoint })
      const url = `s3://${bucket}/${randomUUID()}`
      const place = await placeOnRgw({ ...server, endpoint: proxy.endpoint }, url)
      const daemon = await place.mount('--flush-interval', '100ms', '--dirty-limit', String(DIRTY_LIMIT))
      const [stop, notes] = [join(place.folder, 'stop'), join(place.folder, 'notes')]
      const inside = { cwd: place.mountpoint, timeoutMs: PARTITION_MS + 120_000 }
      await run('sh', ['-c', 'mkdir here w; for n in $(seq 0 19); do yes $n | head -1000 > here/$n; done'], inside)
      await daemon.sync()
      writeFileSync(notes, '')
      const [reading, writing] = [reader, writer].map(program => run('python3', ['-c', program, stop, notes], inside))
      // What fails first is what is told.
      for (const one of [reading, writing]) one.catch(() => {})
      const noted = () => readFileSync(notes, 'utf8').split('\n').length - 1
      await eventually('it writes', () => noted() > 50)

      const before = noted()
      proxy.set({ partition: 'hang' })
      await sleep(PARTITION_MS)
      const { lag } = await daemon.status()
      expect(noted()).toBeGreaterThan(before + (0.4 * DIRTY_LIMIT) / FILE_BYTES)
      expect(lag.bytes).toBeGreaterThan(0.4 * DIRTY_LIMIT)
      expect(lag.bytes).toBeLessThanOrEqual(DIRTY_LIMIT)

      // Somebody who looks meanwhile finds what was written up to some moment, and nothing that is newer.
      const other = await placeOnRgw(server, url)
      const looking = await other.mount('--read-only', '--dir-ttl', '0s')
      writeFileSync(stop, '')
      proxy.set({ partition: 'none' })
      const [loops, count] = (await Promise.all([reading, writing])).map(Number)
      expect(loops).toBeGreaterThan(0)
      await eventually('all has arrived, in order', async () => {
        const names = (await run('ls', ['w'], { cwd: other.mountpoint })).split('\n').filter(Boolean)
        expect(names).toEqual(names.map((_, i) => String(i).padStart(6, '0')))
        return names.length === count
      })
      await daemon.sync()
      expect([await looking.unmount(), await daemon.unmount()]).toEqual([0, 0])
      place.loseCache()
      const again = await place.mount('--read-only')
      expect(await run('python3', ['-c', check, String(count)], { ...inside, cwd: place.mountpoint })).toBe(
        `${count}\n`,
      )
      expect(await again.unmount()).toBe(0)
      await proxy.close()
    },
    PARTITION_MS + 240_000,
  )
})
