// A naive tree, random programs on it, and the net change between two of its states: what an engine would commit.
import { constants } from 'node:fs'
import type { Random } from '../../src/base/random.js'
import type { Attributes, Content, Entry, Path, Tree, TreeCapabilities, TreeChange } from '../../src/remote/tree.js'

const { S_IFMT, S_IFDIR, S_IFREG, S_IFLNK, S_IFIFO } = constants

export interface Node {
  ino: number
  mode: number
  uid: number
  gid: number
  mtimeNs: bigint
  xattrs: Map<string, string>
  /** Of a file. */
  bytes: Uint8Array
  /** The smallest size that the file had since the last commit. */
  floor: number
  link?: string
  /** Of a directory. */
  names?: Map<string, Node>
}

const BLOCK = 16

export class Model {
  readonly root: Node
  clock: bigint
  next: number

  constructor(root?: Node, clock = 1_000_000_000n, next = 2) {
    this.clock = clock
    this.next = next
    this.root = root ?? { ...this.#node(S_IFDIR | 0o755), names: new Map() }
  }

  /** A copy that shares nothing; inode numbers stay. */
  clone(): Model {
    const copies = new Map<Node, Node>()
    const copy = (node: Node): Node => {
      const before = copies.get(node)
      if (before) return before
      const fresh: Node = { ...node, xattrs: new Map(node.xattrs), bytes: node.bytes.slice(), floor: node.bytes.length }
      copies.set(node, fresh)
      if (node.names) fresh.names = new Map([...node.names].map(([name, child]) => [name, copy(child)]))
      return fresh
    }
    return new Model(copy(this.root), this.clock, this.next)
  }

  #node(mode: number): Node {
    return {
      ino: this.next++,
      mode,
      uid: 0,
      gid: 0,
      mtimeNs: this.tick(),
      xattrs: new Map(),
      bytes: new Uint8Array(),
      floor: 0,
    }
  }

  tick(): bigint {
    this.clock += 1_000_000_007n
    return this.clock
  }

  /** All directories, with their paths. */
  directories(): [Path, Node][] {
    return [...this.walk()].filter(([, node]) => node.names)
  }

  *walk(path: Path = '', node: Node = this.root): Generator<[Path, Node]> {
    yield [path, node]
    for (const [name, child] of node.names ?? []) yield* this.walk(path === '' ? name : `${path}/${name}`, child)
  }

  at(path: Path): Node | undefined {
    let node: Node | undefined = this.root
    for (const part of path === '' ? [] : path.split('/')) node = node?.names?.get(part)
    return node
  }

  parent(path: Path): [Node, string] {
    const cut = path.lastIndexOf('/')
    return [this.at(path.slice(0, Math.max(0, cut)))!, path.slice(cut + 1)]
  }

  place(path: Path, node: Node): void {
    const [parent, name] = this.parent(path)
    parent.names!.set(name, node)
    parent.mtimeNs = this.tick()
  }

  drop(path: Path): void {
    const [parent, name] = this.parent(path)
    parent.names!.delete(name)
    parent.mtimeNs = this.tick()
  }

  make(path: Path, mode: number): Node {
    const node = this.#node(mode)
    if ((mode & S_IFMT) === S_IFDIR) node.names = new Map()
    this.place(path, node)
    return node
  }

  resize(node: Node, size: number): void {
    const bytes = new Uint8Array(size)
    bytes.set(node.bytes.subarray(0, size))
    node.bytes = bytes
    node.floor = Math.min(node.floor, size)
    node.mtimeNs = this.tick()
  }

  write(node: Node, at: number, from: Uint8Array): void {
    if (at + from.length > node.bytes.length) this.resize(node, at + from.length)
    node.bytes.set(from, at)
    node.mtimeNs = this.tick()
  }
}

const NAMES = ['a', 'b', 'c', 'd', 'e']

/** What there can be besides files and directories. */
export type Kinds = Pick<TreeCapabilities, 'hardLinks' | 'symlinks' | 'specialFiles'>
const ALL: Kinds = { hardLinks: true, symlinks: true, specialFiles: true }

/** A few random operations, as a program would do them. */
export function mutate(model: Model, random: Random, count: number, kinds = ALL): void {
  for (let done = 0, tries = 0; done < count && tries < count * 20; tries++) if (once(model, random, kinds)) done++
}

function once(model: Model, random: Random, { hardLinks, symlinks, specialFiles }: Kinds): boolean {
  const nodes = [...model.walk()].filter(([path]) => path !== '')
  const directories = model.directories()
  const fresh = () => {
    const [path] = random.pick(directories)
    const name = random.pick(NAMES)
    return path === '' ? name : `${path}/${name}`
  }
  const some = (): [Path, Node] | null => (nodes.length ? random.pick(nodes) : null)
  const isFile = (node: Node) => (node.mode & S_IFMT) === S_IFREG
  switch (random.below(12)) {
    case 0: {
      const path = fresh()
      if (model.at(path)) return false
      const kind = random.below(10)
      const mode =
        kind < 5
          ? S_IFREG | 0o644
          : kind < 8
            ? S_IFDIR | 0o755
            : symlinks && (kind < 9 || !specialFiles)
              ? S_IFLNK | 0o777
              : S_IFIFO | 0o600
      const node = model.make(path, mode)
      if ((mode & S_IFMT) === S_IFLNK) node.link = `to-${random.below(100)}`
      if (isFile(node)) model.write(node, 0, random.bytes(random.below(200)))
      return true
    }
    case 1:
    case 2: {
      // Write, somewhere: maybe over the end, maybe zeros.
      const [, node] = some() ?? []
      if (!node || !isFile(node)) return false
      const length = 1 + random.below(60)
      model.write(
        node,
        random.below(node.bytes.length + 40),
        random.chance(0.3) ? new Uint8Array(length) : random.bytes(length),
      )
      return true
    }
    case 3: {
      const [, node] = some() ?? []
      if (!node || !isFile(node)) return false
      model.resize(node, random.below(node.bytes.length + 60))
      return true
    }
    case 4:
    case 5: {
      // rename(2), which may replace.
      const [source, node] = some() ?? []
      const target = fresh()
      if (source === undefined || !node || source === target || `${target}/`.startsWith(`${source}/`)) return false
      const there = model.at(target)
      if (there === node) return false
      if (there && Boolean(there.names) !== Boolean(node.names)) return false
      if (there?.names && there.names.size > 0) return false
      model.drop(source)
      model.place(target, node)
      return true
    }
    case 6: {
      // Exchange.
      const [one, other] = [some(), some()]
      if (!one || !other || one[1] === other[1]) return false
      if (`${one[0]}/`.startsWith(`${other[0]}/`) || `${other[0]}/`.startsWith(`${one[0]}/`)) return false
      model.place(one[0], other[1])
      model.place(other[0], one[1])
      return true
    }
    case 7: {
      const [path, node] = some() ?? []
      if (path === undefined || (node!.names && node!.names.size > 0 && random.chance(0.7))) return false
      const remove = (one: Path): void => {
        for (const name of [...(model.at(one)!.names?.keys() ?? [])]) remove(`${one}/${name}`)
        model.drop(one)
      }
      remove(path)
      return true
    }
    case 8: {
      const [, node] = some() ?? []
      const path = fresh()
      if (!hardLinks || !node || node.names || model.at(path)) return false
      model.place(path, node)
      return true
    }
    case 9: {
      const [, node] = some() ?? []
      if (!node || (node.mode & S_IFMT) === S_IFLNK) return false
      node.mode = (node.mode & S_IFMT) | random.pick([0o700, 0o755, 0o644, 0o600, 0o711, 0o555])
      if (random.chance(0.3)) node.uid = 1 + random.below(3)
      return true
    }
    case 10: {
      const [, node] = some() ?? []
      if (!node || (!node.names && !isFile(node))) return false
      node.xattrs.set(`user.${random.pick(NAMES)}`, String(random.below(1000)))
      if (random.chance(0.3)) node.xattrs.delete(`user.${random.pick(NAMES)}`)
      return true
    }
    default: {
      // Replace a directory by a new one of its name, or a file by a directory.
      const [path, node] = some() ?? []
      if (path === undefined || (node!.names?.size ?? 0) > 0) return false
      model.drop(path)
      model.make(path, random.chance(0.5) ? S_IFDIR | 0o750 : S_IFREG | 0o640)
      return true
    }
  }
}

export interface NetChange {
  changes: TreeChange[]
  /** What must be staged before. */
  staged: { id: string; at: number; bytes: Uint8Array }[]
}

export interface DiffOptions {
  random: Random
  /** Committed versions by inode, as far as the engine knows them. */
  versions: Map<number, string>
  whole?: boolean
}

const attributesOf = ({ mode, uid, gid, mtimeNs }: Node): Attributes => ({ mode, uid, gid, atimeNs: mtimeNs, mtimeNs })

/** The lines of a batch that leads from one state to the other. */
export function diff(before: Model, after: Model, { random, versions, whole = false }: DiffOptions): NetChange {
  const changes: TreeChange[] = []
  const staged: NetChange['staged'] = []
  const old = names(before)
  const now = names(after)
  const otherwise = (path: Path) => `${path}.conflict`
  const xattrsOf = (node: Node) => new Map([...node.xattrs].map(([name, value]) => [name, Buffer.from(value)]))
  const content = (extents: { at: number; bytes: Uint8Array }[]): Content => {
    if (random.chance(0.5)) return { inline: extents }
    const id = `s${staged.length}-${random.below(1000)}`
    for (const { at, bytes } of extents) staged.push({ id, at, bytes })
    return { staged: id, extents: extents.map(({ at, bytes }) => ({ at, length: bytes.length })) }
  }
  const put = (path: Path, node: Node, expect: string | null | undefined, xattrs = true): TreeChange => ({
    ...{
      do: 'put',
      path,
      size: node.bytes.length,
      attributes: attributesOf(node),
      xattrs: xattrs ? xattrsOf(node) : undefined,
      otherwise: otherwise(path),
    },
    ...{ expect, content: content(wholeOf(node, random)) },
  })

  for (const [ino, { node, paths }] of now) {
    const was = old.get(ino)
    if (!was) {
      const [first, ...rest] = paths.values()
      const isFile = (node.mode & S_IFMT) === S_IFREG
      if (isFile && (node.bytes.length > 0 || random.chance(0.5))) changes.push(put(first, node, null))
      else
        changes.push({
          do: 'make',
          path: first,
          node: { ...attributesOf(node), rdev: 0, link: node.link },
          xattrs: xattrsOf(node),
          otherwise: otherwise(first),
        })
      for (const path of rest) changes.push({ do: 'link', path, target: first })
      continue
    }
    // Names as (directory, name): those of a directory that moves as a whole stay.
    const stay = [...paths.keys()].filter(key => was.paths.has(key))
    const come = [...paths.keys()].filter(key => !was.paths.has(key))
    const go = [...was.paths.keys()].filter(key => !paths.has(key))
    let first = stay.length ? paths.get(stay[0])! : ''
    if (stay.length === 0) {
      const [from, to] = [go.shift()!, come.shift()!]
      first = paths.get(to)!
      changes.push({ do: 'move', from: was.paths.get(from)!, to: first, otherwise: otherwise(first) })
    }
    for (const key of go)
      changes.push({ do: 'remove', path: was.paths.get(key)!, expect: versionOf(versions, was.node) })
    for (const key of come) changes.push({ do: 'link', path: paths.get(key)!, target: first })
    const altered = !sameAttributes(was.node, node)
    const expect = versions.get(ino)
    if (!sameBytes(was.node, node)) {
      if ((stay.length > 0 || paths.size === 1) && (whole || random.chance(0.3))) {
        changes.push(put(first, node, expect, !sameXattrs(was.node, node) || random.chance(0.3)))
        // A new file has the name now: the other names follow it.
        for (const key of stay.slice(1)) changes.push({ do: 'link', path: paths.get(key)!, target: first })
      } else changes.push(patch(first, was.node, node))
    } else if (altered)
      changes.push({ do: 'attributes', path: first, attributes: attributesOf(node), xattrs: xattrsOf(node) })
  }
  for (const [ino, { node, paths }] of old)
    if (!now.has(ino))
      for (const path of paths.values()) changes.push({ do: 'remove', path, expect: versionOf(versions, node) })

  function patch(path: Path, was: Node, node: Node): TreeChange {
    const floor = Math.min(was.bytes.length, node.floor)
    const base = new Uint8Array(node.bytes.length)
    base.set(was.bytes.subarray(0, Math.min(floor, base.length)))
    const extents: { at: number; bytes: Uint8Array }[] = []
    const zeros: { at: number; length: number }[] = []
    for (let at = 0; at < base.length; at += BLOCK) {
      const bytes = node.bytes.slice(at, at + BLOCK)
      if (Buffer.compare(bytes, base.subarray(at, at + BLOCK)) === 0) continue
      if (bytes.every(byte => byte === 0) && random.chance(0.7)) zeros.push({ at, length: bytes.length })
      else if (extents.length && extents.at(-1)!.at + extents.at(-1)!.bytes.length === at)
        extents.at(-1)!.bytes = Buffer.concat([extents.at(-1)!.bytes, bytes])
      else extents.push({ at, bytes })
    }
    return {
      ...{ do: 'patch', path, size: node.bytes.length, floor, attributes: attributesOf(node), xattrs: xattrsOf(node) },
      ...{ content: content(extents), zeros, expect: versions.get(node.ino), otherwise: otherwise(path) },
    }
  }
  return { changes: shuffled(changes, random), staged }
}

/** Directories have no version that counts. */
const versionOf = (versions: Map<number, string>, node: Node) => (node.names ? undefined : versions.get(node.ino))

const sameBytes = (one: Node, other: Node) =>
  Buffer.compare(one.bytes, other.bytes) === 0 && other.floor >= one.bytes.length
const sameAttributes = (one: Node, other: Node) =>
  one.mode === other.mode &&
  one.uid === other.uid &&
  one.gid === other.gid &&
  one.mtimeNs === other.mtimeNs &&
  sameXattrs(one, other)
const sameXattrs = (one: Node, other: Node) => JSON.stringify([...one.xattrs]) === JSON.stringify([...other.xattrs])

/** Each inode with its names: by (inode of the directory, name), and their paths. */
function names(model: Model) {
  const found = new Map<number, { node: Node; paths: Map<string, Path> }>()
  const visit = (path: Path, node: Node, key: string) => {
    const known = found.get(node.ino)
    if (known) known.paths.set(key, path)
    else found.set(node.ino, { node, paths: new Map([[key, path]]) })
    for (const [name, child] of node.names ?? [])
      visit(path === '' ? name : `${path}/${name}`, child, `${node.ino}/${name}`)
  }
  visit('', model.root, '')
  return found
}

/** A file's bytes in pieces, its zeros left out here and there. */
function wholeOf(node: Node, random: Random) {
  const pieces: { at: number; bytes: Uint8Array }[] = []
  for (let at = 0; at < node.bytes.length; ) {
    const length = Math.min(node.bytes.length - at, 1 + random.below(120))
    const bytes = node.bytes.slice(at, at + length)
    if (!bytes.every(byte => byte === 0)) pieces.push({ at, bytes })
    at += length
  }
  return pieces
}

function shuffled<T>(items: T[], random: Random): T[] {
  for (let i = items.length - 1; i > 0; i--) {
    const other = random.below(i + 1)
    ;[items[i], items[other]] = [items[other], items[i]]
  }
  return items
}

/** What can be seen of a tree, a line for each name. Times of access are nobody's concern. */
export type Picture = string[]

const line = (path: Path, { mode, uid, gid, mtimeNs }: Omit<Attributes, 'atimeNs'>, rest: unknown[]) =>
  JSON.stringify([path, mode.toString(8), uid, gid, mtimeNs.toString(), ...rest])

export function pictureOf(model: Model): Picture {
  const groups = new Map<Node, Path[]>()
  const lines: Picture = []
  for (const [path, node] of model.walk()) {
    const xattrs = [...node.xattrs].sort()
    lines.push(line(path, node, [node.link ?? Buffer.from(node.bytes).toString('hex'), xattrs]))
    if (!node.names) groups.set(node, [...(groups.get(node) ?? []), path])
  }
  return [...lines.sort(), ...groupLines([...groups.values()])]
}

const groupLines = (groups: Path[][]) =>
  groups
    .filter(paths => paths.length > 1)
    .map(paths => `one file: ${paths.sort().join(' ')}`)
    .sort()

/** The same of a tree, with the versions of its files. */
export async function look(tree: Tree): Promise<{ picture: Picture; versions: Map<Path, string> }> {
  const lines: Picture = []
  const groups = new Map<string, Path[]>()
  const versions = new Map<Path, string>()
  const visit = async (path: Path, entry: Entry): Promise<void> => {
    const type = entry.mode & S_IFMT
    let content = entry.link ?? ''
    if (type === S_IFREG) {
      const { size, version } = entry
      content = Buffer.from(await tree.read(path, { at: 0, length: size + 10, version })).toString('hex')
      if (content.length !== size * 2) throw new Error(`${path}: ${content.length / 2} bytes of ${size}`)
      versions.set(path, version)
      // The middle alone must be the middle of the whole.
      const middle = await tree.read(path, { at: Math.floor(size / 3), length: Math.ceil(size / 3), version })
      if (!content.startsWith(Buffer.from(middle).toString('hex'), Math.floor(size / 3) * 2))
        throw new Error(`${path}: two reads differ`)
    }
    const xattrs = type === S_IFREG || type === S_IFDIR ? await tree.xattrs(path) : new Map()
    const sorted = [...xattrs].map(([name, value]) => [name, Buffer.from(value).toString()]).sort()
    lines.push(line(path, entry, [content, sorted]))
    if (entry.id !== undefined) groups.set(entry.id, [...(groups.get(entry.id) ?? []), path])
    if (type !== S_IFDIR) return
    const seen = new Set<string>()
    for (let cursor: string | undefined; ; ) {
      const page = await tree.list(path, cursor)
      for (const child of page.entries) {
        if (seen.has(child.name)) throw new Error(`${path} lists ${child.name} twice`)
        seen.add(child.name)
        const below = path === '' ? child.name : `${path}/${child.name}`
        const alone = await tree.stat(below)
        if (!alone) throw new Error(`${below} is listed, but not there`)
        const isDirectory = (child.mode & constants.S_IFMT) === constants.S_IFDIR
        const [whole] = child.partial ? await tree.complete!(path, [{ name: child.name, isDirectory }]) : [child]
        if (!whole) throw new Error(`${below} is listed, and cannot be completed`)
        if (child.partial && (child.size !== whole.size || child.version !== whole.version))
          throw new Error(`${below} is listed as ${show(child)}, but is ${show(whole)}`)
        const { atimeNs: _, ctimeNs: __, ...one } = whole
        const { atimeNs: ___, ctimeNs: ____, ...other } = alone
        if (show(one) !== show(other)) throw new Error(`${below} is listed as ${show(one)}, but is ${show(other)}`)
        await visit(below, whole)
      }
      cursor = page.cursor
      if (cursor === undefined) break
    }
  }
  await visit('', (await tree.stat(''))!)
  return { picture: [...lines.sort(), ...groupLines([...groups.values()])], versions }
}

const show = (value: unknown) => JSON.stringify(value, (_, one) => (typeof one === 'bigint' ? one.toString() : one))
