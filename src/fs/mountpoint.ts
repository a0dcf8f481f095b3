// Makes sure that there is a place to mount on, and clears away what a dead daemon left there.

import type { Stats } from 'node:fs'
import { opendir, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { FerryError, toFerryError } from '../base/errors.js'
import { errno, errnoOf } from '../linux/libc.js'
import { unmountFuse } from '../linux/mount.js'
import { mountAt } from '../linux/mountinfo.js'

export interface PrepareOptions {
  /** Mount over files that are there already; they are hidden until the unmount (default false). */
  nonEmpty?: boolean
  /** How long a mount that is already there may take to answer, in ms. */
  answerTimeoutMs?: number
  /** Told in one line about everything that was put right. */
  note?: (line: string) => void
}

/**
 * The mount point as an absolute path without symlinks, ready to be mounted on. Mounts of dead daemons are detached first.
 * @throws NOT_FOUND, NOT_DIRECTORY, NOT_EMPTY, BUSY (a live mount of ours, or one that does not answer)
 */
export async function prepareMountPoint(path: string, options: PrepareOptions = {}): Promise<string> {
  const { nonEmpty = false, answerTimeoutMs = 5000, note = () => {} } = options
  const point = await withoutSymlinks(path)
  await detachStale(point, answerTimeoutMs, note)
  const found = await look(point)
  if (!found.isDirectory()) throw new FerryError('NOT_DIRECTORY', { detail: `mount point ${point}` })
  if (!nonEmpty && !(await isEmpty(point))) throw new FerryError('NOT_EMPTY', { detail: `mount point ${point}` })
  return point
}

/**
 * Where `path` leads. The last component is looked at only when nothing is mounted there, since a mount may be dead.
 * @throws NOT_FOUND
 */
export async function withoutSymlinks(path: string): Promise<string> {
  const absolute = resolve(path)
  try {
    const parent = await realpath(dirname(absolute))
    const point = join(parent, basename(absolute))
    return mountAt(point) ? point : await realpath(point)
  } catch (error) {
    throw toFerryError(error, `mount point ${absolute}`)
  }
}

/** Mounts can lie on top of each other, and each may be dead. */
async function detachStale(point: string, timeoutMs: number, note: (line: string) => void): Promise<void> {
  for (let mount = mountAt(point); mount?.type.startsWith('fuse'); mount = mountAt(point)) {
    const answer = await Promise.race([answers(point), setTimeout(timeoutMs, 'silence' as const, { ref: false })])
    if (answer === 'silence')
      throw new FerryError('BUSY', { detail: `${point} is a mount of ${mount.source} that does not answer` })
    if (answer === 'alive') {
      if (mount.type !== 'fuse.pageferry') return
      throw new FerryError('BUSY', { detail: `${point} is already a mount of ${mount.source}` })
    }
    await unmountFuse(point, { lazy: true })
    note(`detached ${point}: the daemon of ${mount.source} that served it is gone`)
  }
}

/** Transport endpoint is not connected, or (after an abort) connection aborted: nobody serves it any more. */
const deadly: (number | undefined)[] = [errno.ENOTCONN, errno.ECONNABORTED]

const answers = (point: string): Promise<'alive' | 'dead'> =>
  stat(point).then(
    () => 'alive',
    error => (deadly.includes(errnoOf(error)) ? 'dead' : 'alive'),
  )

async function look(point: string): Promise<Stats> {
  try {
    return await stat(point)
  } catch (error) {
    throw toFerryError(error, `mount point ${point}`)
  }
}

async function isEmpty(point: string): Promise<boolean> {
  try {
    const directory = await opendir(point)
    try {
      return (await directory.read()) === null
    } finally {
      await directory.close()
    }
  } catch (error) {
    throw toFerryError(error, `mount point ${point}`)
  }
}
