// The process that holds a mount: it has /dev/fuse open, so that the mount stays when its daemon dies, and starts another one.
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { sleep } from '../base/async.js'
import { type DaemonMessage, HOLDER_VARIABLE, type HolderMessage } from '../hold-messages.js'
import { Intake, sendMessage } from '../linux/messages.js'
import { unmountFuse } from '../linux/mount.js'
import { socketPair } from '../linux/netlink.js'
import { watchDescriptor } from '../linux/poll.js'
import { READY_VARIABLE, type Ready, THREADS } from './daemonize.js'
import { EXIT, type ExitStatus, say } from './report.js'
import { tellReady } from './service-manager.js'

/** A daemon that answered programs for less than that did not really begin. */
const BEGUN_MS = 1_000
/** So many of them in a row are enough. */
const DEATHS_MAX = 10
/** Before the third one; then twice as long each time, */
const PAUSE_MS = 200
/** up to that. */
const PAUSE_MS_MAX = 2_000
/** So long a signal is given to the daemon that comes next as well. */
const SIGNAL_MS = 30_000

const SOCKET_FD = 3
const READY_FD = 4
/** Nobody listens at the other end of it. */
const NOWHERE = '/dev/null'

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

interface Mount {
  fuse: number
  mountpoint: string
  init: string | null
  /** No other daemon can go on with it. */
  isAlone: boolean
}

/** How one daemon ended. */
interface Death {
  status: ExitStatus | null
  why: string
  servedMs: number
  /** The mount has ended. */
  isDone: boolean
  /** Another program is to go on. */
  isNext: boolean
}

/** Starts the same command line as a daemon, again and again until the mount has ended. `ready`: who waits for the first one. */
export async function hold(ready: Ready | undefined): Promise<ExitStatus> {
  const holder = new MountHolder(ready)
  for (const signal of signals) process.on(signal, () => holder.signal(signal))
  // Of a daemon's: whoever waited for it is gone.
  process.stderr.on('error', () => {})
  return holder.run()
}

class MountHolder {
  readonly #ready: Ready | undefined
  readonly #directory = process.cwd()
  /** Below 2^53, and never 0. */
  readonly #connection = 1 + Math.floor(Math.random() * (2 ** 52 - 1))
  #program = [process.execPath, ...process.execArgv, ...process.argv.slice(1)]
  /** The one that the last daemon has asked for, until it serves. */
  #next: string[] | null = null
  #mount: Mount | null = null
  #child: ChildProcess | null = null
  /** Since when; 0: it does not yet. */
  #servingMs = 0
  /** The last one that came, and when: the daemon that it went to may have been about to end. */
  #signalled: { signal: NodeJS.Signals; atMs: number } | null = null

  constructor(ready: Ready | undefined) {
    this.#ready = ready
  }

  /** What a terminal or a user sends to this process is for the daemon to decide about. */
  signal(signal: NodeJS.Signals): void {
    this.#signalled = { signal, atMs: performance.now() }
    if (this.#child && (this.#servingMs > 0 || !this.#mount)) this.#child.kill(signal)
  }

  async run(): Promise<ExitStatus> {
    let why: string | null = null
    for (let deaths = 0; ; ) {
      const death = await this.#live(why)
      if (death.isDone || !this.#mount || this.#mount.isAlone) {
        this.#letGo()
        return death.status ?? EXIT.failed
      }
      // Where the new one does not work the old one goes on.
      why = death.isNext ? 'so that another program goes on' : death.why
      if (death.isNext) {
        deaths = 0
        continue
      }
      if (this.#next) say(`${this.#next[1] ?? this.#next[0]} does not serve the mount: the program before goes on`)
      this.#next = null
      deaths = death.servedMs < BEGUN_MS ? deaths + 1 : 1
      if (deaths > DEATHS_MAX) return this.#giveUp(deaths, why)
      say(`the daemon of ${this.#mount.mountpoint} ended (${why}); another one goes on`)
      if (deaths > 1) await sleep(Math.min(PAUSE_MS_MAX, PAUSE_MS * 2 ** (deaths - 2)))
    }
  }

  /** One daemon, from its start to its end. */
  #live(why: string | null): Promise<Death> {
    const [ours, theirs] = socketPair()
    const { child, ready } = this.#start(theirs)
    closeSync(theirs)
    // The one that the first daemon answers to is not ours to keep open.
    if (ready !== undefined) closeSync(ready)
    process.chdir('/')
    this.#child = child
    let [isDone, isNext] = [false, false]
    const intake = new Intake<DaemonMessage>()
    const hear = () => {
      try {
        return intake.read(ours, (message, descriptors) => {
          isDone ||= message.op === 'done'
          isNext ||= message.op === 'next'
          this.#told(message, descriptors)
        })
      } catch {
        return false
      }
    }
    const watcher = watchDescriptor(ours, () => {
      if (!hear()) watcher.stop()
    })
    try {
      this.#greet(ours, why)
      watcher.start()
    } catch {
      // It has ended already; or it takes nothing, and is of no use.
      child.kill('SIGKILL')
    }
    return new Promise(resolve => {
      const ended = (code: number | null, why: string) => {
        // What it has said last may still be on its way.
        hear()
        intake.close()
        this.#child = null
        const servedMs = this.#servingMs ? performance.now() - this.#servingMs : 0
        this.#servingMs = 0
        void watcher.close().then(() => closeSync(ours))
        resolve({ status: code as ExitStatus | null, why, servedMs, isDone, isNext })
      }
      child.once('error', error => ended(null, error.message))
      child.once('exit', (code, signal) => ended(code, signal ?? `exit ${code}`))
    })
  }

  #start(socket: number): { child: ChildProcess; ready: number | undefined } {
    const env = { UV_THREADPOOL_SIZE: THREADS, ...process.env, [HOLDER_VARIABLE]: String(SOCKET_FD) }
    const isFirst = this.#mount === null
    // A daemon that somebody waited for goes on as a daemon.
    const ready = this.#ready && (isFirst ? this.#ready.fd : openSync(NOWHERE, 'w'))
    const [file, ...args] = this.#next ?? this.#program
    const child = spawn(file, args, {
      cwd: this.#directory,
      // A terminal's Ctrl-C comes once, by way of this process.
      detached: true,
      env: ready === undefined ? env : { ...env, [READY_VARIABLE]: String(READY_FD) },
      stdio: ['inherit', 'inherit', 'inherit', socket, ...(ready === undefined ? [] : [ready])],
    })
    return { child, ready }
  }

  #greet(socket: number, why: string | null): void {
    const connection = this.#connection
    if (this.#mount) {
      const { fuse, mountpoint, init } = this.#mount
      const message: HolderMessage = { op: 'resume', connection, mountpoint, init, why: why!, descriptors: 1 }
      sendMessage(socket, message, [fuse])
    } else sendMessage<HolderMessage>(socket, { op: 'begin', connection, descriptors: 0 })
  }

  #told(message: DaemonMessage, descriptors: number[]): void {
    switch (message.op) {
      case 'keep':
        this.#mount = { fuse: descriptors[0], mountpoint: message.mountpoint, init: null, isAlone: false }
        return
      case 'began':
        if (this.#mount) Object.assign(this.#mount, { init: message.init, isAlone: message.init === null })
        return
      case 'serving':
        this.#servingMs = performance.now()
        tellReady()
        this.#program = this.#next ?? this.#program
        this.#next = null
        if (this.#signalled && performance.now() - this.#signalled.atMs < SIGNAL_MS)
          this.#child?.kill(this.#signalled.signal)
        return
      case 'next':
        this.#next = message.program
        return
      case 'done':
        this.#letGo()
    }
  }

  #letGo(): void {
    if (this.#mount) closeSync(this.#mount.fuse)
    this.#mount = null
  }

  async #giveUp(deaths: number, why: string): Promise<ExitStatus> {
    const { mountpoint } = this.#mount!
    say(
      `the daemon of ${mountpoint} ended ${deaths} times in a row (${why}): it is unmounted; the journal keeps what was not sent`,
    )
    await unmountFuse(mountpoint, { lazy: true }).catch(() => {})
    this.#letGo()
    return EXIT.failed
  }
}
