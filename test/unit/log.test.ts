// Where log records go: lines for people, JSON for machines, and never too much of it.
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { logger } from '../../src/base/log.js'
import { startLog } from '../../src/log.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'log-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

const log = logger('test')

test('nobody listens: nothing happens', () => {
  expect(() => log.error('unheard', { error: new Error('x') })).not.toThrow()
})

test('lines name what is urgent, why, and the rest', () => {
  const lines: string[] = []
  const { close } = startLog({ level: 'info', line: text => lines.push(text) })
  log.debug('too much detail')
  log.info('mounted')
  log.warn('the lease was lost', { epoch: 4, holder: 'elsewhere' })
  log.error('not sent', { error: new FerryError('UNREACHABLE', { detail: 'two\nlines' }) })
  close()
  log.info('after the end')
  expect(lines).toEqual([
    'mounted',
    'warning: the lease was lost (epoch 4, holder elsewhere)',
    'error: not sent: the remote cannot be reached: two lines',
  ])
})

test('a file gets a JSON object a line, with the stack of errors', () => {
  const file = join(folder, 'log')
  const { close } = startLog({ level: 'warn', file })
  log.info('not this')
  log.error('failed', { bytes: 5, error: new TypeError('oops') })
  close()
  const [line, rest] = readFileSync(file, 'utf8').split('\n')
  expect(rest).toBe('')
  expect(JSON.parse(line)).toMatchObject({
    level: 50,
    part: 'test',
    msg: 'failed',
    bytes: 5,
    pid: process.pid,
    err: { type: 'TypeError', message: 'oops', stack: expect.stringContaining('log.test') },
  })
  expect(statSync(file).mode & 0o077).toBe(0)
})

test('a file is put aside before it grows too large', () => {
  const file = join(folder, 'log')
  const { close } = startLog({ level: 'info', file, fileBytesMax: 2000 })
  for (let n = 0; n < 200; n++) log.info(`message ${n}`)
  close()
  expect(existsSync(`${file}.1`)).toBe(true)
  for (const name of [file, `${file}.1`]) expect(statSync(name).size).toBeLessThan(2500)
  expect(readFileSync(`${file}.1`, 'utf8') + readFileSync(file, 'utf8')).toContain('message 199')
})

test('a file that cannot be written is bad usage', () => {
  expect(() => startLog({ level: 'info', file: join(folder, 'no', 'where') })).toThrow(/--log-file: .*ENOENT/)
})
