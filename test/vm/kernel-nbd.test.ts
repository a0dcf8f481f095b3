// The kernel's NBD client, in a guest that has one: devices of ours, killed under load, as swap, and as a root file system.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { cliPath } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { boot, buildGuest, type Guest, type Result } from '../fixtures/vm.js'

const { describe } = requires('built', 'vm')
/** One check alone, and what the guest prints, for whoever looks for a mistake: VM_ONLY=swap. */
const only = process.env.VM_ONLY ? ` only=${process.env.VM_ONLY}` : ''
const BUILD_MS = 120_000
const BOOT_MS = 600_000

describe('in a guest with NBD', () => {
  let folder = ''
  let guest: Guest
  let results = new Map<string, Result>()
  let output = ''
  const servers = new Set<ChildProcess>()
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'pageferry-vm-'))
    guest = buildGuest(folder)
    const disk = join(folder, 'disk.img')
    copySparse(guest.root, disk)
    // Memory of another host.
    const swap = await serve(['mem:?size=768M'], 'swap')
    ;({ results, output } = await boot(guest, { disk, words: `swap=${swap.port}${only}`, timeoutMs: BOOT_MS }))
    await swap.end()
    if (only) console.log(output)
  }, BUILD_MS + BOOT_MS)
  afterAll(() => {
    for (const server of servers) server.kill('SIGKILL')
    rmSync(folder, { recursive: true, force: true })
  })

  /** A server on this host, which the guest sees at 10.0.2.2. */
  async function serve(args: string[], name: string) {
    const env = { ...process.env, XDG_RUNTIME_DIR: join(folder, `${name}-run`), XDG_STATE_HOME: join(folder, 'state') }
    const flags = ['--cache-dir', join(folder, `${name}-cache`), '--listen', '0']
    const child = spawn(process.execPath, [cliPath(), 'nbd', 'serve', ...args, ...flags], {
      ...{ env, stdio: ['ignore', 'pipe', 'pipe'] },
    })
    servers.add(child)
    const ended = new Promise<number | null>(done => child.on('exit', done))
    let line = ''
    for (const stream of [child.stdout!, child.stderr!]) stream.on('data', part => (line += part))
    let port: string | undefined
    while (port === undefined) {
      port = /nbd:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1]
      if (child.exitCode !== null) throw new Error(line)
      await sleep(50)
    }
    return {
      port,
      async status() {
        const { stdout } = await promisify(execFile)(process.execPath, [cliPath(), 'status', '--json'], { env })
        return JSON.parse(stdout)
      },
      /** @returns the exit status */
      end() {
        child.kill('SIGTERM')
        return ended
      },
    }
  }

  const said = (name: string) => {
    const result = results.get(name)
    if (!result) throw new Error(`nothing was said of ${name}:\n${output.slice(-3000)}`)
    expect(result).toMatchObject({ ok: true })
    return result.detail
  }

  test.each([
    ['attach', 'a region is /dev/nbdN, and status tells of it'],
    ['file-system', 'a file system on it has what was written, also from the remote'],
    ['in-use', 'it is not detached while it is mounted'],
    ['killed-under-load', 'its daemon is killed under load, another one takes it over, and no program sees an error'],
    ['trim', 'what is trimmed reaches it'],
    ['clean', 'the file system is clean, and so is the image at the remote'],
    ['named-device', 'it is the one that was asked for, any that is free, or a loop device'],
    ['nobody-comes', 'what uses it gets an error when no other daemon comes in time'],
    ['nbd-client', 'nbd-client uses what is served, by two connections'],
    ['ready', 'it is ready as soon as it is for nbd-client'],
    ['swap', 'it is swap for a program that is larger than the memory'],
    ['end', 'the guest comes to its end'],
  ])('%s: %s', name => {
    said(name)
  })

  test(
    'a root file system is booted from an export that is still being pulled',
    async () => {
      const image = join(folder, 'exported.img')
      copySparse(guest.root, image)
      const server = await serve([`root=${image}`, '--pull', 'all', '--download-limit', '25M'], 'root')
      const booted = await boot(guest, { words: `nbdroot=${server.port}`, timeoutMs: BOOT_MS })
      expect([booted.results.get('root')?.ok, booted.results.get('program')?.ok]).toEqual([true, true])
      const { availability } = (await server.status()).servers[0].regions[0]
      expect(availability).toBeLessThan(1)
      expect(availability).toBeGreaterThan(0)
      expect(await server.end()).toBe(0)
      const { stdout } = await promisify(execFile)('debugfs', ['-R', 'cat /booted', image], { env: withSbin })
      expect(stdout).toBe('from an export\n')
    },
    BOOT_MS,
  )
})

/** Without what is not there: node's copy of 2 GiB has all of them. */
const copySparse = (from: string, to: string) => execFileSync('cp', ['--sparse=always', from, to])

const withSbin = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` }
