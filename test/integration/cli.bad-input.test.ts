// Bad input on the command line: one clear line, exit status 2, and never a stack trace.
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, expect } from '@jest/globals'
import { isMounted, makePlace, type Place, type Ran, runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('built')

let place: Place
let folder: string
beforeAll(async () => {
  place = await makePlace()
  folder = mkdtempSync(join(tmpdir(), 'bad-input-'))
  mkdirSync(join(folder, 'full'))
  writeFileSync(join(folder, 'full', 'x'), '')
  writeFileSync(join(folder, 'file'), '')
  writeFileSync(join(folder, 'wrong.toml'), 'fetchsize = "1M"\n')
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const refused = ({ status, stderr, stdout }: Ran, line: RegExp, code = 2) => {
  expect({ status, stderr }).toEqual({ status: code, stderr: expect.stringMatching(/^pageferry: [^\n]+\n$/) })
  expect(stderr.replace('pageferry: ', '').trimEnd()).toMatch(line)
  expect(stderr + stdout).not.toMatch(/^\s+at |node:internal/m)
}

/** $R: the remote, $M: the mount point, $F: a folder with a few files. */
const cases: [string, RegExp][] = [
  ['mount ftp://host/dir $M', /unknown scheme "ftp:"/],
  ['mount nonsense $M', /"nonsense" is not a remote/],
  ['mount /nowhere/at/all $M', /^\/nowhere\/at\/all: no such directory$/],
  ['mount $F/file $M', /is not a directory$/],
  ['mount file://elsewhere/dir $M', /another host/],
  ['mount $R /nowhere/mnt', /no such file or directory: mount point \/nowhere\/mnt$/],
  ['mount $R $F/file', /not a directory: mount point/],
  ['mount $R $F/full', /directory not empty: mount point/],
  ['mount $R $R', /the mount point .* lies in the remote/],
  ['mount $F $F/full/../full', /not empty|lies in the remote/],
  ['mount $R $M --cache-dir $R/cache', /cache directory, .*, lies in the remote/],
  ['mount $R $M --cache-dir $M/cache', /cache directory, .*, lies below the mount point/],
  ['mount $R $M --cache-dir $F/full', /not a cache directory/],
  ['mount $R $M --fetch-size 9G', /^--fetch-size: got "9G"; allowed: a size from 128K to 8M/],
  ['mount $R $M --cache-size lots', /^--cache-size: got "lots"; allowed: a size/],
  ['mount $R $M --flush-interval 2', /^--flush-interval: got "2"; allowed: a time/],
  ['mount $R $M --deadline -1s', /^--deadline: got "-1s"; allowed: a time/],
  ['mount $R $M --simulate rtt=20', /^--simulate: got "rtt=20"/],
  ['mount $R $M --simulate speed=9', /^--simulate: got "speed=9"/],
  ['mount $R $M --fsync sometimes', /^--fsync: got "sometimes"; allowed: local, remote$/],
  ['mount $R $M --metrics 0.0.0.0:80', /^--metrics: got "0.0.0.0:80"; allowed: a port, or a loopback address/],
  ['mount $R $M --umask 888', /^--umask: got "888"/],
  ['mount $R $M --prefetch $F/none', /^--prefetch: .*none cannot be read/],
  ['mount $R $M --record /nowhere/at/all', /^--record: .* cannot be written/],
  ['mount $R $M --log-file /nowhere/at/all', /^--log-file: .* cannot be written/],
  ['mount $R $M --config $F/wrong.toml', /^fetchsize in .*wrong.toml: there is no such option$/],
  ['mount $R $M --config $F/none.toml', /^--config: .*none.toml cannot be read/],
  ['mount $R $M --shared --read-only', /--shared: of those who write in turns; not allowed with --read-only/],
  ['mount $R', /missing required argument 'mountpoint'/],
  ['mount $R $M extra', /too many arguments/],
  ['mount --daemon /nowhere/at/all $M', /^\/nowhere\/at\/all: no such directory$/],
  ['mount --daemon $R $F/full', /directory not empty: mount point/],
  ['mount --daemon $R', /missing required argument 'mountpoint'/],
  ['mount --daemon $R $M --lease 3', /^--lease: got "3"/],
  ['umount $M', /is not in a mount of pageferry$/],
  ['umount /nowhere', /is not in a mount of pageferry$/],
  ['umount $M --timeout soon', /^--timeout: got "soon"; allowed: a time/],
  ['sync $M', /is not in a mount of pageferry$/],
  ['status $M', /is not in a mount of pageferry$/],
  ['pull $F/file', /is not in a mount of pageferry$/],
  ['evict $F/file', /is not in a mount of pageferry$/],
  ['refresh $F/file', /is not in a mount of pageferry$/],
  ['conflicts $F', /is not in a mount of pageferry$/],
  ['frobnicate', /unknown command 'frobnicate'/],
  ['umont $M', /Did you mean umount\?/],
  ['serve $R', /listen/],
]

describe('is refused in one line, with exit status 2', () => {
  test.each(cases)('%s', async (line, message) => {
    const words = line
      .split(' ')
      .map(word => word.replace('$R', place.remote).replace('$M', place.mountpoint).replace('$F', folder))
    refused(await place.pageferry(...words), message)
    expect(isMounted(place.mountpoint)).toBe(false)
  })

  test('a variable is called by its name', async () => {
    const env = { ...place.env, PAGEFERRY_FETCH_SIZE: 'big' }
    const cli = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'cli.js')
    refused(
      await runs(process.execPath, [cli, 'mount', place.remote, place.mountpoint], { env }),
      /^PAGEFERRY_FETCH_SIZE: got "big"/,
    )
  })
})

describe('without a command', () => {
  test('the help goes to stderr, and it is bad usage', async () => {
    const { status, stderr, stdout } = await place.pageferry()
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).toMatch(/^Usage: pageferry/)
  })

  test('help and version are no mistakes', async () => {
    expect(await place.pageferry('--help')).toMatchObject({
      status: 0,
      stderr: '',
      stdout: expect.stringContaining('Examples:'),
    })
    expect(await place.pageferry('--version')).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    })
    const help = await place.pageferry('mount', '--help')
    expect(help).toMatchObject({ status: 0, stdout: expect.stringContaining('--fetch-size <SIZE>') })
    for (const absent of ['--commit-store', '--resizable']) expect(help.stdout).not.toContain(absent)
  })
})

requires('built', 'root').describe('without rights', () => {
  /** As a user who may read the program, and no more. */
  const asNobody = (env: NodeJS.ProcessEnv, ...args: string[]) => {
    const cli = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'cli.js')
    return runs(
      '/usr/bin/setpriv',
      ['--reuid=65534', '--regid=65534', '--clear-groups', process.execPath, cli, ...args],
      { env },
    )
  }
  let mine: NodeJS.ProcessEnv
  let mountpoint: string
  beforeAll(() => {
    chmodSync(folder, 0o755)
    const home = join(folder, 'home')
    mkdirSync(join(home, 'mnt'), { recursive: true })
    mkdirSync(join(home, 'remote'))
    mkdirSync(join(home, 'run'), { mode: 0o700 })
    mountpoint = join(home, 'mnt')
    // A program that is not set-uid stands for one that is not there.
    mkdirSync(join(home, 'bin'))
    symlinkSync('/bin/true', join(home, 'bin', 'true'))
    mine = {
      ...place.env,
      PATH: join(home, 'bin'),
      HOME: home,
      XDG_RUNTIME_DIR: join(home, 'run'),
      XDG_STATE_HOME: join(home, 'state'),
      XDG_CACHE_HOME: join(home, 'cache'),
    }
    return runs('chown', ['-R', '65534:65534', home])
  })

  test('a mount is refused, and what is missing is named', async () => {
    refused(
      await asNobody(mine, 'mount', join(folder, 'home', 'remote'), mountpoint),
      /not permitted|access denied|fusermount3/,
    )
  })

  test('a cache directory of somebody else is refused', async () => {
    refused(
      await asNobody(mine, 'mount', join(folder, 'home', 'remote'), mountpoint, '--cache-dir', '/root/x'),
      /\/root\/x|access denied/,
    )
  })

  test('the doctor says what to do', async () => {
    const { status, stdout } = await asNobody(mine, 'doctor')
    expect(status).toBe(1)
    expect(stdout).toMatch(/BAD {3}rights: not root, and no fusermount3\n {6}-> as root: apt-get install fuse3/)
  })
})
