// How a remote is doing: what `status` shows of it.
import { type Code, FerryError, isFerryError } from '../base/errors.js'
import { countBytes, type Remote, wrap } from './wrap.js'

export interface Meter {
  /** Calls made, whatever became of them. */
  requests: number
  bytesRead: number
  bytesWritten: number
  /** Calls that failed; "not found" and the like are answers, not failures. */
  errors: number
  lastError: { code: Code | 'UNKNOWN'; message: string; atMs: number } | null
  /** False from a call that found nobody there (UNREACHABLE, DEADLINE) to the next that found somebody. */
  reachable: boolean
}

const counts = ['requests', 'bytesRead', 'bytesWritten', 'errors', 'reachable'] as const

export const METER_BYTES = counts.length * Float64Array.BYTES_PER_ELEMENT

/** A meter in METER_BYTES of memory that several threads see; only the last error stays with the one that met it. */
export function sharedMeter(memory: SharedArrayBuffer): Meter {
  const numbers = new Float64Array(memory)
  const meter = { lastError: null } as Meter
  for (const [n, name] of counts.entries()) {
    const isFlag = name === 'reachable'
    Object.defineProperty(meter, name, {
      enumerable: true,
      get: () => (isFlag ? numbers[n] === 0 : numbers[n]),
      set: (value: number | boolean) => {
        numbers[n] = isFlag ? Number(!value) : Number(value)
      },
    })
  }
  return meter
}

const answers = new Set<Code>([
  'NOT_FOUND',
  'EXISTS',
  'NOT_DIRECTORY',
  'IS_DIRECTORY',
  'NOT_EMPTY',
  'NO_DATA',
  'STALE',
  'CONFLICT',
  'LEASE_HELD',
])

export interface MeterOptions {
  /** Counts there. Default: a meter of its own. */
  meter?: Meter
  /** Wall clock, ms. */
  nowMs?: () => number
}

const newMeter = (): Meter => ({
  requests: 0,
  bytesRead: 0,
  bytesWritten: 0,
  errors: 0,
  lastError: null,
  reachable: true,
})

/** The remote with a `meter` that counts. */
export function metered<R extends Remote>(
  remote: R,
  { meter = newMeter(), nowMs = Date.now }: MeterOptions = {},
): R & { readonly meter: Meter } {
  const failed = (error: unknown) => {
    // Given up by the caller: that says nothing about the remote.
    if (isFerryError(error, 'ABORTED')) return
    const code = error instanceof FerryError ? error.code : 'UNKNOWN'
    meter.reachable = code !== 'UNREACHABLE' && code !== 'DEADLINE'
    if (code !== 'UNKNOWN' && answers.has(code)) return
    meter.errors++
    meter.lastError = { code, message: error instanceof Error ? error.message : String(error), atMs: nowMs() }
  }
  return wrap(
    remote,
    async (call, next) => {
      meter.requests++
      try {
        const result = await next()
        meter.reachable = true
        if (call.changes) meter.bytesWritten += countBytes(call.args)
        else meter.bytesRead += countBytes(result)
        return result
      } catch (error) {
        failed(error)
        throw error
      }
    },
    { meter },
  )
}
