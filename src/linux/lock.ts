// One process at a time: the exclusive lock of an open file.

import { fstatSync, readFileSync } from 'node:fs'
import { deviceOf } from './files.js'
import { checked, errno, lastErrno, self, systemError } from './libc.js'

const flockCall = self.func('flock', 'int', ['int', 'int']) as (fd: number, operation: number) => number

const LOCK_EX = 2
const LOCK_NB = 4
const LOCK_UN = 8

/** Takes the exclusive lock of an open file, for as long as any copy of this descriptor is open; false when it is held. flock(2) */
export function tryLock(fd: number): boolean {
  if (flockCall(fd, LOCK_EX | LOCK_NB) === 0) return true
  const number = lastErrno()
  if (number === errno.EWOULDBLOCK) return false
  throw systemError(number, 'flock')
}

export const unlock = (fd: number): void => {
  checked(flockCall(fd, LOCK_UN), 'flock')
}

/**
 * Who holds that lock, as /proc/locks tells it: undefined when nobody does, or when the kernel does not say (another pid
 * name space, a file system whose device numbers differ there, such as btrfs).
 */
export function lockHolder(fd: number): number | undefined {
  const { dev, ino } = fstatSync(fd, { bigint: true })
  const { major, minor } = deviceOf(dev)
  const hex = (number: number) => number.toString(16).padStart(2, '0')
  const file = `${hex(major)}:${hex(minor)}:${ino}`
  for (const line of readFileSync('/proc/locks', 'latin1').split('\n')) {
    // 7: FLOCK  ADVISORY  WRITE 4711 fe:00:264 0 EOF; waiters have an arrow after the number.
    const [, kind, , , pid, where] = line.split(/ +/)
    if (kind === 'FLOCK' && where === file && Number(pid) > 0) return Number(pid)
  }
  return undefined
}
