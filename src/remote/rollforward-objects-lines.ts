// The lines of a batch, by the names that they are about: what a name stood for before the batch, and what it stands for after. Pure.
import type { IntentRecord } from './intent.js'
import { joinPath, lastName, parentPath } from './path.js'
import { above } from './rollforward-plan.js'
import type { Path, TreeChange } from './tree.js'

export type Of<Do extends TreeChange['do']> = Extract<TreeChange, { do: Do }>
export interface Line<Change = TreeChange> {
  index: number
  change: Change
}

export class Lines {
  /** By committed names. */
  readonly goes = new Map<Path, Line<Of<'remove'> | Of<'move'>>>()
  /** By names after the batch: what is new. */
  readonly news = new Map<Path, Line<Of<'make'> | Of<'put'>>>()
  /** By names after the batch. What is moved to a name may be replaced there by what is new. */
  readonly moves = new Map<Path, Line<Of<'move'>>>()
  readonly alters = new Map<Path, Line<Of<'patch'> | Of<'attributes'>>>()

  constructor({ changes, refused }: Pick<IntentRecord<TreeChange>, 'changes' | 'refused'>) {
    const without = new Set(refused.map(([index]) => index))
    changes.forEach((change, index) => {
      if (without.has(index)) return
      switch (change.do) {
        case 'remove':
          this.goes.set(change.path, { index, change })
          break
        case 'move':
          this.goes.set(change.from, { index, change })
          this.moves.set(change.to, { index, change })
          break
        case 'make':
        case 'put':
          this.news.set(change.path, { index, change })
          break
        case 'patch':
        case 'attributes':
          this.alters.set(change.path, { index, change })
      }
    })
  }

  comes(path: Path): boolean {
    return this.news.has(path) || this.moves.has(path)
  }

  /** The line by which a committed name goes: its own, or that of what it lies in. */
  goneBy(committed: Path): Line<Of<'remove'> | Of<'move'>> | undefined {
    const prefix = nearest(committed, path => this.goes.has(path))
    return prefix === undefined ? undefined : this.goes.get(prefix)
  }

  /** What lies at this name, or in it, came with the batch, or so may what lies there. */
  comesAt(path: Path): boolean {
    return nearest(path, one => this.comes(one)) !== undefined
  }

  /** The name before the batch of what has this one after it; null: it had none. */
  committedOf(path: Path): Path | null {
    const prefix = nearest(path, one => this.comes(one))
    if (prefix === undefined) return this.goneBy(path) ? null : path
    const move = this.moves.get(prefix)
    if (!move) return null
    const committed = move.change.from + path.slice(prefix.length)
    return this.goneBy(committed) === this.goes.get(move.change.from) ? committed : null
  }

  /** The same of what a new file replaces: its own line does not count. */
  replacedBy(path: Path): Path | null {
    if (path === '' || this.moves.has(path)) return this.committedOf(path)
    const directory = this.committedOf(parentPath(path))
    const committed = directory === null ? null : joinPath(directory, lastName(path))
    return committed === null || this.goneBy(committed) !== this.goneBy(directory!) ? null : committed
  }

  /** The name after the batch of what had this one before it; null: it is gone. */
  afterOf(committed: Path): Path | null {
    const line = this.goneBy(committed)
    if (!line) return committed
    const { change } = line
    return change.do === 'move' ? change.to + committed.slice(change.from.length) : null
  }
}

function nearest(path: Path, has: (path: Path) => boolean): Path | undefined {
  if (has(path)) return path
  for (const one of above(path)) if (has(one)) return one
  return undefined
}
