// A Unix socket at which processes hand over their userfaultfd: their memory is a region from then on.
import { closeSync } from 'node:fs'
import { createServer } from 'node:net'
import { totalmem } from 'node:os'
import { deferred } from '../base/async.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import { receive, sendDescriptors, takeDescriptor } from '../linux/descriptors.js'
import { errno, errnoOf } from '../linux/libc.js'
import { type Listener, listen, listenerOf } from '../linux/listen.js'
import { readOnlyDescriptor } from '../linux/memory.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import { type FaultCounts, type FaultOptions, Faults, type Keep } from './faults.js'
import { HANDSHAKE_BYTES_MAX, parseMappings } from './handshake.js'
import { Keeper, type KeptProcess } from './keeper.js'
import { copiedPages, type Pages } from './pages.js'
import { SharedPages } from './shared-pages.js'
import { Spaces } from './spaces.js'

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
  onClosed = () => {},
): Promise<MemoryServer> {
  const processes = new Set<Process>()
  const gone: FaultCounts = { faults: 0, bytes: 0, poisoned: 0 }
  // Whoever comes first waits until it is known whom an earlier server has left.
  const begun = deferred<Served | null>()
  const server = createServer({ pauseOnConnect: true }, async socket => {
    const served = await begun.promise
    if (!served || processes.size >= PROCESSES_MAX) {
      if (served) log.warn('too many processes', { processesMax: PROCESSES_MAX })
      socket.destroy()
      return
    }
    join(served, takeDescriptor(socket))
  })
  const join = (served: Served, connection: number, kept?: KeptProcess) => {
    const process = new Process(connection, served, () => {
      processes.delete(process)
      add(gone, process.counts)
    })
    processes.add(process)
    if (kept) process.goOn(kept)
    else process.greet()
  }
  // First: of two servers at one socket only one has what is kept.
  const address = await listen(server, { path })
  let served: Served
  try {
    served = await begin(door, { path, onFault, share, resident })
  } catch (error) {
    begun.resolve(null)
    await new Promise(resolve => server.close(resolve))
    throw error
  }
  const { keeper, shared } = served
  for (const kept of keeper.kept) join(served, kept.connection, kept)
  begun.resolve(served)
  const close = async () => {
    const closed = new Promise(resolve => server.close(resolve))
    await Promise.all([...processes].map(each => each.close()))
    await closed
    await keeper.close()
    shared?.close()
    onClosed()
  }
  const listener = listenerOf(address, processes, close)
  return Object.defineProperties(listener, {
    counts: {
      get: () => [...processes].reduce((sum, each) => add(sum, each.counts), { ...gone }),
    },
    residentBytes: { get: () => shared?.residentBytes ?? 0 },
  }) as MemoryServer
}

/** What is served, also to those whom an earlier server has left. @throws USAGE: they cannot go on with this */
async function begin(
  door: RegionDoor,
  {
    path,
    onFault,
    share,
    resident,
  }: { path: string; share: boolean; resident: number } & Pick<FaultOptions, 'onFault'>,
): Promise<Served> {
  const keeper = await Keeper.join(path)
  const memory = keeper.memory ?? undefined
  const others = keeper.kept.find(({ size }) => size !== door.size)
  const differs = others
    ? `of a region of ${others.size} bytes`
    : share !== (memory !== undefined) && `${share ? 'without' : 'with'} --share`
  if (keeper.kept.length > 0 && differs) {
    for (const { uffd, connection } of keeper.kept) for (const fd of [uffd, connection]) closeSync(fd)
    if (memory !== undefined) closeSync(memory)
    await keeper.close()
    throw new FerryError('USAGE', { detail: `${path}: processes of an earlier server are kept, ${differs}` })
  }
  const shared = share ? new SharedPages(door, { resident, memory }) : null
  if (shared && memory === undefined) keeper.keepMemory(shared.fd)
  const pages = shared ?? copiedPages(door, { isProtected: false })
  return { size: door.size, shared, onFault, keeper, pages }
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
  keeper: Keeper
}

/** One connection: open for as long as the process lives. */
class Process {
  readonly #fd: number
  readonly #served: Served
  readonly #watcher: Watcher
  #patience: NodeJS.Timeout | undefined
  readonly #onEnd: () => void
  #faults: Faults | undefined
  #closing: Promise<void> | undefined

  constructor(connection: number, served: Served, onEnd: () => void) {
    this.#onEnd = onEnd
    this.#fd = connection
    this.#served = served
    this.#watcher = watchDescriptor(this.#fd, () => this.#hear())
    this.#watcher.start()
  }

  /** It has just connected. */
  greet(): void {
    this.#patience = setTimeout(() => this.#leave(new FerryError('DEADLINE')), HANDSHAKE_MS_MAX)
    if (this.#served.shared) this.#handOver(this.#served.shared)
  }

  /** An earlier server had it. */
  goOn({ id, uffd, mappings, known }: KeptProcess): void {
    log.info('memory of a process, of an earlier server', { mappings: mappings.length })
    this.#faults = this.#answer(uffd, new Spaces(mappings, known), id)
  }

  #answer(uffd: number, spaces: Spaces, kept?: number): Faults {
    const { pages, size, onFault, keeper } = this.#served
    const keep: Keep = {
      begin: (fd, spaces) => keeper.keep(size, spaces, { uffd: fd, connection: this.#fd }),
      tell: (id, change) => keeper.tell({ ...change, id, descriptors: 0 }),
      end: id => keeper.tell({ op: 'gone', id, descriptors: 0 }),
    }
    return new Faults(uffd, pages, spaces, { onFault, keep, onEnd: () => this.#leave(null) }, kept)
  }

  /** The memory itself, and how long it is. */
  #handOver({ fd, length }: SharedPages): void {
    const given = readOnlyDescriptor(fd)
    try {
      const greeting = Buffer.from(JSON.stringify({ size: length, page_size: SHARED_PAGE_BYTES }))
      const sent = sendDescriptors(this.#fd, greeting, [given])
      if (sent < greeting.length) throw new FerryError('IO', { detail: 'a greeting was cut' })
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

  #hear(): void {
    try {
      const { bytes, descriptors } = receive(this.#fd, HANDSHAKE_BYTES_MAX, DESCRIPTORS_MAX)
      // Nothing comes after the first message, but the end.
      if (bytes.length === 0 || this.#faults) {
        for (const each of descriptors) closeSync(each)
        if (bytes.length === 0) this.#leave(null)
        return
      }
      this.#begin(bytes, descriptors)
    } catch (error) {
      if (errnoOf(error) === errno.EAGAIN) return
      this.#leave(error)
    }
  }

  #begin(bytes: Uint8Array, descriptors: number[]): void {
    const { size, shared } = this.#served
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
      this.#faults = this.#answer(fd, new Spaces(mappings))
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
