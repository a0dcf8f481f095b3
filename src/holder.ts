// The process that holds a mount, as its daemon sees it.
import { closeSync } from 'node:fs'
import { FerryError } from './base/errors.js'
import { logger } from './base/log.js'
import { type HeldConnection, NOBODY_HOLDS, type ResumedConnection } from './fs/held.js'
import { type DaemonMessage, HOLDER_VARIABLE, type HolderMessage } from './hold-messages.js'
import { Intake, sendMessage } from './linux/messages.js'
import { type Watcher, watchDescriptor } from './linux/poll.js'

const log = logger('mount')

/** What it says first is there before the daemon begins. */
const FIRST_MS_MAX = 10_000
const LOOK_MS = 5
const tick = new Int32Array(new SharedArrayBuffer(4))

export class Holder implements HeldConnection {
  readonly connection: number
  readonly resumed: ResumedConnection | null
  /** Why the daemon before this one ended; null: there was none. */
  readonly why: string | null
  readonly #fd: number
  readonly #watcher: Watcher
  isLost = false

  private constructor(fd: number, first: HolderMessage, fuse: number | undefined) {
    this.#fd = fd
    // It says nothing after the first message: what comes is its end.
    this.#watcher = watchDescriptor(fd, () => this.#lose())
    this.connection = first.connection
    this.why = first.op === 'resume' ? first.why : null
    this.resumed =
      first.op === 'resume'
        ? { fd: fuse!, mountpoint: first.mountpoint, init: first.init === null ? null : Buffer.from(first.init, 'hex') }
        : null
  }

  /** Of this process; undefined: nobody holds what it mounts. @throws DEADLINE, CLOSED: it is gone */
  static join(): Holder | undefined {
    const { [HOLDER_VARIABLE]: variable } = process.env
    if (variable === undefined) return undefined
    // Programs that it starts are no daemons.
    delete process.env[HOLDER_VARIABLE]
    const fd = Number(variable)
    const intake = new Intake<HolderMessage>()
    let holder: Holder | undefined
    for (const until = performance.now() + FIRST_MS_MAX; !holder; ) {
      const isThere = intake.read(fd, (message, [fuse]) => {
        holder = new Holder(fd, message, fuse)
      })
      if (holder) break
      if (!isThere) throw new FerryError('CLOSED', { detail: 'the process that holds the mount is gone' })
      if (performance.now() > until)
        throw new FerryError('DEADLINE', { detail: 'the process that holds the mount says nothing' })
      Atomics.wait(tick, 0, 0, LOOK_MS)
    }
    return holder
  }

  keep(fd: number, mountpoint: string): void {
    this.#send({ op: 'keep', mountpoint, descriptors: 1 }, [fd])
  }

  began(init: Uint8Array | null): void {
    this.#send({ op: 'began', init: init && Buffer.from(init).toString('hex'), descriptors: 0 })
  }

  serving(): void {
    this.#send({ op: 'serving', descriptors: 0 })
    if (!this.isLost) this.#watcher.start()
  }

  /** Another daemon is to go on. @throws UNSUPPORTED: nobody would start it */
  next(program: string[]): void {
    this.#send({ op: 'next', program, descriptors: 0 })
    if (this.isLost) throw new FerryError('UNSUPPORTED', { detail: 'the process that held the mount is gone' })
  }

  /** Nobody need go on. */
  done(): void {
    this.#send({ op: 'done', descriptors: 0 })
    this.isLost = true
    void this.#watcher.close().then(() => closeSync(this.#fd))
  }

  #send(message: DaemonMessage, descriptors: number[] = []): void {
    if (this.isLost) return
    try {
      sendMessage(this.#fd, message, descriptors)
    } catch {
      this.#lose()
    }
  }

  #lose(): void {
    this.#watcher.stop()
    if (this.isLost) return
    this.isLost = true
    log.warn(NOBODY_HOLDS)
  }
}
