// The examples of the documents do what the documents say of them.
import { readdirSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { expect, test } from '@jest/globals'
import { mapTree } from '../examples/remote.js'
import { isMounted, run } from './fixtures/daemon.js'
import { requires } from './fixtures/requires.js'
import { placeForTest } from './fixtures/trees.js'
import { treeSuite as commitsSuite } from './remotes/commits.js'
import { treeSuite as primitivesSuite } from './remotes/primitives.js'

const examples = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'examples')

test('every example has its test here', () => {
  expect(readdirSync('examples').sort()).toEqual(['hello.ts', 'region.ts', 'remote.ts'])
})

requires('built', 'fuse').test('hello.ts mounts, writes, and finds its file at the remote', async () => {
  const place = await placeForTest()
  await mkdir(join(place.folder, 'home'))
  const env = { ...place.env, HOME: join(place.folder, 'home') }
  const output = await run(process.execPath, [join(examples, 'hello.js'), place.remote, place.mountpoint], { env })
  expect(output).toBe('lag: true\nat the remote: hello\n\n')
  expect(isMounted(place.mountpoint)).toBe(false)
})

requires('built').test('region.ts reads, writes, and has its block at the remote', async () => {
  const place = await placeForTest()
  const image = join(place.remote, 'disk.img')
  await writeFile(image, Buffer.alloc(100_000))
  const output = await run(process.execPath, [join(examples, 'region.js'), image], { env: place.env })
  expect(output).toMatch(/^size: 100000 here: 0\.\d+ lag: 0\n$/)
  expect((await readFile(image)).subarray(0, 6).toString()).toBe('hello\0')
})

primitivesSuite('examples/remote.ts', async () => ({ remote: mapTree() }))
commitsSuite('examples/remote.ts', {
  open: async () => ({ tree: mapTree(), dispose: async () => {} }),
  fencedDirectories: false,
  batches: 1,
  operations: 6,
  share: 0.2,
})
