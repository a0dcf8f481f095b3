// Memory that is mapped, programs that are run from the mount, and programs that look at everything there is.
import { createHash } from 'node:crypto'
import { copyFileSync, mkdirSync, readFileSync, realpathSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { run, start } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { eventually, placeForTest, sh } from '../fixtures/trees.js'

const TEST_MS = 150_000
const { test: withPython } = requires('built', 'fuse', 'root', 'python3')
const { test } = requires('built', 'fuse', 'root')

const MAPPED = `
import mmap, os, sys
size = 1 << 20
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(fd, size)
memory = mmap.mmap(fd, size)
for n in range(int(sys.argv[2])):
    for page in range(0, size, 65536):
        memory[page:page + 8] = b'%08d' % n
    memory.flush()
    print(n, flush=True)
memory[0:8] = b'unsynced'
sys.stdin.read()
`

withPython(
  'what msync(MS_SYNC) returned from survives kill -9 and then power loss of nothing less than an fsync',
  async () => {
    const place = await placeForTest()
    const daemon = await place.mount('--flush-interval', '1h')
    await daemon.sync()
    const writer = start('python3', ['-c', MAPPED, join(place.mountpoint, 'mapped'), '40'])
    await eventually('some rounds', () => writer.out.stdout.split('\n').length > 8)
    await daemon.kill()
    const acknowledged = Number(writer.out.stdout.trim().split('\n').pop())
    writer.child.kill('SIGKILL')
    await writer.ran
    const next = await place.mount('--flush-interval', '100ms')
    const bytes = Buffer.from(await sh('cat mapped | base64 -w0', { cwd: place.mountpoint }), 'base64')
    expect(bytes.length).toBe(1 << 20)
    for (let page = 0; page < bytes.length; page += 65536) {
      const round = Number(bytes.subarray(page, page + 8).toString())
      if (page === 0 && Number.isNaN(round)) expect(bytes.subarray(0, 8).toString()).toBe('unsynced')
      else expect(round).toBeGreaterThanOrEqual(acknowledged)
    }
    expect(await next.unmount()).toBe(0)
    expect(readFileSync(join(place.remote, 'mapped')).equals(bytes)).toBe(true)
  },
  TEST_MS,
)

test(
  'a program of 100 MB is run from the mount with a fraction of its bytes fetched',
  async () => {
    const place = await placeForTest()
    const program = join(place.remote, 'node')
    copyFileSync(realpathSync(process.execPath), program)
    const { size } = statSync(program)
    const daemon = await place.mount('--simulate', 'rtt=2ms')
    const begun = Date.now()
    expect(await run(join(place.mountpoint, 'node'), ['-p', '6 * 7'], { env: {} })).toBe('42\n')
    const { remote } = await daemon.status()
    const mib = (bytes: number) => (bytes / (1 << 20)).toFixed(1)
    process.stderr.write(
      `    node, ${mib(size)} MiB, run from the mount: ${mib(remote.bytesRead)} MiB fetched (${((100 * remote.bytesRead) / size).toFixed(0)}%) in ${Date.now() - begun} ms\n`,
    )
    expect(remote.bytesRead).toBeLessThan(size * 0.7)
    // Again, it is all there.
    expect(await run(join(place.mountpoint, 'node'), ['-p', '6 * 7'], { env: {} })).toBe('42\n')
    expect((await daemon.status()).remote.bytesRead).toBeLessThan(remote.bytesRead * 1.1 + (1 << 20))
    expect(await daemon.unmount()).toBe(0)
  },
  TEST_MS,
)

test(
  'du, find and grep over a large tree neither pull the remote nor evict the working set',
  async () => {
    const place = await placeForTest()
    const files = 400
    const bytes = Buffer.alloc(500_000, 'nothing to be found here\n')
    for (let n = 0; n < files; n++) {
      if (n % 20 === 0) mkdirSync(join(place.remote, `tree/d${n / 20}`), { recursive: true })
      writeFileSync(join(place.remote, `tree/d${Math.floor(n / 20)}/f${n}`), bytes)
    }
    mkdirSync(join(place.remote, 'work'))
    for (let n = 0; n < 10; n++)
      writeFileSync(join(place.remote, `work/w${n}`), createHash('md5').update(`${n}`).digest('hex').repeat(50_000))
    const daemon = await place.mount('--cache-size', '96M', '--dirty-limit', '16M', '--dir-ttl', '60s')
    const drop = () => sh('echo 1 > /proc/sys/vm/drop_caches', { cwd: '/' }).catch(() => {})
    const work = async () => {
      await drop()
      await sh('cat work/* > /dev/null', { cwd: place.mountpoint })
    }
    const fetched = async () => (await daemon.status()).remote.bytesRead
    // Used again more than two seconds later, so that it is worth keeping.
    await work()
    await sh('sleep 3.1', { cwd: '/' })
    await work()
    const before = await fetched()
    // What looks at names and attributes only fetches nothing at all.
    const du = Number((await sh('du -sk tree', { cwd: place.mountpoint })).split('\t')[0])
    const plain = Number((await sh('du -sk tree', { cwd: place.remote })).split('\t')[0])
    expect(Math.abs(du - plain)).toBeLessThan(plain * 0.02)
    expect(
      await sh('find . -type f -size +1k -newermt 2001-01-01 | wc -l; ls -lR > /dev/null', { cwd: place.mountpoint }),
    ).toBe(`${files + 10}\n`)
    expect(await fetched()).toBe(before)
    // `file` and thumbnailers read the first bytes of everything.
    await sh('find tree -type f -exec head -qc 512 {} + > /dev/null', { cwd: place.mountpoint })
    const heads = (await fetched()) - before
    process.stderr.write(
      `    the first 512 bytes of ${files} files of 500 kB: ${(heads / (1 << 20)).toFixed(1)} MiB fetched\n`,
    )
    expect(heads).toBeLessThan(files * bytes.length * 0.6)
    // grep reads everything, twice what the cache holds; what was in use stays.
    expect(await sh('grep -r absent tree || true', { cwd: place.mountpoint })).toBe('')
    const after = await fetched()
    await work()
    const again = (await fetched()) - after
    process.stderr.write(
      `    of a working set of 15.3 MiB, fetched again after grep -r: ${(again / (1 << 20)).toFixed(1)} MiB\n`,
    )
    expect(again).toBeLessThan(0.2 * 16_000_000)
    const { cache } = await daemon.status()
    expect(cache.bytes).toBeLessThanOrEqual(96 << 20)
    expect(await daemon.unmount()).toBe(0)
  },
  TEST_MS,
)
