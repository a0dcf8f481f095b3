// A mount whose server says what is not so, or nothing that makes sense: nothing vanishes, nothing that was written is lost, and who
// has mistyped hears it at once.
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { beforeAll, beforeEach, expect } from '@jest/globals'
import { s3Objects } from '../../src/remote/s3.js'
import { run, runs } from '../fixtures/daemon.js'
import { type FaultProxy, faultProxy } from '../fixtures/fault-proxy.js'
import { requires } from '../fixtures/requires.js'
import { bucketForTests, placeOnRgw } from '../fixtures/rgw.js'
import type { Rgw } from '../fixtures/rgw-daemon.js'
import { until } from '../fixtures/trees.js'

const rgw = requires('rgw', 'fuse', 'built', 'root', 'python3')

const TEST_MS = 120_000
const STORM_MS = 2_500

/**
 * Looks at a tree that is all there, again and again, until it is told to end: an error is fine, a name that is not there is not, nor are
 * bytes that are wrong. Prints how often it saw all, and how often it met an error.
 */
const watcher = `
import errno, os, sys, time
names = sorted(['cold%d' % n for n in range(20)] + ['here%d' % n for n in range(20)])
whole = failed = 0
n = 0
while not os.path.exists(sys.argv[1]):
    for look in (lambda: os.listdir('d'), lambda: open('d/cold%d' % (n % 20)).read(), lambda: open('d/here%d' % (n % 20)).read(), lambda: os.stat('d/cold%d' % (n % 20)).st_size):
        try:
            saw = look()
        except OSError as e:
            assert e.errno not in (errno.ENOENT, errno.ENOTDIR), (n, e)
            failed += 1
            continue
        whole += 1
        if isinstance(saw, list): assert sorted(x for x in saw if not x.startswith('new')) == names, saw
        elif isinstance(saw, int): assert saw == 6000, saw
        else: assert saw == ('%06d' % (n % 20)) * 1000, saw[:20]
    n += 1
    time.sleep(0.01)
print(whole, failed)
`

rgw.describe('a mount whose server', () => {
  let server: Rgw
  let bucket: string
  let proxy: FaultProxy
  beforeAll(async () => {
    ;({ server, bucket } = await bucketForTests())
    proxy = await faultProxy({ target: server.endpoint })
    return () => proxy.close()
  }, 200_000)

  beforeEach(() => proxy.set({ rules: [] }))

  const through = () => ({ ...server, endpoint: proxy.endpoint })

  rgw.test(
    'denies everything loses no name and no byte',
    async () => {
      const prefix = randomUUID()
      const objects = await s3Objects({ bucket, prefix })
      for (let n = 0; n < 20; n++) {
        const bytes = Buffer.from(String(n).padStart(6, '0').repeat(1000))
        await Promise.all(['here', 'cold'].map(name => objects.put(`d/${name}${n}`, bytes)))
      }
      const place = await placeOnRgw(through(), `s3://${bucket}/${prefix}`)
      const mount = () => place.mount('--flush-interval', '50ms', '--dir-ttl', '50ms', '--deadline', '1s')
      // To take the lease may last longer than that where the gateway shares the processor with other tests.
      const daemon = await mount().catch(mount)
      await run('sh', ['-c', 'cat d/here*'], { cwd: place.mountpoint })
      let written = 0
      for (const fault of ['noBucket', 'bare404', 'expired', 'page', 'nothing', 'bare503'] as const) {
        const stop = join(place.folder, `stop-${fault}`)
        const watching = run('python3', ['-c', watcher, stop], { cwd: place.mountpoint })
        await sleep(300)
        proxy.set({ rules: [{ fault }] })
        await run('sh', ['-c', `echo ${fault} > d/new-${fault}; sync d/new-${fault}`], { cwd: place.mountpoint }).then(
          () => written++,
          () => {},
        )
        await sleep(STORM_MS)
        expect((await daemon.status()).problems.join()).not.toBe('')
        proxy.set({ rules: [] })
        await sleep(300)
        await run('touch', [stop], {})
        const [whole] = (await watching).split(' ').map(Number)
        expect(whole).toBeGreaterThan(0)
        // It goes on by itself.
        await until(daemon, ({ problems, lag }) => problems.length === 0 && lag.operations === 0)
      }
      expect(written).toBeGreaterThan(0)
      const { objects: there } = await objects.list({ prefix: 'd/' })
      expect(there.filter(({ key }) => /^d\/(here|cold)/.test(key)).length).toBe(40)
      expect(there.filter(({ key }) => key.startsWith('d/new')).length).toBe(written)
      expect(await daemon.unmount()).toBe(0)
      await objects.close()
    },
    TEST_MS,
  )

  rgw.test(
    'has archived a file says so, until it was restored',
    async () => {
      const prefix = randomUUID()
      const objects = await s3Objects({ bucket, prefix })
      await objects.put('cold', Buffer.from('cold\n'))
      await objects.put('warm', Buffer.from('warm\n'))
      await objects.close()
      const place = await placeOnRgw(through(), `s3://${bucket}/${prefix}`)
      const daemon = await place.mount('--deadline', '5s')
      expect(await run('cat', ['warm'], { cwd: place.mountpoint })).toBe('warm\n')
      proxy.set({ rules: [{ fault: 'archived', only: ['get'], key: '/cold' }] })
      const beganMs = Date.now()
      expect(await runs('cat', ['cold'], { cwd: place.mountpoint })).toMatchObject({
        status: 1,
        stderr: 'cat: cold: Input/output error\n',
      })
      expect(Date.now() - beganMs).toBeLessThan(4_000)
      expect((await daemon.status()).problems.join()).toMatch(
        /1 of the files .* archived, and must be restored .*"cold"/,
      )
      expect((await place.pageferry('status', place.mountpoint)).stdout).toMatch(/archived, and must be restored/)
      proxy.set({ rules: [] })
      expect(await run('cat', ['cold'], { cwd: place.mountpoint })).toBe('cold\n')
      expect((await daemon.status()).problems).toEqual([])
      expect(await daemon.unmount()).toBe(0)
    },
    TEST_MS,
  )

  rgw.test(
    'is not the one that was meant is refused at once, in one line',
    async () => {
      const place = await placeOnRgw(server, 's3://no-such-bucket-at-all/x')
      const beganMs = Date.now()
      await expect(place.mount()).rejects.toThrow(/ended with 1.*there is no such bucket/s)
      expect(Date.now() - beganMs).toBeLessThan(6_000)
      place.url = `s3://${bucket}/x`
      place.loseCache()
      place.env.AWS_SECRET_ACCESS_KEY = 'wrong'
      await expect(place.mount()).rejects.toThrow(/ended with 1.*the secret key is wrong/s)
      place.env.AWS_SECRET_ACCESS_KEY = server.secretAccessKey
      proxy.set({ rules: [{ fault: 'page' }] })
      place.env.AWS_ENDPOINT_URL_S3 = proxy.endpoint
      const failed = await place.mount('--deadline', '2s').catch(error => error.message)
      expect(failed).toMatch(/ended with 1/)
      expect(failed).not.toMatch(/\bat .*:\d+:\d+/)
      proxy.set({ rules: [] })
      expect(await (await place.mount()).unmount()).toBe(0)
    },
    TEST_MS,
  )

  rgw.test(
    'tells sizes alone with attributes=listed: no request for a name, read-only, and a cache of its own',
    async () => {
      const prefix = randomUUID()
      const objects = await s3Objects({ bucket, prefix })
      for (let n = 0; n < 50; n++)
        await objects.put(`f${n}`, Buffer.alloc(n + 1), { metadata: { mode: String(0o100600), uid: '1234' } })
      await objects.close()
      const url = `s3://${bucket}/${prefix}`
      const place = await placeOnRgw(through(), url)
      const full = await place.mount()
      const script = 'ls -l | tail -n +2 | wc -l; stat -c "%a %u %s" f7'
      expect(await run('sh', ['-c', script], { cwd: place.mountpoint })).toBe('50\n600 1234 8\n')
      expect(await full.unmount()).toBe(0)
      place.url = `${url}?attributes=listed`
      await expect(place.mount()).rejects.toThrow(/belongs to .*not to .*attributes=listed/)
      place.loseCache()
      const listed = await place.mount()
      const { requests: before } = (await listed.status()).remote
      expect(await run('sh', ['-c', script], { cwd: place.mountpoint })).toMatch(/^50\n644 \d+ 8\n$/)
      expect((await listed.status()).remote.requests - before).toBeLessThanOrEqual(3)
      await expect(run('sh', ['-c', 'echo x > x'], { cwd: place.mountpoint })).rejects.toThrow(/Read-only file system/)
      expect(await listed.unmount()).toBe(0)
    },
    TEST_MS,
  )
})
