// The stage: a directory per epoch under `.pageferry/stage/`, in which everything of a batch waits, and through which every step
// of its application goes. Whoever takes the lease over renames it, and from then on no step of the former holder succeeds.
import { constants } from 'node:fs'
import { Packr } from 'msgpackr'
import { inParallel } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { readWhole } from './rollforward-content.js'
import { ORPHANS } from './rollforward-plan.js'
import { type Attributes, type Entry, HIDDEN, type NewNode, type Path, type Tree } from './tree.js'

const { S_IFDIR, S_IFREG, S_IFLNK, S_IFMT } = constants

export const STAGE = `${HIDDEN}/stage`
/** What could neither be placed nor put back, and must not be thrown away. */
export const LOST = `${HIDDEN}/lost`
/** A symlink in the stage directory to the root: paths through it end when the directory is renamed. */
const ROOT_LINK = 'root'
const ROOT_FROM_STAGE = '../../..'

export const stagePath = (epoch: number): Path => `${STAGE}/${epoch}`

/** A node as nobody should see it: what is staged gets its own attributes when it is complete. */
export const bareNode = (type: number): NewNode => ({
  mode: type | (type === S_IFDIR ? 0o700 : 0o600),
  uid: process.geteuid?.() ?? 0,
  gid: process.getegid?.() ?? 0,
  atimeNs: 0n,
  mtimeNs: 0n,
  rdev: 0,
})

export const isDirectory = (entry: Pick<Entry, 'mode'>) => (entry.mode & S_IFMT) === S_IFDIR
export const isFile = (entry: Pick<Entry, 'mode'>) => (entry.mode & S_IFMT) === S_IFREG

/** And nothing else that the argument has. */
export const attributesOf = ({ mode, uid, gid, atimeNs, mtimeNs }: Attributes): Attributes => ({
  mode,
  uid,
  gid,
  atimeNs,
  mtimeNs,
})

export const orIf =
  <T>(value: T, ...codes: Parameters<typeof isFerryError>[1][]) =>
  (error: unknown): T => {
    if (isFerryError(error, ...codes)) return value
    throw error
  }

/** Of one thing that is made or removed, while the remote does not answer. */
const TRIES_MAX = 16
/** Daemons that live for a moment only, one after the other, would otherwise leave more than the next one gets to remove. */
const REMOVED_AT_ONCE = 16

/** Tries again what is ours and can be done twice, which nobody else knows of this call. */
async function insist(work: () => Promise<void>): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      return await work()
    } catch (error) {
      if (!isFerryError(error, 'UNREACHABLE') || tries === TRIES_MAX) throw error
    }
  }
}

/** Something new of ours, or what is there. */
const makeOrKeep = (tree: Tree, path: Path, node: NewNode, signal?: AbortSignal): Promise<void> =>
  insist(() => tree.make(path, node, signal).catch(orIf(undefined, 'EXISTS')))

/** What is ours, or is gone already. */
const removeIfThere = (tree: Tree, path: Path, signal?: AbortSignal): Promise<void> =>
  insist(() => tree.remove(path, signal).catch(orIf(undefined, 'NOT_FOUND')))

/** A new directory of ours, or the one that is there. */
export const makeDirectory = (tree: Tree, path: Path, signal?: AbortSignal): Promise<void> =>
  makeOrKeep(tree, path, bareNode(S_IFDIR), signal)

/** The stage directory of a new epoch. */
export async function openStage(tree: Tree, epoch: number, signal?: AbortSignal): Promise<void> {
  await makeDirectory(tree, HIDDEN, signal)
  await makeDirectory(tree, STAGE, signal)
  await makeDirectory(tree, stagePath(epoch), signal)
  if (tree.capabilities.symlinks)
    await makeOrKeep(tree, `${stagePath(epoch)}/${ROOT_LINK}`, { ...bareNode(S_IFLNK), link: ROOT_FROM_STAGE }, signal)
  await tree.sync([stagePath(epoch)], signal)
}

/** All names in a directory; none if it is not there. */
export async function listAll(tree: Tree, path: Path, signal?: AbortSignal): Promise<Entry[]> {
  const all: Entry[] = []
  for (let cursor: string | undefined; ; ) {
    const page = await tree.list(path, cursor, signal).catch(orIf({ entries: [], cursor: undefined }, 'NOT_FOUND'))
    all.push(...page.entries)
    cursor = page.cursor
    if (cursor === undefined) return all
  }
}

/** The stage directory that `epoch` began, by whatever name it goes now; null: it is gone. */
export async function findStage(
  tree: Tree,
  epoch: number,
  signal?: AbortSignal,
): Promise<{ path: Path; taken: number } | null> {
  for (const { name } of await listAll(tree, STAGE, signal)) {
    const [, begun, taken] = /^(\d+)(?:\.taken-(\d+))?$/.exec(name) ?? []
    if (Number(begun) === epoch) return { path: `${STAGE}/${name}`, taken: Number(taken ?? epoch) }
  }
  return null
}

const FENCES_MAX = 64

/** Renames the stage directory of `epoch`, so that no step of whoever worked in it succeeds from now on. */
export async function fenceStage(tree: Tree, epoch: number, mine: number, signal?: AbortSignal): Promise<Path> {
  const wanted = `${stagePath(epoch)}.taken-${mine}`
  for (let tries = 0; tries < FENCES_MAX; tries++) {
    const found = await findStage(tree, epoch, signal)
    if (!found) await makeDirectory(tree, wanted, signal)
    else if (found.taken === mine || found.taken > mine) return wanted
    else await tree.rename(found.path, wanted, signal).catch(orIf(undefined, 'NOT_FOUND'))
  }
  return wanted
}

/** The stage directory in which one batch is applied: what is in it, and its steps. */
export class Stage {
  readonly tree: Tree
  readonly path: Path
  /** What lies in it, as far as this process knows. */
  readonly names: Set<string>
  /** Where paths of the tree begin that end with this directory; null: the tree does not follow symlinks. */
  readonly #root: Path | null

  private constructor(tree: Tree, path: Path, names: Set<string>, root: Path | null) {
    this.tree = tree
    this.path = path
    this.names = names
    this.#root = root
  }

  static async open(tree: Tree, path: Path, signal?: AbortSignal): Promise<Stage> {
    const names = new Set((await listAll(tree, path, signal)).map(({ name }) => name))
    const root = `${path}/${ROOT_LINK}`
    const followed = names.has(ROOT_LINK) && (await tree.stat(`${root}/${STAGE}`, signal)) !== null
    return new Stage(tree, path, names, followed ? root : null)
  }

  /** Every step but the attributes of the root ends with this directory. */
  get fenced(): boolean {
    return this.#root !== null && this.tree.capabilities.hardLinks
  }

  at(name: string): Path {
    return `${this.path}/${name}`
  }

  has(name: string): boolean {
    return this.names.has(name)
  }

  /** Is this name there after all? A call that failed may have been made. */
  async look(name: string, signal?: AbortSignal): Promise<void> {
    if ((await this.tree.stat(this.at(name), signal)) === null) this.names.delete(name)
    else this.names.add(name)
  }

  /** The same path, but through this directory where the tree can do that. The root has no path behind the link: only the link. */
  through(path: Path): Path {
    return this.#root === null || path === '' ? path : `${this.#root}/${path}`
  }

  /** A committed name comes in. */
  async gather(source: Path, name: string, signal?: AbortSignal): Promise<void> {
    await this.tree.rename(source, this.at(name), signal)
    this.names.add(name)
  }

  /** What waits here goes out. */
  async place(name: string, target: Path, signal?: AbortSignal): Promise<void> {
    await this.tree.rename(this.at(name), target, signal)
    this.names.delete(name)
  }

  async make(name: string, node: NewNode, signal?: AbortSignal): Promise<void> {
    await this.tree.make(this.at(name), node, signal)
    this.names.add(name)
  }

  async link(source: Path, name: string, signal?: AbortSignal): Promise<void> {
    await this.tree.link(source, this.at(name), signal)
    this.names.add(name)
  }

  async rename(source: string, target: string, signal?: AbortSignal): Promise<void> {
    await this.gather(this.at(source), target, signal)
    this.names.delete(source)
  }

  async remove(name: string, signal?: AbortSignal): Promise<void> {
    await removeIfThere(this.tree, this.at(name), signal)
    this.names.delete(name)
  }

  /** A mark, with something written on it: there whole, or not at all. */
  async note(name: string, value: unknown, signal?: AbortSignal): Promise<void> {
    const fresh = `${name}.new`
    if (this.has(fresh)) await this.remove(fresh, signal)
    await this.make(fresh, bareNode(S_IFREG), signal)
    await this.tree.write(this.at(fresh), 0, packr.pack(value), signal)
    await this.rename(fresh, name, signal)
  }

  /** null: nothing is written on it. */
  async readNote<T>(name: string, signal?: AbortSignal): Promise<T | null> {
    const path = this.at(name)
    const entry = await this.tree.stat(path, signal)
    if (!entry) throw new FerryError('NOT_FOUND', { detail: path })
    const { size } = entry
    return size === 0 ? null : unpackNote<T>(await readWhole(this.tree, path, { at: 0, length: size }, signal))
  }
}

const packr = new Packr({ useRecords: false })

/** null: nothing is written on it. */
export const unpackNote = <T>(bytes: Uint8Array): T | null =>
  bytes.byteLength === 0 ? null : (packr.unpack(bytes) as T)

/** Stage directories of epochs before this one. */
async function formerStages(tree: Tree, mine: number, signal?: AbortSignal): Promise<Path[]> {
  const names = (await listAll(tree, STAGE, signal)).map(({ name }) => name)
  return names.filter(name => !(Number(/^\d+/.exec(name)?.[0]) >= mine)).map(name => `${STAGE}/${name}`)
}

/** What was left in the stage directories of former epochs goes. Directories that are not empty hold things of others: they are kept. */
export async function sweepStages(tree: Tree, mine: number, signal?: AbortSignal): Promise<void> {
  for (const path of await formerStages(tree, mine, signal)) {
    const entries = await listAll(tree, path, signal)
    await inParallel(entries, REMOVED_AT_ONCE, entry => discard(tree, path, entry, signal))
    await removeIfThere(tree, path, signal).catch(orIf(undefined, 'NOT_EMPTY'))
  }
}

/** Other names of files, which former epochs had in their stages, count as names of theirs for whoever looks. */
export async function sweepLinks(tree: Tree, mine: number, signal?: AbortSignal): Promise<void> {
  for (const path of await formerStages(tree, mine, signal)) {
    const entries = await listAll(tree, path, signal)
    const links = entries.filter(entry => entry.nlink > 1 && !isDirectory(entry))
    await inParallel(links, REMOVED_AT_ONCE, link => removeIfThere(tree, `${path}/${link.name}`, signal))
  }
}

/** Files without a name that a former writer kept. */
export async function sweepOrphans(tree: Tree, guard: () => Promise<void>, signal?: AbortSignal): Promise<void> {
  for (const { name } of await listAll(tree, ORPHANS, signal)) {
    await guard()
    await removeIfThere(tree, `${ORPHANS}/${name}`, signal).catch(orIf(undefined, 'NOT_EMPTY'))
  }
}

/** Removes what lies in a stage directory, unless somebody put something into it. */
export async function discard(
  tree: Tree,
  directory: Path,
  entry: Pick<Entry, 'name'>,
  signal?: AbortSignal,
): Promise<void> {
  const path = `${directory}/${entry.name}`
  try {
    await removeIfThere(tree, path, signal)
  } catch (error) {
    if (!isFerryError(error, 'NOT_EMPTY')) throw error
    await makeDirectory(tree, LOST, signal)
    await tree.rename(path, `${LOST}/${directory.slice(STAGE.length + 1)}.${entry.name}`, signal)
  }
}
