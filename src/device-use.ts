// Who uses a block device of this machine.
import { readFileSync } from 'node:fs'
import { open, readdir } from 'node:fs/promises'
import { basename } from 'node:path'
import { FerryError } from './base/errors.js'
import { mounts } from './linux/mountinfo.js'

/**
 * Resolves when nobody uses it whom the kernel knows, and what it held of what was written to it is where it belongs.
 * @throws BUSY: it is mounted, used as swap, or part of another device
 */
export async function letGo(path: string): Promise<void> {
  const user = await userOf(path, basename(path))
  if (user) throw new FerryError('BUSY', { detail: `${path} ${user}` })
  const device = await open(path).catch(error => {
    if (error.code === 'ENXIO' || error.code === 'ENOENT') return null
    throw error
  })
  // Of a device that was written without a file system on it.
  await device?.sync().finally(() => device.close())
}

/** Who would lose it; null: nobody whom the kernel knows. */
async function userOf(path: string, name: string): Promise<string | null> {
  const [major, minor] = readFileSync(`/sys/class/block/${name}/dev`, 'latin1').trim().split(':').map(Number)
  const mount = mounts().find(one => one.major === major && one.minor === minor)
  if (mount) return `is mounted at ${mount.point}`
  const holders = await readdir(`/sys/class/block/${name}/holders`).catch(() => [])
  if (holders.length > 0) return `is part of ${holders.join(', ')}`
  const swaps = readFileSync('/proc/swaps', 'latin1').split('\n')
  if (swaps.some(line => line.startsWith(`${path} `))) return 'is used as swap'
  return null
}
