// Bytes of files: through the page cache, past it, mapped, sparse, large, and many at once.
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { appendFile, open, readFile, stat, truncate, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, expect } from '@jest/globals'
import { mountMemory, python, run, type TestMount } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root', 'python3')

const KIB = 1024
const MIB = 1024 * KIB
const GIB = 1024 * MIB

// Once with an engine that answers at once, once with one that has to wait: other buffers, other paths.
describe.each([
  ['at once', undefined],
  ['later', { read: 0, write: 0, lookup: 0, make: 0, setAttributes: 0, entries: 0, attributes: 0 }],
  ['later, and in any order', { read: 3, write: 2, seek: 1, copy: 1, allocate: 1 }],
])('bytes, when the engine answers %s', (_name, delays) => {
  let mount: TestMount
  const at = (name: string) => join(mount.path, name)
  beforeAll(async () => {
    mount = await mountMemory({ delays })
  })

  test('what is written is what is read, across every boundary', async () => {
    const bytes = randomBytes(3 * MIB + 12_345)
    await writeFile(at('f'), bytes)
    expect((await readFile(at('f'))).equals(bytes)).toBe(true)
    await run('sh', ['-c', 'echo 1 > /proc/sys/vm/drop_caches'])
    expect((await readFile(at('f'))).equals(bytes)).toBe(true)
    const file = await open(at('f'), 'r+')
    for (const [offset, length] of [
      [4095, 2],
      [131_071, 131_074],
      [MIB - 1, MIB + 2],
      [3 * MIB + 12_344, 1],
    ]) {
      const patch = randomBytes(length)
      patch.copy(bytes, offset)
      await file.write(patch, 0, patch.length, offset)
    }
    await file.sync()
    await file.close()
    const stored = (await mount.call({ do: 'contents', name: 'f' })) as Uint8Array
    expect(Buffer.compare(stored, bytes)).toBe(0)
    await unlink(at('f'))
  })

  test('appends go to the end, truncation cuts and grows with zeros', async () => {
    await writeFile(at('log'), 'one\n')
    await Promise.all(Array.from({ length: 20 }, () => appendFile(at('log'), 'line\n')))
    expect((await readFile(at('log'), 'utf8')).length).toBe(104)
    await truncate(at('log'), 5)
    await truncate(at('log'), 9000)
    const bytes = await readFile(at('log'))
    expect(bytes.subarray(0, 5).toString()).toBe('one\nl')
    expect(bytes.subarray(5).every(byte => byte === 0)).toBe(true)
    await writeFile(at('log'), 'new') // O_TRUNC
    expect(await readFile(at('log'), 'utf8')).toBe('new')
    await unlink(at('log'))
  })

  test('direct I/O sees what the page cache wrote, and the other way round', async () => {
    await python(
      `
import os, sys, mmap
p = sys.argv[1] + '/direct'
buf = mmap.mmap(-1, 1 << 20); buf.write(os.urandom(1 << 20))
with open(p, 'wb') as f: f.write(b'x' * (2 << 20))
fd = os.open(p, os.O_RDWR | os.O_DIRECT)
assert os.pwrite(fd, buf, 4096) == 1 << 20
assert open(p, 'rb').read() == b'x' * 4096 + buf[:] + b'x' * ((1 << 20) - 4096)
back = mmap.mmap(-1, 1 << 20)
assert os.preadv(fd, [back], 4096) == 1 << 20 and back[:] == buf[:]
assert os.preadv(fd, [back], (2 << 20) - 4096) == 4096
assert os.preadv(fd, [back], 2 << 20) == 0
os.unlink(p)
`,
      mount.path,
    )
  })

  test('asynchronous direct writes leave nothing old in the page cache, whoever reads meanwhile', async () => {
    await python(
      `
import ctypes, mmap, os, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
SETUP, GETEVENTS, SUBMIT = (206, 208, 209) if os.uname().machine == 'x86_64' else (0, 4, 2)
PWRITE, SIZE = 1, 655360
p = sys.argv[1] + '/cycled'
context = ctypes.c_ulong(0)
assert libc.syscall(SETUP, 1, ctypes.byref(context)) == 0
patterns = [mmap.mmap(-1, SIZE) for _ in range(2)]
for n, pattern in enumerate(patterns): pattern.write(bytes([0x55 + n]) * SIZE)
def write(fd, pattern):
    address = ctypes.addressof(ctypes.c_char.from_buffer(pattern))
    block = ctypes.create_string_buffer(struct.pack('<QIiHhIQQqQII', 0, 0, 0, PWRITE, 0, fd, address, SIZE, 0, 0, 0, 0))
    blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
    assert libc.syscall(SUBMIT, context, 1, blocks) == 1, ctypes.get_errno()
    event = ctypes.create_string_buffer(32)
    assert libc.syscall(GETEVENTS, context, 1, 1, event, None) == 1
    assert struct.unpack('<QQqq', event.raw)[2] == SIZE
fd = os.open(p, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
write(fd, patterns[0])
os.close(fd)
def reading(read, work):
    done = threading.Event()
    def run():
        while not done.is_set(): read()
    readers = [threading.Thread(target=run) for _ in range(2)]
    for reader in readers: reader.start()
    try: work()
    finally:
        done.set()
        for reader in readers: reader.join()
def open_and_read():
    with open(p, 'rb', buffering=0) as f: return f.read(SIZE)
def open_and_write():
    for n in range(200):
        fd = os.open(p, os.O_RDWR | os.O_DIRECT)
        write(fd, patterns[n % 2])
        os.close(fd)
        assert open_and_read() == patterns[n % 2][:], f'old pages after {n} writes'
reading(open_and_read, open_and_write)
staying = os.open(p, os.O_RDONLY)
fd = os.open(p, os.O_RDWR | os.O_DIRECT)
for n in range(20):
    reading(lambda: os.pread(staying, SIZE, 0), lambda: [write(fd, patterns[(n + m) % 2]) for m in range(10)])
    for _ in range(500):
        if os.pread(staying, SIZE, 0) == patterns[(n + 9) % 2][:]: break
        time.sleep(0.01)
    else: raise AssertionError(f'who stays reads old pages, time {n}')
os.unlink(p)
`,
      mount.path,
    )
  })

  test('a shared mapping is the file', async () => {
    await python(
      `
import mmap, os, sys
p = sys.argv[1] + '/mapped'
with open(p, 'wb') as f: f.truncate(300000)
with open(p, 'r+b') as f:
    m = mmap.mmap(f.fileno(), 300000)
    m[0:5] = b'start'; m[150000:150006] = b'middle'; m[299997:300000] = b'end'
    f.seek(150000); assert f.read(6) == b'middle'
    os.pwrite(f.fileno(), b'written', 70000)
    assert m[70000:70007] == b'written'
    m.flush()
    m.close()
b = open(p, 'rb').read()
assert b[:5] == b'start' and b[150000:150006] == b'middle' and b[-3:] == b'end' and len(b) == 300000
os.unlink(p)
`,
      mount.path,
    )
  })

  test('files larger than 4 GiB have all their offsets', async () => {
    const file = await open(at('large'), 'w+')
    const places = [0, 2 * GIB - 1, 4 * GIB - 2, 4 * GIB + 50, 5 * GIB]
    for (const place of places) await file.write(`at ${place}`, place)
    await file.sync()
    const { size, blocks } = await file.stat()
    expect(size).toBe(5 * GIB + 13)
    expect(blocks * 512).toBeLessThan(10 * MIB)
    await file.close()
    await run('sh', ['-c', 'echo 1 > /proc/sys/vm/drop_caches'])
    const again = await open(at('large'), 'r')
    for (const place of places) {
      const bytes = Buffer.alloc(`at ${place}`.length)
      await again.read(bytes, 0, bytes.length, place)
      expect(bytes.toString()).toBe(`at ${place}`)
    }
    await again.close()
    await unlink(at('large'))
  })

  test('SEEK_DATA and SEEK_HOLE are right for bytes that the kernel still holds back', async () => {
    await python(
      `
import os, sys, errno, mmap
p = sys.argv[1] + '/sparse'
K = 65536
fd = os.open(p, os.O_RDWR | os.O_CREAT)
def hole(at): return os.lseek(fd, at, os.SEEK_HOLE)
def data(at):
    try: return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as e:
        assert e.errno == errno.ENXIO, e
        return None
assert data(0) is None
os.ftruncate(fd, 100 * K)
assert data(0) is None and hole(0) == 0
os.pwrite(fd, b'x', 10 * K)                       # written, not synced
assert data(0) == 10 * K, data(0)
assert hole(10 * K) == 11 * K, hole(10 * K)
os.pwrite(fd, b'y' * K, 20 * K)
assert data(11 * K) == 20 * K and hole(20 * K) == 21 * K and hole(0) == 0
os.pwrite(fd, b'z' * K, 21 * K)                   # right behind what is known
assert hole(20 * K) == 22 * K, hole(20 * K)
os.pwrite(fd, b'end', 200 * K)                    # beyond the size that the engine knows
assert data(22 * K) == 200 * K, data(22 * K)
assert hole(200 * K) == 200 * K + 3
m = mmap.mmap(fd, 100 * K)
m[50 * K] = 7                                     # through a mapping
assert data(22 * K) == 50 * K, data(22 * K)
assert data(300 * K) is None
m.close(); os.close(fd); os.unlink(p)
`,
      mount.path,
    )
  })

  test('a sparse file stays sparse when it is copied with its holes', async () => {
    const bytes = Buffer.alloc(8 * MIB)
    randomBytes(70_000).copy(bytes, 3 * MIB)
    await writeFile(at('full'), bytes)
    await run('cp', ['--sparse=always', at('full'), at('thin')])
    expect((await readFile(at('thin'))).equals(bytes)).toBe(true)
    expect((await stat(at('thin'))).blocks * 512).toBeLessThanOrEqual(3 * 65_536)
    await run('cp', ['--sparse=auto', at('thin'), at('copy')])
    expect((await readFile(at('copy'))).equals(bytes)).toBe(true)
    for (const name of ['full', 'thin', 'copy']) await unlink(at(name))
  })

  test('fallocate reserves, punches and zeros; what has no meaning here is refused', async () => {
    await python(
      `
import os, sys, ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(fd, mode, at, length):
    r = libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length))
    return 0 if r == 0 else ctypes.get_errno()
p = sys.argv[1] + '/space'
fd = os.open(p, os.O_RDWR | os.O_CREAT)
assert fallocate(fd, 0, 0, 100000) == 0 and os.fstat(fd).st_size == 100000
assert fallocate(fd, 1, 0, 200000) == 0 and os.fstat(fd).st_size == 100000
os.pwrite(fd, b'x' * 100000, 0)
assert fallocate(fd, 3, 10000, 30000) == 0
b = os.pread(fd, 100000, 0)
assert b == b'x' * 10000 + bytes(30000) + b'x' * 60000
assert fallocate(fd, 0x10, 90000, 20000) == 0 and os.fstat(fd).st_size == 110000
assert os.pread(fd, 110000, 0)[90000:] == bytes(20000)
assert fallocate(fd, 0x08, 0, 4096) == errno.EOPNOTSUPP
assert fallocate(fd, 0x20, 0, 4096) == errno.EOPNOTSUPP
os.close(fd); os.unlink(p)
`,
      mount.path,
    )
  })

  test('copy_file_range copies what was written a moment ago', async () => {
    await python(
      `
import os, sys
a = os.open(sys.argv[1] + '/from', os.O_RDWR | os.O_CREAT); b = os.open(sys.argv[1] + '/to', os.O_RDWR | os.O_CREAT)
bytes_ = os.urandom(1000000)
os.write(a, bytes_)
os.write(b, b'.' * 100)
n = 0
while n < 900000: n += os.copy_file_range(a, b, 900000 - n, 100000 + n, 50 + n)
assert os.pread(b, 1000000, 0) == b'.' * 50 + bytes_[100000:]
assert os.copy_file_range(a, b, 10, 1000000, 0) == 0
for n in ('/from', '/to'): os.unlink(sys.argv[1] + n)
`,
      mount.path,
    )
  })

  test('sixty-four programs at once each have their own bytes', async () => {
    await Promise.all(
      Array.from({ length: 64 }, async (_, i) => {
        const bytes = randomBytes(100_000 + i)
        const file = await open(at(`many${i}`), constants.O_RDWR | constants.O_CREAT)
        for (let round = 0; round < 3; round++) {
          await file.write(bytes, 0, bytes.length, round * 4096)
          await file.datasync()
          const back = Buffer.alloc(bytes.length)
          await file.read(back, 0, back.length, round * 4096)
          expect(back.equals(bytes)).toBe(true)
        }
        await file.close()
        await unlink(at(`many${i}`))
      }),
    )
  })

  test('fio finds every block as it wrote it', async () => {
    for (const extra of [
      ['--direct=1', '--ioengine=libaio', '--iodepth=16'],
      ['--ioengine=mmap'],
      ['--ioengine=psync'],
    ])
      await run('fio', [
        '--name=verify',
        `--filename=${at('fio')}`,
        `--size=${delays ? 3 : 8}m`,
        '--rw=randrw',
        '--bsrange=4k-256k',
        '--bs_unaligned=0',
        '--verify=crc32c',
        '--verify_state_save=0',
        '--randseed=7',
        ...extra,
      ])
    await unlink(at('fio'))
  })

  test('nothing was wrong behind the scenes', async () => {
    const { logged, waiting } = await mount.status()
    expect({ logged, waiting }).toEqual({ logged: [], waiting: 0 })
  })
})
