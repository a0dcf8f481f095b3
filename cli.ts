#!/usr/bin/env node
// argv -> one library call -> exit status.
import { CommanderError } from 'commander'
import { program } from './src/commands/program.js'
import { EXIT, type ExitStatus, reportFailure } from './src/commands/report.js'

let status: ExitStatus = EXIT.ok
const pageferry = program(ended => {
  status = ended
})
try {
  await pageferry.parseAsync()
} catch (error) {
  // Without a command: the help is all there is to say.
  if (error instanceof CommanderError && error.code === 'commander.help') {
    process.stderr.write(pageferry.helpInformation())
    status = EXIT.usage
  } else if (!(error instanceof CommanderError && error.exitCode === 0)) status = reportFailure(error)
}
// What the libraries below keep open does not keep a command from ending.
process.exit(status)
