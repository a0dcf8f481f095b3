// A mount in this process, from its start to its end.
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { type ControlServer, serveControl } from '../control.js'
import { Daemon, type Ending } from '../daemon.js'
import { duplicateOnto } from '../linux/descriptors.js'
import { setIoFlusher } from '../linux/process.js'
import { type LogOptions, startLog } from '../log.js'
import type { MetricsServer } from '../metrics.js'
import { mountWith } from '../mount-tree.js'
import type { MountedTree } from '../mounted-tree.js'
import type { CommandSettings } from '../options.js'
import { showProgress } from '../progress.js'
import { Registry } from '../registry.js'
import type { Ready } from './daemonize.js'
import { debugging, EXIT, type ExitStatus, reportFailure, say } from './report.js'
import { describeUnsent } from './show.js'

const log = logger('mount')

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Mounts, says that it is ready, and serves until the end. `ready`: who waits for a daemon to be ready. */
export async function serve(
  remote: string,
  mountpoint: string,
  settings: CommandSettings,
  ready: Ready | undefined,
): Promise<ExitStatus> {
  const starting = new AbortController()
  const closing: { close(): unknown }[] = []
  let onSignal = () => starting.abort(new FerryError('ABORTED', { detail: 'before the mount was ready' }))
  for (const signal of signals) process.on(signal, () => onSignal())
  dieLoudly()
  try {
    const line: LogOptions['line'] = ready ? text => ready.say(text) : say
    const { logLevel: level, logFile: file } = settings
    closing.unshift(startLog({ level, line, file }))
    setIoFlusher()
    const mount = await mountWith(remote, mountpoint, settings, starting.signal)
    // Nobody reads a daemon's lines any more: what it has to say is to be found beside its journal.
    const kept = file ?? join(mount.cacheDir, 'daemon.log')
    if (ready && !file) closing.unshift(startLog({ level, file: kept }))
    if (ready) sendStderrTo(kept)
    return await serveMounted(mount, settings, ready, handler => {
      onSignal = handler
    })
  } finally {
    for (const each of closing) await each.close()
  }
}

async function serveMounted(
  mount: MountedTree,
  settings: CommandSettings,
  ready: Ready | undefined,
  setSignalHandler: (handler: () => void) => void,
): Promise<ExitStatus> {
  const view = ready ? undefined : showProgress({ title: 'sending' })
  const daemon = new Daemon(mount, { onProgress: progress => view?.update(progress) })
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
    registry.join({ mountpoint, remote: remote.url, cacheDir, readOnly, socket })
    setSignalHandler(() => void daemon.signal())
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
    throw error
  } finally {
    view?.end()
    registry.leave()
    await control?.close()
    await metrics?.close()
  }
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

/** Where warnings of node's and complaints of native code go: to a pipe that nobody holds any more, they would end the process. */
function sendStderrTo(path: string): void {
  const fd = openSync(path, 'a', 0o600)
  duplicateOnto(fd, process.stderr.fd)
  closeSync(fd)
  process.stderr.on('error', () => {})
}

/** What nobody caught ends the process: going on might write wrong data, and the journal has everything that was acknowledged. */
function dieLoudly(): void {
  const die = (error: unknown) => {
    log.fatal('ended by an internal error; the journal keeps everything, mount again to go on', { error })
    if (debugging()) reportFailure(error)
    process.exit(EXIT.failed)
  }
  process.on('uncaughtException', die)
  process.on('unhandledRejection', error => {
    // lmdb keeps one promise of a failed transaction to itself; whoever wrote has been told by another, and goes on.
    const { commitError } = (error ?? {}) as { commitError?: unknown }
    if (commitError instanceof Promise) commitError.catch(() => {})
    else die(error)
  })
}
