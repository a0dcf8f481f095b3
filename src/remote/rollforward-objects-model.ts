// The plan of a batch, as it is written into the stage: which objects come, out of what, and which go.
import type { FerryError } from '../base/errors.js'
import type { Outcome } from './commits.js'
import { tagOf } from './object-attributes.js'
import type { Known } from './object-files.js'
import { directoryKey, keyOf, nameOf, prefixOf } from './object-keys.js'
import type { Key, ObjectEntry } from './objects.js'
import type { Path } from './tree.js'

/** An object that something is made of. */
export interface Source {
  key: Key
  etag: string
  size: number
  /** Its name in the stage, since another object takes its key. */
  held: string | null
}

/** An object that comes. */
export interface Target {
  index: number
  /** Where; a directory's own object if it is one. */
  path: Path
  directory: boolean
  /** The name to use if it is taken after all. */
  otherwise: Path
  /** The tag of what it replaces; null: nothing. */
  replaces: string | null
  source: Source | null
  /** What it is made of is what its line expected. */
  expected: boolean
  /** An earlier attempt has placed it. */
  placed: string | null
}

/** An object that goes. */
export interface Leaver {
  key: Key
  etag: string
  /** The name by which it is known if it stays, because it was changed. */
  path: Path
}

/** A directory that moves: its objects are listed in the stage. */
export interface Subtree {
  index: number
  from: Path
  /** Where it comes to. */
  to: Path
  chunks: string[]
}

/** An object below a directory that moves. */
export interface Member {
  /** Its key after that of the directory and the slash; '' for the directory's own object. */
  rest: Key
  etag: string
  size: number
  replaces: string | null
  held: string | null
}

export interface Plan {
  targets: Target[]
  subtrees: Subtree[]
  leavers: Leaver[]
  /** Directories out of which something goes, and which are not to vanish with it. */
  markers: Path[]
  conflicts: Outcome['conflicts']
  refused: [index: number, path: Path, code: FerryError['code'], detail: string][]
}

export const isOurs = (head: Known | null, { epoch, batch }: { epoch: number; batch: number }, index?: number) => {
  const tag = head && tagOf(head.metadata)
  return tag?.epoch === epoch && tag.batch === batch && (index === undefined || tag.index === index)
}

export const keyOfTarget = ({ path, directory }: Pick<Target, 'path' | 'directory'>): Key =>
  directory ? directoryKey(path) : keyOf(path)

export const sourceOf = ({ key, etag, size }: ObjectEntry): Source => ({ key, etag, size, held: null })

/** What a key stands for; parts that can be no names are taken as they are. */
export const pathOf = (key: Key): Path =>
  (key.endsWith('/') ? key.slice(0, -1) : key)
    .split('/')
    .map(part => nameOf(part) ?? part)
    .join('/')

export const sourceOfMember = ({ from }: Subtree, { rest, etag, size, held }: Member): Source => ({
  key: prefixOf(from) + rest,
  etag,
  size,
  held,
})
