// A tree that reads through what is committed but not applied, hides what is ours, and takes whole batches.
import { FerryError } from '../base/errors.js'
import type { Batch, Claim, Claimed, Commits, Holder, Outcome } from './commits.js'
import type { RollforwardOptions } from './rollforward-options.js'
import { isHiddenPath, ORPHANS } from './rollforward-plan.js'
import { TreeCommits } from './rollforward-tree.js'
import { Views } from './rollforward-view.js'
import type { Store } from './store.js'
import { Through } from './through.js'
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

export class RollforwardTree implements Tree, Commits<TreeChange> {
  readonly shape = 'tree'
  readonly url: string
  readonly capabilities: TreeCapabilities
  readonly hidden: Store
  readonly #tree: Tree
  readonly #commits: TreeCommits
  readonly #views: Views<TreeChange, Through>

  constructor(tree: Tree, options: RollforwardOptions) {
    this.#tree = tree
    this.url = tree.url
    this.capabilities = tree.capabilities
    this.hidden = tree.hidden
    this.#commits = new TreeCommits(tree, options)
    this.#views = new Views(this.#commits.lease, intent => new Through(tree, intent), options)
  }

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    if (isHiddenPath(path)) return null
    return this.#views.read(view => (view ?? this.#tree).stat(path, signal), signal)
  }

  async list(path: Path, cursor?: string, signal?: AbortSignal): Promise<{ entries: Entry[]; cursor?: string }> {
    visible(path)
    if (path === ORPHANS || path.startsWith(`${ORPHANS}/`)) throw new FerryError('NOT_FOUND', { detail: path })
    return this.#views.read(view => (view ?? this.#tree).list(path, cursor, signal), signal)
  }

  async read(path: Path, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    visible(path)
    const wanted = this.#commits.isOurs(path, range.version) ? { at: range.at, length: range.length } : range
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

  // --- commits

  claim(claim: Claim, signal?: AbortSignal): Promise<Claimed> {
    return this.#commits.claim(claim, signal)
  }
  renew(signal?: AbortSignal): Promise<void> {
    return this.#commits.renew(signal)
  }
  release(signal?: AbortSignal): Promise<void> {
    return this.#commits.release(signal)
  }
  holder(signal?: AbortSignal): Promise<Holder | null> {
    return this.#commits.holder(signal)
  }
  stage(batch: number, id: string, at: number, from: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#commits.stage(batch, id, at, from, signal)
  }
  commit(batch: Batch<TreeChange>, signal?: AbortSignal): Promise<void> {
    return this.#commits.commit(batch, signal)
  }
  settle(signal?: AbortSignal): Promise<Outcome> {
    return this.#commits.settle(signal)
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
