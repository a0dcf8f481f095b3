// Names: what a directory does with them, as programs see it through the kernel.
import { constants } from 'node:fs'
import {
  access,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  rmdir,
  stat,
  symlink,
  unlink,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, expect } from '@jest/globals'
import { mountMemory, python, settled, type TestMount } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root', 'python3')

let mount: TestMount
const at = (name: string) => join(mount.path, name)

/** renameat2(2), which node does not have. Prints 'ok' or the errno's name. */
const renameat2 = (from: string, to: string, flags: number) =>
  python(
    `
import ctypes, sys, errno, os
libc = ctypes.CDLL(None, use_errno=True)
r = libc.renameat2(-100, os.fsencode(sys.argv[1]), -100, os.fsencode(sys.argv[2]), int(sys.argv[3]))
print('ok' if r == 0 else errno.errorcode[ctypes.get_errno()], end='')
`,
    from,
    to,
    `${flags}`,
  )
const NOREPLACE = 1
const EXCHANGE = 2
const WHITEOUT = 4

describe('names', () => {
  beforeAll(async () => {
    mount = await mountMemory()
  })

  test('a file lives under the name it was given, and is gone when that is removed', async () => {
    await writeFile(at('f'), 'hello')
    expect(await readFile(at('f'), 'utf8')).toBe('hello')
    expect((await stat(at('f'))).size).toBe(5)
    await unlink(at('f'))
    await expect(stat(at('f'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('a directory cannot be unlinked, a file is no directory, and a full directory stays', async () => {
    await mkdir(at('d'))
    await writeFile(at('d/f'), '')
    await expect(unlink(at('d'))).rejects.toMatchObject({ code: 'EISDIR' })
    await expect(rmdir(at('d'))).rejects.toMatchObject({ code: 'ENOTEMPTY' })
    await expect(rmdir(at('d/f'))).rejects.toMatchObject({ code: 'ENOTDIR' })
    await expect(stat(at('d/f/x'))).rejects.toMatchObject({ code: 'ENOTDIR' })
    await expect(mkdir(at('d'))).rejects.toMatchObject({ code: 'EEXIST' })
    expect((await stat(at('d'))).nlink).toBe(2)
    await rm(at('d'), { recursive: true })
    expect(await readdir(mount.path)).toEqual([])
  })

  test('hard links are one file, symbolic links lead there', async () => {
    await writeFile(at('a'), 'one')
    await link(at('a'), at('b'))
    await writeFile(at('b'), 'two')
    expect(await readFile(at('a'), 'utf8')).toBe('two')
    expect((await stat(at('a'))).nlink).toBe(2)
    expect((await stat(at('a'))).ino).toBe((await stat(at('b'))).ino)
    await symlink('a', at('l'))
    expect(await readlink(at('l'))).toBe('a')
    expect(await readFile(at('l'), 'utf8')).toBe('two')
    expect((await lstat(at('l'))).isSymbolicLink()).toBe(true)
    const far = 'x'.repeat(4000)
    await symlink(far, at('far'))
    expect(await readlink(at('far'))).toBe(far)
    for (const name of ['a', 'b', 'l', 'far']) await unlink(at(name))
  })

  test('renames replace, refuse to, or exchange, whatever is asked', async () => {
    await writeFile(at('a'), 'A')
    await writeFile(at('b'), 'B')
    expect(await renameat2(at('a'), at('b'), NOREPLACE)).toBe('EEXIST')
    expect(await renameat2(at('a'), at('b'), EXCHANGE)).toBe('ok')
    expect(await readFile(at('a'), 'utf8')).toBe('B')
    expect(await readFile(at('b'), 'utf8')).toBe('A')
    expect(await renameat2(at('a'), at('b'), EXCHANGE | WHITEOUT)).toBe('EINVAL')
    expect(await renameat2(at('a'), at('nothing'), EXCHANGE)).toBe('ENOENT')
    await rename(at('a'), at('b'))
    expect(await readFile(at('b'), 'utf8')).toBe('B')
    await expect(stat(at('a'))).rejects.toMatchObject({ code: 'ENOENT' })
    expect(await renameat2(at('b'), at('c'), NOREPLACE)).toBe('ok')
    await unlink(at('c'))
  })

  test('a whiteout stays where something was moved away', async () => {
    await writeFile(at('a'), 'A')
    await writeFile(at('b'), 'B')
    expect(await renameat2(at('a'), at('b'), WHITEOUT | NOREPLACE)).toBe('EEXIST')
    expect(await renameat2(at('a'), at('b'), WHITEOUT)).toBe('ok')
    expect(await readFile(at('b'), 'utf8')).toBe('A')
    const { rdev, mode } = await stat(at('a'))
    expect({ rdev, mode }).toEqual({ rdev: 0, mode: 0o020000 })
    for (const name of ['a', 'b']) await unlink(at(name))
  })

  test('a directory exchanged with a file keeps what is in it', async () => {
    await mkdir(at('d'))
    await mkdir(at('e'))
    await writeFile(at('d/inside'), 'in')
    await writeFile(at('e/file'), 'f')
    expect(await renameat2(at('d'), at('e/file'), EXCHANGE)).toBe('ok')
    expect(await readFile(at('e/file/inside'), 'utf8')).toBe('in')
    expect(await readFile(at('d'), 'utf8')).toBe('f')
    await expect(rename(at('e'), at('e/file/x'))).rejects.toMatchObject({ code: 'EINVAL' })
    await rm(at('d'))
    await rm(at('e'), { recursive: true })
  })

  test('a name that is known not to be there is not asked for again, until it is made', async () => {
    await mount.trace()
    for (let i = 0; i < 5; i++) await expect(stat(at('absent'))).rejects.toMatchObject({ code: 'ENOENT' })
    const asked = (await mount.trace()).filter(({ op }) => op === 'LOOKUP')
    expect(asked.length).toBe(1)
    await writeFile(at('absent'), '')
    await access(at('absent'))
    await unlink(at('absent'))
    await expect(access(at('absent'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('names are bytes: not UTF-8, the longest, and all but slash and NUL', async () => {
    const names = [Buffer.from([0xff, 0xfe, 0x80]), Buffer.alloc(255, 0xc3), Buffer.from([1, 10, 13, 127, 32])]
    const path = (name: Buffer) => Buffer.concat([Buffer.from(`${mount.path}/`), name])
    for (const name of names) await writeFile(path(name), name)
    for (const name of names) expect(Buffer.compare(await readFile(path(name)), name)).toBe(0)
    const listed = await readdir(Buffer.from(mount.path), { encoding: 'buffer' })
    expect(listed.map(name => name.toString('hex')).sort()).toEqual(names.map(name => name.toString('hex')).sort())
    await expect(writeFile(path(Buffer.alloc(256, 65)), '')).rejects.toMatchObject({ code: 'ENAMETOOLONG' })
    await expect(stat(path(Buffer.alloc(256, 65)))).rejects.toMatchObject({ code: 'ENAMETOOLONG' })
    for (const name of names) await unlink(path(name))
  })

  test('an unlinked file that is open is read and written, and is gone when it is closed', async () => {
    const before = (await mount.status()).inodes
    const file = await open(at('gone'), 'w+')
    await file.write('still')
    await unlink(at('gone'))
    await file.write(' here')
    await file.sync()
    const { size, nlink } = await file.stat()
    expect({ size, nlink }).toEqual({ size: 10, nlink: 0 })
    const bytes = Buffer.alloc(10)
    await file.read(bytes, 0, 10, 0)
    expect(bytes.toString()).toBe('still here')
    await file.truncate(5)
    expect((await file.stat()).size).toBe(5)
    await file.close()
    expect(
      await settled(
        () => mount.status(),
        ({ inodes }) => inodes === before,
      ),
    ).toMatchObject({ inodes: before })
  })

  test('a file replaced by a rename while it is open stays what it was', async () => {
    await writeFile(at('old'), 'old')
    await writeFile(at('new'), 'new')
    const file = await open(at('old'), 'r')
    await rename(at('new'), at('old'))
    expect(await file.readFile('utf8')).toBe('old')
    expect(await readFile(at('old'), 'utf8')).toBe('new')
    await file.close()
    await unlink(at('old'))
  })

  test('O_EXCL makes one winner of many', async () => {
    const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY
    const tries = await Promise.allSettled(Array.from({ length: 32 }, () => open(at('one'), flags)))
    const won = tries.filter(each => each.status === 'fulfilled')
    expect(won.length).toBe(1)
    for (const { value } of won) await value.close()
    await unlink(at('one'))
  })

  test('a file that somebody else made meanwhile is opened by O_CREAT, and refused by O_EXCL', async () => {
    await expect(stat(at('theirs'))).rejects.toMatchObject({ code: 'ENOENT' }) // the kernel believes so for an hour
    const made = { mode: constants.S_IFREG | 0o644, uid: 0, gid: 0 }
    await mount.call({ do: 'fs', method: 'make', args: [1, 'theirs', made] })
    await expect(open(at('theirs'), 'wx')).rejects.toMatchObject({ code: 'EEXIST' })
    const file = await open(at('theirs'), 'a')
    await file.close()
    await unlink(at('theirs'))
  })

  test('in a directory with the set-group-id bit everything belongs to its group', async () => {
    await python(
      `
import os, sys, stat
d = sys.argv[1] + '/shared'
os.mkdir(d); os.chown(d, 0, 1234); os.chmod(d, 0o2775)
os.mkdir(d + '/sub'); open(d + '/file', 'w').close(); os.symlink('x', d + '/l'); os.mkfifo(d + '/p')
for n in ('sub', 'file', 'l', 'p'): assert os.lstat(d + '/' + n).st_gid == 1234, n
assert os.stat(d + '/sub').st_mode & stat.S_ISGID
assert not os.stat(d + '/file').st_mode & stat.S_ISGID
assert stat.S_ISFIFO(os.stat(d + '/p').st_mode)
`,
      mount.path,
    )
    await rm(at('shared'), { recursive: true })
  })

  test('special files are what they were made as', async () => {
    await python(
      `
import os, sys, stat
d = sys.argv[1]
os.mknod(d + '/null', stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod(d + '/high', stat.S_IFBLK | 0o600, os.makedev(4000, 70000))
s = os.stat(d + '/null'); assert stat.S_ISCHR(s.st_mode) and s.st_rdev == os.makedev(1, 3)
s = os.stat(d + '/high'); assert stat.S_ISBLK(s.st_mode) and s.st_rdev == os.makedev(4000, 70000), hex(s.st_rdev)
try: open(d + '/null').read(); assert False, 'nodev'
except PermissionError: pass
`,
      mount.path,
    )
    await unlink(at('null'))
    await unlink(at('high'))
  })

  test('the kernel forgets what it does not use, and the counts agree', async () => {
    await Promise.all(Array.from({ length: 200 }, (_, i) => writeFile(at(`n${i}`), '')))
    await readdir(mount.path, { withFileTypes: true })
    await Promise.all(Array.from({ length: 200 }, (_, i) => unlink(at(`n${i}`))))
    expect(
      await settled(
        () => mount.status(),
        ({ inodes }) => inodes === 1,
      ),
    ).toMatchObject({ inodes: 1 })
    expect((await mount.status()).logged).toEqual([])
  })
})
