// Regions as block devices: NBD beside the servers that people know, and a region that is far away beside the same one that is near.
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { directory, median, pairs, root, run } from './harness.js'
import type { Result } from './rows.js'

const MiB = 1024 * 1024
const cli = path.join(root, 'dist/cli.js')
const SIZE = 256 * MiB
const SECONDS = 4
const shown = (value: number, unit: string) =>
  `${value >= 100 ? Math.round(value).toLocaleString('en') : Number(value.toPrecision(3))} ${unit}`

interface Server {
  uri: string
  end(): void
}

let count = 0

/** `pageferry nbd serve` of a region, with a cache of its own. */
function pageferry(url: string, options: string[] = []): Server & { readyMs: number } {
  const folder = directory(`nbd${count++}`)
  const socket = path.join(folder, 'socket')
  const uri = `nbd+unix:///?socket=${socket}`
  const args = [
    'nbd',
    'serve',
    '--daemon',
    url,
    '--listen',
    `unix:${socket}`,
    '--cache-dir',
    path.join(folder, 'cache'),
  ]
  const begun = performance.now()
  execFileSync(process.execPath, [cli, ...args, ...options])
  const readyMs = performance.now() - begun
  return {
    uri,
    readyMs,
    end() {
      spawnSync(process.execPath, [cli, 'umount', '--timeout', '1s', uri])
      fs.rmSync(folder, { recursive: true, force: true })
    },
  }
}

function other(program: string, args: (socket: string) => string[]): Server {
  const socket = path.join(directory(`nbd${count++}`), 'socket')
  const child: ChildProcess = spawn(program, args(socket), { stdio: 'ignore' })
  for (let waitedMs = 0; !fs.existsSync(socket); waitedMs += 20) {
    if (waitedMs > 5_000) throw new Error(`${program} does not begin`)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20)
  }
  return { uri: `nbd+unix:///?socket=${socket}`, end: () => child.kill() }
}

const nbdkit = () => other('nbdkit', socket => ['-f', '-U', socket, 'memory', String(SIZE)])

function qemuNbd(): Server {
  const image = fs.mkdtempSync('/dev/shm/pageferry-bench-')
  fs.writeFileSync(path.join(image, 'disk'), Buffer.alloc(SIZE, 7))
  const options = ['-f', 'raw', '-t', '-e', '8', '--cache=writeback']
  const server = other('qemu-nbd', socket => [...options, '-k', socket, path.join(image, 'disk')])
  return {
    uri: server.uri,
    end() {
      server.end()
      fs.rmSync(image, { recursive: true, force: true })
    },
  }
}

interface Load {
  rw: 'randread' | 'read' | 'write' | 'randwrite'
  bytes: number
  depth: number
  jobs?: number
}

/** Requests per second. */
function fio({ uri }: Server, { rw, bytes, depth, jobs = 1 }: Load): number {
  const output = path.join(directory('fio'), 'report.json')
  const sizes = [`--bs=${bytes}`, `--iodepth=${depth}`, `--numjobs=${jobs}`, `--size=${SIZE}`]
  const time = ['--time_based', `--runtime=${SECONDS}`, '--group_reporting']
  const report = ['--output-format=json', `--output=${output}`]
  run('fio', ['--name=x', '--ioengine=nbd', `--uri=${uri}`, `--rw=${rw}`, ...sizes, ...time, ...report])
  const [{ read, write }] = JSON.parse(fs.readFileSync(output, 'utf8')).jobs
  return read.iops + write.iops
}

/** Ours, beside one server and, if it is there, a second one. */
function beside(work: string, load: Load, wanted: [nbdkit: number, qemu?: number]): Result {
  const [ours, kit, qemu] = [pageferry(`mem:?size=${SIZE}`), nbdkit(), wanted[1] ? qemuNbd() : null]
  try {
    const image = path.join(directory('nbd-image'), 'disk')
    fs.writeFileSync(image, Buffer.alloc(SIZE, 7))
    for (const server of [ours, kit]) run('nbdcopy', [image, server.uri])
    // What was written is on its way to the remote; the others have none.
    run(process.execPath, [cli, 'sync', ours.uri])
    const unit = load.bytes < MiB ? '/s' : 'MiB/s'
    const first = pairs(
      5,
      () => fio(ours, load),
      () => fio(kit, load),
    )
    const second =
      qemu &&
      pairs(
        3,
        () => fio(ours, load),
        () => fio(qemu, load),
      )
    const ratio = Math.min(first.ratio / wanted[0], second ? second.ratio / wanted[1]! : Number.POSITIVE_INFINITY)
    return {
      work,
      beside: `wanted: ${wanted[0]} of nbdkit${qemu ? `, ${wanted[1]} of qemu-nbd` : ''}`,
      ours: shown(first.ours, unit),
      theirs: `nbdkit memory ${shown(first.theirs, unit)}${second ? `, qemu-nbd ${shown(second.theirs, unit)}` : ''}`,
      ...{ figure: ratio, target: 1, moreIsBetter: true, unit: 'ratio', spread: first.ratios },
    }
  } finally {
    for (const server of [ours, kit, qemu]) server?.end()
  }
}

/** Seconds for one read of 4 KiB at each of these places, over a connection that is open. */
const READS = `
import nbd, sys, time, json
h = nbd.NBD(); h.connect_uri(sys.argv[1]); took = []
for at in json.loads(sys.argv[2]):
    begun = time.time(); h.pread(4096, at); took.append(time.time() - begun)
print(json.dumps(took))
`
const reads = ({ uri }: Server, places: number[]): number[] =>
  JSON.parse(run('/usr/bin/python3', ['-c', READS, uri, JSON.stringify(places)]))

const image = (bytes: number): string => {
  const file = path.join(directory('nbd-remote'), `disk-${bytes}`)
  if (!fs.existsSync(file)) run('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${bytes / MiB}`, 'status=none'])
  return file
}

export const nbdRows: Record<string, () => Result[]> = {
  'nbd-random': () => [
    beside('NBD, 4 KiB random reads, depth 1', { rw: 'randread', bytes: 4096, depth: 1 }, [0.7, 1]),
    beside('the same, depth 16', { rw: 'randread', bytes: 4096, depth: 16 }, [1.3, 1]),
    beside('the same, depth 16, four connections', { rw: 'randread', bytes: 4096, depth: 16, jobs: 4 }, [1.3, 1]),
  ],

  'nbd-sequential': () => [
    beside('NBD, sequential reads of 1 MiB', { rw: 'read', bytes: MiB, depth: 4 }, [1]),
    beside('NBD, sequential writes of 1 MiB', { rw: 'write', bytes: MiB, depth: 4 }, [1]),
  ],

  'nbd-far': () => {
    const file = image(1024 * MiB)
    const far = pageferry(file, ['--simulate', 'rtt=40ms', '--prefetch', 'off'])
    const took = reads(
      far,
      [1, 3, 5, 7, 9].map(n => n * 64 * MiB),
    )
    const near = pageferry('mem:?size=256M')
    const away = pageferry('mem:other?size=256M', ['--simulate', 'rtt=40ms'])
    const load: Load = { rw: 'randwrite', bytes: 4096, depth: 4 }
    for (const server of [near, away]) reads(server, [0])
    const writes = pairs(
      3,
      () => fio(away, load),
      () => fio(near, load),
    )
    for (const server of [far, near, away]) server.end()
    return [
      {
        work: 'NBD, first byte of a cold region at 40 ms, connection open',
        beside: 'in round trips',
        ours: shown(1000 * median(took), 'ms'),
        theirs: '',
        ...{ figure: median(took) / 0.04, target: 1.2, moreIsBetter: false, unit: 'ratio' },
      },
      {
        work: 'NBD, 4 KiB writes at 40 ms',
        beside: 'the same at 0 ms',
        ours: shown(writes.ours, '/s'),
        theirs: shown(writes.theirs, '/s'),
        ...{ figure: writes.ratio, target: 0.9, moreIsBetter: true, unit: 'ratio', spread: writes.ratios },
      },
    ]
  },

  'nbd-managed': () => {
    const bytes = 1024 * MiB
    const file = image(bytes)
    const rates = [0, 10, 20, 40].map(ms => {
      const simulated = `${ms > 0 ? `rtt=${ms}ms,` : ''}rate=125M`
      const server = pageferry(file, ['--simulate', simulated, '--pull', 'all'])
      const begun = performance.now()
      run('nbdcopy', [server.uri, 'null:'])
      const rate = bytes / MiB / ((performance.now() - begun) / 1000)
      server.end()
      return { ms, rate }
    })
    const [{ rate: nearest }, ...others] = rates
    return others.map(({ ms, rate }) => ({
      work: `NBD, 1 GiB of a region that is pulled meanwhile, ${ms} ms, 1 Gbit/s`,
      beside: 'the same at 0 ms',
      ours: shown(rate, 'MiB/s'),
      theirs: shown(nearest, 'MiB/s'),
      ...{ figure: rate / nearest, target: 0.9, moreIsBetter: true, unit: 'ratio' },
    }))
  },

  'nbd-ready': () => {
    const file = image(1024 * MiB)
    const took = Array.from({ length: 5 }, () => {
      const server = pageferry(file)
      server.end()
      return server.readyMs
    })
    return [
      {
        work: 'from `nbd serve --daemon` to accepting',
        beside: '',
        ours: shown(median(took), 'ms'),
        theirs: '',
        ...{ figure: median(took), target: 500, moreIsBetter: false, unit: 'ms', spread: took },
      },
    ]
  },
}
