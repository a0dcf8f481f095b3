// A tree that takes whole batches.
import { constants } from 'node:fs'
import { KeyedMutex } from '../base/async.js'
import { type FerryError, isFerryError, isPermanent } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { Batch, Claim, Claimed, Commits, Holder, Outcome } from './commits.js'
import type { IntentRecord, Refusal } from './intent.js'
import { Lease, type Numbered } from './lease.js'
import { applyTree, clearStage, finishPut } from './rollforward-apply.js'
import { exorcise } from './rollforward-exorcise.js'
import type { RollforwardOptions } from './rollforward-options.js'
import { isHiddenPath, stagedName } from './rollforward-plan.js'
import {
  bareNode,
  fenceStage,
  openStage,
  orIf,
  Stage,
  stagePath,
  sweepOrphans,
  sweepStages,
} from './rollforward-stage.js'
import type { Path, Tree, TreeChange, Version } from './tree.js'

const log = logger('rollforward')

type Intent = IntentRecord<TreeChange>

const nothing: Outcome = { versions: [], conflicts: [], refused: [] }

export class TreeCommits implements Commits<TreeChange> {
  readonly #tree: Tree
  readonly #options: RollforwardOptions
  readonly lease: Lease<TreeChange>
  /** Claiming, committing and settling happen one after the other. */
  readonly #turns = new KeyedMutex()
  /** Staged files that are there, or are being made. */
  #made = new Map<string, Promise<void>>()
  /** The newest batch of the writer that was committed when it claimed. */
  #claimed: { writer: string; batch: number } | null = null
  #settled: { batch: string; outcome: Outcome } | null = null
  /** Versions that files had before the newest batch changed them in place. */
  readonly #before = new Map<Path, Version>()

  constructor(tree: Tree, options: RollforwardOptions) {
    this.#tree = tree
    this.#options = options
    this.lease = new Lease(tree.hidden, options)
  }

  claim(claim: Claim, signal?: AbortSignal): Promise<Claimed> {
    return this.#turns.run('', async () => {
      const batch = await this.lease.take(claim, signal)
      this.#made = new Map()
      this.#settled = null
      this.#claimed = batch === null ? null : { writer: claim.writer, batch }
      this.#before.clear()
      const outcome = await this.#unlessLost(() => this.#takeOver(claim, signal), signal)
      const { epoch } = this.lease
      return outcome ? { epoch, batch, outcome } : { epoch, batch }
    })
  }

  /** Finishes what was begun, tidies up, and opens a stage. @returns what became of the claimer's own batch, if it was pending */
  async #takeOver({ writer }: Claim, signal?: AbortSignal): Promise<Outcome | null> {
    const { epoch, pending } = this.lease
    let outcome: Outcome | null = null
    if (pending) {
      const path = await fenceStage(this.#tree, pending.record.epoch, epoch, signal)
      outcome = await this.#finish(path, pending, signal)
    }
    // Nobody has open any more what another writer kept for those who had.
    if (this.lease.previous?.writer !== writer) await sweepOrphans(this.#tree, () => this.lease.guard(signal), signal)
    await sweepStages(this.#tree, epoch, signal)
    await this.lease.sweep(signal)
    await this.lease.prune(signal)
    await openStage(this.#tree, epoch, signal)
    return pending?.record.writer === writer ? outcome : null
  }

  renew(signal?: AbortSignal): Promise<void> {
    return this.lease.renew(signal)
  }

  release(signal?: AbortSignal): Promise<void> {
    return this.#turns.run('', () => this.lease.release(signal))
  }

  holder(signal?: AbortSignal): Promise<Holder | null> {
    return this.lease.holder(signal)
  }

  async stage(batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    const path = this.#stagedAt(batch, id)
    await this.lease.guard(signal)
    await this.#unlessLost(async () => {
      await this.#makeOnce(path, signal)
      await this.#tree.write(path, at, from, signal)
    }, signal)
  }

  commit(batch: Batch<TreeChange>, signal?: AbortSignal): Promise<void> {
    return this.#turns.run('', async () => {
      await this.lease.guard(signal)
      const refused = await this.#unlessLost(() => this.#complete(batch, signal), signal)
      const { writer, number, cutAtMs, changes } = batch
      for (;;) {
        if (this.#isCommitted(batch)) return this.#remember(changes)
        if (this.lease.pending) await this.#settle(signal)
        await this.lease.append(
          { kind: 'intent', writer, batch: number, cutAtMs, changes, refused, packed: [] },
          signal,
        )
      }
    })
  }

  /**
   * The version that the writer knew of a file which its newest batch changes in place: what it reads of that file, which can
   * only be what it has not changed, is the same in the new version, whose name it may not know yet.
   */
  isOurs(path: Path, version: Version | undefined): boolean {
    return version !== undefined && this.#before.get(path) === version && this.lease.held
  }

  #remember(changes: TreeChange[]): void {
    this.#before.clear()
    for (const change of changes)
      if (change.do === 'patch' && change.expect !== undefined) this.#before.set(change.path, change.expect)
  }

  settle(signal?: AbortSignal): Promise<Outcome> {
    return this.#turns.run('', () => this.#settle(signal))
  }

  async #settle(signal?: AbortSignal): Promise<Outcome> {
    await this.lease.guard(signal)
    const { pending, epoch } = this.lease
    if (!pending) return this.#settled?.outcome ?? nothing
    return this.#finish(stagePath(epoch), pending, signal)
  }

  #isCommitted({ writer, number }: Batch<TreeChange>): boolean {
    if (this.#claimed?.writer === writer && number <= this.#claimed.batch) return true
    const wanted = batchKey(writer, number)
    const pending = this.lease.pending?.record
    return (
      this.#settled?.batch === wanted || (pending !== undefined && batchKey(pending.writer, pending.batch) === wanted)
    )
  }

  /** Applies the pending intent, and says so. */
  async #finish(path: Path, { record }: Numbered<Intent>, signal?: AbortSignal): Promise<Outcome> {
    const { epoch } = this.lease
    const batch = batchKey(record.writer, record.batch)
    const guard = () => this.lease.guard(signal)
    const parallel = this.#options.parallel
    return this.#unlessLost(async () => {
      const stage = await Stage.open(this.#tree, path, signal)
      if (this.lease.haunted && record.epoch !== epoch)
        await exorcise({
          tree: this.#tree,
          stage,
          intent: record,
          guard,
          copyBytesMax: this.#options.copyBytesMax,
          signal,
        })
      const outcome = await applyTree({
        tree: this.#tree,
        stage,
        intent: record,
        guard,
        parallel,
        onAlter: (changed, version) => this.#before.set(changed, version),
        signal,
      })
      while (this.lease.pending)
        await this.lease.append({ kind: 'done', writer: record.writer, batch: record.batch }, signal)
      this.#settled = { batch, outcome }
      // Only tidiness from here on: what fails now goes with a later batch.
      await clearStage(stage, record, signal).catch(error => log.debug('stage not cleared', { error }))
      await this.lease.prune(signal)
      for (const name of this.#made.keys())
        if (Number(/\/(\d+)-[^/]*$/.exec(name)?.[1]) <= record.batch) this.#made.delete(name)
      return outcome
    }, signal)
  }

  /** The staged files that a batch puts get their size and attributes; everything staged that it names is durable. */
  async #complete({ number, changes }: Batch<TreeChange>, signal?: AbortSignal): Promise<Refusal[]> {
    const refused: Refusal[] = []
    const paths: Path[] = []
    for (const [index, change] of changes.entries()) {
      const kept = namesOf(change).find(isHiddenPath)
      if (kept !== undefined) refused.push([index, 'NOT_PERMITTED', `${kept} is kept for pageferry itself`])
      if ((change.do !== 'put' && change.do !== 'patch') || !('staged' in change.content)) continue
      const path = this.#stagedAt(number, change.content.staged)
      // Nothing to write may mean that nothing was staged.
      if (change.content.extents.length === 0) await this.#makeOnce(path, signal)
      paths.push(path)
      if (change.do === 'put')
        await finishPut(this.#tree, path, change, signal).catch(error => {
          if (!isPermanent(error)) throw error
          const { code, message } = error as FerryError
          refused.push([index, code, message])
        })
    }
    if (paths.length > 0) await this.#tree.sync(paths, signal)
    return refused
  }

  #stagedAt(batch: number, id: string): Path {
    return `${stagePath(this.lease.epoch)}/${stagedName(batch, id)}`
  }

  #makeOnce(path: Path, signal?: AbortSignal): Promise<void> {
    const making =
      this.#made.get(path) ??
      this.#tree
        .make(path, bareNode(constants.S_IFREG), signal)
        .catch(orIf(undefined, 'EXISTS'))
        .catch(error => {
          this.#made.delete(path)
          throw error
        })
    this.#made.set(path, making)
    return making
  }

  /** When something of ours is missing, whoever took the lease over has it: then that is what is said. */
  async #unlessLost<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    try {
      return await work()
    } catch (error) {
      if (isFerryError(error, 'NOT_FOUND', 'NOT_DIRECTORY')) await this.lease.check(signal)
      throw error
    }
  }
}

const namesOf = (change: TreeChange): Path[] =>
  change.do === 'move' ? [change.from, change.to] : change.do === 'link' ? [change.path, change.target] : [change.path]

const batchKey = (writer: string, batch: number) => `${writer} ${batch}`
