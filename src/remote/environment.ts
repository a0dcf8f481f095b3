// What a URL leaves to the environment: files, mostly of certificates and keys.
import { readFileSync } from 'node:fs'
import { FerryError } from '../base/errors.js'

export type Environment = Record<string, string | undefined>

/** A URL as the readers of addresses get it. */
export interface ParsedUrl {
  shown: string
  scheme: string
  /** Percent-decoded bytes (latin1) of what stands between the scheme and the query. */
  path: string
  query: URLSearchParams
}

/** Said in one line. */
export const invalid = (detail: string, cause?: unknown) => new FerryError('INVALID', { detail, cause })

/** The file that a variable names; undefined: it names none. @throws INVALID: it cannot be read */
export function fileOf(variable: string, env: Environment): Buffer | undefined {
  const path = env[variable]
  try {
    return path ? readFileSync(path) : undefined
  } catch (error) {
    throw invalid(`${variable}: ${path} cannot be read (${(error as NodeJS.ErrnoException).code})`, error)
  }
}

/** The files of PREFIX_CA, PREFIX_CERT and PREFIX_KEY, as PEM. @throws INVALID */
export function certificates(prefix: string, env: Environment): { ca?: Buffer; cert?: Buffer; key?: Buffer } {
  const [ca, cert, key] = [`${prefix}_CA`, `${prefix}_CERT`, `${prefix}_KEY`]
  if (!env[cert] !== !env[key]) throw invalid(`${cert} and ${key} go together`)
  return { ca: fileOf(ca, env), cert: fileOf(cert, env), key: fileOf(key, env) }
}
