// A tree that can be read and nothing else: what it has not is said here, once.
import { FerryError } from '../base/errors.js'
import type { Store } from './store.js'
import { HIDDEN, type Tree, type TreeCapabilities } from './tree.js'

/** The half of a tree that reads. */
export type ReadingTree = Pick<Tree, 'url' | 'stat' | 'list' | 'read' | 'close'>

const capabilities: TreeCapabilities = {
  write: false,
  hardLinks: false,
  symlinks: false,
  specialFiles: false,
  owners: false,
  xattrBytesMax: 0,
  nameBytesMax: 255,
  pathBytesMax: 4096,
  fileBytesMax: 2 ** 50,
  patch: false,
}

/** With nothing hidden in it, and every change refused (READ_ONLY). */
export function readOnlyTree(reading: ReadingTree): Tree {
  const { url } = reading
  const refuse = async (): Promise<never> => {
    throw new FerryError('READ_ONLY', { detail: url })
  }
  return {
    shape: 'tree',
    url,
    capabilities,
    hidden: nothing(`${url}/${HIDDEN}`, refuse),
    stat: (path, signal) => reading.stat(path, signal),
    list: (path, cursor, signal) => reading.list(path, cursor, signal),
    read: (path, range, signal) => reading.read(path, range, signal),
    xattrs: async () => new Map(),
    usage: async () => null,
    close: () => reading.close(),
    write: refuse,
    truncate: refuse,
    punch: refuse,
    make: refuse,
    link: refuse,
    rename: refuse,
    remove: refuse,
    setAttributes: refuse,
    setXattrs: refuse,
    sync: refuse,
  }
}

/** A store in which there is nothing, and never will be. */
const nothing = (url: string, refuse: () => Promise<never>): Store => ({
  shape: 'store',
  url,
  capabilities: { conditionalCreate: false, conditionalReplace: false, nameBytesMax: 255, objectBytesMax: 0 },
  async get(name) {
    throw new FerryError('NOT_FOUND', { detail: name })
  },
  head: async () => null,
  put: refuse,
  remove: refuse,
  list: async () => [],
  close: async () => {},
})
