import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, statfsSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import { sleep } from '../../src/base/async.js'
import { Journal } from '../../src/cache/journal.js'
import type { Storage, StorageFile } from '../../src/cache/storage.js'
import { diskStorage } from '../../src/linux/storage.js'

const TMPFS_MAGIC = 0x0102_1994
const directory = mkdtempSync(join(tmpdir(), 'pageferry-storage-'))
afterAll(() => rmSync(directory, { recursive: true }))

let count = 0
/** The type is the test: linux may not import cache, so nothing else says that the shapes are the same. */
const storage: Storage = diskStorage(directory)
const fresh = (options?: { bytes?: number; allocate?: boolean }): { name: string; file: StorageFile } => {
  const name = `file-${++count}`
  return { name, file: storage.open(name, options) }
}
const statOf = (name: string) => statSync(join(directory, name))
const filled = (byte: number, bytes: number) => Buffer.alloc(bytes, byte)

describe('reading', () => {
  test('what was written is there, by every way to read it', async () => {
    const { file } = fresh()
    file.writeSync(filled(1, 5000), 0)
    await file.write(filled(2, 5000), 5000)
    const all = Buffer.concat([filled(1, 5000), filled(2, 5000)])
    for (const how of ['read', 'readSync', 'readNow'] as const) {
      const into = Buffer.alloc(10_000, 9)
      const result = await file[how](into, 0)
      if (how === 'readNow') expect(result).toBe(10_000)
      expect(into.equals(all)).toBe(true)
    }
    file.close()
  })

  test('beyond the end there are zeros', async () => {
    const { file } = fresh()
    file.writeSync(filled(1, 100), 0)
    for (const how of ['read', 'readSync'] as const) {
      const into = Buffer.alloc(200, 9)
      await file[how](into, 50)
      expect(into.equals(Buffer.concat([filled(1, 50), filled(0, 150)]))).toBe(true)
    }
    const into = Buffer.alloc(200, 9)
    expect(file.readNow(into, 50)).toBe(50)
    expect(file.readNow(into, 5000)).toBe(200)
    expect(into.equals(filled(0, 200))).toBe(true)
    file.close()
  })

  test('what is not in memory is not waited for', async () => {
    if (statfsSync(directory).type === TMPFS_MAGIC) return
    const { name, file } = fresh()
    file.writeSync(filled(1, 1024 * 1024), 0)
    await file.sync()
    const into = Buffer.alloc(64 * 1024)
    const readCold = () => {
      // count=0 with this flag: dd(1) asks the kernel to drop its cache of the file.
      execFileSync('dd', [`if=${join(directory, name)}`, 'iflag=nocache', 'count=0', 'status=none'])
      return file.readNow(into, 512 * 1024)
    }
    // Pages that some processor still keeps in a batch of its own do not leave at the first attempt.
    let read = readCold()
    for (let tries = 0; read !== -1 && tries < 50; tries++) {
      await sleep(20)
      read = readCold()
    }
    expect(read).toBe(-1)
    await file.read(into, 512 * 1024)
    expect(into.equals(filled(1, into.length))).toBe(true)
    expect(file.readNow(into, 512 * 1024)).toBe(into.length)
  })

  test('nothing is read into nothing', async () => {
    const { file } = fresh()
    await file.read(new Uint8Array(0), 0)
    expect(file.readNow(new Uint8Array(0), 0)).toBe(0)
    file.close()
  })
})

describe('space', () => {
  test('a file can be long without taking space, or be written with zeros', () => {
    const bytes = 1024 * 1024 + 1
    const sparse = fresh({ bytes })
    const whole = fresh({ bytes, allocate: true })
    expect(statOf(sparse.name)).toMatchObject({ size: bytes, blocks: 0 })
    whole.file.syncSync()
    expect(statOf(whole.name).size).toBe(bytes)
    expect(statOf(whole.name).blocks * 512).toBeGreaterThanOrEqual(bytes)
  })

  test('opening again leaves what is there, and never shortens', () => {
    const { name, file } = fresh({ bytes: 8192 })
    file.writeSync(filled(7, 10), 8182)
    file.close()
    const again = storage.open(name, { bytes: 100, allocate: true })
    const into = Buffer.alloc(10)
    again.readSync(into, 8182)
    expect(into.equals(filled(7, 10))).toBe(true)
    expect(statOf(name)).toMatchObject({ size: 8192, mode: 0o100600 })
  })

  test('a hole gives the space back and reads as zeros', async () => {
    const { name, file } = fresh({ bytes: 64 * 1024, allocate: true })
    file.writeSync(filled(1, 64 * 1024), 0)
    await file.sync()
    const before = statOf(name).blocks
    file.punch(8192, 32 * 1024)
    expect(statOf(name).blocks).toBe(before - 64)
    const into = Buffer.alloc(64 * 1024)
    file.readSync(into, 0)
    expect(into.subarray(8192, 8192 + 32 * 1024).every(byte => byte === 0)).toBe(true)
    expect(into[8191]).toBe(1)
    file.punch(1024 ** 4, 1024 ** 4) // far beyond the end
    expect(statOf(name).size).toBe(64 * 1024)
  })

  test('space is reserved for a file that is no longer for it', () => {
    const { name, file } = fresh()
    file.writeSync(filled(1, 100), 0)
    storage.reserve(name, 1024 * 1024)
    expect(statOf(name)).toMatchObject({ size: 100 })
    expect(statOf(name).blocks * 512).toBeGreaterThanOrEqual(1024 * 1024)
    expect(() => storage.reserve(name, 2 ** 50)).toThrow(
      expect.objectContaining({ code: expect.stringMatching(/NO_SPACE|TOO_LARGE/) }),
    )
    file.close()
  })

  test('free space is told in bytes', () => {
    expect(storage.freeBytes()).toBeGreaterThan(0)
  })
})

describe('names', () => {
  test('are listed, renamed and removed', () => {
    const { name, file } = fresh()
    file.writeSync(filled(1, 10), 0)
    storage.rename(name, 'renamed')
    expect(storage.list()).toContain('renamed')
    expect(storage.list()).not.toContain(name)
    storage.remove('renamed')
    expect(readdirSync(directory)).not.toContain('renamed')
    expect(() => storage.remove('renamed')).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }))
    expect(() => storage.rename('renamed', 'other')).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }))
  })

  test('a file that cannot be opened is named', () => {
    expect(() => storage.open('no/such')).toThrow(/no\/such/)
  })
})

test('a journal on it is all there for the next process, synced or not', async () => {
  const path = mkdtempSync(join(directory, 'journal-'))
  const options = { segmentBytes: 1024 * 1024 }
  const before = Journal.open(diskStorage(path), options)
  before.replay(0, () => true)
  const bodies = Array.from({ length: 3000 }, (_, i) => filled(i % 256, (i * 37) % 3000))
  for (const [i, body] of bodies.entries()) {
    before.append(1, [body], body.length)
    if (i % 500 === 0) await before.sync()
  }
  const after = Journal.open(diskStorage(path), options)
  const found: Buffer[] = []
  const result = after.replay(0, (_lsn, _kind, body) => found.push(Buffer.from(body)) > 0)
  expect(result).toEqual({ lastLsn: 3000, records: 3000, discarded: 0 })
  expect(found.every((body, i) => body.equals(bodies[i]))).toBe(true)
  await after.close()
  await before.close()
})

describe('closing', () => {
  test('waits for what is on the thread pool, so that its descriptor is not given to another file', async () => {
    const { name, file } = fresh()
    const writes = Array.from({ length: 20 }, (_, i) => file.write(filled(i + 1, 100_000), i * 100_000))
    const synced = file.sync()
    file.close()
    file.close()
    const others = Array.from({ length: 20 }, (_, i) => join(directory, `other-${i}`))
    for (const path of others) writeFileSync(path, 'untouched')
    await Promise.all([...writes, synced])
    expect(statOf(name).size).toBe(2_000_000)
    for (const path of others) expect(statSync(path).size).toBe(9)
    expect(() => file.readSync(new Uint8Array(1), 0)).toThrow(expect.objectContaining({ code: 'CLOSED' }))
  })
})
