// Which directory a mount keeps its cache in, and how it gets it from a daemon that is still draining there.
import { createHash } from 'node:crypto'
import { closeSync, openSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, join } from 'node:path'
import { sleep, throwIfAborted } from './base/async.js'
import { FerryError, isFerryError } from './base/errors.js'
import { logger } from './base/log.js'
import { type CacheDir, openCacheDir } from './cache/cache-dir.js'
import { callControl } from './control.js'
import { lockHolder, tryLock } from './linux/lock.js'
import { type Daemon, nameOf, type Registry } from './registry.js'

const log = logger('mount')

/** How often to look whether a daemon that hands over has finished. */
const LOCK_POLL_MS = 20
/** How long to be patient before saying what is waited for, or that it is in vain. */
const PATIENCE_MS = 1000
/** Answers to `handover` are given at once, or the daemon is in trouble. */
const HANDOVER_MS_MAX = 10_000

/** One per remote, under XDG_CACHE_HOME: its last name for people, and a digest of all of it. */
export function defaultCacheDir(url: string, env: NodeJS.ProcessEnv = process.env): string {
  const name =
    basename(url)
      .replace(/[^\w.-]+/g, '_')
      .slice(0, 32) || 'remote'
  // What is in memory ends with the process that has it, and so does its cache.
  const identity = url.startsWith('mem:') ? `${url} ${process.pid} ${Date.now()}` : url
  const digest = createHash('sha256').update(identity).digest('hex').slice(0, 10)
  return join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'pageferry', `${name}-${digest}`)
}

/** The lock of a file, as `openCacheDir` wants it: how to give it back, or who holds it. */
function lock(path: string): (() => void) | number {
  const fd = openSync(path, 'a', 0o600)
  if (tryLock(fd)) return () => closeSync(fd)
  const holder = lockHolder(fd) ?? 0
  closeSync(fd)
  return holder
}

export interface ClaimOptions {
  /** URL of the remote whose cache it is. */
  remote: string
  registry: Registry
  signal?: AbortSignal
}

/**
 * Takes a cache directory for this process alone. A daemon that only goes on sending after its mount is gone is asked to stop after
 * its current batch, and waited for.
 * @throws BUSY (a daemon works in it; says which), and what `openCacheDir` says of a directory that is not one of ours
 */
export async function claimCacheDir(path: string, { remote, registry, signal }: ClaimOptions): Promise<CacheDir> {
  const startedMs = performance.now()
  const waitedMs = () => performance.now() - startedMs
  let asked = false
  let said = false
  for (;;) {
    throwIfAborted(signal)
    try {
      return openCacheDir(path, { remote, lock })
    } catch (error) {
      if (!isFerryError(error, 'BUSY')) throw error
      const daemon = registry.daemons().find(each => each.cacheDirs.includes(path))
      // Not registered: it is just starting or just ending, or it runs under another XDG_RUNTIME_DIR.
      if (!daemon && !asked && waitedMs() > PATIENCE_MS) throw error
      if (daemon && !asked) asked = await askForHandover(daemon, path, signal)
    }
    if (!said && waitedMs() > PATIENCE_MS)
      log.warn(`waiting for the last batch of the daemon that still works in ${path}`)
    said ||= waitedMs() > PATIENCE_MS
    await sleep(LOCK_POLL_MS, signal)
  }
}

/** Returns when the daemon is about to let go, or has ended. */
async function askForHandover(daemon: Daemon, cacheDir: string, signal?: AbortSignal): Promise<boolean> {
  try {
    await callControl(daemon.socket, { do: 'handover' }, { signal, silenceMsMax: HANDOVER_MS_MAX })
    return true
  } catch (error) {
    throwIfAborted(signal)
    if (isFerryError(error, 'UNREACHABLE')) return true
    const { pid, mountpoint } = daemon
    const uses = mountpoint === undefined ? `serves it at ${nameOf(daemon)}` : `has it mounted at ${mountpoint}`
    const why = isFerryError(error, 'BUSY') ? uses : 'works in it and does not answer'
    throw new FerryError('BUSY', {
      cause: error,
      detail: `cache directory ${cacheDir}: daemon ${pid} ${why}; end that first, or choose another --cache-dir`,
    })
  }
}
