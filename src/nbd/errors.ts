// What a code means to a client: the error of its request. The only place in this door that knows them.
import { type Code, FerryError } from '../base/errors.js'
import { NbdError } from '../wire/nbd.js'

/** Codes that are not here are EIO. */
const errors = {
  INVALID: NbdError.EINVAL,
  RANGE: NbdError.EINVAL,
  NO_SPACE: NbdError.ENOSPC,
  TOO_LARGE: NbdError.EOVERFLOW,
  UNSUPPORTED: NbdError.ENOTSUP,
  NOT_PERMITTED: NbdError.EPERM,
  FORBIDDEN: NbdError.EPERM,
  READ_ONLY: NbdError.EPERM,
  LEASE_HELD: NbdError.EPERM,
  LEASE_LOST: NbdError.EPERM,
  CLOSED: NbdError.ESHUTDOWN,
} satisfies Partial<Record<Code, number>>

/** null: not an operating error of ours, and so a bug. */
export const nbdErrorOf = (error: unknown): number | null =>
  error instanceof FerryError ? ((errors as Partial<Record<Code, number>>)[error.code] ?? NbdError.EIO) : null
