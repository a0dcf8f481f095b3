import { expect, test } from '@jest/globals'
import { readExactly } from '../../src/base/read-exactly.js'

const bytes = Uint8Array.from({ length: 100 }, (_, n) => n)
/** Answers each call with so many bytes at most. */
const answering = (...counts: number[]) => {
  const calls: [number, number][] = []
  const read = async (at: number, length: number) => {
    calls.push([at, length])
    return bytes.slice(at, at + Math.min(length, counts.shift() ?? length))
  }
  return { calls, read }
}
const range = { at: 10, length: 50, what: 'a' }

test('a whole answer is handed on as it is', async () => {
  const whole = bytes.slice(10, 60)
  expect(await readExactly(range, async () => whole)).toBe(whole)
})

test('after a short answer the rest is asked for', async () => {
  const { calls, read } = answering(20, 1)
  expect(await readExactly(range, read)).toEqual(bytes.slice(10, 60))
  expect(calls).toEqual([
    [10, 50],
    [30, 30],
    [31, 29],
  ])
})

test.each([[[0]], [[20, 0]]])('an answer of nothing is an error: %p', async counts => {
  const { read } = answering(...counts)
  await expect(readExactly(range, read)).rejects.toMatchObject({ code: 'SHORT_READ' })
})
