// What lies on a mount, and under what: a disk of its own in a file, which is trimmed; and too little memory for what is written.
import { mkdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { run, runs } from '../fixtures/daemon.js'
import { memoryGroup } from '../fixtures/memory-group.js'
import { requires } from '../fixtures/requires.js'
import { cleanup, placeForTest, sh } from '../fixtures/trees.js'

const TEST_MS = 120_000
const MiB = 2 ** 20
const { test: withLoops } = requires('built', 'fuse', 'root', 'losetup', 'mkfs.ext4', 'fstrim', 'e2fsck')
const { test: withGroups } = requires('built', 'fuse', 'root', 'python3', 'memoryGroup')

const allocated = (path: string) => statSync(path).blocks * 512

withLoops(
  'a file system in a file of the mount: what it trims is holes, here and at the remote',
  async () => {
    const place = await placeForTest()
    const daemon = await place.mount()
    const [image, inner] = [join(place.mountpoint, 'disk.img'), join(place.folder, 'inner')]
    mkdirSync(inner)
    await sh(`truncate -s 128M disk.img; mkfs.ext4 -q -F disk.img`, { cwd: place.mountpoint })
    const device = (await run('losetup', ['-f', '--show', '--direct-io=on', image])).trim()
    cleanup(() => runs('losetup', ['-d', device]))
    await run('mount', [device, inner])
    cleanup(() => runs('umount', [inner]))
    await sh('head -c 50M /dev/urandom > a; cp a b; sha256sum a > ../sum; sync -f .', { cwd: inner })
    await daemon.sync()
    const there = join(place.remote, 'disk.img')
    expect(allocated(there)).toBeGreaterThan(100 * MiB)
    await sh('rm b; sync -f .; fstrim .; sync -f .', { cwd: inner })
    expect(Number(await run('stat', ['-c', '%b', image])) * 512).toBeLessThan(60 * MiB)
    await daemon.sync()
    expect(allocated(there)).toBeLessThan(60 * MiB)
    await sh('cmp a <(cat a); (cd .. && sed "s# a# inner/a#" sum | sha256sum -c --quiet)', { cwd: inner })
    await run('umount', [inner])
    await run('losetup', ['-d', device])
    expect(await daemon.unmount()).toBe(0)
    await run('e2fsck', ['-fn', there])
    await run('mount', ['-o', 'loop,ro', there, inner])
    await sh('sed "s# a# inner/a#" sum | sha256sum -c --quiet', { cwd: place.folder })
  },
  TEST_MS,
)

/** Writes more than there is memory for, by write(2) and through a shared mapping, and reads all of it. */
const PRESSED = `
import hashlib, mmap, os, sys
unit = os.urandom(1 << 20)
with open('written', 'wb') as file:
    for n in range(300): file.write(n.to_bytes(4, 'little') + unit[4:])
with open('mapped', 'w+b') as file:
    file.truncate(200 << 20)
    with mmap.mmap(file.fileno(), 0) as memory:
        for n in range(200):
            memory[n << 20:(n + 1) << 20] = n.to_bytes(4, 'little') + unit[4:]
for name, count in ('written', 300), ('mapped', 200):
    with open(name, 'rb') as file:
        for n in range(count):
            assert file.read(1 << 20) == n.to_bytes(4, 'little') + unit[4:], (name, n)
print('done')
`

withGroups(
  'with less memory than is written, for the daemon and for who writes, without swap, nobody waits for the other',
  async () => {
    const place = await placeForTest()
    const daemon = await place.mount('--flush-interval', '500ms', '--memory', '32M', '--dirty-limit', '200M')
    const group = memoryGroup(320 * MiB)
    cleanup(() => group.remove())
    writeFileSync(group.procs, String(daemon.pid))
    const program = ['-c', `echo $$ > '${group.procs}'; exec python3 -c '${PRESSED.replaceAll("'", `'"'"'`)}'`]
    const { status, stdout, stderr } = await runs('sh', program, { cwd: place.mountpoint, timeoutMs: 100_000 })
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: 'done\n', stderr: '' })
    expect(await daemon.unmount()).toBe(0)
    expect(statSync(join(place.remote, 'written')).size).toBe(300 * MiB)
  },
  TEST_MS,
)
