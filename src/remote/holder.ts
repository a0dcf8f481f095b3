// Who holds a lease, and whether that process is known to be dead.

import { hostname } from 'node:os'
import { bootId, isAlive, startTimeOf } from '../linux/process.js'
import type { Claim } from './commits.js'

/** Who this process is, as a claim names it. */
export const thisProcess = (): Pick<Claim, 'host' | 'bootId' | 'pid' | 'startTime'> => ({
  host: hostname(),
  bootId: bootId(),
  pid: process.pid,
  startTime: startTimeOf(process.pid) ?? 0,
})

/** Whether the very process that a claim names still runs on this host. */
export const runs = (holder: Claim): boolean => isAlive(holder)

/**
 * Known to be dead: it ran on this host since its last boot and runs no more; or the host has booted since, and the claim is
 * of the same cache directory, which no two hosts have.
 */
export function isDead(holder: Claim, mine: Claim, alive: (holder: Claim) => boolean = runs): boolean {
  if (holder.host !== mine.host) return false
  if (holder.bootId === mine.bootId) return !alive(holder)
  return holder.writer === mine.writer
}
