// Random programs on a cached tree, done again on a naive model that remembers what everything looked like after each operation.
import { createHash } from 'node:crypto'
import { type Random, random } from '../../src/base/random.js'
import type { Ino, Maybe } from '../../src/cache/filesystem.js'
import type { Inode } from '../../src/cache/inode.js'
import type { CommittingTree, TreeCache } from '../../src/cache/tree-cache.js'
import { CHUNK_BYTES } from '../../src/chunk/geometry.js'

const TYPE = 0o170000
const FILE = 0o100000
const DIRECTORY = 0o040000
const LINK = 0o120000

/** A file keeps its identity when it is renamed or gets another name. */
interface Node {
  type: number
  mode: number
  bytes: Buffer
  link: string
  xattrs: Map<string, string>
  /** Digest of `bytes`, made when asked for. */
  digest?: string
  /**
   * While somebody has it open for writing. `left`: how a batch that leaves it out may show it; null: not at all. `grows`: it was
   * only appended to since it was opened, and not synced.
   */
  open?: { ino: Ino; left: (Node | null)[]; grows: boolean }
}

/** A moment at which a batch was cut, and what it left as it was before. */
export interface Cut {
  count: number
  held: Map<Node, (Node | null)[]>
}

const SECTOR = 512
const PAGE = 4096

/** What a tree looks like: one line a path. */
export type Picture = string

const sum = (bytes: Uint8Array) => `${bytes.length}:${createHash('md5').update(bytes).digest('hex').slice(0, 12)}`
const lineOf = (path: string, node: Node, names: string[]) => {
  const { type, mode, link, xattrs } = node
  const what = type === DIRECTORY ? 'directory' : type === LINK ? `-> ${link}` : (node.digest ??= sum(node.bytes))
  const marks = [...xattrs].map(([name, value]) => `${name}=${value}`).sort()
  const also = names.length > 1 ? ` also ${names.filter(name => name !== path).sort()}` : ''
  return `${path} ${type === LINK ? '' : mode.toString(8)} ${what} ${marks}${also}`
}

const overwritten = (node: Node) => {
  if (node.open) node.open.grows = false
}
const copyOf = (node: Node): Node => ({ ...node, xattrs: new Map(node.xattrs) })
const linesOf = (picture: Picture) =>
  new Map(
    picture
      .split('\n')
      .filter(Boolean)
      .map(line => [line.slice(0, line.indexOf(' ')), line] as const),
  )

function pathsOf(tree: Map<string, Node>): Map<Node, string[]> {
  const names = new Map<Node, string[]>()
  for (const [path, node] of tree) names.set(node, [...(names.get(node) ?? []), path])
  return names
}

export class Program {
  readonly random: Random
  tree = new Map<string, Node>()
  /** What it looked like after so many operations. */
  pictures: Picture[] = ['']
  /** And which bytes its files had. */
  #bytes: Map<Node, Buffer>[] = [new Map()]
  #paths: Map<string, Node>[] = [new Map()]
  log: string[] = []
  /** What must never happen, and did. */
  wrong = ''
  readonly #takenLater = new Set<Node>()
  /** An operation is on its way: whether it has happened only the cache knows. */
  busy = false
  readonly hardLinks: boolean
  /** Files are held open for writing, and a batch may leave them out. */
  readonly opens: boolean
  /** Not one record, and so not done as a whole or not at all. */
  readonly punch: boolean

  constructor(
    readonly seed: number,
    { hardLinks = true, punch = true, opens = false } = {},
  ) {
    this.random = random(seed)
    this.hardLinks = hardLinks
    this.punch = punch
    this.opens = opens
  }

  /** Operations that have been done. */
  get count() {
    return this.pictures.length - 1
  }

  get picture(): Picture {
    return this.pictures[this.count]
  }

  /** Goes on from what it looked like after `count` operations: that is what the cache has now. */
  async restart(cache: TreeCache): Promise<void> {
    this.tree = await treeOf(cache)
    this.pictures = []
    this.#bytes = []
    this.#paths = []
    this.#remember()
    this.log.push('--')
  }

  #look(): Picture {
    const names = pathsOf(this.tree)
    return [...this.tree]
      .map(([path, node]) => lineOf(path, node, names.get(node)!))
      .sort()
      .join('\n')
  }

  /** A batch was cut now, which left these inodes out. */
  cut(held: Ino[]): Cut {
    const cut: Cut = { count: this.count, held: new Map() }
    for (const node of this.tree.values()) {
      if (!node.open) continue
      if (held.includes(node.open.ino)) {
        if (!node.open.grows) this.wrong = 'a batch left out a file that was not only appended to'
        cut.held.set(node, [...node.open.left])
      } else this.#taken(node)
    }
    return cut
  }

  #taken(node: Node) {
    if (!node.open) return
    node.open.left = [copyOf(node)]
    // Whether the operation that waits comes before or after the cut, nobody can tell.
    if (this.busy) this.#takenLater.add(node)
  }

  /** Does it look as it did at this cut? */
  isAt(picture: Picture, { count, held }: Cut): boolean {
    const wanted = this.pictures[count]
    if (wanted === undefined) return false
    const found = linesOf(picture)
    const lines = linesOf(wanted)
    for (const [path, node] of this.#paths[count]) {
      const left = held.get(node)
      if (!left) continue
      const line = found.get(path)
      const names = [...this.#paths[count]].filter(([, one]) => one === node).map(([name]) => name)
      if (!left.some(one => line === (one ? lineOf(path, one, names) : undefined))) return false
      found.delete(path)
      lines.delete(path)
    }
    return found.size === lines.size && [...lines].every(([path, line]) => found.get(path) === line)
  }

  /** One random operation on both; what it was. */
  async step(cache: TreeCache): Promise<void> {
    const { random, tree } = this
    const pick = (accept: (node: Node) => boolean) => {
      const paths = [...tree].filter(([, node]) => accept(node)).map(([path]) => path)
      return paths.length ? random.pick(paths) : null
    }
    const isFile = (node: Node) => node.type === FILE
    const isDirectory = (node: Node) => node.type === DIRECTORY
    const fresh = () => {
      const parent = random.chance(0.3) ? '' : (pick(isDirectory) ?? '')
      return `${parent ? `${parent}/` : ''}n${random.below(10)}`
    }
    const ino = (path: string) => inoOf(cache, path)
    const parent = (path: string) => inoOf(cache, parentOf(path))

    const opened = [...tree.values()].filter(node => node.open)
    if (random.chance(0.06)) return this.#copy(cache, pick)
    const kind = random.below(this.opens ? 27 : 24)
    if (kind === 24) {
      const path = pick(node => isFile(node) && !node.open)
      if (!path) return
      const node = tree.get(path)!
      const target = await ino(path)
      cache.opened(target, true)
      const { remoteParent } = (await cache.attributes(target)) as Inode
      node.open = { ino: target, left: [remoteParent === 0 ? null : copyOf(node)], grows: true }
      this.log.push(`open ${path}`)
      return
    }
    if (kind >= 25) {
      if (opened.length === 0) return
      const node = random.pick(opened)
      const { ino } = node.open!
      if (kind === 25) {
        cache.released(ino, true)
        node.open = undefined
      } else if (random.chance(0.3)) {
        node.open!.grows = false
        await cache.fsync(ino)
      }
      this.log.push(kind === 25 ? 'close' : 'fsync')
      return
    }
    if (kind < 6) {
      const path = fresh()
      if (tree.has(path)) return
      const type = kind < 3 ? FILE : kind < 5 ? DIRECTORY : LINK
      const node: Node = {
        type,
        mode: type === LINK ? 0o777 : 0o755,
        bytes: Buffer.alloc(0),
        link: type === LINK ? path : '',
        xattrs: new Map(),
      }
      const at = await parent(path)
      const make = () => cache.make(at, nameOf(path), { mode: node.type | node.mode, uid: 0, gid: 0, link: node.link })
      return this.#do(`make ${type.toString(8)} ${path}`, make, () => tree.set(path, node))
    }
    if (kind < 11) {
      const appends = opened.length > 0 && random.chance(0.6)
      const path = pick(node => isFile(node) && (!appends || node.open !== undefined))
      if (!path) return
      const node = tree.get(path)!
      const at = appends || random.chance(0.3) ? node.bytes.length : random.below(random.chance(0.2) ? 600_000 : 60_000)
      const length = 1 + random.below(random.chance(0.2) ? 400_000 : 9_000)
      const data = Buffer.alloc(length, 1 + random.below(255))
      if (length >= 4) data.writeUInt32LE(this.count)
      const stamped = random.pick(['now', 'by-kernel'] as const)
      const target = await ino(path)
      return this.#do(
        `write ${path} ${at}+${length}`,
        () => cache.write(target, at, data, stamped),
        () => {
          const bytes = Buffer.alloc(Math.max(node.bytes.length, at + length))
          node.bytes.copy(bytes)
          data.copy(bytes, at)
          if (at < node.bytes.length - (node.bytes.length % PAGE)) overwritten(node)
          node.bytes = bytes
          node.digest = undefined
        },
      )
    }
    if (kind === 11) {
      const path = pick(isFile)
      if (!path) return
      const node = tree.get(path)!
      const size = random.chance(0.3) ? 0 : random.below(random.chance(0.3) ? 600_000 : 40_000)
      const target = await ino(path)
      return this.#do(
        `truncate ${path} ${size}`,
        () => cache.setAttributes(target, { size }),
        () => {
          const bytes = Buffer.alloc(size)
          node.bytes.copy(bytes)
          if (size > 0) overwritten(node)
          node.bytes = bytes
          node.digest = undefined
        },
      )
    }
    if (kind === 12 && this.punch) {
      const path = pick(isFile)
      if (!path) return
      const node = tree.get(path)!
      const at = random.below(300_000)
      const length = 1 + random.below(200_000)
      const target = await ino(path)
      // Of several records: none of them must wait for pages, or a cut could fall between them.
      await readAll(cache, target)
      return this.#do(
        `punch ${path} ${at}+${length}`,
        () => cache.allocate(target, { at, length }, { kind: 'punch', keepSize: true }),
        () => {
          node.bytes = Buffer.from(node.bytes)
          if (at >= node.bytes.length) return
          overwritten(node)
          node.bytes.fill(0, at, Math.min(node.bytes.length, at + length))
          node.digest = undefined
        },
      )
    }
    if (kind === 13) {
      const path = pick(() => true)
      if (!path) return
      const node = tree.get(path)!
      if (node.type === LINK) return
      const mode = random.pick([0o600, 0o640, 0o755, 0o777])
      const target = await ino(path)
      // Other times make another version of a file, though its bytes are the same.
      const mtimeNs = random.chance(0.5) ? BigInt(random.below(1_000_000)) * 1_000_000_007n : undefined
      return this.#do(
        `chmod ${path} ${mode.toString(8)}${mtimeNs === undefined ? '' : ` of ${mtimeNs}`}`,
        () => cache.setAttributes(target, { mode, mtimeNs }),
        () => {
          node.mode = mode
        },
      )
    }
    if (kind === 14) {
      const path = pick(node => node.type !== LINK)
      if (!path) return
      const node = tree.get(path)!
      const name = `user.x${random.below(3)}`
      const value = String(random.below(1000))
      const target = await ino(path)
      await cache.listXattrs(target)
      if (node.xattrs.has(name) && random.chance(0.4))
        return this.#do(
          `removexattr ${path} ${name}`,
          () => cache.removeXattr(target, name),
          () => node.xattrs.delete(name),
        )
      return this.#do(
        `setxattr ${path} ${name}`,
        () => cache.setXattr(target, name, Buffer.from(value), 'set'),
        () => node.xattrs.set(name, value),
      )
    }
    if (kind === 15 && this.hardLinks) {
      const source = pick(isFile)
      const path = fresh()
      if (!source || tree.has(path)) return
      const node = tree.get(source)!
      const [target, at] = [await ino(source), await parent(path)]
      return this.#do(
        `link ${source} ${path}`,
        () => cache.link(target, at, nameOf(path)),
        () => tree.set(path, node),
      )
    }
    if (kind < 18) {
      const path = pick(node => node.type !== DIRECTORY)
      if (!path) return
      const at = await parent(path)
      return this.#do(
        `unlink ${path}`,
        () => cache.unlink(at, nameOf(path)),
        () => tree.delete(path),
      )
    }
    if (kind === 18) {
      const path = pick(isDirectory)
      if (!path || [...tree.keys()].some(other => other.startsWith(`${path}/`))) return
      const at = await parent(path)
      return this.#do(
        `rmdir ${path}`,
        () => cache.removeDirectory(at, nameOf(path)),
        () => tree.delete(path),
      )
    }
    if (kind === 19) {
      const path = pick(isFile)
      if (!path) return
      const node = tree.get(path)!
      const bytes = await readAll(cache, await ino(path))
      if (!bytes.equals(node.bytes))
        throw new Error(
          `${path} reads as something else at ${firstDifference(bytes, node.bytes)} of ${bytes.length}, ${node.bytes.length}`,
        )
      return
    }
    const source = pick(() => true)
    const target = random.chance(0.5) ? pick(() => true) : fresh()
    if (!source || !target || source === target || target.startsWith(`${source}/`)) return
    const moved = tree.get(source)!
    const other = tree.get(target)
    if (moved === other) return
    const exchange = kind === 20 && other !== undefined && !source.startsWith(`${target}/`)
    if (!exchange && other) {
      if ((other.type === DIRECTORY) !== (moved.type === DIRECTORY)) return
      if ([...tree.keys()].some(path => path.startsWith(`${target}/`))) return
    }
    const [from, to] = [await parent(source), await parent(target)]
    const names = [
      { parent: from, name: nameOf(source) },
      { parent: to, name: nameOf(target) },
    ] as const
    return this.#do(
      `${exchange ? 'exchange' : 'rename'} ${source} ${target}`,
      () => cache.rename(...names, exchange ? 'exchange' : 'replace'),
      () => {
        const rebase = (old: string, now: string) => {
          const nodes = [...tree].filter(([path]) => path === old || path.startsWith(`${old}/`))
          for (const [path] of nodes) tree.delete(path)
          return nodes.map(([path, node]) => [now + path.slice(old.length), node] as const)
        }
        const moves = rebase(source, target)
        if (exchange) moves.push(...rebase(target, source))
        else tree.delete(target)
        for (const [path, node] of moves) tree.set(path, node)
      },
    )
  }

  /** One call of copy_file_range, which does as much as it can at once. */
  async #copy(cache: TreeCache, pick: (accept: (node: Node) => boolean) => string | null): Promise<void> {
    const { random, tree } = this
    const [path, into] = [
      pick(({ type, bytes }) => type === FILE && bytes.length > 0),
      pick(({ type }) => type === FILE),
    ]
    if (!path || !into) return
    const [source, target] = [tree.get(path)!, tree.get(into)!]
    const aligned = random.chance(0.8)
    const [at, to] = [source, target].map(({ bytes }) =>
      aligned ? CHUNK_BYTES * random.below(1 + Math.floor(bytes.length / CHUNK_BYTES)) : random.below(bytes.length + 1),
    )
    const length = random.chance(0.7) ? 1_000_000 : 1 + random.below(300_000)
    // The kernel refuses it.
    if (source === target && Math.abs(at - to) < length) return
    const [from, ino] = [await inoOf(cache, path), await inoOf(cache, into)]
    // None of it must wait for pages: the model would follow too late.
    await readAll(cache, from)
    await readAll(cache, ino)
    return this.#do(
      `copy ${path} ${at}+${length} to ${into} ${to}`,
      () => cache.copy({ ino: from, at }, { ino, at: to }, length),
      count => {
        const bytes = Buffer.alloc(Math.max(target.bytes.length, count ? to + (count as number) : 0))
        target.bytes.copy(bytes)
        source.bytes.copy(bytes, to, at, at + (count as number))
        if (count && to < target.bytes.length - (target.bytes.length % PAGE)) overwritten(target)
        target.bytes = bytes
        target.digest = undefined
      },
    )
  }

  /** The model follows in the same turn, so that whoever looks between turns sees both the same. */
  async #do(what: string, operation: () => Maybe<unknown>, follow: (value: unknown) => unknown): Promise<void> {
    this.log.push(what)
    let value = operation()
    if (value instanceof Promise) {
      this.busy = true
      try {
        value = await value
      } finally {
        this.busy = false
      }
    }
    follow(value)
    for (const node of this.#takenLater) node.open?.left.push(copyOf(node))
    this.#takenLater.clear()
    this.#remember()
  }

  #remember() {
    this.pictures.push(this.#look())
    this.#paths.push(new Map(this.tree))
    this.#bytes.push(new Map([...this.tree.values()].map(node => [node, node.bytes])))
  }

  /**
   * After power loss: the last count of operations of which all is there, and of what came after it nothing but sectors that were
   * written over, as on any disk. -1: there is none.
   */
  async lastSeen(cache: TreeCache): Promise<number> {
    const tree = await treeOf(cache)
    const names = pathsOf(tree)
    const found = [...tree].map(([path, node]) =>
      lineOf(path, { ...node, digest: `${node.bytes.length}` }, names.get(node)!),
    )
    const picture = found.sort().join('\n')
    for (let count = this.count; count >= 0; count--) {
      const bare = this.pictures[count].replaceAll(/ (\d+):[0-9a-f]{12} /g, ' $1 ')
      if (bare !== picture) continue
      const same = [...tree].every(([path, node]) => node.type !== FILE || this.#mayHold(count, path, node.bytes))
      if (same) return count
    }
    return -1
  }

  #mayHold(count: number, path: string, bytes: Buffer): boolean {
    const node = this.#paths[count].get(path)!
    const versions = this.#bytes.slice(count).flatMap(each => each.get(node) ?? [])
    for (let at = 0; at < bytes.length; at += SECTOR) {
      const sector = bytes.subarray(at, at + SECTOR)
      const holds = versions.some(version => {
        const wanted = Buffer.alloc(sector.length)
        if (at < version.length) version.copy(wanted, 0, at, at + SECTOR)
        return wanted.equals(sector)
      })
      if (!holds) return false
    }
    return true
  }
}

export const parentOf = (path: string) => path.slice(0, Math.max(0, path.lastIndexOf('/')))
export const nameOf = (path: string) => path.slice(path.lastIndexOf('/') + 1)

export async function inoOf(cache: TreeCache, path: string): Promise<Ino> {
  let ino = 1
  for (const name of path.split('/').filter(Boolean)) {
    const found = await cache.lookup(ino, name)
    if (!found) throw new Error(`${path} is not there`)
    ino = found.ino
  }
  return ino
}

export async function readAll(cache: TreeCache, ino: Ino): Promise<Buffer> {
  const bytes = Buffer.alloc((await cache.attributes(ino)).size)
  for (let done = 0; done < bytes.length; ) {
    const read = await cache.read(ino, done, bytes.subarray(done, done + 256 * 1024))
    if (read === 0) throw new Error(`inode ${ino}: nothing at ${done} of ${bytes.length}`)
    done += read
  }
  return bytes
}

async function treeOf(cache: TreeCache): Promise<Map<string, Node>> {
  const tree = new Map<string, Node>()
  const nodes = new Map<Ino, Node>()
  const visit = async (directory: Ino, at: string): Promise<void> => {
    for (let after = 0; ; ) {
      const entries = await cache.entries(directory, after, 100)
      if (entries.length === 0) return
      for (const entry of entries) {
        after = entry.cookie
        const path = at ? `${at}/${entry.name}` : entry.name
        const known = nodes.get(entry.ino)
        if (known) {
          tree.set(path, known)
          continue
        }
        const inode = await cache.lookup(directory, entry.name)
        if (inode?.ino !== entry.ino) throw new Error(`${path} is listed as inode ${entry.ino}, and is ${inode?.ino}`)
        const { mode, nlink } = inode
        const type = mode & TYPE
        const node: Node = { type, mode: mode & 0o7777, bytes: Buffer.alloc(0), link: '', xattrs: new Map() }
        if (type === LINK) node.link = await cache.readLink(entry.ino)
        if (type === FILE) node.bytes = await readAll(cache, entry.ino)
        if (type !== LINK)
          for (const name of await cache.listXattrs(entry.ino))
            node.xattrs.set(name, Buffer.from(await cache.getXattr(entry.ino, name)).toString())
        if (type === FILE && nlink < 1) throw new Error(`${path} has ${nlink} links`)
        nodes.set(entry.ino, node)
        tree.set(path, node)
        if (type === DIRECTORY) await visit(entry.ino, path)
      }
    }
  }
  await visit(1, '')
  return tree
}

/** What a cache shows, as `Program.picture` would have it. */
export async function pictureOf(cache: TreeCache): Promise<Picture> {
  const tree = await treeOf(cache)
  const names = pathsOf(tree)
  return [...tree]
    .map(([path, node]) => lineOf(path, node, names.get(node)!))
    .sort()
    .join('\n')
}

/** Lines that only one of two pictures has. */
export function difference(found: Picture, expected: Picture): string {
  const [a, b] = [found.split('\n'), expected.split('\n')]
  const lines = [
    ...a.filter(line => !b.includes(line)).map(line => `found    ${line}`),
    ...b.filter(line => !a.includes(line)).map(line => `expected ${line}`),
  ]
  return lines.join('\n')
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  for (let at = 0; at < Math.max(a.length, b.length); at++) if (a[at] !== b[at]) return at
  return -1
}

/** With TELL=1 the program's log has what each batch was, and what became of it. */
export function told(tree: CommittingTree, program: Program): CommittingTree {
  if (!process.env.TELL) return tree
  const tell = (what: object) => {
    const brief = (key: string, value: unknown) => (['attributes', 'node', 'bytes'].includes(key) ? undefined : value)
    program.log.push(JSON.stringify({ n: program.count, ...what }, brief))
  }
  const { commit, settle, claim } = tree
  tree.commit = async (batch, signal) => {
    for (const change of batch.changes) tell({ batch: batch.number, ...change })
    return commit.call(tree, batch, signal)
  }
  tree.settle = async signal => {
    const settled = await settle.call(tree, signal)
    tell({ settled })
    return settled
  }
  tree.claim = async (who, signal) => {
    const claimed = await claim.call(tree, who, signal)
    tell({ claimed })
    return claimed
  }
  return tree
}
