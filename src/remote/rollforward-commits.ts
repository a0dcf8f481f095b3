// The commit contract over a chain of records, whatever the shape of what is committed: claim, commit, settle, one after the other.
import { KeyedMutex } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { Batch, Claim, Claimed, Commits, CopySource, Holder, Outcome } from './commits.js'
import type { IntentRecord, Packed, Refusal } from './intent.js'
import { keptOf, Lease } from './lease.js'
import type { RollforwardOptions } from './rollforward-options.js'
import type { Store } from './store.js'

const log = logger('rollforward')

/** What an application may do, and may not do any more. */
export interface Turn {
  /** Of the lease under which we work. */
  epoch: number
  /** Somebody who may still be alive has worked on this intent before. */
  haunted: boolean
  /** LEASE_LOST if this is not ours to do any more; before each step that changes something. Asks the remote only now and then. */
  guard(): Promise<void>
  /** The same, and asks the remote. */
  check(): Promise<void>
  signal?: AbortSignal
}

/** What differs between trees, stores and blobs. */
export interface Shape<Change> {
  /** Bytes of a batch to come, where nobody sees them. */
  stage(epoch: number, batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void>
  stageCopy?(
    epoch: number,
    batch: number,
    id: string,
    at: number,
    source: CopySource,
    signal?: AbortSignal,
  ): Promise<void>
  stageAhead?(epoch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void>
  dropAhead?(id: string, signal?: AbortSignal): Promise<void>
  /** All that the batch names is staged, complete and durable. */
  complete(epoch: number, batch: Batch<Change>, signal?: AbortSignal): Promise<{ refused: Refusal[]; packed: Packed[] }>
  /** The batch is committed. */
  committed?(changes: Change[]): void
  /** Makes it true, durably; can be done again at whatever point an earlier attempt stopped. */
  apply(intent: IntentRecord<Change>, turn: Turn): Promise<Outcome>
  /** What was staged up to this batch goes. */
  clear(intent: IntentRecord<Change>, signal?: AbortSignal): Promise<void>
  /** The new epoch has a stage. Whether no step of a former holder, should it live, can do harm from now on. */
  open(epoch: number, signal?: AbortSignal): Promise<boolean>
  /** After a claim, when all that was begun is finished: what former epochs left must not count as names of files. */
  dropLinks?(turn: Turn): Promise<void>
  /** After a claim, when all that was begun is finished: what former epochs left goes. */
  sweep(turn: Turn, claim: Claim, previous: Claim | null): Promise<void>
}

const nothing: Outcome = { versions: [], conflicts: [], refused: [] }

export class ChainCommits<Change> implements Commits<Change> {
  readonly #shape: Shape<Change>
  readonly lease: Lease<Change>
  readonly #sleep: RollforwardOptions['sleep']
  readonly #turns = new KeyedMutex()
  #writer = ''
  /** The newest batch of the writer that was committed when it claimed. */
  #claimed: { writer: string; batch: number } | null = null
  #settled: { batch: string; outcome: Outcome } | null = null
  /** What former epochs left is still to go. A claim does not wait for it: the first commit or `settle` does it, or the release. */
  #unswept: { claim: Claim; previous: Claim | null } | null = null

  constructor(shape: Shape<Change>, store: Store, options: RollforwardOptions) {
    this.#shape = shape
    this.#sleep = options.sleep
    this.lease = new Lease(store, options)
  }

  claim(claim: Claim, signal?: AbortSignal): Promise<Claimed> {
    return this.#turns.run('', async () => {
      const batch = await this.lease.take(claim, signal)
      this.#writer = claim.writer
      this.#settled = null
      this.#unswept = null
      this.#claimed = batch === null ? null : { writer: claim.writer, batch }
      const { epoch, graceMs, pending, previous } = this.lease
      const outcome = await this.#unlessLost(async () => {
        // A live holder looks whether the lease is still its own, but not before each step.
        const fenced = await this.#shape.open(epoch, signal)
        if (!fenced && graceMs > 0) await this.#sleep(graceMs, signal)
        const done = pending && (await this.#finish(pending.record, signal))
        this.#unswept = { claim, previous }
        if (previous)
          await this.#shape
            .dropLinks?.(this.#turn(signal))
            .catch(error => log.debug('links in the stage of a former epoch stay', { error }))
        return pending?.record.writer === claim.writer ? done : this.lease.outcome
      }, signal)
      const exclusive = this.lease.exclusive ?? true
      return outcome ? { epoch, batch, exclusive, outcome } : { epoch, batch, exclusive }
    })
  }

  async #sweep(signal?: AbortSignal): Promise<void> {
    if (!this.#unswept) return
    const { claim, previous } = this.#unswept
    await this.#unlessLost(() => this.#shape.sweep(this.#turn(signal), claim, previous), signal)
    await this.lease.sweep(signal)
    await this.lease.prune({ now: true }, signal)
    this.#unswept = null
  }

  renew(signal?: AbortSignal): Promise<void> {
    return this.lease.renew(signal)
  }

  release(signal?: AbortSignal): Promise<void> {
    return this.#turns.run('', async () => {
      // Whoever comes next will do it otherwise.
      await this.#sweep(signal).catch(error => log.debug('not swept', { error }))
      await this.lease.release(signal)
    })
  }

  holder(signal?: AbortSignal): Promise<Holder | null> {
    return this.lease.holder(signal)
  }

  async stage(batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    const { epoch } = this.lease
    await this.lease.guard(signal)
    await this.#unlessLost(() => this.#shape.stage(epoch, batch, id, at, from, signal), signal)
  }

  /** UNSUPPORTED where the shape cannot. */
  async stageCopy(batch: number, id: string, at: number, source: CopySource, signal?: AbortSignal): Promise<void> {
    const { epoch } = this.lease
    if (!this.#shape.stageCopy) throw new FerryError('UNSUPPORTED', { detail: 'staging by a copy' })
    await this.lease.guard(signal)
    await this.#unlessLost(() => this.#shape.stageCopy!(epoch, batch, id, at, source, signal), signal)
  }

  /** The same. */
  async stageAhead(id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    const { epoch } = this.lease
    if (!this.#shape.stageAhead) throw new FerryError('UNSUPPORTED', { detail: 'staging ahead' })
    await this.lease.guard(signal)
    await this.#unlessLost(() => this.#shape.stageAhead!(epoch, id, at, from, signal), signal)
  }

  async dropAhead(id: string, signal?: AbortSignal): Promise<void> {
    await this.#shape.dropAhead?.(id, signal)
  }

  commit(batch: Batch<Change>, signal?: AbortSignal): Promise<void> {
    return this.#turns.run('', async () => {
      await this.lease.guard(signal)
      await this.#sweep(signal)
      const { writer, number, cutAtMs, changes } = batch
      if (this.#isCommitted(batch)) return
      const staged = await this.#unlessLost(() => this.#shape.complete(this.lease.epoch, batch, signal), signal)
      for (;;) {
        if (this.#isCommitted(batch)) break
        // One that was committed before, though its writer was told otherwise.
        if (this.lease.pending) await this.#settle(signal)
        await this.lease.append({ kind: 'intent', writer, batch: number, cutAtMs, changes, ...staged }, signal)
      }
      this.#shape.committed?.(changes)
    })
  }

  settle(signal?: AbortSignal): Promise<Outcome> {
    return this.#turns.run('', async () => {
      await this.lease.guard(signal)
      await this.#sweep(signal)
      return this.#settle(signal)
    })
  }

  async #settle(signal?: AbortSignal): Promise<Outcome> {
    await this.lease.guard(signal)
    const { pending } = this.lease
    return pending ? this.#finish(pending.record, signal) : (this.#settled?.outcome ?? nothing)
  }

  #isCommitted({ writer, number }: Batch<Change>): boolean {
    if (this.#claimed?.writer === writer && number <= this.#claimed.batch) return true
    const wanted = batchKey(writer, number)
    const pending = this.lease.pending?.record
    return (
      this.#settled?.batch === wanted || (pending !== undefined && batchKey(pending.writer, pending.batch) === wanted)
    )
  }

  /** Applies the pending intent, and says so. */
  async #finish(intent: IntentRecord<Change>, signal?: AbortSignal): Promise<Outcome> {
    const { writer, batch } = intent
    return this.#unlessLost(async () => {
      const outcome = await this.#shape.apply(intent, this.#turn(signal))
      this.#settled = { batch: batchKey(writer, batch), outcome }
      const kept = keptOf(outcome)
      if (writer !== this.#writer) await this.lease.keep(writer, batch, kept, signal)
      while (this.lease.pending) await this.lease.append({ kind: 'done', writer, batch, outcome: kept }, signal)
      // Only tidiness from here on: what fails now goes with a later batch.
      await this.#shape.clear(intent, signal).catch(error => log.debug('stage not cleared', { error }))
      await this.lease.prune({ now: false }, signal)
      return outcome
    }, signal)
  }

  #turn(signal: AbortSignal | undefined): Turn {
    const { lease } = this
    return {
      epoch: lease.epoch,
      haunted: lease.haunted,
      guard: () => lease.guard(signal),
      check: () => lease.check(signal),
      signal,
    }
  }

  /** When something of ours is missing, or something else, whoever took the lease over has it: then that is what is said. */
  async #unlessLost<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    try {
      return await work()
    } catch (error) {
      if (isFerryError(error, 'NOT_FOUND', 'NOT_DIRECTORY', 'IS_DIRECTORY')) await this.lease.check(signal)
      throw error
    }
  }
}

const batchKey = (writer: string, batch: number) => `${writer} ${batch}`
