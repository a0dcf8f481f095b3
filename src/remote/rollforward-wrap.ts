// A tree that reads through what is committed but not applied, hides what is ours, and takes whole batches.
import { FerryError } from '../base/errors.js'
import type { Commits } from './commits.js'
import { ChainCommits } from './rollforward-commits.js'
import { Committing } from './rollforward-delegate.js'
import type { RollforwardOptions } from './rollforward-options.js'
import { isHiddenPath, ORPHANS } from './rollforward-plan.js'
import { TreeShape } from './rollforward-tree.js'
import { Views } from './rollforward-view.js'
import type { Store } from './store.js'
import { type Page, Through } from './through.js'
import type {
  Attributes,
  Entry,
  NewNode,
  Path,
  Tree,
  TreeCapabilities,
  TreeChange,
  Usage,
  Version,
  Xattrs,
} from './tree.js'

interface Range {
  at: number
  length: number
  version?: Version
}

export class RollforwardTree extends Committing<TreeChange> implements Tree {
  readonly shape = 'tree'
  readonly url: string
  readonly capabilities: TreeCapabilities
  readonly hidden: Store
  readonly stageCopy?: Commits<TreeChange>['stageCopy']
  readonly copy?: Tree['copy']
  readonly #tree: Tree
  readonly #shape: TreeShape
  readonly #views: Views<TreeChange, Through>

  constructor(tree: Tree, options: RollforwardOptions) {
    const shape = new TreeShape(tree, options)
    super(new ChainCommits(shape, tree.hidden, options))
    this.#shape = shape
    this.#tree = tree
    this.url = tree.url
    this.capabilities = tree.capabilities
    this.hidden = tree.hidden
    if (tree.copy) {
      this.stageCopy = this.commits.stageCopy.bind(this.commits)
      this.copy = (source, range, target, signal) => tree.copy!(visible(source), range, visible(target), signal)
    }
    this.#views = new Views(
      this.commits.lease,
      (intent, stillPending) => new Through(tree, intent, stillPending),
      options,
    )
  }

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    if (isHiddenPath(path)) return null
    return this.#views.read(view => (view ?? this.#tree).stat(path, signal), signal)
  }

  async list(path: Path, cursor?: string, signal?: AbortSignal): Promise<{ entries: Entry[]; cursor?: string }> {
    visible(path)
    if (path === ORPHANS || path.startsWith(`${ORPHANS}/`)) throw new FerryError('NOT_FOUND', { detail: path })
    const [, began, rest] = /^(\d*):(.*)$/s.exec(cursor ?? '') ?? []
    return this.#views.read(async (view, number) => {
      if (cursor === undefined)
        return view
          ? withCursor(number, await view.list(path, undefined, signal))
          : withCursor(null, await this.#tree.list(path, undefined, signal))
      if (began === '') {
        if (view) return withCursor(null, asItWas(await view.listOn(path, rest, signal)))
        return withCursor(null, await this.#tree.list(path, rest, signal))
      }
      if (view && Number(began) === number) return withCursor(number, await view.list(path, rest, signal))
      // The batch through which it began is done; it goes on through whatever is now.
      const former = this.#views.former(Number(began))
      if (!former) throw new FerryError('STALE', { detail: `a listing of ${path}` })
      return withCursor(Number(began), await former.listAfter(path, rest, view ?? this.#tree, signal))
    }, signal)
  }

  async read(path: Path, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    visible(path)
    const known = this.commits.lease.held && this.#shape.isBefore(path, range.version)
    const wanted = known ? { at: range.at, length: range.length } : range
    return this.#views.read(view => (view ?? this.#tree).read(path, wanted, signal), signal)
  }

  async xattrs(path: Path, signal?: AbortSignal): Promise<Xattrs> {
    visible(path)
    return this.#views.read(view => (view ?? this.#tree).xattrs(path, signal), signal)
  }

  usage(signal?: AbortSignal): Promise<Usage | null> {
    return this.#tree.usage(signal)
  }

  close(): Promise<void> {
    return this.#tree.close()
  }

  // --- the primitives, for whoever wraps this again; not through any intent

  async write(path: Path, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#tree.write(visible(path), at, from, signal)
  }
  async truncate(path: Path, size: number, signal?: AbortSignal): Promise<void> {
    return this.#tree.truncate(visible(path), size, signal)
  }
  async punch(path: Path, at: number, length: number, signal?: AbortSignal): Promise<void> {
    return this.#tree.punch(visible(path), at, length, signal)
  }
  async make(path: Path, node: NewNode, signal?: AbortSignal): Promise<void> {
    return this.#tree.make(ours(path), node, signal)
  }
  async link(source: Path, target: Path, signal?: AbortSignal): Promise<void> {
    return this.#tree.link(visible(source), ours(target), signal)
  }
  async rename(source: Path, target: Path, signal?: AbortSignal): Promise<void> {
    return this.#tree.rename(visible(source), ours(target), signal)
  }
  async remove(path: Path, signal?: AbortSignal): Promise<void> {
    return this.#tree.remove(visible(path), signal)
  }
  async setAttributes(path: Path, attributes: Partial<Attributes>, signal?: AbortSignal): Promise<void> {
    return this.#tree.setAttributes(visible(path), attributes, signal)
  }
  async setXattrs(path: Path, xattrs: Xattrs, signal?: AbortSignal): Promise<void> {
    return this.#tree.setXattrs(visible(path), xattrs, signal)
  }
  async sync(paths: Path[], signal?: AbortSignal): Promise<void> {
    return this.#tree.sync(paths, signal)
  }
}

/** Cursors of ours say through which intent a listing began. */
const withCursor = (number: number | null, page: Page): Page =>
  page.cursor === undefined ? page : { ...page, cursor: `${number ?? ''}:${page.cursor}` }

/** The tree's own cursor out of one of `listOn`. */
const asItWas = (page: Page): Page =>
  page.cursor === undefined ? page : { ...page, cursor: page.cursor.slice('old '.length) }

/** NOT_FOUND for what is hidden. */
function visible(path: Path): Path {
  if (isHiddenPath(path)) throw new FerryError('NOT_FOUND', { detail: path })
  return path
}

/** NOT_PERMITTED for a name that we keep for ourselves. */
function ours(path: Path): Path {
  if (isHiddenPath(path)) throw new FerryError('NOT_PERMITTED', { detail: `${path} is kept for pageferry itself` })
  return path
}
