// The main job on real files, through the real command line: read a remote directory before it is here, use it as if it were local,
// have everything carried back, and find every byte again from an empty cache. `npm run demo` runs it; it leaves nothing behind.
import { spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { formatBytes, formatDuration } from '../src/base/units.js'
import type { MountStatus } from '../src/mounted-tree.js'

const project = resolve(import.meta.dirname, '..', '..')
const cli = join(project, 'dist', 'cli.js')

const folder = mkdtempSync(join(tmpdir(), 'pageferry-demo-'))
const remote = join(folder, 'remote')
const mountpoint = join(folder, 'mnt')
const cacheDir = join(folder, 'cache')
/** Its own registry: a demo shows itself and nothing else. */
const env: NodeJS.ProcessEnv = {
  ...process.env,
  XDG_RUNTIME_DIR: join(folder, 'run'),
  XDG_STATE_HOME: join(folder, 'state'),
}

const SECONDS = 60
const PROGRAM_MS_MAX = 120_000

/** Programs that are running, to be ended with the demo. */
const running = new Set<number>()

/** A program to its end; what it printed. Only other programs touch the mount: whoever waits for a file need not be us. */
function run(program: string, args: string[], { cwd = folder, input = '' } = {}): Promise<string> {
  return new Promise((done, failed) => {
    const child = spawn(program, args, { cwd, env, stdio: ['pipe', 'pipe', 'pipe'] })
    const { pid } = child
    let stdout = ''
    let stderr = ''
    if (pid !== undefined) running.add(pid)
    const timer = setTimeout(() => child.kill('SIGKILL'), PROGRAM_MS_MAX)
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    child.on('error', error => failed(new Error(`${program} cannot be run: ${error.message}`)))
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      if (pid !== undefined) running.delete(pid)
      if (code === 0) done(stdout)
      else
        failed(
          new Error(
            `${program} ${args.join(' ').slice(0, 80)}: ${stderr.trim().split('\n').pop() || (signal ?? `exit ${code}`)}`,
          ),
        )
    })
    child.stdin.on('error', () => {})
    child.stdin.end(input)
  })
}

const pageferry = (...args: string[]) => run(process.execPath, [cli, ...args])
const status = async (): Promise<MountStatus> => JSON.parse(await pageferry('status', '--json', mountpoint))

// --- the table ---------------------------------------------------------------------------------------------------------

const columns = [36, 8, 12, 12, 9, 9, 12]
const row = (...cells: string[]) =>
  console.log(
    cells
      .map((cell, i) => (i === 0 ? cell.padEnd(columns[i]) : cell.padStart(columns[i])))
      .join('')
      .trimEnd(),
  )

const nothing = { requests: 0, bytesRead: 0, bytesWritten: 0, hits: 0, misses: 0 }
let before = nothing

async function counts() {
  const { remote, reads } = await status()
  const { requests, bytesRead, bytesWritten } = remote
  return { requests, bytesRead, bytesWritten, hits: reads.hits, misses: reads.misses }
}

/** Does one step and prints its row. `mounted`: there is somebody to ask what it cost. */
async function step<T>(name: string, act: () => Promise<T>, { mounted = true } = {}): Promise<T> {
  const startedMs = performance.now()
  let result: T
  try {
    result = await act()
  } catch (error) {
    throw new Error(`${name}: ${error instanceof Error ? error.message : error}`)
  }
  const time = formatDuration(performance.now() - startedMs)
  if (!mounted) {
    before = nothing
    row(name, time)
    return result
  }
  const { lag } = await status()
  const now = await counts()
  const reads = now.hits + now.misses - before.hits - before.misses
  row(
    name,
    time,
    formatBytes(now.bytesRead - before.bytesRead),
    formatBytes(now.bytesWritten - before.bytesWritten),
    String(now.requests - before.requests),
    reads > 0 ? `${Math.round((100 * (now.hits - before.hits)) / reads)}%` : '-',
    lag.bytes > 0 ? formatBytes(lag.bytes) : lag.operations > 0 ? `${lag.operations} changes` : 'none',
  )
  before = now
  return result
}

// --- the files ---------------------------------------------------------------------------------------------------------

const film = join(mountpoint, 'film.mp4')
const database = join(mountpoint, 'notes.db')

async function makeRemote(): Promise<void> {
  for (const path of [remote, mountpoint, join(folder, 'run')]) mkdirSync(path, { mode: 0o700 })
  cpSync(join(project, 'src'), join(remote, 'source'), { recursive: true })
  const rows =
    'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO notes SELECT i, hex(randomblob(40)) FROM n;'
  await run('sqlite3', [join(remote, 'notes.db')], {
    input: `CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT);${rows}`,
  })
  // Its index comes at the end of the file, as ffmpeg writes it: a player reads the head, the tail, then the middle.
  const source = ['-f', 'lavfi', '-i', `testsrc2=size=1280x720:rate=25:duration=${SECONDS}`]
  await run('ffmpeg', ['-v', 'error', ...source, '-c:v', 'mpeg4', '-b:v', '6M', '-y', join(remote, 'film.mp4')])
}

const transactions = (mode: string, first: number) => {
  const one = (i: number) => `BEGIN; INSERT INTO notes VALUES(${first + i}, '${mode} ${i}'); COMMIT;`
  return `PRAGMA journal_mode=${mode}; PRAGMA synchronous=FULL;\n${Array.from({ length: 50 }, (_, i) => one(i)).join('\n')}\n`
}

/** Another process writes into its memory, and nothing else: the kernel carries it to the file. */
const mmapWriter = `
import mmap, os, sys
path = sys.argv[1]
with open(path, 'wb') as file: file.truncate(4 << 20)
with open(path, 'r+b') as file:
    memory = mmap.mmap(file.fileno(), 4 << 20, mmap.MAP_SHARED)
    for at in range(0, 4 << 20, 65536): memory[at:at + 16] = b'page at %08x' % at
    memory.flush()
    memory.close()
`

/** A line per file, with its digest. */
const digests = (path: string) =>
  run('sh', ['-c', 'find . -name .pageferry -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum'], {
    cwd: path,
  })

const mount = () =>
  pageferry('mount', '--daemon', '--simulate', 'rtt=20ms', '--cache-dir', cacheDir, remote, mountpoint)

async function demo(): Promise<void> {
  console.log(`making a remote directory in ${folder}: a source tree, a database, a film`)
  await makeRemote()
  const filmBytes = statSync(join(remote, 'film.mp4')).size
  console.log('pageferry mount --daemon --simulate rtt=20ms: as if it were 20 ms away\n')
  row('step', 'time', 'from remote', 'to remote', 'requests', 'hit rate', 'lag')
  row(...columns.map((width, i) => ' '.repeat(i === 0 ? 0 : 2) + '-'.repeat(width - 2)))

  await step('mount, empty cache', mount)
  await step('list everything', () => run('ls', ['-lR', mountpoint]))
  await step('read the source tree', () => run('grep', ['-rc', 'import', join(mountpoint, 'source')]))
  await step('read it again', () => run('grep', ['-rc', 'export', join(mountpoint, 'source')]))
  const decode = ['-v', 'error', '-ss', String(SECONDS / 2), '-t', '2', '-i', film, '-f', 'null', '-']
  await step(`decode 2 s from the film's middle`, () => run('ffmpeg', decode))
  const filmRead = (await status()).cache.bytes
  await step('50 transactions, SQLite DELETE', () =>
    run('sqlite3', [database], { input: transactions('DELETE', 1_000_000) }),
  )
  await step('50 transactions, SQLite WAL', () => run('sqlite3', [database], { input: transactions('WAL', 2_000_000) }))
  await step('write through a shared mmap', () => run('python3', ['-c', mmapWriter, join(mountpoint, 'shared.bin')]))
  const written = await step('checksums of every file', () => digests(mountpoint))
  await step('sync', () => pageferry('sync', mountpoint))
  await step('umount', () => pageferry('umount', mountpoint), { mounted: false })

  rmSync(cacheDir, { recursive: true })
  await step('mount again, empty cache', mount)
  const found = await step('read every byte', () => digests(mountpoint))
  const check = 'PRAGMA integrity_check; SELECT count(*) FROM notes;'
  const checked = await step('check the database', () => run('sqlite3', [database, check]))
  await step('umount', () => pageferry('umount', mountpoint), { mounted: false })

  const files = written.trim().split('\n').length
  if (found !== written) throw new Error('what came back from an empty cache is not what was written')
  if ((await digests(remote)) !== found) throw new Error('the remote directory is not what the mount showed')
  if (checked !== 'ok\n20100\n') throw new Error(`the database came back as ${checked}`)
  console.log(
    `\nevery byte of ${files} files is the same: as written, as mounted again from an empty cache, and in the remote directory`,
  )
  console.log(
    `(the film has ${formatBytes(filmBytes)}; after decoding from its middle, ${formatBytes(filmRead)} of everything were here)`,
  )
}

const invitation = `
Try it on a directory of your own:

  node dist/cli.js mount --daemon /path/to/a/directory /an/empty/directory
  node dist/cli.js status
  node dist/cli.js umount /an/empty/directory

node dist/cli.js mount --help has the options; node dist/cli.js doctor says whether this machine is ready.`

// --- the end -----------------------------------------------------------------------------------------------------------

const isMounted = () =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some(line => line.split(' ')[4] === mountpoint)

/** Nothing stays: no mount, no daemon, no file; also when something went wrong. */
async function cleanUp(): Promise<void> {
  for (const pid of running) killed(pid)
  const daemons = existsSync(join(folder, 'run', 'pageferry')) ? await daemonPids().catch(() => []) : []
  if (isMounted()) await pageferry('umount', '--timeout', '1s', mountpoint).catch(() => {})
  for (const pid of daemons) killed(pid)
  while (isMounted()) {
    await run('umount', ['-l', mountpoint]).catch(() => run('fusermount3', ['-uz', mountpoint]))
  }
  rmSync(folder, { recursive: true, force: true, maxRetries: 5 })
}

const daemonPids = async () =>
  (JSON.parse(await pageferry('status', '--json')) as { mounts: { pid: number }[] }).mounts.map(({ pid }) => pid)

function killed(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended by itself.
  }
}

let stopped = false
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.on(signal, () => {
    // What runs now is ended, and so the step that waits for it.
    stopped = true
    for (const pid of running) killed(pid)
  })

try {
  await demo()
  console.log(invitation)
} catch (error) {
  console.error(`\ndemo: ${stopped ? 'stopped' : error instanceof Error ? error.message : error}`)
  process.exitCode = 1
} finally {
  await cleanUp()
}
