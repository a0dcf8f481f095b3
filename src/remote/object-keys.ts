// Keys and paths. A file's key is its path; a directory's, where it has an object of its own, ends in '/'. Keys are UTF-8, names
// are bytes: a byte that is not part of a UTF-8 character is written as U+EF80 to U+EFFF (0xEF00 + the byte), and so is each byte
// of such a character in a name, so that every name has one key and every key that we write means one name.
import { FerryError } from '../base/errors.js'
import type { Key } from './objects.js'
import { printable } from './path.js'
import { HIDDEN, type Path } from './tree.js'

/** Of one name in a mount. */
export const NAME_BYTES_MAX = 255

/** The root has no key of its own below a prefix: what stands for its attributes. */
const ROOT_KEY = `${HIDDEN}/root`

/** The key of what has this path, unless it is a directory. */
export const keyOf = (path: Path): Key => (isAscii(path) ? path : escapeName(path))

/** The key of a directory's own object. */
export const directoryKey = (path: Path): Key => (path === '' ? ROOT_KEY : `${keyOf(path)}/`)

/** What keys below a directory begin with. */
export const prefixOf = (path: Path): Key => (path === '' ? '' : `${keyOf(path)}/`)

/** The name that the last part of a key stands for; null: it cannot be the name of anything. */
export function nameOf(part: string): string | null {
  if (part === '' || part === '.' || part === '..' || part.includes('\0')) return null
  if (isAscii(part)) return part.length > NAME_BYTES_MAX ? null : part
  const name = unescapeName(part)
  return name.length > NAME_BYTES_MAX || name.includes('/') || escapeName(name) !== part ? null : name
}

/** NAME_TOO_LONG for a path that no key can hold. */
export function checkKey(path: Path, keyBytesMax: number): void {
  const tooLong = path.split('/').some(part => part.length > NAME_BYTES_MAX)
  if (tooLong || directoryKey(path).length > keyBytesMax)
    throw new FerryError('NAME_TOO_LONG', { detail: printable(path) })
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: bytes
const isAscii = (bytes: string) => /^[\x00-\x7f]*$/.test(bytes)

/** Well-formed UTF-8 of more than one byte, as bytes. */
const SEQUENCE =
  /[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}|[\x80-\xff]/g

/** U+EF80 to U+EFFF, as bytes. */
const ESCAPED = /\xee[\xbe\xbf][\x80-\xbf]/g

const escapeName = (name: string): string =>
  name.replace(SEQUENCE, one => (one.length > 1 && !/^\xee[\xbe\xbf]/.test(one) ? one : one.replace(/./gs, escapeByte)))

function escapeByte(byte: string): string {
  const value = byte.charCodeAt(0)
  return value < 0xc0 ? `\xee\xbe${byte}` : `\xee\xbf${String.fromCharCode(value - 0x40)}`
}

const unescapeName = (part: string): string =>
  part.replace(ESCAPED, one => (one[1] === '\xbe' ? one[2] : String.fromCharCode(one.charCodeAt(2) + 0x40)))
