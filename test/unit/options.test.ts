// Options: what they may be, where they may come from, and what is said of a wrong one.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { commandSettings, mountOptionRows, mountSettings } from '../../src/options.js'

const refusal = (act: () => unknown): string => {
  try {
    act()
  } catch (error) {
    expect(error).toBeInstanceOf(FerryError)
    expect((error as FerryError).code).toBe('USAGE')
    return (error as FerryError).message.replace('bad usage: ', '')
  }
  throw new Error('was not refused')
}

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'options-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

const config = (text: string) => {
  const file = join(folder, `${Math.random()}.toml`)
  writeFileSync(file, text)
  return file
}

const settings = (flags: Record<string, unknown> = {}, env: NodeJS.ProcessEnv = {}, file?: string) =>
  commandSettings({ flags, env, config: file })

describe('what is given', () => {
  test('nothing: the defaults of the documents', () => {
    expect(mountSettings()).toMatchObject({
      cacheSize: 10 * 2 ** 30,
      memory: 256 * 2 ** 20,
      fetchSize: 4 * 2 ** 20,
      dirtyLimit: 2 ** 30,
      flushInterval: 2000,
      deadline: 30_000,
      lease: 30_000,
      dirTtl: 10_000,
      fsync: 'local',
      whenFull: 'wait',
      pull: 'on-demand',
      prefetch: 'auto',
      localOnly: ['*-shm'],
      readOnly: false,
      driver: 'kernel',
    })
  })

  test('sizes are powers of 1024, or bytes; times have units, or are ms', () => {
    expect(settings({ fetchSize: '512K', flushInterval: '1.5s' })).toMatchObject({
      fetchSize: 2 ** 19,
      flushInterval: 1500,
    })
    expect(mountSettings({ fetchSize: 2 ** 19, flushInterval: 1500 })).toMatchObject({
      fetchSize: 2 ** 19,
      flushInterval: 1500,
    })
  })

  test('paths are absolute at once', () => {
    expect(settings({ cacheDir: 'x', record: 'y', prefetch: 'z' })).toMatchObject({
      cacheDir: resolve('x'),
      record: resolve('y'),
      prefetch: { file: resolve('z') },
    })
  })

  test('what belongs to one option may depend on another', () => {
    expect(mountSettings({ cacheSize: '64M' }).dirtyLimit).toBe(32 * 2 ** 20)
    expect(refusal(() => settings({ cacheSize: '64M', dirtyLimit: '65M' }))).toMatch(
      /^--dirty-limit: got 65 MiB; allowed: at most the 64 MiB of --cache-size$/,
    )
    expect(refusal(() => settings({ readOnly: true, takeOver: true }))).toMatch(/^--take-over: /)
    expect(refusal(() => settings({ mode: 'passthrough' }))).toMatch(
      /^--mode: got passthrough; allowed with --read-only/,
    )
    for (const given of [{ acl: true }, { mode: 'passthrough', readOnly: true }])
      expect(refusal(() => settings({ ...given, driver: 'fuse-native' }))).toMatch(
        /^--(acl|mode): the driver fuse-native does not have it; allowed with --driver kernel$/,
      )
  })

  test('addresses of this machine only', () => {
    expect(settings({ metrics: '9464' }).metrics).toEqual({ host: '127.0.0.1', port: 9464 })
    expect(settings({ metrics: '[::1]:1' }).metrics).toEqual({ host: '::1', port: 1 })
    for (const other of ['0.0.0.0:1', '192.168.0.1:80', 'example.org:80', ':70000', '99999', 'x'])
      expect(refusal(() => settings({ metrics: other }))).toMatch(/^--metrics: got /)
  })

  test('a list is repeated, or separated by commas', () => {
    expect(settings({ localOnly: ['*-shm', 'tmp*'] }).localOnly).toEqual(['*-shm', 'tmp*'])
    expect(settings({}, { PAGEFERRY_LOCAL_ONLY: '*-shm, tmp*' }).localOnly).toEqual(['*-shm', 'tmp*'])
    expect(settings({}, {}, config('local-only = ["a", "b"]')).localOnly).toEqual(['a', 'b'])
  })
})

describe('where it comes from', () => {
  test('a flag goes before a variable, a variable before the file, the file before the default', () => {
    const file = config('fetch-size = "2M"\nmemory = "64M"\ncache-size = "1G"\nread-only = true')
    const env = { PAGEFERRY_FETCH_SIZE: '4M', PAGEFERRY_MEMORY: '128M' }
    expect(settings({ fetchSize: '8M' }, env, file)).toMatchObject({
      fetchSize: 8 * 2 ** 20,
      memory: 128 * 2 ** 20,
      cacheSize: 2 ** 30,
      readOnly: true,
    })
    expect(settings({ readOnly: false }, env, file).readOnly).toBe(false)
  })

  test('each option is a flag, a variable and a key', () => {
    const samples: Record<string, string> = {
      SIZE: '2M',
      TIME: '3s',
      N: '3',
      OCTAL: '022',
      DIR: '/x',
      FILE: '/x',
      GLOB: 'x',
      ADDR: '1',
      SPEC: 'rtt=1ms',
      ORDER: 'stride:8M',
    }
    for (const { name, flag, variable, placeholder } of mountOptionRows) {
      const value = placeholder === undefined ? 'yes' : (samples[placeholder] ?? placeholder.split('|')[1])
      // Of a few the sample is out of range, or goes with nothing else; that is no reason not to know the name.
      const limits = { SIZE: { cacheSize: '1G' }, TIME: {} }[placeholder as 'SIZE'] ?? {}
      const sample = name in limits ? '1G' : name === 'memory' ? '64M' : value
      const byFlag = settings({ ...limits, [name]: sample }) as Record<string, unknown>
      expect(byFlag[name]).toEqual((settings(limits, { [variable]: sample }) as Record<string, unknown>)[name])
      expect(byFlag[name]).toEqual(
        (settings(limits, {}, config(`${flag} = ${JSON.stringify(sample)}`)) as Record<string, unknown>)[name],
      )
      expect(byFlag[name]).toBeDefined()
    }
  })

  test('a file that cannot be read, is no TOML, or has a key that is no option', () => {
    expect(refusal(() => settings({}, {}, '/nowhere.toml'))).toBe('--config: /nowhere.toml cannot be read (ENOENT)')
    expect(refusal(() => settings({}, {}, config('fetch-size = ')))).toMatch(/^--config: .* is not TOML: [^\n]+$/)
    expect(refusal(() => settings({}, {}, config('fetchsize = "1M"')))).toMatch(
      /^fetchsize in .*: there is no such option$/,
    )
  })
})

describe('what is wrong is said with its name, what was given and what is allowed', () => {
  const cases: [Record<string, unknown>, RegExp][] = [
    [{ fetchSize: '9G' }, /^--fetch-size: got "9G"; allowed: a size from 128K to 8M, such as 1M/],
    [{ fetchSize: '1X' }, /^--fetch-size: got "1X"; allowed: a size/],
    [{ cacheSize: '-1' }, /^--cache-size: got "-1"; allowed: a size/],
    [{ flushInterval: '2' }, /^--flush-interval: got "2"; allowed: a time .*units: ms, s, m/],
    [{ lease: '1ms' }, /^--lease: got "1ms"; allowed: a time from 1s/],
    [{ fsync: 'never' }, /^--fsync: got "never"; allowed: local, remote$/],
    [{ pullOrder: 'up' }, /^--pull-order: got "up"; allowed: ascending, descending, or stride:SIZE$/],
    [{ pullWorkers: '1.5' }, /^--pull-workers: got "1.5"; allowed: a whole number from 0 to 64$/],
    [{ pushWorkers: '0' }, /^--push-workers: got "0"/],
    [{ umask: '9' }, /^--umask: got "9"; allowed: octal/],
    [{ umask: '7777' }, /^--umask: got "7777"/],
    [{ logLevel: 'loud' }, /^--log-level: got "loud"; allowed: trace, debug/],
    [{ simulate: 'rtt=20' }, /^--simulate: got "rtt=20"; .*rtt/],
    [{ simulate: 'speed=1' }, /^--simulate: got "speed=1"; .*rtt=/],
  ]
  test.each(cases)('%j', (flags, message) => {
    const said = refusal(() => settings(flags))
    expect(said).toMatch(message)
    expect(said).not.toContain('\n')
  })

  test('by the name it was given under', () => {
    expect(refusal(() => settings({}, { PAGEFERRY_FETCH_SIZE: 'big' }))).toMatch(/^PAGEFERRY_FETCH_SIZE: got "big"/)
    const file = config('fetch-size = 12')
    expect(refusal(() => settings({}, {}, file))).toMatch(new RegExp(`^fetch-size in ${file}: got 12`))
    expect(refusal(() => mountSettings({ fetchSize: 'big' }))).toMatch(/^fetchSize: got "big"/)
    expect(refusal(() => mountSettings({ fetchSice: '1M' } as never))).toBe('fetchSice: there is no such option')
  })

  test('other types than a flag could have', () => {
    for (const wrong of [null, {}, [], true, Number.NaN, Number.POSITIVE_INFINITY])
      expect(refusal(() => mountSettings({ fetchSize: wrong as never }))).toMatch(/^fetchSize: got /)
    expect(refusal(() => mountSettings({ readOnly: 'perhaps' }))).toBe('readOnly: got "perhaps"; allowed: yes or no')
    expect(refusal(() => mountSettings({ cacheDir: 7 as never }))).toBe('cacheDir: got 7; allowed: a path')
  })
})

test('SEMANTICS says of each option what it means', () => {
  const text = readFileSync('docs/SEMANTICS.md', 'utf8')
  const table = text.slice(text.indexOf('## Options'), text.indexOf('## The command line'))
  for (const { flag } of mountOptionRows) expect(table).toMatch(new RegExp(`^\\|.*\`--${flag}\`.*\\|.*\\|`, 'm'))
})
