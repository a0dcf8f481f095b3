// How a command ends: one line about what went wrong, and an exit status.
import { type Code, codes, FerryError, toFerryError } from '../base/errors.js'

export const EXIT = { ok: 0, failed: 1, usage: 2 } as const
export type ExitStatus = (typeof EXIT)[keyof typeof EXIT]

/** What the user can mend by asking for something else; everything else may succeed another time. */
const usageCodes = new Set<Code>([
  'USAGE',
  'NOT_FOUND',
  'NOT_DIRECTORY',
  'IS_DIRECTORY',
  'NOT_EMPTY',
  'FORBIDDEN',
  'NOT_PERMITTED',
  'INVALID',
  'UNSUPPORTED',
  'NAME_TOO_LONG',
  'BAD_FORMAT',
  'TOO_NEW',
])

export const say = (line: string) => void process.stderr.write(`pageferry: ${line}\n`)
export const print = (text: string) => void process.stdout.write(`${text}\n`)

/** PAGEFERRY_DEBUG=1: stack traces are welcome. */
export const debugging = () => process.env.PAGEFERRY_DEBUG === '1'

/** Known by its code, since to load commander for that takes longer than most commands. */
const isCommander = (error: unknown): error is Error & { exitCode: number } =>
  error instanceof Error && String((error as { code?: unknown }).code).startsWith('commander.')

/** One line for a person, without stack, and the exit status that goes with it. */
export function describeFailure(error: unknown): { line: string; status: ExitStatus } {
  if (isCommander(error)) {
    // Some messages carry a hint on a second line.
    const line = error.message.replace(/^error: /, '').replaceAll(/\s*\n\s*/g, ' ')
    return { line, status: error.exitCode === 0 ? EXIT.ok : EXIT.usage }
  }
  const known = error instanceof FerryError
  const ferry = toFerryError(error)
  const line = ferry.code === 'USAGE' ? ferry.message.replace(`${codes.USAGE}: `, '') : ferry.message
  return {
    line: line.replaceAll(/\s*\n\s*/g, ' '),
    status: known && usageCodes.has(ferry.code) ? EXIT.usage : EXIT.failed,
  }
}

/** Says what went wrong; returns the exit status. */
export function reportFailure(error: unknown): ExitStatus {
  const { line, status } = describeFailure(error)
  // Help and version are ways to end, too.
  if (status === EXIT.ok) return status
  say(line)
  if (debugging()) process.stderr.write(`${error instanceof Error ? (error.stack ?? error) : error}\n`)
  return status
}

/** Ctrl-C for commands that can be given up: aborts on the first signal; a second one ends the process as usual. */
export function onInterrupt(): AbortController {
  const controller = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.once(signal, () => controller.abort(new FerryError('ABORTED', { detail: signal })))
  return controller
}
