import { expect, test } from '@jest/globals'
import { giveBytes, isTaken, takeBytes } from '../../src/base/buffers.js'

const KiB = 1024

test('memory that was given back is used again, for what is about as large', () => {
  const first = takeBytes(900 * KiB)
  expect([first.byteLength, isTaken(first)]).toEqual([900 * KiB, true])
  giveBytes(first.buffer)
  const [other, again] = [takeBytes(300 * KiB), takeBytes(1024 * KiB)]
  expect([other.buffer === first.buffer, again.buffer === first.buffer]).toEqual([false, true])
  expect(takeBytes(1000 * KiB).buffer).not.toBe(first.buffer)
})

test('small ones, and those of others, are not kept', () => {
  expect(isTaken(takeBytes(1000))).toBe(false)
  const odd = new ArrayBuffer(300 * KiB)
  giveBytes(odd)
  expect(takeBytes(300 * KiB).buffer).not.toBe(odd)
})

test('no more is kept than 64 MiB', () => {
  const all = Array.from({ length: 20 }, () => takeBytes(4096 * KiB))
  for (const { buffer } of all) giveBytes(buffer)
  const known = new Set(all.map(({ buffer }) => buffer))
  const again = Array.from({ length: 20 }, () => takeBytes(4096 * KiB)).filter(({ buffer }) => known.has(buffer))
  expect(again.length).toBe(16)
})
