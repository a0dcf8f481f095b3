import { describe, expect, test } from '@jest/globals'
import { freshSeed, random } from '../../src/base/random.js'

describe('random', () => {
  test('the same seed gives the same stream, another one another', () => {
    const draw = (seed: number) => Array.from({ length: 50 }, random(seed).next)
    expect(draw(7)).toEqual(draw(7))
    expect(draw(7)).not.toEqual(draw(8))
    expect(draw(0)).not.toEqual(draw(1))
    // It never changes: seeds in reports of failures stay good.
    expect(
      Array.from({ length: 4 }, () => 0)
        .map(random(7).next)
        .map(value => value.toFixed(6)),
    ).toMatchInlineSnapshot(`
[
  "0.454767",
  "0.063802",
  "0.416282",
  "0.364887",
]
`)
  })

  test('numbers are spread evenly and stay within bounds', () => {
    const { next, below } = random(42)
    const counts = new Array(10).fill(0)
    for (let i = 0; i < 100_000; i++) {
      const value = next()
      if (value < 0 || value >= 1) throw new Error(`out of bounds: ${value}`)
      counts[below(10)]++
    }
    for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(500)
  })

  test('neighbouring seeds have nothing in common', () => {
    const firsts = Array.from({ length: 1000 }, (_, seed) => random(seed).next())
    const mean = firsts.reduce((sum, value) => sum + value, 0) / 1000
    expect(Math.abs(mean - 0.5)).toBeLessThan(0.05)
    expect(new Set(firsts).size).toBe(1000)
  })

  test('a chance of nothing draws nothing', () => {
    const [one, other] = [random(1), random(1)]
    expect(one.chance(0)).toBe(false)
    expect(one.next()).toBe(other.next())
    expect(one.chance(1)).toBe(true)
  })

  test('bytes and picks', () => {
    const { bytes, pick } = random(3)
    expect(bytes(1000)).toHaveLength(1000)
    expect(new Set(bytes(10_000)).size).toBe(256)
    expect(['a', 'b', 'c']).toContain(pick(['a', 'b', 'c']))
    expect(freshSeed()).not.toBe(freshSeed())
  })
})
