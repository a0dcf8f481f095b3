// Who keeps a mount busy. Only links and lists in /proc and /sys are read, which the kernel answers without asking the mount.

import { readdir, readFile, readlink } from 'node:fs/promises'
import { setTimeout } from 'node:timers/promises'
import { bytesOf } from './libc.js'
import { mounts } from './mountinfo.js'

export interface Holder {
  /** Absent for what the kernel itself holds: a mount below, a loop device. */
  pid?: number
  command: string
  /** 'working directory', 'root', 'program', 'fd 3', 'mapping', 'mount', 'loop device', and the path. */
  what: string
}

/** A process that keeps us waiting longer hangs in a page fault. Its mappings are left out, and those of all that follow: each would
 * cost another thread of the pool. */
const MAPS_TIMEOUT_MS = 200

/**
 * Everything in use below `point` (absolute, without symlinks); one line per process and kind is enough to act on, so of the open
 * files and the mappings of a process the first is named. Asynchronous throughout: to read a process's mappings one may
 * have to wait for its page fault, which may be ours to answer, or nobody's. What we may not look at (other users' processes) is
 * left out.
 */
export async function holdersOf(point: Uint8Array | string): Promise<Holder[]> {
  const root = Buffer.from(bytesOf(point)).toString('latin1')
  const inside = (path: string) => path === root || path.startsWith(root.endsWith('/') ? root : `${root}/`)
  const found = kernelHolders(root, inside)
  for (const loop of await loopDevices()) {
    if (inside(loop.file)) found.push({ command: loop.name, what: `loop device: ${text(loop.file)}` })
  }
  let hanging = false
  const mapsOf = async (pid: string) => {
    if (hanging) return ''
    const timeout = setTimeout(MAPS_TIMEOUT_MS, undefined, { ref: false })
    const maps = await Promise.race([contents(`/proc/${pid}/maps`), timeout])
    hanging = maps === undefined
    return maps ?? ''
  }
  for (const entry of await listed('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    const uses = [...(await usesOf(entry, inside)), ...mapped(await mapsOf(entry), inside)]
    if (uses.length === 0) continue
    const command = (await contents(`/proc/${entry}/comm`)).trimEnd()
    found.push(...uses.map(what => ({ pid: Number(entry), command: text(command), what })))
  }
  return found
}

type Inside = (path: string) => boolean

const kernelHolders = (root: string, inside: Inside): Holder[] =>
  mounts()
    .map(({ point, source }) => ({ path: point.toString('latin1'), source }))
    .filter(({ path }) => path !== root && inside(path))
    .map(({ path, source }) => ({ command: source, what: `mount: ${text(path)}` }))

async function loopDevices() {
  const names = (await listed('/sys/block')).filter(name => name.startsWith('loop'))
  const files = await Promise.all(names.map(name => contents(`/sys/block/${name}/loop/backing_file`)))
  return names.map((name, i) => ({ name, file: files[i].trimEnd() }))
}

const links = { cwd: 'working directory', root: 'root', exe: 'program' } as const

async function usesOf(pid: string, inside: Inside): Promise<string[]> {
  const uses: string[] = []
  for (const [name, what] of Object.entries(links)) {
    const path = await linked(`/proc/${pid}/${name}`)
    if (inside(path)) uses.push(`${what}: ${text(path)}`)
  }
  for (const fd of await listed(`/proc/${pid}/fd`)) {
    const path = await linked(`/proc/${pid}/fd/${fd}`)
    if (!inside(path)) continue
    uses.push(`fd ${fd}: ${text(path)}`)
    break
  }
  return uses
}

/** The first mapping inside: the path is the rest of a line from its first slash on. */
function mapped(maps: string, inside: Inside): string[] {
  for (const line of maps.split('\n')) {
    const from = line.indexOf('/')
    if (from >= 0 && inside(line.slice(from))) return [`mapping: ${text(line.slice(from))}`]
  }
  return []
}

// Processes end while we look, and not all of them are ours: whatever cannot be read counts as empty.
const listed = (path: string): Promise<string[]> => readdir(path).catch(() => [])
const linked = (path: string): Promise<string> => readlink(path, 'latin1').catch(() => '')
const contents = (path: string): Promise<string> => readFile(path, 'latin1').catch(() => '')

/** Bytes that were carried as latin1, for the eye. */
const text = (bytes: string) => Buffer.from(bytes, 'latin1').toString()
