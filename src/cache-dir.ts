// The directory in which a mount keeps what it has cached and not yet sent: where it is, that it is ours, and that nobody else works in it.
import { createHash } from 'node:crypto'
import { chmodSync, closeSync, existsSync, mkdirSync, openSync, readdirSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, join } from 'node:path'
import { sleep, throwIfAborted } from './base/async.js'
import { FerryError, isFerryError, toFerryError } from './base/errors.js'
import { logger } from './base/log.js'
import { callControl } from './control.js'
import { lockHolder, tryLock } from './linux/lock.js'
import { commandOf } from './linux/process.js'
import type { Registry } from './registry.js'

const log = logger('mount')

/** The file whose lock is the right to work in the directory, and which tells that the directory is one of ours. */
const LOCK = 'lock'
/** How often to look whether a daemon that hands over has finished. */
const LOCK_POLL_MS = 20
/** How long to be patient before saying what is waited for. */
const SAY_AFTER_MS = 1000
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

/** Makes the directory, or checks the one that is there: only this user may look into it. */
function prepare(cacheDir: string): void {
  const refuse = (why: string) => {
    throw new FerryError('USAGE', { detail: `cache directory ${cacheDir} ${why}` })
  }
  try {
    mkdirSync(cacheDir, { recursive: true, mode: 0o700 })
    const { uid, mode } = statSync(cacheDir)
    if (uid !== process.getuid?.()) refuse('belongs to another user')
    // Before its mode is changed or a file is put there: it may be somebody's home.
    if (!existsSync(join(cacheDir, LOCK)) && readdirSync(cacheDir).length > 0)
      refuse('has other files in it: name an empty or a new directory')
    if ((mode & 0o077) !== 0) chmodSync(cacheDir, 0o700)
  } catch (error) {
    throw toFerryError(error, `cache directory ${cacheDir} (${(error as NodeJS.ErrnoException).code})`)
  }
}

export interface CacheDirLock {
  /** Lets others have it. */
  release(): void
}

/**
 * Takes a cache directory for this process alone. A daemon that only goes on sending after its mount is gone is asked to stop after
 * its current batch, and waited for.
 * @throws USAGE (not a directory of ours), BUSY (another daemon works in it; says which)
 */
export async function lockCacheDir(cacheDir: string, registry: Registry, signal?: AbortSignal): Promise<CacheDirLock> {
  prepare(cacheDir)
  const fd = openSync(join(cacheDir, LOCK), 'a', 0o600)
  try {
    if (!tryLock(fd)) {
      await askForHandover(cacheDir, fd, registry, signal)
      await waitForLock(cacheDir, fd, signal)
    }
  } catch (error) {
    closeSync(fd)
    throw error
  }
  return { release: () => closeSync(fd) }
}

/** Returns when the holder of the lock is about to let go. */
async function askForHandover(cacheDir: string, fd: number, registry: Registry, signal?: AbortSignal): Promise<void> {
  const daemon = registry.daemons().find(each => each.cacheDir === cacheDir)
  const pid = daemon?.pid ?? lockHolder(fd)
  const busy = (why: string) =>
    new FerryError('BUSY', {
      detail: `cache directory ${cacheDir}: ${why}; unmount that first, or choose another --cache-dir`,
    })
  // Not registered: it is just starting or just ending, or it runs under another XDG_RUNTIME_DIR.
  if (!daemon) {
    for (let waitedMs = 0; waitedMs < SAY_AFTER_MS; waitedMs += LOCK_POLL_MS) {
      if (tryLock(fd)) return
      await sleep(LOCK_POLL_MS, signal)
    }
    throw busy(pid === undefined ? 'another process has it' : `process ${pid} (${commandOf(pid) ?? '?'}) has it`)
  }
  try {
    await callControl(daemon.socket, { do: 'handover' }, { signal, silenceMsMax: HANDOVER_MS_MAX })
  } catch (error) {
    // It may have ended before it could answer: then the lock is free.
    if (isFerryError(error, 'UNREACHABLE')) return
    throwIfAborted(signal)
    if (isFerryError(error, 'BUSY')) throw busy(`daemon ${pid} has it mounted at ${daemon.mountpoint}`)
    throw busy(`daemon ${pid} has it and does not answer`)
  }
}

async function waitForLock(cacheDir: string, fd: number, signal?: AbortSignal): Promise<void> {
  const startedMs = performance.now()
  let said = false
  while (!tryLock(fd)) {
    if (!said && performance.now() - startedMs > SAY_AFTER_MS) {
      said = true
      log.warn(`waiting for daemon ${lockHolder(fd) ?? '?'} to finish its last batch in ${cacheDir}`)
    }
    await sleep(LOCK_POLL_MS, signal)
  }
}
