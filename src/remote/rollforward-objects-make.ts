// One object of a batch: its bytes, its metadata, and the condition under which it comes.
import { FerryError } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import { checkMetadata, DIRECTORY_TYPE, metadataWith, xattrsOf } from './object-attributes.js'
import type { Known, ObjectFiles } from './object-files.js'
import { type Segment, segmentsOfPatch, segmentsOfPut } from './object-segments.js'
import type { Metadata } from './objects.js'
import type { ObjectContent } from './rollforward-objects-content.js'
import { keyOfTarget, type Source, type Target } from './rollforward-objects-model.js'
import { stageKey } from './rollforward-objects-stage.js'
import type { TreeChange } from './tree.js'

export class ObjectMaker {
  readonly #files: ObjectFiles
  readonly #intent: IntentRecord<TreeChange>
  readonly #content: ObjectContent
  readonly #signal: AbortSignal | undefined
  /** What was asked of an object since then is not asked again. */
  readonly #sinceMs: number

  constructor(
    files: ObjectFiles,
    intent: IntentRecord<TreeChange>,
    content: ObjectContent,
    signal: AbortSignal | undefined,
  ) {
    this.#files = files
    this.#intent = intent
    this.#content = content
    this.#signal = signal
    this.#sinceMs = files.nowMs()
  }

  /** @returns its tag */
  async make(target: Target): Promise<string> {
    const change = this.#intent.changes[target.index]
    const { packed } = this.#intent
    const key = keyOfTarget(target)
    const { replaces, expected } = target
    const condition = replaces === null ? { ifAbsent: true } : { ifMatch: replaces }
    const source = target.source && (await this.#reach(target.source))
    const tag = { epoch: this.#intent.epoch, batch: this.#intent.batch, index: target.index, expected }
    const before = source?.head.metadata ?? {}
    const contentType = target.directory ? DIRECTORY_TYPE : (source?.head.contentType ?? '')
    const made = (metadata: Metadata) => ({
      ...{ key, contentType, ...condition },
      metadata: checkMetadata(metadata, this.#files.objects.capabilities.metadataBytesMax),
    })
    switch (change.do) {
      case 'make': {
        const { node, xattrs = new Map() } = change
        const bytes = Buffer.from(node.link ?? '', 'latin1')
        return this.#content.make(made(metadataWith({}, { attributes: node, xattrs, tag })), whole(bytes))
      }
      case 'put': {
        const xattrs = change.xattrs ?? xattrsOf(before)
        const metadata = metadataWith(before, { attributes: change.attributes, xattrs, tag, changed: true })
        return this.#content.make(made(metadata), segmentsOfPut(change, packed))
      }
      case 'patch': {
        const { attributes, xattrs } = change
        const metadata = metadataWith(before, { attributes, xattrs, tag, changed: true })
        return this.#content.make(made(metadata), segmentsOfPatch(change, source!, packed))
      }
      case 'attributes':
      case 'move': {
        const given = change.do === 'attributes' ? change : {}
        const metadata = made(metadataWith(before, { ...given, tag }))
        if (target.directory || !source) return this.#content.make(metadata, [])
        return this.#content.copy(metadata, source)
      }
      default:
        throw new FerryError('UNSUPPORTED', { detail: change.do })
    }
  }

  /** Where a source is, and what is known of it. */
  async #reach(source: Source): Promise<Source & { head: Known }> {
    const { epoch, batch } = this.#intent
    const key = source.held ? stageKey(epoch, batch, source.held) : source.key
    const known = this.#files.askedSince(this.#sinceMs, { key, etag: source.etag })
    const head = known ?? (await this.#files.head(key, this.#signal))
    if (!head) throw new FerryError('NOT_FOUND', { detail: key })
    // What is held may have another tag than it had under its name.
    if (!source.held && head.etag !== source.etag) throw new FerryError('STALE', { detail: key })
    return { ...source, key, etag: head.etag, head }
  }
}

const whole = (bytes: Uint8Array): Segment[] =>
  bytes.byteLength > 0 ? [{ at: 0, length: bytes.byteLength, bytes }] : []
