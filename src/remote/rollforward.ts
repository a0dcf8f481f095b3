// The commit contract for remotes that cannot commit by themselves: stage beside the data, commit by one conditional put of an
// intent, then apply it; whoever opens next finishes what was begun. `.pageferry/` at the remote's root keeps all that.
import type { Commits } from './commits.js'
import { type RollforwardOptions, withDefaults } from './rollforward-options.js'
import { RollforwardTree } from './rollforward-wrap.js'
import type { Tree, TreeChange } from './tree.js'

export type { RollforwardOptions } from './rollforward-options.js'

/** The same tree, which can commit. Until a lease is claimed it only reads: through a batch that is committed but not applied. */
export function rollforward(tree: Tree, options?: Partial<RollforwardOptions>): Tree & Commits<TreeChange> {
  return new RollforwardTree(tree, withDefaults(options ?? {}))
}
