import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { afterEach, expect, test } from '@jest/globals'
import { open } from 'lmdb'
import { chunkKey, Database, damageOf, inodeKey, type Meta, nameDbKey, type Write } from '../../src/cache/database.js'
import { Inode } from '../../src/cache/inode.js'
import { diskStorage } from '../../src/linux/storage.js'
import { compile } from '../fixtures/compiled.js'
import { temporaryDirectory } from '../model/engine-harness.js'

const meta: Meta = {
  lsn: 7,
  inoReserved: 100,
  batch: 1,
  flightBatch: 0,
  open: { names: [], inodes: [], orphans: [], operations: 0, sinceMs: 0 },
  flight: null,
  quarantine: [],
  conflicts: [],
}

let directory = ''
afterEach(() => fs.rmSync(directory, { recursive: true, force: true }))

test('names are bytes: all of them come back, in the order of their cookies', async () => {
  directory = temporaryDirectory()
  const database = new Database(directory, diskStorage(directory))
  const names = ['b', 'a', 'Ä\u00ff\u0080', '\n\u0001', 'x'.repeat(255), '\u00ff'.repeat(255)]
  await database.write(
    names.map((name, n) => ({ key: nameDbKey(1, name), value: [n + 10, 0o100000, n + 3] })),
    meta,
  )
  expect([...database.dentries(1).keys()]).toEqual(names)
  expect(database.dentries(2).size).toBe(0)
  expect(database.meta()).toEqual(meta)
  await database.close()
})

test('other formats are refused in one line that says both, and are not called damaged', async () => {
  directory = temporaryDirectory()
  const newer = open({ path: directory, encoding: 'msgpack', keyEncoding: 'binary' })
  await newer.put(Buffer.from('format'), { magic: 'PFNAMES', major: 3, minor: 3, features: 0 })
  await newer.close()
  expect(damageOf(directory)).toBeUndefined()
  expect(() => new Database(directory, diskStorage(directory))).toThrow(
    /written by a newer version: .*format 3\.3, this version reads up to 2\.x/,
  )
  fs.rmSync(directory, { recursive: true })
  fs.mkdirSync(directory)
  const older = open({ path: directory, encoding: 'msgpack' })
  await older.put(['format'], { magic: 'PFNAMES', major: 1, minor: 0, features: 0 })
  await older.put(['i', 1], [1, 0o40755])
  await older.close()
  expect(damageOf(directory)).toBeUndefined()
  expect(() => new Database(directory, diskStorage(directory))).toThrow(
    /not a format of ours: .*format 1\.0, this version reads 2\.x/,
  )
})

/** Directories of files with chunks, after as many checkpoints as it takes for pages to be free and used again. */
async function fill(database: Database, files: number): Promise<void> {
  for (let round = 0; round < 6; round++) {
    const writes: Write[] = []
    for (let ino = 1 + (round % 3); ino <= files; ino += 1 + (round % 3)) {
      const inode = new Inode(ino)
      inode.name = `file ${ino} of round ${round}`
      inode.mtimeNs = 1_700_000_000_123_456_789n + BigInt(ino)
      // Some are too large for a page, and become shorter in the same transaction.
      if (ino % 97 === 0)
        for (const bytes of [20_000, 5_000]) {
          inode.xattrs = new Map([['user.large', Buffer.alloc(bytes, ino)]])
          writes.push({ key: inodeKey(ino), value: inode.toRecord() })
        }
      else writes.push({ key: inodeKey(ino), value: inode.toRecord() })
      const key = nameDbKey(1 + (ino >> 6), inode.name)
      writes.push(round < 4 ? { key, value: [ino, 0o100000, ino + 3] } : { key, remove: true })
      writes.push({ key: chunkKey(ino, round), value: [ino, 0xffff_ffff, 0, 0, 0, ino * 77_777, round] })
    }
    await database.write(writes, { ...meta, inoReserved: files + 1, lsn: round })
  }
}

test('whatever is damaged, the database has what it had, or it is found', async () => {
  directory = temporaryDirectory()
  const database = new Database(directory, diskStorage(directory))
  await fill(database, 600)
  await database.close()
  const { path, remove } = compile('test/fixtures/damaged-database.ts')
  try {
    const seeds = process.env.PAGEFERRY_LONG ? 400 : 24
    const child = spawnSync(process.execPath, [path, directory, String(seeds)], { encoding: 'utf8' })
    const [first, ...lines] = child.stdout.trimEnd().split('\n')
    const content = first.replace('none 0: ', '')
    expect(content).toMatch(/^[0-9a-f]{64}$/)
    expect(lines.filter(line => !line.endsWith(': found') && !line.endsWith(`: ${content}`))).toEqual([])
    expect(child.status).toBe(0)
    // Much of it hits free pages; enough of it does not.
    expect(lines.filter(line => line.endsWith(': found')).length).toBeGreaterThan(lines.length / 4)
  } finally {
    remove()
  }
})

test('no checkpoint leaves a file that looks damaged, with or without a clean end', async () => {
  directory = temporaryDirectory()
  for (let opened = 0; opened < 3; opened++) {
    const database = new Database(directory, diskStorage(directory))
    for (let files = 10; files < 1_000; files *= 3) {
      await fill(database, files)
      expect(damageOf(directory)).toBeUndefined()
    }
    await database.close()
    expect(fs.existsSync(`${directory}/sum`)).toBe(true)
    expect(damageOf(directory)).toBeUndefined()
  }
})

test('what rots while it is open is an error where it is read, and nothing is written any more', async () => {
  directory = temporaryDirectory()
  const database = new Database(directory, diskStorage(directory))
  await fill(database, 100)
  const file = `${directory}/data.mdb`
  const bytes = fs.readFileSync(file)
  const fd = fs.openSync(file, 'r+')
  for (let at = bytes.indexOf('file 50 of'); at >= 0; at = bytes.indexOf('file 50 of', at + 1))
    fs.writeSync(fd, Buffer.from('fill 50 of'), 0, 10, at)
  fs.closeSync(fd)
  expect(database.inode(49)?.[0]).toBe(49)
  for (let reads = 1; reads < 3; reads++) {
    expect(() => database.inode(50)).toThrow(expect.objectContaining({ code: 'CORRUPT' }))
    expect(database.damage?.reads).toBe(reads)
  }
  await expect(database.write([], meta)).rejects.toMatchObject({ code: 'CORRUPT' })
  await database.close()
  expect(fs.existsSync(`${directory}/sum`)).toBe(false)
  expect(damageOf(directory)).toBeDefined()
})
