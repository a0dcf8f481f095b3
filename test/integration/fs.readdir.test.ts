// Listings: large ones, while they change, from where they stopped, and what they teach the kernel.
import { mkdir, readdir, rm, stat, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, expect } from '@jest/globals'
import { mountMemory, python, settled, type TestMount } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root', 'python3')

describe.each([
  ['at once', undefined],
  ['later', { entries: 0, attributes: 0 }],
])('listings, when the engine answers %s', (_name, delays) => {
  let mount: TestMount
  const at = (name: string) => join(mount.path, name)
  beforeAll(async () => {
    mount = await mountMemory({ delays })
  })

  test('twenty thousand entries are each listed once while others come and go', async () => {
    await mkdir(at('many'))
    const { ino } = await stat(at('many'))
    await mount.call({ do: 'fill', parent: ino, count: 20_000, prefix: 'stays' })
    const listing = python(
      `
import os, sys
d = sys.argv[1] + '/many'
for _ in range(3):
    names = [e.name for e in os.scandir(d)]
    stays = [n for n in names if n.startswith('stays')]
    assert len(stays) == 20000 and len(set(stays)) == 20000, (len(stays), len(set(stays)))
    assert len(names) == len(set(names)), 'twice'
`,
      mount.path,
    )
    let over = false
    const done = listing.finally(() => (over = true))
    for (let i = 0; !over; i++) {
      await writeFile(at(`many/comes${i}`), '')
      if (i >= 5) await unlink(at(`many/comes${i - 5}`))
    }
    await done
    await rm(at('many'), { recursive: true })
    expect(await readdir(mount.path)).toEqual([])
  })

  test('a listing goes on from where it was told to, and begins anew when rewound', async () => {
    await mkdir(at('d'))
    for (let i = 0; i < 100; i++) await writeFile(at(`d/${i}`), '')
    await python(
      `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p; libc.readdir.restype = ctypes.c_void_p; libc.telldir.restype = ctypes.c_long
d = ctypes.c_void_p(libc.opendir((sys.argv[1] + '/d').encode()))
def name():
    e = libc.readdir(d)
    return e and ctypes.string_at(e + 19).decode()
seen = []; places = []
while True:
    places.append(libc.telldir(d)); n = name()
    if not n: break
    seen.append(n)
assert sorted(seen) == sorted(['.', '..'] + [str(i) for i in range(100)]), seen
for k in (50, 3, 99, 0):
    libc.seekdir(d, ctypes.c_long(places[k])); assert name() == seen[k], k
os.unlink(sys.argv[1] + '/d/' + seen[40])
libc.rewinddir(d)
again = []
while True:
    n = name()
    if not n: break
    again.append(n)
assert len(again) == len(seen) - 1
`,
      mount.path,
    )
    await rm(at('d'), { recursive: true })
  })

  test('dot and dot-dot are the directory and the one above', async () => {
    await mkdir(at('a'))
    await mkdir(at('a/b'))
    await python(
      `
import os, sys, subprocess
p = sys.argv[1]
out = subprocess.run(['ls', '-fi', p + '/a/b'], capture_output=True, text=True, check=True).stdout.split()
found = dict(zip(out[1::2], map(int, out[0::2])))
assert found == {'.': os.stat(p + '/a/b').st_ino, '..': os.stat(p + '/a').st_ino}, (found, os.stat(p + '/a/b').st_ino, os.stat(p + '/a').st_ino)
assert os.stat(p + '/a/b/..').st_ino == os.stat(p + '/a').st_ino
`,
      mount.path,
    )
    await rm(at('a'), { recursive: true })
  })

  test('types are listed without a look at each file', async () => {
    await mkdir(at('types'))
    await writeFile(at('types/file'), '')
    await mkdir(at('types/dir'))
    await python(
      'import os, sys; os.symlink("x", sys.argv[1] + "/types/link"); os.mkfifo(sys.argv[1] + "/types/pipe")',
      mount.path,
    )
    const types = await readdir(at('types'), { withFileTypes: true })
    const shown = types.map(
      e => `${e.name} ${[e.isFile(), e.isDirectory(), e.isSymbolicLink(), e.isFIFO()].indexOf(true)}`,
    )
    expect(shown.sort()).toEqual(['dir 1', 'file 0', 'link 2', 'pipe 3'])
    await rm(at('types'), { recursive: true })
  })

  test('a listing saves the lookups, and its references are given back', async () => {
    await mkdir(at('d'))
    const { ino } = await stat(at('d'))
    await mount.call({ do: 'fill', parent: ino, count: 50, prefix: 'n' })
    await mount.trace()
    await python('import os, sys; [os.stat(e.path) for e in os.scandir(sys.argv[1] + "/d")]', mount.path)
    const lookups = (await mount.trace()).filter(({ op }) => op === 'LOOKUP')
    if (!delays) expect(lookups).toEqual([])
    await rm(at('d'), { recursive: true })
    const { inodes } = await settled(
      () => mount.status(),
      status => status.inodes === 1,
    )
    expect(inodes).toBe(1)
    expect((await mount.status()).logged).toEqual([])
  })
})
