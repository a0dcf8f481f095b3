import { closeSync, constants, mkdtempSync, openSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from '@jest/globals'
import { errnoOf } from '../../src/linux/libc.js'
import { getxattr, listxattr, removexattr, setxattr } from '../../src/linux/xattr.js'
import { requires } from '../fixtures/requires.js'

const folder = mkdtempSync(join(tmpdir(), 'pageferry-linux-'))
afterAll(() => rmSync(folder, { recursive: true }))
const path = Buffer.from(join(folder, 'file'))
writeFileSync(path, '')
const link = Buffer.from(join(folder, 'link'))
symlinkSync(path, link)

const color = Buffer.from('user.color')
const codeOf = (attempt: () => unknown) => {
  try {
    attempt()
  } catch (error) {
    return (error as { code: string }).code
  }
  return undefined
}

test('set, got, listed, removed', () => {
  expect(getxattr(path, color)).toBeUndefined()
  expect(listxattr(path)).not.toContainEqual(color)
  setxattr(path, color, Buffer.from([0, 1, 255]))
  expect(getxattr(path, color)).toEqual(Buffer.from([0, 1, 255]))
  setxattr(path, Buffer.from('user.empty'), Buffer.alloc(0))
  expect(getxattr(path, Buffer.from('user.empty'))).toEqual(Buffer.alloc(0))
  expect(listxattr(path)).toEqual(expect.arrayContaining([color, Buffer.from('user.empty')]))
  removexattr(path, color)
  expect(getxattr(path, color)).toBeUndefined()
  expect(codeOf(() => removexattr(path, color))).toBe('NO_DATA')
})

test('create refuses what is there, replace what is not', () => {
  const name = Buffer.from('user.once')
  expect(codeOf(() => setxattr(path, name, Buffer.from('1'), 'replace'))).toBe('NO_DATA')
  setxattr(path, name, Buffer.from('1'), 'create')
  expect(codeOf(() => setxattr(path, name, Buffer.from('2'), 'create'))).toBe('EXISTS')
  setxattr(path, name, Buffer.from('3'), 'replace')
  expect(getxattr(path, name)).toEqual(Buffer.from('3'))
})

test('a value is a copy: the next call does not change it', () => {
  setxattr(path, color, Buffer.from('blue'))
  const first = getxattr(path, color)
  setxattr(path, color, Buffer.from('red'))
  getxattr(path, color)
  expect(first).toEqual(Buffer.from('blue'))
})

test('a symlink is not followed', () => {
  setxattr(path, color, Buffer.from('blue'))
  expect(getxattr(link, color)).toBeUndefined()
  expect(listxattr(link)).not.toContainEqual(color)
  // user.* is for files and directories only.
  expect(['NOT_PERMITTED', 'UNSUPPORTED']).toContain(codeOf(() => setxattr(link, color, Buffer.from('x'))))
})

test('a descriptor will do, O_PATH too', () => {
  setxattr(path, color, Buffer.from('green'))
  const O_PATH = 0o10000000
  for (const flags of [constants.O_RDONLY, O_PATH]) {
    const fd = openSync(path, flags)
    expect(getxattr(fd, color)).toEqual(Buffer.from('green'))
    setxattr(fd, color, Buffer.from('green'))
    expect(listxattr(fd)).toContainEqual(color)
    closeSync(fd)
  }
})

requires('root').test('an O_PATH descriptor of a symlink means the symlink', () => {
  const trusted = Buffer.from('trusted.which')
  setxattr(link, trusted, Buffer.from('link'))
  const fd = openSync(link, 0o10000000 | constants.O_NOFOLLOW)
  expect(getxattr(fd, trusted)).toEqual(Buffer.from('link'))
  expect(getxattr(path, trusted)).toBeUndefined()
  removexattr(fd, trusted)
  expect(getxattr(link, trusted)).toBeUndefined()
  closeSync(fd)
})

test('failures say what and where', () => {
  const missing = Buffer.from(join(folder, 'missing'))
  expect(codeOf(() => getxattr(missing, color))).toBe('NOT_FOUND')
  expect(codeOf(() => listxattr(missing))).toBe('NOT_FOUND')
  expect(codeOf(() => getxattr(path, Buffer.from('nonsense')))).toBe('UNSUPPORTED')
  try {
    setxattr(path, Buffer.from('user.large'), Buffer.alloc(65_537))
    throw new Error('was taken')
  } catch (error) {
    expect([7, 34]).toContain(errnoOf(error)) // E2BIG
  }
})
