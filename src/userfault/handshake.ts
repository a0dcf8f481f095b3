// What a process says of its memory when it hands over its userfaultfd: Firecracker's protocol
// (docs/snapshotting/handling-page-faults-on-snapshot-resume.md of that project): one message, a JSON array, and one descriptor.
import { FerryError } from '../base/errors.js'
import type { Mapping } from './spaces.js'

/** Of JSON. */
export const HANDSHAKE_BYTES_MAX = 64 * 1024
const MAPPINGS_MAX = 1_024
const PAGE_BYTES = 4096
const ADDRESS_MAX = 2 ** 47

const invalid = (detail: string) => new FerryError('PROTOCOL', { detail })

/** @throws PROTOCOL, in one line, for what is not so: not the message, or mappings beyond the region or over each other */
export function parseMappings(json: string, regionBytes: number): Mapping[] {
  let given: unknown
  try {
    given = JSON.parse(json)
  } catch {
    throw invalid(`not JSON: ${JSON.stringify(json.slice(0, 60))}`)
  }
  if (!Array.isArray(given) || given.length === 0 || given.length > MAPPINGS_MAX)
    throw invalid(`an array of 1 to ${MAPPINGS_MAX} mappings was expected`)
  const mappings = given.map((each, n) => parseMapping(each, n, regionBytes))
  const sorted = [...mappings].sort((a, b) => a.address - b.address)
  const over = sorted.findIndex((each, n) => n > 0 && sorted[n - 1].address + sorted[n - 1].length > each.address)
  if (over !== -1) throw invalid(`two mappings lie over each other at 0x${sorted[over].address.toString(16)}`)
  return mappings
}

function parseMapping(given: unknown, n: number, regionBytes: number): Mapping {
  const fields = (given ?? {}) as Record<string, unknown>
  const number = (name: string, max: number): number => {
    const value = fields[name]
    if (!Number.isSafeInteger(value) || (value as number) < 0 || (value as number) > max)
      throw invalid(`mapping ${n}: ${name} is ${JSON.stringify(value)}, not a number from 0 to ${max}`)
    return value as number
  }
  // `page_size_kib` is what older versions called it, in bytes as well.
  const name = fields.page_size === undefined ? 'page_size_kib' : 'page_size'
  const pageBytes = fields[name] === undefined ? PAGE_BYTES : number(name, 2 ** 30)
  if (pageBytes < PAGE_BYTES || 2 ** Math.log2(pageBytes) !== pageBytes || !Number.isInteger(Math.log2(pageBytes)))
    throw invalid(`mapping ${n}: pages of ${pageBytes} bytes`)
  const [address, length, at] = [
    number('base_host_virt_addr', ADDRESS_MAX),
    number('size', ADDRESS_MAX),
    number('offset', Number.MAX_SAFE_INTEGER),
  ]
  if (length === 0 || address % pageBytes !== 0 || length % pageBytes !== 0)
    throw invalid(`mapping ${n}: ${length} bytes at 0x${address.toString(16)} are no whole pages of ${pageBytes}`)
  const whole = Math.ceil(regionBytes / pageBytes) * pageBytes
  if (at + length > whole) throw invalid(`mapping ${n}: ${length} bytes at ${at} of a region of ${regionBytes}`)
  return { address, length, at, pageBytes }
}
