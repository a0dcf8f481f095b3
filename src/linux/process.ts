// Who a process is, across pid reuse and reboots; and how the kernel should treat ours.

import { readFileSync } from 'node:fs'
import { errno, lastErrno, self, systemError } from './libc.js'

/** Enough to recognise a process for ever: pids are used again, and start times begin anew at each boot. */
export interface ProcessIdentity {
  pid: number
  /** Clock ticks since boot; field 22 of /proc/PID/stat (proc_pid_stat(5)). */
  startTime: number
  /** /proc/sys/kernel/random/boot_id. */
  bootId: string
}

export const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()

interface Stat {
  state: string
  parent: number
  startTime: number
}

function statOf(pid: number): Stat | undefined {
  let line: string
  try {
    line = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  // The second field is the command in parentheses, with anything in it: count from the last one.
  const fields = line.slice(line.lastIndexOf(')') + 2).split(' ')
  return { state: fields[0], parent: Number(fields[1]), startTime: Number(fields[19]) }
}

/** When a process began, in clock ticks since boot; undefined when there is none with that pid. */
export const startTimeOf = (pid: number): number | undefined => statOf(pid)?.startTime

/** Who started it, or adopted it; undefined when the process is gone. */
export const parentOf = (pid: number): number | undefined => statOf(pid)?.parent

/** This process, or another of this host. */
export function identityOf(pid: number = process.pid): ProcessIdentity | undefined {
  const startTime = startTimeOf(pid)
  return startTime === undefined ? undefined : { pid, startTime, bootId: bootId() }
}

/** Whether that very process still runs on this host (a zombie does not). */
export function isAlive({ pid, startTime, bootId: boot }: ProcessIdentity): boolean {
  if (boot !== bootId()) return false
  const stat = statOf(pid)
  return stat !== undefined && stat.startTime === startTime && stat.state !== 'Z' && stat.state !== 'X'
}

/** The command's short name; undefined when the process is gone. */
export function commandOf(pid: number): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trimEnd()
  } catch {
    return undefined
  }
}

const prctl = self.func('prctl', 'int', ['int', 'ulong', 'ulong', 'ulong', 'ulong']) as (
  option: number,
  ...args: [number, number, number, number]
) => number

const PR_SET_IO_FLUSHER = 57

/**
 * Tells the kernel that memory reclaim must not wait for file systems when this process allocates: it serves one, and
 * would wait for itself (prctl(2), Linux 5.6).
 * @returns false without CAP_SYS_RESOURCE, or on an older kernel: the mount works, but may hang when memory is short
 */
export function setIoFlusher(): boolean {
  if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) === 0) return true
  const number = lastErrno()
  if (number === errno.EPERM || number === errno.EINVAL) return false
  throw systemError(number, 'prctl', 'PR_SET_IO_FLUSHER')
}
