// Two who want to write to one remote: one may, and whoever lost that right writes nothing more, though it was asleep when it was lost.
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from '@jest/globals'
import type { MountDaemon, Place } from '../fixtures/daemon.js'
import { long, requires } from '../fixtures/requires.js'
import { beside, differences, eventually, leftovers, placeForTest, sh, until } from '../fixtures/trees.js'

const TEST_MS = 120_000
const { describe, test } = requires('built', 'fuse', 'root', 'rsync')
const ON_REQUEST = ['--flush-interval', '1h']

/** Everything at the remote but what is ours: names, sizes, times and contents. */
function everything(remote: string): Record<string, string> {
  const names = readdirSync(remote, { encoding: 'latin1' }).filter(name => name !== '.pageferry')
  return Object.fromEntries(
    names.map(name => {
      const { size, mtimeMs, ino, mode } = statSync(join(remote, name))
      const bytes = mode & 0o40000 ? '' : readFileSync(join(remote, name), 'latin1')
      return [name, JSON.stringify([size, mtimeMs, ino, mode, bytes])]
    }),
  )
}

const ended = (daemon: MountDaemon) => Promise.race([daemon.ended, sleep(30_000).then(() => 'still running')])

describe('two writers', () => {
  test(
    'a second writable mount is refused with the name of the holder, and a read-only one is not',
    async () => {
      const place = await placeForTest()
      const first = await place.mount()
      const second = await beside(place)
      const begun = Date.now()
      const refused = await second.mount().then(
        () => '',
        (error: Error) => error.message,
      )
      expect(refused).toMatch(/ended with 1/)
      expect(refused).toContain(`pid ${first.pid}`)
      expect(refused).toContain(hostname())
      expect(refused).toContain('--take-over')
      expect(refused).not.toMatch(/\bat .*:\d+:\d+/)
      expect(Date.now() - begun).toBeLessThan(15_000)
      const reader = await second.mount('--read-only')
      await sh('echo x > file', { cwd: place.mountpoint })
      await first.sync()
      await eventually('the reader sees it', () => existsSync(join(second.remote, 'file')))
      expect(await sh('cat file; echo y > file 2>/dev/null || echo refused', { cwd: second.mountpoint })).toBe(
        'x\nrefused\n',
      )
      expect(await reader.unmount()).toBe(0)
      expect(await first.unmount()).toBe(0)
      // Released: nobody has to wait.
      const after = await second.mount()
      expect(await after.unmount()).toBe(0)
    },
    TEST_MS,
  )

  test(
    'a holder that died on this host is replaced at once',
    async () => {
      const place = await placeForTest()
      const first = await place.mount(...ON_REQUEST)
      await sh('echo synced > synced', { cwd: place.mountpoint })
      await first.sync()
      await sh('echo unsent > unsent; sync unsent', { cwd: place.mountpoint })
      await first.kill()
      const second = await beside(place)
      const begun = Date.now()
      const next = await second.mount()
      expect(Date.now() - begun).toBeLessThan(8_000)
      expect(await sh('ls; echo next > synced', { cwd: second.mountpoint })).toBe('synced\n')
      expect(await next.unmount()).toBe(0)
      // The journal of the dead one was not lost: what it had goes beside or between what came since.
      const again = await place.mount()
      expect(await sh('cat unsent synced', { cwd: place.mountpoint })).toBe('unsent\nnext\n')
      expect(await again.unmount()).toBe(0)
      expect(readFileSync(join(place.remote, 'unsent'), 'utf8')).toBe('unsent\n')
    },
    TEST_MS,
  )

  /** Stops the first after `delayMs` of sending, lets the second take over and write, and wakes the first. */
  async function overtake(how: { flags: string[]; delayMs: number }): Promise<void> {
    const place = await placeForTest()
    const first = await place.mount(...ON_REQUEST, '--lease', '1s', ...how.flags)
    const at = { cwd: place.mountpoint }
    await sh(
      'for i in $(seq 1 12); do head -c 150000 /dev/zero > f$i; done; head -c 2000000 /dev/zero > large; mkdir d',
      at,
    )
    await first.sync()
    // In place, whole, new, renamed and removed.
    await sh(
      `for i in 1 2 3 4; do echo first > f$i; done; for i in 5 6 7 8; do printf first | dd of=f$i bs=1 seek=70000 conv=notrunc status=none; done
       head -c 1000000 /dev/urandom | dd of=large bs=1M conv=notrunc status=none; mv f9 moved; rm f10; head -c 500000 /dev/urandom > created; sync large`,
      at,
    )
    const syncing = first.sync().then(
      () => 'sent',
      () => 'refused',
    )
    await sleep(how.delayMs)
    first.signal('SIGSTOP')
    const other = await beside(place)
    const second = await other.mount(...ON_REQUEST, '--take-over')
    await sh(
      'echo second > f11; echo second > f1; echo second > created-by-second; printf second | dd of=large bs=1 conv=notrunc status=none',
      {
        cwd: other.mountpoint,
      },
    )
    await second.sync()
    const before = everything(place.remote)
    first.signal('SIGCONT')
    await sleep(2_500)
    expect(everything(place.remote)).toEqual(before)
    const how2 = await Promise.race([syncing, sleep(20_000).then(() => 'waiting')])
    if (how2 === 'refused') {
      const status = await until(first, ({ lease }) => lease === null)
      expect(status.problems.join()).toMatch(/writing has stopped.*lease/)
      expect(status.problems.join()).toMatch(/the journal keeps what was not sent/)
      expect(status.lag.operations).toBeGreaterThan(0)
      // Reading goes on, and the end says what is left.
      expect(await sh('head -c 5 f1', at)).toBe('first')
      const left = await place.pageferry('umount', place.mountpoint, '--timeout', '2s')
      expect(left.status).toBe(1)
      expect(left.stderr).toMatch(/not sent: .*lease/)
      expect(await ended(first)).toBe(1)
      const { journals } = JSON.parse((await place.pageferry('status', '--json')).stdout)
      expect(journals).toHaveLength(1)
    } else {
      expect(how2).toBe('sent')
      await first.kill()
    }
    await sh('echo again > f12', { cwd: other.mountpoint })
    await second.sync()
    expect(await differences(other.mountpoint, place.remote)).toEqual([])
    expect(await second.unmount()).toBe(0)
    const seen = everything(place.remote)
    expect(JSON.parse(seen['created-by-second'])[4]).toBe('second\n')
    expect(JSON.parse(seen.f1)[4]).toBe('second\n')
    // The first one comes back with its journal: what it wrote is there, under its name or beside it.
    const again = await place.mount()
    await again.sync()
    expect(await sh('cat created-by-second f12', at)).toBe('second\nagain\n')
    const kept = await sh('cat f1*; cat f2* | head -c 5', at)
    expect(kept).toContain('second')
    if (how2 === 'refused') expect(kept).toContain('first')
    expect(await again.unmount()).toBe(0)
    expect(await leftovers(place.remote)).toEqual([])
  }

  for (const delayMs of long ? [0, 100, 200, 300, 450, 600, 800, 1000, 1500, 2500] : [0, 300, 900])
    test(
      `one that was stopped ${delayMs} ms into a commit writes no byte after somebody took over, and keeps its journal`,
      () => overtake({ flags: ['--simulate', 'rtt=25ms,rate=3M'], delayMs }),
      TEST_MS,
    )

  test(
    'a read-only mount during a half-applied commit sees one state',
    async () => {
      const place = await placeForTest()
      const files = Array.from({ length: 24 }, (_, n) => `f${n}`)
      const write = (daemon: Place, generation: number) =>
        sh(
          `for f in ${files.slice(0, 12).join(' ')}; do echo ${generation} > $f; done
           for f in ${files.slice(12).join(' ')}; do printf ${generation} | dd of=$f bs=1 seek=100000 conv=notrunc status=none; done
           rm -f gone-*; echo > gone-${generation}; mkdir -p dir-${generation}; mv moved-* moved-${generation} 2>/dev/null || echo > moved-${generation}`,
          { cwd: daemon.mountpoint },
        )
      const read = (seen: Place) =>
        sh(
          `for f in ${files.slice(0, 12).join(' ')}; do cat $f; done
           for f in ${files.slice(12).join(' ')}; do tail -c +100001 $f; echo; done
           ls | sed -n 's/^\\(gone\\|moved\\)-//p'; ls -d dir-* | sed s/dir-// | sort -n | tail -1`,
          { cwd: seen.mountpoint },
        )
      let daemon = await place.mount(...ON_REQUEST, '--simulate', 'rtt=15ms')
      await write(place, 1)
      await daemon.sync()
      let generation = 1
      for (const delayMs of long ? [100, 200, 300, 400, 500, 700, 900, 1200, 1600] : [150, 400, 900]) {
        await write(place, ++generation)
        const syncing = daemon.sync().catch(() => {})
        await sleep(delayMs)
        daemon.signal('SIGSTOP')
        // The writer is neither dead nor alive: whatever it had begun is not the reader's to finish.
        const reader = await beside(place)
        const seen = await reader.mount('--read-only')
        const states = new Set((await read(reader)).trim().split('\n'))
        expect([...states]).toHaveLength(1)
        expect([String(generation), String(generation - 1)]).toContain([...states][0])
        expect(await seen.unmount()).toBe(0)
        if (delayMs % 200 === 0) daemon.signal('SIGCONT')
        else {
          await daemon.kill()
          daemon = await place.mount(...ON_REQUEST, '--simulate', 'rtt=15ms')
        }
        await syncing
        await daemon.sync()
        expect(new Set((await read(place)).trim().split('\n'))).toEqual(new Set([String(generation)]))
      }
      writeFileSync(join(place.folder, 'done'), '')
      expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )
})
