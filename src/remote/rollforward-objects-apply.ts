// A committed batch becomes objects. Every step can be done again, by whoever comes after a crash:
//
// 1. plan: what is there is looked at, once; if anything moves, the plan is put into the stage, and whoever comes later follows it.
// 2. hold: what something else will take the key of is copied into the stage.
// 3. place: each object comes to its key whole, under the condition that what it replaces is there, and says which line of which
//    batch it is: who finds it there again knows it for ours.
// 4. a mark, if anything moves. Then what is gone goes.
//
// The fence is the chain, and these conditions: a request of a former holder that is late meets another tag, a source that has gone,
// or an upload that was aborted. What none of these can tell is a name that was free, was used, and is free again, and bytes that are
// again what they were: such a request is waited for (a third of the lease), and that is all.

import { inParallel } from '../base/async.js'
import { FerryError, isFerryError, isPermanent } from '../base/errors.js'
import type { Outcome } from './commits.js'
import { encode, type IntentRecord } from './intent.js'
import { DIRECTORY_TYPE } from './object-attributes.js'
import type { Known, ObjectFiles } from './object-files.js'
import { directoryKey, nameOf, prefixOf } from './object-keys.js'
import type { Key, ObjectCondition } from './objects.js'
import type { Turn } from './rollforward-commits.js'
import { ObjectContent } from './rollforward-objects-content.js'
import type { StageLedger } from './rollforward-objects-ledger.js'
import { Lines } from './rollforward-objects-lines.js'
import { ObjectMaker } from './rollforward-objects-make.js'
import {
  isOurs,
  keyOfTarget,
  type Leaver,
  type Member,
  type Plan,
  type Source,
  type Subtree,
  sourceOfMember,
  type Target,
} from './rollforward-objects-model.js'
import { Names } from './rollforward-objects-names.js'
import { planObjects } from './rollforward-objects-plan.js'
import { isManyTogether, removeMatching } from './rollforward-objects-remove.js'
import { planName, readNote, stageKey, type UploadNote, writeUploadNote } from './rollforward-objects-stage.js'
import type { Path, TreeChange, Version } from './tree.js'

/** Something changes under our hands so often at most. */
const TRIES_MAX = 16
/** Of 5,000 members each. */
const CHUNKS_AT_HAND = 4
const EMPTY = new Uint8Array()

export interface ApplyObjectsOptions {
  files: ObjectFiles
  intent: IntentRecord<TreeChange>
  turn: Turn
  parallel: number
  /** From then on nobody else has written batches. */
  heldSince: number
  /** This process has just committed it: nobody has begun to apply it. */
  first: boolean
  ledger: StageLedger
  /** A file gets another version by what keeps its bytes, or by a patch: until now it had this one. */
  onReplace: (path: Path, version: Version) => void
}

const PLACED = 'placed'

/** What the mark says: all that came of the batch but for what goes. */
interface Placed {
  stays: Key[]
  versions: [Path, Version][]
  moved?: NonNullable<Outcome['moved']>
  conflicts: Outcome['conflicts']
  refused: [index: number, Outcome['refused'][number]][]
}

export const applyObjects = (options: ApplyObjectsOptions): Promise<Outcome> => new Application(options).run()

class Application {
  readonly #options: ApplyObjectsOptions
  readonly #files: ObjectFiles
  readonly #intent: IntentRecord<TreeChange>
  readonly #turn: Turn
  readonly #lines: Lines
  readonly #content: ObjectContent
  readonly #versions = new Map<Path, Version>()
  readonly #moved: NonNullable<Outcome['moved']> = []
  readonly #conflicts: Outcome['conflicts'] = []
  readonly #refused = new Map<number, Outcome['refused'][number]>()
  /** Keys of what could not be moved: it stays. */
  readonly #stays = new Set<Key>()
  readonly #names: Names
  /** Lists of members that this attempt has written. */
  readonly #atHand = new Map<string, Member[]>()
  #uploads = 0
  #chunks = 0
  readonly #maker: ObjectMaker

  constructor(options: ApplyObjectsOptions) {
    const { files, intent, turn, heldSince } = options
    this.#options = options
    this.#files = files
    this.#intent = intent
    this.#turn = turn
    this.#lines = new Lines(intent)
    this.#names = new Names(files, intent, turn.signal)
    this.#content = new ObjectContent({
      objects: files.objects,
      guard: turn.guard,
      onUpload: async (key, upload) => {
        const note = this.#staged(`upload-${turn.epoch}-${this.#uploads++}`, { key, upload })
        await files.objects.put(note, writeUploadNote({ key, upload }), undefined, turn.signal)
        return () => options.ledger.ended(note)
      },
      joins: {
        // A request for one that failed may still be on its way: none has the name of another.
        key: () => this.#key(`join-${turn.epoch}-${options.ledger.nextNumber()}`),
        // Without a note: should we die, whoever comes next aborts what it finds in the stage of a former epoch.
        onUpload: async (key, upload) => options.ledger.begun(key, intent, upload),
      },
      signal: turn.signal,
    })
    this.#maker = new ObjectMaker({ files, intent, content: this.#content, heldSince, signal: turn.signal })
  }

  async run(): Promise<Outcome> {
    const plan = await this.#planned()
    this.#conflicts.push(...plan.conflicts)
    for (const [index, path, code, detail] of plan.refused) this.#refused.set(index, { path, code, detail })
    if (!(await this.#recall())) {
      await this.#hold(plan)
      await this.#each(plan.targets, one => this.#place(one))
      for (const subtree of plan.subtrees) await this.#placeSubtree(subtree)
      await this.#each(plan.markers, path => this.#ensure(path))
      await this.#mark()
    }
    await this.#removeMany(plan.leavers)
    for (const subtree of plan.subtrees) await this.#removeSubtree(subtree)
    return {
      versions: [...this.#versions],
      ...(this.#moved.length > 0 && { moved: this.#moved }),
      ...{ conflicts: this.#conflicts, refused: [...this.#refused.values()] },
    }
  }

  #each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
    return inParallel(items, this.#options.parallel, work)
  }

  // --- the stage

  #key(what: string): Key {
    return stageKey(this.#intent.epoch, this.#intent.batch, what)
  }

  /** The key of something that is about to be put there. */
  #staged(what: string, upload?: UploadNote): Key {
    const key = this.#key(what)
    this.#options.ledger.add(key, this.#intent, upload)
    return key
  }

  /** All that comes is placed: from now on what has moved may go. */
  async #mark(): Promise<void> {
    if (this.#lines.moves.size === 0) return
    const placed: Placed = {
      stays: [...this.#stays],
      versions: [...this.#versions],
      moved: this.#moved,
      conflicts: this.#conflicts,
      refused: [...this.#refused],
    }
    await this.#put(PLACED, encode(placed))
  }

  async #recall(): Promise<boolean> {
    if (this.#lines.moves.size === 0 || this.#options.first) return false
    const placed = await readNote<Placed>(this.#files.objects, this.#intent, PLACED, this.#turn.signal)
    if (!placed) return false
    for (const key of placed.stays) this.#stays.add(key)
    for (const [path, version] of placed.versions) this.#versions.set(path, version)
    this.#moved.push(...(placed.moved ?? []))
    this.#conflicts.splice(0, this.#conflicts.length, ...placed.conflicts)
    for (const [index, refusal] of placed.refused) this.#refused.set(index, refusal)
    return true
  }

  async #put(what: string, bytes: Uint8Array, condition?: ObjectCondition): Promise<void> {
    await this.#turn.guard()
    await this.#files.objects.put(this.#staged(what), bytes, condition, this.#turn.signal)
  }

  /** Without anything that moves, what is there tells what is done already. */
  async #planned(): Promise<Plan> {
    const moves = this.#lines.moves.size > 0
    const { parallel, heldSince, first } = this.#options
    const before = moves && !first && (await this.#readPlan())
    if (before) return before
    const plan = await planObjects({
      ...{ heldSince, first },
      ...{ files: this.#files, intent: this.#intent, lines: this.#lines, parallel, signal: this.#turn.signal },
      putChunk: async members => {
        const name = `members-${this.#turn.epoch}-${this.#chunks++}`
        await this.#put(name, encode(members))
        if (this.#atHand.size < CHUNKS_AT_HAND) this.#atHand.set(name, members)
        return name
      },
    })
    if (!moves) return plan
    try {
      await this.#put(planName, encode(plan), { ifAbsent: true })
      return plan
    } catch (error) {
      if (!isFerryError(error, 'CONFLICT')) throw error
      return (await this.#readPlan()) ?? plan
    }
  }

  #readPlan(): Promise<Plan | null> {
    return readNote<Plan>(this.#files.objects, this.#intent, planName, this.#turn.signal)
  }

  async *#members({ chunks }: Subtree): AsyncGenerator<Member[]> {
    for (const name of chunks) {
      const members =
        this.#atHand.get(name) ?? (await readNote<Member[]>(this.#files.objects, this.#intent, name, this.#turn.signal))
      if (!members) throw new FerryError('NOT_FOUND', { detail: name })
      yield members
    }
  }

  // --- 2. hold

  async #hold({ targets, subtrees }: Plan): Promise<void> {
    const sources = targets.flatMap(({ source }) => (source?.held ? [source] : []))
    await this.#each([...new Map(sources.map(source => [source.held!, source])).values()], source =>
      this.#holdOne(source),
    )
    for (const subtree of subtrees)
      for await (const members of this.#members(subtree))
        await this.#each(members, async member => {
          if (member.held) await this.#holdOne(sourceOfMember(subtree, member))
        })
  }

  async #holdOne(source: Source): Promise<void> {
    const key = this.#staged(source.held!)
    try {
      const head = await this.#files.head(source.key, this.#turn.signal)
      // Held already: something else has the key.
      if (!head || isOurs(head, this.#intent)) return
      const { metadata, contentType } = head
      await this.#content.copy({ key, metadata, contentType, ifAbsent: true }, source)
    } catch (error) {
      if (!isFerryError(error, 'CONFLICT', 'NOT_FOUND', 'STALE')) throw error
    }
  }

  // --- 3. place

  async #place(target: Target): Promise<void> {
    if (target.placed !== null) return this.#told(target, target.placed)
    try {
      await this.#placeAt({ ...target })
    } catch (error) {
      if (!isPermanent(error)) throw error
      const { code, message } = error as FerryError
      if (target.source) this.#stays.add(target.source.key)
      const change = this.#intent.changes[target.index]
      const path = change.do === 'move' ? change.to : change.path
      this.#refused.set(target.index, { path, code, detail: message })
    }
  }

  async #placeAt(target: Target): Promise<void> {
    for (let tries = 0; ; tries++) {
      try {
        return this.#told(target, await this.#maker.make(target))
      } catch (error) {
        if (!isFerryError(error, 'CONFLICT', 'STALE', 'NOT_FOUND') || tries === TRIES_MAX) throw error
        await this.#turn.check()
        if (await this.#isDone(target, error)) return
      }
    }
  }

  /** Something is not as planned: it is done already, or it is to be done in another way. */
  async #isDone(target: Target, error: FerryError): Promise<boolean> {
    const { signal } = this.#turn
    const head = await this.#files.head(keyOfTarget(target), signal)
    if (isOurs(head, this.#intent)) {
      this.#told(target, head!.etag)
      return true
    }
    const source = target.source
    if (source && error.code !== 'CONFLICT') {
      const now = await this.#sourceNow(source)
      if (now && now.etag !== source.etag) return this.#sourceChanged(target, now)
      if (!now) {
        if (this.#intent.changes[target.index].do !== 'put') return this.#refuseGone(target)
        target.source = null
      }
    }
    if (head && head.etag !== target.replaces) {
      if (source?.key === head.key && !source.held) return this.#sourceChanged(target, head)
      // Theirs will do as well.
      if (target.directory) {
        target.replaces = head.etag
        return this.#intent.changes[target.index].do === 'make'
      }
      await this.#goElsewhere(target)
    } else if (!head && target.replaces !== null && (await this.#isTheirDirectory(target)))
      await this.#goElsewhere(target)
    else target.replaces = head?.etag ?? null
    return false
  }

  /** They have made a directory of the file that was to be replaced. */
  async #isTheirDirectory({ path, directory }: Target): Promise<boolean> {
    if (directory || this.#lines.goneBy(path)) return false
    return (await this.#files.find(path, this.#turn.signal))?.kind === 'directory'
  }

  async #sourceNow({ key, held }: Source): Promise<Known | null> {
    const head = await this.#files.head(held ? this.#key(held) : key, this.#turn.signal)
    return head ?? (held ? this.#files.head(key, this.#turn.signal) : null)
  }

  /** Somebody has changed what it is made of, since it was looked at. */
  async #sourceChanged(target: Target, { key, etag, size }: Known): Promise<boolean> {
    const change = this.#intent.changes[target.index]
    const before = target.source!
    target.source = { key, etag, size, held: null }
    target.expected = false
    if ((change.do === 'patch' || change.do === 'put') && change.expect !== undefined) await this.#goElsewhere(target)
    else if (target.replaces === before.etag && before.key === keyOfTarget(target)) target.replaces = etag
    return false
  }

  /** Theirs keeps the name. */
  async #goElsewhere(target: Target): Promise<void> {
    const { path, otherwise, index } = target
    target.replaces = null
    target.path = await this.#names.free({ path, otherwise, index })
    this.#conflicts.push({ path, keptAs: target.path })
  }

  #refuseGone({ index }: Target): true {
    const change = this.#intent.changes[index]
    const path = change.do === 'move' ? change.to : change.path
    if (change.do !== 'attributes') this.#refused.set(index, { path, code: 'NOT_FOUND', detail: 'somebody removed it' })
    return true
  }

  #told(target: Target, etag: string): void {
    const change = this.#intent.changes[target.index]
    const { path, directory, source, expected } = target
    if (directory) return
    if (source && source.etag !== etag) this.#options.onReplace(path, source.etag)
    if (change.do === 'move' && source && source.etag !== etag) this.#moved.push([path, etag, source.etag])
    const isOurs = change.do === 'put' || change.do === 'patch' || (change.do === 'attributes' && expected)
    if (isOurs) this.#versions.set(path, etag)
  }

  // --- directories

  async #placeSubtree(subtree: Subtree): Promise<void> {
    const { index, to, from } = subtree
    const change = this.#intent.changes[index] as Extract<TreeChange, { do: 'move' }>
    for await (const members of this.#members(subtree))
      await this.#each(members, member => {
        const { rest, replaces } = member
        const source = sourceOfMember(subtree, member)
        const directory = rest === '' || rest.endsWith('/')
        const path = to + afterOf(directory ? rest.slice(0, -1) : rest)
        // Theirs is where we come: ours is below the other name of the directory.
        const otherwise = change.otherwise + path.slice(to.length)
        const target = { index, directory, replaces, source, path, otherwise, expected: false, placed: null }
        return keyOfTarget(target) === prefixOf(to) + rest
          ? this.#place(target)
          : this.#placeRaw(target, rest, { from, to })
      })
  }

  /** An object that nobody can see in a mount moves with the rest. */
  async #placeRaw({ source }: Target, rest: Key, { to }: { from: Path; to: Path }): Promise<void> {
    const head = await this.#files.head(source!.key, this.#turn.signal)
    if (!head) return
    const { metadata, contentType } = head
    await this.#content
      .copy({ key: prefixOf(to) + rest, metadata, contentType, ifAbsent: true }, source!)
      .catch(error => {
        if (!isFerryError(error, 'CONFLICT', 'NOT_FOUND', 'STALE')) throw error
      })
  }

  async #removeSubtree(subtree: Subtree): Promise<void> {
    const prefix = prefixOf(subtree.from)
    for await (const members of this.#members(subtree))
      await this.#removeMany(
        members.map(({ rest, etag }) => {
          const path = subtree.from + afterOf(rest.endsWith('/') ? rest.slice(0, -1) : rest)
          return { key: prefix + rest, etag, path }
        }),
      )
  }

  /** Has an object of its own from now on. */
  async #ensure(path: Path): Promise<void> {
    await this.#turn.guard()
    const options = { ifAbsent: true, contentType: DIRECTORY_TYPE }
    await this.#files.objects.put(directoryKey(path), EMPTY, options, this.#turn.signal).catch(error => {
      if (!isFerryError(error, 'CONFLICT')) throw error
    })
  }

  // --- 4. remove

  /** Together where that is cheaper, but for what must be looked at on its own. */
  async #removeMany(leavers: readonly Leaver[]): Promise<void> {
    const { signal, guard } = this.#turn
    const { objects } = this.#files
    const going = leavers.filter(({ key }) => !this.#stays.has(key))
    const together = going.filter(({ path }) => !this.#lines.comesAt(path))
    if (!isManyTogether(objects, together)) return this.#each(going, one => this.#remove(one))
    await this.#each(
      going.filter(({ path }) => this.#lines.comesAt(path)),
      one => this.#remove(one),
    )
    try {
      const others = await removeMatching({ objects, guard, parallel: this.#options.parallel, signal }, together)
      await this.#each(others, ({ key, path }) => this.#keep(key, path))
    } catch (error) {
      if (!isPermanent(error)) throw error
      // One of them may not go, and is found by going alone.
      await this.#each(together, one => this.#remove(one))
    }
  }

  async #remove({ key, etag, path }: Leaver): Promise<void> {
    if (this.#stays.has(key)) return
    const { signal } = this.#turn
    // Something of this batch may have the name, and even the same bytes.
    if (this.#lines.comesAt(path) && isOurs(await this.#files.head(key, signal), this.#intent)) return
    await this.#turn.guard()
    try {
      await this.#files.objects.remove(key, { ifMatch: etag }, signal)
    } catch (error) {
      if (isPermanent(error)) this.#refuseRemoval(path, error as FerryError)
      else if (isFerryError(error, 'CONFLICT')) await this.#keep(key, path)
      else if (!isFerryError(error, 'NOT_FOUND')) throw error
    }
  }

  #refuseRemoval(path: Path, { code, message }: FerryError): void {
    const line = this.#lines.goneBy(path)
    if (line) this.#refused.set(line.index, { path, code, detail: message })
  }

  async #keep(key: Key, path: Path): Promise<void> {
    await this.#turn.check()
    if (isOurs(await this.#files.head(key, this.#turn.signal), this.#intent)) return
    this.#conflicts.push({ path, keptAs: path })
  }
}

/** The path below a directory that a key stands for, with its slash. */
const afterOf = (rest: Key): Path =>
  rest === ''
    ? ''
    : `/${rest
        .split('/')
        .map(part => nameOf(part) ?? part)
        .join('/')}`
