// POSIX access control lists as Linux has them in extended attributes: acl(5), include/uapi/linux/posix_acl_xattr.h. A file with one has
// the group bits of its mode as the mask of its list; fs/posix_acl.c says what becomes of either when the other one changes.
import { FerryError } from '../base/errors.js'

/** Its extended attribute; null: the mode says all of it. */
export type Acl = Uint8Array | null

const VERSION = 2
const HEAD_BYTES = 4
const ENTRY_BYTES = 8
const Tag = { owner: 0x01, user: 0x02, group: 0x04, namedGroup: 0x08, mask: 0x10, other: 0x20 } as const

interface Entry {
  tag: number
  /** rwx */
  permissions: number
  id: number
}

/** INVALID for what is none. */
function parse(bytes: Uint8Array): Entry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const count = (bytes.byteLength - HEAD_BYTES) / ENTRY_BYTES
  const entries: Entry[] = []
  if (!Number.isInteger(count) || count < 3 || view.getUint32(0, true) !== VERSION) throw invalid('no list')
  for (let at = HEAD_BYTES; at < bytes.byteLength; at += ENTRY_BYTES) {
    const [tag, permissions] = [view.getUint16(at, true), view.getUint16(at + 2, true)]
    if (permissions > 7 || !Object.values<number>(Tag).includes(tag)) throw invalid(`an entry ${tag}:${permissions}`)
    entries.push({ tag, permissions, id: view.getUint32(at + 4, true) })
  }
  const has = (tag: number) => entries.filter(entry => entry.tag === tag).length
  const isNamed = has(Tag.user) + has(Tag.namedGroup) > 0
  if (has(Tag.owner) !== 1 || has(Tag.group) !== 1 || has(Tag.other) !== 1)
    throw invalid('owner, group, others: one each')
  if (has(Tag.mask) > 1 || (isNamed && has(Tag.mask) === 0)) throw invalid('one mask')
  return entries
}

const invalid = (detail: string) => new FerryError('INVALID', { detail: `access control list: ${detail}` })

function encode(entries: readonly Entry[]): Uint8Array {
  const bytes = new Uint8Array(HEAD_BYTES + entries.length * ENTRY_BYTES)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, VERSION, true)
  entries.forEach(({ tag, permissions, id }, n) => {
    const at = HEAD_BYTES + n * ENTRY_BYTES
    view.setUint16(at, tag, true)
    view.setUint16(at + 2, permissions, true)
    view.setUint32(at + 4, id, true)
  })
  return bytes
}

/** The entry that the group bits of the mode are. */
const maskOf = (entries: readonly Entry[]): Entry =>
  entries.find(({ tag }) => tag === Tag.mask) ?? entries.find(({ tag }) => tag === Tag.group)!

const permissionsOf = (entries: readonly Entry[]): number => {
  const of = (tag: number) => entries.find(entry => entry.tag === tag)!.permissions
  return (of(Tag.owner) << 6) | (maskOf(entries).permissions << 3) | of(Tag.other)
}

/** What the mode does not say already. */
const unlessMode = (entries: readonly Entry[]): Acl => (entries.length > 3 ? encode(entries) : null)

/** Each of the three that the mode has bits for, with the shift of these. */
function eachOfMode(entries: Entry[], change: (entry: Entry, shift: number) => void): void {
  change(entries.find(({ tag }) => tag === Tag.owner)!, 6)
  change(maskOf(entries), 3)
  change(entries.find(({ tag }) => tag === Tag.other)!, 0)
}

/** A list that is set: the permission bits of the mode by that, and what of it is kept. INVALID for what is none. */
export function setAcl(bytes: Uint8Array): { permissions: number; acl: Acl } {
  const entries = parse(bytes)
  return { permissions: permissionsOf(entries), acl: unlessMode(entries) }
}

/** chmod(2) of a file that has the list. */
export function aclWithMode(acl: Uint8Array, mode: number): Uint8Array {
  const entries = parse(acl)
  eachOfMode(entries, (entry, shift) => {
    entry.permissions = (mode >> shift) & 7
  })
  return encode(entries)
}

/** What is made with `mode` where this is the default: no more than either allows. The umask does not count. */
export function inheritAcl(byDefault: Uint8Array, mode: number): { mode: number; acl: Acl } {
  const entries = parse(byDefault)
  eachOfMode(entries, (entry, shift) => {
    entry.permissions &= (mode >> shift) & 7
  })
  return { mode: (mode & ~0o777) | permissionsOf(entries), acl: unlessMode(entries) }
}
