// Buckets: what is measured, beside whom, through which line. Smaller for a try: S3_BENCH_SCALE=0.1.
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { directory, python, run } from './harness.js'
import type { Result } from './rows.js'
import {
  type Contestant,
  each,
  empty,
  pageferry,
  parallelGets,
  put,
  putFile,
  SCALE,
  seconds,
  type World,
  world,
} from './s3-world.js'

const MiB = 1024 * 1024
const sized = (bytes: number) => Math.max(16 * MiB, Math.round((bytes * SCALE) / MiB) * MiB)
const counted = (count: number) => Math.max(20, Math.round(count * SCALE))
const file = ({ at }: Contestant, name: string) => path.join(at, name)
const shown = (value: number, unit: string) =>
  `${value >= 100 ? Math.round(value).toLocaleString('en') : Number(value.toPrecision(3))} ${unit}`
const listed = (figures: Partial<Record<Contestant['name'] | 'plain GETs', number>>, unit: string) =>
  Object.entries(figures)
    .filter(([name, value]) => name !== 'pageferry' && !Number.isNaN(value))
    .map(([name, value]) => `${name} ${shown(value, unit)}`)
    .join(', ')

/** One world for all rows, made when the first one needs it. */
let all: Promise<World> | undefined
const here = () => (all ??= world())
export const closeWorld = async (): Promise<void> => {
  if (all) (await all).close()
  all = undefined
}

/** How many times as good as each of them: the smallest of ours / (wanted * theirs), more is better. */
const lead = (ours: number, theirs: [figure: number, wanted: number][]) =>
  Math.min(...theirs.filter(([figure]) => !Number.isNaN(figure)).map(([figure, wanted]) => ours / figure / wanted))

async function sequential(delayMs: number, times: number): Promise<Result[]> {
  const one = await here()
  const bytes = sized(1024 * MiB)
  await put(one, 'sequential/file', bytes)
  await one.line({ delayMs: delayMs / 2 })
  const read = (contestant: Contestant) =>
    seconds(() => run('dd', [`if=${file(contestant, 'file')}`, 'of=/dev/null', 'bs=1M']))
  const took = await each(one, 'sequential', read)
  const gets = Math.min(parallelGets(one, 'sequential/file', 8), parallelGets(one, 'sequential/file', 16))
  await one.line({})
  const rate = (secs: number) => bytes / MiB / secs
  const [ours, best, plain] = [rate(took.pageferry), rate(Math.min(took.rclone, took.s3fs)), rate(gets)]
  const rates = { rclone: rate(took.rclone), s3fs: rate(took.s3fs), 'plain GETs': plain }
  return [
    {
      work: `sequential cold read of ${bytes / MiB} MiB from a bucket, ${delayMs} ms`,
      beside: `wanted: ${times}x the better mount, or 0.9 of the GETs`,
      ours: shown(ours, 'MiB/s'),
      theirs: listed(rates, 'MiB/s'),
      figure: ours / Math.min(times * best, 0.9 * plain),
      target: 1,
      moreIsBetter: true,
      unit: 'ratio',
    },
  ]
}

const RANDOM_READERS = `
import sys, os, time, random, threading, json
folder, size = sys.argv[1], int(sys.argv[2])
random.seed(7)
work = [(n % 4, random.randrange(0, size - 65536) & ~65535) for n in range(64)]
lock = threading.Lock()
def reader():
    while True:
        with lock:
            if not work: return
            which, at = work.pop()
        fd = os.open(f'{folder}/{which}', os.O_RDONLY)
        if len(os.pread(fd, 65536, at)) != 65536: os._exit(1)
        os.close(fd)
started = time.time()
threads = [threading.Thread(target=reader) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(time.time() - started))
`

const ONE_ROW = `
import sys, sqlite3, time, json
path, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, isolation_level=None, timeout=60)
db.execute(f'pragma journal_mode={mode}').fetchone()
db.execute('pragma synchronous=full')
db.execute('create table if not exists t (id integer primary key, v text)')
started = time.time()
for n in range(count): db.execute('insert into t (v) values (?)', ('x' * 100,))
print(json.dumps(count / (time.time() - started)))
db.close()
`

const SMALL_FILES = `
import sys, os, time, json
folder, count, sync = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'sync'
started = time.time()
for n in range(count):
    if n % 100 == 0: os.mkdir(f'{folder}/{n // 100}')
    with open(f'{folder}/{n // 100}/{n}', 'wb') as f: f.write(b'%d\\n' % n * 100)
if sync:
    fd = os.open(f'{folder}/last', os.O_CREAT | os.O_WRONLY); os.write(fd, b'x'); os.fsync(fd); os.close(fd)
print(json.dumps(time.time() - started))
`

const BIG_DATABASE = `
import sys, sqlite3, os
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('pragma journal_mode=off'); db.execute('pragma synchronous=off')
db.execute('create table t (id integer primary key, name text, v blob)')
db.execute('begin')
count = int(sys.argv[2]) // 1000
db.executemany('insert into t (name, v) values (?, ?)', ((f'name {n * 7919 % count}', os.urandom(920)) for n in range(count)))
db.execute('create index names on t (name)'); db.execute('commit'); db.close()
`
const POINT_QUERY = `
import sys, sqlite3, time, json
started = time.time()
db = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True)
row = db.execute('select id, length(v) from t where name = ?', ('name 4242',)).fetchone()
assert row[1] == 920
print(json.dumps(time.time() - started))
`

/** Until the bucket has the change, and how many bytes were sent for it. */
async function changed(one: World, contestant: Contestant, bytes: number): Promise<[seconds: number, sent: number]> {
  const at = Math.floor(bytes / 2)
  const before = (await one.counters()).upBytes
  const took = await seconds(async () => {
    python(
      `import sys, os, json
fd = os.open(sys.argv[1], os.O_WRONLY); os.pwrite(fd, b'Z' * 4096, int(sys.argv[2])); os.close(fd); print(json.dumps(1))`,
      file(contestant, 'file'),
      String(at),
    )
    contestant.sync?.()
    for (;;) {
      const range = { Bucket: one.bucket, Key: 'change/file', Range: `bytes=${at}-${at + 4095}` }
      const { Body } = await one.s3.getObject(range)
      if (Buffer.from(await Body!.transformToByteArray()).equals(Buffer.alloc(4096, 'Z'))) return
      await sleep(20)
    }
  })
  return [took, (await one.counters()).upBytes - before]
}

/** A file that has just been read becomes another one, until the bucket has it. */
async function copied(one: World, contestant: Contestant, bytes: number): Promise<[seconds: number, sent: number]> {
  run('dd', [`if=${file(contestant, 'file')}`, 'of=/dev/null', 'bs=1M'])
  const before = (await one.counters()).upBytes
  const took = await seconds(async () => {
    run('cp', [file(contestant, 'file'), file(contestant, 'copy')])
    contestant.sync?.()
    for (;;) {
      const head = await one.s3.headObject({ Bucket: one.bucket, Key: 'copy/copy' }).catch(() => null)
      if (head?.ContentLength === bytes) return
      await sleep(20)
    }
  })
  return [took, (await one.counters()).upBytes - before]
}

type Figures = Record<Contestant['name'], number>
type Sending = (one: World, contestant: Contestant, bytes: number) => Promise<[seconds: number, sent: number]>

/** Each of them has a fresh file of so many bytes before it. */
async function sending(
  one: World,
  { prefix, bytes, work }: { prefix: string; bytes: number; work: Sending },
): Promise<{ took: Figures; sent: Figures }> {
  const sent = { pageferry: 0, rclone: 0, s3fs: 0 }
  const took = { ...sent }
  for (const name of ['pageferry', 'rclone', 's3fs'] as const) {
    await put(one, `${prefix}/file`, bytes)
    await one.s3.deleteObject({ Bucket: one.bucket, Key: `${prefix}/copy` })
    const measured = async (contestant: Contestant) => {
      const [secs, up] = await work(one, contestant, bytes)
      took[name] = secs
      sent[name] = up
      return secs
    }
    await each(one, prefix, measured, [name])
  }
  return { took, sent }
}

const lessRow = (
  work: string,
  {
    figures,
    beside,
    unit,
    wanted,
  }: { figures: Figures; beside: string; unit: string; wanted: Omit<Figures, 'pageferry'> },
): Result => ({
  ...{ work, beside, ours: shown(figures.pageferry, unit), theirs: listed(figures, unit) },
  figure: lead(1 / figures.pageferry, [
    [1 / figures.rclone, wanted.rclone],
    [1 / figures.s3fs, wanted.s3fs],
  ]),
  ...{ target: 1, moreIsBetter: true, unit: 'ratio' },
})

const tookRow = (work: string, took: Figures): Result =>
  lessRow(work, { figures: took, beside: '', unit: 's', wanted: { rclone: 1, s3fs: 1 } })

function sentRow(work: string, beside: string, sent: Figures, wanted: Omit<Figures, 'pageferry'>): Result {
  const { pageferry, rclone, s3fs } = sent
  const figures = { pageferry: pageferry / MiB, rclone: rclone / MiB, s3fs: s3fs / MiB }
  return lessRow(work, { figures, beside, unit: 'MiB', wanted })
}

async function movie(one: World): Promise<{ key: string; bytes: number; seconds: number }> {
  const made = path.join(directory('movie'), 'film.mp4')
  const frames = counted(2000)
  const source = ['-f', 'lavfi', '-i', `testsrc2=s=640x360:r=25,noise=alls=40:allf=t`, '-frames:v', String(frames)]
  run('ffmpeg', ['-v', 'error', '-y', ...source, '-c:v', 'mjpeg', '-q:v', '3', '-pix_fmt', 'yuvj420p', made])
  await putFile(one, 'movie/film.mp4', made)
  const { size: bytes } = fs.statSync(made)
  fs.rmSync(made)
  return { key: 'movie/film.mp4', bytes, seconds: frames / 25 }
}

const frameAt = (contestant: Contestant, second: number) =>
  run('ffmpeg', [
    '-v',
    'error',
    '-ss',
    String(second),
    '-i',
    file(contestant, 'film.mp4'),
    '-frames:v',
    '1',
    '-f',
    'null',
    '-',
  ])

const measured: Record<string, () => Promise<Result[]>> = {
  's3-sequential-far': () => sequential(20, 3),
  's3-sequential-near': () => sequential(0, 1),

  's3-random': async () => {
    const one = await here()
    const bytes = sized(256 * MiB)
    for (let n = 0; n < 4; n++) await put(one, `random/${n}`, bytes)
    await one.line({ delayMs: 10 })
    const took = await each(one, 'random', ({ at }) => python(RANDOM_READERS, at, String(bytes)))
    await one.line({})
    return [
      {
        work: '64 cold reads of 64 KiB at random, 4 files, 8 readers, 20 ms',
        beside: 'wanted: 2x the better mount',
        ours: shown(took.pageferry, 's'),
        theirs: listed(took, 's'),
        figure: lead(1 / took.pageferry, [
          [1 / took.rclone, 1],
          [1 / took.s3fs, 1],
        ]),
        target: 2,
        moreIsBetter: true,
        unit: 'ratio',
      },
    ]
  },

  's3-change': async () => {
    const one = await here()
    const bytes = sized(1024 * MiB)
    const { took, sent } = await sending(one, { prefix: 'change', bytes, work: changed })
    return [
      sentRow(
        `4 KiB changed in ${bytes / MiB} MiB, until the bucket has it: bytes sent`,
        'wanted: a tenth of rclone’s, no more than s3fs’s',
        sent,
        { rclone: 10, s3fs: 1 },
      ),
      tookRow('the same: time', took),
    ]
  },

  's3-copy': async () => {
    const one = await here()
    const bytes = sized(256 * MiB)
    await one.line({ upPerSecond: 200e6 / 8 })
    const { took, sent } = await sending(one, { prefix: 'copy', bytes, work: copied })
    await one.line({})
    return [
      tookRow(`cp of ${bytes / MiB} MiB that were read before, until the bucket has it, 200 Mbit/s up: time`, took),
      sentRow('the same: bytes sent', '', sent, { rclone: 1, s3fs: 1 }),
    ]
  },

  's3-sqlite': async () => {
    const one = await here()
    const results: Result[] = []
    await one.line({ delayMs: 10 })
    for (const mode of ['WAL', 'DELETE']) {
      const count = { pageferry: counted(1000), rclone: counted(300), s3fs: 10 }
      const rates = await each(one, `sqlite-${mode}`, contestant =>
        python(ONE_ROW, file(contestant, 'db'), mode, String(count[contestant.name])),
      )
      results.push({
        work: `SQLite one-row transactions in a bucket at 20 ms, ${mode}`,
        beside: 'wanted: 2x rclone, 10x s3fs',
        ours: shown(rates.pageferry, '/s'),
        theirs: listed(rates, '/s'),
        figure: lead(rates.pageferry, [
          [rates.rclone, 2],
          [rates.s3fs, 10],
        ]),
        target: 1,
        moreIsBetter: true,
        unit: 'ratio',
      })
    }
    await one.line({})
    return results
  },

  's3-movie': async () => {
    const one = await here()
    const { key, bytes, seconds: length } = await movie(one)
    const wide = { delayMs: 20, downPerSecond: 50e6 / 8, upPerSecond: 50e6 / 8 }
    await one.line(wide)
    const fetched: Record<string, number> = {}
    const seeks: Record<string, number> = {}
    const starts = await each(one, 'movie', async contestant => {
      run('ffmpeg', ['-version'])
      const before = (await one.counters()).downBytes
      const first = await seconds(() => frameAt(contestant, 0))
      fetched[contestant.name] = (await one.counters()).downBytes - before
      seeks[contestant.name] = await seconds(() => {
        for (const part of [0.5, 0.2, 0.8, 0.35, 0.65]) frameAt(contestant, part * length)
      })
      return first
    })
    const whole = parallelGets(one, key, 4)
    await one.line({})
    return [
      {
        work: `MP4 of ${Math.round(bytes / MiB)} MiB, index at its end, 40 ms, 50 Mbit/s: first frame`,
        beside: 'wanted: 2x faster than the fastest',
        ours: shown(starts.pageferry, 's'),
        theirs: `${listed(starts, 's')}, whole download ${shown(whole, 's')}`,
        figure: lead(1 / starts.pageferry, [
          [1 / starts.rclone, 1],
          [1 / starts.s3fs, 1],
          [1 / whole, 1],
        ]),
        target: 2,
        moreIsBetter: true,
        unit: 'ratio',
      },
      {
        work: 'the same: of its bytes, fetched before the first frame',
        beside: '',
        ours: shown((100 * fetched.pageferry) / bytes, '%'),
        theirs: listed({ rclone: (100 * fetched.rclone) / bytes, s3fs: (100 * fetched.s3fs) / bytes }, '%'),
        figure: (100 * fetched.pageferry) / bytes,
        target: 5,
        moreIsBetter: false,
        unit: '%',
      },
      {
        work: 'the same: five seeks',
        beside: 'wanted: 2x faster than the fastest',
        ours: shown(seeks.pageferry, 's'),
        theirs: listed(seeks, 's'),
        figure: lead(1 / seeks.pageferry, [
          [1 / seeks.rclone, 1],
          [1 / seeks.s3fs, 1],
        ]),
        target: 2,
        moreIsBetter: true,
        unit: 'ratio',
      },
    ]
  },

  's3-recorded': async () => {
    const one = await here()
    await movie(one)
    await one.line({ delayMs: 20, downPerSecond: 50e6 / 8, upPerSecond: 50e6 / 8 })
    const profile = path.join(directory('profile'), 'profile')
    const start = async (options: string[]) => {
      const ours = pageferry(one, 'movie', options)
      await sleep(1_000)
      run('ffmpeg', ['-version'])
      const took = await seconds(() => frameAt(ours, 0))
      ours.unmount()
      return took
    }
    await start(['--record', profile])
    const without = await start([])
    const took = await start(['--prefetch', profile])
    await one.line({})
    return [
      {
        work: 'the same: first frame, a second after the mount, with a profile that was recorded before',
        beside: 'without one',
        ours: shown(took, 's'),
        theirs: shown(without, 's'),
        figure: without / took,
        target: 1,
        moreIsBetter: true,
        unit: 'ratio',
      },
    ]
  },

  's3-small-files': async () => {
    const one = await here()
    const count = counted(5000)
    const present = async (prefix: string) => {
      let found = 0
      for (let token: string | undefined; ; ) {
        const list = { Bucket: one.bucket, Prefix: `${prefix}/`, ContinuationToken: token }
        const { Contents = [], NextContinuationToken } = await one.s3.listObjectsV2(list)
        found += Contents.filter(({ Key }) => /\/\d+\/\d+$/.test(Key!)).length
        token = NextContinuationToken
        if (!token) return found
      }
    }
    const placed = await each(one, 'small', contestant =>
      seconds(async () => {
        const folder = path.join(contestant.at, contestant.name)
        fs.mkdirSync(folder)
        python(SMALL_FILES, folder, String(count), 'no')
        contestant.sync?.()
        while ((await present(`small/${contestant.name}`)) < count) await sleep(50)
      }),
    )
    const ours = pageferry(one, 'committed', ['--fsync', 'remote'])
    const committed: number = python(SMALL_FILES, ours.at, String(count), 'sync')
    ours.unmount()
    const row = (work: string, figure: number, [rclone, s3fs]: [number, number]): Result => ({
      work: `${count} small files copied into a bucket, ${work}`,
      beside: `wanted: ${rclone}x rclone, ${s3fs}x s3fs`,
      ours: shown(figure, 's'),
      theirs: listed(placed, 's'),
      figure: lead(1 / figure, [
        [1 / placed.rclone, rclone],
        [1 / placed.s3fs, s3fs],
      ]),
      target: 1,
      moreIsBetter: true,
      unit: 'ratio',
    })
    return [
      row('until they are committed', committed, [3, 5]),
      row('until each has its object', placed.pageferry, [1, 3]),
    ]
  },

  's3-database': async () => {
    const one = await here()
    const made = path.join(directory('database'), 'db')
    run('python3', ['-c', BIG_DATABASE, made, String(sized(1024 * MiB))])
    await putFile(one, 'database/db', made)
    const { size } = fs.statSync(made)
    fs.rmSync(made)
    await one.line({ delayMs: 20 })
    const cost: Record<string, string> = {}
    const took = await each(one, 'database', async contestant => {
      const before = await one.counters()
      const secs: number = python(POINT_QUERY, file(contestant, 'db'))
      const after = await one.counters()
      const mib = (after.downBytes - before.downBytes) / MiB
      cost[contestant.name] = `${shown(secs, 's')}, ${after.total - before.total} requests, ${shown(mib, 'MiB')}`
      return secs
    })
    await one.line({})
    return [
      {
        work: `SQLite database of ${Math.round(size / MiB)} MiB in a bucket at 40 ms: opened cold, one row by an index`,
        beside: '',
        ours: cost.pageferry,
        theirs: `rclone ${cost.rclone}; s3fs ${cost.s3fs}`,
        figure: lead(1 / took.pageferry, [
          [1 / took.rclone, 1],
          [1 / took.s3fs, 1],
        ]),
        target: 1,
        moreIsBetter: true,
        unit: 'ratio',
      },
    ]
  },
}

export const s3Rows = Object.fromEntries(
  Object.entries(measured).map(([name, measure]) => [
    name,
    async () => {
      const one = await here()
      try {
        return await measure()
      } finally {
        await one.line({})
        await empty(one)
        await sleep(3_000)
      }
    },
  ]),
)
