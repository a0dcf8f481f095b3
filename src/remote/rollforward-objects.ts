// A bucket as a tree that takes whole batches: one file is one object under its own name.
import { FerryError } from '../base/errors.js'
import type { CopySource } from './commits.js'
import { xattrBytesMax } from './object-attributes.js'
import { ObjectFiles, type ObjectFilesOptions, type Page } from './object-files.js'
import { NAME_BYTES_MAX } from './object-keys.js'
import { objectStore } from './object-store.js'
import type { Objects } from './objects.js'
import { ChainCommits } from './rollforward-commits.js'
import { Committing } from './rollforward-delegate.js'
import { ObjectsShape } from './rollforward-objects-shape.js'
import type { RollforwardOptions } from './rollforward-options.js'
import { isHiddenPath, ORPHANS } from './rollforward-plan.js'
import { Views } from './rollforward-view.js'
import type { Store } from './store.js'
import { ThroughObjects } from './through-objects.js'
import {
  type Entry,
  HIDDEN,
  type PartialName,
  type Path,
  type Tree,
  type TreeCapabilities,
  type TreeChange,
  type Usage,
  type Version,
  type Xattrs,
} from './tree.js'

interface Range {
  at: number
  length: number
  version?: Version
}

export interface ObjectTreeOptions extends RollforwardOptions, Pick<ObjectFilesOptions, 'attributes'> {}

export class RollforwardObjects extends Committing<TreeChange> implements Tree {
  readonly shape = 'tree'
  readonly url: string
  readonly capabilities: TreeCapabilities
  readonly hidden: Store
  readonly #objects: Objects
  readonly #files: ObjectFiles
  readonly #shape: ObjectsShape
  readonly #views: Views<TreeChange, ThroughObjects>

  constructor(objects: Objects, options: ObjectTreeOptions) {
    const owner = { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 }
    const files = new ObjectFiles(objects, { attributes: options.attributes, owner, wallMs: options.wallMs })
    const shape = new ObjectsShape(files, options)
    const hidden = objectStore(objects, `${HIDDEN}/`)
    super(new ChainCommits(shape, hidden, options))
    this.#objects = objects
    this.#files = files
    this.#shape = shape
    // Another view of it, which another cache directory is for.
    this.url = options.attributes === 'full' ? objects.url : withQuery(objects.url, 'attributes=listed')
    this.hidden = hidden
    const capabilities = capabilitiesOf(objects)
    this.capabilities = options.attributes === 'full' ? capabilities : { ...capabilities, write: false }
    this.#views = new Views(
      this.commits.lease,
      (intent, stillPending) => new ThroughObjects(files, intent, stillPending),
      options,
    )
  }

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    if (isHiddenPath(path)) return null
    return this.#views.read(view => (view ?? this.#files).stat(path, signal), signal)
  }

  async list(path: Path, cursor?: string, signal?: AbortSignal): Promise<Page> {
    visible(path)
    if (path === ORPHANS || path.startsWith(`${ORPHANS}/`)) throw new FerryError('NOT_FOUND', { detail: path })
    const [, began, rest] = /^(\d*):(.*)$/s.exec(cursor ?? '') ?? []
    return this.#views.read(async (view, number) => {
      if (cursor === undefined)
        return view
          ? withCursor(number, await view.list(path, undefined, signal))
          : withCursor(null, await this.#files.list(path, undefined, signal))
      if (began === '')
        return withCursor(null, await (view ? view.listOn(path, rest, signal) : this.#files.list(path, rest, signal)))
      if (view && Number(began) === number) return withCursor(number, await view.list(path, rest, signal))
      // The batch through which it began is done; it goes on through whatever is now.
      const former = this.#views.former(Number(began))
      if (!former) throw new FerryError('STALE', { detail: `a listing of ${path}` })
      return withCursor(Number(began), await former.listAfter(path, rest, view, signal))
    }, signal)
  }

  async complete(path: Path, partial: PartialName[], signal?: AbortSignal): Promise<(Entry | null)[]> {
    visible(path)
    return this.#views.read(view => (view ?? this.#files).complete(path, partial, signal), signal)
  }

  async read(path: Path, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    visible(path)
    const known = this.commits.lease.held && this.#shape.isBefore(path, range.version)
    const wanted = known ? { at: range.at, length: range.length } : range
    return this.#views.read(view => (view ?? this.#files).read(path, wanted, signal), signal)
  }

  async xattrs(path: Path, signal?: AbortSignal): Promise<Xattrs> {
    visible(path)
    return this.#views.read(view => (view ?? this.#files).xattrs(path, signal), signal)
  }

  stageCopy(batch: number, id: string, at: number, source: CopySource, signal?: AbortSignal): Promise<void> {
    return this.commits.stageCopy(batch, id, at, source, signal)
  }

  stageAhead(id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.commits.stageAhead(id, at, from, signal)
  }

  dropAhead(id: string, signal?: AbortSignal): Promise<void> {
    return this.commits.dropAhead(id, signal)
  }

  async usage(): Promise<Usage | null> {
    return null
  }

  close(): Promise<void> {
    return this.#objects.close()
  }

  // --- a bucket changes by batches alone

  write = refuse
  truncate = refuse
  punch = refuse
  make = refuse
  link = refuse
  rename = refuse
  remove = refuse
  setAttributes = refuse
  setXattrs = refuse
  sync = refuse
}

async function refuse(): Promise<never> {
  throw new FerryError('UNSUPPORTED', { detail: 'a bucket is changed by batches only' })
}

function capabilitiesOf({ capabilities }: Objects): TreeCapabilities {
  const { write, keyBytesMax, metadataBytesMax, objectBytesMax } = capabilities
  return {
    write,
    hardLinks: false,
    symlinks: true,
    specialFiles: false,
    owners: true,
    xattrBytesMax: xattrBytesMax(metadataBytesMax),
    nameBytesMax: NAME_BYTES_MAX,
    // A directory's key has a slash behind it.
    pathBytesMax: keyBytesMax - 1,
    fileBytesMax: objectBytesMax,
    patch: true,
  }
}

const withQuery = (url: string, query: string) => `${url}${url.includes('?') ? '&' : '?'}${query}`

/** Cursors of ours say through which intent a listing began. */
const withCursor = (number: number | null, page: Page): Page =>
  page.cursor === undefined ? { entries: page.entries } : { ...page, cursor: `${number ?? ''}:${page.cursor}` }

/** NOT_FOUND for what is hidden. */
function visible(path: Path): Path {
  if (isHiddenPath(path)) throw new FerryError('NOT_FOUND', { detail: path })
  return path
}
