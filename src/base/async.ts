// What waiting is made of: deferred promises, clocks, backoff, bounded parallel work, aborts.
import { setMaxListeners } from 'node:events'
import { FerryError } from './errors.js'
import type { Random } from './random.js'

/** A promise and the two ways to settle it. */
export interface Deferred<T = void> {
  readonly promise: Promise<T>
  resolve(value: T): void
  reject(error: unknown): void
}

export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void
  let reject!: (error: unknown) => void
  const promise = new Promise<T>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}

/** Why a signal was aborted: its reason if that is a FerryError (a deadline's), else ABORTED. */
export const abortReason = (signal: AbortSignal): FerryError =>
  signal.reason instanceof FerryError ? signal.reason : new FerryError('ABORTED', { cause: signal.reason })

/** The controller of a long life: any number of calls may wait on its signal at once. */
export function lasting(): AbortController {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal)
  return controller
}

/** Throws what {@link abortReason} says if the signal is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw abortReason(signal)
}

/** `work`, or the signal's {@link abortReason} as soon as it is aborted; `work` itself goes on unseen. */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work
  if (signal.aborted) {
    work.catch(() => {})
    throw abortReason(signal)
  }
  const aborted = deferred<never>()
  const abort = () => aborted.reject(abortReason(signal))
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([work, aborted.promise])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

/** Time as an argument, so that tests can simulate it. */
export interface Clock {
  /** Monotonic, in ms with fractions; only differences mean something. */
  nowMs(): number
  /** Rejects with the signal's {@link abortReason} when it is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

/** setTimeout waits at most this long (2^31 - 1 ms); more would fire at once. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1

export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(abortReason(signal))
    const abort = () => {
      clearTimeout(timer)
      reject(abortReason(signal!))
    }
    const timer = setTimeout(
      () => {
        signal?.removeEventListener('abort', abort)
        resolve()
      },
      Math.min(ms, TIMEOUT_MS_MAX),
    )
    signal?.addEventListener('abort', abort, { once: true })
  })
}

/** The real one. */
export const systemClock: Clock = { nowMs: () => performance.now(), sleep }

/** A clock that stands still but for `advance`: sleepers wake in the order of their time, each with its promises run. */
export interface SimulatedClock extends Clock {
  advance(ms: number): Promise<void>
  /** How many are asleep. */
  readonly sleepers: number
}

export function simulatedClock(): SimulatedClock {
  let nowMs = 0
  const asleep = new Set<{ atMs: number; wake: () => void }>()
  // A turn of the loop: everything that a woken sleeper does with promises alone is done after it.
  const settle = () => new Promise<void>(resolve => setImmediate(resolve))
  return {
    nowMs: () => nowMs,
    sleep: (ms, signal) =>
      new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(abortReason(signal))
        const abort = () => {
          asleep.delete(sleeper)
          reject(abortReason(signal!))
        }
        const sleeper = {
          atMs: nowMs + Math.max(0, ms),
          wake: () => {
            asleep.delete(sleeper)
            signal?.removeEventListener('abort', abort)
            resolve()
          },
        }
        asleep.add(sleeper)
        signal?.addEventListener('abort', abort, { once: true })
      }),
    async advance(ms) {
      const untilMs = nowMs + ms
      await settle()
      for (;;) {
        const next = [...asleep].reduce<{ atMs: number; wake: () => void } | undefined>(
          (first, one) => (one.atMs <= untilMs && (!first || one.atMs < first.atMs) ? one : first),
          undefined,
        )
        if (!next) break
        nowMs = Math.max(nowMs, next.atMs)
        next.wake()
        await settle()
      }
      nowMs = untilMs
    },
    get sleepers() {
      return asleep.size
    },
  }
}

export interface BackoffOptions {
  /** The first wait, before jitter. Default 100 ms. */
  firstMs?: number
  /** The longest wait. Default 10,000 ms. */
  maxMs?: number
  /** Each wait is so many times the one before it. Default 2. */
  factor?: number
  random: Random
}

/** How long to wait before retry number `attempt` (from 0): exponential, and between half and all of it by chance. */
export function backoff({ firstMs = 100, maxMs = 10_000, factor = 2, random }: BackoffOptions) {
  return (attempt: number): number => {
    const wholeMs = Math.min(maxMs, firstMs * factor ** attempt)
    return wholeMs / 2 + (random.next() * wholeMs) / 2
  }
}

/** `work` on each item, at most `limit` at a time; results in the items' order. The first error stops the rest and is thrown. */
export async function mapLimit<T, R>(
  items: readonly T[],
  limit: number,
  work: (item: T, index: number) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length)
  let next = 0
  let failed = false
  const worker = async () => {
    while (next < items.length && !failed) {
      const index = next++
      try {
        results[index] = await work(items[index], index)
      } catch (error) {
        failed = true
        throw error
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, worker))
  return results
}

/** `work` on each item, at most `limit` at a time. When one fails, those under way are waited for, and its error is thrown. */
export async function inParallel<T>(
  items: readonly T[],
  limit: number,
  work: (item: T, index: number) => Promise<void>,
): Promise<void> {
  let next = 0
  const failures: unknown[] = []
  const worker = async () => {
    while (next < items.length && failures.length === 0) {
      const index = next++
      try {
        await work(items[index], index)
      } catch (error) {
        failures.push(error)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, worker))
  if (failures.length > 0) throw failures[0]
}

/** Work that is done once, for however many ask for it; again after it has failed. */
export class Once {
  readonly #work: () => Promise<void>
  #done: Promise<void> | undefined

  constructor(work: () => Promise<void>) {
    this.#work = work
  }

  /** It is being done, or was done. */
  get isBegun(): boolean {
    return this.#done !== undefined
  }

  run(): Promise<void> {
    this.#done ??= this.#work().catch(error => {
      this.#done = undefined
      throw error
    })
    return this.#done
  }
}

/** Runs what is given to it one after the other, per key; the queue of a key lasts as long as there is work in it. */
export class KeyedMutex {
  readonly #tails = new Map<string, Promise<unknown>>()

  async run<T>(key: string, work: () => Promise<T>): Promise<T> {
    const before = this.#tails.get(key)
    const mine = (before ?? Promise.resolve()).then(work)
    const tail = mine.catch(() => {})
    this.#tails.set(key, tail)
    try {
      return await mine
    } finally {
      if (this.#tails.get(key) === tail) this.#tails.delete(key)
    }
  }
}

/** A controller that is aborted together with `signal`, until `unlink`. (AbortSignal.any leaks on long-lived signals in Node 20.) */
export function linkedAbort(signal: AbortSignal | undefined): { controller: AbortController; unlink: () => void } {
  const controller = new AbortController()
  const abort = () => controller.abort(signal?.reason)
  if (signal?.aborted) abort()
  signal?.addEventListener('abort', abort, { once: true })
  return { controller, unlink: () => signal?.removeEventListener('abort', abort) }
}
