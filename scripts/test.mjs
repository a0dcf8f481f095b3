// Runs the tests, lists what was skipped and why, and ends with one line: `N passed, N failed, N skipped`.
//
//   node scripts/test.mjs [--long] [jest arguments]
//
// --long: PAGEFERRY_LONG=1. REQUIRE_ALL=1 in the environment: a skip is a failure.
import { spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const long = process.argv.includes('--long')
const wanted = process.argv.slice(2).filter(each => each !== '--long')

// Everything a test leaves behind is below this folder or carries this name in its environment, so leaks can be told from neighbours.
const folder = mkdtempSync(join(tmpdir(), 'pf-'))
// Some tests act as another user, below it.
chmodSync(folder, 0o755)
/** The guest wants all of the processor, so it comes when the others are done. */
const runs = wanted.length > 0 ? [wanted] : [['--testPathIgnorePatterns', '/test/vm/'], ['test/vm/']]
const reportOf = run => join(folder, `.jest-${run}.json`)
const env = {
  ...process.env,
  ...(long ? { PAGEFERRY_LONG: '1' } : {}),
  TMPDIR: folder,
  PAGEFERRY_TEST_RUN: folder,
  NODE_OPTIONS: [process.env.NODE_OPTIONS, '--disable-warning=ExperimentalWarning'].filter(Boolean).join(' '),
}

/** @returns its exit status */
async function jest(run) {
  const child = spawn(
    process.execPath,
    [
      '--experimental-vm-modules',
      join(root, 'node_modules', 'jest', 'bin', 'jest.js'),
      ...['--forceExit', '--maxWorkers=2', '--json', `--outputFile=${reportOf(run)}`, ...runs[run]],
    ],
    // Jest's report also goes to stdout with --json; it is read from the file instead.
    { cwd: root, env, stdio: ['ignore', 'ignore', 'inherit'] },
  )
  const kill = signal => child.kill(signal)
  for (const signal of signals) process.on(signal, kill)
  const status = await new Promise(done => child.on('close', code => done(code ?? 1)))
  for (const signal of signals) process.off(signal, kill)
  return status
}
const signals = ['SIGINT', 'SIGTERM']
let status = 0
for (const run of runs.keys()) {
  const ended = await jest(run)
  status ||= ended
}

/** Mounts below the run's folder, the deepest first. */
const leakedMounts = () =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map(line => line.split(' ')[4] ?? '')
    .filter(path => path.startsWith(`${folder}/`))
    .reverse()

/** Processes that this run started and nobody ended. */
const leakedProcesses = () =>
  readdirSync('/proc')
    .filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter(pid => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'latin1').includes(`PAGEFERRY_TEST_RUN=${folder}\0`)
      } catch {
        return false
      }
    })
    .map(Number)

const commandLine = pid => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ').trim()
  } catch {
    return '(gone)'
  }
}

/** Ends what was left behind; each line names one leak. */
async function leaks() {
  const lines = []
  // A daemon that was just told to stop may need a moment.
  for (let tries = 0; tries < 20 && leakedProcesses().length > 0; tries++)
    await new Promise(done => setTimeout(done, 100))
  for (const pid of leakedProcesses()) {
    lines.push(`process ${pid} was left running: ${commandLine(pid)}`)
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // It ended by itself meanwhile.
    }
  }
  for (const path of leakedMounts()) {
    lines.push(`a mount was left at ${path}`)
    await new Promise(done => spawn('umount', ['-l', path], { stdio: 'ignore' }).on('close', done).on('error', done))
  }
  return lines
}

const totals = { passed: 0, failed: 0, skipped: 0 }
const skips = []
for (const run of runs.keys()) count(run)

function count(run) {
  try {
    const results = JSON.parse(readFileSync(reportOf(run), 'utf8'))
    for (const file of results.testResults) {
      const name = file.name.replace(`${root}/`, '')
      // A file that could not even be loaded has no tests to fail.
      if (file.status === 'failed' && !file.assertionResults.some(each => each.status === 'failed')) totals.failed++
      for (const each of file.assertionResults) {
        if (each.status === 'passed') totals.passed++
        else if (each.status === 'failed') totals.failed++
        else {
          totals.skipped++
          skips.push(`${name}: ${each.fullName}`)
        }
      }
    }
  } catch (error) {
    process.stderr.write(`jest left no report: ${error.message}\n`)
    totals.failed++
  }
}
const left = await leaks()
rmSync(folder, { recursive: true, force: true, maxRetries: 3 })

totals.failed += left.length
if (status !== 0 && totals.failed === 0) totals.failed = 1
for (const line of left) process.stdout.write(`leak: ${line}\n`)
if (skips.length > 0) process.stdout.write(`skipped:\n${skips.map(line => `  ${line}\n`).join('')}`)
if (process.env.REQUIRE_ALL === '1' && skips.length > 0) {
  process.stdout.write('REQUIRE_ALL=1: skips count as failures\n')
  totals.failed += skips.length
  totals.skipped = 0
}
process.stdout.write(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped\n`)
process.exitCode = totals.failed > 0 || totals.passed === 0 ? 1 : 0
