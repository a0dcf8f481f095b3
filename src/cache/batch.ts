// What a frozen batch has to tell the remote: the net difference between what it has and the tree at the cut.
import { CHUNK_BYTES, firstRun, PAGE_BYTES, runEnd, runLength, runStart } from '../chunk/geometry.js'
import type { CopySource } from '../remote/commits.js'
import type { Content as RemoteContent, TreeCapabilities, TreeChange } from '../remote/tree.js'
import type { Row } from './chunk-table.js'
import type { Ino } from './filesystem.js'
import { Changed, type Inode } from './inode.js'
import { type Changes, join, type TreeState, UNKNOWN_VERSION } from './state.js'

/** Content up to this size travels inside the intent. */
const INLINE_BYTES_MAX = 64 * 1024
/** All that travels inside one intent. */
const INTENT_BYTES_MAX = 32 * 1024 * 1024

/** Bytes of one file that must be staged: frozen pages, by the slot in which they stay until the batch is settled. */
export interface Stage {
  ino: Ino
  id: string
  runs: StagedRun[]
  bytes: number
}

export interface StagedRun {
  at: number
  slot: number
  offset: number
  length: number
  /** The remote has these bytes. */
  copy?: CopySource
}

export interface Plan {
  changes: TreeChange[]
  stages: Stage[]
  /** Whom the lines are about, by path after the batch. */
  inodes: Map<string, Ino>
  bytes: number
}

export interface PlanContext {
  capabilities: TreeCapabilities
  /** Appended to the name of what meets somebody else's change: `.conflict-HOST-YYYYMMDDTHHMMSSZ`. */
  conflictSuffix: string
  /** Of a file that is not known to be as we left it: undefined is to say that nobody else writes. */
  unknownVersion: string | undefined
  /** The remote can make bytes of one file out of those of another. */
  copies: boolean
  /** Every byte of the file is here. */
  complete(inode: Inode): boolean
}

/** Made in the same turn as the cut, so that the state is the cut's. */
export function planBatch(state: TreeState, flight: Changes, context: PlanContext): Plan {
  const plan: Plan = { changes: [], stages: [], inodes: new Map(), bytes: 0 }
  const names = new NameDiff(state, flight, context)
  names.plan(plan)
  for (const ino of flight.inodes) planInode(state, state.inode(ino), names.created, context, plan)
  for (const ino of flight.orphans) plan.changes.push({ do: 'remove', path: state.orphanPath(ino) })
  return plan
}

interface Place {
  parent: Ino
  name: string
}

/** Names that are gone and names that are new, matched by inode into removals, moves, links, and places for what is new. */
class NameDiff {
  readonly #removed = new Map<Ino, Place[]>()
  readonly #added = new Map<Ino, Place[]>()
  /** Path of each inode that the remote does not have yet. */
  readonly created = new Map<Ino, string>()

  constructor(
    readonly state: TreeState,
    flight: Changes,
    readonly context: PlanContext,
  ) {
    for (const { parent, name, base } of flight.names.values()) {
      const directory = state.find(parent)
      const now = directory ? (state.children(directory).get(name)?.ino ?? 0) : 0
      if (now === base) continue
      if (base) push(this.#removed, base, { parent, name })
      if (now && !(state.isLocalOnly(name) && !state.inode(now).isDirectory)) push(this.#added, now, { parent, name })
    }
  }

  plan(plan: Plan) {
    const { state } = this
    for (const [ino, added] of this.#added) {
      const inode = state.inode(ino)
      const removed = this.#removed.get(ino) ?? []
      const path = (place: Place) => join(state.path(state.inode(place.parent)) ?? '', place.name)
      const primary = added.find(place => place.parent === inode.parent && place.name === inode.name) ?? added[0]
      let target = path(primary)
      let rest = added.filter(place => place !== primary)
      const source = removed.pop()
      if (inode.remoteParent === 0) this.created.set(ino, target)
      else if (source) {
        plan.changes.push({
          do: 'move',
          from: this.#committed(source),
          to: target,
          otherwise: target + this.context.conflictSuffix,
        })
        plan.inodes.set(target, ino)
      } else {
        target = join(state.path(state.inode(inode.remoteParent)) ?? '', inode.remoteName)
        rest = added
      }
      for (const place of rest) plan.changes.push({ do: 'link', path: path(place), target })
    }
    for (const [ino, removed] of this.#removed) {
      const inode = state.find(ino)
      for (const place of removed) this.#remove(plan, inode, place)
    }
  }

  #remove(plan: Plan, inode: Inode | null, place: Place) {
    const path = this.#committed(place)
    const open = inode && inode.parent === 0 && inode.isFile && this.state.isHeld(inode)
    if (open && inode.version !== null && !this.context.complete(inode)) {
      // Somebody still reads it, and its bytes are not all here.
      inode.flightParent = -1
      const orphan = this.state.orphanPath(inode.ino)
      plan.changes.push({ do: 'move', from: path, to: orphan, otherwise: orphan })
      return
    }
    if (open) this.state.keepHere(inode)
    const expect = inode?.isFile ? known(inode, this.context) : undefined
    plan.changes.push(expect === undefined ? { do: 'remove', path } : { do: 'remove', path, expect })
  }

  #committed(place: Place): string {
    return join(this.state.remotePath(this.state.inode(place.parent)) ?? '', place.name)
  }
}

function planInode(state: TreeState, inode: Inode, created: Map<Ino, string>, context: PlanContext, plan: Plan) {
  const isNew = inode.remoteParent === 0
  const path = isNew ? created.get(inode.ino) : state.path(inode)
  if (path === undefined || path === null || inode.flightParent === -1) return
  const otherwise = path + context.conflictSuffix
  const xattrs = inode.flight & Changed.xattrs && inode.xattrs ? new Map(inode.xattrs) : undefined
  const attributes = inode.attributes
  plan.inodes.set(path, inode.ino)
  if (!inode.isFile) {
    if (isNew)
      plan.changes.push({
        do: 'make',
        path,
        node: { ...attributes, rdev: inode.rdev, link: inode.link },
        xattrs,
        otherwise,
      })
    else if (inode.flight & (Changed.attributes | Changed.xattrs))
      plan.changes.push({ do: 'attributes', path, attributes, xattrs })
    return
  }
  if (!isNew && (inode.flight & Changed.data) === 0) {
    if (inode.flight & (Changed.attributes | Changed.xattrs))
      plan.changes.push({ do: 'attributes', path, attributes, xattrs, expect: known(inode, context) })
    return
  }
  const { size } = inode
  const common = { path, size, attributes, xattrs, otherwise }
  const small = size <= INLINE_BYTES_MAX && inode.nlink === 1 && context.complete(inode)
  const whole = isNew || (inode.baseSize === 0 && inode.nlink === 1) || small
  if (whole) {
    const content = contentOf(state, inode, { which: small ? 'valid' : 'flight', context, plan })
    plan.changes.push({ do: 'put', ...common, content, expect: isNew ? null : known(inode, context) })
    return
  }
  // The kernel has not said yet when it was, if it ever does: under its old mtime the file would pass for what it was before.
  if (!(inode.flight & Changed.times)) inode.mtimeNs = state.now.ns()
  plan.changes.push({
    do: 'patch',
    ...common,
    attributes: inode.attributes,
    floor: inode.flightFloor,
    content: contentOf(state, inode, { which: 'flight', context, plan }),
    zeros: zerosOf(inode),
    expect: known(inode, context),
  })
}

/** The version to expect. */
const known = ({ version }: Inode, { unknownVersion }: PlanContext) =>
  version === UNKNOWN_VERSION ? unknownVersion : (version ?? undefined)

/** Runs that became zeros. What was written since has been taken out of them. */
function zerosOf({ zeros, size }: Inode): { at: number; length: number }[] {
  const runs = [...(zeros?.flight ?? [])].filter(([from]) => from < size)
  return runs.map(([from, to]) => ({ at: from, length: Math.min(to, size) - from }))
}

function contentOf(
  state: TreeState,
  inode: Inode,
  { which, context, plan }: { which: 'valid' | 'flight'; context: PlanContext; plan: Plan },
): RemoteContent {
  const { chunks } = state
  const rows = state.chunks.rowsOf(inode.ino).sort((a, b) => chunks.index[a] - chunks.index[b])
  const all: StagedRun[] = []
  for (const row of rows) addRuns(state, row, which, inode.size, all)
  const ahead = which === 'flight' ? state.flightAhead.get(inode.ino) : undefined
  const runs = ahead ? all.filter(({ at }) => !ahead.has(at / CHUNK_BYTES)) : all
  const bytes = runs.reduce((sum, run) => sum + run.length, 0)
  plan.bytes += bytes
  if (runs.length === all.length && bytes <= INLINE_BYTES_MAX && plan.bytes <= INTENT_BYTES_MAX) {
    return {
      inline: runs.map(run => {
        const into = new Uint8Array(run.length)
        state.slots.readSync(run.slot, run.offset, into)
        return { at: run.at, bytes: into }
      }),
    }
  }
  if (context.copies) addCopies(state, inode.ino, runs)
  const id = ahead?.id ?? `f${inode.ino}`
  plan.stages.push({ ino: inode.ino, id, runs, bytes })
  const extents: { at: number; length: number }[] = []
  for (const run of all) {
    const last = extents.at(-1)
    if (last && last.at + last.length === run.at) last.length += run.length
    else extents.push({ at: run.at, length: run.length })
  }
  return { staged: id, extents }
}

function addRuns(state: TreeState, row: Row, which: 'valid' | 'flight', size: number, runs: StagedRun[]) {
  const { chunks } = state
  const mask = which === 'flight' ? chunks.flight[row] : chunks.valid[row]
  const slot = which === 'flight' ? chunks.flightSlot[row] : chunks.slot[row]
  const start = chunks.index[row] * CHUNK_BYTES
  for (let run = firstRun(mask, 0); run >= 0; run = firstRun(mask, runEnd(run))) {
    const offset = runStart(run) * PAGE_BYTES
    const length = Math.min(runLength(run) * PAGE_BYTES, size - start - offset)
    if (length > 0) runs.push({ at: start + offset, slot, offset, length })
  }
}

/** Chunks that were copied here and not changed since, of what the remote still has as it was. */
function addCopies(state: TreeState, ino: Ino, runs: StagedRun[]) {
  const copies = state.copies.get(ino)
  if (!copies) return
  const paths = new Map<Ino, string | null>()
  for (const run of runs) {
    const copied = copies.get(run.at / CHUNK_BYTES)
    const source = copied?.slot === run.slot ? state.find(copied.ino) : null
    if (!copied || source?.version !== copied.version) continue
    if (!paths.has(source.ino)) paths.set(source.ino, state.remotePath(source))
    const path = paths.get(source.ino)
    if (path) run.copy = { path, version: copied.version, at: copied.index * CHUNK_BYTES, length: run.length }
  }
}

function push<K, V>(map: Map<K, V[]>, key: K, value: V) {
  const list = map.get(key)
  if (list) list.push(value)
  else map.set(key, [value])
}
