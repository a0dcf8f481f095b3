// Looks whether a mount would work here. Each finding says what was seen, and what to do about it.
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  writeSync,
} from 'node:fs'
import { stat } from 'node:fs/promises'
import { homedir, release } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { sleep } from './base/async.js'
import { formatBytes } from './base/units.js'
import { punchHole } from './linux/files.js'
import { mounts } from './linux/mountinfo.js'
import { Registry, registryPaths } from './registry.js'

/** `bad`: a mount would not work. `warning`: it would, but. */
export type Verdict = 'ok' | 'warning' | 'bad'

export interface Finding {
  check: string
  verdict: Verdict
  /** What was seen. */
  found: string
  /** What to do about it. */
  todo?: string
}

export interface DoctorOptions {
  env?: NodeJS.ProcessEnv
  uid?: number
  /** Looked at instead of the default cache directory. */
  cacheDir?: string
  /** Where /proc, /dev, /etc and /sys are. Default '/'. */
  root?: string
  nodeVersion?: string
  kernelRelease?: string
}

type Check = (at: Required<DoctorOptions>) => Outcome | Outcome[] | Promise<Outcome | Outcome[]>
type Outcome = Omit<Finding, 'check'>

const ok = (found: string): Outcome => ({ verdict: 'ok', found })
const warning = (found: string, todo: string): Outcome => ({ verdict: 'warning', found, todo })
const bad = (found: string, todo: string): Outcome => ({ verdict: 'bad', found, todo })

const codeOf = (error: unknown) => (error as NodeJS.ErrnoException).code ?? String(error)

/** A file's text, or null. */
function textOf(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}

const versionNumber = (text: string) => {
  const [, major, minor] = /^v?(\d+)\.(\d+)/.exec(text) ?? []
  return Number(major) * 1000 + Number(minor)
}

/** FUSE_NOTIFY_RESEND. */
const RESEND_KERNEL = 6_009

/** CAP_SYS_ADMIN, without which mount(2) is refused. */
const SYS_ADMIN = 1n << 21n

const mayMount = ({ uid, root }: Required<DoctorOptions>) => {
  const [, effective] = /^CapEff:\s*([0-9a-f]+)/m.exec(textOf(join(root, 'proc/self/status')) ?? '') ?? []
  return effective ? (BigInt(`0x${effective}`) & SYS_ADMIN) !== 0n : uid === 0
}

const onPath = ({ env }: Required<DoctorOptions>, program: string) =>
  (env.PATH ?? '')
    .split(delimiter)
    .map(folder => join(folder, program))
    .find(existsSync)

/** By statfs(2): where a cache had better not lie. */
const kinds: Record<number, [name: string, todo: string]> = {
  16914836: [
    'tmpfs',
    'it is lost at the next boot, with everything that was not sent: name a directory on a disk with --cache-dir',
  ],
  2240043254: [
    'ramfs',
    'it is lost at the next boot, with everything that was not sent: name a directory on a disk with --cache-dir',
  ],
  26985: ['NFS', 'it is as slow as the network: name a directory on a local disk with --cache-dir'],
  4283649346: ['CIFS', 'it is as slow as the network: name a directory on a local disk with --cache-dir'],
  4266872130: ['SMB', 'it is as slow as the network: name a directory on a local disk with --cache-dir'],
  16914839: ['9P', 'it is as slow as its other side: name a directory on a local disk with --cache-dir'],
  1702057286: ['FUSE', 'another program stands behind it: name a directory on a local disk with --cache-dir'],
}

/** What `nbd attach` makes of a region here. */
function attachBy({ root, kernelRelease }: Required<DoctorOptions>): Outcome {
  if (existsSync(join(root, 'sys/module/nbd'))) return ok("the kernel's NBD client: /dev/nbdN")
  const drivers = join(root, 'lib/modules', kernelRelease, 'kernel/drivers/block')
  if (['nbd.ko', 'nbd.ko.xz', 'nbd.ko.zst', 'nbd.ko.gz'].some(name => existsSync(join(drivers, name))))
    return ok("the kernel's NBD client, which is loaded when it is needed: /dev/nbdN")
  if (existsSync(join(root, 'dev/loop-control'))) return ok('this kernel has no NBD client: a loop device')
  return warning('neither an NBD client nor loop devices', 'nbd serve works; its clients have to be elsewhere')
}

/** What `mapRegion` can do here. (`memory serve` needs nothing: the userfaultfd is its clients'.) */
function memoryBy({ root, uid, kernelRelease }: Required<DoctorOptions>): Outcome {
  const rule = textOf(join(root, 'proc/sys/vm/unprivileged_userfaultfd'))
  if (rule === null)
    return warning('this kernel has no userfaultfd', 'mapRegion needs a kernel with CONFIG_USERFAULTFD; all else works')
  if (uid !== 0 && rule.trim() !== '1' && !canOpen(join(root, 'dev/userfaultfd')))
    return warning(
      'userfaultfd is not for this user',
      'as root: sysctl vm.unprivileged_userfaultfd=1, or chmod 666 /dev/userfaultfd',
    )
  if (versionNumber(`v${kernelRelease}`) < 6_007)
    return warning(
      `userfaultfd of Linux ${kernelRelease}`,
      'mapRegion with writeBack needs Linux 6.7; without, it works',
    )
  return ok('userfaultfd, and writes come back')
}

function canOpen(path: string): boolean {
  try {
    closeSync(openSync(path, 'r+'))
    return true
  } catch {
    return false
  }
}

const FREE_BYTES_MIN = 1024 ** 3
const PAGE = 4096

function cacheDisk({ env, cacheDir }: Required<DoctorOptions>): Outcome[] {
  const wanted = cacheDir || join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'pageferry')
  let place = wanted
  while (!existsSync(place) && place !== dirname(place)) place = dirname(place)
  const findings: Outcome[] = []
  let scratch: string
  try {
    scratch = mkdtempSync(join(place, '.pageferry-doctor-'))
  } catch (error) {
    return [
      bad(
        `${wanted}: nothing can be written in ${place} (${codeOf(error)})`,
        'name another directory with --cache-dir',
      ),
    ]
  }
  try {
    const { type, bavail, bsize } = statfsSync(scratch)
    const [name, todo] = kinds[type] ?? []
    findings.push(name && todo ? warning(`${wanted} is on ${name}`, todo) : ok(`${wanted} is on a local disk`))
    const free = bavail * bsize
    findings.push(
      free < FREE_BYTES_MIN
        ? warning(`${formatBytes(free)} free in ${place}`, 'make room, or name another directory with --cache-dir')
        : ok(`${formatBytes(free)} free in ${place}`),
    )
    findings.push(holes(scratch))
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
  return findings
}

/** Space of evicted chunks is given back by punching holes. */
function holes(folder: string): Outcome {
  const file = join(folder, 'holes')
  const fd = openSync(file, 'w+')
  try {
    writeSync(fd, Buffer.alloc(2 * PAGE, 1))
    punchHole(fd, { at: 0, length: PAGE })
    return ok('holes can be punched there')
  } catch {
    return bad(
      'holes cannot be punched there: evicted bytes would keep their space',
      'use ext4, xfs, btrfs or tmpfs for --cache-dir',
    )
  } finally {
    closeSync(fd)
  }
}

/** How long a mount may take to answer before it counts as silent. */
const ANSWER_MS_MAX = 2000

async function answers(point: string): Promise<string> {
  const asked = stat(point).then(
    () => 'alive',
    error => (codeOf(error) === 'ENOTCONN' || codeOf(error) === 'ECONNABORTED' ? 'dead' : 'alive'),
  )
  return Promise.race([asked, sleep(ANSWER_MS_MAX).then(() => 'silent')])
}

async function leftMounts({ root }: Required<DoctorOptions>): Promise<Outcome[]> {
  if (root !== '/') return []
  const points = mounts()
    .filter(({ type }) => type === 'fuse.pageferry')
    .map(({ point }) => point.toString())
  const outcomes = await Promise.all(
    points.map(async point => {
      const state = await answers(point)
      if (state === 'alive') return []
      if (state === 'dead')
        return [
          warning(
            `the daemon of the mount at ${point} is gone`,
            `pageferry umount ${point}; or mount it again, which does the same`,
          ),
        ]
      return [warning(`the mount at ${point} does not answer`, `look at pageferry status ${point} and at its log`)]
    }),
  )
  return outcomes.flat()
}

function leftJournals({ env }: Required<DoctorOptions>): Outcome[] {
  return new Registry(registryPaths(env))
    .journals()
    .map(({ remote, cacheDir }) =>
      warning(
        `unsent work for ${remote} in ${cacheDir}`,
        `mount ${remote} again with the same --cache-dir, and it is sent`,
      ),
    )
}

const checks: [name: string, check: Check][] = [
  [
    'kernel',
    ({ kernelRelease }) => {
      if (versionNumber(kernelRelease) < 4020)
        return bad(`Linux ${kernelRelease}`, 'Linux 4.20 or newer is needed, 5.10 or newer is better')
      if (versionNumber(kernelRelease) < 5010) return warning(`Linux ${kernelRelease}`, 'Linux 5.10 or newer is tested')
      if (versionNumber(kernelRelease) < RESEND_KERNEL)
        return ok(`Linux ${kernelRelease}; before 6.9 a mount ends with its daemon, should that be killed`)
      return ok(`Linux ${kernelRelease}`)
    },
  ],
  [
    'node',
    ({ nodeVersion }) =>
      versionNumber(nodeVersion) < 20_000
        ? bad(`Node ${nodeVersion}`, 'install Node 20 or newer')
        : ok(`Node ${nodeVersion}`),
  ],
  ['nbd attach', attachBy],
  ['mapRegion', memoryBy],
  [
    '/dev/fuse',
    ({ root }) => {
      const device = join(root, 'dev/fuse')
      try {
        closeSync(openSync(device, 'r+'))
        return ok('can be opened')
      } catch (error) {
        if (codeOf(error) === 'ENOENT')
          return bad('is missing', 'as root: modprobe fuse; for a container: --device /dev/fuse')
        return bad(`cannot be opened (${codeOf(error)})`, 'run as root, or as root: chmod 666 /dev/fuse')
      }
    },
  ],
  [
    'rights',
    at => {
      if (mayMount(at)) return ok(at.uid === 0 ? 'root' : 'CAP_SYS_ADMIN')
      if (at.uid === 0) return bad('root, but without CAP_SYS_ADMIN', 'for a container: --cap-add SYS_ADMIN')
      const helper = onPath(at, 'fusermount3')
      if (!helper) return bad('not root, and no fusermount3', 'as root: apt-get install fuse3')
      const { mode, uid } = statSync(helper)
      if (uid !== 0 || (mode & constants.S_IXUSR) === 0 || (mode & 0o4000) === 0)
        return bad(`${helper} is not set-uid root`, 'as root: apt-get install --reinstall fuse3')
      const others = /^\s*user_allow_other/m.test(textOf(join(at.root, 'etc/fuse.conf')) ?? '')
      return ok(
        `fusermount3 mounts for this user${others ? '' : ' (--allow-other needs user_allow_other in /etc/fuse.conf)'}`,
      )
    },
  ],
  [
    'fusermount3',
    at => {
      const helper = onPath(at, 'fusermount3')
      if (helper) return ok(helper)
      // Judged under `rights` where it is needed.
      return mayMount(at) ? ok('not there, and not needed') : warning('not there', 'as root: apt-get install fuse3')
    },
  ],
  [
    'max_pages_limit',
    ({ root }) => {
      const pages = textOf(join(root, 'proc/sys/fs/fuse/max_pages_limit'))
      if (pages === null) return ok('256 pages, built in')
      if (Number(pages) >= 256) return ok(`${pages.trim()} pages`)
      return warning(
        `${pages.trim()} pages: requests are smaller than 1 MiB`,
        'as root: sysctl fs.fuse.max_pages_limit=256',
      )
    },
  ],
  [
    'thread pool',
    ({ env }) => {
      const threads = env.UV_THREADPOOL_SIZE
      if (threads === undefined) return ok('8 threads, set by mount')
      return Number(threads) >= 4
        ? ok(`${threads} threads`)
        : bad(`UV_THREADPOOL_SIZE=${threads}`, 'unset it, or set 8: with fewer than 4 a mount may wait for itself')
    },
  ],
  ['cache directory', cacheDisk],
  [
    'registry',
    ({ env }) => {
      const { runDir, stateDir } = registryPaths(env)
      const unusable = [runDir, stateDir].find(path => !writable(path))
      return unusable
        ? bad(
            `nothing can be written in ${unusable}`,
            'set XDG_RUNTIME_DIR and XDG_STATE_HOME to directories of this user',
          )
        : ok(runDir)
    },
  ],
  ['mounts', leftMounts],
  ['journals', leftJournals],
]

/** Whether files can be made in a directory, or in the nearest one above it that is there. */
function writable(path: string): boolean {
  while (!existsSync(path) && path !== dirname(path)) path = dirname(path)
  try {
    accessSync(path, constants.W_OK | constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** Everything that was looked at, in order. */
export async function examine(options: DoctorOptions = {}): Promise<Finding[]> {
  const at: Required<DoctorOptions> = {
    env: process.env,
    uid: process.getuid?.() ?? 0,
    cacheDir: '',
    root: '/',
    nodeVersion: process.version,
    kernelRelease: release(),
    ...options,
  }
  const findings: Finding[] = []
  for (const [check, look] of checks) {
    const outcomes = [await look(at)].flat()
    findings.push(...outcomes.map(outcome => ({ check, ...outcome })))
  }
  return findings
}
