// A remote that stops at a chosen step: dead from there on, or asleep until it is woken.
import type { Blob } from '../../src/remote/blob.js'
import type { Store } from '../../src/remote/store.js'
import type { Tree } from '../../src/remote/tree.js'

const STEPS = new Set([
  'write',
  'truncate',
  'punch',
  'make',
  'link',
  'rename',
  'remove',
  'setAttributes',
  'setXattrs',
  'put',
  'trim',
])

export class Crashed extends Error {}

export interface Steps {
  /** So many steps that change something were begun. */
  count: number
  /** Each of them, for messages: `rename a b`. */
  log: string[]
}

type Gate = (step: string, number: number) => Promise<void>

/** The same remote, in which each step that changes something first passes the gate; so do reads, with number 0. */
export function gated<R extends Tree | Store | Blob>(remote: R, gate: Gate): { remote: R; steps: Steps } {
  const steps: Steps = { count: 0, log: [] }
  const wrap = <T extends object>(target: T): T =>
    new Proxy(target, {
      get(_, key) {
        const value = Reflect.get(target, key) as unknown
        if (key === 'hidden') return wrap(value as object)
        if (typeof value !== 'function') return value
        return async (...args: unknown[]) => {
          const name = String(key)
          const changes = STEPS.has(name)
          if (changes) {
            steps.count++
            steps.log.push([name, ...args.filter(arg => typeof arg === 'string')].join(' '))
          }
          await gate(steps.log.at(-1) ?? '', changes ? steps.count : 0)
          return value.apply(target, args)
        }
      },
    })
  return { remote: wrap(remote), steps }
}

/** After `survived` steps nothing works any more. */
export function crashing<R extends Tree | Store | Blob>(remote: R, survived: number): { remote: R; steps: Steps } {
  let dead = false
  return gated(remote, async (_, number) => {
    dead ||= number > survived
    if (dead) throw new Crashed()
  })
}

/** Step `at` and whatever follows waits until `wake` is called. */
export function sleeping<R extends Tree | Store | Blob>(remote: R, at: number) {
  let wake!: () => void
  let asleep!: () => void
  const woken = new Promise<void>(resolve => {
    wake = resolve
  })
  const fellAsleep = new Promise<void>(resolve => {
    asleep = resolve
  })
  let sleeps = false
  const { remote: slow, steps } = gated(remote, async (_, number) => {
    sleeps ||= number === at
    if (!sleeps) return
    asleep()
    await woken
  })
  return { remote: slow, steps, wake, fellAsleep }
}
