// Becoming another program: same pid, same place in the terminal.

import { checked, cstring, self } from './libc.js'

const execveCall = self.func('execve', 'int', ['void *', 'void *', 'void *']) as (
  file: Uint8Array,
  argv: BigUint64Array,
  environment: BigUint64Array,
) => number
const strdupCall = self.func('strdup', 'intptr_t', ['void *']) as (text: Uint8Array) => number | bigint

/** A C array of strings; the copies are never freed, since the process that made them is about to end. */
const stringArray = (strings: string[]) =>
  BigUint64Array.from([...strings.map(each => BigInt(strdupCall(cstring(each)))), 0n])

/**
 * Replaces this process by `file`, an absolute path. Descriptors stay open as far as they are not close-on-exec (those of
 * node are), and so do stdin, stdout and stderr. Returns only by throwing. execve(2)
 * @throws NOT_FOUND, FORBIDDEN, TOO_LARGE (arguments and environment together)
 */
export function exec(file: string, args: string[], environment: NodeJS.ProcessEnv): never {
  const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`)
  checked(execveCall(cstring(file), stringArray([file, ...args]), stringArray(variables)), 'execve', file)
  throw new Error('execve returned')
}
