// pageferry status: one mount, or every mount and every journal with unsent work.
import { isFerryError } from '../base/errors.js'
import type { MountStatus } from '../mounted-tree.js'
import { type Daemon, Registry } from '../registry.js'
import { findDaemon, statusOf } from './find.js'
import { EXIT, type ExitStatus, print } from './report.js'
import { describeJournal, describeMount } from './show.js'

/** Of many mounts one that is stopped must not hide the others. */
const PATIENCE_MS = 3000

/** What is known of a mount whose daemon does not answer. */
type Silent = Pick<MountStatus, 'mountpoint' | 'pid' | 'readOnly' | 'cacheDir' | 'problems'> & {
  remote: { url: string }
}

const silent = ({ mountpoint, pid, readOnly, cacheDir, remote }: Daemon): Silent => ({
  mountpoint,
  pid,
  readOnly,
  cacheDir,
  remote: { url: remote },
  problems: ['the daemon does not answer'],
})

async function ask(daemon: Daemon): Promise<MountStatus | Silent | null> {
  try {
    return await statusOf(daemon, PATIENCE_MS)
  } catch (error) {
    // It ended meanwhile; otherwise it is in trouble, which is worth a line.
    return isFerryError(error, 'UNREACHABLE') ? null : silent(daemon)
  }
}

const describe = (mount: MountStatus | Silent) =>
  'lag' in mount
    ? describeMount(mount)
    : `${mount.mountpoint}  ${mount.remote.url}\n  daemon ${mount.pid} does not answer`

const json = (value: unknown) => print(JSON.stringify(value, null, 2))

export async function statusCommand(given: string | undefined, options: { json?: boolean }): Promise<ExitStatus> {
  const registry = new Registry()
  if (given !== undefined) {
    const status = await statusOf((await findDaemon(given, registry)).daemon)
    if (options.json) json(status)
    else print(describeMount(status))
    return EXIT.ok
  }
  const mounts = (await Promise.all(registry.daemons().map(ask))).filter(each => each !== null)
  const journals = registry.journals()
  if (options.json) json({ mounts, journals: journals.map(({ remote, cacheDir, lag }) => ({ remote, cacheDir, lag })) })
  else if (mounts.length + journals.length === 0) print('nothing is mounted, and nothing is left to send')
  else print([...mounts.map(describe), ...journals.map(describeJournal)].join('\n\n'))
  return EXIT.ok
}
