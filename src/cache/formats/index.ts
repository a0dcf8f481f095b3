// The formats that the pull knows. A new one is a file beside this one, and a line here.
import { FIRST_BYTES, type FileView, type Format, need, type Plan } from './format.js'
import { mp4 } from './mp4.js'
import { sqlite } from './sqlite.js'

const formats: readonly Format[] = [mp4, sqlite]

/** The format of a file that begins with these bytes, or null. */
export const formatOf = (first: Uint8Array, name: string): Format | null =>
  formats.find(format => format.recognises(first, name)) ?? null

/** What the format of a file wishes for, once its first bytes tell which that is. */
export function* planOf(file: FileView): Plan {
  const { name, size } = file
  const first = { from: 0, to: Math.min(FIRST_BYTES, size) }
  // Whoever begins elsewhere knows his way.
  const tailBytes = file.head.from < FIRST_BYTES ? tailBytesOf(name) : 0
  if (tailBytes > 0) yield { ranges: [first, { from: size - tailBytes, to: size }], until: 'here' }
  const { buffer, byteOffset, byteLength } = yield* need(file, 0, first.to)
  const format = formatOf(new Uint8Array(buffer, byteOffset, byteLength), name)
  if (format) yield* format.plan(file)
}

const tailBytesOf = (name: string): number => formats.find(({ tail }) => tail?.names.test(name))?.tail?.bytes ?? 0
