// Attributes as an object's metadata, the way s3fs and rclone write them, so that buckets go back and forth:
//
//   mode           s3fs: decimal, rclone --metadata: octal, both with the type; we write the decimal
//   uid, gid       decimal
//   mtime, atime   seconds, with a fraction of up to nine digits; rclone's atime is RFC 3339
//   xattr          s3fs: a URL-encoded JSON object of names and base64 values
//   pageferry      ours: by which line of which batch the object was placed
//
// A symlink is an object with S_IFLNK in its mode and its target as content. Whatever else there is is kept.
import { constants } from 'node:fs'
import { FerryError } from '../base/errors.js'
import { keyOf, nameOf } from './object-keys.js'
import type { Metadata, ObjectHead } from './objects.js'
import type { Attributes, Xattrs } from './tree.js'

const { S_IFMT, S_IFDIR, S_IFREG, S_IFLNK, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK } = constants
const NS_PER_S = 1_000_000_000n
const NS_PER_MS = 1_000_000n

/** What an object without metadata is taken for. */
const FILE_MODE = S_IFREG | 0o644
export const DIRECTORY_MODE = S_IFDIR | 0o755
/** As s3fs writes it, and others know it. */
export const DIRECTORY_TYPE = 'application/x-directory'

/** Of metadata, what is not extended attributes. */
const OTHER_BYTES = 256
/** Base64, quotes and percent signs make an extended attribute at most so many times longer, but for very short ones. */
const XATTR_GROWTH = 2

export const xattrBytesMax = (metadataBytesMax: number) => Math.max(0, (metadataBytesMax - OTHER_BYTES) / XATTR_GROWTH)

/** Who placed an object. */
export interface Tag {
  epoch: number
  batch: number
  index: number
  /** What it was made of was the version that its line expected. */
  expected: boolean
}

/** uid and gid of what does not say whose it is. */
export interface Owner {
  uid: number
  gid: number
}

export function attributesOf(
  { key, metadata, modifiedMs }: Pick<ObjectHead, 'key' | 'metadata' | 'modifiedMs'>,
  owner: Owner,
): Attributes {
  const mtimeNs = parseTime(metadata.mtime) ?? BigInt(Math.trunc(modifiedMs)) * NS_PER_MS
  return {
    mode: parseMode(metadata.mode, key.endsWith('/')),
    uid: parseId(metadata.uid) ?? owner.uid,
    gid: parseId(metadata.gid) ?? owner.gid,
    atimeNs: parseTime(metadata.atime) ?? mtimeNs,
    mtimeNs,
  }
}

export const isLink = ({ key, metadata }: Pick<ObjectHead, 'key' | 'metadata'>): boolean =>
  (parseMode(metadata.mode, key.endsWith('/')) & S_IFMT) === S_IFLNK

const TYPES = new Set([S_IFREG, S_IFLNK, S_IFDIR, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK])

/**
 * '33188' and '100644' are both rw-r--r--. Read either way, nearly every mode has a type in one of them only; where both do (41471
 * is a symlink in decimal, and a directory in octal), the key tells, since only that of a directory ends in '/'.
 */
function parseMode(text: string | undefined, isDirectory: boolean): number {
  const otherwise = isDirectory ? DIRECTORY_MODE : FILE_MODE
  if (text === undefined || !/^\d{1,7}$/.test(text)) return otherwise
  const readings = [Number(text), /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : 0]
  const fits = (mode: number) =>
    mode <= 0o177777 && TYPES.has(mode & S_IFMT) && ((mode & S_IFMT) === S_IFDIR) === isDirectory
  const mode = readings.find(fits)
  if (mode !== undefined) return mode
  // Without a type: octal, as chmod has it, if it says so by a leading zero.
  const bits = text.startsWith('0') ? readings[1] : readings[0]
  return bits <= 0o7777 ? (otherwise & S_IFMT) | bits : otherwise
}

const parseId = (text: string | undefined): number | undefined => {
  const id = text !== undefined && /^\d{1,10}$/.test(text) ? Number(text) : undefined
  return id !== undefined && id <= 0xffffffff ? id : undefined
}

function parseTime(text: string | undefined): bigint | undefined {
  if (text === undefined) return undefined
  const [, sign, seconds, fraction = ''] = /^(-?)(\d{1,12})(?:\.(\d+))?$/.exec(text) ?? []
  if (seconds !== undefined) {
    const ns = BigInt(seconds) * NS_PER_S + BigInt(fraction.slice(0, 9).padEnd(9, '0'))
    return sign ? -ns : ns
  }
  const [, date, digits = '', zone] = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)$/.exec(text) ?? []
  const ms = date === undefined ? Number.NaN : Date.parse(date + zone)
  return Number.isNaN(ms) ? undefined : BigInt(ms) * NS_PER_MS + BigInt(digits.slice(0, 9).padEnd(9, '0'))
}

function formatTime(ns: bigint): string {
  const [sign, all] = ns < 0n ? ['-', -ns] : ['', ns]
  const fraction = String(all % NS_PER_S).padStart(9, '0')
  return `${sign}${all / NS_PER_S}${fraction === '000000000' ? '' : `.${fraction}`}`
}

/** Names of the metadata that say what the bytes are, and are wrong when these change. */
const OF_BYTES = ['md5chksum']

export interface NewMetadata {
  attributes?: Attributes
  /** Left out: as they are. */
  xattrs?: Xattrs
  tag?: Tag
  /** The bytes are others. */
  changed?: boolean
}

/** Metadata with these attributes; the rest is that of `before`. */
export function metadataWith(before: Metadata, { attributes, xattrs, tag, changed }: NewMetadata): Metadata {
  const metadata = { ...before }
  if (changed) for (const name of OF_BYTES) delete metadata[name]
  if (attributes) {
    const { mode, uid, gid, atimeNs, mtimeNs } = attributes
    Object.assign(metadata, { mode: String(mode), uid: String(uid), gid: String(gid) })
    Object.assign(metadata, { mtime: formatTime(mtimeNs), atime: formatTime(atimeNs) })
  }
  if (xattrs?.size === 0) delete metadata.xattr
  else if (xattrs) metadata.xattr = formatXattrs(xattrs)
  if (tag) metadata.pageferry = `${tag.epoch}.${tag.batch}.${tag.index}${tag.expected ? '=' : ''}`
  return metadata
}

/** TOO_LARGE beyond what the objects can hold. */
export function checkMetadata(metadata: Metadata, bytesMax: number): Metadata {
  const bytes = Object.entries(metadata).reduce((sum, [name, value]) => sum + name.length + value.length, 0)
  if (bytes > bytesMax) throw new FerryError('TOO_LARGE', { detail: `${bytes} bytes of attributes` })
  return metadata
}

export function tagOf({ pageferry }: Metadata): Tag | null {
  const [, epoch, batch, index, expected] = /^(\d+)\.(\d+)\.(\d+)(=?)$/.exec(pageferry ?? '') ?? []
  return epoch === undefined
    ? null
    : { epoch: Number(epoch), batch: Number(batch), index: Number(index), expected: expected === '=' }
}

// Names may have any bytes; JSON has characters.
const formatXattrs = (xattrs: Xattrs): string => {
  const pairs = [...xattrs].map(([name, value]) => [
    Buffer.from(keyOf(name), 'latin1').toString(),
    Buffer.from(value).toString('base64'),
  ])
  return encodeURIComponent(JSON.stringify(Object.fromEntries(pairs)))
}

export function xattrsOf({ xattr }: Metadata): Xattrs {
  if (!xattr) return new Map()
  try {
    const pairs = Object.entries(JSON.parse(decodeURIComponent(xattr)) as Record<string, unknown>)
    return new Map(
      pairs.flatMap(([text, value]) => {
        const name = nameOf(Buffer.from(text).toString('latin1'))
        return name !== null && /^(user|trusted)\./.test(name) && typeof value === 'string'
          ? [[name, new Uint8Array(Buffer.from(value, 'base64'))]]
          : []
      }),
    )
  } catch {
    // Somebody else's, and not what s3fs writes.
    return new Map()
  }
}
