// A mount in this process, from its start to its end.
import { setPriority } from 'node:os'
import { toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { type ControlServer, serveControl } from '../control.js'
import { Daemon, type Ending } from '../daemon.js'
import type { Holder } from '../holder.js'
import { othersGiveWay } from '../linux/priority.js'
import type { MetricsServer } from '../metrics.js'
import { mountWith } from '../mount-tree.js'
import type { MountedTree } from '../mounted-tree.js'
import type { CommandSettings } from '../options.js'
import { showProgress } from '../progress.js'
import { Registry } from '../registry.js'
import type { Ready } from './daemonize.js'
import { EXIT, type ExitStatus, say } from './report.js'
import { tellReady } from './service-manager.js'
import { serving } from './serving.js'
import { describeUnsent } from './show.js'

const log = logger('mount')

/** setpriority(2): of this thread only. */
const ANSWERS_NICE = -10

interface Around {
  /** Who waits for a daemon to be ready. */
  ready: Ready | undefined
  /** Who holds the mount. */
  holder: Holder | undefined
}

/** Mounts, says that it is ready, and serves until the end. */
export const serve = (
  remote: string,
  mountpoint: string,
  settings: CommandSettings,
  { ready, holder }: Around,
): Promise<ExitStatus> =>
  serving(settings, ready, async ({ signal, onSignal, keptIn }) => {
    const mount = await mountWith(remote, mountpoint, settings, { signal, held: holder })
    keptIn(mount.cacheDir)
    preferAnswers()
    if (holder?.why) log.warn(`the daemon before this one ended: ${holder.why}`)
    if (holder) holder.serving()
    else tellReady()
    return serveMounted(mount, settings, { ready, holder, onSignal })
  })

/**
 * Programs that use the mount, and who answers them, come before the threads that send, fetch and store: of reads beside a pull, with two
 * processors, one in a thousand waited 0.7 ms, and waits 0.55. Who answers comes before what the kernel does for these, too, where this
 * user may say so (root): 1.2 ms without.
 */
function preferAnswers(): void {
  othersGiveWay()
  try {
    setPriority(ANSWERS_NICE)
  } catch (error) {
    log.debug('the thread that answers is not preferred', { error: toFerryError(error) })
  }
}

async function serveMounted(
  mount: MountedTree,
  settings: CommandSettings,
  { ready, holder, onSignal }: Around & { onSignal: (handler: () => void) => void },
): Promise<ExitStatus> {
  const view = ready ? undefined : showProgress({ title: 'sending' })
  const daemon = new Daemon(mount, {
    onProgress: progress => view?.update(progress),
    next: holder && (program => holder.next([...program, ...process.argv.slice(2)])),
  })
  const registry = new Registry()
  let control: ControlServer | undefined
  let metrics: MetricsServer | undefined
  let ending: Ending
  try {
    const socket = registry.socketPath()
    control = await serveControl(socket, daemon.handle)
    if (settings.metrics)
      metrics = await (await import('../metrics.js')).serveMetrics(settings.metrics, () => mount.status())
    const { mountpoint, cacheDir, readOnly, remote } = mount.status()
    registry.join({ mountpoint, remote: remote.url, cacheDirs: [cacheDir], readOnly, socket })
    onSignal(() => void daemon.signal())
    process.chdir('/')
    const message = `${remote.url} is mounted at ${mountpoint}`
    ready?.done(`${message} (daemon ${process.pid})`)
    // For its log: whoever waited has been told.
    if (ready) log.info(message)
    else say(`${message}; Ctrl-C sends what is left and unmounts`)
    ending = await daemon.ending
  } catch (error) {
    // Not ready, or not ended as it should: what was acknowledged stays in the journal.
    log.debug('the mount failed', { error: toFerryError(error) })
    await mount.close().catch(error => log.error('not closed', { error: toFerryError(error) }))
    holder?.done()
    throw error
  } finally {
    view?.end()
    registry.leave()
    await control?.close()
    await metrics?.close()
  }
  if (ending.handedOver !== 'mount') holder?.done()
  return report(ending, mount, ready !== undefined)
}

/** Says how it ended: on the terminal, or for a daemon in its log. */
function report({ unsent, handedOver }: Ending, { cacheDir }: MountedTree, quiet: boolean): ExitStatus {
  if (unsent) {
    if (quiet) log.error('ended with changes that the remote does not have', { ...unsent, cacheDir })
    else say(describeUnsent(unsent, cacheDir))
    return EXIT.failed
  }
  log.info(handedOver ? 'ended: another daemon goes on' : 'ended: the remote has everything')
  return EXIT.ok
}
