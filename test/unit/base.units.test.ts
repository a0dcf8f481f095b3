import { describe, expect, test } from '@jest/globals'
import { formatBytes, formatDuration, parseSize, parseTime } from '../../src/base/units.js'

const MiB = 1024 ** 2

describe('sizes', () => {
  test.each([
    ['0', 0],
    ['4096', 4096],
    ['256M', 256 * MiB],
    ['256m', 256 * MiB],
    ['1.5K', 1536],
    ['10G', 10 * 1024 ** 3],
    ['2T', 2 * 1024 ** 4],
    ['64KiB', 65536],
    ['64 KB', 65536],
    ['7B', 7],
  ])('%s', (text, bytes) => expect(parseSize(text)).toBe(bytes))

  test.each(['', 'M', '-1', '1X', '1e9', '0x10', '1,5M', '5 M M', 'NaN', '99999T', '1.', '.5M'])(
    '%j is refused',
    text => {
      expect(() => parseSize(text, '--memory')).toThrow(/^bad usage: --memory: ".*" is not a size/)
    },
  )

  test('the message says what was given and what is allowed, in one line', () => {
    expect(() => parseSize('12X', '--memory')).toThrow(
      'bad usage: --memory: "12X" is not a size: a number, or one with K, M, G or T (powers of 1024), like 256M',
    )
    expect(() => parseSize('a\nb')).toThrow(/^[^\n]*$/)
  })

  test.each([
    [0, '0 B'],
    [512, '512 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [1024 ** 2 - 1, '1 MiB'],
    [256 * MiB, '256 MiB'],
    [1.25 * 1024 ** 4, '1.25 TiB'],
    [5000 * 1024 ** 5, '5000 PiB'],
    [-2048, '-2 KiB'],
  ])('%d bytes', (bytes, text) => expect(formatBytes(bytes)).toBe(text))
})

describe('times', () => {
  test.each([
    ['0', 0],
    ['500ms', 500],
    ['30s', 30_000],
    ['1.5s', 1500],
    ['2m', 120_000],
    ['1h', 3_600_000],
    ['0.5ms', 0.5],
  ])('%s', (text, ms) => expect(parseTime(text)).toBe(ms))

  test.each(['', '30', 's', '-1s', '1d', '1M', '5S', '1 year', 'Infinity'])('%j is refused', text => {
    expect(() => parseTime(text, '--lease')).toThrow(/^bad usage: --lease: ".*" is not a time: .*like 30s$/)
  })

  test.each([
    [0, '0ms'],
    [0.5, '0.5ms'],
    [999, '999ms'],
    [999.9, '1s'],
    [4200, '4.2s'],
    [59_900, '59.9s'],
    [59_999, '1m'],
    [200_000, '3m 20s'],
    [3_599_900, '1h'],
    [7_500_000, '2h 5m'],
  ])('%d ms', (ms, text) => expect(formatDuration(ms)).toBe(text))
})
