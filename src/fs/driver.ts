// How a file system gets into the kernel: by speaking the protocol ourselves, or through fuse-native (macOS, and the baseline to measure against).
import type { FileSystem } from '../cache/filesystem.js'
import { type Mounted, type MountOptions, mountFileSystem } from './mount.js'

export const driverNames = ['kernel', 'fuse-native'] as const
export type DriverName = (typeof driverNames)[number]

export interface Driver {
  readonly name: DriverName
  mount(what: { fs: FileSystem; mountpoint: string; options?: MountOptions }): Promise<Mounted>
}

const kernel: Driver = {
  name: 'kernel',
  mount: ({ fs, mountpoint, options }) => mountFileSystem(fs, mountpoint, options),
}

/** fuse-native is an optional dependency: loaded only when it is asked for. */
export async function driverOf(name: DriverName): Promise<Driver> {
  if (name === 'kernel') return kernel
  const { fuseNative } = await import('./fuse-native.js')
  return fuseNative
}
