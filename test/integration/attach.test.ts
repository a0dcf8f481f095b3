// A region as a block device of this machine: a file system on it, its trims, its end, and who else sees it.
import { execFile } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterEach, beforeEach, expect } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { requires } from '../fixtures/requires.js'

const MiB = 2 ** 20
const TEST_MS = 120_000
const SEED = Number(process.env.SEED ?? freshSeed())
const dist = resolve(process.env.PAGEFERRY_DIST ?? 'dist')

let directory = ''
let env: NodeJS.ProcessEnv = {}
const devices = new Set<string>()
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'pageferry-attach-'))
  for (const name of ['run', 'state', 'home', 'mnt']) mkdirSync(join(directory, name), { mode: 0o700 })
  env = {
    ...process.env,
    PATH: `${process.env.PATH}:/usr/sbin:/sbin`,
    XDG_RUNTIME_DIR: join(directory, 'run'),
    XDG_STATE_HOME: join(directory, 'state'),
    XDG_CACHE_HOME: join(directory, 'home'),
  }
})
afterEach(async () => {
  await runs('umount', '-l', join(directory, 'mnt'))
  for (const device of devices) {
    await pageferry('nbd', 'detach', '--timeout', '1s', device)
    await runs('losetup', '--detach', device)
  }
  devices.clear()
  rmSync(directory, { recursive: true, force: true })
})

interface Ended {
  status: number
  stdout: string
  stderr: string
}

const runs = (program: string, ...args: string[]) =>
  new Promise<Ended>(done =>
    execFile(program, args, { env, timeout: TEST_MS / 2, maxBuffer: 64 * MiB }, (error, stdout, stderr) =>
      done({ status: error ? Number(error.code ?? 1) : 0, stdout, stderr }),
    ),
  )
async function works(program: string, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await runs(program, ...args)
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${status}\n${stdout}${stderr}`)
  return stdout
}
const pageferry = (...args: string[]) => runs(process.execPath, join(dist, 'cli.js'), ...args)

/** @returns the device */
async function attach(...args: string[]): Promise<{ device: string; pid: number }> {
  const { status, stdout, stderr } = await pageferry('nbd', 'attach', '--daemon', ...args)
  const [, device, pid] = / at (\/dev\/loop\d+) \(daemon (\d+)/.exec(stdout) ?? []
  expect({ status, stderr, device }).toEqual({ status: 0, stderr: '', device: expect.any(String) })
  devices.add(device)
  return { device, pid: Number(pid) }
}

const { describe, test } = requires('built', 'root', 'fuse', 'losetup', 'mkfs.ext4', 'e2fsck', 'fstrim')

describe('a region that is attached', () => {
  test(
    'has a file system, gives back what it trims, stays while it is in use, and is all at the remote when it is detached',
    async () => {
      const image = join(directory, 'disk.img')
      const point = join(directory, 'mnt')
      const { device } = await attach(`file://${image}?size=1G`)
      expect((await works('blockdev', '--getsize64', device)).trim()).toBe(String(1024 * MiB))
      await works('mkfs.ext4', '-q', device)
      await works('mount', device, point)
      cpSync('src', join(point, 'src'), { recursive: true })
      writeFileSync(join(point, 'large'), randomOf(SEED).bytes(64 * MiB))
      expect(await pageferry('nbd', 'detach', device)).toMatchObject({
        status: 1,
        stderr: `pageferry: in use: ${device} is mounted at ${point}\n`,
      })
      const status = await pageferry('status', '--json', device)
      expect(JSON.parse(status.stdout)).toMatchObject({
        address: device,
        regions: [{ size: 1024 * MiB, problems: [] }],
      })
      await works('sync', '-f', join(point, 'large'))
      await pageferry('sync', device)
      const before = statSync(image).blocks
      rmSync(join(point, 'large'))
      // Only what a commit has freed is trimmed.
      await works('sync', '-f', point)
      await works('fstrim', point)
      await works('diff', '-r', 'src', join(point, 'src'))
      await works('umount', point)
      expect(await pageferry('nbd', 'detach', device)).toEqual({ status: 0, stdout: '', stderr: '' })
      devices.delete(device)
      expect(before - statSync(image).blocks).toBeGreaterThan((60 * MiB) / 512)
      await works('e2fsck', '-f', '-n', image)
      expect((await pageferry('status')).stdout).toBe('nothing is mounted, and nothing is left to send\n')
      expect(await works('losetup', '--list', '--noheadings', '-O', 'NAME')).not.toMatch(new RegExp(`${device}$`, 'm'))
    },
    TEST_MS,
  )

  test(
    'is whole after a kill -9 of its daemon: what was synced is there when it is attached again',
    async () => {
      const image = join(directory, 'disk.img')
      const point = join(directory, 'mnt')
      const { device, pid } = await attach(`file://${image}?size=256M`, '--flush-interval', '1h')
      await works('mkfs.ext4', '-q', device)
      await works('mount', device, point)
      copyFileSync('package-lock.json', join(point, 'kept'))
      await works('sync', '-f', join(point, 'kept'))
      process.kill(pid, 'SIGKILL')
      await runs('umount', '-l', point)
      await runs('losetup', '--detach', device)
      expect(existsSync(join(directory, '.pageferry-disk.img'))).toBe(true)
      const again = await attach(image)
      await works('mount', again.device, point)
      expect(readFileSync(join(point, 'kept')).equals(readFileSync('package-lock.json'))).toBe(true)
      await works('umount', point)
      const checked = await runs('e2fsck', '-f', '-n', again.device)
      expect(checked).toMatchObject({ status: 0 })
    },
    TEST_MS,
  )

  test(
    'is the same disk by every door: a device, NBD, and the program itself',
    async () => {
      const socket = join(directory, 'socket')
      const script = join(directory, 'doors.mjs')
      writeFileSync(
        script,
        `import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { attachRegion, openRegion, serveNbd } from '${join(dist, 'src/index.js')}'
const run = promisify(execFile)
const region = await openRegion('mem:?size=8M', { cacheDir: '${join(directory, 'cache')}' })
const server = await serveNbd(region, { listen: 'unix:${socket}' })
const device = await attachRegion(region)
await region.write(0, Buffer.from('by the program'))
const uri = 'nbd+unix:///?socket=${socket}'
const dd = (...args) => run('dd', ['bs=4096', 'count=1', 'status=none', ...args], { encoding: 'buffer' })
const read = async () => (await dd('if=' + device.path, 'iflag=direct')).stdout.subarray(0, 14).toString()
console.log(await read())
await run('qemu-io', ['-f', 'raw', '-c', 'write -P 65 0 14', uri])
console.log(await read())
await run('sh', ['-c', 'printf "%-4096s" "by the device." | dd of=' + device.path + ' bs=4096 oflag=direct status=none'])
const into = Buffer.alloc(14)
await region.read(0, into)
console.log(into.toString())
const resized = () => region.resize(4096).then(() => region.size, error => error.code)
console.log(await resized())
await device.close()
console.log(await resized())
await device.close()
await server.close()
await region.close()
`,
      )
      expect(await works(process.execPath, script)).toBe('by the program\nAAAAAAAAAAAAAA\nby the device.\nBUSY\n4096\n')
    },
    TEST_MS,
  )

  test(
    'says in one line what is wrong',
    async () => {
      writeFileSync(join(directory, 'tiny'), 'x')
      const cases: [args: string[], message: RegExp][] = [
        [['nbd', 'attach', join(directory, 'none')], /^pageferry: .*none: no such file\n$/],
        [['nbd', 'attach', join(directory, 'tiny')], /^pageferry: invalid argument: a device of 1 bytes\n$/],
        [['nbd', 'detach', '/dev/loop99'], /^pageferry: \/dev\/loop99 is not in a mount of pageferry/],
        [['nbd', 'attach', join(directory, 'tiny'), '--cache-size', '3'], /^pageferry: --cache-size: got "3"/],
      ]
      for (const [args, message] of cases) {
        const { status, stderr } = await pageferry(...args)
        expect({ args, status, stderr }).toMatchObject({ status: 2, stderr: expect.stringMatching(message) })
      }
    },
    TEST_MS,
  )
})
