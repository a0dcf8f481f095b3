// Attributes, extended attributes, permissions: who may do what, and what the kernel leaves to us.
import { chmod, mkdir, open, readdir, rm, stat, statfs, unlink, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, expect } from '@jest/globals'
import { mountMemory, python, run, settled, type TestMount } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root', 'python3')

let mount: TestMount
const at = (name: string) => join(mount.path, name)

describe('attributes', () => {
  beforeAll(async () => {
    mount = await mountMemory({ mode: 0o777, mount: { allowOther: true, suid: true } })
  })

  test('modes, owners and times are kept as they were set', async () => {
    await python(
      `
import os, sys
p = sys.argv[1] + '/f'
open(p, 'w').close()
os.chmod(p, 0o4751); assert os.stat(p).st_mode & 0o7777 == 0o4751
os.chown(p, 1000, 1001); s = os.stat(p); assert (s.st_uid, s.st_gid) == (1000, 1001)
for ns in ((1, 2), (1700000000_123456789, 1600000000_987654321), (-1, -1_500_000_000), (2**33 * 10**9 + 7, 2**34 * 10**9 + 8)):
    os.utime(p, ns=ns)
    s = os.stat(p); assert (s.st_atime_ns, s.st_mtime_ns) == ns, (s.st_atime_ns, s.st_mtime_ns, ns)
os.utime(p)
import time
assert abs(os.stat(p).st_mtime - time.time()) < 5 and abs(os.stat(p).st_atime - time.time()) < 5
os.unlink(p)
`,
      mount.path,
    )
  })

  test('times that were set outlive writes that came before them', async () => {
    await writeFile(at('t'), 'x')
    const file = await open(at('t'), 'r+')
    await file.write('later', 0)
    await file.utimes(1000, 2000)
    await file.close()
    const stored = (await mount.call({ do: 'fs', method: 'lookup', args: [1, 't'] })) as { mtimeNs: bigint }
    expect(stored.mtimeNs).toBe(2_000_000_000_000n)
    await utimes(at('t'), 5, 6)
    expect((await stat(at('t'))).mtimeMs).toBe(6000)
    await unlink(at('t'))
  })

  test('a write moves the mtime that the engine knows, by the time the file is closed', async () => {
    await writeFile(at('m'), 'x')
    await utimes(at('m'), 1, 1)
    await writeFile(at('m'), 'y', { flag: 'r+' })
    const { mtimeMs } = await stat(at('m'))
    const stored = (await mount.call({ do: 'fs', method: 'lookup', args: [1, 'm'] })) as { mtimeNs: bigint }
    expect(Math.abs(Number(stored.mtimeNs / 1_000_000n) - mtimeMs)).toBeLessThan(2)
    expect(mtimeMs).toBeGreaterThan(1e12)
    await unlink(at('m'))
  })

  test('the umask is applied once', async () => {
    await run('sh', ['-c', 'umask 027; echo > f; mkdir d; umask 0; echo > g'], { cwd: mount.path })
    expect((await stat(at('f'))).mode & 0o7777).toBe(0o640)
    expect((await stat(at('d'))).mode & 0o7777).toBe(0o750)
    expect((await stat(at('g'))).mode & 0o7777).toBe(0o666)
    for (const name of ['f', 'd', 'g']) await rm(at(name), { recursive: true })
  })

  test('others may do what the mode says and no more', async () => {
    await mkdir(at('private'))
    await writeFile(at('private/f'), 'secret')
    await writeFile(at('readable'), 'x')
    await writeFile(at('script'), '#!/bin/sh\n', { mode: 0o644 })
    await chmod(at('private'), 0o700)
    await chmod(at('readable'), 0o644)
    await python(
      `
import os, sys
p = sys.argv[1]
assert not os.access(p + '/script', os.X_OK)     # root as well: nobody may execute it
os.setgroups([]); os.setgid(1000); os.setuid(1000)
def denied(f):
    try: f()
    except PermissionError: return True
assert denied(lambda: open(p + '/private/f'))
assert denied(lambda: open(p + '/readable', 'a'))
assert denied(lambda: os.chmod(p + '/readable', 0o777))
assert denied(lambda: os.utime(p + '/readable', (1, 1)))
assert open(p + '/readable').read() == 'x'
open(p + '/mine', 'w').close(); s = os.stat(p + '/mine'); assert (s.st_uid, s.st_gid) == (1000, 1000)
os.mkdir(p + '/dir'); os.symlink('x', p + '/dir/l'); assert os.lstat(p + '/dir/l').st_uid == 1000
assert denied(lambda: os.chown(p + '/mine', 0, 0))
`,
      mount.path,
    )
    for (const name of ['private', 'readable', 'script', 'mine', 'dir']) await rm(at(name), { recursive: true })
  })

  test('set-uid and set-gid go when the owner or the bytes change', async () => {
    await python(
      `
import mmap, os, sys
p = sys.argv[1] + '/suid'
def fresh(mode=0o6775):
    if os.path.exists(p): os.unlink(p)
    open(p, 'w').write('x' * 100); os.chown(p, 1000, 1000); os.chmod(p, mode)
def mode(): return os.stat(p).st_mode & 0o7777
def as_user(f):
    if os.fork() == 0:
        try:
            os.setgroups([]); os.setgid(1001); os.setuid(1001)
            f(); os._exit(0)
        except BaseException as e: print(e); os._exit(1)
    assert os.wait()[1] == 0
fresh(); os.chown(p, 1001, 1001); assert mode() == 0o775, oct(mode())
fresh(0o2764); os.chown(p, 1001, 1001); assert mode() == 0o2764, oct(mode())   # without group execute: mandatory locking, stays
fresh(0o6777); as_user(lambda: os.pwrite(os.open(p, os.O_WRONLY), b'y', 5)); assert mode() == 0o777, oct(mode())
def direct():
    memory = mmap.mmap(-1, 4096)
    os.pwritev(os.open(p, os.O_WRONLY | os.O_DIRECT), [memory], 0)
fresh(0o6777); as_user(direct); assert mode() == 0o777, oct(mode())
fresh(0o6777); as_user(lambda: os.truncate(p, 3)); assert mode() == 0o777, oct(mode())
fresh(0o6777); as_user(lambda: open(p, 'w').close()); assert mode() == 0o777, oct(mode())
fresh(0o6777); os.pwrite(os.open(p, os.O_WRONLY), b'y', 5); assert mode() == 0o6777, oct(mode())  # root may keep them
fresh(0o6777); as_user(lambda: open(p).read()); assert mode() == 0o6777
os.unlink(p)
`,
      mount.path,
    )
  })

  test('extended attributes are bytes of every size, and say how much room they need', async () => {
    await python(
      `
import os, sys, errno
p = sys.argv[1] + '/x'
open(p, 'w').close()
def fails(code, f, *a):
    try: f(*a)
    except OSError as e: assert e.errno == code, e; return
    assert False, 'succeeded'
big = bytes(range(256)) * 256
os.setxattr(p, 'user.big', big); assert os.getxattr(p, 'user.big') == big
os.setxattr(p, 'user.empty', b''); assert os.getxattr(p, 'user.empty') == b''
fails(errno.E2BIG, os.setxattr, p, 'user.more', big + b'x')
fails(errno.ERANGE, os.setxattr, p, 'user.' + 'n' * 251, b'x')
name = 'user.' + 'n' * 250
os.setxattr(p, name, b'1', os.XATTR_CREATE)
fails(errno.EEXIST, os.setxattr, p, name, b'2', os.XATTR_CREATE)
os.setxattr(p, name, b'2', os.XATTR_REPLACE)
fails(errno.ENODATA, os.setxattr, p, 'user.none', b'2', os.XATTR_REPLACE)
assert sorted(os.listxattr(p)) == sorted(['user.big', 'user.empty', name])
os.removexattr(p, name); fails(errno.ENODATA, os.removexattr, p, name); fails(errno.ENODATA, os.getxattr, p, name)
os.setxattr(p, 'security.thing', b's'); os.setxattr(p, 'trusted.thing', b't')
assert os.getxattr(p, 'trusted.thing') == b't'
import struct
acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHI', tag, 7, who) for tag, who in ((1, -1 & 0xffffffff), (2, 1000), (4, -1 & 0xffffffff), (16, -1 & 0xffffffff), (32, -1 & 0xffffffff)))
fails(errno.EOPNOTSUPP, os.setxattr, p, 'system.posix_acl_access', acl)
fails(errno.EOPNOTSUPP, os.setxattr, p, 'security.selinux', b'label')
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.getxattr(p.encode(), b'user.big', None, 0) == len(big)
b = ctypes.create_string_buffer(10)
assert libc.getxattr(p.encode(), b'user.big', b, 10) == -1 and ctypes.get_errno() == errno.ERANGE
assert libc.listxattr(p.encode(), b, 3) == -1 and ctypes.get_errno() == errno.ERANGE
os.setxattr(sys.argv[1], 'user.root', b'r'); assert os.listxattr(sys.argv[1]) == ['user.root']; os.removexattr(sys.argv[1], 'user.root')
os.unlink(p)
`,
      mount.path,
    )
  })

  test('a write asks for no attribute twice', async () => {
    const file = await open(at('w'), 'w')
    await file.write('first')
    await mount.trace()
    for (let i = 0; i < 50; i++) await file.write('x', i * 10_000)
    const asked = (await mount.trace()).filter(({ op }) => op !== 'WRITE')
    expect(asked.map(({ op }) => op)).toEqual([])
    await file.close()
    await unlink(at('w'))
  })

  test('free space is what the engine says', async () => {
    const { bsize, blocks, bavail, files } = await statfs(mount.path)
    expect({ bsize, blocks, bavail, files }).toEqual({ bsize: 4096, blocks: 2 ** 24, bavail: 2 ** 23, files: 2 ** 20 })
  })

  test('what is asked for once and is not there is not asked for again', async () => {
    await writeFile(at('o'), 'x')
    await readdir(mount.path)
    await mount.trace()
    for (let i = 0; i < 3; i++) {
      await writeFile(at('o'), 'y')
      await stat(at('o'))
      await python('import os, sys; os.listdir(sys.argv[1]); os.access(sys.argv[1] + "/o", os.R_OK)', mount.path)
    }
    const ops = new Set((await mount.trace()).map(({ op }) => op))
    for (const op of ['FLUSH', 'ACCESS', 'OPENDIR', 'RELEASEDIR']) expect([op, ops.has(op)]).toEqual([op, false])
    await unlink(at('o'))
  })

  test('every open was released', async () => {
    const { opens } = await settled(
      () => mount.status(),
      status => status.opens.length === 0,
    )
    expect(opens).toEqual([])
    expect((await mount.status()).logged).toEqual([])
  })
})

describe('a mount that shows other owners', () => {
  test('everything seems to be theirs, with the bits that are left', async () => {
    const shown = await mountMemory({ mount: { uid: 1000, gid: 1001, umask: 0o077, allowOther: true } })
    await writeFile(join(shown.path, 'f'), 'x', { mode: 0o755 })
    await mkdir(join(shown.path, 'd'))
    for (const [name, mode] of [
      ['f', 0o700],
      ['d', 0o700],
    ] as const) {
      const { uid, gid, mode: seen } = await stat(join(shown.path, name))
      expect({ uid, gid, mode: seen & 0o7777 }).toEqual({ uid: 1000, gid: 1001, mode })
    }
    await shown.end()
  })
})

describe('a mount without extended attributes', () => {
  test('is not asked for them before each write', async () => {
    const bare = await mountMemory({ mount: { xattrs: false } })
    await bare.trace()
    for (let i = 0; i < 5; i++) await writeFile(join(bare.path, `f${i}`), 'x')
    const asked = (await bare.trace()).filter(({ op }) => op === 'GETXATTR')
    expect(asked.length).toBe(1)
    await python(
      `
import os, sys, errno
try: os.setxattr(sys.argv[1] + '/f1', 'user.a', b'1'); assert False
except OSError as e: assert e.errno == errno.EOPNOTSUPP, e
`,
      bare.path,
    )
    await bare.end()
  })
})

describe('a new file', () => {
  test('that is stamped by the clock of the kernel is not stamped again by its first write', async () => {
    const fresh = await mountMemory()
    await fresh.trace()
    for (let i = 0; i < 50; i++) await writeFile(join(fresh.path, `f${i}`), 'x')
    const stamps = (await fresh.trace()).filter(({ op }) => op === 'SETATTR')
    expect(stamps.length).toBeLessThan(40) // one that a tick came between is
    await fresh.end()
  })
})

describe('a read-only mount', () => {
  test('is read and not written', async () => {
    const readOnly = await mountMemory({ readOnly: true })
    const made = { mode: 0o100644, uid: 0, gid: 0 }
    const { ino } = (await readOnly.call({ do: 'fs', method: 'make', args: [1, 'f', made] })) as { ino: number }
    await readOnly.call({ do: 'fs', method: 'write', args: [ino, 0, Buffer.from('content')] })
    expect(await run('cat', [join(readOnly.path, 'f')])).toBe('content')
    await expect(writeFile(join(readOnly.path, 'f'), 'x')).rejects.toMatchObject({ code: 'EROFS' })
    await expect(mkdir(join(readOnly.path, 'd'))).rejects.toMatchObject({ code: 'EROFS' })
    await readOnly.end()
  })
})
