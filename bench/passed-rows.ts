// What it would cost at least to pass files through that can be written: the program's work on the disk itself, without a sync, and then
// what has to be done at each flush and fsync: hashing the file by chunks, and storing those that changed.
import fs from 'node:fs'
import path from 'node:path'
import { digest } from '../src/chunk/digest.js'
import { CHUNK_BYTES } from '../src/chunk/geometry.js'
import { directory, mount, pairs, python, run, work } from './harness.js'
import { type Result, ratioResult } from './rows.js'
import { faster } from './tree-rows.js'

const MiB = 1024 * 1024
const ROUNDS = 3
const BESIDE = 'the disk without a sync, and the least that finding what changed takes'
/** Nothing is sent while it is measured. */
const QUIET = ['--flush-interval', '1h', '--max-delay', '1h', '--dirty-limit', '8G', '--no-hold']

/** A file of which it is found out what changed. */
class Collected {
  readonly #sums: bigint[] = []
  readonly #buffer = new Uint8Array(CHUNK_BYTES)
  readonly #stored = fs.openSync(path.join(work, 'passed.stored'), 'w')

  constructor(readonly file: string) {
    this.again()
  }

  /** Finds the chunks that changed since the last time, and stores them. @returns ms */
  again(): number {
    const began = performance.now()
    const fd = fs.openSync(this.file, 'r')
    for (let index = 0; ; index++) {
      const count = fs.readSync(fd, this.#buffer, 0, CHUNK_BYTES, index * CHUNK_BYTES)
      if (count === 0) break
      const sum = digest(this.#buffer.subarray(0, count))
      if (this.#sums[index] === sum) continue
      this.#sums[index] = sum
      fs.writeSync(this.#stored, this.#buffer, 0, count, index * CHUNK_BYTES)
    }
    fs.fdatasyncSync(this.#stored)
    fs.closeSync(fd)
    return performance.now() - began
  }

  close() {
    fs.closeSync(this.#stored)
  }
}

/** In ms. */
function randomWrites(file: string, sync: boolean): number {
  const report = run('fio', [
    ...['--name=w', `--filename=${file}`, '--rw=randwrite', '--bs=4k', '--ioengine=psync', '--randrepeat=0'],
    ...['--size=1g', '--io_size=256m', `--end_fsync=${Number(sync)}`, '--output-format=json', '--allow_file_create=0'],
  ])
  return JSON.parse(report.slice(report.indexOf('{'))).jobs[0].job_runtime
}

function large(at: string): string {
  const file = path.join(at, 'large')
  run('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=1024', 'conv=fsync', 'status=none'])
  return file
}

export const passedRows: Record<string, () => Result[]> = {
  'passed-writes': () => {
    const ours = mount('passed', directory('passed.remote'), QUIET)
    const [inside, outside] = [large(ours.at), large(directory('passed.disk'))]
    const collected = new Collected(outside)
    const pair = pairs(
      ROUNDS,
      () => randomWrites(inside, true),
      () => randomWrites(outside, false) + collected.again(),
    )
    collected.close()
    ours.kill()
    return [faster('65,536 random writes of 4 KiB into 1 GiB, fsync at the end', BESIDE, 1, pair)]
  },

  'passed-sqlite': () => {
    const ours = mount('passed-sqlite', directory('passed-sqlite.remote'), QUIET)
    const disk = directory('passed-sqlite.disk')
    const results: Result[] = []
    for (const [mode, count] of [
      ['DELETE', 300],
      ['WAL', 1_000],
    ] as const) {
      const rate = (at: string, synchronous: string) =>
        python(UPDATES, at, mode, synchronous, String(count)) as { rate: number; file: string }
      const pair = pairs(
        ROUNDS,
        () => rate(ours.at, 'FULL').rate,
        () => {
          const { rate: unsynced, file } = rate(disk, 'OFF')
          const collected = new Collected(file)
          const each = collected.again()
          collected.close()
          return 1000 / (1000 / unsynced + each)
        },
      )
      results.push(ratioResult(`SQLite one-row transactions in 64 MiB, FULL, ${mode}`, BESIDE, '/s', 1, pair))
    }
    ours.kill()
    return results
  },

  'passed-compile': () => {
    const ours = mount('passed-compile', directory('passed-compile.remote'), QUIET)
    const disk = directory('passed-compile.disk')
    const compile = (at: string) => python(COMPILE, at) as number
    const pair = pairs(
      ROUNDS,
      () => compile(ours.at),
      () => compile(disk),
    )
    ours.kill()
    return [faster('make -j2 of 100 files of C', 'the disk itself', 0.9, pair)]
  },
}

const UPDATES = `
import sys, os, time, sqlite3, json, random
folder, mode, synchronous, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
file = f'{folder}/{mode}.db'
for end in ('', '-wal', '-shm', '-journal'):
    try: os.unlink(file + end)
    except FileNotFoundError: pass
db = sqlite3.connect(file, isolation_level=None)
db.execute(f'pragma journal_mode={mode}'); db.execute('create table t(a integer primary key, b)')
db.execute('begin')
db.executemany('insert into t values(?, ?)', ((n, os.urandom(450).hex()) for n in range(${64 * MiB} // 1024)))
db.execute('commit')
db.execute(f'pragma synchronous={synchronous}')
start = time.perf_counter()
for n in range(count): db.execute('update t set b = ? where a = ?', (os.urandom(450).hex(), random.randrange(65536)))
print(json.dumps({'rate': count / (time.perf_counter() - start), 'file': file}))
`

const COMPILE = `
import sys, os, time, json, shutil, subprocess
folder = sys.argv[1] + '/sources'
shutil.rmtree(folder, ignore_errors=True)
os.mkdir(folder)
for n in range(100):
    with open(f'{folder}/f{n}.c', 'w') as file:
        file.write('#include <stdio.h>\\n#include <stdlib.h>\\n#include <string.h>\\n')
        for m in range(100): file.write(f'int f{n}_{m}(int a) {{ char b[64]; snprintf(b, 64, "%d", a + {m}); return (int)strlen(b); }}\\n')
with open(f'{folder}/main.c', 'w') as file: file.write('int main(void) { return 0; }\\n')
with open(f'{folder}/Makefile', 'w') as file:
    file.write('program: $(patsubst %.c,%.o,$(wildcard *.c))\\n\\tcc -o $@ $^\\n')
start = time.perf_counter()
subprocess.run(['make', '-s', '-j2', 'CFLAGS=-O1', 'program'], cwd=folder, check=True)
print(json.dumps((time.perf_counter() - start) * 1000))
`
