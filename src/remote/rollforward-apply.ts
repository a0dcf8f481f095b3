// A committed batch of a tree becomes true, step by step. Every step can be done again: whoever comes after a crash, at whatever
// point, calls this with the same intent and the same stage directory, and ends where we would have.
//
// 1. take in: what goes is renamed into the stage, what is new is made there. Then a mark, if the batch needs one.
// 2. place: what waits in the stage is renamed to its name, parents first. What is not in the stage any more is placed.
// 3. in place: pages, sizes, attributes. Files are reached by a link in the stage, so that a former holder cannot.
// 4. all of it is synced. What is left in the stage goes when the batch is known to be done.
import { constants } from 'node:fs'
import { inParallel } from '../base/async.js'
import { FerryError, isFerryError, isPermanent } from '../base/errors.js'
import type { Outcome } from './commits.js'
import type { IntentRecord } from './intent.js'
import { copyFile, patchFile, type Step, writeContent } from './rollforward-content.js'
import { Placement } from './rollforward-place.js'
import {
  type AttributesOf,
  above,
  type Gather,
  goneName,
  type Link,
  ownName,
  type Patch,
  type Place,
  type Plan,
  planOf,
  stagedName,
} from './rollforward-plan.js'
import { bareNode, isDirectory, isFile, orIf, type Stage } from './rollforward-stage.js'
import {
  type Attributes,
  type Content,
  type Entry,
  isAsGiven,
  type Path,
  type Tree,
  type TreeChange,
  type Version,
  type Xattrs,
} from './tree.js'

const { S_IFREG } = constants

export interface ApplyOptions {
  tree: Tree
  stage: Stage
  intent: IntentRecord<TreeChange>
  /** Before each step that changes something: LEASE_LOST if that is no longer ours to do. */
  guard: (signal?: AbortSignal) => Promise<void>
  /** Steps under way at once. */
  parallel: number
  /** A file's attributes are about to be changed, and with them maybe its version, which is this so far. */
  onAlter?: (path: Path, version: Version) => void
  /**
   * Lines that gave attributes to the version of a file that they were meant for, and the version that it has by that. Kept from one
   * attempt at an intent to the next: who tries again finds what the one before left.
   */
  altered: Map<number, Version | null>
  signal?: AbortSignal
}

/** The name of the mark after which nothing is taken in any more. */
export const readyName = (batch: number) => ownName(batch, 'ready')
/** The mark after which files may have been changed in place. */
export const begunName = (batch: number) => ownName(batch, 'begun')

/** The link through which a file is changed in place. */
export const patchName = (batch: number, index: number) => ownName(batch, `patch-${index}`)

/** What had to be left out when things were taken in. */
export interface Ready {
  refused: [index: number, path: Path, code: FerryError['code'], detail: string][]
  kept: Path[]
  /** Times of directories that the batch does not tell. */
  times: [Path, mtimeNs: bigint][]
}

/** Of one thing, within one attempt at all of them. */
const TRIES_MAX = 16

/** Patches that are not done in place. */
interface Begun {
  missing: number[]
  conflicts: number[]
}

export const applyTree = (options: ApplyOptions): Promise<Outcome> => new Application(options).run()

class Application {
  readonly #tree: Tree
  readonly #stage: Stage
  readonly #batch: number
  readonly #changes: TreeChange[]
  readonly #plan: Plan
  readonly #places: Placement
  readonly #options: ApplyOptions
  readonly #signal: AbortSignal | undefined
  #kept: Path[] = []
  #times: Ready['times'] = []
  /** Names that were changed, or things in them. */
  readonly #touched = new Set<Path>()

  constructor(options: ApplyOptions) {
    const { tree, stage, intent, signal } = options
    this.#options = options
    this.#tree = tree
    this.#stage = stage
    this.#batch = intent.batch
    this.#changes = intent.changes
    this.#signal = signal
    this.#plan = planOf(intent.batch, intent.changes)
    const former = new Set(intent.changes.flatMap(change => (change.do === 'move' ? [change.from] : [])))
    this.#places = new Placement(stage, intent.batch, former)
    for (const [index, code, detail] of intent.refused)
      this.#places.refuse(index, nameOf(intent.changes[index]), new FerryError(code as FerryError['code'], { detail }))
  }

  async run(): Promise<Outcome> {
    const { places, links, attributes } = this.#plan
    await this.#takeIn()
    for (const group of places) await this.#each(group, one => this.#again(one.staged, () => this.#place(one)))
    await this.#each(links, one => this.#link(one))
    await this.#patchAll()
    const directories: AttributesOf[] = []
    await this.#each(attributes, async one => {
      if (await this.#setAttributesUnlessDirectory(one)) directories.push(one)
    })
    // Last, since every name that came or went has changed them.
    await this.#each(this.#madeDirectories(), ({ path, attributes: wanted }) => this.#setDirectory(path, wanted))
    await this.#each(this.#times, ([path, mtimeNs]) => this.#setDirectory(this.#places.where(path), { mtimeNs }))
    await this.#each(directories, ({ change }) =>
      this.#setDirectory(this.#places.where(change.path), change.attributes, change.xattrs),
    )
    await this.#tree.sync([...this.#touched], this.#signal)
    return {
      versions: await this.#versions(),
      conflicts: [...this.#kept.map(path => ({ path, keptAs: path })), ...this.#places.conflicts],
      refused: [...this.#places.refused.values()],
    }
  }

  readonly #step: Step = async work => {
    await this.#options.guard(this.#signal)
    await work()
  }

  #each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
    return inParallel(items, this.#options.parallel, work)
  }

  /**
   * One thing, done again when the remote did not answer: a long batch over an unreliable line would never be through if each
   * failure began all of it anew. `staged` is its name in the stage, by which it knows how far it came.
   */
  async #again(staged: string, work: () => Promise<void>): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        return await work()
      } catch (error) {
        if (!isFerryError(error, 'UNREACHABLE') || tries === TRIES_MAX) throw error
        await this.#stage.look(staged, this.#signal)
      }
    }
  }

  /** Does it, or notes that it is refused for good. */
  async #orRefuse(index: number, path: Path, work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      if (!isPermanent(error)) throw error
      this.#places.refuse(index, path, error as FerryError)
    }
  }

  // --- 1. take in

  async #takeIn(): Promise<void> {
    const { gathers, places, marked } = this.#plan
    const ready = readyName(this.#batch)
    if (marked && this.#stage.has(ready)) return this.#recall(ready)
    const before = new Set(this.#places.refused.keys())
    for (const group of gathers)
      await this.#each(group, one => this.#again(goneName(this.#batch, one.index), () => this.#gather(one)))
    await this.#each(places.flat(), one => this.#again(one.staged, () => this.#prepare(one)))
    const taken = [
      ...gathers.flat().map(({ index }) => goneName(this.#batch, index)),
      ...places.flat().flatMap(({ staged, change }) => (isMadeHere(change) ? [staged] : [])),
    ].filter(name => this.#stage.has(name))
    if (!marked) {
      for (const name of taken) this.#touched.add(this.#stage.at(name))
      return
    }
    await this.#tree.sync(
      taken.map(name => this.#stage.at(name)),
      this.#signal,
    )
    const refused = [...this.#places.refused].filter(([index]) => !before.has(index))
    await this.#each(this.#plan.untold, path => this.#noteTimes(path))
    if (refused.length === 0 && this.#kept.length === 0 && this.#times.length === 0)
      await this.#step(() => this.#stage.make(ready, bareNode(S_IFREG), this.#signal))
    else {
      const note: Ready = {
        refused: refused.map(([index, { path, code, detail }]) => [index, path, code as FerryError['code'], detail]),
        kept: this.#kept,
        times: this.#times,
      }
      await this.#step(() => this.#stage.note(ready, note, this.#signal))
    }
    await this.#tree.sync([this.#stage.at(ready)], this.#signal)
  }

  async #recall(ready: string): Promise<void> {
    const note = await this.#stage.readNote<Ready>(ready, this.#signal)
    this.#kept = note?.kept ?? []
    this.#times = note?.times ?? []
    for (const [index, path, code, detail] of note?.refused ?? [])
      this.#places.refuse(index, path, new FerryError(code, { detail }))
  }

  /** Where it is when all is taken in and nothing placed. */
  async #noteTimes(path: Path): Promise<void> {
    const moves = this.#plan.places.flat().filter(({ change }) => change.do === 'move')
    const moved = new Map(moves.map(({ path: to, staged }) => [to, staged]))
    const prefix = [path, ...above(path)].find(one => moved.has(one))
    const at = prefix === undefined ? path : this.#stage.at(moved.get(prefix)! + path.slice(prefix.length))
    const there = await this.#tree.stat(at, this.#signal)
    if (there && isDirectory(there)) this.#times.push([path, there.mtimeNs])
  }

  async #gather({ index, change, path }: Gather): Promise<void> {
    if (this.#stage.has(goneName(this.#batch, index)) || this.#places.refused.has(index)) return
    try {
      await this.#gatherFrom({ index, change, path })
    } catch (error) {
      if (!isPermanent(error)) throw error
      if (change.do === 'move') this.#places.refuse(index, change.to, error as FerryError)
      else this.#places.refuseAlone(index, path, error as FerryError)
    }
  }

  async #gatherFrom({ index, change, path }: Gather): Promise<void> {
    const there = await this.#tree.stat(path, this.#signal)
    if (!there) {
      if (change.do === 'move')
        this.#places.refuse(index, change.to, new FerryError('NOT_FOUND', { detail: 'somebody removed it' }))
      return
    }
    if (change.do === 'remove' && (await this.#isTheirs(path, there, change.expect))) {
      this.#kept.push(path)
      return
    }
    await this.#step(() => this.#stage.gather(path, goneName(this.#batch, index), this.#signal))
  }

  /** Somebody else's newer version, or a directory with something of theirs in it. */
  async #isTheirs(path: Path, there: Entry, expect: string | undefined): Promise<boolean> {
    if (!isDirectory(there)) return expect !== undefined && there.version !== expect
    const page = await this.#tree.list(path, undefined, this.#signal).catch(orIf(null, 'NOT_FOUND'))
    return page !== null && page.entries.length > 0
  }

  /** What is new is made in the stage, complete, so that it appears at its name as a whole. */
  async #prepare({ index, change, staged }: Place): Promise<void> {
    if (!isMadeHere(change) || this.#places.refused.has(index)) return
    const stage = this.#stage
    if (stage.has(staged)) await this.#step(() => stage.remove(staged, this.#signal))
    await this.#orRefuse(index, change.path, async () => {
      if (change.do === 'make') {
        const { node } = change
        await this.#step(() => stage.make(staged, { ...node, mode: openMode(node.mode) }, this.#signal))
        await this.#setXattrs(stage.at(staged), change.xattrs)
      } else {
        await this.#step(() => stage.make(staged, bareNode(S_IFREG), this.#signal))
        await this.#fill(stage.at(staged), change)
      }
    })
  }

  async #fill(target: Path, change: Extract<TreeChange, { do: 'put' }>): Promise<void> {
    await writeContent(this.#tree, target, change.content, target, this.#step, this.#signal)
    await this.#step(() => finishPut(this.#tree, target, change, this.#signal))
  }

  // --- 2. place

  async #place({ index, change, path, staged }: Place): Promise<void> {
    const stage = this.#stage
    if (this.#places.isRefused(index, path)) {
      if (change.do === 'move') await this.#putBack(index, change, staged)
      return
    }
    if (!stage.has(staged)) {
      // An earlier attempt has placed it.
      await this.#places.recall(index, path, this.#signal)
      this.#touched.add(this.#places.where(path))
      return
    }
    try {
      await this.#placeAt({ index, change, path, staged })
      this.#touched.add(this.#places.where(path))
    } catch (error) {
      if (!isPermanent(error)) throw error
      this.#places.refuse(index, path, error as FerryError)
      if (change.do === 'move') await this.#putBack(index, change, staged)
    }
  }

  async #placeAt({ index, change, path, staged }: Place): Promise<void> {
    const stage = this.#stage
    const target = this.#places.where(path)
    const there = await this.#tree.stat(target, this.#signal)
    if (there && change.do === 'make' && isDirectory(there) && isDirectory(change.node)) {
      // Theirs will do as well: what comes below it comes into theirs.
      await this.#step(() => stage.note(this.#mergedName(index), null, this.#signal))
      await this.#step(() => stage.remove(staged, this.#signal))
      return
    }
    if (there && !mayReplace(change, there)) return this.#placeElsewhere(index, path, staged, change.otherwise)
    try {
      if (there && change.do === 'put' && !change.xattrs) await this.#inheritXattrs(target, stage.at(staged))
      await this.#step(() => stage.place(staged, target, this.#signal))
    } catch (error) {
      if (isFerryError(error, 'EXISTS', 'NOT_EMPTY', 'IS_DIRECTORY')) {
        await this.#placeElsewhere(index, path, staged, change.otherwise)
      } else if (isFerryError(error, 'NOT_FOUND', 'NOT_DIRECTORY')) {
        await this.#placeAnyway(index, path, staged, change.otherwise, error)
      } else throw error
    }
  }

  /** Something on the way is missing: the stage, if we were overtaken; a directory that somebody removed, which is made again. */
  async #placeAnyway(index: number, path: Path, staged: string, otherwise: Path, error: FerryError): Promise<void> {
    if ((await this.#tree.stat(this.#stage.at(staged), this.#signal)) === null) throw error
    const target = this.#places.where(path)
    await this.#step(() => this.#places.makeAbove(target, this.#signal)).catch(orIf(undefined, 'NOT_DIRECTORY'))
    try {
      await this.#step(() => this.#stage.place(staged, target, this.#signal))
    } catch (again) {
      if (!isFerryError(again, 'NOT_FOUND', 'NOT_DIRECTORY')) throw again
      await this.#placeElsewhere(index, path, staged, otherwise)
    }
  }

  async #placeElsewhere(index: number, path: Path, staged: string, ...names: Path[]): Promise<void> {
    await this.#step(() => this.#places.elsewhere(index, path, staged, names, this.#signal))
  }

  /** What was moved and cannot be placed is kept where it can be. */
  async #putBack(index: number, change: Extract<TreeChange, { do: 'move' }>, staged: string): Promise<void> {
    if (this.#stage.has(staged)) await this.#placeElsewhere(index, change.to, staged, change.from, change.otherwise)
    else await this.#places.recall(index, change.to, this.#signal)
  }

  async #inheritXattrs(source: Path, target: Path): Promise<void> {
    if (this.#tree.capabilities.xattrBytesMax === 0) return
    const xattrs = await this.#tree.xattrs(source, this.#signal)
    if (xattrs.size > 0) await this.#setXattrs(target, xattrs)
  }

  async #link({ index, change }: Link): Promise<void> {
    const { path, target } = change
    if (this.#places.isRefused(index, path, target)) return
    await this.#orRefuse(index, path, () => this.#linkAt({ index, change }))
    if (!this.#places.refused.has(index)) this.#touched.add(this.#places.where(path))
  }

  async #linkAt({ index, change: { path, target } }: Link): Promise<void> {
    const [source, name] = [this.#places.where(target), this.#places.where(path)]
    const [file, there] = await Promise.all([
      this.#tree.stat(source, this.#signal),
      this.#tree.stat(name, this.#signal),
    ])
    if (!file) return this.#places.refuse(index, path, new FerryError('NOT_FOUND', { detail: `no file at ${target}` }))
    if (there?.id !== undefined && there.id === file.id) return
    if (there && !this.#wasTheSame(target, there)) return this.#places.conflict(path, source)
    const staged = ownName(this.#batch, `link-${index}`)
    if (this.#stage.has(staged)) await this.#step(() => this.#stage.remove(staged, this.#signal))
    await this.#step(() => this.#stage.link(source, staged, this.#signal))
    await this.#step(() => this.#stage.place(staged, name, this.#signal))
  }

  /** Before a whole new file came at `target`, this was another name of what was there: it follows. */
  #wasTheSame(target: Path, there: Entry): boolean {
    const { places } = this.#plan
    return places
      .flat()
      .some(({ change, path }) => path === target && change.do === 'put' && change.expect === there.version)
  }

  // --- 3. in place

  async #patchAll(): Promise<void> {
    const patches = this.#plan.patches.filter(({ index, change }) => !this.#places.isRefused(index, change.path))
    if (patches.length === 0) return
    const begun = await this.#begin(patches)
    const [missing, conflicts] = [new Set(begun.missing), new Set(begun.conflicts)]
    await this.#each(patches, async one => {
      const { index, change } = one
      if (this.#places.refused.has(index)) return
      if (missing.has(index)) return this.#refuseGone(one)
      await this.#orRefuse(index, change.path, () => (conflicts.has(index) ? this.#patchAside(one) : this.#patch(one)))
      if (!this.#places.refused.has(index)) this.#touched.add(this.#places.where(change.path))
    })
  }

  /** Looks once, before anything is changed in place, whether the files are those that were changed; from then on we know. */
  async #begin(patches: Patch[]): Promise<Begun> {
    const stage = this.#stage
    const note = begunName(this.#batch)
    if (stage.has(note)) return (await stage.readNote<Begun>(note, this.#signal)) ?? { missing: [], conflicts: [] }
    const begun: Begun = { missing: [], conflicts: [] }
    await this.#each(patches, async ({ index, change }) => {
      const path = this.#places.where(change.path)
      await this.#orRefuse(index, change.path, async () => {
        let there = await this.#tree.stat(path, this.#signal)
        if (there && isFile(there) && (await this.#reach(path, this.#patchName(index))))
          there = await this.#tree.stat(stage.at(this.#patchName(index)), this.#signal)
        if (!there || !isFile(there)) begun.missing.push(index)
        else if (change.expect !== undefined && there.version !== change.expect) begun.conflicts.push(index)
      })
    })
    await this.#step(() =>
      begun.missing.length || begun.conflicts.length
        ? stage.note(note, begun, this.#signal)
        : stage.make(note, bareNode(S_IFREG), this.#signal),
    )
    await this.#tree.sync([stage.at(note)], this.#signal)
    return begun
  }

  /** A link in the stage to what is there now; false if the remote has none. */
  async #reach(path: Path, name: string): Promise<boolean> {
    const stage = this.#stage
    if (!this.#tree.capabilities.hardLinks) return false
    if (stage.has(name)) await this.#step(() => stage.remove(name, this.#signal))
    try {
      await this.#step(() => stage.link(path, name, this.#signal))
      return true
    } catch (error) {
      if (isPermanent(error)) return false
      throw error
    }
  }

  async #patch({ index, change }: Patch): Promise<void> {
    const stage = this.#stage
    if (await this.#places.recall(index, change.path, this.#signal)) return
    const name = this.#patchName(index)
    const path = this.#places.where(change.path)
    const target = stage.has(name) ? stage.at(name) : stage.through(path)
    const file = await this.#tree.stat(target, this.#signal)
    if (!file) throw new FerryError('NOT_FOUND', { detail: target })
    await this.#patchInto(target, change, file.size)
    if (!stage.has(name)) return
    // Did somebody put another file there meanwhile? Then ours, complete, goes beside it.
    const there = await this.#tree.stat(path, this.#signal)
    if (there?.id === file.id) return
    await this.#placeElsewhere(index, change.path, name, ...(there ? [] : [change.path]), change.otherwise)
  }

  async #patchInto(target: Path, change: Extract<TreeChange, { do: 'patch' }>, sizeNow: number): Promise<void> {
    const staged = this.#stagedContent(change.content)
    await patchFile(this.#tree, target, change, sizeNow, staged, this.#step, this.#signal)
    await this.#setXattrs(target, change.xattrs)
    await this.#step(() => this.#tree.setAttributes(target, change.attributes, this.#signal))
  }

  /** Theirs has the name: ours is a copy of theirs with our pages, beside it. */
  async #patchAside({ index, change }: Patch): Promise<void> {
    const stage = this.#stage
    const aside = ownName(this.#batch, `aside-${index}`)
    const fresh = `${aside}.new`
    if (!stage.has(aside)) {
      if (await this.#places.recall(index, change.path, this.#signal)) return
      const theirs = stage.has(this.#patchName(index))
        ? stage.at(this.#patchName(index))
        : this.#places.where(change.path)
      const file = await this.#tree.stat(theirs, this.#signal)
      if (!file || !isFile(file)) return this.#refuseGone({ index, change })
      if (stage.has(fresh)) await this.#step(() => stage.remove(fresh, this.#signal))
      await this.#step(() => stage.make(fresh, bareNode(S_IFREG), this.#signal))
      await copyFile(this.#tree, theirs, stage.at(fresh), file.size, this.#step, this.#signal)
      if (!change.xattrs) await this.#inheritXattrs(theirs, stage.at(fresh))
      await this.#patchInto(stage.at(fresh), change, file.size)
      await this.#tree.sync([stage.at(fresh)], this.#signal)
      await this.#step(() => stage.rename(fresh, aside, this.#signal))
    }
    await this.#placeElsewhere(index, change.path, aside, change.otherwise)
  }

  #refuseGone({ index, change }: Patch): void {
    this.#places.refuse(
      index,
      change.path,
      new FerryError('NOT_FOUND', { detail: 'somebody removed the file that was changed' }),
    )
  }

  /** @returns true for a directory, whose turn comes later */
  async #setAttributesUnlessDirectory({ index, change }: AttributesOf): Promise<boolean> {
    if (this.#places.isRefused(index, change.path)) return false
    const path = this.#places.where(change.path)
    let later = false
    await this.#orRefuse(index, change.path, async () => {
      const there = await this.#tree.stat(path, this.#signal)
      later = there !== null && isDirectory(there)
      if (!there || later) return
      this.#touched.add(path)
      this.#options.onAlter?.(change.path, there.version)
      const { altered } = this.#options
      if (this.#isMeant({ index, change }, there)) altered.set(index, altered.get(index) ?? null)
      else altered.delete(index)
      const through = this.#stage.through(path)
      const name = ownName(this.#batch, `attributes-${index}`)
      const target = through === path && (await this.#reach(path, name)) ? this.#stage.at(name) : through
      await this.#setXattrs(target, change.xattrs)
      await this.#step(() => this.#tree.setAttributes(target, change.attributes, this.#signal))
      // At once, and of that very file: what the name stands for when all is done may be somebody else's.
      if (altered.has(index)) altered.set(index, (await this.#tree.stat(target, this.#signal))?.version ?? null)
    })
    return later
  }

  /** It is what the line was meant for, or what an earlier attempt of ours made of that. */
  #isMeant({ index, change }: AttributesOf, there: Entry): boolean {
    if (change.expect === undefined) return false
    if (change.expect === there.version) return true
    const before = this.#options.altered.get(index)
    return before === null ? change.attributes.mtimeNs === there.mtimeNs : before === there.version
  }

  /** Directories of this batch into which something came, or that could not have their mode while something might. */
  #madeDirectories(): { path: Path; attributes: Attributes }[] {
    const made: { path: Path; attributes: Attributes }[] = []
    for (const { index, change } of this.#plan.places.flat())
      if (
        change.do === 'make' &&
        isDirectory(change.node) &&
        !this.#places.refused.has(index) &&
        !this.#stage.has(this.#mergedName(index))
      )
        made.push({ path: this.#places.where(change.path), attributes: change.node })
    return made
  }

  async #setDirectory(path: Path, wanted: Partial<Attributes>, xattrs?: Xattrs): Promise<void> {
    const { mode, uid, gid, atimeNs, mtimeNs } = wanted
    this.#touched.add(path)
    const target = this.#stage.through(path)
    try {
      await this.#setXattrs(target, xattrs)
      await this.#step(() => this.#tree.setAttributes(target, { mode, uid, gid, atimeNs, mtimeNs }, this.#signal))
    } catch (error) {
      // Somebody removed it since; or it cannot have them, which is no reason to lose what is in it.
      if (!isFerryError(error, 'NOT_FOUND') && !isPermanent(error)) throw error
      if (isFerryError(error, 'NOT_FOUND') && (await this.#tree.stat(path, this.#signal)) !== null) throw error
    }
  }

  async #setXattrs(path: Path, xattrs: Xattrs | undefined): Promise<void> {
    if (xattrs && this.#tree.capabilities.xattrBytesMax > 0)
      await this.#step(() => this.#tree.setXattrs(path, xattrs, this.#signal))
  }

  // --- 4. what came of it

  async #versions(): Promise<Outcome['versions']> {
    const versions: Outcome['versions'] = []
    const changed = this.#changes.flatMap((change, index) => {
      const has = change.do === 'put' || change.do === 'patch' || this.#options.altered.has(index)
      return has && !this.#places.refused.has(index) ? [{ index, path: nameOf(change) }] : []
    })
    await this.#each(changed, async ({ index, path }) => {
      const altered = this.#options.altered.get(index)
      const name = this.#places.where(path)
      const entry = await this.#tree.stat(name, this.#signal).catch(error => {
        if (isPermanent(error)) return null
        throw error
      })
      if (altered !== undefined) {
        if (entry && isFile(entry) && altered === entry.version) versions.push([name, altered])
        return
      }
      // Somebody may have put another one there since: none that we know.
      const { size, attributes } = this.#changes[index] as Extract<TreeChange, { do: 'put' | 'patch' }>
      versions.push([
        name,
        entry && isFile(entry) && isAsGiven(entry, { size, mtimeNs: attributes.mtimeNs }) ? entry.version : '',
      ])
    })
    return versions
  }

  #stagedContent(content: Content): Path {
    return 'staged' in content ? this.#stage.at(stagedName(this.#batch, content.staged)) : ''
  }

  #patchName(index: number) {
    return patchName(this.#batch, index)
  }

  #mergedName(index: number) {
    return ownName(this.#batch, `merged-${index}`)
  }
}

/** The name that a change is reported under. */
const nameOf = (change: TreeChange): Path => (change.do === 'move' ? change.to : change.path)

const isMadeHere = (change: TreeChange): change is Extract<TreeChange, { do: 'make' | 'put' }> =>
  change.do === 'make' || (change.do === 'put' && 'inline' in change.content)

/** Others must be able to come into a new directory before it gets its own mode. */
const openMode = (mode: number) => (isDirectory({ mode }) ? mode | 0o700 : mode)

/** Whether what is there at the name of a thing that comes is what it was meant to replace. */
const mayReplace = (change: Place['change'], there: Entry): boolean =>
  change.do === 'put' && !isDirectory(there) && (change.expect === undefined || change.expect === there.version)

/** A staged file whose bytes are all there gets its size and attributes. */
export async function finishPut(
  tree: Tree,
  staged: Path,
  { size, attributes, xattrs }: Extract<TreeChange, { do: 'put' }>,
  signal?: AbortSignal,
): Promise<void> {
  await tree.truncate(staged, size, signal)
  if (xattrs && tree.capabilities.xattrBytesMax > 0) await tree.setXattrs(staged, xattrs, signal)
  const { mode, uid, gid, atimeNs, mtimeNs } = attributes
  await tree.setAttributes(staged, { mode, uid, gid, atimeNs, mtimeNs }, signal)
}

/** What is left of batches up to this one in the stage goes; a directory in which somebody put something since comes back. */
export async function clearStage(
  stage: Stage,
  { batch, changes }: IntentRecord<TreeChange>,
  signal?: AbortSignal,
): Promise<void> {
  for (const name of [...stage.names]) {
    const number = Number(/^(\d+)[-.]/.exec(name)?.[1] ?? Number.POSITIVE_INFINITY)
    if (number > batch) continue
    try {
      await stage.remove(name, signal)
    } catch (error) {
      if (!isFerryError(error, 'NOT_EMPTY')) throw error
      const change = changes.find((one, index) => one.do === 'remove' && goneName(batch, index) === name)
      if (change?.do !== 'remove') continue
      if ((await stage.tree.stat(change.path, signal)) === null) await stage.place(name, change.path, signal)
    }
  }
}
