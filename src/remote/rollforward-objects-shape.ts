// What a bucket does with a batch: staged bytes are packed into objects of the stage, and the server makes files of them.

import { inParallel } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { type Batch, type Claim, type CopySource, keepsOrphans, type Outcome } from './commits.js'
import type { IntentRecord, Packed, Refusal } from './intent.js'
import type { ObjectFiles } from './object-files.js'
import { keyOf } from './object-keys.js'
import { isStaged } from './object-segments.js'
import type { Key } from './objects.js'
import type { Shape, Turn } from './rollforward-commits.js'
import { AheadUploads } from './rollforward-objects-ahead.js'
import { applyObjects } from './rollforward-objects-apply.js'
import { ObjectContent } from './rollforward-objects-content.js'
import { StageLedger } from './rollforward-objects-ledger.js'
import { abortStaged, abortUploadsOf, clearObjects, ObjectPacker, stageKey } from './rollforward-objects-stage.js'
import type { RollforwardOptions } from './rollforward-options.js'
import { isHiddenPath, ORPHANS } from './rollforward-plan.js'
import { HIDDEN, type Path, type TreeChange, type Version } from './tree.js'

const REMOVES_MAX = 1_000
/** Of less than so many of the smallest parts the file is put together here anyway, or it is no slower to send them. */
const COPY_PARTS_MIN = 3

export class ObjectsShape implements Shape<TreeChange> {
  readonly #files: ObjectFiles
  readonly #options: RollforwardOptions
  readonly #ledger = new StageLedger()
  readonly #packer: ObjectPacker
  readonly #ahead: AheadUploads
  /** By batch, what was staged by copies, by its file and place there. */
  readonly #copies = new Map<number, Map<string, Packed>>()
  /** Something may lie in the stage that this process has not put there. */
  #others = true
  /** Versions that files had before the newest batch replaced them by what keeps their bytes. */
  readonly #before = new Map<Path, Version>()
  /** The batch that this process has begun to apply, and before which it knows that nobody has. */
  #first = ''
  #heldSince = 0

  constructor(files: ObjectFiles, options: RollforwardOptions) {
    this.#files = files
    this.#options = options
    this.#packer = new ObjectPacker(files.objects, this.#ledger)
    this.#ahead = new AheadUploads(files.objects, this.#ledger)
  }

  /**
   * Whether a version is what the writer knew of a file that its newest batch changes: what it reads of that file, which can only be
   * what it has not changed, is the same in the new version, whose name it may not know yet.
   */
  isBefore(path: Path, version: Version | undefined): boolean {
    return version !== undefined && this.#before.get(path) === version
  }

  /** A request of a former holder that is on its way is not stopped by anything but its conditions. */
  async open(): Promise<boolean> {
    this.#packer.forget()
    this.#ahead.forget()
    this.#copies.clear()
    this.#ledger.forget()
    this.#others = true
    this.#before.clear()
    this.#first = ''
    this.#heldSince = this.#files.now()
    return false
  }

  async sweep({ epoch, guard, signal }: Turn, claim: Claim, previous: Claim | null): Promise<void> {
    if (!keepsOrphans(claim, previous)) await this.#sweepOrphans(guard, signal)
    await clearObjects(this.#files.objects, { epoch, batch: 0 }, signal)
    await abortStaged(this.#files.objects, epoch, signal)
    this.#others = false
  }

  async #sweepOrphans(guard: () => Promise<void>, signal?: AbortSignal): Promise<void> {
    for await (const page of this.#files.below(`${keyOf(ORPHANS)}/`, signal))
      for (let from = 0; from < page.length; from += REMOVES_MAX) {
        const keys: Key[] = page.slice(from, from + REMOVES_MAX).map(({ key }) => key)
        await guard()
        await this.#files.objects.removeAll(keys, signal)
      }
  }

  stage(epoch: number, batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#packer.add(epoch, batch, { id, at, bytes: from }, signal)
  }

  /** An object of the stage is made of it, by the server alone: what has the name then may be gone before the batch is applied. */
  async stageCopy(
    epoch: number,
    batch: number,
    id: string,
    to: number,
    { path, version, at, length }: CopySource,
    signal?: AbortSignal,
  ): Promise<void> {
    if (length < COPY_PARTS_MIN * this.#files.objects.capabilities.partBytesMin)
      throw new FerryError('UNSUPPORTED', { detail: `${length} bytes` })
    const name = (what: string) => stageKey(epoch, batch, `${what}-${this.#ledger.nextNumber()}`)
    const onUpload = async (made: Key, upload: string) => this.#ledger.begun(made, { epoch, batch }, upload)
    const key = name('copy')
    const joins = { key: () => name('join'), onUpload }
    const content = new ObjectContent({ objects: this.#files.objects, guard: async () => {}, onUpload, joins, signal })
    const piece = { key: keyOf(path), at, etag: version }
    await content.make({ key, metadata: {}, contentType: '' }, [{ at: 0, length, piece }])
    const copies = this.#copies.get(batch) ?? new Map<string, Packed>()
    this.#copies.set(batch, copies)
    copies.set(`${id} ${to}`, [id, to, length, key.slice(HIDDEN.length + 1), 0])
  }

  stageAhead(epoch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#ahead.add(epoch, id, at, from, signal)
  }

  dropAhead(id: string, signal?: AbortSignal): Promise<void> {
    return this.#ahead.drop(id, signal)
  }

  async complete(epoch: number, { number, changes }: Batch<TreeChange>, signal?: AbortSignal) {
    const staged = changes.flatMap(change =>
      (change.do === 'put' || change.do === 'patch') && 'staged' in change.content ? [change.content.staged] : [],
    )
    const named = new Set(staged)
    const copied = [...(this.#copies.get(number)?.values() ?? [])]
    const packed = [...(await this.#packer.flush(number, signal)), ...copied].filter(([id]) => named.has(id))
    await inParallel([...named], this.#options.parallel, async id => {
      const ahead = await this.#ahead.finish(id, { epoch, batch: number }, signal)
      if (ahead) packed.push(ahead)
    })
    const pieces = new Map<string, Packed[]>()
    for (const one of packed) {
      const same = pieces.get(one[0])
      if (same) same.push(one)
      else pieces.set(one[0], [one])
    }
    for (const change of changes)
      if ((change.do === 'put' || change.do === 'patch') && !isStaged(change.content, pieces))
        throw new FerryError('INVALID', { detail: `${change.path}: not all of it was staged` })
    const refused = changes.flatMap((change, index): Refusal[] => {
      if (change.do === 'link') return [[index, 'UNSUPPORTED', 'a bucket has no hard links']]
      const kept = namesOf(change).find(isHiddenPath)
      return kept === undefined ? [] : [[index, 'NOT_PERMITTED', `${kept} is kept for pageferry itself`]]
    })
    this.#first = attemptOf({ epoch, batch: number })
    return { refused, packed }
  }

  committed(changes: TreeChange[]): void {
    this.#before.clear()
    for (const change of changes)
      if (change.do === 'patch' && change.expect !== undefined) this.#before.set(change.path, change.expect)
  }

  async apply(intent: IntentRecord<TreeChange>, turn: Turn): Promise<Outcome> {
    const { parallel } = this.#options
    // What others, or we ourselves in vain, have begun to upload is not completed any more.
    const first = this.#first === attemptOf(intent)
    if (!first) {
      await turn.check()
      await abortUploadsOf(this.#files.objects, intent, turn.signal)
    }
    this.#first = ''
    const onReplace = (path: Path, version: Version) => this.#before.set(path, version)
    const [files, ledger, heldSince] = [this.#files, this.#ledger, this.#heldSince]
    return applyObjects({ files, intent, turn, parallel, heldSince, first, ledger, onReplace })
  }

  async clear({ epoch, batch }: IntentRecord<TreeChange>, signal?: AbortSignal): Promise<void> {
    this.#packer.forget(batch)
    this.#ahead.forget(batch)
    for (const one of this.#copies.keys()) if (one <= batch) this.#copies.delete(one)
    if (this.#others) await clearObjects(this.#files.objects, { epoch, batch }, signal)
    await this.#ledger.clear(this.#files.objects, { epoch, batch }, signal)
  }
}

const attemptOf = ({ epoch, batch }: { epoch: number; batch: number }) => `${epoch} ${batch}`

const namesOf = (change: TreeChange): Path[] => (change.do === 'move' ? [change.from, change.to] : [change.path])
