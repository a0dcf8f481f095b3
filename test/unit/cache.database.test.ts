import fs from 'node:fs'
import { afterEach, expect, test } from '@jest/globals'
import { open } from 'lmdb'
import { Database, type Meta } from '../../src/cache/database.js'
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
  const database = new Database(directory)
  const names = ['b', 'a', 'Ä\u00ff\u0080', '\n\u0001', 'x'.repeat(255), '\u00ff'.repeat(255)]
  await database.write(
    names.map((name, n) => ({ key: ['n', 1, name], value: [n + 10, 0o100000, n + 3] })),
    meta,
  )
  expect([...database.dentries(1).keys()]).toEqual(names)
  expect(database.dentries(2).size).toBe(0)
  expect(database.meta()).toEqual(meta)
  await database.close()
})

test('a newer format is refused in one line that says both', async () => {
  directory = temporaryDirectory()
  const raw = open({ path: directory, encoding: 'msgpack' })
  await raw.put(['format'], { magic: 'PFNAMES', major: 2, minor: 3, features: 0 })
  await raw.close()
  expect(() => new Database(directory)).toThrow(
    /written by a newer version: .*format 2\.3, this version reads up to 1\.x/,
  )
})
