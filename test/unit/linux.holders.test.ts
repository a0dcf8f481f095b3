import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from '@jest/globals'
import { holdersOf } from '../../src/linux/holders.js'
import { requires } from '../fixtures/requires.js'

const folder = mkdtempSync(join(realpathSync(tmpdir()), 'pageferry-linux-'))
afterAll(() => rmSync(folder, { recursive: true }))

test('nobody is in an empty directory, nor in one whose name only begins alike', async () => {
  const fd = openSync(`${folder}x`, 'w')
  expect(await holdersOf(folder)).toEqual([])
  closeSync(fd)
  rmSync(`${folder}x`)
})

requires('python3').test('working directories, open files and mappings are found, each with its process', async () => {
  const file = join(folder, 'file')
  writeFileSync(file, 'x'.repeat(5000))
  const program = `
import mmap, os, sys, time
f = open('file', 'rb')
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
fd = f.fileno()
print(fd, flush=True)
sys.stdin.read()`
  const child = spawn('python3', ['-c', program], { cwd: folder, stdio: ['pipe', 'pipe', 'inherit'] })
  const [line] = await once(child.stdout, 'data')
  const found = await holdersOf(folder)
  expect(found.every(({ pid, command }) => pid === child.pid && /^python/.test(command))).toBe(true)
  expect(found.map(({ what }) => what).sort()).toEqual(
    [`fd ${Number(String(line))}: ${file}`, `mapping: ${file}`, `working directory: ${folder}`].sort(),
  )
  child.stdin.end()
  await once(child, 'exit')
  expect(await holdersOf(folder)).toEqual([])
})
