// One object of a batch: its bytes, its metadata, and the condition under which it comes.
import { FerryError } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import { checkMetadata, DIRECTORY_TYPE, metadataWith } from './object-attributes.js'
import type { Known, ObjectFiles } from './object-files.js'
import { type Segment, segmentsOfPatch, segmentsOfPut } from './object-segments.js'
import type { Metadata } from './objects.js'
import type { ObjectContent } from './rollforward-objects-content.js'
import { keyOfTarget, type Source, type Target } from './rollforward-objects-model.js'
import { stageKey } from './rollforward-objects-stage.js'
import type { TreeChange } from './tree.js'

export interface MakerOptions {
  files: ObjectFiles
  intent: IntentRecord<TreeChange>
  content: ObjectContent
  /** From then on nobody else has written batches. */
  heldSince: number
  signal: AbortSignal | undefined
}

export class ObjectMaker {
  readonly #files: ObjectFiles
  readonly #intent: IntentRecord<TreeChange>
  readonly #content: ObjectContent
  readonly #signal: AbortSignal | undefined
  /** What was asked of an object since then is not asked again. */
  readonly #since: number
  /** The same of a file that gets other bytes, and with them attributes of ours. */
  readonly #heldSince: number

  constructor({ files, intent, content, heldSince, signal }: MakerOptions) {
    this.#files = files
    this.#intent = intent
    this.#content = content
    this.#heldSince = heldSince
    this.#signal = signal
    this.#since = files.now()
  }

  /** @returns its tag */
  async make(target: Target): Promise<string> {
    const change = this.#intent.changes[target.index]
    const { replaces } = target
    const rewrites = change.do === 'put' || change.do === 'patch'
    const source = target.source && (await this.#reach(target.source, rewrites))
    const key = keyOfTarget(target)
    const contentType = target.directory ? DIRECTORY_TYPE : (source?.head.contentType ?? '')
    const { metadataBytesMax } = this.#files.objects.capabilities
    const metadata = checkMetadata(this.#metadata(target, source?.head.metadata ?? {}), metadataBytesMax)
    const made = { key, metadata, contentType, ...(replaces === null ? { ifAbsent: true } : { ifMatch: replaces }) }
    const segments = this.#segments(target, source)
    const etag = await (segments ? this.#content.make(made, segments) : this.#content.copy(made, source!))
    const size = segments ? segments.reduce((sum, { length }) => sum + length, 0) : source!.size
    const link = change.do === 'make' ? change.node.link : source?.head.link
    this.#files.remember({ key, etag, size, metadata, contentType, link })
    return etag
  }

  #metadata({ index, expected }: Target, before: Metadata): Metadata {
    const { epoch, batch, changes } = this.#intent
    const change = changes[index]
    const tag = { epoch, batch, index, expected }
    switch (change.do) {
      case 'make':
        return metadataWith({}, { attributes: change.node, xattrs: change.xattrs, tag })
      case 'put':
      case 'patch':
        return metadataWith(before, { attributes: change.attributes, xattrs: change.xattrs, tag, changed: true })
      case 'attributes':
        return metadataWith(before, { attributes: change.attributes, xattrs: change.xattrs, tag })
      default:
        return metadataWith(before, { tag })
    }
  }

  /** null: what the source has. */
  #segments({ index, directory }: Target, source: Source | null): Segment[] | null {
    const { changes, packed } = this.#intent
    const change = changes[index]
    switch (change.do) {
      case 'make':
        return whole(Buffer.from(change.node.link ?? '', 'latin1'))
      case 'put':
        return segmentsOfPut(change, packed)
      case 'patch':
        return segmentsOfPatch(change, source!, packed)
      default:
        return directory ? [] : null
    }
  }

  /** Where a source is, and what is known of it. */
  async #reach(source: Source, rewrites: boolean): Promise<Source & { head: Known }> {
    const { epoch, batch } = this.#intent
    const key = source.held ? stageKey(epoch, batch, source.held) : source.key
    const known = this.#files.askedSince(rewrites ? this.#heldSince : this.#since, { key, etag: source.etag })
    const head = known ?? (await this.#files.head(key, this.#signal))
    if (!head) throw new FerryError('NOT_FOUND', { detail: key })
    // What is held may have another tag than it had under its name.
    if (!source.held && head.etag !== source.etag) throw new FerryError('STALE', { detail: key })
    return { ...source, key, etag: head.etag, head }
  }
}

const whole = (bytes: Uint8Array): Segment[] =>
  bytes.byteLength > 0 ? [{ at: 0, length: bytes.byteLength, bytes }] : []
