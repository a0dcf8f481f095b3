// What a code means to a program: its errno. The only place in this door that knows errno numbers (asm-generic/errno*.h).
import { type Code, FerryError } from '../base/errors.js'

export const ENOENT = 2
export const EINTR = 4
export const EIO = 5
export const ENXIO = 6
export const E2BIG = 7
export const EINVAL = 22
export const ENOTTY = 25
export const EFBIG = 27
export const ERANGE = 34
export const ENOSYS = 38
export const EOPNOTSUPP = 95

/** Codes that are not here are EIO. */
const errnos = {
  NOT_FOUND: ENOENT,
  EXISTS: 17,
  NOT_DIRECTORY: 20,
  IS_DIRECTORY: 21,
  NOT_EMPTY: 39,
  NOT_PERMITTED: 1,
  FORBIDDEN: 13,
  READ_ONLY: 30,
  NO_SPACE: 28,
  NO_DATA: 61,
  TOO_LARGE: EFBIG,
  NAME_TOO_LONG: 36,
  TOO_MANY_LINKS: 31,
  RANGE: ERANGE,
  INVALID: EINVAL,
  UNSUPPORTED: EOPNOTSUPP,
  CROSS_DEVICE: 18,
  BUSY: 16,
  STALE: 116,
  INTERRUPTED: EINTR,
  LEASE_HELD: 30,
  LEASE_LOST: 30,
} satisfies Partial<Record<Code, number>>

/** The errno of a thrown value; undefined if it is not an operating error of ours: then it is a bug, and worth a line in the log. */
export const errnoOf = (error: unknown): number | undefined =>
  error instanceof FerryError ? ((errnos as Partial<Record<Code, number>>)[error.code] ?? EIO) : undefined
