// What an S3 server says, as our errors. Details carry its code, status and request id and the key: nothing else, since what it
// repeats of a request (a canonical request, say) holds session tokens.
import { abortReason } from '../base/async.js'
import { type Code, FerryError } from '../base/errors.js'

/** An answer that is an error. `code`: '' if it did not say any, as to a HEAD. */
export interface Refusal {
  code: string
  status: number
  requestId: string
  /** Where the bucket is, if it said so. */
  region?: string
}

const elsewhere = 'the bucket is elsewhere: name its region and endpoint'

// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
// What is wrong with the credentials is wrong with every path, and may be put right: it must not send paths into quarantine.
const table: Record<string, [code: Code, hint?: string]> = {
  NoSuchKey: ['NOT_FOUND'],
  NoSuchUpload: ['NOT_FOUND', 'no such upload'],
  NoSuchBucket: ['UNREACHABLE', 'there is no such bucket'],
  PreconditionFailed: ['CONFLICT'],
  // Another request for this key was at it: nothing is known but that this one was not done.
  ConditionalRequestConflict: ['BUSY'],
  OperationAborted: ['BUSY'],
  AccessDenied: ['FORBIDDEN'],
  InvalidObjectState: ['ARCHIVED', 'aws s3api restore-object does that'],
  RequestTimeTooSkewed: ['UNREACHABLE', "this host's clock differs from the server's by more than 15 minutes"],
  ExpiredToken: ['UNREACHABLE', 'the credentials have expired; get new ones'],
  TokenRefreshRequired: ['UNREACHABLE', 'the credentials have expired; get new ones'],
  InvalidToken: ['UNREACHABLE', 'the session token is not valid; get new credentials'],
  InvalidAccessKeyId: [
    'UNREACHABLE',
    'the server does not know this access key; check AWS_ACCESS_KEY_ID or the profile',
  ],
  SignatureDoesNotMatch: ['UNREACHABLE', 'the secret key is wrong, or something on the way changes requests'],
  CredentialsProviderError: ['UNREACHABLE', 'no credentials; set AWS_ACCESS_KEY_ID and its secret, or AWS_PROFILE'],
  PermanentRedirect: ['UNREACHABLE', elsewhere],
  TemporaryRedirect: ['UNREACHABLE', elsewhere],
  AuthorizationHeaderMalformed: ['UNREACHABLE', elsewhere],
  SlowDown: ['UNREACHABLE', 'asked to slow down'],
  ServiceUnavailable: ['UNREACHABLE'],
  RequestTimeout: ['UNREACHABLE'],
  InternalError: ['IO'],
  BadDigest: ['CORRUPT', 'what arrived is not what was sent'],
  XAmzContentSHA256Mismatch: ['CORRUPT', 'what arrived is not what was sent'],
  IncompleteBody: ['UNREACHABLE'],
  KeyTooLongError: ['NAME_TOO_LONG'],
  InvalidObjectName: ['NAME_TOO_LONG'],
  EntityTooLarge: ['TOO_LARGE'],
  MetadataTooLarge: ['TOO_LARGE', 'too much metadata'],
  QuotaExceeded: ['NO_SPACE'],
  NotImplemented: ['UNSUPPORTED'],
  MethodNotAllowed: ['UNSUPPORTED'],
}

/** Of these, what no second attempt puts right. */
const lasting = new Set([
  'NoSuchBucket',
  'InvalidAccessKeyId',
  'SignatureDoesNotMatch',
  'CredentialsProviderError',
  'PermanentRedirect',
  'AuthorizationHeaderMalformed',
])

/** What the server said no with; undefined if it did not answer, or with something that is not S3. */
export function refusalOf(error: unknown): Refusal | undefined {
  if (!(error instanceof Error)) return undefined
  const { $metadata, $response } = error as Error & {
    $metadata?: { httpStatusCode?: number; requestId?: string }
    $response?: { statusCode?: number; headers?: Record<string, string> }
  }
  const status = $metadata?.httpStatusCode ?? $response?.statusCode
  // Some errors come after a 200 that was to keep the line alive.
  if (status === undefined || (status < 300 && !Object.hasOwn(table, error.name))) return undefined
  // To a HEAD, whose answer has no body, the SDK makes up a name; and it has one for what it could not read.
  const code = /^(\d*|Unknown\w*|NotFound|Error|SyntaxError)$/.test(error.name) ? '' : error.name
  return { code, status, requestId: $metadata?.requestId ?? '', region: $response?.headers?.['x-amz-bucket-region'] }
}

export interface Meaning {
  signal?: AbortSignal
  /** What a 412 means here. Default CONFLICT. */
  precondition?: Code
  /** What NoSuchKey means here. Default NOT_FOUND. */
  missing?: Code
}

/** Any error of the SDK. `doing`: 'get "key"'. */
export function toS3Error(error: unknown, doing: string, { signal, ...meaning }: Meaning = {}): FerryError {
  if (error instanceof FerryError) return error
  if (signal?.aborted) return abortReason(signal)
  const refusal = refusalOf(error)
  return refusal ? ofRefusal(refusal, doing, meaning) : unanswered(error, doing)
}

export function ofRefusal(
  refusal: Refusal,
  doing: string,
  { precondition = 'CONFLICT', missing }: Meaning = {},
): FerryError {
  const { code, status, requestId, region } = refusal
  if (status === 412) return new FerryError(precondition, { detail: doing })
  const [known, hint] = Object.hasOwn(table, code) ? table[code] : [ofStatus(refusal)]
  const where = region && hint === elsewhere ? ` (region ${region})` : ''
  const facts = [code, status, requestId && `request ${requestId}`].filter(Boolean).join(', ')
  return new FerryError(code === 'NoSuchKey' && missing ? missing : known, {
    detail: `${doing}${hint ? `: ${hint}${where}` : ''} (${facts})`,
    lasting: lasting.has(code),
  })
}

function ofStatus({ code, status }: Refusal): Code {
  if (status === 403) return 'FORBIDDEN'
  if (status === 429 || status === 502 || status === 503 || status === 504) return 'UNREACHABLE'
  if (status >= 500) return 'IO'
  // A redirect, or a "not found" that does not say what: nothing that is known about this key.
  if (status < 400 || status === 404 || code === '') return 'UNREACHABLE'
  return 'INVALID'
}

function unanswered(error: unknown, doing: string): FerryError {
  const { name = '', code = '', $response } = error as { name?: string; code?: unknown; $response?: unknown }
  if (Object.hasOwn(table, name))
    return new FerryError(table[name][0], { detail: `${doing}: ${table[name][1]}`, lasting: lasting.has(name) })
  if ($response) return new FerryError('IO', { detail: `${doing}: an answer that is not S3` })
  // Of a socket, of TLS, or of a name that was looked up.
  if (code || name === 'TimeoutError')
    return new FerryError('UNREACHABLE', { detail: `${doing} (${code || 'timeout'})` })
  return new FerryError('IO', { detail: `${doing} (${name})` })
}
