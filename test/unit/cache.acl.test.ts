// Access control lists against what the kernel makes of them on a file system of its own.
import { expect, test } from '@jest/globals'
import { aclWithMode, inheritAcl, setAcl } from '../../src/cache/acl.js'

const tags: Record<string, number> = { u: 0x01, user: 0x02, g: 0x04, group: 0x08, m: 0x10, o: 0x20 }

/** `u:6 user:1000:7 g:4 m:6 o:0`, in their order, as bytes. */
function list(text: string): Uint8Array {
  const entries = text.split(' ').map(entry => entry.split(':'))
  const bytes = Buffer.alloc(4 + 8 * entries.length)
  bytes.writeUInt32LE(2)
  entries.forEach(([tag, ...rest], n) => {
    bytes.writeUInt16LE(tags[tag], 4 + 8 * n)
    bytes.writeUInt16LE(Number(rest.at(-1)), 6 + 8 * n)
    bytes.writeUInt32LE(rest.length > 1 ? Number(rest[0]) : 0xffffffff, 8 + 8 * n)
  })
  return new Uint8Array(bytes)
}

test('a list that is set says the mode; one of three entries is nothing but a mode', () => {
  const named = list('u:7 user:1000:6 g:5 m:6 o:1')
  expect(setAcl(named)).toEqual({ permissions: 0o761, acl: named })
  expect(setAcl(list('u:6 g:4 o:0'))).toEqual({ permissions: 0o640, acl: null })
  const masked = list('u:6 g:7 m:4 o:0')
  expect(setAcl(masked)).toEqual({ permissions: 0o640, acl: masked })
})

test('chmod changes owner, mask and others; without a mask the group', () => {
  expect(aclWithMode(list('u:7 user:1000:6 g:5 m:6 o:1'), 0o4312)).toEqual(list('u:3 user:1000:6 g:5 m:1 o:2'))
  expect(aclWithMode(list('u:7 g:5 o:1'), 0o640)).toEqual(list('u:6 g:4 o:0'))
})

test('what is new gets no more than the default and its mode allow', () => {
  const byDefault = list('u:7 user:1000:7 g:5 m:7 o:0')
  expect(inheritAcl(byDefault, 0o100666)).toEqual({
    mode: 0o100660,
    acl: list('u:6 user:1000:7 g:5 m:6 o:0'),
  })
  expect(inheritAcl(list('u:7 g:5 o:5'), 0o40770)).toEqual({ mode: 0o40750, acl: null })
})

test.each([
  ['nothing', new Uint8Array()],
  ['another version', list('u:7 g:5 o:5').fill(3, 0, 1)],
  ['half an entry', list('u:7 g:5 o:5').subarray(0, 26)],
  ['two owners', list('u:7 u:7 g:5 o:5')],
  ['no others', list('u:7 g:5 m:5')],
  ['somebody without a mask', list('u:7 user:1:7 g:5 o:5')],
  ['more than rwx', list('u:7 g:8 o:5')],
])('%s is refused', (_what, bytes) => {
  expect(() => setAcl(bytes)).toThrow('access control list')
})
