// Numbers that look random and come back with their seed: jitter, fault injection and tests draw from here, never from Math.random.
import { randomBytes } from 'node:crypto'

/** A stream of pseudo-random numbers. Not for secrets. */
export interface Random {
  /** From 0 up to, but without, 1. */
  next(): number
  /** A whole number from 0 up to, but without, `below`. */
  below(below: number): number
  /** True with this probability. Draws nothing for 0, so that a fault that is switched off does not move the others. */
  chance(probability: number): boolean
  pick<T>(from: readonly T[]): T
  bytes(length: number): Uint8Array
}

/** A seed that nobody chose: 32 bits from the system. Print it, so that the run can be repeated. */
export const freshSeed = (): number => randomBytes(4).readUInt32LE()

/** The stream of this seed (a whole number; its lower 32 bits count). sfc32 of PractRand, seeded through splitmix32. */
export function random(seed: number = freshSeed()): Random {
  let mixed = seed | 0
  const mix = () => {
    mixed = (mixed + 0x9e3779b9) | 0
    let bits = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad)
    bits = Math.imul(bits ^ (bits >>> 15), 0x735a2d97)
    return (bits ^ (bits >>> 15)) | 0
  }
  let [a, b, c, count] = [mix(), mix(), mix(), 1]

  const bits = () => {
    const sum = (a + b + count++) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = (((c << 21) | (c >>> 11)) + sum) | 0
    return sum >>> 0
  }
  for (let i = 0; i < 12; i++) bits()

  const next = () => bits() / 2 ** 32
  const below = (limit: number) => Math.floor(next() * limit)
  return {
    next,
    below,
    chance: probability => probability > 0 && next() < probability,
    pick: from => from[below(from.length)],
    bytes: length => Uint8Array.from({ length }, () => bits() & 0xff),
  }
}
