// The commit contract for remotes that cannot commit by themselves: stage beside the data, commit by one conditional put of an
// intent, then apply it; whoever opens next finishes what was begun. `.pageferry/` at the remote's root keeps all that; of a blob,
// which has no room beside its bytes, a store that is named.
import type { Blob, BlobChange } from './blob.js'
import type { Commits } from './commits.js'
import type { Objects } from './objects.js'
import { RollforwardBlob } from './rollforward-blob.js'
import { type ObjectTreeOptions, RollforwardObjects } from './rollforward-objects.js'
import { type RollforwardOptions, withDefaults } from './rollforward-options.js'
import { RollforwardStore } from './rollforward-store.js'
import { RollforwardTree } from './rollforward-wrap.js'
import type { Store, StoreChange } from './store.js'
import type { Tree, TreeChange } from './tree.js'

export type { RollforwardOptions } from './rollforward-options.js'

/** The same remote, which can commit. Until a lease is claimed it only reads: through a batch that is committed but not applied. */
export function rollforward(tree: Tree, options?: Partial<RollforwardOptions>): Tree & Commits<TreeChange>
export function rollforward(store: Store, options?: Partial<RollforwardOptions>): Store & Commits<StoreChange>
/** A tree in which one file is one object. */
export function rollforward(objects: Objects, options?: Partial<ObjectTreeOptions>): Tree & Commits<TreeChange>
/** `commitStore` keeps the lease, intents and what is staged; it is the blob's own: nothing else is in it, and both are closed together. */
export function rollforward(
  blob: Blob,
  options: Partial<RollforwardOptions> & { commitStore: Store },
): Blob & Commits<BlobChange>
export function rollforward(
  remote: Tree | Store | Blob | Objects,
  { commitStore, attributes = 'full', ...options }: Partial<ObjectTreeOptions> & { commitStore?: Store } = {},
): (Tree & Commits<TreeChange>) | (Store & Commits<StoreChange>) | (Blob & Commits<BlobChange>) {
  switch (remote.shape) {
    case 'tree':
      return new RollforwardTree(remote, withDefaults(options))
    case 'store':
      return new RollforwardStore(remote, withDefaults(options))
    case 'objects':
      return new RollforwardObjects(remote, { ...withDefaults(options), attributes })
    case 'blob':
      return new RollforwardBlob(remote, commitStore!, withDefaults(options))
  }
}
