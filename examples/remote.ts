// A remote of one's own: a writable tree whose files are in a Map. It keeps modes, owners, times, extended attributes and special
// files, and has no links. The conformance suites hold it to the contract (test/examples.test.ts).
import { constants } from 'node:fs'
import { throwIfAborted } from '../src/base/async.js'
import { type Code, FerryError } from '../src/base/errors.js'
import { checkPath, checkRange, joinPath, lastName, parentPath } from '../src/remote/path.js'
import type { ObjectInfo, Store } from '../src/remote/store.js'
import { type Attributes, type Entry, HIDDEN, type Tree, type Xattrs } from '../src/remote/tree.js'

const { S_IFMT, S_IFDIR, S_IFREG, S_IFLNK } = constants
const PAGE_MAX = 1000
const NAME_BYTES_MAX = 255
const PATH_BYTES_MAX = 4096
const FILE_BYTES_MAX = 2 ** 31 - 1
const XATTR_BYTES_MAX = 65_536

interface Node extends Attributes {
  /** null: it is no file. */
  bytes: Uint8Array | null
  rdev: number
  xattrs: Xattrs
  /** Grows with each change of the bytes, and is never used twice. */
  version: number
}

const isDirectory = ({ mode }: Attributes) => (mode & S_IFMT) === S_IFDIR

/** Whoever is given the same `nodes` sees the same tree. */
export function mapTree(nodes: Map<string, Node> = new Map()): Tree {
  let versions = Math.max(0, ...[...nodes.values()].map(node => node.version))
  const fail = (code: Code, path: string): never => {
    throw new FerryError(code, { detail: JSON.stringify(path) })
  }
  const directory = (mode: number): Node => {
    const now = BigInt(Date.now()) * 1_000_000n
    const times = { atimeNs: now, mtimeNs: now }
    return { mode: S_IFDIR | mode, uid: 0, gid: 0, ...times, rdev: 0, xattrs: new Map(), bytes: null, version: 0 }
  }
  if (!nodes.has('')) nodes.set('', directory(0o755))

  // "Not found" is positive knowledge. A remote behind a network says UNREACHABLE or DEADLINE when it cannot tell.
  const find = (path: string): Node | undefined => {
    checkPath(path)
    return nodes.get(path)
  }
  const get = (path: string): Node => {
    const node = find(path)
    if (node) return node
    for (let above = parentPath(path); above !== ''; above = parentPath(above))
      if (nodes.has(above) && !isDirectory(nodes.get(above)!)) fail('NOT_DIRECTORY', path)
    return fail('NOT_FOUND', path)
  }
  const getDirectory = (path: string): Node => {
    const node = get(path)
    return isDirectory(node) ? node : fail('NOT_DIRECTORY', path)
  }
  const getFile = (path: string): Node & { bytes: Uint8Array } => {
    const node = get(path)
    if (isDirectory(node)) fail('IS_DIRECTORY', path)
    return node.bytes ? (node as Node & { bytes: Uint8Array }) : fail('INVALID', path)
  }
  /** Where something is to come: its directory is there, and the name fits. */
  const checkTarget = (path: string): void => {
    checkPath(path)
    if (path.length > PATH_BYTES_MAX || path.split('/').some(name => name.length > NAME_BYTES_MAX))
      fail('NAME_TOO_LONG', path)
    getDirectory(parentPath(path))
  }
  const below = (path: string) => [...nodes.keys()].filter(name => name.startsWith(path === '' ? '' : `${path}/`))
  const isEmpty = (path: string) => below(path).length === 0
  /** The names of a directory changed. */
  const touch = (...paths: string[]) => {
    for (const path of paths) getDirectory(parentPath(path)).mtimeNs = BigInt(Date.now()) * 1_000_000n
  }
  /** Every change of bytes gives a new array: whoever has the old one may keep it. */
  const change = (path: string, size: number, edit: (bytes: Uint8Array) => void): void => {
    const file = getFile(path)
    if (size > FILE_BYTES_MAX) fail('TOO_LARGE', path)
    const bytes = new Uint8Array(size)
    bytes.set(file.bytes.subarray(0, size))
    edit(bytes)
    Object.assign(file, { bytes, version: ++versions, mtimeNs: BigInt(Date.now()) * 1_000_000n })
  }
  const entryOf = (path: string, node: Node): Entry => {
    const { bytes, version, mode, uid, gid, atimeNs, mtimeNs, rdev } = node
    const size = bytes?.length ?? 0
    return {
      ...{ name: lastName(path), mode, uid, gid, atimeNs, mtimeNs, ctimeNs: mtimeNs },
      ...{ size, allocated: size, rdev, nlink: 1, version: bytes ? String(version) : '' },
    }
  }

  return {
    shape: 'tree',
    url: 'map:',
    capabilities: {
      ...{ write: true, owners: true, patch: true, specialFiles: true, hardLinks: false, symlinks: false },
      ...{
        xattrBytesMax: XATTR_BYTES_MAX,
        nameBytesMax: NAME_BYTES_MAX,
        pathBytesMax: PATH_BYTES_MAX,
        fileBytesMax: FILE_BYTES_MAX,
      },
    },
    hidden: objects(nodes, () => ++versions, directory),

    async stat(path, signal) {
      throwIfAborted(signal)
      const node = find(path)
      return node && path !== HIDDEN ? entryOf(path, node) : null
    },
    /** Sorted, so that the last name of a page says where to go on whatever came or went meanwhile. */
    async list(path, cursor = '', signal) {
      throwIfAborted(signal)
      getDirectory(path)
      const names = below(path)
        .filter(one => one !== '' && parentPath(one) === path && one !== HIDDEN && lastName(one) > cursor)
        .sort()
      const entries = names.slice(0, PAGE_MAX).map(one => entryOf(one, get(one)))
      return names.length > PAGE_MAX ? { entries, cursor: entries[PAGE_MAX - 1].name } : { entries }
    },
    async read(path, { at, length, version }, signal) {
      throwIfAborted(signal)
      checkRange({ at, length })
      const file = getFile(path)
      if (version !== undefined && version !== String(file.version)) fail('STALE', path)
      return file.bytes.slice(at, at + length)
    },
    async xattrs(path) {
      return new Map([...get(path).xattrs].map(([name, value]) => [name, value.slice()]))
    },
    async usage() {
      return null
    },
    async close() {},

    async write(path, at, from, signal) {
      throwIfAborted(signal)
      checkRange({ at, length: from.length })
      const size = getFile(path).bytes.length
      change(path, from.length ? Math.max(size, at + from.length) : size, bytes => from.length && bytes.set(from, at))
    },
    async truncate(path, size, signal) {
      throwIfAborted(signal)
      checkRange({ at: 0, length: size })
      change(path, size, () => {})
    },
    async punch(path, at, length, signal) {
      throwIfAborted(signal)
      checkRange({ at, length })
      change(path, getFile(path).bytes.length, bytes => bytes.fill(0, at, at + length))
    },
    async make(path, { mode, uid, gid, atimeNs, mtimeNs, rdev }, signal) {
      throwIfAborted(signal)
      if (find(path)) fail('EXISTS', path)
      checkTarget(path)
      if ((mode & S_IFMT) === S_IFLNK) fail('UNSUPPORTED', path)
      const bytes = (mode & S_IFMT) === S_IFREG ? new Uint8Array(0) : null
      touch(path)
      nodes.set(path, { mode, uid, gid, atimeNs, mtimeNs, rdev, xattrs: new Map(), bytes, version: ++versions })
    },
    async link(source, target) {
      checkPath(source)
      checkPath(target)
      fail('UNSUPPORTED', target)
    },
    /** Atomic: here because nothing is awaited on the way. */
    async rename(source, target, signal) {
      throwIfAborted(signal)
      const node = get(source)
      checkTarget(target)
      const there = find(target)
      if (source === target) return
      if (target.startsWith(`${source}/`)) fail('INVALID', target)
      if (there && isDirectory(there) && !isDirectory(node)) fail('IS_DIRECTORY', target)
      if (there && !isDirectory(there) && isDirectory(node)) fail('NOT_DIRECTORY', target)
      if (there && !isEmpty(target)) fail('NOT_EMPTY', target)
      for (const path of [source, ...below(source)]) {
        nodes.set(target + path.slice(source.length), nodes.get(path)!)
        nodes.delete(path)
      }
      touch(source, target)
    },
    async remove(path, signal) {
      throwIfAborted(signal)
      get(path)
      if (path === '') fail('BUSY', path)
      if (!isEmpty(path)) fail('NOT_EMPTY', path)
      nodes.delete(path)
      touch(path)
    },
    async setAttributes(path, wanted, signal) {
      throwIfAborted(signal)
      const node = get(path)
      const given = Object.fromEntries(Object.entries(wanted).filter(([, value]) => value !== undefined))
      Object.assign(node, given, { mode: (node.mode & S_IFMT) | ((wanted.mode ?? node.mode) & ~S_IFMT) })
    },
    async setXattrs(path, xattrs) {
      const node = get(path)
      let bytes = 0
      for (const [name, value] of xattrs) {
        if (!/^(user|trusted)\./.test(name)) fail('UNSUPPORTED', path)
        bytes += name.length + value.length
      }
      if (bytes > XATTR_BYTES_MAX) fail('TOO_LARGE', path)
      node.xattrs = new Map([...xattrs].map(([name, value]) => [name, value.slice()]))
    },
    /** What is in memory is as durable as it will ever be. */
    async sync() {},
  }
}

/** Lease, intents and staged things: files below `.pageferry` like all others, replaced as a whole. */
function objects(nodes: Map<string, Node>, nextVersion: () => number, directory: (mode: number) => Node): Store {
  const pathOf = (name: string) => {
    checkPath(name)
    if (name === '') throw new FerryError('INVALID', { detail: 'an object without a name' })
    if (name.length > NAME_BYTES_MAX) throw new FerryError('NAME_TOO_LONG', { detail: name })
    return joinPath(HIDDEN, name)
  }
  const info = (name: string): ObjectInfo | null => {
    const node = nodes.get(pathOf(name))
    return node?.bytes ? { name, size: node.bytes.length, version: String(node.version) } : null
  }
  /** Looked at and changed in one turn: of many racing puts exactly one wins. */
  const check = (name: string, { ifAbsent, ifVersion }: { ifAbsent?: boolean; ifVersion?: string }) => {
    const now = info(name)
    if (ifAbsent && ifVersion !== undefined) throw new FerryError('INVALID', { detail: 'two conditions' })
    if ((ifAbsent && now) || (ifVersion !== undefined && now?.version !== ifVersion))
      throw new FerryError('CONFLICT', { detail: name })
  }
  return {
    shape: 'store',
    url: 'map:',
    capabilities: {
      ...{ conditionalCreate: true, conditionalReplace: true },
      ...{ nameBytesMax: NAME_BYTES_MAX, objectBytesMax: FILE_BYTES_MAX },
    },
    async get(name, range, signal) {
      throwIfAborted(signal)
      if (range) checkRange(range)
      const node = nodes.get(pathOf(name))
      if (!node?.bytes) throw new FerryError('NOT_FOUND', { detail: name })
      if (range?.version !== undefined && range.version !== String(node.version))
        throw new FerryError('STALE', { detail: name })
      return range ? node.bytes.slice(range.at, range.at + range.length) : node.bytes.slice()
    },
    async head(name, signal) {
      throwIfAborted(signal)
      return info(name)
    },
    async put(name, bytes, condition = {}, signal) {
      throwIfAborted(signal)
      const path = pathOf(name)
      check(name, condition)
      for (let above = parentPath(path); above !== ''; above = parentPath(above))
        if (!nodes.has(above)) nodes.set(above, directory(0o700))
      const version = nextVersion()
      nodes.set(path, { ...directory(0), mode: S_IFREG | 0o600, bytes: bytes.slice(), version })
      return String(version)
    },
    async remove(name, condition = {}, signal) {
      throwIfAborted(signal)
      if (!info(name)) return
      check(name, condition)
      nodes.delete(pathOf(name))
    },
    async list(prefix, after = '', signal) {
      throwIfAborted(signal)
      const names = [...nodes.keys()]
        .filter(path => path.startsWith(`${HIDDEN}/${prefix}`) && nodes.get(path)?.bytes)
        .map(path => path.slice(HIDDEN.length + 1))
      return names
        .filter(name => name > after)
        .sort()
        .slice(0, PAGE_MAX)
        .map(name => info(name)!)
    },
    async close() {},
  }
}
