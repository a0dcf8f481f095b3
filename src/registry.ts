// Who is mounted on this host, who serves regions, and where unsent work lies. One small file per daemon in a directory that a reboot empties, one per
// cache directory in a directory that lasts.

import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { rename, writeFile } from 'node:fs/promises'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import * as z from 'zod/mini'
import { FerryError, toFerryError } from './base/errors.js'
import type { Lag } from './cache/tree-cache.js'
import { identityOf, isAlive } from './linux/process.js'

const daemonShape = z.object({
  pid: z.int().check(z.positive()),
  startTime: z.number(),
  bootId: z.string(),
  /** Of a mount. */
  mountpoint: z.optional(z.string()),
  /** Of a server: its URI. */
  address: z.optional(z.string()),
  remote: z.string(),
  /** One for each region of a server. */
  cacheDirs: z.array(z.string()),
  readOnly: z.boolean(),
  /** Of the control socket. */
  socket: z.string(),
})

/** A running daemon, as it registered itself. */
export type Daemon = z.infer<typeof daemonShape>

const lagShape = z.object({ bytes: z.number(), operations: z.number(), ageMs: z.number(), kernelBytes: z.number() })

const journalShape = z.object({
  remote: z.string(),
  cacheDir: z.string(),
  lag: lagShape,
  /** False while a daemon works on it: if there is none any more, it was killed, and `lag` may be behind. */
  closed: z.boolean(),
})

/** A cache directory that may hold what its remote does not have. */
export type Journal = z.infer<typeof journalShape>

/** Where the registry keeps its files. */
export interface RegistryPaths {
  /** Emptied by a reboot: daemons and their sockets. */
  runDir: string
  /** Lasts: journals. */
  stateDir: string
}

/** The places of this user, as the environment and the XDG base directories say. */
export function registryPaths(env: NodeJS.ProcessEnv = process.env): RegistryPaths {
  const uid = process.getuid?.() ?? 0
  const runDir = env.XDG_RUNTIME_DIR
    ? join(env.XDG_RUNTIME_DIR, 'pageferry')
    : uid === 0
      ? '/run/pageferry'
      : join(tmpdir(), `pageferry-${uid}`)
  const stateDir = join(env.XDG_STATE_HOME || join(homedir(), '.local', 'state'), 'pageferry')
  return { runDir, stateDir }
}

/** Makes a directory for us alone, and refuses one that somebody else made in its place. FORBIDDEN, NOT_DIRECTORY. */
export function privateDirectory(path: string): string {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 })
    const { uid, mode } = statSync(path)
    if (uid === process.getuid?.() && (mode & 0o077) === 0) return path
  } catch (error) {
    throw toFerryError(error)
  }
  throw new FerryError('FORBIDDEN', {
    detail: `${path} must belong to this user and be closed to others: chown it, and chmod 700`,
  })
}

/** Replaces a file as a whole; durable when it returns. */
function replaceFile(path: string, content: unknown): void {
  const fresh = `${path}.${process.pid}.new`
  const fd = openSync(fresh, 'w', 0o600)
  try {
    writeSync(fd, `${JSON.stringify(content)}\n`)
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
  renameSync(fresh, path)
}

const removeFile = (path: string) => {
  try {
    unlinkSync(path)
  } catch {
    // Somebody else saw that it was stale as well.
  }
}

/** Every entry of a directory that still has the right shape; a file that was cut short by a power loss counts as none. */
function readAll<T>(directory: string, shape: z.ZodMiniType<T>): { path: string; entry: T }[] {
  if (!existsSync(directory)) return []
  return readdirSync(directory)
    .filter(name => name.endsWith('.json'))
    .flatMap(name => {
      const path = join(directory, name)
      try {
        return [{ path, entry: shape.parse(JSON.parse(readFileSync(path, 'utf8'))) }]
      } catch {
        return []
      }
    })
}

/** The registry of one user on one host. Every method looks at the disk: nothing is remembered between calls. */
export class Registry {
  readonly #daemonsDir: string
  readonly #journalsDir: string

  constructor(paths: RegistryPaths = registryPaths()) {
    this.#daemonsDir = paths.runDir
    this.#journalsDir = join(paths.stateDir, 'journals')
  }

  /** Where this process's control socket belongs; its directory exists and is ours. */
  socketPath(): string {
    return join(privateDirectory(this.#daemonsDir), `${process.pid}.sock`)
  }

  /** Makes this process known until `leave`. */
  join(daemon: Omit<Daemon, 'pid' | 'startTime' | 'bootId'>): void {
    privateDirectory(this.#daemonsDir)
    replaceFile(this.#daemonFile(), { ...identityOf(), ...daemon })
  }

  leave(): void {
    removeFile(this.#daemonFile())
  }

  /** Daemons that run. Entries of those that do not are dropped, with their sockets. */
  daemons(): Daemon[] {
    return readAll(this.#daemonsDir, daemonShape)
      .filter(({ path, entry }) => {
        if (isAlive(entry)) return true
        removeFile(path)
        removeFile(entry.socket)
        return false
      })
      .map(({ entry }) => entry)
  }

  /** Remembers that a cache directory may hold unsent work. */
  keepJournal(journal: Journal): void {
    privateDirectory(this.#journalsDir)
    replaceFile(this.#journalFile(journal.cacheDir), journal)
  }

  /** New figures for an entry that is there; not durable, and off the loop. */
  async refreshJournal(journal: Journal): Promise<void> {
    const path = this.#journalFile(journal.cacheDir)
    const fresh = `${path}.${process.pid}.show`
    await writeFile(fresh, `${JSON.stringify(journal)}\n`, { mode: 0o600 })
    await rename(fresh, path)
  }

  /** All of it has been sent. */
  dropJournal(cacheDir: string): void {
    removeFile(this.#journalFile(cacheDir))
  }

  /** Cache directories with unsent work that no daemon is working on. Those that were removed are dropped. */
  journals(): Journal[] {
    const busy = new Set(this.daemons().flatMap(daemon => daemon.cacheDirs))
    return readAll(this.#journalsDir, journalShape)
      .filter(({ path, entry }) => {
        if (existsSync(entry.cacheDir)) return !busy.has(entry.cacheDir)
        removeFile(path)
        return false
      })
      .map(({ entry }) => entry)
      .filter(({ closed, lag }) => !closed || hasWork(lag))
  }

  #daemonFile() {
    return join(this.#daemonsDir, `${process.pid}.json`)
  }

  #journalFile(cacheDir: string) {
    return join(this.#journalsDir, `${createHash('sha256').update(cacheDir).digest('hex').slice(0, 16)}.json`)
  }
}

/** What it is called on the command line. */
export const nameOf = ({ mountpoint, address, socket }: Daemon): string => mountpoint ?? address ?? socket

/** Whether anything is missing at the remote. */
export const hasWork = (lag: Lag): boolean => lag.bytes > 0 || lag.operations > 0 || lag.kernelBytes > 0
