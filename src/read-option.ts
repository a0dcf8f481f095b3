// Files that options name.
import { readFileSync } from 'node:fs'
import { FerryError } from './base/errors.js'

/** USAGE, in one line, if it cannot be read. */
export function readOption(option: string, path: string): Buffer {
  try {
    return readFileSync(path)
  } catch (error) {
    const detail = `${option}: ${path} cannot be read (${(error as NodeJS.ErrnoException).code})`
    throw new FerryError('USAGE', { cause: error, detail })
  }
}
