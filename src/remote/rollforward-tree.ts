// What a tree does with a batch: files wait as files in the stage, and come to their names by one rename each.
import { constants } from 'node:fs'
import { inParallel } from '../base/async.js'
import { type FerryError, isPermanent } from '../base/errors.js'
import { type Batch, type Claim, type CopySource, keepsOrphans, type Outcome } from './commits.js'
import type { IntentRecord, Refusal } from './intent.js'
import { applyTree, clearStage, finishPut } from './rollforward-apply.js'
import type { Shape, Turn } from './rollforward-commits.js'
import { COPY_BYTES } from './rollforward-content.js'
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
  sweepLinks,
  sweepOrphans,
  sweepStages,
} from './rollforward-stage.js'
import type { Path, Tree, TreeChange, Version } from './tree.js'

export class TreeShape implements Shape<TreeChange> {
  readonly #tree: Tree
  readonly #options: RollforwardOptions
  /** Staged files that are there, or are being made. */
  readonly #made = new Map<Path, Promise<void>>()
  /** Versions that files had before the newest batch changed them in place. */
  readonly #before = new Map<Path, Version>()
  /** Of the intent that was applied last. */
  #altered = { attempt: '', lines: new Map<number, Version | null>() }
  /** The stage in which the newest batch was applied. */
  #stage: Stage | null = null

  constructor(tree: Tree, options: RollforwardOptions) {
    this.#tree = tree
    this.#options = options
  }

  /**
   * Whether a version is what the writer knew of a file that its newest batch changes in place: what it reads of that file, which
   * can only be what it has not changed, is the same in the new version, whose name it may not know yet.
   */
  isBefore(path: Path, version: Version | undefined): boolean {
    return version !== undefined && this.#before.get(path) === version
  }

  async open(epoch: number, signal?: AbortSignal): Promise<boolean> {
    this.#made.clear()
    this.#before.clear()
    await openStage(this.#tree, epoch, signal)
    return (await Stage.open(this.#tree, stagePath(epoch), signal)).fenced
  }

  async dropLinks({ epoch, signal }: Turn): Promise<void> {
    if (this.#tree.capabilities.hardLinks) await sweepLinks(this.#tree, epoch, signal)
  }

  async sweep({ epoch, guard, signal }: Turn, claim: Claim, previous: Claim | null): Promise<void> {
    if (!keepsOrphans(claim, previous)) await sweepOrphans(this.#tree, guard, signal)
    await sweepStages(this.#tree, epoch, signal)
  }

  async stage(
    epoch: number,
    batch: number,
    id: string,
    at: number,
    from: Uint8Array,
    signal?: AbortSignal,
  ): Promise<void> {
    const path = stagedAt(epoch, batch, id)
    await this.#makeOnce(path, signal)
    await this.#tree.write(path, at, from, signal)
  }

  async stageCopy(
    epoch: number,
    batch: number,
    id: string,
    to: number,
    { path, version, at, length }: CopySource,
    signal?: AbortSignal,
  ): Promise<void> {
    const staged = stagedAt(epoch, batch, id)
    await this.#makeOnce(staged, signal)
    for (let done = 0; done < length; done += COPY_BYTES) {
      const range = { at: at + done, to: to + done, length: Math.min(COPY_BYTES, length - done), version }
      await this.#tree.copy!(path, range, staged, signal)
    }
  }

  /** The staged files that a batch puts get their size and attributes; everything staged that it names is durable. */
  async complete(epoch: number, { number, changes }: Batch<TreeChange>, signal?: AbortSignal) {
    const refused: Refusal[] = []
    const paths: Path[] = []
    await inParallel(changes, this.#options.parallel, async (change, index) => {
      const kept = namesOf(change).find(isHiddenPath)
      if (kept !== undefined) refused.push([index, 'NOT_PERMITTED', `${kept} is kept for pageferry itself`])
      if ((change.do !== 'put' && change.do !== 'patch') || !('staged' in change.content)) return
      const path = stagedAt(epoch, number, change.content.staged)
      // Nothing to write may mean that nothing was staged.
      if (change.content.extents.length === 0) await this.#makeOnce(path, signal)
      paths.push(path)
      if (change.do === 'put')
        await finishPut(this.#tree, path, change, signal).catch(error => {
          if (!isPermanent(error)) throw error
          const { code, message } = error as FerryError
          refused.push([index, code, message])
        })
    })
    if (paths.length > 0) await this.#tree.sync(paths, signal)
    return { refused, packed: [] }
  }

  committed(changes: TreeChange[]): void {
    this.#before.clear()
    for (const change of changes)
      if (change.do === 'patch' && change.expect !== undefined) this.#before.set(change.path, change.expect)
  }

  async apply(intent: IntentRecord<TreeChange>, { epoch, haunted, guard, signal }: Turn): Promise<Outcome> {
    const tree = this.#tree
    const mine = intent.epoch === epoch
    const path = mine ? stagePath(epoch) : await fenceStage(tree, intent.epoch, epoch, signal)
    const stage = await Stage.open(tree, path, signal)
    this.#stage = stage
    const { copyBytesMax, parallel } = this.#options
    if (haunted && !mine) await exorcise({ tree, stage, intent, guard, copyBytesMax, signal })
    const onAlter = (changed: Path, version: Version) => this.#before.set(changed, version)
    const attempt = `${intent.epoch} ${intent.batch}`
    if (this.#altered.attempt !== attempt) this.#altered = { attempt, lines: new Map() }
    return applyTree({ tree, stage, intent, guard, parallel, onAlter, altered: this.#altered.lines, signal })
  }

  async clear(intent: IntentRecord<TreeChange>, signal?: AbortSignal): Promise<void> {
    const stage = this.#stage!
    for (const path of this.#made.keys())
      if (path.startsWith(stage.path) && Number(/\/(\d+)-[^/]*$/.exec(path)?.[1]) <= intent.batch)
        this.#made.delete(path)
    await clearStage(stage, intent, signal)
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
}

const stagedAt = (epoch: number, batch: number, id: string): Path => `${stagePath(epoch)}/${stagedName(batch, id)}`

const namesOf = (change: TreeChange): Path[] =>
  change.do === 'move' ? [change.from, change.to] : change.do === 'link' ? [change.path, change.target] : [change.path]
