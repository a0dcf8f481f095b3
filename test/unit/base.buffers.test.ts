import { types } from 'node:util'
import { expect, test } from '@jest/globals'
import { giveBack, giveShared, isTaken, sharedCopy, takeBytes } from '../../src/base/buffers.js'

const KiB = 1024

test('memory that was given back is used again, for what is about as large', () => {
  const first = takeBytes(900 * KiB)
  expect([first.byteLength, isTaken(first)]).toEqual([900 * KiB, true])
  giveBack(first)
  const [other, again] = [takeBytes(300 * KiB), takeBytes(1024 * KiB)]
  expect([other.buffer === first.buffer, again.buffer === first.buffer]).toEqual([false, true])
  expect(takeBytes(1000 * KiB).buffer).not.toBe(first.buffer)
})

test('small ones, and those of others, are not kept', () => {
  expect(isTaken(takeBytes(1000))).toBe(false)
  const odd = new ArrayBuffer(300 * KiB)
  giveBack(new Uint8Array(odd))
  expect(takeBytes(300 * KiB).buffer).not.toBe(odd)
})

test('no more is kept than 64 MiB', () => {
  const all = Array.from({ length: 20 }, () => takeBytes(4096 * KiB))
  for (const bytes of all) giveBack(bytes)
  const known = new Set(all.map(({ buffer }) => buffer))
  const again = Array.from({ length: 20 }, () => takeBytes(4096 * KiB)).filter(({ buffer }) => known.has(buffer))
  expect(again.length).toBe(16)
})

test('what another thread is to see is copied to memory of its own kind, which is used again once it comes back', () => {
  const bytes = takeBytes(300 * KiB).fill(7)
  const shared = sharedCopy(bytes)
  expect([types.isSharedArrayBuffer(shared.buffer), shared.length, shared.every(byte => byte === 7)]).toEqual([
    ...[true, 300 * KiB, true],
  ])
  expect(takeBytes(300 * KiB).buffer === bytes.buffer).toBe(true)
  giveShared(shared.buffer as SharedArrayBuffer)
  expect(sharedCopy(new Uint8Array(400 * KiB)).buffer === shared.buffer).toBe(true)
  expect(types.isSharedArrayBuffer(takeBytes(300 * KiB).buffer)).toBe(false)
  const small = new Uint8Array(100)
  expect(sharedCopy(small) === small).toBe(true)
})
