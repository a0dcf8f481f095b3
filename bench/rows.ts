// One question each: what is measured, beside what, and how much it should be.
import fs from 'node:fs'
import path from 'node:path'
import {
  anonymousBytes,
  directory,
  dropCaches,
  median,
  mount,
  pageferry,
  pairs,
  passthrough,
  python,
  randomReadSlowest,
  randomReads,
  root,
  run,
  runInBackground,
  work,
} from './harness.js'

export interface Result {
  work: string
  beside: string
  ours: string
  theirs: string
  /** The figure that has a target, and whether more is better. */
  figure: number
  target: number
  moreIsBetter: boolean
  unit: string
  spread?: number[]
}

const MiB = 1024 * 1024

/** What is done with many files, here and at `at`. */
function metadataBeside(ours: string, { at, name, target }: { at: string; name: string; target: number }): Result[] {
  const phases = ['create + write 1 KiB + close', 'stat, uncached', 'unlink'] as const
  const figures: { ours: number; theirs: number }[][] = [[], [], []]
  for (let n = 0; n < 3; n++) {
    const a = python(METADATA, ours, '10000') as number[]
    const b = python(METADATA, at, '10000') as number[]
    for (const phase of phases.keys()) figures[phase].push({ ours: a[phase], theirs: b[phase] })
  }
  return phases.map((phase, n) => {
    const ratios = figures[n].map(each => each.ours / each.theirs)
    const pair = {
      ours: median(figures[n].map(each => each.ours)),
      theirs: median(figures[n].map(each => each.theirs)),
      ratio: median(ratios),
      ratios,
    }
    return ratioResult(`10,000 files: ${phase}`, name, '/s', target, pair)
  })
}

export const ratioResult = (
  work: string,
  beside: string,
  unit: string,
  target: number,
  pair: ReturnType<typeof pairs>,
): Result => ({
  work,
  beside,
  ours: `${Math.round(pair.ours).toLocaleString('en')} ${unit}`,
  theirs: `${Math.round(pair.theirs).toLocaleString('en')} ${unit}`,
  figure: pair.ratio,
  target,
  moreIsBetter: true,
  unit: 'ratio',
  spread: pair.ratios,
})

/** Rows by name; `npm run bench -- NAME...` runs some of them. */
export const rows: Record<string, () => Promise<Result[]> | Result[]> = {
  'random-read': () => {
    const remote = directory('random.remote')
    const bytes = 256 * MiB
    fs.writeFileSync(path.join(remote, 'file'), Buffer.alloc(bytes, 7))
    const ours = mount('random', remote)
    const native = passthrough()
    if (!native) return []
    run('dd', [`if=${ours.at}/file`, 'of=/dev/null', 'bs=1M'])
    fs.writeFileSync(path.join(native.at, 'file'), Buffer.alloc(bytes, 7))
    const pair = (jobs: number) =>
      pairs(
        5,
        () => randomReads(path.join(ours.at, 'file'), jobs, 4),
        () => randomReads(path.join(native.at, 'file'), jobs, 4),
      )
    const eight = pair(8)
    const one = pair(1)
    ours.unmount()
    native.unmount()
    const beside = 'libfuse passthrough_ll in C on tmpfs'
    return [
      ratioResult('4 KiB random O_DIRECT reads of cached data, 8 jobs', beside, '/s', 0.9, eight),
      ratioResult('the same, 1 job', beside, '/s', 0.9, one),
    ]
  },

  'complete-reads': async () => {
    const remote = directory('complete.remote')
    const theirs = path.join(remote, 'file')
    run('dd', ['if=/dev/urandom', `of=${theirs}`, 'bs=1M', 'count=1024', 'conv=fsync', 'status=none'])
    fs.utimesSync(theirs, 1e9, 1e9)
    const ours = mount('complete', remote, ['--read-only'])
    const file = path.join(ours.at, 'file')
    run('cat', [file], { stdio: ['ignore', 'ignore', 'inherit'] })
    const isWhole = () => fs.readdirSync(path.join(ours.cacheDir, 'whole')).some(name => /^\d/.test(name))
    while (!isWhole()) await new Promise(resolve => setTimeout(resolve, 100))
    // What was written just now is on its way to the disk.
    run('sync', [])
    const beside = 'the file on the disk itself'
    const random = (jobs: number) =>
      pairs(
        5,
        () => randomReads(file, jobs, 4),
        () => randomReads(theirs, jobs, 4),
      )
    const sequential = (at: string) => {
      const began = performance.now()
      run('dd', [`if=${at}`, 'of=/dev/null', 'bs=1M', 'iflag=direct', 'status=none'])
      return 1024 / ((performance.now() - began) / 1000)
    }
    const results = [
      ratioResult('4 KiB random O_DIRECT reads of a complete file, read-only, 1 job', beside, '/s', 0.85, random(1)),
      ratioResult('4 KiB random O_DIRECT reads of a complete file, read-only, 8 jobs', beside, '/s', 0.85, random(8)),
      ratioResult(
        '1 MiB sequential O_DIRECT reads of it',
        beside,
        'MiB/s',
        0.85,
        pairs(
          5,
          () => sequential(file),
          () => sequential(theirs),
        ),
      ),
    ]
    ours.unmount()
    return results
  },

  'reads-beside-pull': async () => {
    const remote = fs.mkdtempSync('/dev/shm/pageferry-bench-')
    for (const [name, count] of [
      ['small', 64],
      ['large', 3_000],
    ] as const)
      run('dd', ['if=/dev/zero', `of=${remote}/${name}`, 'bs=1M', `count=${count}`, 'status=none'])
    const mem = mount('beside', remote, ['--cache-size', '8G', '--download-limit', '300M'])
    const [small, large] = ['small', 'large'].map(name => path.join(mem.at, name))
    run('cat', [small], { stdio: ['ignore', 'ignore', 'inherit'] })
    const slowest = () => randomReadSlowest(small, 6)
    const rates: number[] = []
    const beside = async () => {
      pageferry('evict', large)
      const pulling = runInBackground(process.execPath, [path.join(root, 'dist/cli.js'), 'pull', large])
      // Not what it costs to start that program.
      await new Promise(resolve => setTimeout(resolve, 1_000))
      const before = mem.status().remote.bytesRead
      const began = performance.now()
      const us = slowest()
      rates.push((mem.status().remote.bytesRead - before) / MiB / ((performance.now() - began) / 1000))
      await pulling
      return us
    }
    const each: [number, number][] = []
    for (let n = 0; n < 5; n++) each.push([await beside(), slowest()])
    mem.unmount()
    fs.rmSync(remote, { recursive: true })
    const ratios = each.map(([with_, without]) => with_ / without)
    const us = (values: number[]) => `${Math.round(median(values))} us`
    return [
      {
        work: `p99.9 of 4 KiB random O_DIRECT reads of cached data, beside a pull of ${Math.round(median(rates))} MiB/s`,
        beside: 'without the pull',
        ours: us(each.map(([one]) => one)),
        theirs: us(each.map(([, one]) => one)),
        ...{ figure: median(ratios), target: 3, moreIsBetter: false, unit: 'ratio', spread: ratios },
      },
    ]
  },

  'sequential-write': () => {
    const remote = directory('write.remote')
    const disk = directory('write.disk')
    const ours = mount('write', remote, ['--dirty-limit', '4G', '--upload-limit', '20M', '--flush-interval', '1h'])
    const write = (folder: string, name: string) => {
      const started = performance.now()
      run('dd', ['if=/dev/zero', `of=${folder}/${name}`, 'bs=1M', 'count=1024', 'conv=fsync'])
      const seconds = (performance.now() - started) / 1000
      fs.rmSync(path.join(folder, name))
      return 1024 / seconds
    }
    const pair = pairs(
      5,
      () => write(ours.at, 'big'),
      () => write(disk, 'big'),
    )
    ours.unmount()
    return [
      ratioResult(
        '1 GiB sequential buffered write + fsync, remote throttled',
        'the disk that holds the cache',
        'MiB/s',
        0.5,
        pair,
      ),
    ]
  },

  'cold-read': () => {
    const remote = directory('cold.remote')
    fs.writeFileSync(path.join(remote, 'file'), Buffer.alloc(512 * MiB, 9))
    const rates: number[] = []
    for (let n = 0; n < 3; n++) {
      const ours = mount(`cold${n}`, remote, ['--simulate', 'rtt=20ms,rate=200M'])
      const started = performance.now()
      run('dd', [`if=${ours.at}/file`, 'of=/dev/null', 'bs=1M'])
      rates.push(512 / ((performance.now() - started) / 1000))
      ours.unmount()
    }
    const rate = median(rates)
    return [
      {
        work: 'cold sequential read, remote at 20 ms and 200 MiB/s',
        beside: 'the bandwidth',
        ours: `${Math.round(rate)} MiB/s`,
        theirs: '200 MiB/s',
        figure: rate / 200,
        target: 0.9,
        moreIsBetter: true,
        unit: 'ratio',
        spread: rates.map(each => each / 200),
      },
    ]
  },

  sqlite: () => {
    const ours = mount('sqlite', directory('sqlite.remote'))
    const disk = directory('sqlite.disk')
    const results: Result[] = []
    for (const [mode, count, target] of [
      ['DELETE', 500, 0.5],
      ['WAL', 3000, 0.7],
    ] as const) {
      const rate = (folder: string) => python(SQLITE, folder, mode, String(count)) as number
      const pair = pairs(
        5,
        () => rate(ours.at),
        () => rate(disk),
      )
      results.push(
        ratioResult(`SQLite one-row transactions, FULL, ${mode}`, 'the disk that holds the cache', '/s', target, pair),
      )
    }
    ours.unmount()
    return results
  },

  metadata: () => {
    const ours = mount('metadata', directory('metadata.remote'))
    const native = passthrough()
    if (!native) return []
    const results = metadataBeside(ours.at, {
      at: native.at,
      name: 'libfuse passthrough_ll in C on tmpfs',
      target: 0.7,
    })
    ours.unmount()
    native.unmount()
    return results
  },

  'fuse-native': () => {
    const remote = directory('drivers.remote')
    run('dd', ['if=/dev/urandom', `of=${remote}/file`, 'bs=1M', 'count=256', 'status=none'])
    const ours = mount('kernel', remote, ['--read-only'])
    const theirs = mount('fuse-native', remote, ['--read-only', '--driver', 'fuse-native'])
    const files = [ours, theirs].map(({ at }) => path.join(at, 'file'))
    for (const file of files) run('cat', [file], { stdio: ['ignore', 'ignore', 'inherit'] })
    const beside = 'the same mount by --driver fuse-native'
    const [random, sequential] = [
      (file: string) => randomReads(file, 1, 3),
      (file: string) => {
        // What the kernel has of the mount's files goes, and the caches' own files are in memory.
        dropCaches()
        for (const { cacheDir } of [ours, theirs]) run('cp', [path.join(cacheDir, 'data'), '/dev/null'])
        const began = performance.now()
        run('dd', [`if=${file}`, 'of=/dev/null', 'bs=1M', 'status=none'])
        return 256 / ((performance.now() - began) / 1000)
      },
    ].map(work =>
      pairs(
        3,
        () => work(files[0]),
        () => work(files[1]),
      ),
    )
    ours.unmount()
    theirs.unmount()
    const written = mount('kernel-written', directory('kernel-written.remote'))
    const other = mount('native-written', directory('native-written.remote'), ['--driver', 'fuse-native'])
    const metadata = metadataBeside(written.at, { at: other.at, name: beside, target: 1 })
    written.unmount()
    other.unmount()
    return [
      ratioResult('4 KiB random O_DIRECT reads of a complete file, 1 job', beside, '/s', 1, random),
      ratioResult('1 MiB sequential reads of it', beside, 'MiB/s', 1, sequential),
      ...metadata,
    ]
  },

  'mount-time': () => {
    const empty: number[] = []
    const full: number[] = []
    const remote = directory('ready.remote')
    const slow = ['--no-hold', '--flush-interval', '1h', '--dirty-limit', '8G']
    const filled = mount('ready-full', remote, slow)
    python(MANY, filled.at, '33000')
    filled.kill()
    for (let n = 0; n < 5; n++) {
      const cacheDir = path.join(work, `ready-copy${n}`)
      run('cp', ['-r', '--sparse=always', filled.cacheDir, cacheDir])
      const again = mount(`ready-again${n}`, remote, [...slow, '--take-over'], cacheDir)
      full.push(again.readyMs)
      again.kill()
      const fresh = mount(`ready-fresh${n}`, directory(`ready-fresh${n}.remote`), slow)
      empty.push(fresh.readyMs)
      fresh.unmount()
    }
    const [e, f] = [median(empty), median(full)]
    return [
      {
        work: '`mount --daemon` until ready, 100,000 unsent operations in the journal',
        beside: 'an empty journal',
        ours: `${Math.round(f)} ms`,
        theirs: `${Math.round(e)} ms`,
        figure: f / e,
        target: 2,
        moreIsBetter: false,
        unit: 'ratio',
        spread: full.map((each, n) => each / empty[n]),
      },
      {
        work: '`mount --daemon` until ready, 100,000 unsent operations in the journal',
        beside: '',
        ours: `${Math.round(f)} ms`,
        theirs: '',
        figure: f,
        target: 1000,
        moreIsBetter: false,
        unit: 'ms',
        spread: full,
      },
    ]
  },

  memory: async () => {
    const remote = directory('memory.remote')
    for (let n = 0; n < 4; n++) fs.writeFileSync(path.join(remote, `read${n}`), Buffer.alloc(512 * MiB, n))
    const ours = mount('memory', remote, ['--memory', '256M', '--cache-size', '4G', '--dirty-limit', '1G'])
    const samples: number[] = []
    const timer = setInterval(() => samples.push(anonymousBytes(ours.pid)), 250)
    const gigabytes = Number(process.env.BENCH_MEMORY_GIB ?? 20)
    for (let n = 0; n < gigabytes / 2; n++) {
      await runInBackground('dd', [
        'if=/dev/zero',
        `of=${ours.at}/write${n % 3}`,
        'bs=1M',
        'count=1024',
        'conv=notrunc',
      ])
      await runInBackground('sh', [
        '-c',
        `dd if=${ours.at}/read${n % 4} of=/dev/null bs=1M; dd if=${ours.at}/read${(n + 1) % 4} of=/dev/null bs=1M`,
      ])
      if (n % 3 === 2) dropCaches()
    }
    clearInterval(timer)
    ours.unmount()
    const quarter = Math.floor(samples.length / 4)
    const peaks = [0, 1, 2, 3].map(n => Math.max(...samples.slice(n * quarter, (n + 1) * quarter)) / MiB)
    const peak = Math.max(...peaks)
    return [
      {
        work: `anonymous memory of the daemon during ${gigabytes} GiB of mixed traffic, --memory 256M`,
        beside: `peaks of its quarters: ${peaks.map(each => Math.round(each)).join(', ')} MiB`,
        ours: `${Math.round(peak)} MiB`,
        theirs: '',
        figure: peak,
        target: 450,
        moreIsBetter: false,
        unit: 'MiB',
        spread: peaks,
      },
    ]
  },

  'sparse-state': () => {
    const remote = directory('sparse.remote')
    const file = path.join(remote, 'big')
    fs.closeSync(fs.openSync(file, 'w'))
    fs.truncateSync(file, 2 ** 40)
    const ours = mount('sparse', remote, ['--prefetch', 'off'])
    python(TOUCH, path.join(ours.at, 'big'), '800')
    const before = anonymousBytes(ours.pid)
    python(TOUCH, path.join(ours.at, 'big'), '83886')
    const after = anonymousBytes(ours.pid)
    ours.unmount()
    const grown = (after - before) / MiB
    return [
      {
        work: 'state in memory for a 1 TiB sparse file, 1% of its chunks touched',
        beside: '',
        ours: `${Math.round(grown)} MiB`,
        theirs: '',
        figure: grown,
        target: 64,
        moreIsBetter: false,
        unit: 'MiB',
      },
    ]
  },
}

const SQLITE = `
import sys, os, time, sqlite3, json
folder, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
file = f'{folder}/{mode}.db'
for end in ('', '-wal', '-shm', '-journal'):
    try: os.unlink(file + end)
    except FileNotFoundError: pass
db = sqlite3.connect(file, isolation_level=None)
db.execute(f'pragma journal_mode={mode}'); db.execute('pragma synchronous=FULL'); db.execute('create table t(a, b)')
start = time.perf_counter()
for n in range(count): db.execute('insert into t values(?, ?)', (n, 'y' * 50))
print(json.dumps(count / (time.perf_counter() - start)))
`

const METADATA = `
import sys, os, time, json, shutil
folder, count = sys.argv[1] + '/many', int(sys.argv[2])
os.mkdir(folder)
rates = []
def timed(work):
    start = time.perf_counter(); work(); rates.append(count / (time.perf_counter() - start))
def create():
    for n in range(count):
        with open(f'{folder}/f{n}', 'wb') as file: file.write(b'x' * 1024)
def stat():
    for n in range(count): os.stat(f'{folder}/f{n}')
def unlink():
    for n in range(count): os.unlink(f'{folder}/f{n}')
timed(create)
open('/proc/sys/vm/drop_caches', 'w').write('2')
timed(stat); timed(unlink)
os.rmdir(folder)
print(json.dumps(rates))
`

const MANY = `
import sys, os, json
folder, count = sys.argv[1], int(sys.argv[2])
for n in range(count):
    if n % 66 == 0: os.mkdir(f'{folder}/d{n // 66}')
    with open(f'{folder}/d{n // 66}/f{n}', 'wb') as file: file.write(b'x' * 500)
print(json.dumps(count))
`

const TOUCH = `
import sys, os, random, json
file, count = sys.argv[1], int(sys.argv[2])
random.seed(7)
fd = os.open(file, os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
for n in range(count): os.pread(fd, 4096, random.randrange(2 ** 23) * 131072)
print(json.dumps(count))
`
