import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, test } from '@jest/globals'
import {
  copyFileRange,
  dataRanges,
  deviceNumber,
  deviceOf,
  mknod,
  preallocate,
  preallocateAsync,
  punchHole,
  renameat2,
  seekData,
  seekHole,
  setTimes,
  startWriteback,
  zeroRange,
} from '../../src/linux/files.js'
import { errnoOf } from '../../src/linux/libc.js'
import { requires } from '../fixtures/requires.js'

const folder = mkdtempSync(join(tmpdir(), 'pageferry-linux-'))
afterAll(() => rmSync(folder, { recursive: true }))

let number = 0
let path: string
beforeEach(() => {
  path = join(folder, `${number++}`)
})
const bytes = (text: string) => Buffer.from(text)
const KiB = 1024

describe('space', () => {
  test('preallocated space is there, zero, and part of the file', async () => {
    const fd = openSync(path, 'w+')
    preallocate(fd, { at: 0, length: 64 * KiB })
    expect(fstatSync(fd)).toMatchObject({ size: 64 * KiB, blocks: 128 })
    await preallocateAsync(fd, { at: 64 * KiB, length: 64 * KiB })
    expect(fstatSync(fd)).toMatchObject({ size: 128 * KiB, blocks: 256 })
    expect(readFileSync(path).equals(Buffer.alloc(128 * KiB))).toBe(true)
    closeSync(fd)
  })

  test('a hole gives the space back and keeps the size', () => {
    const fd = openSync(path, 'w+')
    writeSync(fd, Buffer.alloc(256 * KiB, 1))
    punchHole(fd, { at: 64 * KiB, length: 128 * KiB })
    const { size, blocks } = fstatSync(fd)
    expect(size).toBe(256 * KiB)
    expect(blocks).toBe(256)
    const content = readFileSync(path)
    expect(content.subarray(64 * KiB, 192 * KiB).every(byte => byte === 0)).toBe(true)
    expect(content[64 * KiB - 1]).toBe(1)
    expect(content[192 * KiB]).toBe(1)
    expect([...dataRanges(fd)]).toEqual([
      { at: 0, length: 64 * KiB },
      { at: 192 * KiB, length: 64 * KiB },
    ])
    closeSync(fd)
  })

  test('a zeroed range keeps its space', () => {
    const fd = openSync(path, 'w+')
    writeSync(fd, Buffer.alloc(64 * KiB, 1))
    zeroRange(fd, { at: 4 * KiB, length: 8 * KiB })
    expect(
      readFileSync(path)
        .subarray(4 * KiB, 12 * KiB)
        .every(byte => byte === 0),
    ).toBe(true)
    expect(fstatSync(fd).blocks).toBe(128)
    closeSync(fd)
  })

  test('failures carry our code, and the errno', async () => {
    const fd = openSync(path, 'w+')
    const attempt = () => punchHole(fd, { at: 0, length: 0 })
    expect(attempt).toThrow(expect.objectContaining({ code: 'INVALID' }))
    try {
      attempt()
    } catch (error) {
      expect(errnoOf(error)).toBe(22)
      expect((error as Error).message).toContain('fallocate')
      expect((error as Error).cause).toMatchObject({ code: 'EINVAL', errno: -22, syscall: 'fallocate' })
    }
    closeSync(fd)
    await expect(preallocateAsync(-1, { at: 0, length: 1 })).rejects.toMatchObject({ cause: { code: 'EBADF' } })
  })
})

describe('extents', () => {
  test('data and holes are found, up to the end', () => {
    const fd = openSync(path, 'w+')
    ftruncateSync(fd, 1024 * KiB)
    writeSync(fd, Buffer.alloc(4 * KiB, 1), 0, 4 * KiB, 256 * KiB)
    expect(seekData(fd, 0)).toBe(256 * KiB)
    expect(seekHole(fd, 0)).toBe(0)
    expect(seekHole(fd, 256 * KiB)).toBe(260 * KiB)
    expect(seekData(fd, 260 * KiB)).toBeUndefined()
    expect(seekHole(fd, 2048 * KiB)).toBeUndefined()
    expect([...dataRanges(fd)]).toEqual([{ at: 256 * KiB, length: 4 * KiB }])
    expect([...dataRanges(fd, 258 * KiB)]).toEqual([{ at: 258 * KiB, length: 2 * KiB }])
    closeSync(fd)
  })

  test('an empty file has no data', () => {
    const fd = openSync(path, 'w+')
    expect([...dataRanges(fd)]).toEqual([])
    closeSync(fd)
  })

  test('a range is copied inside the kernel, short at the end of the source', async () => {
    writeFileSync(path, 'abcdefghij')
    const source = openSync(path, 'r')
    const target = openSync(`${path}-copy`, 'w+')
    expect(await copyFileRange({ source, sourceAt: 2, target, targetAt: 5, length: 100 })).toBe(8)
    expect(readFileSync(`${path}-copy`, 'latin1')).toBe('\0\0\0\0\0cdefghij')
    closeSync(source)
    closeSync(target)
  })

  test('writeback can be asked for', () => {
    const fd = openSync(path, 'w+')
    writeSync(fd, Buffer.alloc(64 * KiB, 1))
    startWriteback(fd, { at: 0, length: 64 * KiB })
    closeSync(fd)
  })
})

describe('names', () => {
  test('a rename that must not replace, does not', () => {
    writeFileSync(path, 'a')
    writeFileSync(`${path}-b`, 'b')
    expect(() => renameat2(bytes(path), bytes(`${path}-b`), 'noReplace')).toThrow(
      expect.objectContaining({ code: 'EXISTS' }),
    )
    renameat2(bytes(path), bytes(`${path}-c`), 'noReplace')
    expect(readFileSync(`${path}-c`, 'utf8')).toBe('a')
  })

  test('two names change places', () => {
    writeFileSync(path, 'a')
    writeFileSync(`${path}-b`, 'b')
    renameat2(bytes(path), bytes(`${path}-b`), 'exchange')
    expect(readFileSync(path, 'utf8')).toBe('b')
    expect(readFileSync(`${path}-b`, 'utf8')).toBe('a')
  })

  test('names are bytes, and never cut at a NUL', () => {
    const odd = Buffer.concat([bytes(path), Buffer.from([0xff, 0xfe])])
    writeFileSync(path, 'a')
    renameat2(bytes(path), odd, 'noReplace')
    expect(readFileSync(odd, 'utf8')).toBe('a')
    expect(() => renameat2(odd, bytes(`${path}\0x`), 'noReplace')).toThrow(expect.objectContaining({ code: 'INVALID' }))
  })
})

describe('special files', () => {
  test('a FIFO and a socket', () => {
    mknod(bytes(path), constants.S_IFIFO | 0o640)
    expect(statSync(path).isFIFO()).toBe(true)
    mknod(bytes(`${path}-s`), constants.S_IFSOCK | 0o600)
    expect(statSync(`${path}-s`).isSocket()).toBe(true)
    expect(() => mknod(bytes(path), constants.S_IFIFO)).toThrow(expect.objectContaining({ code: 'EXISTS' }))
  })

  requires('root').test('a device keeps its numbers', () => {
    mknod(bytes(path), constants.S_IFCHR | 0o600, { major: 1, minor: 3 })
    const { rdev } = statSync(path)
    expect(deviceOf(rdev)).toEqual({ major: 1, minor: 3 })
  })

  test('device numbers are those of makedev(3)', () => {
    expect(deviceNumber({ major: 259, minor: 7 })).toBe(0x10307n)
    expect(deviceNumber({ major: 8, minor: 300 })).toBe(0x10082cn)
    for (const device of [
      { major: 0, minor: 0 },
      { major: 4095, minor: 1_048_575 },
      { major: 0xffffffff, minor: 0xffffffff },
    ])
      expect(deviceOf(deviceNumber(device))).toEqual(device)
  })
})

describe('setTimes', () => {
  const timesOf = (of: string) => {
    const { atimeNs, mtimeNs } = lstatSync(of, { bigint: true })
    return { atimeNs, mtimeNs }
  }

  test('is exact to the nanosecond, also before 1970', () => {
    writeFileSync(path, '')
    const times = { atimeNs: 1_700_000_000_123_456_789n, mtimeNs: -1_500_000_001n }
    setTimes(bytes(path), times)
    expect(timesOf(path)).toEqual(times)
  })

  test('leaves what is not given, and takes now from the clock', () => {
    writeFileSync(path, '')
    setTimes(bytes(path), { atimeNs: 1n, mtimeNs: 2n })
    setTimes(bytes(path), { mtimeNs: 'now' })
    const { atimeNs, mtimeNs } = timesOf(path)
    expect(atimeNs).toBe(1n)
    expect(Math.abs(Number(mtimeNs / 1_000_000n) - Date.now())).toBeLessThan(60_000)
  })

  test("changes a symlink's own times", () => {
    writeFileSync(path, '')
    symlinkSync(path, `${path}-link`)
    const before = timesOf(path)
    setTimes(bytes(`${path}-link`), { mtimeNs: 42n })
    expect(timesOf(`${path}-link`).mtimeNs).toBe(42n)
    expect(timesOf(path)).toEqual(before)
  })

  test('takes a descriptor, even of a file that has no name any more', () => {
    writeFileSync(path, '')
    const fd = openSync(path, 'r')
    linkSync(path, `${path}-other`)
    rmSync(path)
    setTimes(fd, { mtimeNs: 77n })
    expect(timesOf(`${path}-other`).mtimeNs).toBe(77n)
    rmSync(`${path}-other`)
    setTimes(fd, { mtimeNs: 78n })
    expect(fstatSync(fd, { bigint: true }).mtimeNs).toBe(78n)
    closeSync(fd)
  })
})
