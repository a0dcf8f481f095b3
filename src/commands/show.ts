// The status of a mount, for people.
import { formatBytes, formatDuration } from '../base/units.js'
import type { Lag } from '../cache/tree-cache.js'
import type { MountStatus, Unsent } from '../mounted-tree.js'
import { hasWork, type Journal } from '../registry.js'

const of = (bytes: number, bytesMax: number) => `${formatBytes(bytes)} of ${formatBytes(bytesMax)}`

const percent = (part: number, whole: number) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)}%` : '-')

export const many = (count: number, one: string) => `${count} ${one}${count === 1 ? '' : 's'}`

export function lagLine(lag: Lag): string {
  if (!hasWork(lag)) return 'none: the remote has everything'
  const kernel = lag.kernelBytes > 0 ? `, ${formatBytes(lag.kernelBytes)} in the kernel` : ''
  return `${formatBytes(lag.bytes)}, ${many(lag.operations, 'change')}, the oldest ${formatDuration(lag.ageMs)} ago${kernel}`
}

const contracts = {
  remote: 'what sync returned from survives the loss of this host',
  local: 'changes survive here only until the remote has them: it cannot commit batches',
}

/** Lines of `label value`, the labels in a column. */
const table = (rows: [label: string, value: string][]) => {
  const width = Math.max(...rows.map(([label]) => label.length))
  return rows.map(([label, value]) => `  ${label.padEnd(width)}  ${value}`).join('\n')
}

/** A block of lines about one mount. */
export function describeMount(status: MountStatus): string {
  const { remote, lag, cache, memory, reads, lease, batches } = status
  const title = `${status.mountpoint}  ${remote.url}${status.readOnly ? '  read-only' : ''}${status.state === 'draining' ? '  unmounted, sending what is left' : ''}`
  const rows: [string, string][] = [
    ['daemon', `pid ${status.pid}, cache in ${status.cacheDir}`],
    ['lag', lagLine(lag)],
    ['contract', contracts[status.contract]],
    ['hit rate', `${percent(reads.hits, reads.hits + reads.misses)} of ${many(reads.hits + reads.misses, 'read')}`],
    ['cache', of(cache.bytes, cache.bytesMax)],
    ['memory', of(memory.bytes, memory.bytesMax)],
    [
      'remote',
      `${remote.reachable ? 'reachable' : 'cannot be reached'}, ${many(remote.requests, 'request')}, ${formatBytes(remote.bytesRead)} read, ${formatBytes(remote.bytesWritten)} written, ${many(remote.errors, 'error')}`,
    ],
  ]
  if (lease) rows.push(['lease', `${lease.holder}, epoch ${lease.epoch}`])
  if (batches.lastError) rows.push(['last error', batches.lastError])
  if (status.conflicts.length > 0)
    rows.push(['conflicts', `${status.conflicts.length}: see pageferry conflicts ${status.mountpoint}`])
  for (const { path, detail } of status.quarantine) rows.push(['refused', `${text(path)}: ${detail}`])
  for (const problem of status.problems) rows.push(['problem', problem])
  return `${title}\n${table(rows)}`
}

export function describeJournal({ remote, cacheDir, lag, closed }: Journal): string {
  const rows: [string, string][] = [
    ['cache in', cacheDir],
    ['lag', hasWork(lag) ? lagLine(lag) : 'not known: its daemon was killed'],
  ]
  if (!closed && hasWork(lag)) rows.push(['', 'as of shortly before its daemon was killed'])
  return `not mounted  ${remote}\n${table([...rows, ['to send', 'mount it again']])}`
}

/** Paths shown, at most. */
const PATHS_MAX = 10

/** What did not get through when a mount ended, in one line and the paths below it. */
export function describeUnsent({ bytes, operations, paths, reason }: Unsent, cacheDir: string): string {
  const shown = paths.slice(0, PATHS_MAX).map(path => `\n  ${text(path)}`)
  if (paths.length > PATHS_MAX) shown.push(`\n  and ${paths.length - PATHS_MAX} more`)
  const amount = `${many(operations, 'change')}, ${formatBytes(bytes)}`
  return `not sent: ${amount}${reason ? ` (${reason})` : ''}; kept in ${cacheDir}, mount again to go on${shown.join('')}`
}

/** Bytes that were carried as latin1, for the eye. */
export const text = (bytes: string) => Buffer.from(bytes, 'latin1').toString()
