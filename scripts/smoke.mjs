// One small real mount, with the Node that runs this: mount, write, read, sync, unmount, compare. Needs `npm run build`.
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const cli = join(dirname(dirname(fileURLToPath(import.meta.url))), 'dist', 'cli.js')
const folder = mkdtempSync(join(tmpdir(), 'pf-smoke-'))
const remote = join(folder, 'remote')
const mountpoint = join(folder, 'mnt')
const env = {
  ...process.env,
  XDG_RUNTIME_DIR: join(folder, 'run'),
  XDG_STATE_HOME: join(folder, 'state'),
  PAGEFERRY_CACHE_DIR: join(folder, 'cache'),
}

/** A program to its end; rejects unless it ends with 0. Programs, not we, touch the mount. */
const run = (program, args, input) =>
  new Promise((done, failed) => {
    const child = spawn(program, args, { env, cwd: folder, timeout: 60_000, stdio: ['pipe', 'pipe', 'inherit'] })
    const parts = []
    child.stdout.on('data', part => parts.push(part))
    child.on('error', failed)
    child.on('close', (code, signal) =>
      code === 0 ? done(Buffer.concat(parts)) : failed(new Error(`${program} ${args.join(' ')}: ${signal ?? code}`)),
    )
    child.stdin.on('error', () => {})
    child.stdin.end(input)
  })
const pageferry = (...args) => run(process.execPath, [cli, ...args])
const mount = () => pageferry('mount', '--daemon', remote, mountpoint)

const same = (what, a, b) => {
  if (!a.equals(b)) throw new Error(`${what}: ${a.length} bytes are not the ${b.length} that were expected`)
}

const isMounted = () =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some(line => line.split(' ')[4] === mountpoint)

async function smoke() {
  for (const path of [remote, mountpoint, env.XDG_RUNTIME_DIR]) mkdirSync(path)
  const old = randomBytes(300_000)
  const fresh = randomBytes(3_000_000)
  writeFileSync(join(remote, 'old'), old)
  await mount()
  same('a file of the remote', await run('cat', [join(mountpoint, 'old')]), old)
  await run('tee', [join(mountpoint, 'new')], fresh)
  same('a file just written', await run('cat', [join(mountpoint, 'new')]), fresh)
  await pageferry('sync', mountpoint)
  same('the remote after sync', readFileSync(join(remote, 'new')), fresh)
  const { lag, remote: counted } = JSON.parse(await pageferry('status', '--json', mountpoint))
  if (lag.operations !== 0 || !counted.reachable) throw new Error(`status says ${JSON.stringify({ lag, counted })}`)
  await pageferry('umount', mountpoint)
  rmSync(env.PAGEFERRY_CACHE_DIR, { recursive: true })
  await mount()
  same('the same from an empty cache', await run('cat', [join(mountpoint, 'new')]), fresh)
  await pageferry('umount', mountpoint)
  if (isMounted()) throw new Error('still mounted')
}

try {
  await smoke()
  console.log(`smoke: passed on Node ${process.version}`)
} catch (error) {
  console.log(`smoke: FAILED on Node ${process.version}: ${error.message}`)
  process.exitCode = 1
} finally {
  if (isMounted()) {
    await pageferry('umount', '--timeout', '0', mountpoint).catch(() => {})
    if (isMounted()) await run('umount', ['-l', mountpoint]).catch(() => {})
  }
  rmSync(folder, { recursive: true, force: true })
}
