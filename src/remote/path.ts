// Paths and object names are strings in which each char is one byte. What all backends refuse, they refuse here.
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { HIDDEN, HIDDEN_BESIDE, type Path } from './tree.js'

/** INVALID for what is no path of ours: a char beyond one byte, NUL, an empty part, '.' or '..'. '' (the root) is fine. */
export function checkPath(path: Path): void {
  if (path === '') return
  let partStart = 0
  for (let i = 0; i <= path.length; i++) {
    const char = i === path.length ? 0x2f : path.charCodeAt(i)
    if (char === 0 || char > 0xff) refuse(path, 'each char must be a byte, and not NUL')
    if (char !== 0x2f) continue
    const part = path.slice(partStart, i)
    if (part === '' || part === '.' || part === '..') refuse(path, "'.', '..' and empty parts are not allowed")
    partStart = i + 1
  }
}

const refuse = (path: string, why: string): never => {
  throw new FerryError('INVALID', { detail: `${printable(path)}: ${why}` })
}

/** INVALID unless both are whole numbers from 0 on whose sum is below 2^53. */
export function checkRange({ at, length }: { at: number; length: number }): void {
  if (
    at >= 0 &&
    length >= 0 &&
    Number.isSafeInteger(at) &&
    Number.isSafeInteger(length) &&
    Number.isSafeInteger(at + length)
  )
    return
  throw new FerryError('INVALID', { detail: `${length} bytes at ${at}` })
}

/** What a call of a blob may ask for. @throws ABORTED, INVALID: not a range, or beyond the end */
export function checkWithin(range: { at: number; length: number }, size: number, signal?: AbortSignal): void {
  throwIfAborted(signal)
  checkRange(range)
  const { at, length } = range
  if (at + length > size) throw new FerryError('INVALID', { detail: `${length} bytes at ${at} of ${size}` })
}

/** @throws TOO_LARGE: more than a remote takes at once */
export function checkRequest(length: number, requestBytesMax: number): void {
  if (length > requestBytesMax) throw new FerryError('TOO_LARGE', { detail: `${length} bytes in one request` })
}

/** The directory that a path lies in; '' for the root's own names, and for the root. */
export const parentPath = (path: Path): Path => path.slice(0, Math.max(0, path.lastIndexOf('/')))

/** The last part. */
export const lastName = (path: Path): string => path.slice(path.lastIndexOf('/') + 1)

export const joinPath = (directory: Path, name: string): Path =>
  directory && name ? `${directory}/${name}` : directory || name

/** Whether a tree hides this very path from `list` and `stat`. What is below it can be reached by who knows its name. */
export const isHidden = (path: Path): boolean => path === HIDDEN || lastName(path).startsWith(HIDDEN_BESIDE)

/** A path for a message: as UTF-8 if it is that, quoted. */
export const printable = (path: Path): string => JSON.stringify(Buffer.from(path, 'latin1').toString())

/** Bytes as a URL's path: whatever is not plain is percent-encoded, so that no two of them are one. */
export const urlPath = (path: Uint8Array): string =>
  Buffer.from(path)
    .toString('latin1')
    .replace(/[^\w.~/,:=+@-]/g, char => `%${char.charCodeAt(0).toString(16).padStart(2, '0')}`)

/** The URL of a file whose path is these bytes. */
export const fileUrl = (path: Uint8Array): string => `file://${urlPath(path)}`
