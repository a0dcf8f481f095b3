// kill -9 of the daemon at random moments, under a writer that notes what it has made durable: after a new mount all of that is there, and
// nothing is torn.
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from '@jest/globals'
import { freshSeed, random } from '../../src/base/random.js'
import { makePlace, runs, start } from '../fixtures/daemon.js'
import { long, requires } from '../fixtures/requires.js'

const { test } = requires('fuse', 'built', 'python3')
const WRITER = join('test', 'fixtures', 'noting-writer.py')
const CHECKER = join('test', 'fixtures', 'noting-checker.py')
const rounds = long ? 50 : 5
const seed = process.env.SEED ? Number(process.env.SEED) : freshSeed()

test(
  `everything that was synced survives kill -9 of the daemon, ${rounds} times (seed ${seed})`,
  async () => {
    const draw = random(seed)
    const place = await makePlace()
    const notes = join(place.folder, 'notes')
    let checked = 0
    for (let round = 0; round < rounds; round++) {
      // From "nothing is committed for long" to "always in the middle of a commit".
      const interval = draw.pick(['10ms', '100ms', '2s', '1h'])
      const rtt = draw.pick(['1ms', '20ms'])
      let daemon = await place.mount('--flush-interval', interval, '--simulate', `rtt=${rtt}`)
      const writer = start('python3', [WRITER, place.mountpoint, notes, String(round)])
      await sleep(300 + draw.below(2500))
      await daemon.kill()
      const ended = await writer.ran
      // It must have been ended by the mount's end, not by a mistake of its own.
      expect(ended.stderr).toMatch(/OSError|ConnectionAbortedError|Errno/)
      daemon = await place.mount('--flush-interval', '1h')
      const found = await runs('python3', [CHECKER, place.mountpoint, notes])
      expect(
        `seed ${seed} round ${round} (${interval}, ${rtt}): ${found.status} ${found.stdout}${found.stderr}`,
      ).toMatch(/: 0 \d+\n$/)
      checked = Number(found.stdout)
      // Sometimes killed again with all of it unsent, sometimes sent.
      if (draw.chance(0.5)) await daemon.kill()
      else expect(await daemon.unmount()).toBe(0)
    }
    expect(checked).toBeGreaterThan(rounds * 5)
    const daemon = await place.mount()
    await daemon.sync()
    await daemon.kill()
    place.loseCache()
    const last = await place.mount('--read-only')
    const found = await runs('python3', [CHECKER, place.mountpoint, notes])
    expect(`seed ${seed} from an empty cache: ${found.status} ${found.stdout}${found.stderr}`).toMatch(/: 0 \d+\n$/)
    await last.unmount()
    process.stderr.write(`  kill -9: ${checked} notes held, seed ${seed}\n`)
  },
  long ? 1_800_000 : 300_000,
)
