// What a batch means for a tree, before anything is touched: which names go, which come, and in which order. Pure.
import { parentPath } from './path.js'
import { HIDDEN, HIDDEN_BESIDE, type Path, type TreeChange } from './tree.js'

type Of<Do extends TreeChange['do']> = Extract<TreeChange, { do: Do }>

/** A committed name that goes, into the stage: for good, or to be placed elsewhere. */
export interface Gather {
  index: number
  change: Of<'remove'> | Of<'move'>
  /** As it was before the batch. */
  path: Path
}

/** A name that comes, out of the stage. */
export interface Place {
  index: number
  change: Of<'make'> | Of<'put'> | Of<'move'>
  /** As it is after the batch. */
  path: Path
  /** Where it waits in the stage directory. */
  staged: string
}

export interface Link {
  index: number
  change: Of<'link'>
}
export interface Patch {
  index: number
  change: Of<'patch'>
}
export interface AttributesOf {
  index: number
  change: Of<'attributes'>
}

export interface Plan {
  /** Deepest first: what leaves a directory has left it before the directory goes. One group is as deep as the other. */
  gathers: Gather[][]
  /** Parents first. */
  places: Place[][]
  links: Link[]
  patches: Patch[]
  attributes: AttributesOf[]
  /**
   * Once placing has begun, the committed names no longer tell what was gathered, nor the stage what was made: a mark between
   * the two says so. Without these there is nothing to confuse.
   */
  marked: boolean
  /** Directories whose times the batch does not tell, though files come into them: they keep those that they have. */
  untold: Path[]
}

/** How the engine's staged bytes and ours are called in the stage directory. Ours have a dot, ids cannot. */
export const stagedName = (batch: number, id: string) => `${batch}-${id}`
export const ownName = (batch: number, what: string) => `${batch}.${what}`

export const depthOf = (path: Path): number => {
  let depth = path === '' ? 0 : 1
  for (let at = path.indexOf('/'); at >= 0; at = path.indexOf('/', at + 1)) depth++
  return depth
}

/** Files that lost their last name while somebody had them open: the only hidden paths that a batch may name. */
export const ORPHANS = `${HIDDEN}/orphans`

export const isHiddenPath = (path: Path) =>
  path === HIDDEN ||
  (path.startsWith(`${HIDDEN}/`) && !path.startsWith(`${ORPHANS}/`)) ||
  path.startsWith(HIDDEN_BESIDE) ||
  path.includes(`/${HIDDEN_BESIDE}`)

/** Paths above, the nearest first; the root last. */
export function* above(path: Path): Generator<Path> {
  while (path !== '') {
    path = parentPath(path)
    yield path
  }
}

/** Where a thing that comes by this change waits in the stage directory. */
export function waitsAt(batch: number, index: number, change: Place['change']): string {
  if (change.do === 'put' && 'staged' in change.content) return stagedName(batch, change.content.staged)
  return ownName(batch, `${change.do === 'move' ? 'gone' : 'new'}-${index}`)
}

export const goneName = (batch: number, index: number) => ownName(batch, `gone-${index}`)

export function planOf(batch: number, changes: TreeChange[]): Plan {
  const gathers: Gather[] = []
  const places: Place[] = []
  const plan: Plan = {
    gathers: [],
    places: [],
    links: [],
    patches: [],
    attributes: [],
    marked: false,
    untold: untoldBy(changes),
  }
  const come = new Set<Path>()
  changes.forEach((change, index) => {
    switch (change.do) {
      case 'remove':
        gathers.push({ index, change, path: change.path })
        break
      case 'move':
        gathers.push({ index, change, path: change.from })
        places.push({ index, change, path: change.to, staged: waitsAt(batch, index, change) })
        plan.marked = true
        break
      case 'put':
      case 'make':
        places.push({ index, change, path: change.path, staged: waitsAt(batch, index, change) })
        plan.marked ||= change.do === 'make' || 'inline' in change.content
        break
      case 'link':
        plan.links.push({ index, change })
        come.add(change.path)
        break
      case 'patch':
        plan.patches.push({ index, change })
        break
      case 'attributes':
        plan.attributes.push({ index, change })
    }
  })
  for (const { path } of places) come.add(path)
  plan.marked ||= plan.untold.length > 0 || entangled(gathers, come)
  plan.gathers = byDepth(gathers, -1)
  // What is moved to a name may be replaced there by what is put.
  plan.places = byDepth(places, 1).flatMap(group => [
    group.filter(({ change }) => change.do !== 'put'),
    group.filter(({ change }) => change.do === 'put'),
  ])
  return plan
}

/** Directories that get files but no line: a file that is written to does not change its directory, one that replaces it does. */
export function untoldBy(changes: TreeChange[]): Path[] {
  const told = new Set(
    changes.flatMap(change => (change.do === 'attributes' || change.do === 'make' ? [change.path] : [])),
  )
  const untold = new Set<Path>()
  for (const change of changes) {
    if (change.do !== 'put' && change.do !== 'link') continue
    const directory = parentPath(change.path)
    if (!told.has(directory)) untold.add(directory)
  }
  return [...untold]
}

/** Something comes at the very name of something that goes, or above or below it. */
function entangled(gathers: Gather[], come: Set<Path>): boolean {
  if (come.size === 0) return false
  const aboveCome = new Set([...come].flatMap(path => [...above(path)]))
  return gathers.some(
    ({ path }) => come.has(path) || aboveCome.has(path) || [...above(path)].some(one => come.has(one)),
  )
}

/** In groups of one depth: the highest first, or (-1) the deepest. */
export function byDepth<T extends { path: Path }>(items: T[], order: 1 | -1): T[][] {
  const groups = new Map<number, T[]>()
  for (const item of items) {
    const depth = depthOf(item.path)
    const group = groups.get(depth)
    if (group) group.push(item)
    else groups.set(depth, [item])
  }
  return [...groups].sort(([one], [other]) => (one - other) * order).map(([, group]) => group)
}
