// Reading a bucket through a batch that is committed but not applied. What is new is described by the intent. What was there is
// found by where it is: at its new key, if what is there says that this batch has placed it; at its old one as long as that has not
// been taken or removed; else in the stage. Until there is a plan nothing has moved; from then on the plan tells what moves.
import { constants } from 'node:fs'
import { mapLimit } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import type { IntentRecord } from './intent.js'
import { type Found, type Known, type ObjectFiles, type Page, xattrsOfFound } from './object-files.js'
import { directoryKey, keyOf, nameOf, prefixOf } from './object-keys.js'
import { type Segment, segmentsOfPatch, segmentsOfPut } from './object-segments.js'
import type { Key } from './objects.js'
import { checkRange, joinPath, lastName, parentPath } from './path.js'
import { readSegments } from './rollforward-objects-content.js'
import { type Line, Lines, type Of } from './rollforward-objects-lines.js'
import {
  isOurs,
  type Member,
  type Plan,
  type Source,
  type Subtree,
  sourceOfMember,
} from './rollforward-objects-model.js'
import { planName, readNote, stageKey } from './rollforward-objects-stage.js'
import { attributesOf, isDirectory } from './rollforward-stage.js'
import { Passed, type StillPending } from './rollforward-view.js'
import type { Entry, PartialName, Path, TreeChange, Version, Xattrs } from './tree.js'

const { S_IFMT, S_IFREG } = constants

/** So often we look again for what moved on between two looks. */
const LOOKS_MAX = 16
const PAGE_MAX = 1_000
const STATS_AT_ONCE = 16
/** Lists of members that are kept in memory, of 5,000 each. */
const CHUNKS_MAX = 4

interface Range {
  at: number
  length: number
  version?: Version
}

type Seen = { kind: 'new'; line: Line<Of<'make'> | Of<'put'>> } | { kind: 'old'; committed: Path; found: Found }

export class ThroughObjects {
  readonly #files: ObjectFiles
  readonly #intent: IntentRecord<TreeChange>
  readonly #stillPending: StillPending
  readonly #lines: Lines
  /** What comes, by the directory that it comes into. */
  readonly #children = new Map<Path, Path[]>()
  readonly #chunks = new Map<string, Member[]>()
  #plan: Plan | null = null

  constructor(files: ObjectFiles, intent: IntentRecord<TreeChange>, stillPending: StillPending) {
    this.#files = files
    this.#intent = intent
    this.#stillPending = stillPending
    this.#lines = new Lines(intent)
    for (const path of new Set([...this.#lines.news.keys(), ...this.#lines.moves.keys()])) {
      const siblings = this.#children.get(parentPath(path))
      if (siblings) siblings.push(path)
      else this.#children.set(parentPath(path), [path])
    }
  }

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    const seen = await this.#see(path, signal)
    return seen && this.#entry(path, seen)
  }

  async complete(path: Path, partial: PartialName[], signal?: AbortSignal): Promise<(Entry | null)[]> {
    return mapLimit(partial, STATS_AT_ONCE, ({ name }) => this.stat(joinPath(path, name), signal))
  }

  async read(path: Path, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    checkRange(range)
    for (let looks = 0; ; looks++) {
      const seen = await this.#need(path, signal)
      try {
        return await this.#readSeen(path, seen, range, signal)
      } catch (error) {
        // It has moved on, unless it is the reader who asks for another version.
        if (!isFerryError(error, 'NOT_FOUND', 'STALE') || error instanceof Unwanted || looks === LOOKS_MAX) throw error
        await this.#stillPending(signal)
      }
    }
  }

  async xattrs(path: Path, signal?: AbortSignal): Promise<Xattrs> {
    const seen = await this.#need(path, signal)
    const { xattrs } = seen.kind === 'new' ? seen.line.change : (this.#lines.alters.get(path)?.change ?? {})
    if (xattrs) return xattrs
    if (seen.kind === 'old') return xattrsOfFound(seen.found)
    if (seen.line.change.do === 'make') return new Map()
    // Those of what it replaces, which has them still, or was replaced by what has them now.
    const committed = this.#lines.replacedBy(path)
    const moves = committed !== null && committed !== path
    const before = await (moves ? this.#moved(path, committed, signal) : this.#files.find(path, signal))
    return before ? xattrsOfFound(before) : new Map()
  }

  /** First what comes, then what was there and stays. */
  async list(path: Path, cursor: string | undefined, signal?: AbortSignal): Promise<Page> {
    const seen = await this.#need(path, signal)
    const isOld = seen.kind === 'old' && seen.found.kind === 'directory'
    const isNew = seen.kind === 'new' && seen.line.change.do === 'make' && isDirectory(seen.line.change.node)
    if (!isOld && !isNew) throw new FerryError('NOT_DIRECTORY', { detail: path })
    const come = this.#children.get(path) ?? []
    const from = cursor === undefined ? 0 : cursor.startsWith('new ') ? Number(cursor.slice(4)) : come.length
    if (from < come.length) {
      const next = from + PAGE_MAX
      const entries = await this.#present(come.slice(from, next), signal)
      return { entries, cursor: next < come.length ? `new ${next}` : isOld ? 'old' : undefined }
    }
    if (!isOld) return { entries: [] }
    return this.#listOld(path, seen.committed, cursor?.startsWith('new ') ? undefined : cursor, signal)
  }

  /** Goes on with a listing that began before the batch was committed. */
  async listOn(path: Path, cursor: string, signal?: AbortSignal): Promise<Page> {
    if (this.#lines.committedOf(path) !== path) throw new FerryError('STALE', { detail: `a listing of ${path}` })
    const page = await this.#files.list(path, cursor, signal)
    return { entries: await this.through(path, page.entries, signal), cursor: page.cursor }
  }

  /** What the bucket lists in a directory, as it is after the batch. */
  async through(path: Path, entries: Entry[], signal?: AbortSignal): Promise<Entry[]> {
    const isMoved = this.#lines.committedOf(path) !== path
    const { goes, alters } = this.#lines
    const shown = await mapLimit(entries, STATS_AT_ONCE, async entry => {
      const child = joinPath(path, entry.name)
      const isTouched = isMoved || goes.has(child) || alters.has(child) || this.#lines.comes(child)
      return isTouched ? this.stat(child, signal) : entry
    })
    return shown.filter(entry => entry !== null)
  }

  /** Goes on with a listing that began with {@link list}, when the batch is applied. */
  async listAfter(path: Path, cursor: string, now: ThroughObjects | null, signal?: AbortSignal): Promise<Page> {
    const come = this.#children.get(path) ?? []
    if (cursor.startsWith('new ')) {
      const from = Number(cursor.slice(4))
      const next = from + PAGE_MAX
      const present = await mapLimit(come.slice(from, next), STATS_AT_ONCE, one =>
        (now ?? this.#files).stat(one, signal),
      )
      return { entries: present.filter(entry => entry !== null), cursor: next < come.length ? `new ${next}` : 'old' }
    }
    if (this.#lines.committedOf(path) !== path) throw new FerryError('STALE', { detail: `a listing of ${path}` })
    const page = await this.#files.list(path, tokenOf(cursor), signal)
    const stayed = page.entries.filter(({ name }) => !this.#lines.comes(joinPath(path, name)))
    return {
      entries: now ? await now.through(path, stayed, signal) : stayed,
      cursor: page.cursor && `old ${page.cursor}`,
    }
  }

  async #listOld(path: Path, committed: Path, cursor: string | undefined, signal?: AbortSignal): Promise<Page> {
    const moves = path !== committed
    if (moves && (await this.#planned(signal))) return this.#listMembers(path, committed, cursor, signal)
    if (cursor?.startsWith('member ')) throw new FerryError('STALE', { detail: `a listing of ${path}` })
    const page = await this.#files.list(committed, tokenOf(cursor), signal)
    const { goes, alters } = this.#lines
    const stays = page.entries.filter(
      ({ name }) => !goes.has(joinPath(committed, name)) && !this.#lines.comes(joinPath(path, name)),
    )
    const shown = await mapLimit(stays, STATS_AT_ONCE, async entry => {
      const child = joinPath(path, entry.name)
      return moves || alters.has(child) ? this.stat(child, signal) : entry
    })
    if (moves) {
      await this.#stillPending(signal)
      // What was listed may be what comes there.
      if (await this.#planned(signal)) {
        if (cursor === undefined || cursor === 'old') return this.#listMembers(path, committed, undefined, signal)
        throw new FerryError('STALE', { detail: `a listing of ${path}` })
      }
    }
    return { entries: shown.filter(entry => entry !== null), cursor: page.cursor && `old ${page.cursor}` }
  }

  /** What is in a directory that moves, as the plan lists it. */
  async #listMembers(path: Path, committed: Path, cursor: string | undefined, signal?: AbortSignal): Promise<Page> {
    if (cursor?.startsWith('old ')) throw new FerryError('STALE', { detail: `a listing of ${path}` })
    const after = cursor?.startsWith('member ') ? cursor.slice('member '.length) : ''
    const names = new Set<string>()
    for await (const key of this.#keysBelow(committed, signal)) {
      const name = nameOf(key.split('/')[0])
      if (name !== null && name > after) names.add(name)
    }
    const page = [...names].sort().slice(0, PAGE_MAX)
    const { goes } = this.#lines
    const stay = page.filter(name => !goes.has(joinPath(committed, name)) && !this.#lines.comes(joinPath(path, name)))
    const entries = await this.#present(
      stay.map(name => joinPath(path, name)),
      signal,
    )
    return { entries, cursor: names.size > PAGE_MAX ? `member ${page.at(-1)}` : undefined }
  }

  async #present(paths: Path[], signal?: AbortSignal): Promise<Entry[]> {
    return (await mapLimit(paths, STATS_AT_ONCE, path => this.stat(path, signal))).filter(entry => entry !== null)
  }

  // --- finding

  async #need(path: Path, signal?: AbortSignal): Promise<Seen> {
    const seen = await this.#see(path, signal)
    if (!seen) throw new FerryError('NOT_FOUND', { detail: path })
    return seen
  }

  async #see(path: Path, signal?: AbortSignal): Promise<Seen | null> {
    const line = this.#lines.news.get(path)
    if (line) return { kind: 'new', line }
    const committed = this.#lines.committedOf(path)
    if (committed === null) return null
    const found = committed === path ? await this.#files.find(path, signal) : await this.#moved(path, committed, signal)
    return found && { kind: 'old', committed, found }
  }

  /** What was named `committed` before the batch, and is named `path` after it. */
  async #moved(path: Path, committed: Path, signal?: AbortSignal): Promise<Found | null> {
    for (let looks = 0; looks < LOOKS_MAX; looks++) {
      if (!(await this.#planned(signal))) {
        const found = await this.#files.find(committed, signal)
        await this.#stillPending(signal)
        if (!(await this.#planned(signal))) return found
      }
      const marker = await this.#sourceOf(directoryKey(committed), signal)
      const file = marker ? null : await this.#sourceOf(keyOf(committed), signal)
      if (!marker && !file)
        return (await this.#hasMembers(committed, signal)) ? { kind: 'directory', marker: null } : null
      const [target, source] = marker ? [directoryKey(path), marker] : [keyOf(path), file!]
      const head = await this.#locate(target, source, signal)
      if (head) return marker ? { kind: 'directory', marker: head } : { kind: 'file', head }
      await this.#stillPending(signal)
    }
    // It was placed, and somebody else has changed it since.
    return this.#files.find(path, signal)
  }

  async #locate(target: Key, source: Source, signal?: AbortSignal): Promise<Known | null> {
    const there = await this.#files.head(target, signal)
    if (isOurs(there, this.#intent)) return there
    const before = await this.#files.head(source.key, signal)
    if (before?.etag === source.etag && !isOurs(before, this.#intent)) return before
    const { epoch, batch } = this.#intent
    return source.held ? this.#files.head(stageKey(epoch, batch, source.held), signal) : null
  }

  async #planned(signal?: AbortSignal): Promise<Plan | null> {
    this.#plan ??= await readNote<Plan>(this.#files.objects, this.#intent, planName, signal)
    return this.#plan
  }

  /** What the plan says of the object of this key. */
  async #sourceOf(key: Key, signal?: AbortSignal): Promise<Source | null> {
    const { targets, subtrees } = this.#plan!
    const target = targets.find(({ source }) => source?.key === key)
    if (target) return target.source
    for (const subtree of subtrees) {
      const prefix = prefixOf(subtree.from)
      if (!key.startsWith(prefix)) continue
      const rest = key.slice(prefix.length)
      for await (const members of this.#members(subtree, signal)) {
        const member = members.find(one => one.rest === rest)
        if (member) return sourceOfMember(subtree, member)
      }
    }
    return null
  }

  async #hasMembers(committed: Path, signal?: AbortSignal): Promise<boolean> {
    for await (const _ of this.#keysBelow(committed, signal)) return true
    return false
  }

  /** Keys of what moves and was below a directory, after its prefix. */
  async *#keysBelow(committed: Path, signal?: AbortSignal): AsyncGenerator<Key> {
    const prefix = prefixOf(committed)
    const { targets, subtrees } = this.#plan!
    for (const { source } of targets)
      if (source?.key.startsWith(prefix) && source.key !== prefix) yield source.key.slice(prefix.length)
    for (const subtree of subtrees) {
      if (!isBelow(committed, subtree.from)) continue
      const inside = prefix.slice(prefixOf(subtree.from).length)
      for await (const members of this.#members(subtree, signal))
        for (const { rest } of members) if (rest.startsWith(inside) && rest !== inside) yield rest.slice(inside.length)
    }
  }

  async *#members({ chunks }: Subtree, signal?: AbortSignal): AsyncGenerator<Member[]> {
    for (const name of chunks) {
      const members =
        this.#chunks.get(name) ?? (await readNote<Member[]>(this.#files.objects, this.#intent, name, signal))
      if (!members) throw new Passed()
      this.#chunks.set(name, members)
      for (const oldest of this.#chunks.keys()) if (this.#chunks.size > CHUNKS_MAX) this.#chunks.delete(oldest)
      yield members
    }
  }

  // --- describing

  #entry(path: Path, seen: Seen): Entry {
    const name = lastName(path)
    if (seen.kind === 'old') return this.#altered(path, this.#files.entry(name, seen.found))
    const { index, change } = seen.line
    const attributes = change.do === 'make' ? change.node : change.attributes
    const link = change.do === 'make' ? change.node.link : undefined
    const size = change.do === 'put' ? change.size : (link?.length ?? 0)
    return {
      ...attributesOf(attributes),
      ...{ name, size, allocated: size, rdev: 0, nlink: isDirectory(attributes) ? 2 : 1 },
      ctimeNs: BigInt(Math.trunc(this.#intent.cutAtMs)) * 1_000_000n,
      version: isDirectory(attributes) ? '' : this.#version(index),
      ...(link !== undefined && { link }),
    }
  }

  #altered(path: Path, entry: Entry): Entry {
    const line = this.#lines.alters.get(path)
    if (!line) return entry
    const { index, change } = line
    const altered = { ...entry, ...attributesOf(change.attributes) }
    if (change.do === 'attributes') return altered
    return { ...altered, size: change.size, allocated: change.size, version: this.#version(index) }
  }

  #version(index: number): Version {
    return `pending-${this.#intent.epoch}.${this.#intent.batch}.${index}`
  }

  // --- bytes

  async #readSeen(path: Path, seen: Seen, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    if (seen.kind === 'new') return this.#readNew(path, seen.line, range, signal)
    if (seen.found.kind === 'directory') throw new FerryError('IS_DIRECTORY', { detail: path })
    const { head } = seen.found
    const line = this.#lines.alters.get(path)
    const isPatched = line?.change.do === 'patch'
    this.#want(path, range, isPatched ? this.#version(line.index) : head.etag)
    const { objects } = this.#files
    if (isPatched && !isOurs(head, this.#intent)) {
      const change = line.change as Of<'patch'>
      return this.#readSegments(segmentsOfPatch(change, head, this.#intent.packed), change.size, range, signal)
    }
    return objects.get(head.key, { at: range.at, length: range.length, etag: head.etag }, signal)
  }

  async #readNew(path: Path, { index, change }: Line<Of<'make'> | Of<'put'>>, range: Range, signal?: AbortSignal) {
    this.#want(path, range, this.#version(index))
    if (change.do === 'put')
      return this.#readSegments(segmentsOfPut(change, this.#intent.packed), change.size, range, signal)
    if ((change.node.mode & S_IFMT) === S_IFREG) return new Uint8Array()
    throw new FerryError(isDirectory(change.node) ? 'IS_DIRECTORY' : 'INVALID', { detail: path })
  }

  #readSegments(segments: Segment[], size: number, { at, length }: Range, signal?: AbortSignal): Promise<Uint8Array> {
    const count = Math.max(0, Math.min(length, size - at))
    return readSegments(this.#files.objects, segments, { at, length: count }, signal)
  }

  #want(path: Path, { version }: Range, there: Version): void {
    if (version !== undefined && version !== there) throw new Unwanted('STALE', { detail: path })
  }
}

/** The reader knows another version. */
class Unwanted extends FerryError {}

const isBelow = (path: Path, directory: Path) => path === directory || path.startsWith(`${directory}/`)

/** The bucket's own cursor. */
const tokenOf = (cursor: string | undefined) => (cursor?.startsWith('old ') ? cursor.slice('old '.length) : undefined)
