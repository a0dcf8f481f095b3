// The status of a mount, for people.
import { formatBytes, formatDuration } from '../base/units.js'
import type { Lag } from '../cache/tree-cache.js'
import type { MountStatus, Unsent } from '../mounted-tree.js'
import type { RegionStatus } from '../open-region.js'
import { hasWork, type Journal } from '../registry.js'
import type { ServerStatus } from '../served-regions.js'
import type { ExportStatus } from '../served-remote.js'

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

/** What is told of a mount and of a region alike. */
function engineRows(status: MountStatus | RegionStatus): [label: string, value: string][] {
  const { remote, lag, cache, memory, reads, lease, batches } = status
  const rows: [string, string][] = [
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
  return rows
}

const problemRows = ({ problems }: { problems: string[] }) =>
  problems.map((problem): [string, string] => ['problem', problem])

/** A block of lines about one mount. */
export function describeMount(status: MountStatus): string {
  const { mountpoint, remote, readOnly, state, pid, cacheDir, conflicts, quarantine } = status
  const title = `${mountpoint}  ${remote.url}${readOnly ? '  read-only' : ''}${state === 'draining' ? '  unmounted, sending what is left' : ''}`
  const rows: [string, string][] = [['daemon', `pid ${pid}, cache in ${cacheDir}`], ...engineRows(status)]
  if (conflicts.length > 0) rows.push(['conflicts', `${conflicts.length}: see pageferry conflicts ${mountpoint}`])
  for (const { path, detail } of quarantine) rows.push(['refused', `${text(path)}: ${detail}`])
  return `${title}\n${table([...rows, ...problemRows(status)])}`
}

/** A block of lines about each region of one server. */
export function describeServer({ address, pid, connections, regions }: ServerStatus): string {
  const blocks = regions.map(status => {
    const { name, remote, readOnly, size, availability, cacheDir } = status
    const title = `${address}${name ? `  ${name}` : ''}  ${remote.url}${readOnly ? '  read-only' : ''}`
    const rows: [string, string][] = [
      [
        'daemon',
        `pid ${pid}, ${connections === undefined ? '' : `${many(connections, 'connection')}, `}cache in ${cacheDir}`,
      ],
      ['size', `${formatBytes(size)}, ${percent(availability, 1)} here`],
    ]
    return `${title}\n${table([...rows, ...engineRows(status), ...problemRows(status)])}`
  })
  return blocks.join('\n\n')
}

/** A block of lines about what is served to other hosts. */
export function describeExport({ address, pid, connections, serves, remote, readOnly }: ExportStatus): string {
  const what = serves === 'tree' ? 'a directory' : 'a run of bytes'
  const daemon: [string, string] = ['daemon', `pid ${pid}, ${many(connections, 'connection')}`]
  return `${address}  ${remote.url}${readOnly ? '  read-only' : ''}\n${table([daemon, ['serves', what]])}`
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
