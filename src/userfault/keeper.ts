// The process that keeps userfaultfds, as a server of memory sees it.
import { spawn } from 'node:child_process'
import { closeSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { deferred, sleep } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { takeDescriptor } from '../linux/descriptors.js'
import { Intake, sendMessage } from '../linux/messages.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import { type KeeperMessage, keeperPath } from './keeper-messages.js'
import type { KnownPages, Mapping, Spaces } from './spaces.js'

const log = logger('userfault')

const START_MS_MAX = 10_000
const JOINS_MAX = 3

/** What an earlier server has left. */
export interface KeptProcess {
  id: number
  /** Of the region. */
  size: number
  uffd: number
  connection: number
  mappings: Mapping[]
  /** Of each mapping. */
  known: KnownPages[][]
}

export class Keeper {
  /** What was kept when this server came: its owner's from then on. */
  readonly kept: KeptProcess[] = []
  memory: number | null = null
  readonly #fd: number
  readonly #watcher: Watcher
  readonly #ready = deferred()
  #nextId = 1
  #isReady = false
  #isLost = false

  private constructor(socket: Socket) {
    const intake = new Intake<KeeperMessage>()
    this.#fd = takeDescriptor(socket)
    this.#watcher = watchDescriptor(this.#fd, () => {
      try {
        if (intake.read(this.#fd, (message, descriptors) => this.#told(message, descriptors))) return
        throw new FerryError('CLOSED')
      } catch (error) {
        intake.close()
        this.#lost(error)
      }
    })
    this.#watcher.start()
  }

  /** The one of this socket that is there, or a new one. @throws DEADLINE, IO: it does not begin */
  static async join(socket: string): Promise<Keeper> {
    const path = keeperPath(socket)
    for (let tries = 1; ; tries++) {
      const keeper = new Keeper((await connect(path)) ?? (await begin(socket, path)))
      try {
        await within(keeper.#ready.promise)
        return keeper
      } catch (error) {
        await keeper.close()
        // It was about to end, since it had nothing to keep.
        if (tries === JOINS_MAX) throw error
      }
    }
  }

  #told(message: KeeperMessage, descriptors: number[]): void {
    if (message.op === 'memory') this.memory = descriptors[0]
    else if (message.op === 'keep') {
      const { id, size, mappings } = message
      const [uffd, connection] = descriptors
      this.#nextId = Math.max(this.#nextId, id + 1)
      this.kept.push({ id, size, mappings, known: mappings.map(() => []), uffd, connection })
    } else if (message.op === 'pages') {
      const { id, mapping, what, runs } = message
      this.kept.find(each => each.id === id)?.known[mapping].push({ what, runs })
    } else if (message.op === 'ready') {
      this.#isReady = true
      this.#ready.resolve()
    }
  }

  keepMemory(fd: number): void {
    this.#send({ op: 'memory', descriptors: 1 }, [fd])
  }

  /** @returns what it is called from now on */
  keep(size: number, spaces: Spaces, descriptors: { uffd: number; connection: number }): number {
    const id = this.#nextId++
    const { uffd, connection } = descriptors
    this.#send({ op: 'keep', id, size, mappings: spaces.mappings, descriptors: 2 }, [uffd, connection])
    for (const [mapping, pages] of spaces.known().entries())
      for (const each of pages) this.#send({ op: 'pages', id, mapping, ...each, descriptors: 0 })
    return id
  }

  tell(message: Extract<KeeperMessage, { descriptors: 0 }>): void {
    this.#send(message)
  }

  #send(message: KeeperMessage, descriptors: number[] = []): void {
    if (this.#isLost) return
    try {
      sendMessage<KeeperMessage>(this.#fd, message, descriptors)
    } catch (error) {
      this.#lost(error)
    }
  }

  #lost(error: unknown): void {
    if (this.#isLost) return
    this.#isLost = true
    this.#watcher.stop()
    if (!this.#isReady) this.#ready.reject(error)
    else
      log.warn('nobody keeps the memory of processes any more: should this server be killed, they read zeros', {
        error,
      })
  }

  async close(): Promise<void> {
    this.#isLost = true
    await this.#watcher.close()
    closeSync(this.#fd)
  }
}

const late = () => new FerryError('DEADLINE', { detail: 'the process that keeps descriptors does not answer' })

async function within<T>(work: Promise<T>): Promise<T> {
  const patience = new AbortController()
  try {
    const tooLate = sleep(START_MS_MAX, patience.signal).then(() => Promise.reject(late()))
    tooLate.catch(() => {})
    return await Promise.race([work, tooLate])
  } finally {
    patience.abort()
  }
}

/** Null: nobody listens there. */
function connect(path: string): Promise<Socket | null> {
  return new Promise(done => {
    const socket = createConnection({ path })
    socket.once('error', () => done(null))
    socket.once('connect', () => done(socket.pause()))
  })
}

/** It outlives whoever starts it, and stands in nobody's way. */
async function begin(socket: string, path: string): Promise<Socket> {
  const entry = fileURLToPath(import.meta.url.replace(/keeper(\.[jt]s)$/, 'keeper-main$1'))
  const child = spawn(process.execPath, [entry, resolve(socket)], {
    detached: true,
    cwd: '/',
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  child.unref()
  const ended = new Promise<never>((_, reject) => {
    child.once('error', reject)
    child.once('exit', status =>
      reject(new FerryError('IO', { detail: `the process that keeps descriptors ended (${status})` })),
    )
  })
  ended.catch(() => {})
  const said = (async () => {
    for await (const _ of createInterface({ input: child.stdout! })) return
  })()
  await within(Promise.race([said, ended]))
  child.stdout!.destroy()
  const connected = await connect(path)
  if (!connected) throw late()
  return connected
}
