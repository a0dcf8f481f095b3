// What a reader looks through: nothing, or the batch that is committed but not applied. The holder of the lease knows by itself;
// everybody else looks at the chain now and then, and when something is not as it was.
import { isFerryError } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import type { Lease, Numbered } from './lease.js'
import type { RollforwardOptions } from './rollforward-options.js'

/** The intent is not pending any more: look at the chain again. */
export class Passed extends Error {}

/** Throws `Passed` if the intent is not pending any more: what was found before cannot be trusted. */
export type StillPending = (signal?: AbortSignal) => Promise<void>

/** So often a read is tried again because the chain moved on. */
const TRIES_MAX = 16
/** So many intents are remembered. */
const VIEWS_MAX = 8

export class Views<Change, View> {
  readonly #lease: Lease<Change>
  readonly #open: (intent: IntentRecord<Change>, stillPending: StillPending) => View
  readonly #options: RollforwardOptions
  /** Numbers of intents and what opened on them, the newest last: a listing may have begun through one. */
  readonly #views = new Map<number, View>()
  #number: number | null = null
  #view: View | null = null
  /** As a reader: the head that was seen last, and when. */
  #seen: { head: number; atMs: number } | null = null
  #looking: Promise<void> | null = null

  constructor(
    lease: Lease<Change>,
    open: (intent: IntentRecord<Change>, stillPending: StillPending) => View,
    options: RollforwardOptions,
  ) {
    this.#lease = lease
    this.#open = open
    this.#options = options
  }

  /** Runs `read` with what is to be looked through now; again if that passed meanwhile. */
  async read<T>(read: (view: View | null, number: number | null) => Promise<T>, signal?: AbortSignal): Promise<T> {
    for (let tries = 0; ; tries++) {
      const view = await this.#current(signal)
      try {
        return await read(view, this.#number)
      } catch (error) {
        const passed = error instanceof Passed
        if (tries === TRIES_MAX || (!passed && !isFerryError(error, 'NOT_FOUND', 'STALE'))) throw error
        await this.#look(signal)
        if (!passed && this.#view === view) throw error
      }
    }
  }

  /** What was looked through when that intent was pending; it is forgotten after a while. */
  former(number: number): View | undefined {
    return this.#views.get(number)
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

  async #stillPending(number: number, signal?: AbortSignal): Promise<void> {
    if (!(await this.#lease.isPending(number, signal))) throw new Passed()
  }

  #show(pending: Numbered<IntentRecord<Change>> | null): void {
    // As the holder we may have changed the chain ourselves.
    if (this.#lease.held) this.#seen = null
    if (pending?.number === (this.#number ?? undefined)) return
    this.#number = pending?.number ?? null
    this.#view = pending && this.#open(pending.record, signal => this.#stillPending(pending.number, signal))
    if (!pending) return
    this.#views.set(pending.number, this.#view!)
    for (const oldest of this.#views.keys()) if (this.#views.size > VIEWS_MAX) this.#views.delete(oldest)
  }
}
