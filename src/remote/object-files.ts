// A bucket read as a tree: one object is one file, and what lies between slashes is a directory, whether it has an object of its own
// or not.
//
// A listing of S3 tells no metadata: modes, owners, times, and whether it is a symlink, cost a HEAD for each object, and for each
// directory, which may have an object of its own. A listing does not wait for these: its entries are partial, but for those of which
// the metadata is remembered with the tag and the date that are listed. A bucket that was only ever written by tools without such
// metadata can be read with `attributes: 'listed'`, which never asks: all files are 0644, directories 0755, and symlinks are files with
// their targets in them. It is not the default, for what it shows of a tree that we wrote ourselves is wrong.
import { constants } from 'node:fs'
import { LRUCache } from 'lru-cache'
import { mapLimit } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { attributesOf, DIRECTORY_MODE, isLink, type Owner, xattrsOf } from './object-attributes.js'
import { directoryKey, keyOf, nameOf, prefixOf } from './object-keys.js'
import type { Key, ListPage, ObjectEntry, ObjectHead, Objects } from './objects.js'
import { checkPath, checkRange, isHidden, joinPath, lastName } from './path.js'
import type { Entry, PartialName, Path, Version, Xattrs } from './tree.js'

const { S_IFREG } = constants
const log = logger('objects')

const HEADS_AT_ONCE = 32
/** Of objects whose metadata is remembered; about 300 bytes each. */
const REMEMBERED_MAX = 100_000
/**
 * Dates are in whole seconds, and metadata may change without another tag: what was asked so soon after an object's date may be
 * older than its last change.
 */
const SETTLED_MS = 2_000
/** Longer ones are no targets of symlinks, whatever their metadata says. */
const LINK_BYTES_MAX = 4_096
/** So often a symlink is looked at again that changes all the while. */
const LOOKS_MAX = 16
/** Directories in which something could not be shown, and the log knows it. */
const WARNED_MAX = 1_000

export interface ObjectFilesOptions {
  /** `listed`: what a listing tells is all there is; see above. */
  attributes: 'full' | 'listed'
  owner: Owner
  /** Wall clock. */
  wallMs: () => number
}

/** An object, and where it points if it is a symlink. */
export interface Known extends ObjectHead {
  link?: string
}

/** What a path stands for. */
export type Found = { kind: 'file'; head: Known } | { kind: 'directory'; marker: Known | null }

export interface Page {
  entries: Entry[]
  cursor?: string
}

interface Remembered {
  known: Known
  /** By the wall clock, against the object's date. */
  askedAtMs: number
  /** Against `now()`. */
  look: number
}

const NO_METADATA = { metadata: {}, contentType: '' }

export class ObjectFiles {
  readonly objects: Objects
  readonly #options: ObjectFilesOptions
  readonly #remembered = new LRUCache<Key, Remembered>({ max: REMEMBERED_MAX })
  /** Looks so far: an order that no clock that is set back, and no two within a millisecond, can upset. */
  #looks = 0
  readonly #warned = new LRUCache<Path, true>({ max: WARNED_MAX })

  constructor(objects: Objects, options: ObjectFilesOptions) {
    this.objects = objects
    this.#options = options
  }

  // --- objects

  /** As it is now. */
  async head(key: Key, signal?: AbortSignal): Promise<Known | null> {
    for (let tries = 1; ; tries++) {
      const asked = this.#asked()
      const head = await this.objects.head(key, signal)
      if (!head) {
        this.#remembered.delete(key)
        return null
      }
      try {
        const known = await this.#withLink(head, signal)
        this.#remembered.set(key, { known, ...asked })
        return known
      } catch (error) {
        // A symlink that was removed or replaced before its target was read.
        if (!isFerryError(error, 'NOT_FOUND', 'STALE') || tries === LOOKS_MAX) throw error
      }
    }
  }

  async #withLink(head: ObjectHead, signal?: AbortSignal): Promise<Known> {
    if (!isLink(head)) return head
    const before = this.#remembered.get(head.key)?.known
    const link = before?.etag === head.etag ? before.link : undefined
    const target = link ?? (await this.#linkOf(head, signal))
    return target === undefined ? head : { ...head, link: target }
  }

  /** A listing shows it now: if it is what is remembered, that is as good as asked now. */
  confirm(entry: ObjectEntry): void {
    const settled = this.#settled(entry)
    if (settled) Object.assign(settled, this.#asked())
  }

  #settled({ key, etag, modifiedMs }: ObjectEntry): Remembered | undefined {
    const remembered = this.#remembered.get(key)
    if (!remembered) return undefined
    const { known, askedAtMs } = remembered
    const same = known.etag === etag && seconds(known.modifiedMs) === seconds(modifiedMs)
    return same && askedAtMs - known.modifiedMs > SETTLED_MS ? remembered : undefined
  }

  /** We have put it ourselves. */
  remember(known: Omit<Known, 'modifiedMs' | 'archived'>): void {
    // Its date is the bucket's to tell: until then a listing does not find it here.
    const undated = { ...known, modifiedMs: Number.NaN, archived: false }
    this.#remembered.set(known.key, { known: undated, ...this.#asked() })
  }

  #asked(): Pick<Remembered, 'askedAtMs' | 'look'> {
    return { askedAtMs: this.#options.wallMs(), look: ++this.#looks }
  }

  /** What was asked of this version of an object after that, or put. Others may have given it other metadata meanwhile. */
  askedSince(since: number, { key, etag }: Pick<ObjectEntry, 'key' | 'etag'>): Known | undefined {
    const remembered = this.#remembered.get(key)
    return remembered && remembered.look > since && remembered.known.etag === etag ? remembered.known : undefined
  }

  /** What is asked from now on is asked after this. */
  now(): number {
    return this.#looks
  }

  async #linkOf(head: ObjectHead, signal?: AbortSignal): Promise<string | undefined> {
    if (head.size > LINK_BYTES_MAX) return undefined
    const { key, size, etag } = head
    const bytes = await this.objects.get(key, { at: 0, length: size, etag }, signal)
    return Buffer.from(bytes).toString('latin1')
  }

  /** Pages of all objects whose keys begin with `prefix`. */
  async *below(prefix: Key, signal?: AbortSignal): AsyncGenerator<ObjectEntry[]> {
    for (let cursor: string | undefined; ; ) {
      const page = await this.objects.list({ prefix, cursor }, signal)
      yield page.objects
      cursor = page.cursor
      if (cursor === undefined) return
    }
  }

  // --- paths

  /** Of a file and a directory of one name, the directory has it if it has an object of its own, and something in it. */
  async find(path: Path, signal?: AbortSignal): Promise<Found | null> {
    if (path === '') return { kind: 'directory', marker: await this.head(directoryKey(''), signal) }
    const [file, marker] = await Promise.all([this.head(keyOf(path), signal), this.head(directoryKey(path), signal)])
    if (file && !(marker && (await this.#hasMembers(prefixOf(path), signal)))) return { kind: 'file', head: file }
    return marker || (await this.#hasMembers(prefixOf(path), signal)) ? { kind: 'directory', marker } : null
  }

  async #hasMembers(prefix: Key, signal?: AbortSignal): Promise<boolean> {
    const { objects, prefixes } = await this.objects.list({ prefix, delimiter: '/' }, signal)
    return prefixes.length > 0 || objects.some(({ key }) => key !== prefix)
  }

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    checkPath(path)
    const found = await this.find(path, signal)
    return found && this.entry(lastName(path), found)
  }

  async list(path: Path, cursor?: string, signal?: AbortSignal): Promise<Page> {
    checkPath(path)
    const prefix = prefixOf(path)
    const page = await this.objects.list({ prefix, delimiter: '/', cursor }, signal)
    const { objects, prefixes } = page
    if (cursor === undefined && path !== '' && objects.length + prefixes.length === 0)
      throw new FerryError((await this.objects.head(keyOf(path), signal)) ? 'NOT_DIRECTORY' : 'NOT_FOUND', {
        detail: path,
      })
    const files = objects.filter(({ key }) => key !== prefix && this.#nameOf(path, key, prefix) !== null)
    const directories = prefixes.filter(
      key => this.#nameOf(path, key.slice(0, -1), prefix) !== null && !isHidden(key.slice(0, -1)),
    )
    const taken = collisions({ files, directories, page, isFirst: cursor === undefined })
    const shown = await mapLimit([...files, ...directories], HEADS_AT_ONCE, async one =>
      typeof one === 'string'
        ? this.#listedDirectory(path, one, taken.directories.has(one), signal)
        : this.#listedFile(path, one, taken.files.has(one.key), signal),
    )
    return { entries: shown.filter(entry => entry !== null), cursor: page.cursor }
  }

  async #listedFile(path: Path, listed: ObjectEntry, collides: boolean, signal?: AbortSignal): Promise<Entry | null> {
    if (collides && (await this.#hasDirectory(`${listed.key}/`, signal))) {
      this.#warn(path, listed.key, 'a directory has the name of this file, which is not shown')
      return null
    }
    const name = nameIn(listed.key)
    const known = this.#settled(listed)?.known
    if (known) return this.entry(name, { kind: 'file', head: known })
    return this.#partial(this.entry(name, { kind: 'file', head: { ...listed, ...NO_METADATA } }))
  }

  /** One that has the name of a file. */
  async #hasDirectory(prefix: Key, signal?: AbortSignal): Promise<boolean> {
    return (await this.objects.head(prefix, signal)) !== null && this.#hasMembers(prefix, signal)
  }

  async #listedDirectory(path: Path, prefix: Key, collides: boolean, signal?: AbortSignal): Promise<Entry | null> {
    const key = prefix.slice(0, -1)
    const file = collides ? await this.objects.head(key, signal) : null
    if (!file || (await this.#hasDirectory(prefix, signal)))
      return this.#partial(this.entry(nameIn(key), { kind: 'directory', marker: null }))
    this.#warn(path, key, 'a file has the name of this directory, which is not shown')
    return null
  }

  #partial(entry: Entry): Entry {
    return this.#options.attributes === 'full' ? { ...entry, partial: true } : entry
  }

  /** The rest of what a listing has told of some names. */
  async complete(path: Path, partial: PartialName[], signal?: AbortSignal): Promise<(Entry | null)[]> {
    checkPath(path)
    return mapLimit(partial, HEADS_AT_ONCE, async ({ name, isDirectory }) => {
      const key = keyOf(joinPath(path, name))
      // A directory may have no object of its own: whether there is one at all, the listing has told.
      if (isDirectory) return this.entry(name, { kind: 'directory', marker: await this.head(`${key}/`, signal) })
      const head = await this.head(key, signal)
      return head && this.entry(name, { kind: 'file', head })
    })
  }

  #nameOf(path: Path, key: Key, prefix: Key): string | null {
    const name = nameOf(key.slice(prefix.length))
    if (name === null) this.#warn(path, key, 'no file can have the name of this object, which is not shown')
    return name
  }

  #warn(path: Path, key: Key, message: string): void {
    if (this.#warned.has(path)) return
    this.#warned.set(path, true)
    log.warn(message, { key, url: this.objects.url, more: 'others in this directory are not mentioned' })
  }

  entry(name: string, found: Found): Entry {
    const { owner } = this.#options
    if (found.kind === 'directory') {
      const attributes =
        found.marker && this.#options.attributes === 'full'
          ? attributesOf({ ...found.marker, key: '/' }, owner)
          : { mode: DIRECTORY_MODE, ...owner, atimeNs: 0n, mtimeNs: 0n }
      return { ...attributes, ...common(name, 0, 2), ctimeNs: attributes.mtimeNs, version: '' }
    }
    const head = this.#options.attributes === 'full' ? found.head : { ...found.head, ...NO_METADATA, link: undefined }
    const attributes = attributesOf(head, owner)
    // Its target could not be read: what it is then is a file.
    if (isLink(head) && head.link === undefined) attributes.mode = S_IFREG | 0o644
    return {
      ...attributes,
      ...common(name, head.size, 1),
      ctimeNs: BigInt(Math.trunc(head.modifiedMs)) * 1_000_000n,
      version: head.etag,
      ...(head.link !== undefined && { link: head.link }),
    }
  }

  async read(
    path: Path,
    { at, length, version }: { at: number; length: number; version?: Version },
    signal?: AbortSignal,
  ): Promise<Uint8Array> {
    checkPath(path)
    checkRange({ at, length })
    if (path === '') throw new FerryError('IS_DIRECTORY', { detail: 'the root' })
    try {
      return await this.objects.get(keyOf(path), { at, length, etag: version }, signal)
    } catch (error) {
      if (!isFerryError(error, 'NOT_FOUND')) throw error
      const found = await this.find(path, signal)
      throw found?.kind === 'directory' ? new FerryError('IS_DIRECTORY', { detail: path }) : error
    }
  }

  async xattrs(path: Path, signal?: AbortSignal): Promise<Xattrs> {
    checkPath(path)
    const found = await this.find(path, signal)
    if (!found) throw new FerryError('NOT_FOUND', { detail: path })
    return xattrsOfFound(found)
  }
}

export const xattrsOfFound = (found: Found): Xattrs =>
  xattrsOf((found.kind === 'file' ? found.head : found.marker)?.metadata ?? {})

/** Which of a page's files and directories may have the name of another: that one is on this page, or beyond its edges. */
function collisions({
  files,
  directories,
  page,
  isFirst,
}: {
  files: ObjectEntry[]
  directories: Key[]
  page: ListPage
  isFirst: boolean
}): { files: Set<Key>; directories: Set<Key> } {
  const keys = [...page.objects.map(({ key }) => key), ...page.prefixes].sort()
  const [first, last] = [keys[0], keys[keys.length - 1]]
  const fileKeys = new Set(files.map(({ key }) => key))
  const prefixes = new Set(directories)
  return {
    files: new Set(
      [...fileKeys].filter(key => prefixes.has(`${key}/`) || (page.cursor !== undefined && `${key}/` > last)),
    ),
    directories: new Set(
      directories.filter(prefix => {
        const key = prefix.slice(0, -1)
        return fileKeys.has(key) || (!isFirst && key < first)
      }),
    ),
  }
}

const seconds = (ms: number) => Math.floor(ms / 1_000)

const nameIn = (key: Key): string => nameOf(lastName(key))!

const common = (name: string, size: number, nlink: number) => ({ name, size, allocated: size, rdev: 0, nlink })
