// README.md says what was measured and captured, and nothing that a hand typed; its links lead somewhere.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { mountOptionRows } from '../src/options.js'

const project = resolve(import.meta.dirname, '..')
const textOf = (path: string) => readFileSync(join(project, path), 'utf8')
const documents = [
  'README.md',
  'CHANGELOG.md',
  'docs/ARCHITECTURE.md',
  'docs/SEMANTICS.md',
  'docs/REMOTES.md',
  'docs/S3.md',
  'docs/REGIONS.md',
  'docs/NBD.md',
  'docs/BOOT.md',
  'docs/MEMORY.md',
  'docs/GRPC.md',
]

describe('README.md', () => {
  const readme = textOf('README.md')

  test('has in its blocks what scripts/readme.mjs would write', () => {
    const { status, stderr } = spawnSync(process.execPath, ['scripts/readme.mjs', '--check'], {
      cwd: project,
      encoding: 'utf8',
    })
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  })

  test('is not a book', () => {
    const typed = readme.replace(/(<!-- (\w+):begin -->).*?(?=<!-- \2:end -->)/gs, '$1\n')
    expect(typed.split('\n').length).toBeLessThan(200)
  })

  test('names options and defaults as they are', () => {
    const rows = [...readme.matchAll(/^\| `--([a-z-]+)[^`]*` \| ([^|]*) \|/gm)]
    expect(rows.length).toBeGreaterThan(5)
    for (const [, flag, fallback] of rows) {
      const row = mountOptionRows.find(one => one.flag === flag)
      expect(row && flag).toBe(flag)
      const computed = row?.fallback === undefined || fallback.trim() === 'off'
      if (!computed) expect(fallback.trim()).toBe(String(row?.fallback))
    }
  })
})

describe.each(documents)('%s', document => {
  const text = textOf(document)

  test('links to files that are there', () => {
    for (const [, target] of text.matchAll(/\]\(([^)#]+)[^)]*\)/g))
      if (!/^https:/.test(target))
        expect([target, existsSync(join(project, dirname(document), target))]).toEqual([target, true])
  })

  test('names files of the project that are there', () => {
    for (const [, path] of text.matchAll(/`((?:src|test|examples|scripts|bench|docs)\/[\w./-]+)`/g))
      expect([path, existsSync(join(project, path))]).toEqual([path, true])
  })
})
