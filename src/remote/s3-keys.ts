// Keys are bytes (latin1) here, and UTF-8 on the wire.
import { FerryError } from '../base/errors.js'
import { printable } from './path.js'

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** A key as S3 has it; null if its bytes are not UTF-8, so that no object can have it. */
export function toWire(key: string): string | null {
  try {
    return decoder.decode(Buffer.from(key, 'latin1'))
  } catch {
    return null
  }
}

export const fromWire = (key: string): string => Buffer.from(key, 'utf8').toString('latin1')

/** The longest piece of `prefix` that is UTF-8: it may end within a char. null: no key can begin so. */
export function prefixToWire(prefix: string): string | null {
  for (let cut = 0; cut < UTF8_BYTES_MAX; cut++) {
    const wire = toWire(prefix.slice(0, prefix.length - cut))
    if (wire !== null) return wire
  }
  return null
}
const UTF8_BYTES_MAX = 4

/** What `encoding-type=url` made of a key: also what XML could not hold. */
export function fromUrlEncoding(encoded: string): string {
  try {
    return decodeURIComponent(encoded.replaceAll('+', ' '))
  } catch (error) {
    throw new FerryError('IO', { cause: error, detail: `a listing with the malformed key ${printable(encoded)}` })
  }
}

/** Whether XML 1.0 can hold it, unchanged by its parser. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what it cannot hold
export const fitsXml = (wire: string): boolean => !/[\x00-\x1f\x7f-\x9f\ufffe\uffff]/.test(wire)

/** The value of `x-amz-copy-source`. */
export const copySource = (bucket: string, wire: string): string =>
  `${bucket}/${wire.split('/').map(encodeURIComponent).join('/')}`
