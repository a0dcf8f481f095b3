// Which daemon a path on the command line belongs to.
import { realpath } from 'node:fs/promises'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { FerryError } from '../base/errors.js'
import { callControl } from '../control.js'
import { mounts } from '../linux/mountinfo.js'
import type { MountStatus } from '../mounted-tree.js'
import { type Daemon, nameOf, Registry } from '../registry.js'
import type { ServerStatus } from '../served-regions.js'

/** A daemon that does not answer for this long is in trouble. */
export const SILENCE_MS_MAX = 10_000

const isWithin = (path: string, point: string) =>
  path === point || path.startsWith(point.endsWith('/') ? point : `${point}/`)

/** The daemon whose mount holds `path`, or which listens at it; of several, the innermost mount, and the newest of those. */
const holding = (daemons: Daemon[], path: string): Daemon | undefined =>
  daemons
    .filter(({ mountpoint, socket }) => (mountpoint && isWithin(path, mountpoint)) || path === socket)
    .sort((a, b) => nameOf(b).length - nameOf(a).length || b.startTime - a.startTime)[0]

/** What a path can also be called. Only its parent is looked at, and only when the name as given is no mount: a mount may be dead. */
const withoutSymlinks = async (path: string) => {
  try {
    return join(await realpath(dirname(path)), basename(path))
  } catch {
    return path
  }
}

export interface Found {
  daemon: Daemon
  /** Relative to the mount point, as bytes (latin1). */
  path: string
}

/**
 * The daemon for a path of the command line.
 * @throws USAGE: no mount of this user's is there; says what is there instead
 */
export async function findDaemon(given: string, registry = new Registry()): Promise<Found> {
  const daemons = registry.daemons()
  const server = daemons.find(({ address }) => address === given)
  if (server) return { daemon: server, path: '' }
  const names = [resolve(given)]
  let daemon = holding(daemons, names[0])
  if (!daemon) {
    names.unshift(await withoutSymlinks(names[0]))
    daemon = holding(daemons, names[0])
  }
  if (!daemon) throw new FerryError('USAGE', { detail: await whyNot(names) })
  const inside = names[0] === daemon.socket ? '' : relative(daemon.mountpoint!, names[0])
  return { daemon, path: Buffer.from(inside).toString('latin1') }
}

/** The mount of ours at exactly this point, alive or dead. */
export const staleMountAt = async (given: string): Promise<string | undefined> => {
  const names = [resolve(given), await withoutSymlinks(resolve(given))]
  return mounts()
    .filter(({ type }) => type === 'fuse.pageferry')
    .map(({ point }) => point.toString())
    .find(point => names.includes(point))
}

async function whyNot(names: string[]): Promise<string> {
  const given = names[names.length - 1]
  const mount = mounts().findLast(
    ({ type, point }) => type.startsWith('fuse') && names.some(name => isWithin(name, point.toString())),
  )
  if (!mount) return `${given} is not in a mount of pageferry`
  const point = mount.point.toString()
  if (mount.type !== 'fuse.pageferry')
    return `${given} is in a mount, but of ${mount.source || mount.type} and not of pageferry`
  return `the daemon of the mount at ${point} is gone, or another user's; to detach it: pageferry umount ${point}`
}

/** What a daemon says of itself. */
export const statusOf = async (daemon: Daemon, silenceMsMax = SILENCE_MS_MAX): Promise<MountStatus | ServerStatus> =>
  (await callControl(daemon.socket, { do: 'status' }, { silenceMsMax })) as MountStatus | ServerStatus
