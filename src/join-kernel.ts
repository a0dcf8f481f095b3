// A region as a block device of the kernel's NBD client.
import { createHash } from 'node:crypto'
import { FerryError } from './base/errors.js'
import { letGo } from './device-use.js'
import { connectKernel } from './nbd/kernel.js'
import type { Region } from './open-region.js'

export interface KernelJoinOptions {
  /** /dev/nbdN. Default: one that waits for this region, else any that is free. */
  device?: string
  deadConnTimeout: number
}

/**
 * As /dev/nbdN. When this process is killed, what uses the device waits for another one that has the same region and the same cache
 * directory, for as long as `deadConnTimeout` says. null: this kernel has no NBD.
 * @throws USAGE (no such device), BUSY (it is somebody else's), NOT_PERMITTED
 */
export async function joinKernel(
  region: Region,
  { device, deadConnTimeout: deadConnectionMs }: KernelJoinOptions,
): Promise<{ path: string; detach(): Promise<void> } | null> {
  const [, digits] = /^\/dev\/nbd(\d{1,4})$/.exec(device ?? '') ?? []
  if (device !== undefined && digits === undefined)
    throw new FerryError('USAGE', { detail: `${device}: a device is like /dev/nbd0` })
  const index = digits === undefined ? {} : { index: Number(digits) }
  const connected = await connectKernel(region, { ...index, identity: identityOf(region), deadConnectionMs })
  if (!connected) return null
  const path = `/dev/nbd${connected.index}`
  return {
    path,
    async detach() {
      await letGo(path)
      await connected.disconnect()
    },
  }
}

/** What was acknowledged and not sent is in the cache directory: with another one the device would be another disk. */
function identityOf(region: Region): string {
  const { remote, cacheDir } = region.status()
  return `pageferry-${createHash('sha256')
    .update(JSON.stringify([remote.url, cacheDir]))
    .digest('hex')
    .slice(0, 32)}`
}
