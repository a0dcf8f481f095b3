// What only a directory of this host can do to us: vanish, be changed by others, be full of what is not ours.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { listxattr, setxattr } from '../../src/linux/xattr.js'
import { fileBlob } from '../../src/remote/file-blob.js'
import { fileStore, fileStoreBeside } from '../../src/remote/file-store.js'
import { fileTree } from '../../src/remote/file-tree.js'
import type { Tree } from '../../src/remote/tree.js'
import { requires } from '../fixtures/requires.js'
import { compileOnce } from '../remotes/compiled.js'

const bytes = (text: string) => new Uint8Array(Buffer.from(text))
const node = { mode: 0o100644, uid: 0, gid: 0, atimeNs: 0n, mtimeNs: 0n, rdev: 0 }
const codeOf = (call: Promise<unknown>) =>
  call.then(
    () => 'it worked',
    (error: { code: string }) => error.code,
  )

let above: string
let directory: string
beforeEach(() => {
  above = fs.mkdtempSync(join(tmpdir(), 'pageferry-'))
  directory = join(above, 'root')
  fs.mkdirSync(directory)
})
afterEach(() => fs.rmSync(above, { recursive: true, force: true }))

const asRoot = requires('root')
const hasLoops = spawnSync('losetup', ['-f']).status === 0
const withLoops = requires('root', 'mkfs.ext4', hasLoops ? 'losetup' : 'loop devices')

const openDescriptors = () => fs.readdirSync('/proc/self/fd').length

describe('a directory that vanishes', () => {
  const everything = (tree: Tree): [string, () => Promise<unknown>][] => [
    ['stat', () => tree.stat('f')],
    ['stat of what was never there', () => tree.stat('none')],
    ['stat of the root', () => tree.stat('')],
    ['list', () => tree.list('')],
    ['list below', () => tree.list('d')],
    ['read', () => tree.read('f', { at: 0, length: 1 })],
    ['xattrs', () => tree.xattrs('f')],
    ['usage', () => tree.usage()],
    ['write', () => tree.write('f', 0, bytes('x'))],
    ['truncate', () => tree.truncate('f', 0)],
    ['punch', () => tree.punch('f', 0, 1)],
    ['make', () => tree.make('new', node)],
    ['link', () => tree.link('f', 'g')],
    ['rename', () => tree.rename('f', 'g')],
    ['remove', () => tree.remove('f')],
    ['setAttributes', () => tree.setAttributes('f', { mode: 0o600 })],
    ['setXattrs', () => tree.setXattrs('f', new Map())],
    ['sync', () => tree.sync(['f'])],
    ['hidden get', () => tree.hidden.get('a')],
    ['hidden head', () => tree.hidden.head('none')],
    ['hidden put', () => tree.hidden.put('b', bytes('x'))],
    ['hidden remove', () => tree.hidden.remove('none')],
    ['hidden list', () => tree.hidden.list('')],
  ]

  const prepared = async () => {
    const tree = await fileTree(directory)
    await tree.make('d', { ...node, mode: 0o040755 })
    await tree.make('f', node)
    await tree.hidden.put('a', bytes('x'))
    return tree
  }

  test('is out of reach, and nothing in it is said to be gone', async () => {
    const tree = await prepared()
    fs.renameSync(directory, `${directory}-away`)
    for (const [name, call] of everything(tree)) expect([name, await codeOf(call())]).toEqual([name, 'UNREACHABLE'])
    fs.renameSync(`${directory}-away`, directory)
    expect(await tree.stat('f')).not.toBeNull()
    await tree.close()
  })

  test('an empty mount point in its place is not it, and stays empty', async () => {
    const tree = await prepared()
    fs.renameSync(directory, `${directory}-away`)
    fs.mkdirSync(directory)
    for (const [name, call] of everything(tree)) expect([name, await codeOf(call())]).toEqual([name, 'UNREACHABLE'])
    expect(fs.readdirSync(directory)).toEqual([])
    await tree.close()
  })

  test('a file in its place is not it either', async () => {
    const tree = await prepared()
    fs.renameSync(directory, `${directory}-away`)
    fs.writeFileSync(directory, '')
    for (const [name, call] of everything(tree)) expect([name, await codeOf(call())]).toEqual([name, 'UNREACHABLE'])
    await tree.close()
  })

  withLoops.test('a disk that is unmounted and mounted again is the same', async () => {
    const image = join(above, 'image')
    execFileSync('truncate', ['-s', '8M', image])
    execFileSync('mkfs.ext4', ['-q', image])
    execFileSync('mount', ['-o', 'loop', image, directory])
    const tree = await fileTree(directory)
    try {
      await tree.make('f', node)
      await tree.hidden.put('a', bytes('x'))
      await tree.close()
      execFileSync('umount', [directory])
      for (const [name, call] of everything(tree)) expect([name, await codeOf(call())]).toEqual([name, 'UNREACHABLE'])
      expect(fs.readdirSync(directory)).toEqual([])
      execFileSync('mount', ['-o', 'loop', image, directory])
      expect(await tree.stat('f')).not.toBeNull()
    } finally {
      await tree.close()
      execFileSync('umount', [directory])
    }
  })
})

describe('a directory that others use, too', () => {
  test('a chmod of theirs is no new version, a write is', async () => {
    const tree = await fileTree(directory)
    fs.writeFileSync(join(directory, 'f'), 'one')
    const { version } = (await tree.stat('f'))!
    fs.chmodSync(join(directory, 'f'), 0o600)
    expect((await tree.stat('f'))!.version).toBe(version)
    expect(await codeOf(tree.read('f', { at: 0, length: 3, version }))).toBe('it worked')
    await new Promise(resolve => setTimeout(resolve, 20))
    fs.writeFileSync(join(directory, 'f'), 'two')
    expect(await codeOf(tree.read('f', { at: 0, length: 3, version }))).toBe('STALE')
    await tree.close()
  })

  test('a version that is read is read whole, though others write all the while', async () => {
    const tree = await fileTree(directory)
    const path = join(directory, 'f')
    fs.writeFileSync(path, Buffer.alloc(1 << 20, 1))
    let mixed = 0
    let whole = 0
    for (let round = 2; round < 60; round++) {
      const { version } = (await tree.stat('f'))!
      const reading = tree.read('f', { at: 0, length: 1 << 20, version })
      const later = new Promise(resolve => setTimeout(resolve, round % 8))
      const writing = later
        .then(() => fs.promises.open(path, 'r+'))
        .then(async file => {
          await file.write(Buffer.alloc(1 << 20, round), 0, 1 << 20, 0)
          await file.close()
        })
      await reading.then(
        got => {
          if (got.every(byte => byte === got[0])) whole++
          else mixed++
        },
        error => expect(error.code).toBe('STALE'),
      )
      await writing
      await new Promise(resolve => setTimeout(resolve, 12))
    }
    expect(mixed).toBe(0)
    expect(whole).toBeGreaterThan(0)
    await tree.close()
  })

  test('a symlink in the place of a file is not followed, not even by what is open', async () => {
    const tree = await fileTree(directory)
    await tree.make('f', node)
    await tree.write('f', 0, bytes('mine'))
    const victim = join(above, 'victim')
    fs.writeFileSync(victim, 'precious')
    fs.unlinkSync(join(directory, 'f'))
    fs.symlinkSync(victim, join(directory, 'f'))
    expect(await codeOf(tree.write('f', 0, bytes('evil')))).toBe('INVALID')
    expect(await codeOf(tree.truncate('f', 0))).toBe('INVALID')
    expect(await codeOf(tree.read('f', { at: 0, length: 4 }))).toBe('INVALID')
    await tree.setAttributes('f', { mode: 0o777, mtimeNs: 5n })
    expect(fs.readFileSync(victim, 'utf8')).toBe('precious')
    expect(fs.statSync(victim).mode & 0o777).not.toBe(0o777)
    await tree.close()
  })

  asRoot.test('attributes that are not ours to carry stay where they are', async () => {
    const tree = await fileTree(directory)
    const path = Buffer.from(join(directory, 'f'))
    fs.writeFileSync(path, '')
    if (tree.capabilities.xattrBytesMax === 0) return
    setxattr(path, Buffer.from('security.pageferry-test'), bytes('x'))
    await tree.setXattrs(
      'f',
      new Map([
        ['user.a', bytes('1')],
        ['trusted.b', bytes('2')],
      ]),
    )
    expect([...(await tree.xattrs('f')).keys()].sort()).toEqual(['trusted.b', 'user.a'])
    await tree.setXattrs('f', new Map())
    expect(listxattr(path).map(String)).toEqual(['security.pageferry-test'])
    await tree.close()
  })
})

describe('somebody who is not root', () => {
  asRoot.test('writes files of theirs whatever their mode, and cannot give them away', async () => {
    compileOnce()
    const nobody = { uid: 65534, gid: 65534 }
    fs.chmodSync(above, 0o755)
    fs.chownSync(directory, nobody.uid, nobody.gid)
    const script = `
      import { fileTree } from '${pathToFileURL(join(import.meta.dirname, '../../dist/src/remote/file-tree.js')).href}'
      const tree = await fileTree(${JSON.stringify(directory)})
      const { owners, specialFiles } = tree.capabilities
      const node = { uid: 7, gid: 7, atimeNs: 0n, mtimeNs: 5n, rdev: 0 }
      await tree.make('f', { ...node, mode: 0o100444 })
      await tree.write('f', 0, Buffer.from('x'))
      await tree.setAttributes('f', { uid: 8, mode: 0o000 })
      const bytes = await tree.read('f', { at: 0, length: 9 })
      await tree.sync(['f'])
      const { mode, uid } = await tree.stat('f')
      await tree.hidden.put('a', Buffer.from('x'))
      const device = await tree.make('dev', { ...node, mode: 0o020600, rdev: 259 }).catch(error => error.code)
      const root = await fileTree('/')
      const refused = await root.make('pageferry-test', { ...node, mode: 0o100644 }).catch(error => error.code)
      console.log(JSON.stringify({ owners, specialFiles, mode, uid, size: bytes.length, device, refused }))`
    const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
      ...nobody,
      env: {},
      cwd: '/',
    })
    expect(JSON.parse(output.toString())).toEqual({
      ...{ owners: false, specialFiles: false },
      ...{ mode: 0o100000, uid: 65534, size: 1, device: 'NOT_PERMITTED', refused: 'FORBIDDEN' },
    })
  })
})

describe('what a tree keeps open', () => {
  test('is bounded, however many files are read and written', async () => {
    const tree = await fileTree(directory)
    const before = openDescriptors()
    for (let i = 0; i < 400; i++) {
      await tree.make(`f${i}`, node)
      await tree.write(`f${i}`, 0, bytes(String(i)))
    }
    await Promise.all(
      Array.from({ length: 400 }, async (_, i) => {
        expect(Buffer.from(await tree.read(`f${i}`, { at: 0, length: 9 })).toString()).toBe(String(i))
      }),
    )
    expect(openDescriptors() - before).toBeLessThanOrEqual(260)
    await tree.close()
    await new Promise(resolve => setTimeout(resolve, 50))
    expect(openDescriptors() - before).toBeLessThanOrEqual(1)
  })

  test('does not keep the space of a file that is gone for long', async () => {
    const tree = await fileTree(directory)
    const before = openDescriptors()
    await tree.make('f', node)
    await tree.write('f', 0, bytes('x'))
    await tree.remove('f')
    await tree.make('f', node)
    await tree.write('f', 0, bytes('y'))
    expect(openDescriptors() - before).toBe(1)
    await tree.close()
  })

  test('is given back by a list of cursors nobody comes back with', async () => {
    const tree = await fileTree(directory)
    for (let i = 0; i < 1100; i++) fs.writeFileSync(join(directory, `f${i}`), '')
    const before = openDescriptors()
    const cursors = await Promise.all(Array.from({ length: 50 }, () => tree.list('')))
    expect(new Set(cursors.map(one => one.cursor)).size).toBe(1)
    expect(openDescriptors()).toBe(before)
    await tree.close()
  })
})

describe('a store of files', () => {
  test('is still atomic between openers that know nothing of each other', async () => {
    const stores = await Promise.all(Array.from({ length: 5 }, () => fileStore(directory)))
    let version = await stores[0].put('a', bytes('0'))
    for (let round = 0; round < 10; round++) {
      const puts = Array.from({ length: 20 }, (_, i) =>
        stores[i % 5].put('a', bytes(`${round} ${i}`), { ifVersion: version }),
      )
      const outcomes = await Promise.allSettled(puts)
      const won = outcomes.filter(one => one.status === 'fulfilled')
      expect(won).toHaveLength(1)
      version = (won[0] as PromiseFulfilledResult<string>).value
      expect((await stores[1].head('a'))?.version).toBe(version)
    }
    for (const store of stores) await store.close()
  })

  test('forgets what a crash left unfinished, but not at once: it may be another process at work', async () => {
    const store = await fileStore(directory)
    await store.put('a', bytes('x'))
    const [old, young] = ['old', 'young'].map(name => join(directory, '.tmp', name))
    for (const path of [old, young]) fs.writeFileSync(path, 'half')
    fs.utimesSync(old, 1, 1)
    expect((await store.list('')).map(one => one.name)).toEqual(['a'])
    const later = await fileStore(directory)
    await later.put('b', bytes('x'))
    const left = fs.readdirSync(join(directory, '.tmp')).filter(name => !/^lock-\d+$/.test(name))
    expect(left).toEqual(['young'])
    for (const bad of ['.tmp', '.tmp/young']) expect(await codeOf(later.get(bad))).toBe('INVALID')
  })

  test('leaves no directories of removed objects behind, and none in the way', async () => {
    const store = await fileStore(directory)
    await store.put('a/b/c/d', bytes('x'))
    await store.remove('a/b/c/d')
    expect(fs.readdirSync(directory)).toEqual(['.tmp'])
    fs.mkdirSync(join(directory, 'x'))
    await store.put('x', bytes('1'), { ifAbsent: true })
    fs.mkdirSync(join(directory, 'y'))
    await store.put('y', bytes('1'))
    expect(await codeOf(store.put('x/y', bytes('1')))).toBe('NOT_DIRECTORY')
    await store.put('p/q', bytes('1'))
    expect(await codeOf(store.put('p', bytes('1')))).toBe('IS_DIRECTORY')
    expect(await codeOf(store.put('p', bytes('1'), { ifAbsent: true }))).toBe('CONFLICT')
    expect(await store.head('p')).toBeNull()
    expect(await codeOf(store.get('p'))).toBe('NOT_FOUND')
    expect(await store.head('x/y')).toBeNull()
    expect(await codeOf(store.get('x/y'))).toBe('NOT_FOUND')
  })

  test('can lie beside a file', async () => {
    const store = await fileStoreBeside(join(directory, 'disk.img'))
    expect(await store.list('')).toEqual([])
    await store.put('lease', bytes('x'))
    expect(fs.readdirSync(directory)).toEqual(['.pageferry-disk.img'])
    expect((await store.list('')).map(one => one.name)).toEqual(['lease'])
  })
})

describe('a blob that is a file', () => {
  test('is made, extended, never cut', async () => {
    const path = join(directory, 'disk.img')
    expect(await codeOf(fileBlob(path))).toBe('NOT_FOUND')
    const blob = await fileBlob(path, { size: 1000 })
    expect(blob.size).toBe(1000)
    await blob.write(999, bytes('x'))
    await blob.close()
    const larger = await fileBlob(path, { size: 5000 })
    expect(Buffer.from(await larger.read(998, 3)).toString()).toBe('\0x\0')
    await larger.close()
    expect((await fileBlob(path)).size).toBe(5000)
    expect(await codeOf(fileBlob(path, { size: 10 }))).toBe('INVALID')
    expect(await codeOf(fileBlob(directory))).toBe('IS_DIRECTORY')
    expect(await codeOf(fileBlob('/dev/null'))).toBe('INVALID')
  })

  test('a program that is running can be read, and not be written to', async () => {
    const path = join(directory, 'program')
    fs.copyFileSync('/bin/sleep', path)
    fs.chmodSync(path, 0o755)
    const running = spawn(path, ['60'])
    try {
      await once(running, 'spawn')
      const blob = await fileBlob(path)
      expect(blob.capabilities.write).toBe(false)
      expect(Buffer.compare(await blob.read(0, blob.size), fs.readFileSync(path))).toBe(0)
      expect(await codeOf(blob.write(0, bytes('x')))).toBe('READ_ONLY')
      await blob.close()
    } finally {
      running.kill()
    }
  })

  test('says when its name is gone: what it wrote will be, too', async () => {
    const path = join(directory, 'disk.img')
    const blob = await fileBlob(path, { size: 1000 })
    fs.renameSync(path, `${path}-away`)
    expect(await codeOf(blob.flush())).toBe('UNREACHABLE')
    fs.writeFileSync(path, 'another')
    expect(await codeOf(blob.flush())).toBe('UNREACHABLE')
    fs.renameSync(`${path}-away`, path)
    expect(await codeOf(blob.flush())).toBe('it worked')
    await blob.close()
    expect(await codeOf(blob.read(0, 1))).toBe('CLOSED')
  })

  test('a file that was cut by somebody else is a short read', async () => {
    const path = join(directory, 'disk.img')
    const blob = await fileBlob(path, { size: 1000 })
    fs.truncateSync(path, 10)
    expect(await codeOf(blob.read(0, 20))).toBe('SHORT_READ')
    await blob.close()
  })

  withLoops.test('a block device has the size that the kernel says', async () => {
    const image = join(directory, 'image')
    fs.writeFileSync(image, Buffer.alloc(1 << 20, 5))
    const device = execFileSync('losetup', ['-f', '--show', image]).toString().trim()
    try {
      const blob = await fileBlob(device)
      expect(blob.size).toBe(1 << 20)
      await blob.write(4096, bytes('x'))
      await blob.trim?.(8192, 4096)
      await blob.flush()
      expect(Array.from(await blob.read(4095, 2))).toEqual([5, 120])
      expect(Array.from(await blob.read(8191, 2))).toEqual([5, 0])
      await blob.close()
    } finally {
      execFileSync('losetup', ['-d', device])
    }
  })
})
