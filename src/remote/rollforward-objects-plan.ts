// What a batch means for the objects of a bucket: looked at once, before anything is changed, so that from then on it is only done,
// or done again. Objects come first and go last: until all that comes is there, all that goes is there as well, and what would come
// at the name of something that is still to be copied has it held in the stage first.
import { constants } from 'node:fs'
import { inParallel } from '../base/async.js'
import { FerryError, isPermanent } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import { tagOf } from './object-attributes.js'
import type { Known, ObjectFiles } from './object-files.js'
import { checkKey, directoryKey, keyOf, nameOf, prefixOf } from './object-keys.js'
import type { Key, ObjectEntry } from './objects.js'
import { joinPath, parentPath } from './path.js'
import type { Line, Lines, Of } from './rollforward-objects-lines.js'
import {
  isOurs,
  keyOfTarget,
  type Leaver,
  type Member,
  type Plan,
  pathOf,
  type Source,
  type Subtree,
  sourceOf,
  type Target,
} from './rollforward-objects-model.js'
import { Names } from './rollforward-objects-names.js'
import { byDepth } from './rollforward-plan.js'
import { isDirectory } from './rollforward-stage.js'
import type { Path, TreeChange } from './tree.js'

const { S_IFMT, S_IFREG, S_IFLNK } = constants

export interface PlanOptions {
  files: ObjectFiles
  intent: IntentRecord<TreeChange>
  lines: Lines
  parallel: number
  /** From then on nobody else has written batches. */
  heldSince: number
  /** Nobody has begun to apply it: nothing of it is there. */
  first: boolean
  /** Puts a list of members into the stage. @returns its name */
  putChunk: (members: Member[]) => Promise<string>
  signal?: AbortSignal
}

type NewTarget = Partial<Target> & Pick<Target, 'index' | 'path' | 'directory' | 'otherwise'>

/** Of members in one list. */
const CHUNK_MEMBERS = 5_000

export const planObjects = (options: PlanOptions): Promise<Plan> => new Planner(options).run()

class Planner {
  readonly #options: PlanOptions
  readonly #files: ObjectFiles
  readonly #lines: Lines
  readonly #signal: AbortSignal | undefined
  readonly #plan: Plan = { targets: [], subtrees: [], leavers: [], markers: [], conflicts: [], refused: [] }
  /** Committed names that were to go, but have something of somebody else. */
  readonly #kept = new Set<Path>()
  readonly #names: Names
  #held = 0

  constructor(options: PlanOptions) {
    this.#options = options
    this.#files = options.files
    this.#lines = options.lines
    this.#signal = options.signal
    this.#names = new Names(options.files, options.intent, options.signal)
  }

  async run(): Promise<Plan> {
    const { goes, news, moves, alters } = this.#lines
    const removes = [...goes].flatMap(([path, { index, change }]) =>
      change.do === 'remove' ? [{ path, index, change }] : [],
    )
    for (const group of byDepth(removes, -1)) await this.#each(group, one => this.#remove(one))
    const coming = [...new Set([...news.keys(), ...moves.keys()])].map(path => ({ path }))
    for (const group of byDepth(coming, 1)) await this.#each(group, ({ path }) => this.#come(path))
    await this.#each([...alters.values()], line => this.#alter(line))
    this.#keepDirectories()
    const taken = new Set(this.#plan.targets.map(keyOfTarget))
    this.#plan.leavers = this.#plan.leavers.filter(({ key }) => !taken.has(key))
    this.#plan.conflicts.push(...this.#names.conflicts)
    this.#plan.refused = this.#names.refused
    return this.#plan
  }

  #each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
    return inParallel(items, this.#options.parallel, work)
  }

  // --- what goes

  async #remove({ path, change }: { path: Path; change: Of<'remove'> }): Promise<void> {
    const known = this.#options.first && change.expect !== undefined ? this.#known(path, change.expect) : undefined
    const [file, marker] = await Promise.all([
      known ?? this.#files.head(keyOf(path), this.#signal),
      change.expect === undefined ? this.#files.head(directoryKey(path), this.#signal) : null,
    ])
    const old = (head: Known | null) => head !== null && !this.#isOurs(head)
    const both = old(file) && old(marker)
    if (both ? (await this.#files.find(path, this.#signal))?.kind === 'file' : old(file)) {
      if (change.expect !== undefined && change.expect !== file!.etag) this.#keep(path)
      else this.#leave(file!, path)
      return
    }
    if (change.expect !== undefined) return
    if (await this.#hasOthers(path)) this.#keep(path)
    else if (old(marker)) this.#leave(marker!, path)
  }

  /** Something is in this directory that neither goes nor comes with the batch. */
  async #hasOthers(path: Path): Promise<boolean> {
    const prefix = prefixOf(path)
    for (let cursor: string | undefined; ; ) {
      const page = await this.#files.objects.list({ prefix, delimiter: '/', cursor }, this.#signal)
      const keys = [...page.objects.map(({ key }) => key), ...page.prefixes.map(key => key.slice(0, -1))]
      for (const key of keys) {
        if (key === prefix) continue
        const name = nameOf(key.slice(prefix.length))
        const child = name === null ? null : joinPath(path, name)
        if (child === null || !((this.#lines.goes.has(child) && !this.#kept.has(child)) || this.#lines.comes(child)))
          return true
      }
      cursor = page.cursor
      if (cursor === undefined) return false
    }
  }

  #keep(path: Path): void {
    this.#kept.add(path)
    this.#plan.conflicts.push({ path, keptAs: path })
  }

  #leave({ key, etag }: ObjectEntry, path: Path): void {
    this.#plan.leavers.push({ key, etag, path })
  }

  /** What has this name now, in a directory of the state before the batch, goes with it. */
  #isLeaving(path: Path): boolean {
    const line = this.#lines.goneBy(path)
    if (!line || this.#names.hasRefused(line.index)) return false
    return line.change.do === 'move' || (this.#lines.goes.has(path) && !this.#kept.has(path))
  }

  // --- what comes

  async #come(path: Path): Promise<void> {
    const { news, moves, alters } = this.#lines
    const line = news.get(path)
    const move = moves.get(path)
    try {
      for (const one of [line, move]) if (one && this.#names.isRefused(one.index, path)) return
      checkKey(path, this.#files.objects.capabilities.keyBytesMax)
      if (move) await this.#move(move, line ?? alters.get(path))
      else if (line && line.change.do === 'make' && isDirectory(line.change.node))
        await this.#makeDirectory(line as Line<Of<'make'>>)
      else if (line) await this.#makeFile(line)
    } catch (error) {
      if (!isPermanent(error)) throw error
      this.#names.refuse((line ?? move)!.index, path, error as FerryError)
    }
  }

  async #makeDirectory({ index, change }: Line<Of<'make'>>): Promise<void> {
    const path = this.#names.where(change.path)
    const file = await this.#files.head(keyOf(path), this.#signal)
    if (file && !this.#isOurs(file) && !this.#isLeaving(path)) {
      await this.#placeElsewhere({ index, path: change.path, directory: true, otherwise: change.otherwise }, null)
      return
    }
    const marker = this.#lines.goneBy(path) ? await this.#files.head(directoryKey(path), this.#signal) : null
    const ours = this.#isOurs(marker)
    this.#target({
      ...{ index, path, directory: true, otherwise: change.otherwise },
      ...{
        replaces: marker && !ours && this.#isLeaving(path) ? marker.etag : null,
        placed: ours ? marker!.etag : null,
      },
    })
  }

  async #makeFile({ index, change }: Line<Of<'make'> | Of<'put'>>): Promise<void> {
    if (change.do === 'make' && ![S_IFREG, S_IFLNK].includes(change.node.mode & S_IFMT))
      throw new FerryError('UNSUPPORTED', { detail: 'special files' })
    const path = this.#names.where(change.path)
    const { otherwise } = change
    const target = { index, path, directory: false, otherwise }
    if (this.#kept.has(change.path)) return this.#placeElsewhere({ ...target, path: change.path }, null)
    const before = change.do === 'make' || change.expect === null ? null : this.#lines.replacedBy(change.path)
    if (change.do === 'put' && before !== null) return this.#putOver({ index, change }, target, before)
    // What is new is put if nothing is there, without a look.
    if (!this.#lines.goneBy(path)) return this.#target(target)
    const there = await this.#files.head(keyOf(path), this.#signal)
    if (this.#isOurs(there)) return this.#target({ ...target, placed: there!.etag })
    if (there && !this.#isLeaving(path)) return this.#placeElsewhere({ ...target, path: change.path }, null)
    this.#target({ ...target, replaces: there?.etag ?? null })
  }

  /** A file takes the place of the one that was `committed` before the batch, whose metadata it takes on. */
  async #putOver({ change }: Line<Of<'put'>>, target: NewTarget, committed: Path): Promise<void> {
    const { path } = target
    const there = await this.#expected(path, change.expect ?? undefined)
    if (this.#isOurs(there)) return this.#target({ ...target, placed: there!.etag })
    const moves = path !== committed
    const head = moves ? await this.#files.head(keyOf(committed), this.#signal) : there
    if (head && change.expect !== undefined && change.expect !== head.etag) {
      if (moves) this.#moveTheirs(head, path, there)
      return this.#placeElsewhere({ ...target, path: change.path }, null)
    }
    const found = head || there ? null : await this.#files.find(path, this.#signal)
    if (found?.kind === 'directory' && !this.#isLeaving(path))
      return this.#placeElsewhere({ ...target, path: change.path }, null)
    const source = head && (moves ? this.#sourceOf(head, committed) : sourceOf(head))
    this.#target({ ...target, replaces: there?.etag ?? null, source, expected: true })
  }

  /** What somebody else has changed, in a directory that moves, moves with it, though it has a line of ours. */
  #moveTheirs(head: Known, path: Path, there: Known | null): void {
    const committed = pathOf(head.key)
    const { index } = this.#lines.goneBy(committed)!
    const target = { index, path, directory: false, otherwise: path, replaces: there?.etag ?? null }
    this.#target({ ...target, source: this.#sourceOf(head, committed) })
  }

  async #move({ index, change }: Line<Of<'move'>>, over: Line | undefined): Promise<void> {
    const found = await this.#files.find(change.from, this.#signal)
    if (!found)
      return this.#names.refuse(index, change.to, new FerryError('NOT_FOUND', { detail: 'somebody removed it' }))
    if (found.kind === 'directory') return this.#moveDirectory({ index, change })
    const path = this.#names.where(change.to)
    const target = { index, path, directory: false, otherwise: change.otherwise }
    const [there, marker] = await Promise.all([
      this.#files.head(keyOf(path), this.#signal),
      this.#files.head(directoryKey(path), this.#signal),
    ])
    const source = this.#sourceOf(found.head, change.from)
    this.#leave(found.head, change.from)
    const { expect } = (over?.change ?? {}) as { expect?: string | null }
    const isTheirs = over && over.change.do !== 'attributes' && expect !== undefined && expect !== source.etag
    if ((there || marker) && !this.#isLeaving(path)) {
      // Neither theirs, which moves with it, nor ours has the name.
      if (isTheirs) await this.#targetElsewhere({ ...target, path: change.to }, source)
      return this.#placeElsewhere({ ...target, index: over?.index ?? index, path: change.to }, source)
    }
    const replaces = there?.etag ?? null
    if (!over) return this.#target({ ...target, replaces, source })
    if (!isTheirs)
      // Attributes of what moves are given to what came, in one step.
      return this.#target({ ...target, index: over.index, replaces, source, expected: expect === source.etag })
    // Theirs moves; ours is beside it.
    this.#target({ ...target, replaces, source })
    await this.#placeElsewhere({ ...target, index: over.index, path: change.to }, source)
  }

  async #moveDirectory({ index, change }: Line<Of<'move'>>): Promise<void> {
    const there = new Map<Key, string>()
    let path = this.#names.where(change.to)
    let taken = false
    const file = await this.#files.head(keyOf(path), this.#signal)
    if (file && !this.#isLeaving(path)) taken = true
    const prefix = prefixOf(path)
    for await (const page of this.#files.below(prefix, this.#signal))
      for (const { key, etag } of page) {
        if (this.#isLeaving(pathOf(key))) there.set(key, etag)
        else taken = true
      }
    if (taken) {
      path = await this.#names.free({ path: change.to, otherwise: change.otherwise })
      this.#names.settle(change.to, path)
    }
    const subtree: Subtree = { index, from: change.from, to: path, chunks: [] }
    const leavers: Leaver[] = []
    let chunk: Member[] = []
    const from = prefixOf(change.from)
    for await (const page of this.#files.below(from, this.#signal))
      for (const entry of page) {
        const { key, etag, size } = entry
        this.#files.confirm(entry)
        const committed = pathOf(key)
        if (this.#lines.goneBy(committed)?.index !== index) continue
        const rest = key.slice(from.length)
        const after = change.to + committed.slice(change.from.length)
        // What has a line of its own looks for what it is made of by itself; here it only goes.
        if (this.#lines.news.has(after) || this.#lines.alters.has(after)) {
          leavers.push({ key, etag, path: committed })
          continue
        }
        checkKey(path + committed.slice(change.from.length), this.#files.objects.capabilities.keyBytesMax)
        const replaces = taken ? null : (there.get(prefixOf(path) + rest) ?? null)
        chunk.push({ rest, etag, size, replaces, held: this.#holdUnlessSafe(committed) })
        if (chunk.length < CHUNK_MEMBERS) continue
        subtree.chunks.push(await this.#options.putChunk(chunk))
        chunk = []
      }
    if (chunk.length > 0) subtree.chunks.push(await this.#options.putChunk(chunk))
    this.#plan.subtrees.push(subtree)
    for (const one of leavers) this.#plan.leavers.push(one)
  }

  // --- what changes

  async #alter({ index, change }: Line<Of<'patch'> | Of<'attributes'>>): Promise<void> {
    if (this.#names.isRefused(index, change.path)) return
    // It was made one with the move that brings it.
    if (this.#lines.moves.has(change.path) && !(change.do === 'attributes' && isDirectory(change.attributes))) return
    try {
      if (change.do === 'attributes' && isDirectory(change.attributes)) await this.#alterDirectory({ index, change })
      else await this.#alterFile({ index, change })
    } catch (error) {
      if (!isPermanent(error)) throw error
      this.#names.refuse(index, change.path, error as FerryError)
    }
  }

  async #alterDirectory({ index, change }: Line<Of<'attributes'>>): Promise<void> {
    const committed = this.#lines.committedOf(change.path)
    if (committed === null) return
    const path = this.#names.where(change.path)
    const marker = await this.#files.head(directoryKey(committed), this.#signal)
    if (!marker && !(await this.#files.find(committed, this.#signal))) return
    const target = { index, path, directory: true, otherwise: path }
    if (path === committed) {
      if (this.#isOurs(marker)) return this.#target({ ...target, placed: marker!.etag })
      return this.#target({ ...target, replaces: marker?.etag ?? null, source: marker && sourceOf(marker) })
    }
    const there = await this.#files.head(directoryKey(path), this.#signal)
    const source = marker && this.#sourceOf(marker, committed)
    this.#target({ ...target, replaces: there?.etag ?? null, source })
  }

  async #alterFile({ index, change }: Line<Of<'patch'> | Of<'attributes'>>): Promise<void> {
    const committed = this.#lines.committedOf(change.path)
    const path = this.#names.where(change.path)
    const head = committed === null ? null : await this.#expected(committed, change.expect)
    const otherwise = change.do === 'patch' ? change.otherwise : path
    const target = { index, path, directory: false, otherwise }
    if (!head || committed === null) {
      const gone = new FerryError('NOT_FOUND', { detail: 'somebody removed the file that was changed' })
      if (change.do === 'patch') this.#names.refuse(index, change.path, gone)
      return
    }
    if (path === committed && this.#isOurs(head))
      return this.#target({ ...target, placed: head.etag, expected: tagOf(head.metadata)!.expected })
    const expected = change.expect === head.etag
    const source = path === committed ? sourceOf(head) : this.#sourceOf(head, committed)
    if (change.do === 'patch' && change.expect !== undefined && !expected) {
      // Theirs keeps the name, also where it moves to; ours is theirs with our pages.
      if (path !== committed) this.#moveTheirs(head, path, await this.#files.head(keyOf(path), this.#signal))
      return this.#placeElsewhere({ ...target, path: change.path }, source)
    }
    const replaces = path === committed ? head.etag : await this.#tagAt(path)
    this.#target({ ...target, replaces, source, expected })
  }

  /** Not looked at if it is known as what is expected: should it be another by now, what is made of it meets that. */
  async #expected(path: Path, expect: string | undefined): Promise<Known | null> {
    const known = expect === undefined || this.#lines.goneBy(path) ? undefined : this.#known(path, expect)
    return known ?? this.#files.head(keyOf(path), this.#signal)
  }

  #known(path: Path, expect: string): Known | undefined {
    const { files, heldSince } = this.#options
    return files.askedSince(heldSince, { key: keyOf(path), etag: expect })
  }

  async #tagAt(path: Path): Promise<string | null> {
    return (await this.#files.head(keyOf(path), this.#signal))?.etag ?? null
  }

  // --- where

  /** Something may come at its key before it is copied. */
  #holdUnlessSafe(committed: Path): string | null {
    return this.#lines.comesAt(committed) ? `held-${this.#held++}` : null
  }

  #sourceOf(head: Known, committed: Path): Source {
    return { ...sourceOf(head), held: this.#holdUnlessSafe(committed) }
  }

  #target(target: NewTarget): void {
    this.#plan.targets.push({ replaces: null, source: null, expected: false, placed: null, ...target })
  }

  async #placeElsewhere(target: NewTarget, source: Source | null): Promise<void> {
    this.#names.settle(target.path, await this.#targetElsewhere(target, source))
  }

  /** Under a free name: what somebody else's keeps its own from. @returns which */
  async #targetElsewhere({ index, path, directory, otherwise }: NewTarget, source: Source | null): Promise<Path> {
    const at = await this.#names.free({ path, otherwise, index })
    const there = await this.#files.head(keyOfTarget({ path: at, directory }), this.#signal)
    this.#target({ index, path: at, directory, otherwise, source, placed: there?.etag ?? null })
    return at
  }

  #isOurs(head: Known | null): boolean {
    return head !== null && isOurs(head, this.#options.intent)
  }

  /** A directory that was there only because of what was in it is to stay when that has gone. */
  #keepDirectories(): void {
    const told = new Set(this.#plan.targets.filter(({ directory }) => directory).map(({ path }) => path))
    const markers = new Set<Path>()
    for (const committed of this.#lines.goes.keys()) {
      const after = this.#lines.afterOf(parentPath(committed))
      if (after === null || after === '') continue
      const path = this.#names.where(after)
      if (!told.has(path)) markers.add(path)
    }
    this.#plan.markers = [...markers]
  }
}
