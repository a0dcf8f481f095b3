// Files without a name that are open: temporary files, as tmpfile(3), sort(1) and databases make them.
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
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
time.sleep(1)
for n in range(2):
    with open('large', 'rb') as large:
        while large.read(1 << 20): pass
    open('/proc/sys/vm/drop_caches', 'w').write('3')
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
print(os.pread(fd, 4 << 20, 0) == data)
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
      const { child, ran } = start('python3', ['-c', PROGRAM], { cwd: place.mountpoint })
      await new Promise(done => child.stdout.once('data', done))
      if (kind !== 'that the remote has never had') await daemon.sync()
      child.stdin.end(`${kind.includes('changed') ? 'change' : ''}\n`)
      expect(await ran).toMatchObject({ status: 0, stdout: 'written\nTrue\n', stderr: '' })
      expect((await daemon.status()).problems).toEqual([])
      expect(await daemon.unmount()).toBe(0)
    },
    60_000,
  )
})
