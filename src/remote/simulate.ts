// A worse remote on request: `--simulate rtt=20ms,rate=25M,errors=0.01,seed=7`.
import { type Clock, systemClock } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { freshSeed, random } from '../base/random.js'
import { parseSize, parseTime } from '../base/units.js'
import { faulty } from './faulty.js'
import { latency } from './latency.js'
import { throttle } from './throttle.js'
import type { Remote } from './wrap.js'

export interface Simulation {
  rttMs?: number
  jitterMs?: number
  /** Bytes per second. */
  upPerSecond?: number
  downPerSecond?: number
  /** Probabilities per call. */
  errorRate?: number
  hangs?: number
  shortReads?: number
  seed?: number
}

const rate = (text: string, name: string): number => {
  const number = Number(text)
  if (text.trim() !== '' && number >= 0 && number <= 1) return number
  throw new FerryError('USAGE', { detail: `${name}: ${JSON.stringify(text)} is not a probability from 0 to 1` })
}

const wholeNumber = (text: string, name: string): number => {
  if (/^\d{1,15}$/.test(text)) return Number(text)
  throw new FerryError('USAGE', { detail: `${name}: ${JSON.stringify(text)} is not a whole number` })
}

const speed = (text: string, name: string): number => {
  const bytes = parseSize(text, name)
  if (bytes > 0) return bytes
  throw new FerryError('USAGE', { detail: `${name}: a line of 0 bytes per second never gets anything through` })
}

/** One row a key of the text. */
const keys: Record<string, (text: string, name: string) => Simulation> = {
  rtt: (text, name) => ({ rttMs: parseTime(text, name) }),
  jitter: (text, name) => ({ jitterMs: parseTime(text, name) }),
  rate: (text, name) => ({ upPerSecond: speed(text, name), downPerSecond: speed(text, name) }),
  up: (text, name) => ({ upPerSecond: speed(text, name) }),
  down: (text, name) => ({ downPerSecond: speed(text, name) }),
  errors: (text, name) => ({ errorRate: rate(text, name) }),
  hang: (text, name) => ({ hangs: rate(text, name) }),
  short: (text, name) => ({ shortReads: rate(text, name) }),
  seed: (text, name) => ({ seed: wholeNumber(text, name) }),
}

/**
 * 'rtt=20ms,rate=25M,errors=0.01,seed=7'; also jitter= (a time), up= and down= (bytes per second, instead of rate=), hang= and
 * short= (probabilities). USAGE for anything else.
 */
export function parseSimulation(text: string): Simulation {
  const simulation: Simulation = {}
  for (const part of text.split(',')) {
    const [, key, value] = /^\s*([a-z]+)=(.*)$/.exec(part) ?? []
    if (!key || !Object.hasOwn(keys, key))
      throw new FerryError('USAGE', {
        detail: `simulate: ${JSON.stringify(part)} is not one of ${Object.keys(keys).join('=, ')}=`,
      })
    Object.assign(simulation, keys[key](value.trim(), `simulate: ${key}`))
  }
  return simulation
}

/** The wrappers for it: faults happen at the far end, so that an error, too, takes a round trip. */
export function simulate<R extends Remote>(remote: R, simulation: Simulation, clock: Clock = systemClock): R {
  const { rttMs = 0, jitterMs = 0, upPerSecond, downPerSecond, seed = freshSeed() } = simulation
  const { errorRate = 0, hangs = 0, shortReads = 0 } = simulation
  let worse = remote
  if (errorRate > 0 || hangs > 0 || shortReads > 0) worse = faulty(worse, { seed, errorRate, hangs, shortReads })
  if (upPerSecond !== undefined || downPerSecond !== undefined)
    worse = throttle(worse, { upPerSecond, downPerSecond, clock })
  if (rttMs > 0 || jitterMs > 0) worse = latency(worse, { rttMs, jitterMs, random: random(seed + 1), clock })
  return worse
}
