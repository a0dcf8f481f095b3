import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from '@jest/globals'
import { lockHolder, tryLock, unlock } from '../../src/linux/lock.js'
import { requires } from '../fixtures/requires.js'

const folder = mkdtempSync(join(tmpdir(), 'pageferry-linux-'))
afterAll(() => rmSync(folder, { recursive: true }))

test('one at a time; closing gives it back', () => {
  const path = join(folder, 'a')
  const first = openSync(path, 'a')
  const second = openSync(path, 'a')
  expect(lockHolder(first)).toBeUndefined()
  expect(tryLock(first)).toBe(true)
  expect(tryLock(first)).toBe(true)
  expect(tryLock(second)).toBe(false)
  expect(lockHolder(second)).toBe(process.pid)
  unlock(first)
  expect(tryLock(second)).toBe(true)
  closeSync(second)
  expect(tryLock(first)).toBe(true)
  closeSync(first)
})

requires('flock').test('names another process that holds it, and lets go when that one is killed', async () => {
  const path = join(folder, 'b')
  const other = spawn('flock', ['--no-fork', path, 'sh', '-c', 'echo locked; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(other.stdout!, 'data')
  const fd = openSync(path, 'a')
  expect(tryLock(fd)).toBe(false)
  expect(lockHolder(fd)).toBe(other.pid)
  other.kill('SIGKILL')
  await once(other, 'exit')
  expect(tryLock(fd)).toBe(true)
  closeSync(fd)
})
