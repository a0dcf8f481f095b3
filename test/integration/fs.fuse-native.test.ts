// The second driver, once through: the same file system by way of libfuse 2.
import { mkdir, open, readdir, readFile, rename, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { mountMemory, run } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root', 'fuse-native')

describe('fuse-native', () => {
  test('mounts, writes, reads, lists, and is unmounted', async () => {
    const mount = await mountMemory({ driver: 'fuse-native' })
    const at = (name: string) => join(mount.path, name)
    await mkdir(at('d'))
    const bytes = Buffer.alloc(300_000, 'native')
    await writeFile(at('d/file'), bytes)
    expect((await readFile(at('d/file'))).equals(bytes)).toBe(true)
    await symlink('d/file', at('link'))
    expect((await readFile(at('link'))).equals(bytes)).toBe(true)
    await rename(at('d/file'), at('d/täxt'))
    expect(await readdir(at('d'))).toEqual(['täxt'])
    await truncate(at('d/täxt'), 6)
    expect(await readFile(at('d/täxt'), 'utf8')).toBe('native')
    const file = await open(at('d/täxt'), 'r+')
    await file.write('N', 0)
    await file.sync()
    await file.close()
    expect((await stat(at('d/täxt'))).size).toBe(6)
    await run('python3', [
      '-c',
      `import os, sys; p = sys.argv[1]; os.setxattr(p, 'user.a', b'1'); assert os.getxattr(p, 'user.a') == b'1'; assert os.listxattr(p) == ['user.a']`,
      at('d/täxt'),
    ])
    await expect(stat(at('nothing'))).rejects.toMatchObject({ code: 'ENOENT' })
    await rm(at('d'), { recursive: true })
    expect(await readdir(mount.path)).toEqual(['link'])
    const { opens, logged, waiting } = await mount.status()
    expect({ opens, logged, waiting }).toEqual({ opens: [], logged: [], waiting: 0 })
    await mount.call({ do: 'unmount', lazy: false })
    await expect(readdir(mount.path)).resolves.toEqual([])
    await mount.end()
  })
})
