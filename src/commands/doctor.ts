// pageferry doctor: what was found, and what to do about it.
import { examine, type Finding } from '../doctor.js'
import { EXIT, type ExitStatus, print } from './report.js'

const marks = { ok: 'ok  ', warning: 'warn', bad: 'BAD ' } as const

const lineOf = ({ check, verdict, found, todo }: Finding) =>
  `${marks[verdict]}  ${check}: ${found}${todo ? `\n      -> ${todo}` : ''}`

export async function doctorCommand({ json, cacheDir }: { json?: boolean; cacheDir?: string }): Promise<ExitStatus> {
  const findings = await examine({ cacheDir: cacheDir ?? '' })
  const works = findings.every(({ verdict }) => verdict !== 'bad')
  if (json) print(JSON.stringify({ works, findings }, null, 2))
  else print([...findings.map(lineOf), works ? 'a mount would work here' : 'a mount would not work here'].join('\n'))
  return works ? EXIT.ok : EXIT.failed
}
