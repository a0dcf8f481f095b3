// A region as a block device of this machine: of the kernel's NBD client, or a loop device where there is none.
import { FerryError } from './base/errors.js'
import { joinKernel } from './join-kernel.js'
import { joinLoop } from './join-loop.js'
import { keepSize, type Region } from './open-region.js'
import { type JoinOptions, type JoinSettings, joinSettings } from './options.js'

const SECTOR_BYTES = 512

/** A region that is a block device. Closing it does not close the region. */
export interface AttachedRegion extends AsyncDisposable {
  /** Of the block device. */
  readonly path: string
  /**
   * What the device still held goes to the region, then the device is gone. Closing twice is fine.
   * @throws BUSY: it is mounted, used as swap, or part of another device; it stays as it is
   */
  close(): Promise<void>
}

/**
 * Makes a region a block device, of whole sectors of 512 bytes. FLUSH means what the region's `fsync` says, a discard is a trim. By the
 * kernel's NBD client (/dev/nbdN), which waits for `deadConnTimeout` (default 5 minutes) when this process is killed, for another one
 * that attaches the same region; where the kernel has none, or with `loop`, as a loop device, whose users get I/O errors then.
 * @throws NOT_PERMITTED (devices are root's), UNSUPPORTED (neither is here), USAGE, BUSY (of `device`), INVALID (less than a sector)
 */
export async function attachRegion(region: Region, options: JoinOptions = {}): Promise<AttachedRegion> {
  const { loop, device, deadConnTimeout } = joinSettings(options)
  if (region.size < SECTOR_BYTES) throw new FerryError('INVALID', { detail: `a device of ${region.size} bytes` })
  const letSize = keepSize(region)
  const { path, detach } = await join(region, { loop, device, deadConnTimeout }).catch(error => {
    letSize()
    throw error
  })
  let closing: Promise<void> | undefined
  const attached: AttachedRegion = {
    path,
    close() {
      closing ??= detach().then(letSize, error => {
        closing = undefined
        throw error
      })
      return closing
    },
    [Symbol.asyncDispose]: () => attached.close(),
  }
  return attached
}

async function join(region: Region, { loop, device, deadConnTimeout }: JoinSettings) {
  const kernels = loop ? null : await joinKernel(region, { device, deadConnTimeout })
  if (!kernels && device !== undefined)
    throw new FerryError('UNSUPPORTED', {
      detail: `${device}: this kernel has no NBD; without a device it is a loop device`,
    })
  return kernels ?? joinLoop(region)
}
