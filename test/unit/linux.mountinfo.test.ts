import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { tuneBdi } from '../../src/linux/bdi.js'
import { unmountFuse } from '../../src/linux/mount.js'
import { mountAt, mounts } from '../../src/linux/mountinfo.js'
import { requires } from '../fixtures/requires.js'

test('the root and /proc are mounted', () => {
  expect(mountAt('/')).toMatchObject({ point: Buffer.from('/') })
  expect(mountAt('/proc')).toMatchObject({ type: 'proc', major: 0 })
  expect(mountAt('/proc/self')).toBeUndefined()
  expect(mounts().length).toBeGreaterThan(1)
})

requires('root', 'mount').test(
  'odd names are bytes again; the last mount on a point is the one to be seen',
  async () => {
    const folder = mkdtempSync(join(realpathSync(tmpdir()), 'pageferry-linux-'))
    const point = Buffer.concat([Buffer.from(join(folder, 'a b\tc\\d\n')), Buffer.from([0xc3, 0xa9])])
    mkdirSync(point)
    for (const source of ['the first', 'the second'])
      expect(spawnSync('mount', ['-t', 'tmpfs', source, point.toString()]).status).toBe(0)
    try {
      const mount = mountAt(point)
      expect(mount).toMatchObject({ type: 'tmpfs', source: 'the second' })
      expect(mount?.options).toContain('rw')
      expect(mounts().filter(each => each.point.equals(point))).toHaveLength(2)
    } finally {
      await unmountFuse(point)
      await unmountFuse(point, { lazy: true })
    }
    expect(mountAt(point)).toBeUndefined()
    await expect(unmountFuse(point)).rejects.toMatchObject({ code: 'INVALID' })
    rmSync(folder, { recursive: true })
  },
)

test('what a bdi refuses is reported, not thrown', async () => {
  const refused = await tuneBdi({ major: 4095, minor: 1 }, { readAheadKb: 128, strictLimit: true })
  expect(refused).toHaveLength(2)
  expect(refused[0]).toContain('strict_limit')
})
