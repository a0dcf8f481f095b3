// Gets a checkout ready for `demo`, `test` or `bench`: npm packages, Debian packages, the build. Plain Node, nothing to install first.
//
//   node scripts/setup.mjs demo|test|bench|build
//
// What is there already is left alone, so a second run takes a moment.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const goal = process.argv[2]
const goals = ['demo', 'test', 'bench', 'build']

const say = line => process.stderr.write(`setup: ${line}\n`)
const fail = line => {
  say(line)
  process.exit(1)
}

/** A module of Debian's python, which need not be the one of the PATH. */
const debianPython = module => spawnSync('/usr/bin/python3', ['-c', `import ${module}`]).status === 0

/** Debian package -> how one sees that it is there, and which goals want it. */
const debian = [
  { name: 'fuse3', has: () => program('fusermount3'), goals: ['demo', 'test', 'bench'] },
  { name: 'sqlite3', has: () => program('sqlite3'), goals: ['demo', 'test', 'bench'] },
  { name: 'ffmpeg', has: () => program('ffmpeg') && program('ffprobe'), goals: ['demo', 'test', 'bench'] },
  { name: 'python3', has: () => program('python3'), goals: ['demo', 'test', 'bench'] },
  { name: 'fio', has: () => program('fio'), goals: ['test', 'bench'] },
  { name: 'gcc', has: () => program('gcc') && program('cc'), goals: ['test', 'bench'] },
  { name: 'make', has: () => program('make'), goals: ['test'] },
  { name: 'libc6-dev', has: () => existsSync('/usr/include/stdio.h'), goals: ['test', 'bench'] },
  { name: 'libfuse3-dev', has: () => existsSync('/usr/include/fuse3/fuse_lowlevel.h'), goals: ['test', 'bench'] },
  { name: 'pkg-config', has: () => program('pkg-config'), goals: ['test', 'bench'] },
  // A real S3 server: Ceph's RADOS gateway.
  { name: 'radosgw', has: () => program('radosgw'), goals: ['test', 'bench'] },
  { name: 'ceph-mon', has: () => program('ceph-mon') && program('monmaptool'), goals: ['test', 'bench'] },
  { name: 'ceph-osd', has: () => program('ceph-osd'), goals: ['test', 'bench'] },
  { name: 'ceph-common', has: () => program('ceph') && program('radosgw-admin'), goals: ['test', 'bench'] },
  { name: 'redis-server', has: () => program('redis-server'), goals: ['test', 'bench'] },
  { name: 'nbd-server', has: () => program('nbd-server'), goals: ['test'] },
  { name: 'openssl', has: () => program('openssl'), goals: ['test'] },
  // Other tools that use buckets. An `aws` that is there already will do.
  { name: 'awscli', has: () => program('aws'), goals: ['test'] },
  { name: 'rclone', has: () => program('rclone'), goals: ['test', 'bench'] },
  { name: 's3fs', has: () => program('s3fs'), goals: ['test', 'bench'] },
  { name: 'sshfs', has: () => program('sshfs') && program('ssh-keygen'), goals: ['bench'] },
  { name: 'openssh-server', has: () => system('sshd'), goals: ['bench'] },
  // A guest whose kernel has an NBD client.
  { name: 'qemu-system-x86', has: () => program('qemu-system-x86_64'), goals: ['test'] },
  { name: 'busybox-static', has: () => program('busybox'), goals: ['test'] },
  { name: 'nbd-client', has: () => program('nbd-client'), goals: ['test'] },
  { name: 'cpio', has: () => program('cpio'), goals: ['test'] },
  { name: 'kmod', has: () => program('depmod'), goals: ['test'] },
  { name: 'xz-utils', has: () => program('xz'), goals: ['test'] },
  // gRPC of others.
  { name: 'python3-grpcio', has: () => debianPython('grpc'), goals: ['test'] },
  { name: 'python3-grpc-tools', has: () => debianPython('grpc_tools'), goals: ['test'] },
  // NBD clients and servers of others.
  { name: 'libnbd-bin', has: () => program('nbdinfo') && program('nbdcopy'), goals: ['test', 'bench'] },
  { name: 'python3-libnbd', has: () => program('nbdsh'), goals: ['test', 'bench'] },
  { name: 'nbdkit', has: () => program('nbdkit'), goals: ['test', 'bench'] },
  {
    name: 'qemu-utils',
    has: () => program('qemu-img') && program('qemu-io') && program('qemu-nbd'),
    goals: ['test', 'bench'],
  },
  { name: 'openssl', has: () => program('openssl'), goals: ['test'] },
  // A browser that plays films.
  { name: 'chromium', has: () => program('chromium'), goals: ['test'] },
  { name: 'git', has: () => program('git'), goals: ['test'] },
  { name: 'rsync', has: () => program('rsync'), goals: ['test'] },
  { name: 'attr', has: () => program('getfattr'), goals: ['test'] },
  { name: 'acl', has: () => program('getfacl'), goals: ['test'] },
  { name: 'e2fsprogs', has: () => system('mkfs.ext4') && system('e2fsck'), goals: ['test'] },
  { name: 'procps', has: () => program('ps'), goals: ['test'] },
  { name: 'util-linux', has: () => program('fallocate') && program('mount'), goals: ['test'] },
]

/** Of those that only root has on the path. */
function system(name) {
  return program(name) || existsSync(`/usr/sbin/${name}`) || existsSync(`/sbin/${name}`)
}

function program(name) {
  return (process.env.PATH ?? '').split(delimiter).some(folder => folder && existsSync(join(folder, name)))
}

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'], ...options }).status ?? 1
}

const modified = path => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

/** npm's packages, exactly as the lock file says. */
function npmPackages() {
  const lock = join(root, 'package-lock.json')
  const installed = join(root, 'node_modules', '.package-lock.json')
  const stamp = join(root, 'node_modules', '.pageferry-lock')
  // A checkout touches the lock file without changing it, so its digest decides where a run of ours left one.
  const digest = createHash('sha256').update(readFileSync(lock)).digest('hex')
  const fresh = existsSync(stamp) ? readFileSync(stamp, 'utf8') === digest : modified(installed) >= modified(lock)
  if (existsSync(installed) && fresh) return
  say('installing npm packages (npm ci)')
  // Without install scripts: every native package of ours carries its binaries, and npm 11 would only warn about each script.
  const args = ['ci', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error']
  if (run('npm', args) !== 0) fail('npm ci failed; its output is above')
  writeFileSync(stamp, digest)
}

/** Programs from Debian; false when some are missing and cannot be installed from here. */
function debianPackages() {
  const missing = debian.filter(each => each.goals.includes(goal) && !each.has()).map(each => each.name)
  if (missing.length === 0) return true
  const line = `apt-get install -y --no-install-recommends ${missing.join(' ')}`
  if (!program('apt-get')) {
    say(`missing programs; on Debian they come from: ${line}`)
    return false
  }
  if (process.getuid() !== 0) {
    say(`missing Debian packages; as root, run: apt-get update && ${line}`)
    return false
  }
  say(`installing Debian packages: ${missing.join(' ')}`)
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  // Quiet unless it fails: then what apt said is all that helps.
  for (const args of [
    ['-qq', 'update'],
    ['-qq', '-o', 'Dpkg::Use-Pty=0', ...line.split(' ').slice(1)],
  ]) {
    const done = spawnSync('apt-get', args, { env, stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' })
    if (done.status === 0 || args.includes('update')) continue
    process.stderr.write(`${done.stdout}${done.stderr}`)
    return false
  }
  return true
}

/** Debian's kernel for virtual machines, unpacked where the tests find it: it is not installed. */
function guestKernel() {
  const folder = join(root, 'node_modules', '.cache', 'guest-kernel')
  if (process.arch !== 'x64' || existsSync(join(folder, 'boot')) || !program('apt-get')) return
  say("unpacking a kernel of Debian's for the tests in a guest")
  mkdirSync(folder, { recursive: true })
  const script = `
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    apt-get -qq download "$package"
    dpkg -x "$package"_*.deb .
    rm "$package"_*.deb
    [ -d lib ] || ln -s usr/lib lib
    PATH="$PATH:/usr/sbin:/sbin" depmod -b . "$(ls lib/modules)"`
  const done = spawnSync('sh', ['-ec', script], { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' })
  if (done.status === 0) return
  rmSync(folder, { recursive: true, force: true })
  say(`no kernel for the tests in a guest, which are skipped: ${done.stderr.trim().split('\n').at(-1)}`)
}

/** The newest change below a path, in ms. */
function newest(path) {
  const entry = statSync(path, { throwIfNoEntry: false })
  if (!entry) return 0
  if (!entry.isDirectory()) return entry.mtimeMs
  return readdirSync(path).reduce((latest, name) => Math.max(latest, newest(join(path, name))), entry.mtimeMs)
}

function build() {
  const stamp = join(root, 'dist', '.built')
  const sources = ['cli.ts', 'src', 'bench', 'demo', 'examples', 'package.json', 'tsconfig.json', 'tsconfig.build.json']
  const changed = Math.max(
    ...sources.map(name => newest(join(root, name))),
    modified(join(root, 'node_modules', '.package-lock.json')),
  )
  if (existsSync(join(root, 'dist', 'cli.js')) && modified(stamp) >= changed) return
  const started = new Date()
  say('building')
  if (run(process.execPath, [join('node_modules', 'typescript', 'bin', 'tsc'), '-p', 'tsconfig.build.json']) !== 0)
    fail('the build failed; the compiler says why above')
  writeFileSync(stamp, '')
  // What was edited while the compiler ran is newer than the build.
  utimesSync(stamp, started, started)
}

if (!goals.includes(goal)) fail(`usage: node scripts/setup.mjs ${goals.join('|')}`)
if (process.platform !== 'linux') fail(`pageferry needs Linux; this is ${process.platform}`)
if (Number(process.versions.node.split('.')[0]) < 20) fail(`Node 20 or newer is needed; this is ${process.version}`)
npmPackages()
if (goal !== 'build' && !debianPackages() && goal === 'demo') process.exit(1)
if (goal === 'test') guestKernel()
build()
