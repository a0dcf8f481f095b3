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

/** A meter that several threads see; only the last error stays with the one that met it. */
export class SharedMeter implements Meter {
  readonly memory: SharedArrayBuffer
  readonly #numbers: Float64Array
  lastError: Meter['lastError'] = null

  constructor(memory = new SharedArrayBuffer(5 * Float64Array.BYTES_PER_ELEMENT)) {
    this.memory = memory
    this.#numbers = new Float64Array(memory)
  }

  get requests() {
    return this.#numbers[0]
  }
  set requests(count: number) {
    this.#numbers[0] = count
  }
  get bytesRead() {
    return this.#numbers[1]
  }
  set bytesRead(bytes: number) {
    this.#numbers[1] = bytes
  }
  get bytesWritten() {
    return this.#numbers[2]
  }
  set bytesWritten(bytes: number) {
    this.#numbers[2] = bytes
  }
  get errors() {
    return this.#numbers[3]
  }
  set errors(count: number) {
    this.#numbers[3] = count
  }
  get reachable() {
    return this.#numbers[4] === 0
  }
  set reachable(reachable: boolean) {
    this.#numbers[4] = reachable ? 0 : 1
  }
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
