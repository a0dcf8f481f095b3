// Remotes that stop at a chosen step: dead from there on, or asleep until they are woken.
import { FerryError } from '../../src/base/errors.js'
import type { Random } from '../../src/base/random.js'
import type { Blob } from '../../src/remote/blob.js'
import type { Objects } from '../../src/remote/objects.js'
import type { Store } from '../../src/remote/store.js'
import type { Tree } from '../../src/remote/tree.js'

/** What changes something. */
const STEPS = new Set([
  ...['write', 'truncate', 'punch', 'make', 'link', 'rename', 'remove', 'setAttributes', 'setXattrs'],
  ...['put', 'trim'],
  ...['copy', 'removeAll', 'beginUpload', 'uploadPart', 'copyPart', 'completeUpload', 'abortUpload'],
])

export class Crashed extends Error {}

export interface Steps {
  /** So many steps that change something were begun. */
  count: number
  /** Each of them, for messages: `rename a b`. */
  log: string[]
}

/** The same remote, with the fault. Several remotes may share one, as those of one process do. */
export type Fault = <R extends Tree | Store | Blob | Objects>(remote: R) => R

type Gate = (number: number) => Promise<unknown>

/**
 * Each step that changes something first passes the gate with its number; so does what only reads, with 0. A function
 * that the gate returns is called when the step is done.
 */
function gated(gate: Gate): { fault: Fault; steps: Steps } {
  const steps: Steps = { count: 0, log: [] }
  const wrap = <T extends object>(target: T): T =>
    new Proxy(target, {
      get(_, key) {
        const value = Reflect.get(target, key) as unknown
        if (key === 'hidden' || key === 'objects') return wrap(value as object)
        if (typeof value !== 'function') return value
        return async (...args: unknown[]) => {
          const name = String(key)
          const changes = STEPS.has(name)
          if (changes) {
            steps.count++
            steps.log.push([name, ...args.filter(arg => typeof arg === 'string')].join(' '))
          }
          const leave = await gate(changes ? steps.count : 0)
          const result = await value.apply(target, args)
          if (typeof leave === 'function') leave()
          return result
        }
      },
    })
  return { fault: wrap, steps }
}

export const faults = {
  none: (<R>(remote: R) => remote) as Fault,

  /** Only counts. */
  watched: () => gated(async () => {}),

  /** After `survived` steps nothing works any more. */
  crashing(survived: number | (() => number)) {
    let dead = false
    return gated(async number => {
      dead ||= number > (typeof survived === 'number' ? survived : survived())
      if (dead) throw new Crashed()
    })
  },

  /** Step `at` fails once: it is not done, or it is done and nobody hears of it. */
  flaky(at: number, done: boolean) {
    const fail = () => {
      throw new FerryError('UNREACHABLE', { detail: 'on purpose' })
    }
    return gated(async number => {
      if (number !== at) return
      return done ? fail : fail()
    })
  },

  /** Each call takes a while, some a long one, so that others come between. */
  slow: (random: Random) =>
    gated(async () => {
      for (let turns = random.below(random.chance(0.1) ? 60 : 4); turns > 0; turns--)
        await new Promise(resolve => setImmediate(resolve))
    }),

  /** Step `at` and whatever follows waits until `wake` is called. */
  sleeping(at: number) {
    let wake!: () => void
    let asleep!: () => void
    const woken = new Promise<void>(resolve => {
      wake = resolve
    })
    const fellAsleep = new Promise<void>(resolve => {
      asleep = resolve
    })
    let sleeps = false
    const { fault, steps } = gated(async number => {
      sleeps ||= number === at
      if (!sleeps) return
      asleep()
      await woken
    })
    return { fault, steps, wake, fellAsleep }
  },
}
