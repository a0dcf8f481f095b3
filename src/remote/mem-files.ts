// A file system in memory, without waiting: what `mem:` trees and stores stand on. It says what POSIX says; the tests hold it
// against a real one.
import { constants } from 'node:fs'
import { type Code, FerryError } from '../base/errors.js'
import { MemBytes } from './mem-bytes.js'
import { checkPath, joinPath, lastName, parentPath, printable } from './path.js'
import type { Attributes, Entry, NewNode } from './tree.js'

const { S_IFMT, S_IFREG, S_IFDIR, S_IFLNK } = constants
const NAME_MAX = 255

interface Common extends Attributes {
  readonly ino: number
  ctimeNs: bigint
  nlink: number
  xattrs: Map<string, Uint8Array>
}
export type MemFile = Common & { kind: 'file'; bytes: MemBytes; version: number }
export type MemDirectory = Common & { kind: 'directory'; names: Map<string, Name> }
export type MemOther = Common & { kind: 'other'; rdev: number; link?: string }
export type MemNode = MemFile | MemDirectory | MemOther

/** A name, and when it was given: listings go on after that, whatever comes and goes meanwhile. */
interface Name {
  node: MemNode
  order: number
}

/** A moment that can be gone back to, any number of times. */
export interface MemSnapshot {
  readonly root: MemDirectory
}

/** Never the same twice in this process, not even after going back to a snapshot: versions must not come again. */
let counter = 0

const fail = (code: Code, path: string): never => {
  throw new FerryError(code, { detail: printable(path) })
}

export class MemFiles {
  #root: MemDirectory
  readonly #nowNs: () => bigint

  constructor(nowNs: () => bigint = () => BigInt(Date.now()) * 1_000_000n) {
    this.#nowNs = nowNs
    const nowAtBirth = nowNs()
    const mode = S_IFDIR | 0o755
    this.#root = {
      ...{ kind: 'directory', ino: ++counter, mode, uid: 0, gid: 0, nlink: 2, names: new Map(), xattrs: new Map() },
      ...{ atimeNs: nowAtBirth, mtimeNs: nowAtBirth, ctimeNs: nowAtBirth },
    }
  }

  snapshot(): MemSnapshot {
    return { root: copyOf(this.#root) }
  }

  restore({ root }: MemSnapshot): void {
    this.#root = copyOf(root)
  }

  /** null: not there. */
  find(path: string): MemNode | null {
    checkPath(path)
    let node: MemNode = this.#root
    for (const part of path === '' ? [] : path.split('/')) {
      if (part.length > NAME_MAX) fail('NAME_TOO_LONG', path)
      const next: MemNode | undefined = node.kind === 'directory' ? node.names.get(part)?.node : undefined
      if (!next) return null
      node = next
    }
    return node
  }

  /** NOT_FOUND; NOT_DIRECTORY if something on the way is none. */
  get(path: string): MemNode {
    const node = this.find(path)
    if (node) return node
    for (let above = parentPath(path); above !== ''; above = parentPath(above)) {
      const found = this.find(above)
      if (found) return fail(found.kind === 'directory' ? 'NOT_FOUND' : 'NOT_DIRECTORY', path)
    }
    return fail('NOT_FOUND', path)
  }

  file(path: string): MemFile {
    const node = this.get(path)
    if (node.kind === 'file') return node
    return fail(node.kind === 'directory' ? 'IS_DIRECTORY' : 'INVALID', path)
  }

  directory(path: string): MemDirectory {
    const node = this.get(path)
    return node.kind === 'directory' ? node : fail('NOT_DIRECTORY', path)
  }

  /** Changes a file's bytes: it becomes another version. */
  change(path: string, how: (bytes: MemBytes) => void): void {
    const file = this.file(path)
    how(file.bytes)
    file.version = ++counter
    file.mtimeNs = file.ctimeNs = this.#nowNs()
  }

  make(path: string, { mode, uid, gid, atimeNs, mtimeNs, rdev, link }: NewNode): void {
    const place = this.#freePlace(path)
    const type = mode & S_IFMT
    const common = { ino: ++counter, mode, uid, gid, atimeNs, mtimeNs, ctimeNs: this.#nowNs(), xattrs: new Map() }
    if (type === S_IFLNK && !link) fail('INVALID', path)
    place.put(
      type === S_IFREG
        ? { ...common, kind: 'file', nlink: 0, bytes: new MemBytes(), version: ++counter }
        : type === S_IFDIR
          ? { ...common, kind: 'directory', nlink: 1, names: new Map() }
          : { ...common, kind: 'other', nlink: 0, rdev, ...(link !== undefined && { link, mode: S_IFLNK | 0o777 }) },
    )
  }

  link(source: string, target: string): void {
    const node = this.get(source)
    if (node.kind === 'directory') fail('NOT_PERMITTED', source)
    this.#freePlace(target).put(node)
  }

  rename(source: string, target: string): void {
    const node = this.get(source)
    if (source === '' || target === '') fail('BUSY', source)
    if (source === target) return
    if (target.startsWith(`${source}/`)) fail('INVALID', target)
    const place = this.#place(target)
    const old = place.node
    if (old && old !== node) {
      if (node.kind === 'directory' && old.kind !== 'directory') fail('NOT_DIRECTORY', target)
      if (node.kind !== 'directory' && old.kind === 'directory') fail('IS_DIRECTORY', target)
      if (old.kind === 'directory' && old.names.size > 0) fail('NOT_EMPTY', target)
    }
    if (old !== node) {
      if (old) place.drop()
      place.put(node)
    }
    this.#place(source).drop()
  }

  remove(path: string): void {
    if (path === '') fail('BUSY', path)
    const node = this.get(path)
    if (node.kind === 'directory' && node.names.size > 0) fail('NOT_EMPTY', path)
    this.#place(path).drop()
  }

  setAttributes(path: string, { mode, uid, gid, atimeNs, mtimeNs }: Partial<Attributes>): void {
    const node = this.get(path)
    if (mode !== undefined && (node.mode & S_IFMT) !== S_IFLNK) node.mode = (node.mode & S_IFMT) | (mode & 0o7777)
    node.uid = uid ?? node.uid
    node.gid = gid ?? node.gid
    node.atimeNs = atimeNs ?? node.atimeNs
    node.mtimeNs = mtimeNs ?? node.mtimeNs
    node.ctimeNs = this.#nowNs()
  }

  setXattrs(path: string, xattrs: Map<string, Uint8Array>): void {
    const node = this.get(path)
    node.xattrs = new Map([...xattrs].map(([name, value]) => [name, value.slice()]))
    node.ctimeNs = this.#nowNs()
  }

  entry(path: string): Entry | null {
    const node = this.find(path)
    return node && entryOf(lastName(path), node)
  }

  /** At most `countMax` entries whose names were given after `order`, but for the name `except`; `next` to go on with. */
  list(
    path: string,
    order: number,
    countMax: number,
    except: (name: string) => boolean = () => false,
  ): { entries: Entry[]; next?: number } {
    const entries: Entry[] = []
    let last = order
    for (const [name, { node, order: given }] of this.directory(path).names) {
      if (given <= order || except(name)) continue
      if (entries.length === countMax) return { entries, next: last }
      entries.push(entryOf(name, node))
      last = given
    }
    return { entries }
  }

  #freePlace(path: string) {
    const place = this.#place(path)
    if (place.node) fail('EXISTS', path)
    return place
  }

  #place(path: string) {
    checkPath(path)
    if (path === '') fail('EXISTS', path)
    const name = lastName(path)
    if (name.length > NAME_MAX) fail('NAME_TOO_LONG', path)
    const directory = this.directory(parentPath(path))
    const touch = (node: MemNode) => {
      directory.mtimeNs = directory.ctimeNs = node.ctimeNs = this.#nowNs()
    }
    return {
      node: directory.names.get(name)?.node,
      put: (node: MemNode) => {
        directory.names.set(name, { node, order: ++counter })
        node.nlink++
        touch(node)
      },
      drop: () => {
        const { node } = directory.names.get(name)!
        directory.names.delete(name)
        node.nlink--
        touch(node)
      },
    }
  }

  /** Makes the directories on the way to `path`. */
  makeParents(path: string): void {
    const parent = parentPath(path)
    if (parent === '' || this.find(parent)) return
    this.makeParents(parent)
    const nowNs = this.#nowNs()
    this.make(parent, { mode: S_IFDIR | 0o700, uid: 0, gid: 0, atimeNs: nowNs, mtimeNs: nowNs, rdev: 0 })
  }

  /** A file that takes the place of another, if there is one, with these bytes. */
  replace(path: string, from: Uint8Array): void {
    const nowNs = this.#nowNs()
    const old = this.find(path)
    if (old?.kind === 'directory') fail('IS_DIRECTORY', path)
    if (old) this.#place(path).drop()
    this.make(path, { mode: S_IFREG | 0o600, uid: 0, gid: 0, atimeNs: nowNs, mtimeNs: nowNs, rdev: 0 })
    this.file(path).bytes.write(0, from)
  }

  /** Paths of files below a directory, in byte order. */
  *files(directory: string): Generator<string> {
    const node = this.find(directory)
    if (node?.kind !== 'directory') return
    // What is in a directory sorts as its name and a slash do.
    const keys = [...node.names].map(([name, { node: one }]) => (one.kind === 'directory' ? `${name}/` : name)).sort()
    for (const key of keys) {
      if (key.endsWith('/')) yield* this.files(joinPath(directory, key.slice(0, -1)))
      else if (node.names.get(key)?.node.kind === 'file') yield joinPath(directory, key)
    }
  }
}

/** As in a directory of a host: other bytes make another version, and so does another mtime; a chmod or a rename does not. */
export const versionOf = (node: MemNode): string =>
  node.kind === 'file' ? `${node.ino}-${node.version}-${node.mtimeNs}` : String(node.ino)

function entryOf(name: string, node: MemNode): Entry {
  const { mode, uid, gid, atimeNs, mtimeNs, ctimeNs, nlink, ino } = node
  const link = node.kind === 'other' ? node.link : undefined
  return {
    ...{ name, mode, uid, gid, atimeNs, mtimeNs, ctimeNs, nlink },
    size: node.kind === 'file' ? node.bytes.size : (link?.length ?? 0),
    allocated: node.kind === 'file' ? node.bytes.allocated : 0,
    rdev: node.kind === 'other' ? node.rdev : 0,
    version: versionOf(node),
    ...(nlink > 1 && node.kind !== 'directory' && { id: String(ino) }),
    ...(link !== undefined && { link }),
  }
}

/** All nodes anew, the bytes shared; two names of one file stay names of one. */
function copyOf(root: MemDirectory): MemDirectory {
  const copies = new Map<MemNode, MemNode>()
  const copy = (node: MemNode): MemNode => {
    const before = copies.get(node)
    if (before) return before
    const fresh: MemNode =
      node.kind === 'file'
        ? { ...node, bytes: node.bytes.clone() }
        : node.kind === 'directory'
          ? { ...node, names: new Map([...node.names].map(([name, one]) => [name, { ...one, node: copy(one.node) }])) }
          : { ...node }
    copies.set(node, fresh)
    return fresh
  }
  return copy(root) as MemDirectory
}
