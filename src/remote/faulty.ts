// Everything that goes wrong with remotes, on purpose and with a seed.
import { deferred, orAborted } from '../base/async.js'
import { type Code, FerryError } from '../base/errors.js'
import { freshSeed, random as seeded } from '../base/random.js'
import { type Call, type Next, type Remote, wrap } from './wrap.js'

/** Rates are probabilities per call, from 0 (the default) to 1. */
export interface FaultOptions {
  /** The same seed and the same calls give the same faults. Default: a fresh one, to be found in `faults.seed`. */
  seed?: number
  /** The call fails with `errorCode`; half of the time it was done all the same, and only the answer is lost. */
  errorRate?: number
  /** Default UNREACHABLE. */
  errorCode?: Code
  /** Reads return fewer bytes than there are, without an error. */
  shortReads?: number
  /** Writes into a blob or a file do a prefix, then fail with UNREACHABLE. */
  tornWrites?: number
  /** The call is not made and does not end before it is aborted. */
  hangs?: number
  /** Reads return one wrong byte. */
  wrongData?: number
  /** Only these methods go wrong (and count for `crashAfter`). Default: all. */
  only?: readonly string[]
  /** This many changing calls are done, and from then on every call fails with UNREACHABLE, as if the remote's host had died. */
  crashAfter?: number
  /** The last of them is done in part, if it can be (see `tornWrites`), or not at all, and fails. Default false. */
  crashTorn?: boolean
}

/** What has gone wrong so far. */
export interface Faults {
  readonly seed: number
  calls: number
  changes: number
  errors: number
  shortReads: number
  tornWrites: number
  hangs: number
  wrongData: number
  crashed: boolean
  /** Set it, and every call fails with UNREACHABLE until it is unset. */
  down: boolean
}

export function faulty<R extends Remote>(remote: R, options: FaultOptions = {}): R & { readonly faults: Faults } {
  const { seed = freshSeed(), errorCode = 'UNREACHABLE', only, crashAfter, crashTorn = false } = options
  const { errorRate = 0, shortReads = 0, tornWrites = 0, hangs = 0, wrongData = 0 } = options
  const random = seeded(seed)
  const counts = { calls: 0, changes: 0, errors: 0, shortReads: 0, tornWrites: 0, hangs: 0, wrongData: 0 }
  const faults: Faults = { seed, ...counts, crashed: crashAfter === 0, down: false }

  const fail = (code: Code, { method }: Call): never => {
    throw new FerryError(code, { detail: `${method} (simulated)` })
  }

  /** A part of it, if it is a write of bytes. */
  async function tear(call: Call, next: Next): Promise<void> {
    const bytes = call.bytesAt === undefined ? undefined : (call.args[call.bytesAt] as Uint8Array)
    const length = bytes ? random.below(bytes.byteLength) : 0
    if (!bytes || length === 0) return
    await next({ args: call.args.map(arg => (arg === bytes ? bytes.subarray(0, length) : arg)) })
  }

  function spoil(result: unknown): unknown {
    if (!(result instanceof Uint8Array) || result.byteLength === 0) return result
    if (random.chance(shortReads)) {
      faults.shortReads++
      return result.slice(0, random.below(result.byteLength))
    }
    if (random.chance(wrongData)) {
      faults.wrongData++
      const wrong = result.slice()
      wrong[random.below(wrong.byteLength)] ^= 1 << random.below(8)
      return wrong
    }
    return result
  }

  return wrap(
    remote,
    async (call, next) => {
      faults.calls++
      if (faults.crashed || faults.down) return fail('UNREACHABLE', call)
      if (only && !only.includes(call.method)) return next()
      if (call.changes && ++faults.changes === crashAfter) {
        faults.crashed = true
        if (!crashTorn) return next()
        await tear(call, next)
        return fail('UNREACHABLE', call)
      }
      if (random.chance(hangs)) {
        faults.hangs++
        return orAborted(deferred<never>().promise, call.signal)
      }
      if (call.bytesAt !== undefined && random.chance(tornWrites)) {
        faults.tornWrites++
        await tear(call, next)
        return fail('UNREACHABLE', call)
      }
      if (random.chance(errorRate)) {
        faults.errors++
        if (random.chance(0.5)) await next()
        return fail(errorCode, call)
      }
      const result = await next()
      // Done, perhaps, but nobody hears of it any more.
      if (faults.crashed || faults.down) return fail('UNREACHABLE', call)
      return call.changes ? result : spoil(result)
    },
    { faults },
  )
}
