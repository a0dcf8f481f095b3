// What a Redis server says no with, as our errors. Neither commands nor their arguments are repeated: they hold bytes and passwords.
import { type Code, FerryError } from '../base/errors.js'

const forbidden = 'this user may not do that'
export const cluster = 'this is a cluster; it must be a single server'

// What is wrong with the server or the password is wrong with every key, and may be put right: it must not send paths into quarantine.
const table: Record<string, [code: Code, hint?: string]> = {
  NOAUTH: ['UNREACHABLE', 'the server wants a password; set REDIS_PASSWORD'],
  WRONGPASS: ['UNREACHABLE', 'the user or the password is wrong; check REDIS_USERNAME and REDIS_PASSWORD'],
  NOPERM: ['FORBIDDEN', forbidden],
  OOM: ['NO_SPACE', 'the server has reached its maxmemory'],
  LOADING: ['UNREACHABLE', 'the server is still loading its data'],
  MASTERDOWN: ['UNREACHABLE', 'the server has lost its master'],
  NOREPLICAS: ['UNREACHABLE', 'too few replicas are there'],
  MISCONF: ['IO', 'the server cannot write to its disk'],
  READONLY: ['READ_ONLY', 'the server is a replica'],
  BUSY: ['BUSY', 'a script of somebody else runs there'],
  WRONGTYPE: ['BAD_FORMAT', 'a key with our prefix is not ours'],
  MOVED: ['UNREACHABLE', cluster],
  ASK: ['UNREACHABLE', cluster],
  CROSSSLOT: ['UNREACHABLE', cluster],
  CLUSTERDOWN: ['UNREACHABLE', cluster],
}

/** Of these, what no second attempt puts right. */
const lasting = new Set(['NOAUTH', 'WRONGPASS', 'MOVED', 'ASK', 'CROSSSLOT', 'CLUSTERDOWN'])

/** Replies that are all of the code ERR, and say what they mean in words. */
const spoken: [says: RegExp, code: Code, hint: string][] = [
  [/max number of clients/, 'UNREACHABLE', 'the server has too many clients'],
  [/DB index is out of range/, 'INVALID', 'the server has no database of this number'],
  [/ACL failure in script|executing the script can't/, 'FORBIDDEN', forbidden],
  [/invalid password/, 'UNREACHABLE', 'the password is wrong; check REDIS_PASSWORD'],
]

/** The first word of a reply that is an error; undefined: it is no reply, the connection broke. */
export function refusalOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || error.name !== 'ReplyError') return undefined
  // Before Redis 7, an error inside of a script is wrapped in another one.
  const [, code = 'ERR'] =
    /^([A-Z]+)\b/.exec(error.message.replace(/^ERR Error running script.*: -(?=[A-Z]+ )/s, '')) ?? []
  return code
}

/** Any error of ioredis. `url`: which server. */
export function toRedisError(error: unknown, url: string): FerryError {
  if (error instanceof FerryError) return error
  const { message, code = 'the connection is closed' } = error as NodeJS.ErrnoException
  const refusal = refusalOf(error)
  if (refusal === undefined) return new FerryError('UNREACHABLE', { detail: `${url} (${code})` })
  const known = Object.hasOwn(table, refusal) ? table[refusal] : undefined
  const [, ours, hint] = spoken.find(([says]) => says.test(message)) ?? [null, ...(known ?? (['IO'] as const))]
  const said = hint ? `${hint} (${refusal})` : message.replace(/,? with args .*/s, '')
  return new FerryError(ours, { detail: `${url}: ${said}`, lasting: lasting.has(refusal) })
}
