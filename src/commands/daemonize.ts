// A command that goes on in the background: the same command line once more, detached, which reports through a pipe when it is ready.
import { spawn } from 'node:child_process'
import { closeSync, writeSync } from 'node:fs'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { deferred } from '../base/async.js'
import { describeFailure, EXIT, type ExitStatus, print, say } from './report.js'

/** Set for the one in the background: the descriptor to report to. */
export const READY_VARIABLE = 'PAGEFERRY_READY_FD'
const READY_FD = 3

/** Threads for file I/O and for calls into the kernel: a few of them may have to wait for the mount itself. */
export const THREADS = '8'

/** Whether a daemon is surely what is wanted, so that everything else can be left to it; it may also be wanted otherwise. */
export const wantsDaemon = ([command, ...args]: string[]): boolean =>
  ['mount', 'nbd', 'memory'].includes(command) &&
  args.includes('--daemon') &&
  !args.some(arg => arg === '-h' || arg === '--help')

type Message = { say: string } | { done: string } | { failed: string; status: ExitStatus }

/** How the one in the background reports. After `done` or `failed` nobody listens. */
export interface Ready {
  /** What it is written to. */
  readonly fd: number
  say(line: string): void
  done(line: string): void
  failed(error: unknown): void
}

/** Undefined: this is not the one in the background. */
export function readyPipe(): Ready | undefined {
  if (process.env[READY_VARIABLE] === undefined) return undefined
  const fd = Number(process.env[READY_VARIABLE])
  // Programs that it starts are no daemons.
  delete process.env[READY_VARIABLE]
  let open = true
  const send = (message: Message, last: boolean) => {
    if (!open) return
    open = !last
    try {
      writeSync(fd, `${JSON.stringify(message)}\n`)
      if (last) closeSync(fd)
    } catch {
      // Whoever started us is gone; we are not.
      open = false
    }
  }
  return {
    fd,
    say: line => send({ say: line }, false),
    done: line => send({ done: line }, true),
    failed: error => {
      const { line, status } = describeFailure(error)
      send({ failed: line, status }, true)
    },
  }
}

/** Paths mean the same wherever the process goes; URLs are as they are. */
export const absoluteRemote = (remote: string): string => (/^\.{0,2}(\/|$)/.test(remote) ? resolve(remote) : remote)

/** Runs this command line again, detached, and waits until it is ready or has failed. */
export async function startDaemon(): Promise<ExitStatus> {
  const env = { UV_THREADPOOL_SIZE: THREADS, ...process.env, [READY_VARIABLE]: String(READY_FD) }
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    detached: true,
    env,
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
  })
  let lastWords = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    lastWords = (lastWords + text).slice(-2000)
  })
  const end = deferred<ExitStatus>()
  createInterface({ input: child.stdio[READY_FD] as Readable }).on('line', line => {
    const message = JSON.parse(line) as Message
    if ('say' in message) return say(message.say)
    if ('done' in message) {
      print(message.done)
      return end.resolve(EXIT.ok)
    }
    say(message.failed)
    end.resolve(message.status)
  })
  child.on('error', error => end.reject(error))
  child.on('close', (code, signal) => {
    const last = lastWords.trim().split('\n').pop()
    say(`the daemon ended before it was ready (${signal ?? `exit ${code}`})${last ? `: ${last}` : ''}`)
    end.resolve(EXIT.failed)
  })
  const stop = () => void child.kill('SIGTERM')
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, stop)
  try {
    return await end.promise
  } finally {
    // Nothing of it may keep this process.
    child.removeAllListeners('close')
    child.unref()
    child.stderr?.destroy()
    ;(child.stdio[READY_FD] as Readable).destroy()
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, stop)
  }
}
