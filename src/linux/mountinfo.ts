// What is mounted where, from /proc/self/mountinfo (proc_pid_mountinfo(5)): asking the kernel's list never touches a mount.

import { readFileSync } from 'node:fs'
import type { Device } from './files.js'
import { bytesOf } from './libc.js'

export interface MountInfo extends Device {
  id: number
  /** The mount point as bytes, seen from our root. */
  point: Buffer
  /** Of this mount: ro, nosuid, … */
  options: string[]
  /** With the subtype: fuse.pageferry. */
  type: string
  source: string
}

/** Space, tab, newline and backslash are octal in that file. */
const unescaped = (text: string) =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

/** One line: id parent major:minor root point options tag* - type source super-options. */
function parse(line: string): MountInfo {
  const [head, tail] = line.split(' - ')
  const [id, , device, , point, options] = head.split(' ')
  const [type, source] = tail.split(' ')
  const [major, minor] = device.split(':')
  return {
    id: Number(id),
    major: Number(major),
    minor: Number(minor),
    point: Buffer.from(unescaped(point), 'latin1'),
    options: options.split(','),
    type: unescaped(type),
    source: Buffer.from(unescaped(source), 'latin1').toString(),
  }
}

/** Every mount of our name space, in the order of mounting: of two on one point, the later covers the earlier. */
export const mounts = (): MountInfo[] => readFileSync('/proc/self/mountinfo', 'latin1').trimEnd().split('\n').map(parse)

/** The mount to be seen at exactly this path (absolute, without symlinks), if any. */
export const mountAt = (path: Uint8Array | string): MountInfo | undefined => {
  const wanted = bytesOf(path)
  return mounts().findLast(({ point }) => point.equals(wanted))
}
