// One error class and one table of codes. What a code means to a caller (errno, NBD error, exit status) is decided at the edge.

export const codes = {
  NOT_FOUND: 'no such file or directory',
  EXISTS: 'already exists',
  NOT_DIRECTORY: 'not a directory',
  IS_DIRECTORY: 'is a directory',
  NOT_EMPTY: 'directory not empty',
  NOT_PERMITTED: 'operation not permitted',
  FORBIDDEN: 'access denied',
  ARCHIVED: 'archived, and must be restored before it can be read',
  READ_ONLY: 'read-only',
  NO_SPACE: 'no space left',
  NO_DATA: 'no such attribute',
  TOO_LARGE: 'too large',
  NAME_TOO_LONG: 'name too long',
  TOO_MANY_LINKS: 'too many links',
  RANGE: 'the buffer is too small for the result',
  INVALID: 'invalid argument',
  UNSUPPORTED: 'not supported',
  CROSS_DEVICE: 'not on the same file system',
  BUSY: 'in use',
  STALE: 'the version that was asked for is no longer there',
  CONFLICT: 'the precondition does not hold: somebody else changed it',
  UNREACHABLE: 'the remote cannot be reached',
  DEADLINE: 'no answer within the deadline',
  ABORTED: 'aborted',
  INTERRUPTED: 'interrupted',
  SHORT_READ: 'the remote returned fewer bytes than asked',
  CORRUPT: 'the bytes do not match their checksum',
  LEASE_HELD: 'another writer holds the lease',
  LEASE_LOST: 'another writer took the lease over',
  BAD_FORMAT: 'not a format of ours',
  TOO_NEW: 'written by a newer version',
  PROTOCOL: 'malformed message',
  USAGE: 'bad usage',
  CLOSED: 'already closed',
  IO: 'input/output error',
} as const

/** What went wrong, by name. */
export type Code = keyof typeof codes

export interface FerryErrorOptions {
  cause?: unknown
  /** What was being done, to what; appended to the message. */
  detail?: string
  /** Somebody answered, and what he said is a matter of how things are set up: asked again soon, he says the same. Default false. */
  lasting?: boolean
}

/** What a file system answers to ordinary questions: no such file, no such attribute. */
const common = new Set<Code>(['NOT_FOUND', 'EXISTS', 'NOT_DIRECTORY', 'IS_DIRECTORY', 'NOT_EMPTY', 'NO_DATA', 'RANGE'])

/** Every operating error of pageferry. Programmer errors are `assert` failures instead. */
export class FerryError extends Error {
  override readonly name = 'FerryError'
  readonly lasting: boolean
  constructor(
    readonly code: Code,
    options: FerryErrorOptions = {},
  ) {
    // A stack is nine tenths of what an error costs (8 us), and nobody looks at those that programs ask for all day.
    const limit = Error.stackTraceLimit
    if (common.has(code)) Error.stackTraceLimit = 0
    super(codes[code] + (options.detail ? `: ${options.detail}` : ''), { cause: options.cause })
    Error.stackTraceLimit = limit
    this.lasting = options.lasting ?? false
  }
}

/** Whether it is one of ours, and (if codes are named) one of these. */
export const isFerryError = (error: unknown, ...wanted: Code[]): error is FerryError =>
  error instanceof FerryError && (wanted.length === 0 || wanted.includes(error.code))

/** Refusals for good: asking the same again will be refused again (a path with one goes into quarantine). */
const permanent = new Set<Code>([
  'FORBIDDEN',
  'ARCHIVED',
  'NOT_PERMITTED',
  'NAME_TOO_LONG',
  'TOO_LARGE',
  'UNSUPPORTED',
  'INVALID',
  'TOO_MANY_LINKS',
])
export const isPermanent = (error: unknown) => error instanceof FerryError && permanent.has(error.code)

/** Node's errno codes as ours; used by every backend that stands on files or sockets. */
const fromErrno: Record<string, Code> = {
  ENOENT: 'NOT_FOUND',
  EEXIST: 'EXISTS',
  ENOTDIR: 'NOT_DIRECTORY',
  EISDIR: 'IS_DIRECTORY',
  ENOTEMPTY: 'NOT_EMPTY',
  EPERM: 'NOT_PERMITTED',
  EACCES: 'FORBIDDEN',
  EROFS: 'READ_ONLY',
  ENOSPC: 'NO_SPACE',
  EDQUOT: 'NO_SPACE',
  ENODATA: 'NO_DATA',
  EFBIG: 'TOO_LARGE',
  ENAMETOOLONG: 'NAME_TOO_LONG',
  EMLINK: 'TOO_MANY_LINKS',
  ERANGE: 'RANGE',
  EINVAL: 'INVALID',
  ENOTSUP: 'UNSUPPORTED',
  EOPNOTSUPP: 'UNSUPPORTED',
  ENOSYS: 'UNSUPPORTED',
  EXDEV: 'CROSS_DEVICE',
  EBUSY: 'BUSY',
  ESTALE: 'STALE',
  ECONNREFUSED: 'UNREACHABLE',
  ECONNRESET: 'UNREACHABLE',
  EPIPE: 'UNREACHABLE',
  EHOSTUNREACH: 'UNREACHABLE',
  ENETUNREACH: 'UNREACHABLE',
  ETIMEDOUT: 'DEADLINE',
  ENOTCONN: 'UNREACHABLE',
}

/** Any thrown value as a FerryError; one that is already ours passes through unchanged. */
export function toFerryError(error: unknown, detail?: string): FerryError {
  if (error instanceof FerryError) return error
  if (error instanceof Error && error.name === 'AbortError') return new FerryError('ABORTED', { cause: error, detail })
  const code = (error as NodeJS.ErrnoException | null)?.code
  const ours = (code && fromErrno[code]) || 'IO'
  return new FerryError(ours, {
    cause: error,
    detail: detail ?? (error instanceof Error ? error.message : String(error)),
  })
}
