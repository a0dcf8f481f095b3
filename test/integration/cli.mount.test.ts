// A mount from the command line, from its start to its end, in the foreground and as a daemon.
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, expect } from '@jest/globals'
import type { MountStatus } from '../../src/mounted-tree.js'
import { isMounted, makePlace, type Place, run, start } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'built')

const cli = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'cli.js')
let place: Place
beforeEach(async () => {
  place = await makePlace()
  writeFileSync(join(place.remote, 'hello'), 'from the remote\n')
})
afterEach(async () => {
  const left = await place.end()
  expect(left).toEqual([])
}, 60_000)

/** mount --daemon, with the cache of the place. */
const daemon = (...flags: string[]) =>
  place.pageferry('mount', '--daemon', place.remote, place.mountpoint, '--cache-dir', place.cacheDir, ...flags)
const sh = (script: string) =>
  run('sh', ['-c', script], { cwd: '/', env: { ...place.env, M: place.mountpoint, R: place.remote } })
const status = async (...args: string[]): Promise<MountStatus> =>
  JSON.parse((await place.pageferry('status', '--json', ...args)).stdout)
const all = async () =>
  (await status()) as unknown as {
    mounts: MountStatus[]
    journals: { remote: string; cacheDir: string; lag: MountStatus['lag'] }[]
  }

const until = async (what: () => boolean | Promise<boolean>, ms = 10_000) => {
  for (const end = Date.now() + ms; !(await what()); await sleep(20))
    if (Date.now() > end) throw new Error('waited in vain')
}

describe('mount --daemon', () => {
  test('is ready for use when it returns, and says where', async () => {
    const started = await daemon()
    expect(started).toMatchObject({
      status: 0,
      stderr: '',
      stdout: expect.stringMatching(
        new RegExp(`^file://${place.remote} is mounted at ${place.mountpoint} \\(daemon \\d+\\)\n$`),
      ),
    })
    expect(await sh('cat $M/hello; echo back > $M/back; ls $M')).toBe('from the remote\nback\nhello\n')
    expect(await place.pageferry('umount', place.mountpoint)).toEqual({ status: 0, stdout: '', stderr: '' })
    expect(readFileSync(join(place.remote, 'back'), 'utf8')).toBe('back\n')
    expect(isMounted(place.mountpoint)).toBe(false)
  })

  test('leaves the terminal, the directory and the pipe it was started from', async () => {
    mkdirSync(join(place.folder, 'here'))
    const { child, ran } = start(process.execPath, [cli, 'mount', '--daemon', '../remote', '../mnt'], {
      env: place.env,
      cwd: join(place.folder, 'here'),
    })
    // Ends only when nobody holds its stdout and stderr any more.
    expect(await ran).toMatchObject({ status: 0 })
    expect(child.exitCode).toBe(0)
    const { pid } = await status(place.mountpoint)
    const [, , , , , session] = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/\(.*\)/, 'x')
      .split(' ')
    expect(Number(session)).toBe(pid)
    expect(await run('readlink', [`/proc/${pid}/cwd`])).toBe('/\n')
    rmSync(join(place.folder, 'here'), { recursive: true })
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
  })

  test('writes its log beside its journal', async () => {
    await daemon('--log-level', 'debug')
    await place.pageferry('umount', place.mountpoint)
    const lines = readFileSync(join(place.cacheDir, 'daemon.log'), 'utf8').trim().split('\n')
    for (const line of lines)
      expect(JSON.parse(line)).toMatchObject({ level: expect.any(Number), msg: expect.any(String) })
  })

  test('has a thread pool that is large enough, whoever starts it', async () => {
    place.env.UV_THREADPOOL_SIZE = undefined
    await daemon()
    const { pid } = await status(place.mountpoint)
    expect(readFileSync(`/proc/${pid}/environ`, 'utf8')).toContain('UV_THREADPOOL_SIZE=8\0')
    await place.pageferry('umount', place.mountpoint)
  })
})

describe('mount in the foreground', () => {
  test('keeps its pid, has its thread pool, and ends with Ctrl-C', async () => {
    const env = { ...place.env, UV_THREADPOOL_SIZE: undefined }
    const { child, out, ran } = start(process.execPath, [cli, 'mount', place.remote, place.mountpoint], { env })
    await until(() => out.stderr.includes('is mounted at'))
    expect((await status(place.mountpoint)).pid).toBe(child.pid)
    expect(readFileSync(`/proc/${child.pid}/environ`, 'utf8')).toContain('UV_THREADPOOL_SIZE=8\0')
    await sh('echo late > $M/late')
    child.kill('SIGINT')
    expect(await ran).toMatchObject({ status: 0 })
    expect(readFileSync(join(place.remote, 'late'), 'utf8')).toBe('late\n')
  })

  test('can be given up before it is ready', async () => {
    const { child, out, ran } = start(
      process.execPath,
      [cli, 'mount', '--simulate', 'rtt=5s', place.remote, place.mountpoint],
      { env: place.env },
    )
    await sleep(1500)
    child.kill('SIGINT')
    expect((await ran).status).not.toBe(0)
    expect(out.stderr).not.toMatch(/^\s+at /m)
    expect(isMounted(place.mountpoint)).toBe(false)
  })
})

describe('status', () => {
  test('of one mount has the fields of the contract', async () => {
    await daemon()
    await sh('cat $M/hello > /dev/null')
    const now = await status(place.mountpoint)
    expect(now).toMatchObject({
      mountpoint: place.mountpoint,
      pid: expect.any(Number),
      readOnly: false,
      contract: 'remote',
      lag: {
        bytes: expect.any(Number),
        operations: expect.any(Number),
        ageMs: expect.any(Number),
        kernelBytes: expect.any(Number),
      },
      cache: { bytes: expect.any(Number), bytesMax: 10 * 2 ** 30 },
      memory: { bytes: expect.any(Number), bytesMax: 256 * 2 ** 20 },
      reads: { hits: expect.any(Number), misses: expect.any(Number) },
      remote: {
        url: `file://${place.remote}`,
        requests: expect.any(Number),
        bytesRead: expect.any(Number),
        bytesWritten: expect.any(Number),
        errors: 0,
        reachable: true,
      },
      lease: { holder: expect.any(String), epoch: 1 },
      conflicts: [],
      quarantine: [],
    })
    expect(now.reads.misses).toBeGreaterThan(0)
    expect(now.remote.bytesRead).toBeGreaterThanOrEqual(16)
    const text = await place.pageferry('status', place.mountpoint)
    expect(text.stdout).toMatch(/hit rate .*\n/)
    expect(text.stdout).toContain(place.mountpoint)
    // A path in it, and its socket, are as good as its mount point.
    expect((await status(join(place.mountpoint, 'hello'))).pid).toBe(now.pid)
    expect((await status(join(place.folder, 'run', 'pageferry', `${now.pid}.sock`))).pid).toBe(now.pid)
    await place.pageferry('umount', place.mountpoint)
  })

  test('without an argument lists every mount and every journal with unsent work', async () => {
    expect(await all()).toEqual({ mounts: [], servers: [], journals: [] })
    await daemon('--flush-interval', '1h')
    await sh('echo unsent > $M/unsent; sync $M/unsent')
    const { mounts, journals } = await all()
    expect(mounts.map(({ mountpoint }) => mountpoint)).toEqual([place.mountpoint])
    expect(journals).toEqual([])
    await until(async () => (await all()).mounts[0].lag.operations > 0)
    await sleep(1500) // the note for after a crash is a second behind
    process.kill(mounts[0].pid, 'SIGKILL')
    await until(async () => (await all()).mounts.length === 0)
    const left = (await all()).journals
    expect(left).toEqual([
      {
        remote: `file://${place.remote}`,
        cacheDir: place.cacheDir,
        lag: expect.objectContaining({ operations: expect.any(Number) }),
      },
    ])
    expect(left[0].lag.operations).toBeGreaterThan(0)
    expect((await place.pageferry('status')).stdout).toMatch(/not mounted .*file:/)
    // The next mount detaches what is left of the old one, in one line, and carries on.
    const again = await daemon()
    expect(again).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(/^pageferry: (warning: )?detached [^\n]+\n$/),
    })
    expect((await place.pageferry('sync')).status).toBe(0)
    expect(readFileSync(join(place.remote, 'unsent'), 'utf8')).toBe('unsent\n')
    await place.pageferry('umount', place.mountpoint)
    expect(await all()).toEqual({ mounts: [], servers: [], journals: [] })
  })

  test('does not wait for a daemon that is stopped', async () => {
    await daemon()
    const { pid } = await status(place.mountpoint)
    process.kill(pid, 'SIGSTOP')
    const { mounts } = await all()
    expect(mounts).toMatchObject([{ pid, problems: ['the daemon does not answer'] }])
    process.kill(pid, 'SIGCONT')
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
  })
})

describe('umount', () => {
  test('of a busy mount is refused, naming who holds it', async () => {
    await daemon()
    const holder = start('sleep', ['60'], { cwd: place.mountpoint })
    await sleep(100)
    const refused = await place.pageferry('umount', place.mountpoint)
    expect(refused).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(
        new RegExp(`^pageferry: in use: .* is used by sleep \\(pid ${holder.child.pid}\\), working directory[^\n]*\n$`),
      ),
    })
    expect(await sh('cat $M/hello')).toBe('from the remote\n')
    holder.child.kill()
    await holder.ran
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
  })

  test('shows how far it is, on a terminal as a bar, elsewhere in lines', async () => {
    await daemon('--simulate', 'up=1M', '--flush-interval', '1h')
    await sh('head -c 5M /dev/urandom > $M/large')
    const cmd = `${process.execPath} ${cli} umount ${place.mountpoint}`
    const seen = await run('script', ['-qec', cmd, '/dev/null'], { env: { ...place.env, COLUMNS: '100' } })
    expect(seen).toMatch(/sending \[=* *\] [\d.]+ [KM]iB of [\d.]+ MiB, \d+ of \d+ changes, .* left/)
    await daemon('--simulate', 'up=1M', '--flush-interval', '1h')
    await sh('head -c 5M /dev/urandom > $M/more')
    const lines = await place.pageferry('umount', place.mountpoint)
    expect(lines.status).toBe(0)
    expect(lines.stderr).toMatch(/^(sending: [^\n]* of [^\n]* changes[^\n]*\n)+$/)
    expect(statSync(join(place.remote, 'more')).size).toBe(5 * 2 ** 20)
  }, 90_000)

  test('without progress unmounts all the same, keeps the journal, lists what is left, exit 1; the next mount carries on', async () => {
    await daemon('--flush-interval', '1h', '--deadline', '1s')
    await sh('echo a > $M/a; echo b > $M/b')
    const away = `${place.remote}.away`
    await run('mv', [place.remote, away])
    const left = await place.pageferry('umount', '--timeout', '3s', place.mountpoint)
    expect(left.status).toBe(1)
    expect(left.stderr).toMatch(/not sent: \d+ changes.*kept in .*, mount again to go on/)
    expect(left.stderr).toMatch(/^ {2}a$/m)
    expect(left.stderr).toMatch(/^ {2}b$/m)
    expect(isMounted(place.mountpoint)).toBe(false)
    expect((await all()).journals).toMatchObject([{ cacheDir: place.cacheDir }])
    await run('mv', [away, place.remote])
    expect((await daemon()).status).toBe(0)
    expect(await sh('cat $M/a $M/b')).toBe('a\nb\n')
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
    expect(readFileSync(join(place.remote, 'b'), 'utf8')).toBe('b\n')
  }, 90_000)

  test('with the remote away and the dirty limit reached: two signals end it, though a writer waits', async () => {
    await daemon('--dirty-limit', '1M', '--flush-interval', '1h', '--deadline', '1s', '--dir-ttl', '1h')
    await sh('ls $M; echo a > $M/a')
    await run('mv', [place.remote, `${place.remote}.away`])
    const { pid } = await status(place.mountpoint)
    // More than the limit: it waits where no signal reaches it.
    const writer = start('dd', ['if=/dev/zero', `of=${join(place.mountpoint, 'big')}`, 'bs=64K', 'count=80'])
    await until(async () => (await status(place.mountpoint)).lag.bytes > 512 * 1024)
    await sleep(500)
    expect(await place.pageferry('umount', '--timeout', '1s', place.mountpoint)).toMatchObject({
      status: 1,
      stderr: expect.stringContaining(`used by dd (pid ${writer.child.pid})`),
    })
    process.kill(pid, 'SIGTERM')
    await sleep(500)
    process.kill(pid, 'SIGTERM')
    await until(() => !existsSync(`/proc/${pid}`), 20_000)
    await writer.ran
    expect(isMounted(place.mountpoint)).toBe(false)
    await run('mv', [`${place.remote}.away`, place.remote])
    expect((await daemon()).status).toBe(0)
    expect(await sh('cat $M/a')).toBe('a\n')
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
  }, 90_000)

  test('given up with Ctrl-C leaves the mount as it is', async () => {
    await daemon('--simulate', 'up=64K', '--flush-interval', '1h')
    await sh('head -c 2M /dev/urandom > $M/large')
    const { child, ran } = start(process.execPath, [cli, 'umount', place.mountpoint], { env: place.env })
    await sleep(2000)
    child.kill('SIGINT')
    expect((await ran).status).toBe(1)
    expect(isMounted(place.mountpoint)).toBe(true)
    expect(await sh('cat $M/hello')).toBe('from the remote\n')
    const { pid } = await status(place.mountpoint)
    process.kill(pid, 'SIGTERM')
    await sleep(500)
    process.kill(pid, 'SIGTERM')
    await until(() => !existsSync(`/proc/${pid}`))
    expect(isMounted(place.mountpoint)).toBe(false)
    expect((await all()).journals).toHaveLength(1)
  }, 60_000)

  test('of what a dead daemon left detaches it, in one line', async () => {
    await daemon()
    const { pid } = await status(place.mountpoint)
    process.kill(pid, 'SIGKILL')
    await until(() => !existsSync(`/proc/${pid}`))
    expect((await place.pageferry('sync', place.mountpoint)).stderr).toMatch(
      /^pageferry: the daemon of the mount at .* is gone.*pageferry umount/,
    )
    expect(await place.pageferry('umount', place.mountpoint)).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(/^pageferry: detached [^\n]+\n$/),
    })
    expect(isMounted(place.mountpoint)).toBe(false)
  })
})

requires('fuse', 'built', 'root').describe('umount(8)', () => {
  test('followed at once by a new mount, which takes over what is left to send', async () => {
    await daemon('--simulate', 'up=256K', '--flush-interval', '1h')
    await sh('head -c 1M /dev/urandom > $M/large; echo x > $M/small')
    const before = await run('sha256sum', ['large'], { cwd: place.mountpoint })
    const { pid } = await status(place.mountpoint)
    await run('umount', [place.mountpoint])
    const again = await daemon()
    expect(again.status).toBe(0)
    expect(await run('sha256sum', ['large'], { cwd: place.mountpoint })).toBe(before)
    await until(() => !existsSync(`/proc/${pid}`))
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
    expect(await run('sha256sum', ['large'], { cwd: place.remote })).toBe(before)
    expect(await all()).toEqual({ mounts: [], servers: [], journals: [] })
  }, 90_000)

  test('alone: the daemon goes on sending, is still listed, then ends', async () => {
    await daemon('--simulate', 'up=1M', '--flush-interval', '1h')
    await sh('head -c 3M /dev/urandom > $M/large')
    const { pid } = await status(place.mountpoint)
    await run('umount', [place.mountpoint])
    expect((await all()).mounts).toMatchObject([{ pid, state: 'draining' }])
    await until(() => !existsSync(`/proc/${pid}`), 30_000)
    expect(statSync(join(place.remote, 'large')).size).toBe(3 * 2 ** 20)
    expect(await all()).toEqual({ mounts: [], servers: [], journals: [] })
  }, 60_000)

  test('-l: programs that use it go on, and their last word is sent', async () => {
    await daemon('--flush-interval', '100ms')
    const writer = start('sh', ['-c', 'exec 3> "$M/open"; echo first >&3; read go; echo last >&3'], {
      env: { ...place.env, M: place.mountpoint },
    })
    await until(async () => (await sh('ls $M')).includes('open'))
    const { pid } = await status(place.mountpoint)
    await run('umount', ['-l', place.mountpoint])
    const busy = await daemon()
    expect(busy).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^pageferry: in use: cache directory .*daemon \d+.*\n$/),
    })
    writer.child.stdin.end('go\n')
    await writer.ran
    await until(() => !existsSync(`/proc/${pid}`))
    expect(readFileSync(join(place.remote, 'open'), 'utf8')).toBe('first\nlast\n')
    expect((await daemon()).status).toBe(0)
    await place.pageferry('umount', place.mountpoint)
  }, 60_000)
})

describe('a cache directory', () => {
  test('is for one mount at a time: the second is told which daemon has it', async () => {
    await daemon()
    const { pid } = await status(place.mountpoint)
    const other = join(place.folder, 'other')
    mkdirSync(other)
    const second = await place.pageferry('mount', place.remote, other, '--cache-dir', place.cacheDir)
    expect(second).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(
        new RegExp(
          `^pageferry: in use: cache directory ${place.cacheDir}: daemon ${pid} has it mounted at ${place.mountpoint}[^\n]*\n$`,
        ),
      ),
    })
    await place.pageferry('umount', place.mountpoint)
  })

  test('of its own for each remote, under XDG_CACHE_HOME', async () => {
    await place.pageferry('mount', '--daemon', place.remote, place.mountpoint)
    const { cacheDir } = await status(place.mountpoint)
    expect(cacheDir).toMatch(new RegExp(`^${place.folder}/caches/pageferry/remote-[0-9a-f]{10}$`))
    expect(statSync(cacheDir).mode & 0o777).toBe(0o700)
    await place.pageferry('umount', place.mountpoint)
  })
})

describe('pull, evict, refresh, conflicts', () => {
  test('say what they did', async () => {
    writeFileSync(join(place.remote, 'large'), Buffer.alloc(3 * 2 ** 20, 7))
    await daemon('--dir-ttl', '1h')
    expect(await place.pageferry('pull', place.mountpoint)).toMatchObject({
      status: 0,
      stdout: '2 files local now, 3 MiB fetched\n',
    })
    const before = (await status(place.mountpoint)).remote.bytesRead
    await sh('cat $M/large > /dev/null')
    expect((await status(place.mountpoint)).remote.bytesRead).toBe(before)
    expect(await place.pageferry('evict', join(place.mountpoint, 'large'))).toMatchObject({
      status: 0,
      stdout: '3 MiB of 1 file given back\n',
    })
    writeFileSync(join(place.remote, 'new'), '')
    expect(await place.pageferry('refresh', place.mountpoint)).toMatchObject({
      status: 0,
      stdout: '3 names looked at, 1 changed\n',
    })
    expect(await sh('ls $M')).toContain('new')
    expect(await place.pageferry('conflicts', place.mountpoint)).toMatchObject({ status: 0, stdout: 'no conflicts\n' })
    expect(await place.pageferry('pull', join(place.mountpoint, 'none'))).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/no such file/),
    })
    await place.pageferry('umount', place.mountpoint)
  })
})

describe('a daemon', () => {
  test('serves metrics on this machine', async () => {
    const port = 20_000 + (process.pid % 10_000)
    await daemon('--metrics', String(port))
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
    expect(text).toMatch(/^pageferry_remote_reachable 1$/m)
    await place.pageferry('umount', place.mountpoint)
  })

  test('reads its options from variables and a file', async () => {
    const file = join(place.folder, 'pageferry.toml')
    writeFileSync(file, 'cache-size = "1G"\nmemory = "64M"\n')
    Object.assign(place.env, { PAGEFERRY_CONFIG: file, PAGEFERRY_MEMORY: '32M' })
    await daemon()
    expect(await status(place.mountpoint)).toMatchObject({
      cache: { bytesMax: 2 ** 30 },
      memory: { bytesMax: 32 * 2 ** 20 },
    })
    await place.pageferry('umount', place.mountpoint)
  })

  test('that is read-only takes no lease and no writes', async () => {
    await daemon('--read-only')
    expect(await status(place.mountpoint)).toMatchObject({ readOnly: true, lease: null })
    await expect(sh('echo x > $M/x')).rejects.toThrow(/Read-only/)
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
  })
})
