import { expect, test } from '@jest/globals'
import { crc32, crc32Within, digest } from '../../src/chunk/digest.js'

const text = (text: string) => new TextEncoder().encode(text)

test('the digest is XXH64 with seed 0: its specification has these values', () => {
  expect(digest(text(''))).toBe(0xef46_db37_51d8_e999n)
  expect(digest(text('abc'))).toBe(0x44bc_2cf5_ad77_0999n)
})

test('a view is digested, not the buffer behind it', () => {
  const bytes = text('xxabcxx')
  expect(digest(bytes.subarray(2, 5))).toBe(digest(text('abc')))
  expect(crc32(bytes.subarray(2, 5))).toBe(crc32(text('abc')))
})

test('the CRC is the usual one, and can be continued', () => {
  expect(crc32(text('123456789'))).toBe(0xcbf4_3926)
  expect(crc32(text('6789'), crc32(text('12345')))).toBe(0xcbf4_3926)
})

test('the CRC of bytes among others is the same one', () => {
  const bytes = Uint8Array.from({ length: 300 }, (_, i) => (i * 31) ^ (i >> 3))
  for (let end = 0; end < bytes.length; end++) {
    const at = Math.min(end, 7)
    expect(crc32Within(bytes, at, end)).toBe(crc32(bytes.subarray(at, end)))
    expect(crc32Within(bytes, at, end, 0xdead_beef)).toBe(crc32(bytes.subarray(at, end), 0xdead_beef))
  }
})
