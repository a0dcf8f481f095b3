// A Unix socket at which processes hand over their userfaultfd: their memory is a region from then on.
import { closeSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { totalmem } from 'node:os'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import { receive, sendDescriptor, takeDescriptor } from '../linux/descriptors.js'
import { errno, errnoOf } from '../linux/libc.js'
import { type Listener, listen, listenerOf } from '../linux/listen.js'
import { readOnlyDescriptor } from '../linux/memory.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import { type FaultCounts, type FaultOptions, Faults } from './faults.js'
import { HANDSHAKE_BYTES_MAX, parseMappings } from './handshake.js'
import { copiedPages, type Pages } from './pages.js'
import { SharedPages } from './shared-pages.js'

const log = logger('userfault')

/** A process that has not said what its memory is by then is let go. */
const HANDSHAKE_MS_MAX = 10_000
const PROCESSES_MAX = 256
/** One is expected; more are closed. */
const DESCRIPTORS_MAX = 8
const SHARED_PAGE_BYTES = 4096

/** A server of memory; `connections` are processes. */
export interface MemoryServer extends Listener {
  /** Of all processes since it listens. */
  readonly counts: FaultCounts
  /** With `share`: what the one copy takes of this machine's memory. */
  readonly residentBytes: number
}

export interface MemoryServerOptions extends Pick<FaultOptions, 'onFault'> {
  /** Where the socket is made: its owner's alone. */
  socket: string
  /** All processes map one copy, a memfd that they are given. */
  share: boolean
  /** Of that copy, in bytes: so much is there at once, at most. Default: half of the machine's memory. */
  resident?: number
}

/**
 * Serves the region as the memory of every process that connects, until it is closed; the region stays open. What they write stays theirs.
 * @throws USAGE: nobody can listen there
 */
export async function listenMemory(
  door: RegionDoor,
  { socket: path, onFault, share, resident = Math.floor(totalmem() / 2) }: MemoryServerOptions,
): Promise<MemoryServer> {
  const shared = share ? new SharedPages(door, { resident }) : null
  const served: Served = {
    ...{ size: door.size, shared, onFault },
    pages: shared ?? copiedPages(door, { isProtected: false }),
  }
  const processes = new Set<Process>()
  const gone: FaultCounts = { faults: 0, bytes: 0, poisoned: 0 }
  const server = createServer({ pauseOnConnect: true }, socket => {
    if (processes.size >= PROCESSES_MAX) {
      log.warn('too many processes', { processesMax: PROCESSES_MAX })
      socket.destroy()
      return
    }
    const process = new Process(socket, served, () => {
      processes.delete(process)
      add(gone, process.counts)
    })
    processes.add(process)
  })
  const address = await listen(server, { path }).catch(error => {
    shared?.close()
    throw error
  })
  const close = async () => {
    const closed = new Promise(resolve => server.close(resolve))
    await Promise.all([...processes].map(each => each.close()))
    await closed
    shared?.close()
  }
  const listener = listenerOf(address, processes, close)
  return Object.defineProperties(listener, {
    counts: {
      get: () => [...processes].reduce((sum, each) => add(sum, each.counts), { ...gone }),
    },
    residentBytes: { get: () => shared?.residentBytes ?? 0 },
  }) as MemoryServer
}

function add(sum: FaultCounts, { faults, bytes, poisoned }: FaultCounts): FaultCounts {
  sum.faults += faults
  sum.bytes += bytes
  sum.poisoned += poisoned
  return sum
}

/** What a process is given. */
interface Served extends Pick<FaultOptions, 'onFault'> {
  pages: Pages
  /** Of the region. */
  size: number
  shared: SharedPages | null
}

/** One connection: open for as long as the process lives. */
class Process {
  readonly #fd: number
  readonly #watcher: Watcher
  readonly #patience: NodeJS.Timeout
  readonly #onEnd: () => void
  #faults: Faults | undefined
  #closing: Promise<void> | undefined

  constructor(socket: Socket, served: Served, onEnd: () => void) {
    this.#onEnd = onEnd
    this.#fd = takeDescriptor(socket)
    this.#watcher = watchDescriptor(this.#fd, () => this.#hear(served))
    this.#watcher.start()
    this.#patience = setTimeout(() => this.#leave(new FerryError('DEADLINE')), HANDSHAKE_MS_MAX)
    if (served.shared) this.#handOver(served.shared)
  }

  /** The memory itself, and how long it is. */
  #handOver({ fd, length }: SharedPages): void {
    const given = readOnlyDescriptor(fd)
    try {
      sendDescriptor(this.#fd, Buffer.from(JSON.stringify({ size: length, page_size: SHARED_PAGE_BYTES })), given)
    } catch (error) {
      this.#leave(error)
    } finally {
      closeSync(given)
    }
  }

  get counts(): FaultCounts {
    return this.#faults?.counts ?? { faults: 0, bytes: 0, poisoned: 0 }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    clearTimeout(this.#patience)
    await this.#watcher.close()
    closeSync(this.#fd)
    await this.#faults?.close()
    this.#onEnd()
  }

  #hear(served: Served): void {
    try {
      const { bytes, descriptors } = receive(this.#fd, HANDSHAKE_BYTES_MAX, DESCRIPTORS_MAX)
      // Nothing comes after the first message, but the end.
      if (bytes.length === 0 || this.#faults) {
        for (const each of descriptors) closeSync(each)
        if (bytes.length === 0) this.#leave(null)
        return
      }
      this.#begin(served, bytes, descriptors)
    } catch (error) {
      if (errnoOf(error) === errno.EAGAIN) return
      this.#leave(error)
    }
  }

  #begin({ pages, size, shared, onFault }: Served, bytes: Uint8Array, descriptors: number[]): void {
    const [fd, ...others] = descriptors
    try {
      for (const each of others) closeSync(each)
      if (fd === undefined || others.length > 0)
        throw new FerryError('PROTOCOL', {
          detail: `${descriptors.length} descriptors came, instead of one userfaultfd`,
        })
      const mappings = parseMappings(Buffer.from(bytes).toString(), size)
      if (shared && mappings.some(({ pageBytes }) => pageBytes !== SHARED_PAGE_BYTES))
        throw new FerryError('PROTOCOL', { detail: `pages of shared memory have ${SHARED_PAGE_BYTES} bytes` })
      this.#faults = new Faults(fd, pages, mappings, {
        onFault,
        onEnd: () => this.#leave(null),
      })
      clearTimeout(this.#patience)
      log.info('memory of a process', { mappings: mappings.length })
    } catch (error) {
      if (fd !== undefined) closeSync(fd)
      throw error
    }
  }

  #leave(error: unknown): void {
    if (this.#closing) return
    if (error) log.warn('a process was let go', { error: toFerryError(error) })
    this.close().catch(error => log.error('memory of a process could not be let go', { error }))
  }
}
