import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import { openCacheDir } from '../../src/cache/cache-dir.js'

const base = mkdtempSync(join(tmpdir(), 'pageferry-cache-dir-'))
afterAll(() => rmSync(base, { recursive: true }))

let count = 0
const fresh = () => join(base, `deep-${++count}`, 'cache')
const remote = 's3://bucket/prefix'

/** A lock that knows only this process. */
const held = new Set<string>()
const lock = (path: string) => {
  if (held.has(path)) return 4711
  held.add(path)
  return () => void held.delete(path)
}
const open = (path: string, options: { remote?: string } = {}) => openCacheDir(path, { remote, lock, ...options })
const code = (code: string) => expect.objectContaining({ code })

describe('a cache directory', () => {
  test('is made, private, and keeps its writer', () => {
    const path = fresh()
    const first = open(path)
    expect(statSync(path).mode & 0o777).toBe(0o700)
    expect(first.writer).toMatch(/^[0-9a-f-]{36}$/)
    first.close()
    first.close()
    using second = open(path)
    expect(second.writer).toBe(first.writer)
    expect(second.remote).toBe(remote)
  })

  test('is used by one process at a time: the other hears who has it', () => {
    const path = fresh()
    using _ = open(path)
    expect(() => open(path)).toThrow('in use: process 4711 uses the cache directory')
    expect(() => open(path)).toThrow(code('BUSY'))
  })

  test('belongs to one remote', () => {
    const path = fresh()
    open(path).close()
    expect(() => open(path, { remote: 's3://other' })).toThrow(
      `${path} belongs to s3://bucket/prefix, not to s3://other`,
    )
    open(path).close()
  })

  test('is not shared with those who could write to it', () => {
    const path = fresh()
    open(path).close()
    for (const mode of [0o770, 0o702, 0o777]) {
      chmodSync(path, mode)
      expect(() => open(path)).toThrow(code('FORBIDDEN'))
    }
    chmodSync(path, 0o755)
    open(path).close()
    expect(statSync(path).mode & 0o777).toBe(0o700)
  })

  test('is not somebody elses', () => {
    const uid = process.geteuid
    const path = fresh()
    open(path).close()
    try {
      process.geteuid = () => 12345
      expect(() => open(path)).toThrow(/belongs to another user/)
    } finally {
      process.geteuid = uid
    }
  })

  test('is not made of a directory with something else in it', () => {
    const path = fresh()
    mkdirSync(path, { recursive: true, mode: 0o700 })
    writeFileSync(join(path, 'letter.txt'), 'dear')
    expect(() => open(path)).toThrow(/is not a cache directory, and not empty \(letter.txt\)/)
    const file = join(path, 'letter.txt')
    expect(() => open(file)).toThrow(code('EXISTS'))
  })

  test('of a newer format, or a broken one, is refused', () => {
    const path = fresh()
    open(path).close()
    const file = join(path, 'FORMAT')
    const format = JSON.parse(readFileSync(file, 'utf8'))
    const rewrite = (change: object) => writeFileSync(file, JSON.stringify({ ...format, ...change }))
    rewrite({ major: 2 })
    expect(() => open(path)).toThrow(code('TOO_NEW'))
    rewrite({ features: 1 })
    expect(() => open(path)).toThrow(code('TOO_NEW'))
    rewrite({ major: 0 })
    expect(() => open(path)).toThrow(code('BAD_FORMAT'))
    writeFileSync(file, '{"magic"')
    expect(() => open(path)).toThrow(code('BAD_FORMAT'))
    rewrite({ minor: 7, somethingNew: true })
    open(path).close()
    expect(held.size).toBe(0)
  })
})
