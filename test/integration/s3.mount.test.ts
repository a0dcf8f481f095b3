// A bucket as a mount, on a real gateway.
import { randomUUID } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { beforeAll, expect } from '@jest/globals'
import { s3Objects } from '../../src/remote/s3.js'
import { type Place, run } from '../fixtures/daemon.js'
import { lineTo } from '../fixtures/line.js'
import { requires } from '../fixtures/requires.js'
import { bucketForTests, placeOnRgw } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'
import { differences, sh, until } from '../fixtures/trees.js'

const rgw = requires('rgw', 'fuse', 'built', 'root', 'rsync', 'python3')

const MiB = 2 ** 20
const TEST_MS = 120_000

/** Everything that a program may do to a tree, twice: at the remote, and in a directory beside it. */
const begin = `
mkdir -p d/e/f empty 'odd ~ näme %41+&'; chmod 2750 d; chmod 1777 empty
echo one > d/one; echo two > d/e/two; echo three > d/e/f/three; : > d/none; echo x > 'odd ~ näme %41+&/#?"<>'
chmod 600 d/one; chmod 4755 d/e/two; chown 1234:567 d/e/f/three
head -c 9000000 /dev/zero | tr '\\0' a > large; head -c 100000 /dev/zero | tr '\\0' b > cut
ln -s d/one link; ln -s /nowhere/at/all dangling; ln -s ../d d/up
setfattr -n user.k -v value d/one
find . ! -type d -exec touch -h -d 2000-01-02 {} +
touch -d '2001-02-03 04:05:06.789012345' d/one; touch -h -d '2002-03-04 05:06:07' link; touch -d '2003-04-05' d/e
`
const change = `
mv d/one d/moved; mv d/e e; mkdir d/e; echo new > d/e/new; mv large d/large
truncate -s 50000 cut; truncate -s 150000 cut; echo more >> d/none; rm e/two; rmdir empty; echo over > e/f/three
printf XY | dd of=d/large bs=1 seek=5000000 conv=notrunc status=none
python3 - <<'END'
import mmap
with open('d/large', 'r+b') as file:
    pages = mmap.mmap(file.fileno(), 0)
    pages[1234567:1234572] = b'pages'
    pages.flush()
END
touch -d '2011-02-03 04:05:06.789012345' d/none cut; touch -h -d '2012-03-04' dangling d/large d/up e/f/three d/e/new; chmod 700 e
`

let server: Rgw
let bucket: string
let prefix: string
let place: Place
/** A mount point of what is below a prefix, the last one unless told otherwise. */
async function placeOf(at: string = randomUUID(), through = server): Promise<Place> {
  prefix = at
  return placeOnRgw(through, `s3://${bucket}/${prefix}`)
}
const inside = (script: string, where = place) => sh(script, { cwd: where.mountpoint })

rgw.describe('a bucket', () => {
  beforeAll(async () => {
    ;({ server, bucket } = await bucketForTests())
  }, 200_000)

  rgw.test(
    'keeps what programs make of it, and shows it from an empty cache',
    async () => {
      place = await placeOf()
      const daemon = await place.mount('--flush-interval', '100ms')
      const twin = join(place.folder, 'twin')
      mkdirSync(twin)
      for (const script of [begin, change]) {
        await Promise.all([inside(script), sh(script, { cwd: twin })])
        await daemon.sync()
      }
      expect(await differences(twin, place.mountpoint, { directoryTimes: false })).toEqual([])
      for (const [refused, why] of [
        ['ln cut hard', 'Operation not permitted'],
        ['mknod device c 1 3', 'Operation not permitted'],
        ['mkfifo fifo', 'Operation not permitted'],
        [`setfattr -n user.large -v $(head -c 1500 /dev/zero | tr '\\0' v) cut`, 'No space left on device'],
      ])
        await expect(inside(refused)).rejects.toThrow(why)
      expect([await daemon.unmount(), daemon.output]).toEqual([0, expect.stringContaining('has everything')])
      place.loseCache()
      const again = await place.mount()
      expect(await differences(twin, place.mountpoint, { directoryTimes: false })).toEqual([])
      expect(await again.status()).toMatchObject({ remote: { url: place.url, reachable: true, errors: 0 } })
      expect(await again.unmount()).toBe(0)
    },
    TEST_MS,
  )

  rgw.test(
    'that others have filled, read and changed; a mount for reading beside it sees that',
    async () => {
      place = await placeOf()
      await using objects = { ...(await s3Objects({ bucket, prefix })), [Symbol.asyncDispose]: () => objects.close() }
      const large = Buffer.alloc(6 * MiB, '0123456789')
      await objects.put('a.txt', Buffer.from('a\n'))
      await objects.put('dir/sub/b.txt', Buffer.from('b\n'), {
        contentType: 'text/plain',
        metadata: { colour: 'blue' },
      })
      await objects.put('marked/', Buffer.alloc(0))
      await objects.put('dir//odd', Buffer.from('not to be seen'))
      await objects.put('large', large)
      const writer = await place.mount('--flush-interval', '100ms')
      expect(
        await inside('find . -type f | sort; cat a.txt dir/sub/b.txt; tail -c 12 large; stat -c %a a.txt dir'),
      ).toBe(`./a.txt\n./dir/sub/b.txt\n./large\na\nb\n${large.subarray(-12)}644\n755\n`)
      const beside = await placeOf(prefix)
      const reader = await beside.mount('--read-only', '--dir-ttl', '100ms')
      await inside('echo more >> dir/sub/b.txt; mv a.txt marked/c.txt')
      await writer.sync()
      await sleep(300)
      expect(await inside('cat dir/sub/b.txt marked/c.txt; ls', beside)).toBe('b\nmore\na\ndir\nlarge\nmarked\n')
      await expect(inside('echo x > x', beside)).rejects.toThrow('Read-only file system')
      expect(await objects.head('dir/sub/b.txt')).toMatchObject({
        contentType: 'text/plain',
        metadata: { colour: 'blue' },
      })
      expect([await reader.unmount(), await writer.unmount()]).toEqual([0, 0])
    },
    TEST_MS,
  )

  rgw.test(
    'has one writer at a time',
    async () => {
      place = await placeOf()
      const writer = await place.mount()
      const other = await placeOf(prefix)
      await expect(other.mount()).rejects.toThrow(/another writer.*by pid \d+/s)
      expect(await writer.unmount()).toBe(0)
      expect(await (await other.mount()).unmount()).toBe(0)
    },
    TEST_MS,
  )

  rgw.test(
    'gets what was written before the daemon was killed, from its journal',
    async () => {
      place = await placeOf()
      const daemon = await place.mount('--flush-interval', '1h')
      await inside('mkdir d; for i in $(seq 50); do echo $i > d/$i; done; mv d/7 seven; sync d/50')
      await daemon.kill()
      const again = await place.mount()
      expect(await inside('cat d/50 seven; ls d | wc -l')).toBe('50\n7\n49\n')
      expect(await again.unmount()).toBe(0)
      place.loseCache()
      const last = await place.mount('--read-only')
      expect(await inside('cat d/50 seven; ls d | wc -l')).toBe('50\n7\n49\n')
      expect(await last.unmount()).toBe(0)
    },
    TEST_MS,
  )

  rgw.test(
    'makes the copy of a file by itself, and another file of it at once',
    async () => {
      place = await placeOf()
      const daemon = await place.mount()
      await inside('head -c 41000000 /dev/urandom > a')
      await daemon.sync()
      const { bytesWritten } = (await daemon.status()).remote
      await inside('cp a b; printf changed | dd of=a conv=notrunc status=none; cmp b a | grep -q "byte 1,"')
      await daemon.sync()
      const { remote, batches } = await daemon.status()
      expect(batches.copiedBytes).toBe(41_000_000)
      // The first part of what was changed.
      expect(remote.bytesWritten - bytesWritten).toBeLessThan(6 * MiB)
      await daemon.kill()
      place.loseCache()
      const again = await place.mount('--take-over')
      expect(
        await inside('stat -c %s b; printf changed | cmp -n 7 - a; tail -c +8 a > c; tail -c +8 b | cmp - c'),
      ).toBe('41000000\n')
      expect(await again.unmount()).toBe(0)
    },
    TEST_MS,
  )

  rgw.test(
    'holds databases of SQLite',
    async () => {
      place = await placeOf()
      const daemon = await place.mount('--flush-interval', '50ms')
      const program = `
import sqlite3
for mode in ('DELETE', 'WAL'):
    db = sqlite3.connect(mode.lower() + '.db', isolation_level=None)
    db.execute('PRAGMA journal_mode=' + mode)
    db.execute('CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, filler TEXT)')
    for n in range(60):
        db.execute('INSERT INTO t (filler) VALUES (?)', ('x' * 2000,))
    db.execute('DELETE FROM t WHERE n % 5 = 0')
    db.close()
`
      for (let round = 0; round < 3; round++) await run('python3', ['-c', program], { cwd: place.mountpoint })
      await daemon.sync()
      await daemon.kill()
      place.loseCache()
      const again = await place.mount('--take-over')
      const check = (name: string) => `python3 -c "
import sqlite3
db = sqlite3.connect('${name}.db')
print(db.execute('PRAGMA integrity_check').fetchone()[0], db.execute('SELECT count(*) FROM t').fetchone()[0])"`
      expect(await inside(`${check('delete')}; ${check('wal')}`)).toBe('ok 144\nok 144\n')
      expect(await again.unmount()).toBe(0)
    },
    TEST_MS,
  )

  rgw.test(
    'that is out of reach for a while: what is here is used, what is written arrives later',
    async () => {
      const line = await lineTo(server.endpoint)
      place = await placeOf(undefined, { ...server, endpoint: line.endpoint })
      const first = await place.mount()
      await inside('ls')
      expect(await first.unmount()).toBe(0)
      const daemon = await place.mount('--flush-interval', '50ms')
      await inside('echo before > file; head -c 3000000 /dev/zero > zeros')
      await daemon.sync()
      line.cut()
      expect(await inside('echo behind > new; mv file moved; cat moved new; wc -c < zeros')).toBe(
        'before\nbehind\n3000000\n',
      )
      await until(daemon, ({ remote, lag }) => !remote.reachable && lag.operations > 0)
      await daemon.kill()
      // A mount without its remote is one.
      const cut = await place.mount('--flush-interval', '50ms', '--deadline', '2s')
      expect(await inside('cat moved new; echo again > again; wc -c < zeros')).toBe('before\nbehind\n3000000\n')
      line.mend()
      await cut.sync(AbortSignal.timeout(60_000))
      expect(await cut.unmount()).toBe(0)
      place.loseCache()
      const last = await place.mount('--read-only')
      expect(await inside('ls; cat moved new again')).toBe('again\nmoved\nnew\nzeros\nbefore\nbehind\nagain\n')
      expect(await last.unmount()).toBe(0)
    },
    TEST_MS,
  )
})
