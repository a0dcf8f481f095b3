// docs/SEMANTICS.md, executed: each ```sh block is a session of one shell on a mount of its own, and what it prints is what the
// document says. A line that begins with `$ ` is a command (`> ` continues it); what follows is its output, stdout and stderr
// together, then `[N]` if its exit status is not 0.
//
//   $MOUNT, $REMOTE, $CACHE   the mount point (the shell begins there), the remote's directory, the cache directory
//   pageferry                 the command line; `mount` gets the cache directory and goes to the background
//   wait_for COMMAND          tries until it succeeds, for 20 s
//
// A comment `<!-- mount: OPTIONS -->` before a block gives options to its mount, `<!-- mount: none -->` leaves mounting to the block.
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { isMounted, type Place, runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { placeForTest } from '../fixtures/trees.js'

interface Step {
  command: string
  /** What the document says is printed. */
  expected: string
}

interface Block {
  line: number
  heading: string
  /** null: the block mounts by itself. */
  options: string[] | null
  steps: Step[]
}

const document = 'docs/SEMANTICS.md'

function blocksOf(text: string): Block[] {
  const blocks: Block[] = []
  const lines = text.split('\n')
  let heading = ''
  for (let at = 0; at < lines.length; at++) {
    if (/^#+ /.test(lines[at])) heading = lines[at].replace(/^#+ /, '')
    if (lines[at] !== '```sh') continue
    const end = lines.indexOf('```', at)
    const [, given] = /^<!-- mount: (.*) -->$/.exec(lines[at - 1]) ?? [null, '']
    const options = given === 'none' ? null : given.split(' ').filter(Boolean)
    blocks.push({ line: at + 1, heading, options, steps: stepsOf(lines.slice(at + 1, end)) })
    at = end
  }
  return blocks
}

function stepsOf(lines: string[]): Step[] {
  const steps: Step[] = []
  for (const line of lines) {
    const last = steps.at(-1)
    if (line.startsWith('$ ')) steps.push({ command: line.slice(2), expected: '' })
    else if (line.startsWith('> ') && last && last.expected === '') last.command += `\n${line.slice(2)}`
    else if (last) last.expected += `${line}\n`
    else throw new Error(`${document}: a block begins with "${line}" instead of a command`)
  }
  return steps
}

/** A line between the outputs that no command prints. */
const MARK = '--pageferry-step--'

const prelude = (place: Place, cli: string) => `
exec 2>&1
unset PAGEFERRY_HOLD
export MOUNT='${place.mountpoint}' REMOTE='${place.remote}' CACHE='${place.cacheDir}' LC_ALL=C
pageferry() {
  if [ "$1" = mount ]; then shift; set -- mount --daemon --log-level error --cache-dir "$CACHE" "$@"; fi
  '${process.execPath}' '${cli}' "$@"
}
wait_for() { for i in $(seq 200); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.1; done; echo "never: $*"; return 1; }
umask 022
`

async function execute(block: Block): Promise<string[]> {
  const place = await placeForTest()
  const cli = resolve(process.env.PAGEFERRY_DIST ?? 'dist', 'cli.js')
  if (block.options) await place.mount(...block.options)
  const script = [prelude(place, cli), block.options ? 'cd "$MOUNT"' : 'cd /']
  for (const { command } of block.steps) script.push(`${command}\nstatus=$?\necho "${MARK}$status"`)
  const { stdout } = await runs('bash', ['-c', script.join('\n')], { env: place.env, timeoutMs: 100_000 })
  // A shell that waits in the mount would keep it; a block that mounted by itself has to unmount.
  if (!block.options && isMounted(place.mountpoint)) throw new Error(`the block of line ${block.line} left its mount`)
  const outputs = stdout.split(new RegExp(`${MARK}(\\d+)\\n`))
  return block.steps.map((_, i) => {
    const status = outputs[2 * i + 1]
    const printed = (outputs[2 * i] ?? '').replaceAll(place.folder, '')
    return printed + (status === '0' ? '' : `[${status}]\n`)
  })
}

const text = readFileSync(join(import.meta.dirname, '../..', document), 'utf8')
const blocks = blocksOf(text)

describe('the document', () => {
  test('has blocks, and commands in each', () => {
    expect(blocks.length).toBeGreaterThan(10)
    for (const { steps } of blocks) expect(steps.length).toBeGreaterThan(0)
  })
})

requires('built', 'fuse', 'root', 'attr', 'acl', 'python3').describe('docs/SEMANTICS.md does what it says', () => {
  test.each(blocks.map(block => [block.line, block.heading, block] as const))(
    'line %i: %s',
    async (_line, _heading, block) => {
      const shown = (outputs: string[]) => block.steps.map(({ command }, i) => `$ ${command}\n${outputs[i]}`).join('')
      expect(shown(await execute(block))).toBe(shown(block.steps.map(({ expected }) => expected)))
    },
    120_000,
  )
})
