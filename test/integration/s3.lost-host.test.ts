// The host of a mount is lost with one of its requests to a real gateway, whichever: what an empty cache finds is one moment of what
// programs did (SQLite, renames, changes within a large file), not before the last sync, and the database is sound.
import { randomUUID } from 'node:crypto'
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect } from '@jest/globals'
import { freshSeed, random as randomOf } from '../../src/base/random.js'
import { cliPath, type Place, run } from '../fixtures/daemon.js'
import { type FaultProxy, faultProxy } from '../fixtures/fault-proxy.js'
import { long, requires } from '../fixtures/requires.js'
import { bucketForTests, emptyPrefix, placeOnRgw } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'

const rgw = requires('rgw', 'fuse', 'built', 'root', 'python3')

const STEPS = 6
/** Of requests with which the host is lost, in a run that is not long. */
const LOSSES = 2
const SEED = Number(process.env.SEED ?? freshSeed())

const prepare = `
import sqlite3, sys
open('big', 'wb').write(b'a' * (9 << 20))
import os; os.mkdir('dir-0')
for n in range(3): open(f'dir-0/{n}', 'w').write(str(n))
db = sqlite3.connect('db', isolation_level=None)
db.execute('pragma journal_mode=' + sys.argv[1]); db.execute('create table t (n integer primary key, filler text)')
db.close()
`

/** Each step is four changes, one after the other; after some of them all is synced, and noted if that succeeded. */
const steps = `
import os, sqlite3, subprocess, sys, time
mode, count, notes, node, cli = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], 'w', buffering=1), sys.argv[4], sys.argv[5]
there = True
db = sqlite3.connect('db', isolation_level=None, timeout=30)
db.execute('pragma journal_mode=' + mode); db.execute('pragma synchronous=full')
for n in range(1, count + 1):
    db.execute('begin')
    db.execute('insert into t values (?, ?)', (n, 'x' * 5000)); db.execute('update t set filler = ?', (str(n) * 4000,))
    db.execute('commit')
    time.sleep(0.05)
    os.rename(f'dir-{n - 1}', f'dir-{n}')
    time.sleep(0.05)
    with open('big', 'r+b') as big: big.seek((n << 20) + 100); big.write(b'%08d' % n)
    time.sleep(0.05)
    with open(f'done-{n}', 'w') as done: done.write(str(n))
    time.sleep(0.1)
    if n % 2 == 0 and there:
        try: there = subprocess.run([node, cli, 'sync', os.getcwd()], timeout=5, capture_output=True).returncode == 0
        except subprocess.TimeoutExpired: there = False
        if there: notes.write(f'{n}\\n')
`

/** What there is, as how far each of the four has come. */
const look = `
import json, os, sqlite3
db = sqlite3.connect('db', isolation_level=None)
sound = db.execute('pragma integrity_check').fetchone()[0]
rows, last, fillers = db.execute('select count(*), coalesce(max(n), 0), count(distinct filler) from t').fetchone()
names = os.listdir('.')
dirs = [int(name[4:]) for name in names if name.startswith('dir-')]
big = bytearray(open('big', 'rb').read())
patched = 0
for n in range(1, 10):
    at = (n << 20) + 100
    if at < len(big) and big[at:at + 8] == b'%08d' % n: patched = n; big[at:at + 8] = b'a' * 8
    else: break
done = sorted(int(name[5:]) for name in names if name.startswith('done-'))
print(json.dumps({
    'sound': sound, 'whole': rows == last and fillers <= 1, 'rows': rows, 'dirs': dirs, 'patched': patched,
    'big': big == b'a' * (9 << 20), 'files': all(open(f'dir-{dirs[0]}/{n}').read() == str(n) for n in range(3)),
    'done': len(done), 'each': done == list(range(1, len(done) + 1)),
}))
`

interface Found {
  sound: string
  whole: boolean
  rows: number
  dirs: number[]
  patched: number
  big: boolean
  files: boolean
  done: number
  each: boolean
}

rgw.describe(`the host of a bucket's mount is lost (SEED=${SEED})`, () => {
  let server: Rgw
  let bucket: string
  beforeAll(async () => {
    ;({ server, bucket } = await bucketForTests())
  }, 200_000)

  const placeOf = (prefix: string, endpoint: string): Promise<Place> =>
    placeOnRgw({ ...server, endpoint }, `s3://${bucket}/${prefix}`)

  /** @returns how many requests there were, and what was found */
  async function lose(mode: string, stopAfter: number, proxy: FaultProxy) {
    const prefix = randomUUID()
    const place = await placeOf(prefix, proxy.endpoint)
    const daemon = await place.mount('--flush-interval', '50ms')
    await run('python3', ['-c', prepare, mode], { cwd: place.mountpoint })
    await daemon.sync()
    const before = proxy.counters.total
    proxy.set({ stopAfter })
    const notes = join(place.folder, 'synced')
    await run('python3', ['-c', steps, mode, String(STEPS), notes, process.execPath, cliPath()], {
      ...{ cwd: place.mountpoint, env: place.env },
    })
    const requests = proxy.counters.total - before
    await daemon.kill()
    const synced = existsSync(notes) ? Number(readFileSync(notes, 'utf8').trim().split('\n').at(-1)) : 0
    const next = await placeOf(prefix, server.endpoint)
    const found = await next.mount()
    const said = JSON.parse(await run('python3', ['-c', look], { cwd: next.mountpoint })) as Found
    expect(await found.unmount()).toBe(0)
    await emptyPrefix(server, bucket, `${prefix}/`)
    for (const { folder } of [place, next]) rmSync(folder, { recursive: true, force: true })
    return { requests, synced, said }
  }

  async function loseEach(mode: string) {
    const whole = await faultProxy({ target: server.endpoint })
    const { requests, synced, said } = await lose(mode, Number.POSITIVE_INFINITY, whole)
    await whole.close()
    expect([synced, said.rows, said.done]).toEqual([STEPS, STEPS, STEPS])
    const random = randomOf(SEED)
    const losses = long
      ? Array.from({ length: requests }, (_, n) => n + 1)
      : Array.from({ length: LOSSES }, () => 1 + random.below(requests))
    for (const k of losses) {
      const proxy = await faultProxy({ target: server.endpoint, seed: SEED + k })
      const lost = `${mode}, lost with request ${k} of ${requests}`
      const { synced, said } = await lose(mode, k, proxy).catch(error => {
        throw new Error(`${lost}: ${error.message}`, { cause: error })
      })
      await proxy.close()
      const { rows, dirs, patched, done } = said
      const isSound = said.sound === 'ok' && said.whole && said.big && said.files && said.each
      const isOneMoment = dirs.length === 1 && rows >= dirs[0] && dirs[0] >= patched && patched >= done
      if (!isSound || !isOneMoment || done < rows - 1 || done < synced)
        throw new Error(`${lost}, synced ${synced}: ${JSON.stringify(said)}`)
    }
  }

  rgw.test(
    `with request k, for ${long ? 'every k' : `${LOSSES} of them`}, in each journal mode of SQLite`,
    async () => {
      const ran = await Promise.allSettled(['DELETE', 'TRUNCATE', 'PERSIST', 'WAL'].map(loseEach))
      for (const one of ran) if (one.status === 'rejected') throw one.reason
    },
    long ? 7_200_000 : 240_000,
  )
})
