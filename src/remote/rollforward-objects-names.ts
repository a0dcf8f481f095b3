// Names that things come to while a batch becomes objects: what cannot have its own, and what is refused.
import { FerryError } from '../base/errors.js'
import type { Outcome } from './commits.js'
import type { IntentRecord } from './intent.js'
import type { ObjectFiles } from './object-files.js'
import { NAME_BYTES_MAX } from './object-keys.js'
import { isOurs, type Plan } from './rollforward-objects-model.js'
import { fitting } from './rollforward-place.js'
import { above } from './rollforward-plan.js'
import type { Path, TreeChange } from './tree.js'

/** `-2`, `-3`... are tried so far. */
const NAMES_MAX = 1_000

export class Names {
  readonly #files: ObjectFiles
  readonly #intent: IntentRecord<TreeChange>
  readonly #signal: AbortSignal | undefined
  readonly #elsewhere = new Map<Path, Path>()
  readonly #refusedIndexes = new Set<number>()
  readonly #refusedPaths = new Map<Path, FerryError>()
  /** What was found free. */
  readonly #given = new Set<Path>()
  readonly conflicts: Outcome['conflicts'] = []
  readonly refused: Plan['refused'] = []

  constructor(files: ObjectFiles, intent: IntentRecord<TreeChange>, signal: AbortSignal | undefined) {
    this.#files = files
    this.#intent = intent
    this.#signal = signal
    for (const [index, code, detail] of intent.refused) {
      const change = intent.changes[index]
      const path = change.do === 'move' ? change.to : change.path
      this.refuse(index, path, new FerryError(code as FerryError['code'], { detail }))
    }
  }

  /** Where a path of the batch really is. */
  where(path: Path): Path {
    if (this.#elsewhere.size === 0) return path
    for (const one of [path, ...above(path)]) {
      const moved = this.#elsewhere.get(one)
      if (moved !== undefined) return moved + path.slice(one.length)
    }
    return path
  }

  settle(path: Path, keptAs: Path): void {
    this.#elsewhere.set(path, keptAs)
    this.conflicts.push({ path, keptAs })
  }

  /** The first name that is not taken, or that an earlier attempt has taken for this very line. */
  async free({ path, otherwise, index }: { path: Path; otherwise: Path; index?: number }): Promise<Path> {
    const wanted = this.where(otherwise)
    for (let count = 1; count <= NAMES_MAX; count++) {
      const name = fitting(count === 1 ? wanted : `${wanted}-${count}`, path, NAME_BYTES_MAX)
      if (this.#given.has(name)) continue
      this.#given.add(name)
      const found = await this.#files.find(name, this.#signal)
      const head = found && (found.kind === 'file' ? found.head : found.marker)
      if (!found || (index !== undefined && head && isOurs(head, this.#intent, index))) return name
    }
    throw new FerryError('UNSUPPORTED', { detail: `no name is free for ${path}` })
  }

  refuse(index: number, path: Path, error: FerryError): void {
    this.#refusedIndexes.add(index)
    this.#refusedPaths.set(path, error)
    this.refused.push([index, path, error.code, error.message])
  }

  hasRefused(index: number): boolean {
    return this.#refusedIndexes.has(index)
  }

  /** Refuses a line if what it lies in was refused. */
  isRefused(index: number, path: Path): boolean {
    if (this.#refusedIndexes.has(index)) return true
    for (const one of above(path)) {
      const error = this.#refusedPaths.get(one)
      if (!error) continue
      this.refuse(index, path, error)
      return true
    }
    return false
  }
}
