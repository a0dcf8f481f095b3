// A region as a block device of this machine: its one file, mounted where nobody else comes, under a loop device.
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync } from 'node:fs'
import { readdir, rmdir, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'
import { sleep } from './base/async.js'
import { FerryError, isFerryError } from './base/errors.js'
import type { FileSystem } from './cache/filesystem.js'
import { letGo } from './device-use.js'
import { type Mounted, mountFileSystem } from './fs/mount.js'
import { unmountFuse } from './linux/mount.js'
import { fileSystemOf, type Region } from './open-region.js'
import { privateDirectory, registryPaths } from './registry.js'

/** How long the kernel may take to let go of a device that nobody uses. */
const DETACH_MS_MAX = 10_000
/** losetup(8) waits for udev, and for us. */
const LOSETUP_MS_MAX = 30_000
/** Of its directory, beside the control sockets. */
const PREFIX = 'attached-'
/** A mount that does not answer for this long may be slow: it is left alone. */
const ANSWER_MS_MAX = 1000

/**
 * As /dev/loopN, of whole sectors. It does not survive this process: what uses it gets I/O errors then. `detach` may be called again
 * after it has thrown BUSY.
 * @throws NOT_PERMITTED (loop devices are root's), UNSUPPORTED (no FUSE, or no loop devices here)
 */
export async function joinLoop(region: Region): Promise<{ path: string; detach(): Promise<void> }> {
  const { fs, name } = fileSystemOf(region)
  const runDir = privateDirectory(registryPaths().runDir)
  await clearLeftOvers(runDir)
  const directory = mkdtempSync(join(runDir, PREFIX))
  let mounted: Mounted | undefined
  const release = async () => {
    await mounted?.[Symbol.asyncDispose]()
    await rmdir(directory)
  }
  try {
    mounted = await mountOne(fs, directory)
    const file = join(directory, Buffer.from(name, 'latin1').toString())
    const readOnly = region.readOnly ? ['--read-only'] : []
    // Past the kernel's cache of the file: whoever uses the region by another door sees the same.
    const path = await losetup('--find', '--show', '--direct-io=on', ...readOnly, file)
    return { path, detach: () => detach(path).then(release) }
  } catch (error) {
    await release().catch(() => {})
    throw error
  }
}

/** Mounts of processes that were killed. */
async function clearLeftOvers(runDir: string): Promise<void> {
  for (const name of await readdir(runDir)) {
    if (!name.startsWith(PREFIX)) continue
    const directory = join(runDir, name)
    const answers = stat(directory).then(
      () => true,
      ({ code }) => code !== 'ENOTCONN',
    )
    if (await Promise.race([answers, sleep(ANSWER_MS_MAX).then(() => true)])) continue
    await unmountFuse(directory, { lazy: true }).catch(() => {})
    await rmdir(directory).catch(() => {})
  }
}

/** Only the loop device reads and writes it, and that past the kernel's cache. */
const mountOne = (fs: FileSystem, directory: string): Promise<Mounted> =>
  mountFileSystem(fs, directory, { source: 'pageferry-region' })

async function losetup(...args: string[]): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)('losetup', args, { timeout: LOSETUP_MS_MAX })
    return stdout.trim()
  } catch (error) {
    const { code, stderr = '' } = error as { code?: unknown; stderr?: string }
    const why = stderr.trim().replaceAll(/\s*\n\s*/g, ' ')
    if (code === 'ENOENT') throw new FerryError('UNSUPPORTED', { cause: error, detail: 'losetup(8) is not installed' })
    if (/permission denied|not permitted/i.test(why))
      throw new FerryError('NOT_PERMITTED', { cause: error, detail: `a loop device: ${why}` })
    throw new FerryError('UNSUPPORTED', { cause: error, detail: `no loop device: ${why || 'no answer'}` })
  }
}

async function detach(path: string): Promise<void> {
  const name = basename(path)
  await letGo(path)
  await losetup('--detach', path).catch(error => {
    if (!isFerryError(error, 'UNSUPPORTED')) throw error
  })
  for (let waitedMs = 0; isAttached(name); waitedMs += 10) {
    if (waitedMs > DETACH_MS_MAX) throw new FerryError('BUSY', { detail: `${path} is still open somewhere` })
    await sleep(10)
  }
}

function isAttached(name: string): boolean {
  try {
    return readFileSync(`/sys/class/block/${name}/loop/backing_file`, 'latin1') !== ''
  } catch {
    return false
  }
}
