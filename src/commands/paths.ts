// pageferry pull, evict, refresh and conflicts: what one can ask about a part of a mount.
import { formatBytes } from '../base/units.js'
import type { Conflict, Progress } from '../cache/tree-cache.js'
import { callControl } from '../control.js'
import { showProgress } from '../progress.js'
import { findDaemon } from './find.js'
import { EXIT, type ExitStatus, onInterrupt, print } from './report.js'
import { many, text } from './show.js'

interface Amount {
  files: number
  bytes: number
}

export async function pullCommand(given: string): Promise<ExitStatus> {
  const { signal } = onInterrupt()
  const { daemon, path } = await findDaemon(given)
  const view = showProgress({ title: 'pulling' })
  try {
    const onProgress = (value: unknown) => view.update(value as Progress)
    const { files, bytes } = (await callControl(daemon.socket, { do: 'pull', path }, { signal, onProgress })) as Amount
    view.end()
    print(`${many(files, 'file')} local now, ${formatBytes(bytes)} fetched`)
  } finally {
    view.end()
  }
  return EXIT.ok
}

export async function evictCommand(given: string): Promise<ExitStatus> {
  const { daemon, path } = await findDaemon(given)
  const { files, bytes } = (await callControl(daemon.socket, { do: 'evict', path })) as Amount
  print(`${formatBytes(bytes)} of ${many(files, 'file')} given back`)
  return EXIT.ok
}

export async function refreshCommand(given: string): Promise<ExitStatus> {
  const { signal } = onInterrupt()
  const { daemon, path } = await findDaemon(given)
  const asked = callControl(daemon.socket, { do: 'refresh', path }, { signal })
  const { entries, changed } = (await asked) as { entries: number; changed: number }
  print(`${many(entries, 'name')} looked at, ${changed} changed`)
  return EXIT.ok
}

export async function conflictsCommand(given: string, options: { json?: boolean }): Promise<ExitStatus> {
  const { daemon } = await findDaemon(given)
  const conflicts = (await callControl(daemon.socket, { do: 'conflicts' })) as Conflict[]
  if (options.json) print(JSON.stringify(conflicts, null, 2))
  else if (conflicts.length === 0) print('no conflicts')
  for (const { path, keptAs, atMs } of options.json ? [] : conflicts)
    print(`${new Date(atMs).toISOString()}  ${text(path)}  ours is kept as ${text(keptAs)}`)
  return EXIT.ok
}
