// A bucket for the suites: with the primitives of a tree, as somebody else would change it by hand.
import { constants } from 'node:fs'
import type { Commits } from '../../src/remote/commits.js'
import { attributesOf, metadataWith, xattrsOf } from '../../src/remote/object-attributes.js'
import { ObjectFiles } from '../../src/remote/object-files.js'
import { directoryKey, keyOf } from '../../src/remote/object-keys.js'
import { objectStore } from '../../src/remote/object-store.js'
import type { Objects } from '../../src/remote/objects.js'
import { parentPath } from '../../src/remote/path.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { RollforwardOptions } from '../../src/remote/rollforward-options.js'
import { prefixed } from '../../src/remote/rollforward-prefix.js'
import type { Tree, TreeChange } from '../../src/remote/tree.js'
import type { Picture } from './commits-model.js'

/** The objects are what takes batches. */
export interface HandTree extends Tree {
  objects: Objects
}

const EMPTY = new Uint8Array()
const owner = { uid: 0, gid: 0 }
const unsupported = async () => {
  throw new Error('not by hand')
}

export function handTree(objects: Objects): HandTree {
  const files = () => new ObjectFiles(objects, { attributes: 'full', owner, wallMs: () => 0 })
  const rewrite = async (path: string, change: (bytes: Uint8Array) => Uint8Array) => {
    const { metadata } = (await objects.head(keyOf(path)))!
    await objects.put(keyOf(path), change(await objects.get(keyOf(path))), { metadata })
  }
  return {
    shape: 'tree',
    url: objects.url,
    objects,
    capabilities: rollforward(objects).capabilities,
    hidden: prefixed(objectStore(objects), '.pageferry/'),
    stat: path => files().stat(path),
    list: async (path, cursor) =>
      files()
        .list(path, cursor)
        .catch(error => {
          if (path.startsWith('.pageferry')) return { entries: [] }
          throw error
        }),
    read: (path, range) => files().read(path, range),
    complete: (path, partial) => files().complete(path, partial),
    xattrs: path => files().xattrs(path),
    usage: async () => null,
    write: (path, at, from) =>
      rewrite(path, bytes => {
        const all = new Uint8Array(Math.max(bytes.length, at + from.length))
        all.set(bytes)
        all.set(from, at)
        return all
      }),
    truncate: (path, size) =>
      rewrite(path, bytes => {
        const all = new Uint8Array(size)
        all.set(bytes.subarray(0, size))
        return all
      }),
    async make(path, node) {
      const isDirectory = (node.mode & constants.S_IFMT) === constants.S_IFDIR
      await objects.put(isDirectory ? directoryKey(path) : keyOf(path), EMPTY, {
        metadata: metadataWith({}, { attributes: node }),
        ifAbsent: true,
      })
    },
    async remove(path) {
      await objects.removeAll([keyOf(path), directoryKey(path)])
    },
    async setAttributes(path, attributes) {
      const head = (await objects.head(keyOf(path)))!
      const metadata = metadataWith(head.metadata, { attributes: { ...attributesOf(head, owner), ...attributes } })
      await objects.copy(head.key, head.key, { metadata })
    },
    async setXattrs(path, xattrs) {
      const head = (await objects.head(keyOf(path)))!
      const metadata = metadataWith(head.metadata, { xattrs: new Map([...xattrsOf(head.metadata), ...xattrs]) })
      await objects.copy(head.key, head.key, { metadata })
    },
    punch: unsupported,
    link: unsupported,
    rename: unsupported,
    sync: async () => {},
    close: async () => {},
  }
}

/** Whatever takes whole batches. */
export const committing = (tree: Tree, options?: Partial<RollforwardOptions>): Tree & Commits<TreeChange> =>
  'objects' in tree ? rollforward(tree.objects as Objects, options) : rollforward(tree, options)

/**
 * Where a request to a bucket that was on its way when the lease was lost may still be met by the conditions that it expects: a name
 * that was free and is free again, and bytes that are again what they were. (Directories are always empty; files get other bytes here,
 * symlinks do not.)
 */
export function loose(steps: string[], seen: Picture): Set<string> {
  /** A file and a directory of one name are two keys. */
  const there = new Set<string>()
  const same = new Set<string>()
  for (const line of seen.filter(one => one.startsWith('['))) {
    const [path, mode, , , , content] = JSON.parse(line)
    const key = isDirectory(mode) ? `${path}/` : path
    there.add(key)
    if (content === '' || isSymlink(mode)) same.add(key)
  }
  const paths = new Set<string>()
  for (const step of steps) {
    const [name, ...keys] = step.split(' ')
    if (!['put', 'copy', 'remove', 'completeUpload'].includes(name)) continue
    const key = name === 'copy' ? keys[1] : keys[0]
    const path = key === '.pageferry/root' ? '' : key.replace(/\/$/, '')
    if (path.startsWith('.pageferry/')) continue
    if (!there.has(key) || same.has(key)) paths.add(path)
    for (let at = parentPath(path); at !== ''; at = parentPath(at)) if (!there.has(`${at}/`)) paths.add(at)
  }
  return paths
}

/** Modes in octal. */
const isDirectory = (mode: string) => mode.startsWith('40')
const isSymlink = (mode: string) => mode.startsWith('120')

export const without = (picture: Picture, paths: Set<string>): Picture =>
  paths.size === 0 ? picture : picture.filter(line => !line.startsWith('[') || !paths.has(JSON.parse(line)[0]))
