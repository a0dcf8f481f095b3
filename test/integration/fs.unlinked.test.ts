// Files without a name that are open: temporary files, as tmpfile(3), sort(1) and databases make them, and O_TMPFILE of open(2).
import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from '@jest/globals'
import { start } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { placeForTest } from '../fixtures/trees.js'

const { describe, test } = requires('built', 'fuse', 'root', 'python3')
const MiB = 2 ** 20

/** Two files: one that loses its name, and a large one that takes all the room that there is. Waits for a line in between. */
const PROGRAM = `
import os, sys, time
fd = os.open('temporary', os.O_RDWR | os.O_CREAT)
data = os.urandom(3 << 20)
os.write(fd, data)
print('written', flush=True)
if sys.stdin.readline() == 'change\\n':
    os.pwrite(fd, data[:5000], 100000)
    data = data[:100000] + data[:5000] + data[105000:]
os.unlink('temporary')
os.fsync(fd)
time.sleep(float(sys.argv[1]))
for n in range(2):
    with open('large', 'rb') as large:
        while large.read(1 << 20): pass
    open('/proc/sys/vm/drop_caches', 'w').write('3')
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
print(os.pread(fd, 4 << 20, 0) == data)
`

/** Files that begin without a name: one that gets it, and what happens to others. Waits for a line in between. */
const NAMED = `
import errno, json, os, sys
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o640)
never = os.open('.', os.O_TMPFILE | os.O_RDWR)
os.write(never, b'x' * 100000)
os.write(fd, os.urandom(300000))
os.ftruncate(fd, 2000000)
os.pwrite(fd, b'in the middle', 1000001)
os.setxattr(fd, 'user.kind', b'whole')
os.fsync(fd)
links = [os.fstat(fd).st_nlink]
print('written', flush=True)
sys.stdin.readline()
os.pwrite(fd, b'after the batch', 200000)
exclusive = os.open('.', os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
def link(fd, name):
    try: os.link(f'/proc/self/fd/{fd}', name, src_dir_fd=0, follow_symlinks=True)
    except OSError as error: return errno.errorcode[error.errno]
refused = link(exclusive, 'exclusive')
link(fd, 'named')
links.append(os.fstat(fd).st_nlink)
os.pwrite(fd, b'after its name', 1500000)
again = link(never, 'named')
content = os.pread(fd, 3000000, 0)
assert len(content) == 2000000 and os.getxattr('named', 'user.kind') == b'whole'
print(json.dumps({'links': links, 'exclusive': refused, 'again': again, 'content': content.hex()}))
`

describe('a file without a name', () => {
  test.each([
    'that the remote has never had',
    'that the remote has had',
    'that was changed since the remote has had it',
  ])(
    '%s keeps its bytes while it is open, whatever the cache needs room for',
    async kind => {
      const place = await placeForTest()
      writeFileSync(join(place.remote, 'large'), randomBytes(40 * MiB))
      const daemon = await place.mount('--flush-interval', '100ms', '--cache-size', '20M')
      const { child, ran } = start('python3', ['-c', PROGRAM, '1'], { cwd: place.mountpoint })
      await new Promise(done => child.stdout.once('data', done))
      if (kind !== 'that the remote has never had') await daemon.sync()
      child.stdin.end(`${kind.includes('changed') ? 'change' : ''}\n`)
      expect(await ran).toMatchObject({ status: 0, stdout: 'written\nTrue\n', stderr: '' })
      expect((await daemon.status()).problems).toEqual([])
      expect(await daemon.unmount()).toBe(0)
    },
    60_000,
  )

  test('keeps its bytes when its daemon is killed, whatever the cache needs room for then', async () => {
    const place = await placeForTest()
    place.env.PAGEFERRY_HOLD = 'true'
    writeFileSync(join(place.remote, 'large'), randomBytes(40 * MiB))
    const holder = await place.mount('--flush-interval', '100ms', '--cache-size', '20M')
    const { child, ran } = start('python3', ['-c', PROGRAM, '9'], { cwd: place.mountpoint })
    await new Promise(done => child.stdout.once('data', done))
    const killed = async () => {
      const { stdout } = await place.pageferry('status', '--json', place.mountpoint)
      process.kill(JSON.parse(stdout).pid, 'SIGKILL')
    }
    child.stdin.end('\n')
    // A batch and a checkpoint later.
    await sleep(7_000)
    await killed()
    expect(await ran).toMatchObject({ status: 0, stdout: 'written\nTrue\n', stderr: '' })
    await killed()
    expect(await holder.unmount()).toBe(0)
  }, 60_000)

  test('gets one when it is whole, after batches that went without it', async () => {
    const place = await placeForTest()
    const daemon = await place.mount('--flush-interval', '100ms')
    const { child, ran } = start('python3', ['-c', NAMED], { cwd: place.mountpoint })
    await new Promise(done => child.stdout.once('data', done))
    await daemon.sync()
    expect(readdirSync(place.remote).filter(name => name !== '.pageferry')).toEqual([])
    child.stdin.end('go on\n')
    const { status, stdout, stderr } = await ran
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    const said = JSON.parse(stdout.slice(stdout.indexOf('\n')))
    await daemon.sync()
    expect(readFileSync(join(place.remote, 'named')).toString('hex')).toBe(said.content)
    const { mode, nlink } = statSync(join(place.remote, 'named'))
    expect({ mode, nlink }).toEqual({ mode: 0o100640, nlink: 1 })
    expect(said).toMatchObject({ links: [0, 1], exclusive: 'ENOENT', again: 'EEXIST' })
    // What was written since has come as well, and nothing is left of those that never got a name.
    expect(readdirSync(place.remote).filter(name => name !== '.pageferry')).toEqual(['named'])
    expect(await daemon.unmount()).toBe(0)
    place.loseCache()
    const again = await place.mount('--read-only')
    const seen = await start('sha256sum', [join(place.mountpoint, 'named'), join(place.remote, 'named')]).ran
    expect(
      new Set(
        seen.stdout
          .split('\n')
          .map(line => line.slice(0, 64))
          .filter(Boolean),
      ).size,
    ).toBe(1)
    await again.unmount()
  }, 60_000)

  test('survives the daemon, and one that never got a name is gone with it', async () => {
    const place = await placeForTest()
    const daemon = await place.mount('--flush-interval', '50ms')
    const { child, ran } = start('python3', ['-c', NAMED], { cwd: place.mountpoint })
    await new Promise(done => child.stdout.once('data', done))
    child.stdin.end('go on\n')
    const said = JSON.parse((await ran).stdout.split('\n')[1])
    await daemon.kill()
    const next = await place.mount('--flush-interval', '50ms')
    await next.sync()
    expect(readFileSync(join(place.remote, 'named')).toString('hex')).toBe(said.content)
    expect((await next.status()).lag).toMatchObject({ bytes: 0, operations: 0 })
    expect(await next.unmount()).toBe(0)
  }, 60_000)
})
