// pageferry umount and pageferry sync: wait until the remote has everything, and show how far it is.
import { sleep } from '../base/async.js'
import { isFerryError } from '../base/errors.js'
import type { Progress } from '../cache/tree-cache.js'
import { type ControlRequest, callControl } from '../control.js'
import { unmountFuse } from '../linux/mount.js'
import { isAlive } from '../linux/process.js'
import { STALLED_MS_MAX, type Unsent } from '../mounted-tree.js'
import { time } from '../option-kinds.js'
import { usageOf } from '../options.js'
import { showProgress } from '../progress.js'
import { type Daemon, nameOf, Registry } from '../registry.js'
import { findDaemon, staleMountAt } from './find.js'
import { EXIT, type ExitStatus, onInterrupt, say } from './report.js'
import { describeUnsent } from './show.js'

/** After its answer a daemon has nothing left to do but to exit. */
const EXIT_MS_MAX = 5000

/** One request to a daemon, with its progress shown. */
async function watch(
  { socket }: Daemon,
  request: ControlRequest,
  title: string,
  signal: AbortSignal,
): Promise<unknown> {
  const view = showProgress({ title })
  try {
    return await callControl(socket, request, { signal, onProgress: value => view.update(value as Progress) })
  } finally {
    view.end()
  }
}

export async function umountCommand(mountpoint: string, { timeout }: { timeout?: string }): Promise<ExitStatus> {
  const stalledMsMax =
    timeout === undefined ? STALLED_MS_MAX : usageOf('--timeout', time({ min: '0', max: '24h', like: '60s' }), timeout)
  const interrupted = onInterrupt()
  let daemon: Daemon
  try {
    daemon = (await findDaemon(mountpoint)).daemon
  } catch (error) {
    if (!(await detachStale(mountpoint))) throw error
    return EXIT.ok
  }
  const unsent = (await watch(daemon, { do: 'umount', stalledMsMax }, 'sending', interrupted.signal)) as Unsent | null
  for (let waitedMs = 0; isAlive(daemon) && waitedMs < EXIT_MS_MAX; waitedMs += 10) await sleep(10)
  if (!unsent) return EXIT.ok
  say(describeUnsent(unsent, daemon.cacheDirs.join(', ')))
  return EXIT.failed
}

/** A mount whose daemon is dead: nothing can be drained here, but it need not stay in the way. */
async function detachStale(given: string): Promise<boolean> {
  const point = await staleMountAt(given)
  if (!point || !(await isDead(point))) return false
  await unmountFuse(point, { lazy: true })
  say(`detached ${point}, whose daemon is gone; what it had not sent is kept: mount it again`)
  return true
}

async function isDead(point: string): Promise<boolean> {
  const { stat } = await import('node:fs/promises')
  return stat(point).then(
    () => false,
    error => error.code === 'ENOTCONN' || error.code === 'ECONNABORTED',
  )
}

export async function syncCommand(given: string | undefined): Promise<ExitStatus> {
  const interrupted = onInterrupt()
  const daemons = given === undefined ? new Registry().daemons() : [(await findDaemon(given)).daemon]
  for (const daemon of daemons) {
    const title = daemons.length > 1 ? `syncing ${nameOf(daemon)}` : 'syncing'
    try {
      await watch(daemon, { do: 'sync' }, title, interrupted.signal)
    } catch (error) {
      // It ended while we asked: having sent all, or keeping the rest.
      if (given !== undefined || !isFerryError(error, 'UNREACHABLE')) throw error
    }
  }
  return EXIT.ok
}
