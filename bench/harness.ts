// What every benchmark stands on: mounts as child processes of the real command line, peers, fio, and pairs of runs.
import { execFileSync, type StdioOptions, spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
const cli = path.join(root, 'dist/cli.js')

/** Everything lies here: on the disk that holds the caches. Removed at the end. */
export const work = fs.mkdtempSync(path.join(process.env.BENCH_DIR ?? '/var/tmp', 'pageferry-bench-'))
const mounts = new Set<string>()

export const directory = (name: string) => {
  const at = path.join(work, name)
  fs.mkdirSync(at, { recursive: true })
  return at
}

/** A pageferry mount of `remote`. */
export interface Mount {
  at: string
  cacheDir: string
  readyMs: number
  pid: number
  status(): Record<string, never> & { pid: number; remote: { requests: number; bytesRead: number } }
  unmount(): void
  /** As a crash would end it. */
  kill(): void
}

export function mount(
  name: string,
  remote: string,
  options: string[] = [],
  cacheDir = directory(`${name}.cache`),
): Mount {
  const at = directory(`${name}.mount`)
  const started = performance.now()
  const done = spawnSync(
    process.execPath,
    [cli, 'mount', '--daemon', '--cache-dir', cacheDir, ...options, remote, at],
    { encoding: 'utf8' },
  )
  const readyMs = performance.now() - started
  if (done.status !== 0) throw new Error(`mount failed: ${done.stderr}`)
  mounts.add(at)
  const status = () => JSON.parse(execFileSync(process.execPath, [cli, 'status', '--json', at], { encoding: 'utf8' }))
  const pid: number = status().pid
  return {
    at,
    cacheDir,
    readyMs,
    pid,
    status,
    unmount() {
      const left = spawnSync(process.execPath, [cli, 'umount', at], { encoding: 'utf8' })
      if (left.status !== 0) throw new Error(`umount failed: ${left.stderr}`)
      mounts.delete(at)
    },
    kill() {
      process.kill(pid, 'SIGKILL')
      spawnSync('umount', ['-l', at])
      mounts.delete(at)
    },
  }
}

/** libfuse's example in C over a tmpfs: what native code does with the same kernel. */
export function passthrough(): { at: string; unmount(): void } | null {
  const source = '/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c'
  const folder = directory('passthrough')
  const binary = path.join(folder, 'passthrough_ll')
  if (!fs.existsSync(binary)) {
    const build = spawnSync('sh', ['-c', `gcc -O2 -w '${source}' -o '${binary}' $(pkg-config fuse3 --cflags --libs)`], {
      encoding: 'utf8',
    })
    if (build.status !== 0) return null
  }
  const backing = fs.mkdtempSync('/dev/shm/pageferry-bench-')
  const at = directory('passthrough.mount')
  execFileSync(binary, ['-o', `source=${backing},cache=always,writeback`, at])
  mounts.add(at)
  return {
    at,
    unmount() {
      spawnSync('umount', [at])
      mounts.delete(at)
      fs.rmSync(backing, { recursive: true, force: true })
    },
  }
}

export function cleanUp(): void {
  for (const at of mounts) spawnSync('umount', ['-l', at])
  fs.rmSync(work, { recursive: true, force: true })
}

/** Runs a program and gives what it printed; throws with its errors. */
export function run(
  command: string,
  args: string[],
  options: { cwd?: string; input?: string; stdio?: StdioOptions } = {},
): string {
  const done = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 28, ...options })
  if (done.status !== 0) throw new Error(`${command} ${args.join(' ')}: ${done.stderr || done.error}`)
  return done.stdout
}

/** Without blocking this process, which has a memory to watch meanwhile. */
export function runInBackground(command: string, args: string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit'] })
    child.on('exit', code => (code === 0 ? resolve() : reject(new Error(`${command}: exit ${code}`))))
  })
}

/** Of 4 KiB random O_DIRECT reads, what fio says. */
function fioReads(file: string, jobs: number, seconds: number) {
  const report = run('fio', [
    '--name=r',
    `--filename=${file}`,
    '--rw=randread',
    '--bs=4k',
    '--direct=1',
    `--numjobs=${jobs}`,
    `--runtime=${seconds}`,
    '--time_based',
    '--group_reporting',
    '--output-format=json',
    '--allow_file_create=0',
  ])
  return JSON.parse(report.slice(report.indexOf('{'))).jobs[0].read
}

/** Per second. */
export const randomReads = (file: string, jobs: number, seconds: number): number => fioReads(file, jobs, seconds).iops

/** So long one in a thousand takes at least, us; one job. */
export const randomReadSlowest = (file: string, seconds: number): number =>
  fioReads(file, 1, seconds).clat_ns.percentile['99.900000'] / 1000

/** The command line; throws with what it said. */
export const pageferry = (...args: string[]): string => run(process.execPath, [cli, ...args])

/** A Python program's printed JSON. */
export const python = (program: string, ...args: string[]) => JSON.parse(run('python3', ['-c', program, ...args]))

export const dropCaches = () => fs.writeFileSync('/proc/sys/vm/drop_caches', '3')

export const median = (values: number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]

/** Ours and theirs in turn, so that a noisy machine is noisy to both; medians of each and of the ratios pair by pair. */
export function pairs(
  count: number,
  ours: () => number,
  theirs: () => number,
): { ours: number; theirs: number; ratio: number; ratios: number[] } {
  const a: number[] = []
  const b: number[] = []
  for (let n = 0; n < count; n++) {
    if (n % 2) {
      b.push(theirs())
      a.push(ours())
    } else {
      a.push(ours())
      b.push(theirs())
    }
  }
  const ratios = a.map((value, n) => value / b[n])
  return { ours: median(a), theirs: median(b), ratio: median(ratios), ratios }
}

/** Anonymous memory of a process, bytes. */
export function anonymousBytes(pid: number): number {
  const line = /RssAnon:\s+(\d+) kB/.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))
  return Number(line?.[1]) * 1024
}

export const machine = () => ({
  cpu: os.cpus()[0].model,
  cores: os.cpus().length,
  memoryBytes: os.totalmem(),
  kernel: os.release(),
  node: process.version,
  date: new Date().toISOString().slice(0, 10),
})
