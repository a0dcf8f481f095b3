// Where things are while a batch is applied: what could not get its name because somebody else's thing has it, what is refused,
// and what depends on either.

import { constants } from 'node:fs'
import { type FerryError, isFerryError, isPermanent } from '../base/errors.js'
import type { Outcome } from './commits.js'
import { joinPath, lastName, parentPath } from './path.js'
import { above, ownName } from './rollforward-plan.js'
import { bareNode, LOST, makeDirectory, orIf, type Stage } from './rollforward-stage.js'
import type { Path } from './tree.js'

/** `-2`, `-3`... are tried so far. */
const NAMES_MAX = 1_000

export class Placement {
  readonly #stage: Stage
  readonly #batch: number
  readonly #elsewhere = new Map<Path, Path>()
  readonly #refusedPaths = new Map<Path, FerryError>()
  /** Committed names of what moves. */
  readonly #former: ReadonlySet<Path>
  readonly refused = new Map<number, Outcome['refused'][number]>()
  readonly conflicts: Outcome['conflicts'] = []

  constructor(stage: Stage, batch: number, former: ReadonlySet<Path>) {
    this.#stage = stage
    this.#former = former
    this.#batch = batch
  }

  /** Where a path of the batch really is. */
  where(path: Path): Path {
    if (this.#elsewhere.size === 0) return path
    const exact = this.#elsewhere.get(path)
    if (exact !== undefined) return exact
    for (const parent of above(path)) {
      const moved = this.#elsewhere.get(parent)
      if (moved !== undefined) return moved + path.slice(parent.length)
    }
    return path
  }

  /** This change cannot be made, nor what lies below `path`. */
  refuse(index: number, path: Path, error: FerryError): void {
    this.refuseAlone(index, path, error)
    this.#refusedPaths.set(path, error)
  }

  /** Only this change. */
  refuseAlone(index: number, path: Path, error: FerryError): void {
    this.refused.set(index, { path, code: error.code, detail: error.message })
  }

  /** Refuses a change if what it depends on was refused. */
  isRefused(index: number, path: Path, also: Path = path): boolean {
    if (this.refused.has(index)) return true
    if (this.#refusedPaths.size === 0) return false
    for (const one of [path, also])
      for (const parent of one === path ? above(path) : [one, ...above(one)]) {
        const error = this.#refusedPaths.get(parent)
        if (!error) continue
        this.refuse(index, path, error)
        return true
      }
    return false
  }

  conflict(path: Path, keptAs: Path): void {
    this.conflicts.push({ path, keptAs })
  }

  /** What was placed elsewhere by an earlier attempt is there. */
  async recall(index: number, path: Path, signal?: AbortSignal): Promise<boolean> {
    const note = this.#note(index)
    if (!this.#stage.has(note)) return false
    this.#settle(path, (await this.#stage.readNote<Path>(note, signal))!)
    return true
  }

  /** Places what waits at `staged` at the first free name of these; the last resort is among what is lost and found. */
  async elsewhere(index: number, path: Path, staged: string, names: Path[], signal?: AbortSignal): Promise<void> {
    const stage = this.#stage
    for (const name of [...names, null]) {
      const target =
        name === null ? await this.#lostName(index, signal) : await this.#freeName(this.where(name), path, signal)
      if (target === null) continue
      // Written down first: whoever tries again must find it.
      await stage.note(this.#note(index), target, signal)
      await stage.tree.sync([stage.at(this.#note(index))], signal)
      try {
        await stage.place(staged, target, signal)
      } catch (error) {
        if (name === null || !mayWorkElsewhere(error)) throw error
        continue
      }
      return this.#settle(path, target)
    }
  }

  /** Makes the directories above `path` that somebody removed. */
  async makeAbove(path: Path, signal?: AbortSignal): Promise<void> {
    const missing: Path[] = []
    for (const parent of above(path)) {
      if (parent === '' || (await this.#stage.tree.stat(parent, signal))) break
      missing.unshift(parent)
    }
    for (const parent of missing)
      await this.#stage.tree
        .make(parent, { ...bareNode(constants.S_IFDIR), mode: constants.S_IFDIR | 0o755 }, signal)
        .catch(orIf(undefined, 'EXISTS'))
  }

  #settle(path: Path, target: Path): void {
    this.#elsewhere.set(path, target)
    // Back where it was is no news.
    if (!this.#refusedPaths.has(path) || !this.#former.has(target)) this.conflict(path, target)
  }

  #note(index: number): string {
    return ownName(this.#batch, `at-${index}`)
  }

  async #freeName(wanted: Path, path: Path, signal?: AbortSignal): Promise<Path | null> {
    const { tree } = this.#stage
    for (let count = 1; count <= NAMES_MAX; count++) {
      const name = fitting(count === 1 ? wanted : `${wanted}-${count}`, path, tree.capabilities.nameBytesMax)
      try {
        if ((await tree.stat(name, signal)) === null) return name
      } catch (error) {
        if (isPermanent(error)) return null
        throw error
      }
    }
    return null
  }

  async #lostName(index: number, signal?: AbortSignal): Promise<Path> {
    await makeDirectory(this.#stage.tree, LOST, signal)
    const directory = this.#stage.path.slice(this.#stage.path.lastIndexOf('/') + 1)
    return `${LOST}/${directory}.${ownName(this.#batch, String(index))}`
  }
}

/** What was added to a name stays, and so much of the name as the remote can hold with it. */
export function fitting(wanted: Path, path: Path, nameBytesMax: number): Path {
  const name = lastName(wanted)
  const excess = name.length - nameBytesMax
  const own = lastName(path)
  if (excess <= 0 || !name.startsWith(own) || own.length <= excess) return wanted
  return joinPath(parentPath(wanted), own.slice(0, -excess) + name.slice(own.length))
}

/** A place cannot be had, but another may. */
const mayWorkElsewhere = (error: unknown) =>
  isPermanent(error) || isFerryError(error, 'NOT_FOUND', 'NOT_DIRECTORY', 'EXISTS', 'IS_DIRECTORY', 'NOT_EMPTY')
