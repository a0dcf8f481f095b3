// What is around everything that serves from this process: its log, its signals, and what nobody caught.
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { FerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { duplicateOnto } from '../linux/descriptors.js'
import { setIoFlusher } from '../linux/process.js'
import { type LogOptions, startLog } from '../log.js'
import type { Ready } from './daemonize.js'
import { debugging, EXIT, type ExitStatus, reportFailure, say } from './report.js'

const log = logger('mount')

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

export interface Serving {
  /** Aborted by a signal that comes before `onSignal` is set. */
  signal: AbortSignal
  /** What a signal does from now on. */
  onSignal(handler: () => void): void
  /** It is open, and what it keeps is in this directory: a daemon's log is found beside it from now on. */
  keptIn(cacheDir: string): void
}

/** `ready`: this is a daemon, and who started it waits. */
export async function serving(
  { logLevel: level, logFile: file }: Pick<{ logLevel: LogOptions['level']; logFile?: string }, 'logLevel' | 'logFile'>,
  ready: Ready | undefined,
  work: (serving: Serving) => Promise<ExitStatus>,
): Promise<ExitStatus> {
  const starting = new AbortController()
  const closing: { close(): unknown }[] = []
  let onSignal = () => starting.abort(new FerryError('ABORTED', { detail: 'before it was ready' }))
  for (const signal of signals) process.on(signal, () => onSignal())
  dieLoudly()
  try {
    const line: LogOptions['line'] = ready ? text => ready.say(text) : say
    closing.unshift(startLog({ level, line, file }))
    setIoFlusher()
    return await work({
      signal: starting.signal,
      onSignal: handler => {
        onSignal = handler
      },
      keptIn: cacheDir => {
        if (!ready) return
        // Nobody reads a daemon's lines any more: what it has to say is to be found beside its journal.
        const kept = file ?? join(cacheDir, 'daemon.log')
        if (!file) closing.unshift(startLog({ level, file: kept }))
        sendStderrTo(kept)
      },
    })
  } finally {
    for (const each of closing) await each.close()
  }
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
    log.fatal('ended by an internal error; the journal keeps everything, begin again to go on', { error })
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
