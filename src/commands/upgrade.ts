// pageferry upgrade: the program that runs this command goes on with a mount, which nobody unmounts.
import { readFileSync } from 'node:fs'
import { sleep } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { callControl } from '../control.js'
import { isAlive } from '../linux/process.js'
import { type Daemon, Registry } from '../registry.js'
import { findDaemon, statusOf } from './find.js'
import { EXIT, type ExitStatus, print } from './report.js'

/** For the next daemon to have replayed the journal, and to answer. */
const ANSWER_MS_MAX = 60_000
const LOOK_MS = 50

export async function upgradeCommand(given: string, version: string): Promise<ExitStatus> {
  const registry = new Registry()
  const { daemon } = await findDaemon(given, registry)
  if (daemon.mountpoint === undefined) throw new FerryError('USAGE', { detail: `${given} is no mount` })
  const [script] = process.argv.slice(1)
  await callControl(daemon.socket, { do: 'upgrade', program: [process.execPath, ...process.execArgv, script] })
  const next = await nextDaemon(daemon, registry)
  if (!readFileSync(`/proc/${next.pid}/cmdline`, 'latin1').split('\0').includes(script))
    throw new FerryError('IO', {
      detail: `${script} does not serve the mount: the program before goes on, see its log`,
    })
  print(`${daemon.mountpoint} is served by pageferry ${version} (daemon ${next.pid})`)
  return EXIT.ok
}

/** That answers, after this one. @throws DEADLINE */
async function nextDaemon(before: Daemon, registry: Registry): Promise<Daemon> {
  for (const until = performance.now() + ANSWER_MS_MAX; performance.now() < until; await sleep(LOOK_MS)) {
    if (isAlive(before)) continue
    const next = registry.daemons().find(each => each.mountpoint === before.mountpoint)
    if (!next) continue
    try {
      await statusOf(next)
      return next
    } catch (error) {
      if (!isFerryError(error, 'UNREACHABLE')) throw error
    }
  }
  throw new FerryError('DEADLINE', { detail: `no daemon serves ${before.mountpoint} yet; its log says why` })
}
