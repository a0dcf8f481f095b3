// The doctor: each thing that would keep a mount from working is found, with what to do about it.
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { type DoctorOptions, examine } from '../../src/doctor.js'
import { Registry, registryPaths } from '../../src/registry.js'
import { requires } from '../fixtures/requires.js'

let root: string
let options: DoctorOptions
/** A machine on which all is well. */
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'doctor-'))
  for (const folder of ['dev', 'bin', 'etc', 'proc/self', 'proc/sys/fs/fuse', 'cache', 'run', 'state'])
    mkdirSync(join(root, folder), { recursive: true })
  put('dev/fuse', '')
  put('etc/fuse.conf', '')
  put('proc/self/status', 'Name:\tnode\nCapEff:\t000001ffffffffff\n')
  put('proc/sys/fs/fuse/max_pages_limit', '256\n')
  put('bin/fusermount3', '')
  chmodSync(join(root, 'bin/fusermount3'), 0o4755)
  options = {
    root,
    uid: 0,
    kernelRelease: '6.1.0-13-amd64',
    nodeVersion: 'v20.20.2',
    env: {
      PATH: join(root, 'bin'),
      XDG_CACHE_HOME: join(root, 'cache'),
      XDG_RUNTIME_DIR: join(root, 'run'),
      XDG_STATE_HOME: join(root, 'state'),
    },
  }
})
afterEach(() => rmSync(root, { recursive: true }))

const put = (name: string, text: string) => writeFileSync(join(root, name), text)

const found = async (check: string, changed: Partial<DoctorOptions> = {}) =>
  (await examine({ ...options, ...changed })).filter(finding => finding.check === check)
const one = async (check: string, changed: Partial<DoctorOptions> = {}) => (await found(check, changed))[0]

test('a good machine has nothing to be mended', async () => {
  const findings = await examine(options)
  expect(findings.filter(({ verdict }) => verdict === 'bad')).toEqual([])
  expect(existsSync(join(root, 'cache', 'pageferry'))).toBe(false)
})

test('every finding that is not ok says what to do', async () => {
  rmSync(join(root, 'dev/fuse'))
  rmSync(join(root, 'bin/fusermount3'))
  put('proc/self/status', 'CapEff:\t0000000000000000\n')
  const findings = await examine({ ...options, uid: 1000, kernelRelease: '4.9.1', nodeVersion: 'v18.1.0' })
  expect(findings.filter(({ verdict }) => verdict === 'bad').length).toBeGreaterThanOrEqual(4)
  for (const { verdict, todo } of findings) expect(verdict === 'ok' ? 'x' : todo).toBeTruthy()
})

test('it says what nbd attach would make', async () => {
  expect(await one('nbd attach')).toMatchObject({ verdict: 'warning' })
  put('dev/loop-control', '')
  expect(await one('nbd attach')).toMatchObject({ verdict: 'ok', found: expect.stringContaining('a loop device') })
  const drivers = 'lib/modules/6.1.0-13-amd64/kernel/drivers/block'
  mkdirSync(join(root, drivers), { recursive: true })
  put(`${drivers}/nbd.ko.xz`, '')
  expect(await one('nbd attach')).toMatchObject({ found: expect.stringMatching(/loaded when it is needed/) })
  mkdirSync(join(root, 'sys/module/nbd'), { recursive: true })
  expect(await one('nbd attach')).toMatchObject({ found: "the kernel's NBD client: /dev/nbdN" })
})

test('it says what mapRegion can do', async () => {
  expect(await one('mapRegion')).toMatchObject({ verdict: 'warning', found: 'this kernel has no userfaultfd' })
  mkdirSync(join(root, 'proc/sys/vm'))
  put('proc/sys/vm/unprivileged_userfaultfd', '0\n')
  expect(await one('mapRegion')).toMatchObject({ verdict: 'warning', todo: expect.stringContaining('6.7') })
  expect(await one('mapRegion', { kernelRelease: '6.12.9' })).toMatchObject({ verdict: 'ok' })
  const user = { kernelRelease: '6.12.9', uid: 1000 }
  expect(await one('mapRegion', user)).toMatchObject({ verdict: 'warning', todo: expect.stringContaining('sysctl') })
  put('dev/userfaultfd', '')
  expect(await one('mapRegion', user)).toMatchObject({ verdict: 'ok' })
})

describe('finds', () => {
  test('an old kernel', async () => {
    expect(await one('kernel', { kernelRelease: '4.19.0' })).toMatchObject({ verdict: 'bad' })
    expect(await one('kernel', { kernelRelease: '5.4.0' })).toMatchObject({ verdict: 'warning' })
    expect((await one('kernel', { kernelRelease: '6.8.0' })).found).toMatch(/a mount ends with its daemon/)
    expect((await one('kernel', { kernelRelease: '6.18.44-fc' })).found).toBe('Linux 6.18.44-fc')
  })

  test('an old node', async () => {
    expect(await one('node', { nodeVersion: 'v18.20.0' })).toMatchObject({ verdict: 'bad' })
    expect(await one('node', { nodeVersion: 'v24.0.0' })).toMatchObject({ verdict: 'ok' })
  })

  test('a missing device', async () => {
    rmSync(join(root, 'dev/fuse'))
    expect(await one('/dev/fuse')).toMatchObject({ verdict: 'bad', todo: expect.stringContaining('modprobe fuse') })
  })

  test('missing rights', async () => {
    put('proc/self/status', 'CapEff:\t0000000000000000\n')
    expect(await one('rights')).toMatchObject({ verdict: 'bad', todo: expect.stringContaining('SYS_ADMIN') })
    rmSync(join(root, 'bin/fusermount3'))
    expect(await one('rights', { uid: 1000 })).toMatchObject({
      verdict: 'bad',
      todo: expect.stringContaining('apt-get install fuse3'),
    })
    expect(await one('fusermount3', { uid: 1000 })).toMatchObject({ verdict: 'warning' })
  })

  const { test: asRoot } = requires('root')
  asRoot('a helper that has lost its set-uid bit', async () => {
    put('proc/self/status', 'CapEff:\t0000000000000000\n')
    expect(await one('rights', { uid: 1000 })).toMatchObject({
      verdict: 'ok',
      found: expect.stringContaining('user_allow_other'),
    })
    put('etc/fuse.conf', '#user_allow_other\nuser_allow_other\n')
    expect((await one('rights', { uid: 1000 })).found).not.toContain('user_allow_other')
    chmodSync(join(root, 'bin/fusermount3'), 0o755)
    expect(await one('rights', { uid: 1000 })).toMatchObject({ verdict: 'bad' })
  })

  test('small requests', async () => {
    put('proc/sys/fs/fuse/max_pages_limit', '32\n')
    expect(await one('max_pages_limit')).toMatchObject({ verdict: 'warning', todo: expect.stringContaining('sysctl') })
    rmSync(join(root, 'proc/sys/fs/fuse/max_pages_limit'))
    expect(await one('max_pages_limit')).toMatchObject({ verdict: 'ok' })
  })

  test('a thread pool in which a mount could wait for itself', async () => {
    expect(await one('thread pool', { env: { ...options.env, UV_THREADPOOL_SIZE: '1' } })).toMatchObject({
      verdict: 'bad',
    })
    expect(await one('thread pool', { env: { ...options.env, UV_THREADPOOL_SIZE: '16' } })).toMatchObject({
      verdict: 'ok',
    })
  })

  test('a cache that the next boot empties', async () => {
    const { verdict, todo } = await one('cache directory', { cacheDir: '/dev/shm/pageferry-cache' })
    expect(verdict).toBe('warning')
    expect(todo).toContain('--cache-dir')
  })

  test('a cache directory that cannot be written', async () => {
    expect(await one('cache directory', { cacheDir: '/proc/nowhere' })).toMatchObject({
      verdict: 'bad',
      todo: expect.stringContaining('--cache-dir'),
    })
  })

  test('journals with unsent work', async () => {
    const lag = { bytes: 1, operations: 1, ageMs: 1, kernelBytes: 0 }
    new Registry(registryPaths(options.env)).keepJournal({ remote: 'file:///x', cacheDir: root, lag, closed: true })
    expect(await one('journals')).toMatchObject({ verdict: 'warning', found: expect.stringContaining('file:///x') })
  })
})
