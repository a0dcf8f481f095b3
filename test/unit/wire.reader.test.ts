import { describe, expect, test } from '@jest/globals'
import { latin1, putLatin1, Reader, viewOf } from '../../src/wire/reader.js'
import { struct, u16, u32 } from '../../src/wire/struct.js'

const protocol = expect.objectContaining({ name: 'FerryError', code: 'PROTOCOL' })
const Head = struct({ a: u16, b: u16 }, { endian: 'be' })
const ascii = (text: string) => Uint8Array.from(text, c => c.charCodeAt(0))

describe('a reader', () => {
  test('goes through a message in order', () => {
    const reader = new Reader(ascii('\0\x01\0\x02name\0other\0xyzrest'))
    expect(reader.struct(Head)).toEqual({ a: 1, b: 2 })
    expect(reader.cstring()).toBe('name')
    expect(reader.cstring(5)).toBe('other')
    expect(reader.bytes(3)).toEqual(ascii('xyz'))
    expect(reader.remaining).toBe(4)
    expect(reader.rest()).toEqual(ascii('rest'))
    reader.finish()
    expect(reader.rest()).toEqual(new Uint8Array())
  })

  test('never reads past its end, though the buffer goes on', () => {
    const bytes = ascii('0123456789\0')
    const reader = () => new Reader(bytes, 2, 5)
    expect(() => reader().bytes(4)).toThrow(protocol)
    expect(() => reader().struct(Head)).toThrow(protocol)
    expect(() => reader().cstring()).toThrow(protocol)
    expect(reader().rest()).toEqual(ascii('234'))
  })

  test('refuses lengths that are none', () => {
    for (const length of [-1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 32])
      expect(() => new Reader(ascii('abc')).bytes(length)).toThrow(protocol)
  })

  test('moves nothing when it refuses', () => {
    const reader = new Reader(ascii('abc'))
    expect(() => reader.bytes(4)).toThrow(protocol)
    expect(() => reader.cstring()).toThrow(protocol)
    expect(reader.rest()).toEqual(ascii('abc'))
  })

  test('ends a name at its NUL and at its limit', () => {
    expect(new Reader(ascii('\0')).cstring()).toBe('')
    expect(new Reader(ascii('abc\0')).cstring(3)).toBe('abc')
    expect(() => new Reader(ascii('abcd\0')).cstring(3)).toThrow(protocol)
    expect(() => new Reader(ascii('')).cstring()).toThrow(protocol)
  })

  test('complains about what is left over', () => {
    expect(() => new Reader(ascii('a')).finish()).toThrow('malformed message: 1 bytes too many')
  })

  test('gives views, not copies', () => {
    const bytes = ascii('abcd')
    const part = new Reader(bytes, 1).bytes(2)
    bytes[1] = 0x7a
    expect(part).toEqual(ascii('zc'))
  })

  test('works on a part of a larger buffer', () => {
    const part = ascii('....\0\x01\0\x02n\0....').subarray(4, 10)
    const reader = new Reader(part)
    expect(reader.struct(Head)).toEqual({ a: 1, b: 2 })
    expect(reader.cstring()).toBe('n')
    reader.finish()
  })
})

test('any byte survives in a name', () => {
  const all = Uint8Array.from({ length: 256 }, (_, i) => i)
  const name = latin1(all, 0, 256)
  expect(name).toHaveLength(256)
  const back = new Uint8Array(256)
  putLatin1(back, 0, name)
  expect(back).toEqual(all)
  expect(() => putLatin1(back, 0, 'snow☃')).toThrow('is text, not bytes')
})

test('the view of a buffer is made once', () => {
  const bytes = new Uint8Array(new ArrayBuffer(16), 4, 8)
  expect(viewOf(bytes)).toBe(viewOf(bytes))
  expect(viewOf(bytes).byteOffset).toBe(4)
  expect(viewOf(bytes).byteLength).toBe(8)
  expect(struct({ n: u32 }).decode(viewOf(bytes))).toEqual({ n: 0 })
})
