// kill -9 of the daemon of a mount that somebody holds: another one goes on, and no program notices more than a pause.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from '@jest/globals'
import { freshSeed, random } from '../../src/base/random.js'
import { callControl } from '../../src/control.js'
import { type MountDaemon, makePlace, type Place, runs, start } from '../fixtures/daemon.js'
import { randomFile } from '../fixtures/random-file.js'
import { long, requires } from '../fixtures/requires.js'

const { test } = requires('fuse', 'built', 'python3', 'root')
const { test: withFio } = requires('fuse', 'built', 'python3', 'root', 'fio')
const STORM = join('test', 'fixtures', 'metadata-storm.py')
const WRITER = join('test', 'fixtures', 'sqlite-writer.py')
const CHECKER = join('test', 'fixtures', 'sqlite-checker.py')
const kills = long ? 200 : 12
const TEST_MS = long ? 3_600_000 : 240_000
const MiB = 2 ** 20
const seed = Number(process.env.SEED ?? freshSeed())

/** Of the process that holds the mount: its daemon; undefined while there is none. */
function daemonOf(holder: MountDaemon): number | undefined {
  for (const pid of readdirSync('/proc').filter(name => /^\d+$/.test(name))) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
      const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      if (Number(parent) === holder.pid && state !== 'Z') return Number(pid)
    } catch {}
  }
  return undefined
}

const there = async <T>(holder: MountDaemon, look: () => T | undefined): Promise<T> => {
  for (;;) {
    const found = look()
    if (found !== undefined) return found
    if (holder.dead) throw new Error(`the mount has ended: ${holder.output.slice(-2_000)}`)
    await sleep(5)
  }
}

/** What `status --json` says, asked until it answers. */
async function status(place: Place): Promise<{ pid: number; lag: { operations: number }; problems: string[] }> {
  for (const until = Date.now() + 30_000; ; await sleep(100)) {
    const { status, stdout, stderr } = await place.pageferry('status', '--json', place.mountpoint)
    if (status === 0) return JSON.parse(stdout)
    if (Date.now() > until) throw new Error(stderr)
  }
}

const holds = (place: Place): Place => Object.assign(place, { env: { ...place.env, PAGEFERRY_HOLD: 'true' } })

withFio(
  `programs notice nothing when the daemon is killed ${kills} times (seed ${seed})`,
  async () => {
    const draw = random(seed)
    const place = holds(await makePlace())
    const holder = await place.mount('--flush-interval', '200ms', '--simulate', 'rtt=2ms')
    const notes = join(place.folder, 'notes')
    const at = (name: string) => join(place.mountpoint, name)
    const storms = [0, 1].map(n => start('python3', [STORM, at(`storm${n}`), String(seed + n)], { timeoutMs: TEST_MS }))
    const writer = start('python3', [WRITER, at('rows.db'), '1', 'delete', 'full', notes], { timeoutMs: TEST_MS })
    const rows = [`--size=8m --bs=4k --rw=randwrite --ioengine=psync`, '--size=8m --bs=64k --rw=write --ioengine=mmap']
    let isOver = false
    /** Whatever fio wrote is verified by it, again and again. */
    const verified = rows.map(async (how, n) => {
      for (let round = 0; !isOver; round++) {
        const options = `--name=v${n} --directory=${place.mountpoint} --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 ${how}`
        const ended = await runs('fio', [...options.split(' '), '--output=/dev/null'], { timeoutMs: TEST_MS })
        if (ended.status !== 0) throw new Error(`fio, round ${round}: ${ended.status} ${ended.stderr}${ended.stdout}`)
      }
    })
    const killed = new Set<number>()
    for (let n = 0; n < kills; n++) {
      await sleep(draw.below(1_500))
      // A killed one is seen for a moment yet.
      const pid = await there(holder, () => [daemonOf(holder)].find(found => found && !killed.has(found)))
      killed.add(pid)
      process.kill(pid, 'SIGKILL')
      // Sometimes the next one right at its beginning.
      if (draw.chance(0.7)) await there(holder, () => (daemonOf(holder) === pid ? undefined : daemonOf(holder)))
      // Those that end at once, again and again, end the mount; so these live for a while.
      if (n % 3 === 2) await sleep(4_000)
    }
    isOver = true
    await Promise.all(verified)
    for (const { child } of storms) child.stdin.write('enough\n')
    for (const { ran } of storms) {
      const ended = await ran
      const said =
        ended.status === 0
          ? ''
          : holder.output.replace(/^.*(is mounted at|another one goes on|ended: SIGKILL).*\n/gm, '')
      expect(`seed ${seed}: ${said}${ended.status} ${ended.stdout}${ended.stderr}`).toMatch(/: 0 \d+\n$/)
    }
    writer.child.kill('SIGTERM')
    expect((await writer.ran).stderr).toBe('')
    expect(killed.size).toBe(kills)
    const checked = async () => {
      for (const n of [0, 1]) {
        const found = await runs('python3', [STORM, at(`storm${n}`), '0', join(place.mountpoint, `storm${n}.model`)])
        expect(`seed ${seed}: ${found.status} ${found.stdout.slice(0, 2_000)}${found.stderr}`).toMatch(/: 0 \d+\n$/)
      }
      const found = await runs('python3', [CHECKER, at('rows.db')])
      expect(`seed ${seed}: ${found.status} ${found.stderr}`).toBe(`seed ${seed}: 0 `)
      const noted = readFileSync(notes, 'latin1').trim().split('\n').pop()!.split(' ')[1]
      expect(JSON.parse(found.stdout)['1']).toBeGreaterThanOrEqual(Number(noted))
    }
    await checked()
    const ended = await holder.unmount()
    expect(ended === 0 ? '' : `seed ${seed}: ${ended} ${holder.output.slice(-4_000)}`).toBe('')
    place.loseCache()
    const again = await place.mount('--read-only')
    await checked()
    await again.unmount()
  },
  TEST_MS,
)

test('a daemon that cannot go on is given up, and the mount with it', async () => {
  const place = holds(await makePlace())
  const holder = await place.mount()
  for (let n = 0; n < 11 && !holder.dead; n++) {
    const pid = await there(holder, () => (holder.dead ? -1 : daemonOf(holder)))
    if (pid !== -1) process.kill(pid, 'SIGKILL')
    await there(holder, () => (holder.dead || daemonOf(holder) !== pid ? true : undefined))
  }
  expect(await holder.ended).toBe(1)
  expect(holder.output).toContain(
    'ended 11 times in a row (SIGKILL): it is unmounted; the journal keeps what was not sent',
  )
  expect((await runs('mountpoint', ['-q', place.mountpoint])).status).not.toBe(0)
}, 60_000)

test('signals reach the daemon, and who is unmounted while there is none ends', async () => {
  const place = holds(await makePlace())
  const holder = await place.mount()
  expect((await runs('sh', ['-c', 'echo kept > "$0"/file', place.mountpoint])).status).toBe(0)
  const first = await status(place)
  expect(first.pid).toBe(daemonOf(holder))
  process.kill(first.pid, 'SIGKILL')
  expect(await holder.unmount()).toBe(0)
  expect(readFileSync(join(place.remote, 'file'), 'utf8')).toBe('kept\n')
  const another = await place.mount()
  process.kill(daemonOf(another)!, 'SIGKILL')
  await runs('umount', [place.mountpoint])
  expect(await another.ended).toBe(0)
}, 60_000)

test('an upgrade goes on with the mount, under programs that use it', async () => {
  const place = holds(await makePlace())
  const holder = await place.mount('--flush-interval', '200ms')
  const directory = join(place.mountpoint, 'storm')
  const storm = start('python3', [STORM, directory, String(seed)])
  const pids = new Set([daemonOf(holder)])
  for (let round = 0; round < 3; round++) {
    await sleep(500)
    const { status, stdout, stderr } = await place.pageferry('upgrade', place.mountpoint)
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    const pid = daemonOf(holder)!
    expect(stdout).toMatch(
      new RegExp(`^${place.mountpoint} is served by pageferry \\d+\\.\\d+\\.\\d+ \\(daemon ${pid}\\)\n$`),
    )
    pids.add(pid)
  }
  expect(pids.size).toBe(4)
  // A program that does not work: the one before goes on.
  const socket = join(place.env.XDG_RUNTIME_DIR!, 'pageferry', `${daemonOf(holder)}.sock`)
  await callControl(socket, { do: 'upgrade', program: [process.execPath, '/nowhere/cli.js'] })
  await status(place)
  expect(holder.output).toContain('/nowhere/cli.js does not serve the mount: the program before goes on')
  storm.child.stdin.write('enough\n')
  const ended = await storm.ran
  expect(`seed ${seed}: ${ended.status} ${ended.stdout}${ended.stderr}`).toMatch(/: 0 \d+\n$/)
  expect(await holder.unmount()).toBe(0)
  place.loseCache()
  const again = await place.mount('--read-only', '--no-hold')
  const found = await runs('python3', [STORM, directory, '0', join(place.mountpoint, 'storm.model')])
  expect(`${found.status} ${found.stdout.slice(0, 2_000)}${found.stderr}`).toMatch(/^0 \d+\n$/)
  const refused = await place.pageferry('upgrade', place.mountpoint)
  expect(refused).toMatchObject({ status: 2, stdout: '' })
  expect(refused.stderr).toBe(
    `pageferry: not supported: nobody holds ${place.mountpoint}: it was mounted with --no-hold\n`,
  )
  await again.unmount()
}, 120_000)

/** Holds a file open whose name it takes away; for each line of its input it changes another one, and reads a part of it. */
const HOLDING = `
import os, sys
fd = os.open('large', os.O_RDONLY)
os.unlink('large')
print('open', flush=True)
for n, line in enumerate(sys.stdin):
    open('other', 'w').write(line)
    sys.stdout.buffer.write(os.pread(fd, 1 << 20, n << 21))
    sys.stdout.flush()
`

test('a file that lost its name before its bytes were here is read on, whoever the daemon is', async () => {
  const place = holds(await makePlace())
  const content = randomFile(join(place.remote, 'large'), 8 * MiB, seed)
  const holder = await place.mount('--flush-interval', '50ms', '--prefetch', 'off')
  const program = start('python3', ['-c', HOLDING], { cwd: place.mountpoint })
  const said = async (bytes: number) => {
    while (program.out.stdout.length < bytes) {
      if (program.child.exitCode !== null) throw new Error(program.out.stderr)
      await sleep(20)
    }
  }
  program.child.stdout.setEncoding('latin1')
  await said('open\n'.length)
  for (let n = 0; n < 4; n++) {
    expect((await place.pageferry('sync', place.mountpoint)).status).toBe(0)
    program.child.stdin.write('\n')
    await said('open\n'.length + (n + 1) * MiB)
    if (n % 2) process.kill(daemonOf(holder)!, 'SIGKILL')
    else expect((await place.pageferry('upgrade', place.mountpoint)).status).toBe(0)
    await status(place)
  }
  program.child.stdin.end()
  const { stdout } = await program.ran
  const read = Buffer.from(stdout.slice('open\n'.length), 'latin1')
  const parts = [0, 1, 2, 3].map(n => content.subarray(2 * n * MiB, (2 * n + 1) * MiB))
  expect(read.equals(Buffer.concat(parts))).toBe(true)
  expect(await holder.unmount()).toBe(0)
  expect(readdirSync(place.remote).filter(name => name !== '.pageferry')).toEqual(['other'])
}, 120_000)

test('a mount whose holder is gone goes on, says so, and cannot be upgraded', async () => {
  const place = holds(await makePlace())
  const holder = await place.mount()
  const daemon = daemonOf(holder)!
  process.kill(holder.pid, 'SIGKILL')
  await holder.ended
  expect((await runs('sh', ['-c', 'echo kept > "$0"/file', place.mountpoint])).status).toBe(0)
  const { pid, problems } = await status(place)
  expect({ pid, problems }).toEqual({
    pid: daemon,
    problems: ['nobody holds the mount any more: it ends with this daemon'],
  })
  const refused = await place.pageferry('upgrade', place.mountpoint)
  expect(refused).toMatchObject({ status: 2, stdout: '' })
  expect(refused.stderr).toBe('pageferry: not supported: the process that held the mount is gone\n')
  expect((await status(place)).pid).toBe(daemon)
  const unmounted = await place.pageferry('umount', place.mountpoint)
  expect(unmounted).toMatchObject({ status: 0, stderr: '' })
  expect(readFileSync(join(place.remote, 'file'), 'utf8')).toBe('kept\n')
}, 60_000)
