// pageferry status: one mount or server, or all of them and every journal with unsent work.
import { isFerryError } from '../base/errors.js'
import type { MountStatus } from '../mounted-tree.js'
import { type Daemon, Registry } from '../registry.js'
import type { ServerStatus } from '../served-regions.js'
import type { ExportStatus } from '../served-remote.js'
import { findDaemon, statusOf } from './find.js'
import { EXIT, type ExitStatus, print } from './report.js'
import { describeExport, describeJournal, describeMount, describeServer } from './show.js'

/** Of many mounts one that is stopped must not hide the others. */
const PATIENCE_MS = 3000

/** What is known of a mount or a server that does not answer. */
type Silent = Pick<Daemon, 'mountpoint' | 'address' | 'pid' | 'readOnly' | 'cacheDirs'> & {
  remote: { url: string }
  problems: string[]
}

const silent = ({ mountpoint, address, pid, readOnly, cacheDirs, remote }: Daemon): Silent => ({
  ...{ mountpoint, address, pid, readOnly, cacheDirs },
  remote: { url: remote },
  problems: ['the daemon does not answer'],
})

type Answer = MountStatus | ServerStatus | ExportStatus | Silent

async function ask(daemon: Daemon): Promise<Answer | null> {
  try {
    return await statusOf(daemon, PATIENCE_MS)
  } catch (error) {
    // It ended meanwhile; otherwise it is in trouble, which is worth a line.
    return isFerryError(error, 'UNREACHABLE') ? null : silent(daemon)
  }
}

function describe(answer: Answer): string {
  if ('regions' in answer) return describeServer(answer)
  if ('serves' in answer) return describeExport(answer)
  if ('lag' in answer) return describeMount(answer)
  return `${answer.mountpoint ?? answer.address}  ${answer.remote.url}\n  daemon ${answer.pid} does not answer`
}

const json = (value: unknown) => print(JSON.stringify(value, null, 2))

export async function statusCommand(given: string | undefined, options: { json?: boolean }): Promise<ExitStatus> {
  const registry = new Registry()
  if (given !== undefined) {
    const status = await statusOf((await findDaemon(given, registry)).daemon)
    if (options.json) json(status)
    else print(describe(status))
    return EXIT.ok
  }
  const answers = (await Promise.all(registry.daemons().map(ask))).filter(each => each !== null)
  const journals = registry.journals()
  const isServer = (answer: Answer) => 'address' in answer && answer.address !== undefined
  if (options.json)
    json({
      mounts: answers.filter(answer => !isServer(answer)),
      servers: answers.filter(isServer),
      journals: journals.map(({ remote, cacheDir, lag }) => ({ remote, cacheDir, lag })),
    })
  else if (answers.length + journals.length === 0) print('nothing is mounted, and nothing is left to send')
  else print([...answers.map(describe), ...journals.map(describeJournal)].join('\n\n'))
  return EXIT.ok
}
