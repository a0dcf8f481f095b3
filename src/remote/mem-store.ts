// Objects in memory.
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { MemFiles, type MemSnapshot, versionOf } from './mem-files.js'
import { checkPath, checkRange, joinPath, printable } from './path.js'
import type { ObjectInfo, Store } from './store.js'

const PAGE_MAX = 1000
const NAME_BYTES_MAX = 1024

/** A store in memory: `snapshot` is a moment, `restore` goes back to it. Both are cheap: bytes are shared until changed. */
export interface MemStore extends Store {
  snapshot(): MemSnapshot
  restore(snapshot: MemSnapshot): void
}

const named = new Map<string, MemFiles>()

/** Objects in memory; all openers of one name in this process see the same ones, without a name they are the caller's own. */
export function memStore(name?: string): MemStore {
  const files = (name === undefined ? undefined : named.get(name)) ?? new MemFiles()
  if (name !== undefined) named.set(name, files)
  return {
    ...memStoreIn(files, '', `mem:${name ?? ''}`),
    snapshot: () => files.snapshot(),
    restore: snapshot => files.restore(snapshot),
  }
}

/** The objects below a directory of `files`; it is made when first needed. */
export function memStoreIn(files: MemFiles, below: string, url: string): Store {
  const pathOf = (name: string) => {
    checkPath(name)
    if (name.length > NAME_BYTES_MAX) throw new FerryError('NAME_TOO_LONG', { detail: printable(name) })
    if (name === '') throw new FerryError('INVALID', { detail: 'an object without a name' })
    return joinPath(below, name)
  }
  const info = (name: string): ObjectInfo | null => {
    const node = files.find(pathOf(name))
    return node?.kind === 'file' ? { name, size: node.bytes.size, version: versionOf(node) } : null
  }
  const expect = (name: string, { ifAbsent, ifVersion }: { ifAbsent?: boolean; ifVersion?: string }) => {
    if (ifAbsent && ifVersion !== undefined)
      throw new FerryError('INVALID', { detail: 'ifAbsent and ifVersion exclude each other' })
    const now = info(name)
    if ((ifAbsent && now) || (ifVersion !== undefined && now?.version !== ifVersion))
      throw new FerryError('CONFLICT', { detail: `${printable(name)} is ${now ? 'another version' : 'gone'}` })
  }
  return {
    shape: 'store',
    url,
    capabilities: {
      conditionalCreate: true,
      conditionalReplace: true,
      nameBytesMax: NAME_BYTES_MAX,
      objectBytesMax: 2 ** 31 - 1,
    },

    async get(name, range, signal) {
      throwIfAborted(signal)
      if (range) checkRange(range)
      const node = files.find(pathOf(name))
      if (node?.kind !== 'file') throw new FerryError('NOT_FOUND', { detail: printable(name) })
      if (range?.version !== undefined && range.version !== versionOf(node))
        throw new FerryError('STALE', { detail: printable(name) })
      return node.bytes.read(range?.at ?? 0, range?.length ?? node.bytes.size)
    },

    async head(name, signal) {
      throwIfAborted(signal)
      return info(name)
    },

    async put(name, bytes, condition = {}, signal) {
      throwIfAborted(signal)
      const path = pathOf(name)
      expect(name, condition)
      files.makeParents(path)
      const there = files.find(path)
      // An empty directory that earlier objects left behind is not in the way.
      if (there?.kind === 'directory' && there.names.size === 0) files.remove(path)
      files.replace(path, bytes)
      return info(name)!.version
    },

    async remove(name, condition = {}, signal) {
      throwIfAborted(signal)
      if (!info(name)) return
      expect(name, condition)
      files.remove(pathOf(name))
    },

    async list(prefix, after = '', signal) {
      throwIfAborted(signal)
      const page: ObjectInfo[] = []
      const start = below === '' ? 0 : below.length + 1
      for (const path of files.files(below)) {
        const name = path.slice(start)
        if (name <= after || !name.startsWith(prefix)) continue
        page.push(info(name)!)
        if (page.length === PAGE_MAX) break
      }
      return page
    },

    async close() {},
  }
}
