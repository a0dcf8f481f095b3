#!/usr/bin/env node
// argv -> one library call -> exit status.
import { realpathSync } from 'node:fs'
import { basename } from 'node:path'
import { readyPipe, startDaemon, wantsDaemon } from './src/commands/daemonize.js'
import { HELPER, helperArguments } from './src/commands/mount-helper.js'
import { EXIT, type ExitStatus, reportFailure } from './src/commands/report.js'

// The AWS SDK tells whoever runs an older Node that it will need a newer one some day: not the affair of those who mount a bucket.
process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED = 'true'

const ready = readyPipe()

async function run(): Promise<ExitStatus> {
  if (basename(process.argv[1]) === HELPER) {
    const stood = helperArguments(process.argv.slice(2))
    if (!stood) return EXIT.ok
    process.argv.splice(1, Number.POSITIVE_INFINITY, realpathSync(process.argv[1]), ...stood)
  }
  const args = process.argv.slice(2)
  if (!ready && wantsDaemon(args)) return startDaemon()
  const { program } = await import('./src/commands/program.js')
  let status: ExitStatus = EXIT.ok
  const pageferry = program({
    ready,
    ended: of => {
      status = of
    },
  })
  if (args.length === 0) {
    process.stderr.write(pageferry.helpInformation())
    return EXIT.usage
  }
  await pageferry.parseAsync()
  return status
}

// What the libraries below keep open does not keep a command from ending.
run().then(
  status => process.exit(status),
  error => {
    ready?.failed(error)
    process.exit(ready ? EXIT.failed : reportFailure(error))
  },
)
