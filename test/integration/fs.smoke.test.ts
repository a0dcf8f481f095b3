import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { mountMemory } from '../fixtures/fs-mount.js'

test('what is written is read', async () => {
  const mount = await mountMemory()
  const at = (name: string) => join(mount.path, name)
  await mkdir(at('d'))
  await writeFile(at('d/f'), 'hello')
  expect(await readFile(at('d/f'), 'utf8')).toBe('hello')
  expect(await readdir(at('d'))).toEqual(['f'])
  expect((await stat(at('d/f'))).size).toBe(5)
  await rm(at('d'), { recursive: true })
  expect(await readdir(mount.path)).toEqual([])
  await mount.end()
})
