// Reading a tree through a batch that is committed but not applied: whichever of its steps are done already, the tree looks as it
// will when all are. What the batch brings is described by the intent; only bytes, and what it moves, must be found.
//
// A thing that moves is at its committed name, then in the stage, then at its new name, and never goes back: looking in that
// order finds it, however far another process gets meanwhile. Only the mark says whether a committed name still means what it meant.
import { constants } from 'node:fs'
import { mapLimit } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import { type Ready, readyName } from './rollforward-apply.js'
import { readWhole } from './rollforward-content.js'
import { above, goneName, ownName, stagedName, untoldBy, waitsAt } from './rollforward-plan.js'
import { attributesOf, findStage, isDirectory, unpackNote } from './rollforward-stage.js'
import { Passed, type StillPending } from './rollforward-view.js'
import { overlay } from './through-bytes.js'
import type { Entry, NewNode, Path, Tree, TreeChange, Version, Xattrs } from './tree.js'

const { S_IFREG } = constants

type Of<Do extends TreeChange['do']> = Extract<TreeChange, { do: Do }>
interface Line<Change> {
  index: number
  change: Change
}
type Comes = Line<Of<'make'> | Of<'put'> | Of<'move'> | Of<'link'>>
type Goes = Line<Of<'remove'> | Of<'move'>>
type Alters = Line<Of<'patch'> | Of<'attributes'>>

export interface Page {
  entries: Entry[]
  cursor?: string
}
const NONE: Page = { entries: [] }

interface Range {
  at: number
  length: number
  version?: Version
}

/** So often we look again for what moved on between two looks. */
const LOOKS_MAX = 16
const PAGE_MAX = 1_000
const STATS_AT_ONCE = 16

/** Where a path of the state after the batch is to be found. */
type Found =
  /** What the batch makes or puts: described by the intent. */
  | { kind: 'new'; line: Line<Of<'make'> | Of<'put'>> }
  /** Another name of a file. */
  | { kind: 'link'; line: Line<Of<'link'>> }
  /** What was there before: now at `at`, and named `committed` before the batch. */
  | {
      kind: 'old'
      at: Path
      committed: Path
      entry: Entry
      /** It is still at a name that may soon mean something else. */
      moves: boolean
    }

export class Through {
  readonly #tree: Tree
  readonly #intent: IntentRecord<TreeChange>
  readonly #stillPending: StillPending
  readonly #comes = new Map<Path, Comes>()
  readonly #goes = new Map<Path, Goes>()
  readonly #alters = new Map<Path, Alters>()
  /** Committed names of what is moved to a name only to be replaced there. */
  readonly #replaced = new Map<Path, Path>()
  /** What comes, by the directory that it comes into. */
  readonly #children = new Map<Path, Path[]>()
  /** How many names come for the file at a path. */
  readonly #links = new Map<Path, number>()
  /** Places of what has left the stage: it stays there. */
  readonly #placed = new Map<number, Path>()
  /** Files with more than one name that the batch alters, by their ids. */
  #altersById: Promise<Map<string, Path>> | null = null
  /** Directories whose times are those that the mark tells, once files have come into them. */
  readonly #untold: Set<Path>
  #times: Promise<Map<Path, bigint>> | null = null
  #stage: Path | null = null
  #ready = false

  constructor(tree: Tree, intent: IntentRecord<TreeChange>, stillPending: StillPending) {
    this.#tree = tree
    this.#stillPending = stillPending
    this.#intent = intent
    this.#untold = new Set(untoldBy(intent.changes))
    const refused = new Set(intent.refused.map(([index]) => index))
    intent.changes.forEach((change, index) => {
      if (refused.has(index)) return
      if (change.do === 'remove') this.#goes.set(change.path, { index, change })
      else if (change.do === 'patch' || change.do === 'attributes') this.#alters.set(change.path, { index, change })
      else {
        const path = change.do === 'move' ? change.to : change.path
        if (change.do === 'move') this.#goes.set(change.from, { index, change })
        if (change.do === 'link') this.#links.set(change.target, (this.#links.get(change.target) ?? 0) + 1)
        const other = this.#comes.get(path)
        if (other?.change.do === 'move') this.#replaced.set(path, other.change.from)
        if (other && change.do === 'move') this.#replaced.set(path, change.from)
        else this.#comes.set(path, { index, change })
        if (other) return
        const parent = path.slice(0, Math.max(0, path.lastIndexOf('/')))
        const siblings = this.#children.get(parent)
        if (siblings) siblings.push(path)
        else this.#children.set(parent, [path])
      }
    })
  }

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    const found = await this.#find(path, signal)
    return found && this.#entry(path, found, signal)
  }

  /** First what comes, then what was there and stays. */
  async list(path: Path, cursor: string | undefined, signal?: AbortSignal): Promise<Page> {
    return this.#reach(path, signal, async found => {
      const come = this.#children.get(path) ?? []
      const from = cursor === undefined ? 0 : cursor.startsWith('new ') ? Number(cursor.slice(4)) : come.length
      const old = isOldDirectory(found) ? found : null
      if (!old && !isNewDirectory(found)) throw new FerryError('NOT_DIRECTORY', { detail: path })
      if (from >= come.length)
        return old ? this.#listOld(path, old, cursor?.startsWith('old ') ? cursor.slice(4) : undefined, signal) : NONE
      const entries = await present(come.slice(from, from + PAGE_MAX), child => this.stat(child, signal))
      const next = from + PAGE_MAX
      if (next < come.length) return { entries, cursor: `new ${next}` }
      if (!old) return { entries }
      const rest = await this.#listOld(path, old, undefined, signal)
      if (entries.length + rest.entries.length > PAGE_MAX) return { entries, cursor: 'old' }
      return { ...rest, entries: [...entries, ...rest.entries] }
    })
  }

  /** Goes on with a listing that began before the batch was committed, with the tree's own cursor. */
  async listOn(path: Path, cursor: string, signal?: AbortSignal): Promise<Page> {
    return this.#reach(path, signal, found => {
      if (!isOldDirectory(found)) throw new FerryError('NOT_DIRECTORY', { detail: path })
      return this.#listOld(path, found, cursor, signal, child => this.stat(child, signal))
    })
  }

  /** Goes on with a listing that began with {@link list}, when the batch is applied: `now` is the tree as it is. */
  async listAfter(path: Path, cursor: string, now: Pick<Tree, 'stat'>, signal?: AbortSignal): Promise<Page> {
    const stat = (child: Path) => now.stat(child, signal)
    if (cursor.startsWith('new ')) {
      const come = this.#children.get(path) ?? []
      const from = Number(cursor.slice(4))
      const next = from + PAGE_MAX
      const entries = await present(come.slice(from, next), stat)
      return { entries, cursor: next < come.length ? `new ${next}` : 'old' }
    }
    const page = await this.#tree.list(path, cursor.startsWith('old ') ? cursor.slice(4) : undefined, signal)
    const children = page.entries.map(({ name }) => below(path, name)).filter(child => !this.#comes.has(child))
    return { entries: await present(children, stat), ...old(page.cursor) }
  }

  /** `comes`: what to make of names that the batch brings; they are left out otherwise. */
  async #listOld(
    path: Path,
    { at, committed }: { at: Path; committed: Path },
    cursor: string | undefined,
    signal?: AbortSignal,
    comes?: (child: Path) => Promise<Entry | null>,
  ): Promise<Page> {
    const page = await this.#tree.list(at, cursor, signal)
    const entries: Entry[] = []
    for (const entry of page.entries) {
      const child = below(path, entry.name)
      const fresh = this.#comes.has(child)
      if (!fresh && this.#goes.has(below(committed, entry.name))) continue
      const one = fresh ? await comes?.(child) : await this.#altered(child, entry, signal)
      if (one) entries.push(one)
    }
    return { entries, ...old(page.cursor) }
  }

  async read(path: Path, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    return this.#reach(path, signal, async found => {
      if (found.kind === 'new') return this.#readNew(path, found.line, range, signal)
      if (found.kind === 'link') return this.read(found.line.change.target, range, signal)
      const line = await this.#alteredBy(path, found.entry, signal)
      if (line?.change.do !== 'patch') return this.#tree.read(found.at, range, signal)
      return this.#readPatched(found.at, line as Line<Of<'patch'>>, range, signal)
    })
  }

  async xattrs(path: Path, signal?: AbortSignal): Promise<Xattrs> {
    return this.#reach(path, signal, async found => {
      if (found.kind === 'link') return this.xattrs(found.line.change.target, signal)
      if (found.kind === 'old') {
        const line = await this.#alteredBy(path, found.entry, signal)
        return line?.change.xattrs ?? this.#tree.xattrs(found.at, signal)
      }
      const { change } = found.line
      if (change.xattrs || change.do === 'make') return change.xattrs ?? new Map()
      // Those of what it replaces, which has them still, or was replaced by what has them now.
      const replaced = this.#replacedAt(path)
      const old = replaced === null ? null : await this.#findOld(path, replaced, signal)
      return old?.kind === 'old' ? this.#tree.xattrs(old.at, signal) : new Map()
    })
  }

  // --- finding

  /** Does `work` where the path is to be found; again, if that moved on between our looking and our work. */
  async #reach<T>(path: Path, signal: AbortSignal | undefined, work: (found: Found) => Promise<T>): Promise<T> {
    for (let looks = 0; ; looks++) {
      const found = await this.#find(path, signal)
      if (!found) throw new FerryError('NOT_FOUND', { detail: path })
      try {
        const result = await work(found)
        if (found.kind !== 'old' || !found.moves || !(await this.#isReady(signal))) return result
      } catch (error) {
        if (!isFerryError(error, 'NOT_FOUND') || looks === LOOKS_MAX) throw error
      }
    }
  }

  async #find(path: Path, signal?: AbortSignal): Promise<Found | null> {
    const prefix = this.#comes.has(path) ? path : [...above(path)].find(one => this.#comes.has(one))
    const line = prefix === undefined ? null : this.#comes.get(prefix)!
    if (!line) return this.#findOld(path, path, signal)
    const { index, change } = line
    if (change.do === 'move') return this.#findOld(path, change.from + path.slice(prefix!.length), signal)
    if (prefix !== path) return null
    if (change.do === 'link') return { kind: 'link', line: { index, change } }
    return { kind: 'new', line: { index, change } }
  }

  /** What would be there if nothing were put there, by its committed name; null: nothing would. */
  #replacedAt(path: Path): Path | null {
    const replaced = this.#replaced.get(path)
    if (replaced !== undefined) return replaced
    const directory = [...above(path)].find(one => this.#comes.has(one))
    if (directory === undefined) return path
    const { change } = this.#comes.get(directory)!
    return change.do === 'move' ? change.from + path.slice(directory.length) : null
  }

  /** What was named `committed` before the batch, if it is `path` after it. */
  async #findOld(path: Path, committed: Path, signal?: AbortSignal): Promise<Found | null> {
    const prefix = this.#goes.has(committed) ? committed : [...above(committed)].find(one => this.#goes.has(one))
    if (prefix === undefined) {
      const entry = path === committed ? await this.#tree.stat(path, signal) : null
      return entry && { kind: 'old', at: path, committed, entry, moves: false }
    }
    const { index, change } = this.#goes.get(prefix)!
    const rest = committed.slice(prefix.length)
    if (change.do === 'remove' || change.to + rest !== path) return null
    const name = goneName(this.#intent.batch, index)
    const old = (at: Path, entry: Entry): Found => ({ kind: 'old', at, committed, entry, moves: at === committed })
    for (let looks = 0; looks < LOOKS_MAX; looks++) {
      const placed = this.#placed.get(index)
      if (placed !== undefined) {
        const entry = await this.#tree.stat(placed + rest, signal)
        return entry && old(placed + rest, entry)
      }
      if (!(await this.#isReady(signal))) {
        const entry = await this.#tree.stat(committed, signal)
        // If the mark was set meanwhile, that name may mean something else already.
        if (entry && !(await this.#isReady(signal))) return old(committed, entry)
      }
      const gone = await this.#staged(name + rest, signal)
      if (gone) return old(gone.at, gone.entry)
      if (rest !== '' && (await this.#staged(name, signal))) return null
      if (this.#ready) this.#placed.set(index, await this.#placeOf(index, change.to, signal))
      else if (!(await this.#isReady(signal))) return null
    }
    return null
  }

  /** Where what left the stage went. */
  async #placeOf(index: number, path: Path, signal?: AbortSignal): Promise<Path> {
    const note = await this.#staged(ownName(this.#intent.batch, `at-${index}`), signal)
    if (!note) return path
    const bytes = await readWhole(this.#tree, note.at, { at: 0, length: note.entry.size }, signal)
    return unpackNote<Path>(bytes)!
  }

  async #isReady(signal?: AbortSignal): Promise<boolean> {
    this.#ready ||= (await this.#staged(readyName(this.#intent.batch), signal)) !== null
    // The mark goes when the batch is done.
    if (!this.#ready) await this.#stillPending(signal)
    return this.#ready
  }

  /** What lies in the stage directory; null only if that directory is there, and this is not in it. */
  async #staged(name: string, signal?: AbortSignal): Promise<{ at: Path; entry: Entry } | null> {
    for (let looks = 0; looks < LOOKS_MAX; looks++) {
      const stage = this.#stage ?? (await findStage(this.#tree, this.#intent.epoch, signal))?.path
      if (stage === undefined) throw new Passed()
      this.#stage = stage
      const at = `${stage}/${name}`
      const entry = await this.#tree.stat(at, signal)
      if (entry) return { at, entry }
      // Whoever takes the lease over renames it.
      if ((await this.#tree.stat(stage, signal)) !== null) return null
      if (this.#stage === stage) this.#stage = null
    }
    throw new Passed()
  }

  // --- describing

  async #entry(path: Path, found: Found, signal?: AbortSignal): Promise<Entry | null> {
    const name = path.slice(path.lastIndexOf('/') + 1)
    if (found.kind === 'old') return this.#altered(path, { ...found.entry, name }, signal)
    if (found.kind === 'link') {
      const entry = await this.stat(found.line.change.target, signal)
      return entry && { ...entry, name }
    }
    const { index, change } = found.line
    const node: NewNode = change.do === 'make' ? change.node : { ...change.attributes, rdev: 0 }
    const size = change.do === 'put' ? change.size : (node.link?.length ?? 0)
    return this.#linked(path, {
      ...attributesOf(node),
      name,
      size,
      allocated: size,
      rdev: node.rdev,
      nlink: isDirectory(node) ? 2 : 1,
      ctimeNs: BigInt(Math.trunc(this.#intent.cutAtMs)) * 1_000_000n,
      version: this.#version(index),
      ...(node.link !== undefined && { link: node.link }),
    })
  }

  /** What was there before, with what the batch changes about it. */
  async #altered(path: Path, entry: Entry, signal?: AbortSignal): Promise<Entry> {
    const line = await this.#alteredBy(path, entry, signal)
    if (!line) return this.#linked(path, await this.#timed(path, entry, signal))
    const altered = this.#linked(line.change.path, { ...entry, ...attributesOf(line.change.attributes) })
    if (line.change.do !== 'patch') return altered
    const { index, change } = line
    altered.size = change.size
    altered.version = this.#version(index)
    // A link in the stage is none that counts.
    if (altered.nlink > 1 && (await this.#staged(ownName(this.#intent.batch, `patch-${index}`), signal))) {
      altered.nlink--
      if (altered.nlink === 1) delete altered.id
    }
    return altered
  }

  async #timed(path: Path, entry: Entry, signal?: AbortSignal): Promise<Entry> {
    if (!this.#untold.has(path) || !(await this.#isReady(signal))) return entry
    this.#times ??= this.#readTimes(signal).catch(error => {
      this.#times = null
      throw error
    })
    return { ...entry, mtimeNs: (await this.#times).get(path) ?? entry.mtimeNs }
  }

  async #readTimes(signal?: AbortSignal): Promise<Map<Path, bigint>> {
    const mark = await this.#staged(readyName(this.#intent.batch), signal)
    if (!mark) throw new Passed()
    const bytes = await readWhole(this.#tree, mark.at, { at: 0, length: mark.entry.size }, signal)
    return new Map(unpackNote<Ready>(bytes)?.times)
  }

  /** What the batch alters about a file, by this name of it or by another. */
  async #alteredBy(path: Path, entry: Entry, signal?: AbortSignal): Promise<Alters | undefined> {
    const line = this.#alters.get(path)
    if (line || entry.id === undefined || this.#alters.size === 0) return line
    this.#altersById ??= this.#lookForIds(signal).catch(error => {
      this.#altersById = null
      throw error
    })
    const other = (await this.#altersById).get(entry.id)
    return other === undefined ? undefined : this.#alters.get(other)
  }

  async #lookForIds(signal?: AbortSignal): Promise<Map<string, Path>> {
    const ids = new Map<string, Path>()
    await mapLimit([...this.#alters.keys()], STATS_AT_ONCE, async path => {
      const found = await this.#find(path, signal)
      if (found?.kind === 'old' && found.entry.id !== undefined) ids.set(found.entry.id, path)
    })
    return ids
  }

  #linked(path: Path, entry: Entry): Entry {
    const links = this.#links.get(path)
    if (links === undefined) return entry
    const id = entry.id ?? `${this.#intent.epoch}.${this.#intent.batch}.${path}`
    return { ...entry, nlink: Math.max(entry.nlink, links + 1), id }
  }

  #version(index: number): Version {
    return `pending-${this.#intent.epoch}.${this.#intent.batch}.${index}`
  }

  // --- bytes

  async #readNew(
    path: Path,
    { index, change }: Line<Of<'make'> | Of<'put'>>,
    { at, length, version }: Range,
    signal?: AbortSignal,
  ): Promise<Uint8Array> {
    if (version !== undefined && version !== this.#version(index)) throw new FerryError('STALE', { detail: path })
    if (change.do === 'make') {
      if ((change.node.mode & constants.S_IFMT) === S_IFREG) return new Uint8Array()
      throw new FerryError(isDirectory(change.node) ? 'IS_DIRECTORY' : 'INVALID', { detail: path })
    }
    const into = new Uint8Array(Math.max(0, Math.min(length, change.size - at)))
    if (into.byteLength === 0) return into
    if ('inline' in change.content) {
      for (const piece of change.content.inline) overlay(into, at, piece.bytes, piece.at)
      return into
    }
    const source = await this.#placeOfPut(path, index, change, signal)
    return readWhole(this.#tree, source, { at, length: into.byteLength }, signal)
  }

  async #placeOfPut(path: Path, index: number, change: Of<'put'>, signal?: AbortSignal): Promise<Path> {
    const placed = this.#placed.get(index)
    if (placed !== undefined) return placed
    const staged = await this.#staged(waitsAt(this.#intent.batch, index, change), signal)
    if (staged) return staged.at
    const place = await this.#placeOf(index, path, signal)
    this.#placed.set(index, place)
    return place
  }

  /** The file as it was, or as far as it is changed, under the bytes of the batch: the same whichever of them it has already. */
  async #readPatched(
    file: Path,
    { index, change }: Line<Of<'patch'>>,
    { at, length, version }: Range,
    signal?: AbortSignal,
  ): Promise<Uint8Array> {
    if (version !== undefined && version !== this.#version(index))
      throw new FerryError('STALE', { detail: change.path })
    const end = Math.min(at + length, change.size)
    const into = new Uint8Array(Math.max(0, end - at))
    // From `floor` on there is nothing but what the batch brings.
    const kept = Math.min(end, change.floor) - at
    if (kept > 0) overlay(into, at, await readWhole(this.#tree, file, { at, length: kept }, signal), at)
    if ('inline' in change.content) for (const piece of change.content.inline) overlay(into, at, piece.bytes, piece.at)
    else {
      const staged = await this.#staged(stagedName(this.#intent.batch, change.content.staged), signal)
      for (const extent of change.content.extents) {
        const from = Math.max(extent.at, at)
        const to = Math.min(extent.at + extent.length, end)
        if (from >= to) continue
        // Gone only when all of it is applied.
        if (!staged) throw new Passed()
        overlay(into, at, await readWhole(this.#tree, staged.at, { at: from, length: to - from }, signal), from)
      }
    }
    for (const zeros of change.zeros ?? [])
      into.fill(0, Math.max(0, zeros.at - at), Math.max(0, zeros.at + zeros.length - at))
    // Once it is done, another batch may change the file, and this would be half of each.
    await this.#stillPending(signal)
    return into
  }
}

type Old = Extract<Found, { kind: 'old' }>
const isOldDirectory = (found: Found): found is Old => found.kind === 'old' && isDirectory(found.entry)
const isNewDirectory = (found: Found) =>
  found.kind === 'new' && found.line.change.do === 'make' && isDirectory(found.line.change.node)

const old = (cursor: string | undefined) => (cursor === undefined ? {} : { cursor: `old ${cursor}` })

const present = async (paths: Path[], stat: (path: Path) => Promise<Entry | null>): Promise<Entry[]> =>
  (await mapLimit(paths, STATS_AT_ONCE, stat)).filter(entry => entry !== null)

const below = (directory: Path, name: string): Path => (directory === '' ? name : `${directory}/${name}`)
