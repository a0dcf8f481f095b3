// What a reader looks through: nothing, or the batch that is committed but not applied. The holder of the lease knows by itself;
// everybody else looks at the chain now and then, and when something is not as it was.
import { isFerryError } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import type { Lease, Numbered } from './lease.js'
import type { RollforwardOptions } from './rollforward-options.js'

/** The intent is not pending any more: look at the chain again. */
export class Passed extends Error {}

/** So often a read is tried again because the chain moved on. */
const TRIES_MAX = 16

export class Views<Change, View> {
  readonly #lease: Lease<Change>
  readonly #open: (intent: IntentRecord<Change>) => View
  readonly #options: RollforwardOptions
  #number: number | null = null
  #view: View | null = null
  /** As a reader: the head that was seen last, and when. */
  #seen: { head: number; atMs: number } | null = null
  #looking: Promise<void> | null = null

  constructor(lease: Lease<Change>, open: (intent: IntentRecord<Change>) => View, options: RollforwardOptions) {
    this.#lease = lease
    this.#open = open
    this.#options = options
  }

  /** Runs `read` with what is to be looked through now; again if that passed meanwhile. */
  async read<T>(read: (view: View | null) => Promise<T>, signal?: AbortSignal): Promise<T> {
    for (let tries = 0; ; tries++) {
      const view = await this.#current(signal)
      try {
        return await read(view)
      } catch (error) {
        const passed = error instanceof Passed
        if (tries === TRIES_MAX || (!passed && !isFerryError(error, 'NOT_FOUND', 'STALE'))) throw error
        await this.#look(signal)
        if (!passed && this.#view === view) throw error
      }
    }
  }

  async #current(signal?: AbortSignal): Promise<View | null> {
    if (this.#lease.held) this.#show(this.#lease.pending)
    else if (!this.#seen || this.#options.now() - this.#seen.atMs >= this.#options.refreshMs) await this.#look(signal)
    return this.#view
  }

  async #look(signal?: AbortSignal): Promise<void> {
    if (this.#lease.held) return this.#show(this.#lease.pending)
    this.#looking ??= this.#lookAtChain(signal).finally(() => {
      this.#looking = null
    })
    await this.#looking
  }

  async #lookAtChain(signal?: AbortSignal): Promise<void> {
    const atMs = this.#options.now()
    const head = this.#seen?.head ?? 0
    const state = await this.#lease.readAfter(head, signal)
    if (state) this.#show(state.pending)
    this.#seen = { head: state?.head?.number ?? head, atMs }
  }

  #show(pending: Numbered<IntentRecord<Change>> | null): void {
    // As the holder we may have changed the chain ourselves.
    if (this.#lease.held) this.#seen = null
    if (pending?.number === (this.#number ?? undefined)) return
    this.#number = pending?.number ?? null
    this.#view = pending && this.#open(pending.record)
  }
}
