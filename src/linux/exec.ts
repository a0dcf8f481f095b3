// Becoming another program: same pid, same place in the terminal.

import { checked, cstring, fcntl, self } from './libc.js'

const execveCall = self.func('execve', 'int', ['void *', 'void *', 'void *']) as (
  file: Uint8Array,
  argv: BigUint64Array,
  environment: BigUint64Array,
) => number
const strdupCall = self.func('strdup', 'intptr_t', ['void *']) as (text: Uint8Array) => number | bigint

const F_SETFD = 2

/** A C array of strings; the copies are never freed, since the process that made them is about to end. */
const stringArray = (strings: string[]) =>
  BigUint64Array.from([...strings.map(each => BigInt(strdupCall(cstring(each)))), 0n])

/**
 * Replaces this process by `file`, an absolute path. Only stdin, stdout and stderr stay open. Returns only by throwing. execve(2)
 * @throws NOT_FOUND, FORBIDDEN, TOO_LARGE (arguments and environment together)
 */
export function exec(file: string, args: string[], environment: NodeJS.ProcessEnv): never {
  // Node marks every descriptor that it was started with close-on-exec, these three too. One that is closed stays so.
  for (const fd of [0, 1, 2]) fcntl(fd, F_SETFD, 0)
  const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`)
  checked(execveCall(cstring(file), stringArray([file, ...args]), stringArray(variables)), 'execve', file)
  throw new Error('execve returned')
}
