// The right to write: when a cache is opened, or in the background as soon as the remote can be reached.
import { lasting, sleep } from '../base/async.js'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import type { Holder } from '../remote/commits.js'

const RETRY_MS = 2_000
/** With nothing to go on with, a remote that fails is tried until the deadline, with so long between the tries at most. */
const PAUSE_MS_MAX = 1_000

export interface ClaimingOptions {
  leaseMs: number
  deadlineMs: number
  /** Each batch takes its turn: nobody has to have it before. */
  shared: boolean
  host: string
}

export interface ClaimingHooks {
  claim(signal: AbortSignal): Promise<void>
  holder(signal: AbortSignal): Promise<Holder | null>
  /** Whether there is something to go on with while the remote is out of reach. Known once the journal is replayed. */
  canGoOn(): Promise<boolean>
}

export class Claiming {
  /** Why it is not ours yet. */
  problem: FerryError | null = null
  readonly #options: ClaimingOptions
  readonly #hooks: ClaimingHooks
  readonly #stop = lasting()
  #timer: NodeJS.Timeout | undefined

  constructor(options: ClaimingOptions, hooks: ClaimingHooks) {
    this.#options = options
    this.#hooks = hooks
  }

  /** Now; or from now on, again and again, if there is something to go on with. @throws LEASE_HELD; what the remote says */
  async claim(): Promise<void> {
    const { leaseMs, deadlineMs, shared } = this.#options
    const begunMs = performance.now()
    for (let failures = 0; ; ) {
      try {
        return await this.#hooks.claim(this.#stop.signal)
      } catch (caught) {
        const error = toFerryError(caught)
        const tookMs = performance.now() - begunMs
        if (error.code === 'LEASE_HELD') {
          if (await this.#isInTurns(error, tookMs > leaseMs * 1.2)) return
          await sleep(Math.min(1_000, leaseMs / 4), this.#stop.signal)
          continue
        }
        if (!(await this.#hooks.canGoOn())) {
          if (error.code !== 'UNREACHABLE' || tookMs > deadlineMs) throw error
          await sleep(Math.min(PAUSE_MS_MAX, 100 * ++failures), this.#stop.signal)
          continue
        }
        if (!isFerryError(error, 'UNREACHABLE', 'DEADLINE', 'IO', 'NO_SPACE', 'READ_ONLY', 'FORBIDDEN')) throw error
        if (!shared) this.#goOn(error)
        return
      }
    }
  }

  /** Whether who has it takes turns with us; false: he may be gone. @throws LEASE_HELD: he is not, or that was waited for */
  async #isInTurns(error: FerryError, isLate: boolean): Promise<boolean> {
    const holder = await this.#hooks.holder(this.#stop.signal)
    if (!holder) return false
    if (holder.shared && this.#options.shared) return true
    if (holder.host !== this.#options.host && !isLate) return false
    const detail = `by pid ${holder.pid} on ${holder.host}; --take-over takes it`
    throw new FerryError('LEASE_HELD', { detail, cause: error })
  }

  #goOn(problem: FerryError) {
    this.problem = problem
    this.#timer = setInterval(() => {
      this.#hooks.claim(this.#stop.signal).then(
        () => {
          this.problem = null
          clearInterval(this.#timer)
        },
        error => {
          this.problem = toFerryError(error)
        },
      )
    }, RETRY_MS).unref()
  }

  close(): void {
    clearInterval(this.#timer)
    this.#stop.abort()
  }
}
