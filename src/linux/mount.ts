// Mounting and unmounting FUSE: mount(2) itself when we may, fusermount3 when we may not. Nothing here looks at the mounted tree,
// which our own event loop would have to answer.

import { spawn } from 'node:child_process'
import { closeSync, constants, openSync } from 'node:fs'
import { stat, writeFile } from 'node:fs/promises'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import { receiveDescriptor } from './descriptors.js'
import { checked, checkedAsync, cstring, errno, errnoOf, fcntl, printable, self } from './libc.js'

type MountCall = (
  source: Uint8Array,
  target: Uint8Array,
  type: Uint8Array,
  flags: number,
  data: Uint8Array | null,
) => number
const mountCall = self.func('mount', 'int', ['void *', 'void *', 'void *', 'ulong', 'void *']) as MountCall
const umount2Call = self.func('umount2', 'int', ['void *', 'int']) as (target: Uint8Array, flags: number) => number

const MS_RDONLY = 1
const MS_NOSUID = 2
const MS_NODEV = 4
const MNT_DETACH = 2
const UMOUNT_NOFOLLOW = 8

const SUBTYPE = 'pageferry'

export interface FuseMountOptions {
  /** An existing directory (or file, with `rootMode` S_IFREG), as an absolute path. */
  target: Uint8Array | string
  /** First column of /proc/mounts: the remote, without credentials. */
  source: string
  readOnly?: boolean
  /** Let set-uid bits count (default false). */
  suid?: boolean
  /** Let device files open (default false). */
  dev?: boolean
  /** Other users than ours may enter (unprivileged: needs user_allow_other in /etc/fuse.conf). */
  allowOther?: boolean
  /** The kernel checks permission bits itself (default true). */
  defaultPermissions?: boolean
  /** Largest READ, in bytes. */
  readBytesMax?: number
  /** File type of the root, default S_IFDIR. */
  rootMode?: number
  /** How: by default mount(2), and the helper when that is not permitted. */
  by?: 'mount' | 'fusermount3'
}

export interface FuseMount {
  /** The connection, O_NONBLOCK and close-on-exec: each read is one request, each write one reply. */
  fd: number
  by: 'mount' | 'fusermount3'
}

/**
 * Mounts and returns the connection; the kernel has then sent INIT, which waits there to be read. Falls back to fusermount3
 * when mount(2) is not permitted.
 * @throws NOT_FOUND, NOT_DIRECTORY (the target), NOT_PERMITTED, BUSY (already mounted from the same descriptor), USAGE
 */
export async function mountFuse(options: FuseMountOptions): Promise<FuseMount> {
  const { by } = options
  if (by !== 'fusermount3') {
    try {
      return { fd: await mountDirectly(options), by: 'mount' }
    } catch (error) {
      // Without privileges either opening /dev/fuse or mounting is refused.
      if (by === 'mount' || !isFerryError(error, 'NOT_PERMITTED', 'FORBIDDEN')) throw error
    }
  }
  return { fd: await mountThroughHelper(options), by: 'fusermount3' }
}

/** mount(2) with a /dev/fuse of our own. */
async function mountDirectly(options: FuseMountOptions): Promise<number> {
  const fd = openFuse()
  const { target, source, readOnly, suid, dev, rootMode = constants.S_IFDIR } = options
  const data = [
    `fd=${fd}`,
    `rootmode=${rootMode.toString(8)}`,
    `user_id=${process.getuid?.()}`,
    `group_id=${process.getgid?.()}`,
    ...commonOptions(options),
  ].join(',')
  const flags = (suid ? 0 : MS_NOSUID) | (dev ? 0 : MS_NODEV) | (readOnly ? MS_RDONLY : 0)
  try {
    // On the pool: resolving the path may have to wait for another file system.
    await checkedAsync(
      mountCall,
      [cstring(source), cstring(target), cstring(`fuse.${SUBTYPE}`), flags, cstring(data)],
      'mount',
      printable(target),
    )
    return fd
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function openFuse(): number {
  try {
    return openSync('/dev/fuse', constants.O_RDWR | constants.O_NONBLOCK)
  } catch (error) {
    throw toFerryError(error)
  }
}

const commonOptions = ({ defaultPermissions = true, allowOther, readBytesMax }: FuseMountOptions): string[] => [
  ...(defaultPermissions ? ['default_permissions'] : []),
  ...(allowOther ? ['allow_other'] : []),
  ...(readBytesMax ? [`max_read=${readBytesMax}`] : []),
]

// --- fusermount3: a set-uid helper that mounts for us and sends the connection back over a socket -----------------------

const socketpairCall = self.func('socketpair', 'int', ['int', 'int', 'int', 'void *']) as (
  domain: number,
  type: number,
  protocol: number,
  pair: Int32Array,
) => number

const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_CLOEXEC = 0o2000000
const F_GETFL = 3
const F_SETFL = 4

/** In fusermount3's option list commas separate, and a backslash escapes. */
const escapeOption = (value: string) => value.replace(/[\\,]/g, '\\$&')

async function mountThroughHelper(options: FuseMountOptions): Promise<number> {
  const { target, source, readOnly, suid, dev } = options
  if (suid || dev) throw new FerryError('NOT_PERMITTED', { detail: 'only root may mount with --suid or --dev' })
  const words = [
    readOnly ? 'ro' : 'rw',
    'nosuid',
    'nodev',
    `fsname=${escapeOption(source)}`,
    `subtype=${SUBTYPE}`,
    ...commonOptions(options),
  ]
  const pair = new Int32Array(2)
  checked(socketpairCall(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 'socketpair')
  const [ours, theirs] = pair
  try {
    // spawn() clears close-on-exec for the descriptors it hands down: theirs is 3 over there.
    await helper(['-o', words.join(','), '--', pathText(target)], theirs)
    const fd = receiveDescriptor(ours)
    const flags = checked(fcntl(fd, F_GETFL, 0), 'fcntl')
    checked(fcntl(fd, F_SETFL, flags | constants.O_NONBLOCK), 'fcntl')
    return fd
  } finally {
    closeSync(ours)
    closeSync(theirs)
  }
}

/** Runs fusermount3 to its end; rejects with what it printed. */
function helper(args: string[], socket?: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn('fusermount3', args, {
      stdio: ['ignore', 'ignore', 'pipe', ...(socket === undefined ? [] : [socket])],
      env: { ...process.env, LC_ALL: 'C', ...(socket === undefined ? {} : { _FUSE_COMMFD: '3' }) },
      cwd: '/',
    })
    let printed = ''
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      printed = (printed + text).slice(0, 4096)
    })
    child.on('error', error => reject(toFerryError(error, 'fusermount3 cannot be run: install the package fuse3')))
    child.on('close', code => {
      if (code === 0) return resolve()
      const detail = printed.trim() || `fusermount3 exited with ${code}`
      reject(new FerryError(codeOfHelper(detail), { detail }))
    })
  })
}

/** fusermount3 tells errors by the words of strerror(3) only. */
const codeOfHelper = (printed: string) =>
  /busy/i.test(printed)
    ? 'BUSY'
    : /no such file/i.test(printed)
      ? 'NOT_FOUND'
      : /invalid argument|not found in|not mounted/i.test(printed)
        ? 'INVALID'
        : 'NOT_PERMITTED'

/** spawn() takes strings; a path that is not UTF-8 cannot be passed on. */
function pathText(path: Uint8Array | string): string {
  if (typeof path === 'string') return path
  const text = Buffer.from(path).toString()
  if (Buffer.compare(Buffer.from(text), path) === 0) return text
  throw new FerryError('INVALID', { detail: `fusermount3 cannot be given the path ${text}, which is not UTF-8` })
}

// --- unmounting --------------------------------------------------------------------------------------------------------

/**
 * Unmounts. The kernel may write dirty pages back first, so our loop must be serving meanwhile. `lazy` takes the tree out of sight
 * at once and lets it end when its last user is gone. umount2(2)
 * @throws BUSY (somebody is in it), INVALID (nothing is mounted there), NOT_PERMITTED
 */
export async function unmountFuse(target: Uint8Array | string, { lazy = false } = {}): Promise<void> {
  try {
    const flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)
    await checkedAsync(umount2Call, [cstring(target), flags], 'umount2', printable(target))
  } catch (error) {
    if (!isFerryError(error, 'NOT_PERMITTED')) throw error
    await helper(['-u', ...(lazy ? ['-z'] : []), '--', pathText(target)])
  }
}

const CONNECTIONS = '/sys/fs/fuse/connections'

/**
 * Aborts a connection: every request in flight and to come fails, so nothing hangs on it any longer. The last resort before
 * an unmount. `minor` is the device's, from /proc/self/mountinfo.
 * @throws NOT_FOUND (no such connection), NOT_PERMITTED
 */
export async function abortFuse(minor: number): Promise<void> {
  try {
    if (!(await exists(`${CONNECTIONS}/${minor}`))) {
      // Not mounted everywhere; this is where it belongs. BUSY: somebody was faster.
      await checkedAsync(
        mountCall,
        [cstring('fusectl'), cstring(CONNECTIONS), cstring('fusectl'), 0, null],
        'mount',
        'fusectl',
      ).catch(error => {
        if (errnoOf(error) !== errno.EBUSY) throw error
      })
    }
    await writeFile(`${CONNECTIONS}/${minor}/abort`, '1')
  } catch (error) {
    throw toFerryError(error)
  }
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  )
