import { spawnSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { constants as os, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import { mknod } from '../../src/linux/files.js'
import { EAGAIN, pread, pwrite, readNowait, readRaw, writeRaw, writev2 } from '../../src/linux/preadv2.js'

const folder = mkdtempSync(join(tmpdir(), 'pageferry-linux-'))
afterAll(() => rmSync(folder, { recursive: true }))

const pattern = (bytes: number) => Uint8Array.from({ length: bytes }, (_, i) => (i * 7 + (i >> 8)) & 0xff)

describe('readNowait', () => {
  const path = join(folder, 'pages')
  const content = pattern(64 << 10)
  writeFileSync(path, content)

  test('reads cached bytes at any offset, into any part of a buffer', () => {
    const fd = openSync(path, 'r')
    const into = new Uint8Array(10_000)
    expect(readNowait(fd, into.subarray(100, 5100), 12_345)).toBe(5000)
    expect(into.subarray(100, 5100)).toEqual(content.subarray(12_345, 17_345))
    expect(into.subarray(0, 100)).toEqual(new Uint8Array(100))
    closeSync(fd)
  })

  test('is short at the end, and 0 beyond it', () => {
    const fd = openSync(path, 'r')
    expect(readNowait(fd, new Uint8Array(4096), content.length - 10)).toBe(10)
    expect(readNowait(fd, new Uint8Array(4096), content.length)).toBe(0)
    closeSync(fd)
  })

  test('works beyond 4 GiB', () => {
    const sparse = join(folder, 'sparse')
    writeFileSync(sparse, '')
    truncateSync(sparse, 2 ** 41 + 4096)
    const fd = openSync(sparse, 'r+')
    const at = 2 ** 41 - 3
    expect(pwrite(fd, pattern(7), at)).toBe(7)
    const into = new Uint8Array(7)
    expect(readNowait(fd, into, at)).toBe(7)
    expect(into).toEqual(pattern(7))
    closeSync(fd)
  })

  test('says EAGAIN instead of waiting for the disk', () => {
    const cold = join(folder, 'cold')
    writeFileSync(cold, pattern(1 << 20))
    // dd asks the kernel to drop the file's pages, once they are on the disk.
    const dropped = spawnSync('dd', [`of=${cold}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0'])
    expect(dropped.status).toBe(0)
    const fd = openSync(cold, 'r')
    const into = new Uint8Array(4096)
    const count = readNowait(fd, into, 512 << 10)
    // A file system in memory has nothing to wait for.
    expect([EAGAIN, 4096]).toContain(count)
    expect(pread(fd, into, 512 << 10)).toBe(4096)
    expect(readNowait(fd, into, 512 << 10)).toBe(4096)
    closeSync(fd)
  })

  test('returns the errno of a bad descriptor', () => {
    expect(readNowait(-1, new Uint8Array(1), 0)).toBe(-os.errno.EBADF)
  })

  test('a buffer that was given away reads nothing', () => {
    const fd = openSync(path, 'r')
    const into = new Uint8Array(4096)
    structuredClone(into.buffer, { transfer: [into.buffer] })
    expect(readNowait(fd, into, 0)).toBe(0)
    closeSync(fd)
  })
})

describe('reads and writes without exceptions', () => {
  const path = join(folder, 'fifo')
  mknod(Buffer.from(path), constants.S_IFIFO | 0o600)

  test('an empty pipe is EAGAIN, a full one takes less than all', () => {
    const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
    const into = new Uint8Array(1 << 20)
    expect(readRaw(fd, into)).toBe(EAGAIN)
    expect(writeRaw(fd, pattern(100))).toBe(100)
    expect(writeRaw(fd, pattern(100), 50)).toBe(50)
    expect(readRaw(fd, into)).toBe(150)
    expect(into.subarray(100, 150)).toEqual(pattern(50))
    const taken = writeRaw(fd, into)
    expect(taken).toBeGreaterThan(0)
    expect(taken).toBeLessThan(into.byteLength)
    expect(writeRaw(fd, into)).toBe(EAGAIN)
    closeSync(fd)
  })

  test('two pieces go as one', () => {
    const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
    const all = pattern(3000)
    expect(writev2(fd, all.subarray(0, 16), all.subarray(16))).toBe(3000)
    const into = new Uint8Array(4000)
    expect(readRaw(fd, into)).toBe(3000)
    expect(into.subarray(0, 3000)).toEqual(all)
    closeSync(fd)
    expect(writev2(-1, all, all)).toBe(-os.errno.EBADF)
  })

  test('pread and pwrite go to their place', () => {
    const file = join(folder, 'file')
    const fd = openSync(file, 'w+')
    expect(pwrite(fd, pattern(100), 1000)).toBe(100)
    const into = new Uint8Array(200)
    expect(pread(fd, into, 950)).toBe(150)
    expect(into.subarray(50, 150)).toEqual(pattern(100))
    expect(pread(fd, into, 5000)).toBe(0)
    expect(pwrite(-1, into, 0)).toBe(-os.errno.EBADF)
    closeSync(fd)
  })
})
