// A tree in memory: for tests and demonstrations, and the model that other trees are held against.
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { MemFiles, type MemSnapshot, versionOf } from './mem-files.js'
import { memStoreIn } from './mem-store.js'
import { checkRange, isHidden, joinPath, printable } from './path.js'
import { HIDDEN, isCarried, type Tree, type TreeCapabilities, type Xattrs } from './tree.js'

const PAGE_MAX = 1000
const S_IFMT = 0o170000
const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const S_IFLNK = 0o120000

/** A tree in memory: `snapshot` is a moment (of what is hidden, too), `restore` goes back to it. Bytes are shared until changed. */
export interface MemTree extends Tree {
  snapshot(): MemSnapshot
  restore(snapshot: MemSnapshot): void
}

export interface MemTreeOptions {
  /** All openers of one name in this process see the same tree; without one it is the caller's own. */
  name?: string
  /** To play a remote that can do less; what it cannot do it refuses (UNSUPPORTED, READ_ONLY, NAME_TOO_LONG, TOO_LARGE). */
  capabilities?: Partial<TreeCapabilities>
  /** For mtime and ctime; the default is the wall clock. */
  nowNs?: () => bigint
}

const all: TreeCapabilities = {
  write: true,
  hardLinks: true,
  symlinks: true,
  specialFiles: true,
  owners: true,
  xattrBytesMax: 65536,
  nameBytesMax: 255,
  pathBytesMax: 4096,
  fileBytesMax: 2 ** 50,
  patch: true,
}

const named = new Map<string, MemFiles>()

export function memTree({ name, nowNs, capabilities: fewer }: MemTreeOptions = {}): MemTree {
  const files = (name === undefined ? undefined : named.get(name)) ?? new MemFiles(nowNs)
  if (name !== undefined) named.set(name, files)
  const capabilities = { ...all, ...fewer }
  const url = `mem:${name ?? ''}`

  const refuse = (
    code: 'UNSUPPORTED' | 'READ_ONLY' | 'NAME_TOO_LONG' | 'TOO_LARGE' | 'NOT_PERMITTED',
    what: string,
  ) => {
    throw new FerryError(code, { detail: what })
  }
  const checkWritable = (signal: AbortSignal | undefined) => {
    throwIfAborted(signal)
    if (!capabilities.write) refuse('READ_ONLY', url)
  }
  const checkName = (path: string) => {
    if (path.length > capabilities.pathBytesMax) refuse('NAME_TOO_LONG', printable(path))
    const longest = Math.max(...path.split('/').map(part => part.length))
    if (longest > capabilities.nameBytesMax) refuse('NAME_TOO_LONG', printable(path))
  }
  const checkSize = (size: number) => {
    if (size > capabilities.fileBytesMax) refuse('TOO_LARGE', `${size} bytes`)
  }
  const checkType = (mode: number) => {
    const type = mode & S_IFMT
    if (type === S_IFLNK && !capabilities.symlinks) refuse('UNSUPPORTED', 'symlinks')
    if (![S_IFLNK, S_IFDIR, S_IFREG].includes(type) && !capabilities.specialFiles)
      refuse('UNSUPPORTED', 'special files')
  }

  return {
    shape: 'tree',
    url,
    capabilities,
    hidden: memStoreIn(files, HIDDEN, `${url}/${HIDDEN}`),
    snapshot: () => files.snapshot(),
    restore: snapshot => files.restore(snapshot),

    async stat(path, signal) {
      throwIfAborted(signal)
      return isHidden(path) ? null : files.entry(path)
    },

    async list(path, cursor, signal) {
      throwIfAborted(signal)
      const { entries, next } = files.list(path, Number(cursor ?? 0), PAGE_MAX, name => isHidden(joinPath(path, name)))
      return { entries, ...(next !== undefined && { cursor: String(next) }) }
    },

    async read(path, { at, length, version }, signal) {
      throwIfAborted(signal)
      checkRange({ at, length })
      const file = files.file(path)
      if (version !== undefined && version !== versionOf(file))
        throw new FerryError('STALE', { detail: printable(path) })
      return file.bytes.read(at, length)
    },

    async xattrs(path, signal) {
      throwIfAborted(signal)
      return new Map([...files.get(path).xattrs].map(([key, value]) => [key, value.slice()]))
    },

    async usage(signal) {
      throwIfAborted(signal)
      return { bytesTotal: 2 ** 40, bytesFree: 2 ** 39, filesTotal: 2 ** 30, filesFree: 2 ** 29 }
    },

    async close() {},

    async write(path, at, from, signal) {
      checkWritable(signal)
      checkRange({ at, length: from.byteLength })
      checkSize(at + from.byteLength)
      files.change(path, bytes => bytes.write(at, from))
    },

    async copy(source, { at, length, to, version }, target, signal) {
      checkWritable(signal)
      checkRange({ at, length })
      checkSize(to + length)
      const from = files.file(source)
      if (version !== undefined && version !== versionOf(from))
        throw new FerryError('STALE', { detail: printable(source) })
      const read = from.bytes.read(at, length)
      if (read.length < length) throw new FerryError('SHORT_READ', { detail: `${read.length} of ${length} bytes` })
      files.change(target, bytes => bytes.write(to, read))
    },

    async truncate(path, size, signal) {
      checkWritable(signal)
      checkRange({ at: 0, length: size })
      checkSize(size)
      files.change(path, bytes => bytes.truncate(size))
    },

    async punch(path, at, length, signal) {
      checkWritable(signal)
      checkRange({ at, length })
      files.change(path, bytes => bytes.punch(at, length))
    },

    async make(path, node, signal) {
      checkWritable(signal)
      checkName(path)
      checkType(node.mode)
      files.make(path, node)
    },

    async link(source, target, signal) {
      checkWritable(signal)
      checkName(target)
      if (!capabilities.hardLinks) refuse('UNSUPPORTED', 'hard links')
      files.link(source, target)
    },

    async rename(source, target, signal) {
      checkWritable(signal)
      checkName(target)
      files.rename(source, target)
    },

    async remove(path, signal) {
      checkWritable(signal)
      files.remove(path)
    },

    async setAttributes(path, attributes, signal) {
      checkWritable(signal)
      files.setAttributes(path, attributes)
    },

    async setXattrs(path, xattrs, signal) {
      checkWritable(signal)
      checkXattrs(path, xattrs)
      files.setXattrs(path, xattrs)
    },

    async sync(_paths, signal) {
      checkWritable(signal)
    },
  }

  function checkXattrs(path: string, xattrs: Xattrs): void {
    const { kind } = files.get(path)
    let bytes = 0
    for (const [key, value] of xattrs) {
      bytes += key.length + value.byteLength
      if (!isCarried(key)) refuse('UNSUPPORTED', `extended attribute ${printable(key)}`)
      // As Linux has it, see xattr(7).
      if (kind === 'other' && key.startsWith('user.')) refuse('NOT_PERMITTED', `extended attribute ${printable(key)}`)
    }
    if (bytes > capabilities.xattrBytesMax) refuse('TOO_LARGE', `${bytes} bytes of extended attributes`)
  }
}
