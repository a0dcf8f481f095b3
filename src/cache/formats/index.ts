// The formats that the pull knows. A new one is a file beside this one, and a line here.
import type { Format } from './format.js'
import { mp4 } from './mp4.js'
import { sqlite } from './sqlite.js'

const formats: readonly Format[] = [mp4, sqlite]

/** The format of a file that begins with these bytes, or null. */
export const formatOf = (first: Uint8Array, name: string): Format | null =>
  formats.find(format => format.recognises(first, name)) ?? null
