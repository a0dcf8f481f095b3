// Fills the marked blocks of README.md with what was measured and captured, so that no figure in it is typed by hand.
//
//   node scripts/readme.mjs            writes README.md
//   node scripts/readme.mjs --check    exits with 1 if that would change it
//   node scripts/readme.mjs --capture [NAME...]  runs the sessions and the demo first, and keeps what they print in docs/captured/
//
//   <!-- bench:begin --> ... <!-- bench:end -->       bench/results/latest.json, which `npm run bench` writes
//   <!-- session:begin --> ... <!-- session:end -->   docs/captured/session.txt
//   <!-- demo:begin --> ... <!-- demo:end -->         docs/captured/demo.txt
//   <!-- slower:begin --> ... <!-- slower:end -->     docs/captured/slower.txt
//   <!-- hello:begin --> ... <!-- hello:end -->       examples/hello.ts, and `region` examples/region.ts
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { hostname, tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const at = path => join(root, path)
const dist = process.env.PAGEFERRY_DIST ?? 'dist'
const textOf = path => (existsSync(at(path)) ? readFileSync(at(path), 'utf8') : null)
const fenced = (language, text) => `\`\`\`${language}\n${text.trimEnd()}\n\`\`\``

/** A figure as a person reads it. */
function figureOf({ figure, unit }) {
  if (unit === 'ratio') return figure.toFixed(2)
  return `${figure >= 100 ? Math.round(figure) : Number(figure.toPrecision(3))} ${unit}`
}

const isMet = ({ figure, target, moreIsBetter }) => (moreIsBetter ? figure >= target : figure <= target)

/** bench/results/latest.json as a table. */
export function benchTable({ machine, results }) {
  const rows = Object.values(results)
    .flat()
    .map(result => {
      const { work, beside, ours, theirs, target, moreIsBetter } = result
      const compared = theirs ? `${theirs}${beside ? ` (${beside})` : ''}` : beside
      const wanted = `${moreIsBetter ? 'at least' : 'at most'} ${target}`
      return `| ${work} | ${ours} | ${compared} | ${figureOf(result)} | ${wanted}${isMet(result) ? '' : ': missed'} |`
    })
  const { cpu, cores, memoryBytes, kernel, node, date } = machine
  const linux = /^[\d.]+/.exec(kernel)?.[0] ?? kernel
  const on = `${cpu}, ${cores} cores, ${Math.round(memoryBytes / 2 ** 30)} GiB of memory, Linux ${linux}, Node ${node}, ${date}`
  return [
    '| work | pageferry | beside | figure | wanted |',
    '|---|---|---|---|---|',
    ...rows,
    '',
    `Each row measured side by side in one run: ${on}. To measure again: \`npm run bench\`.`,
  ].join('\n')
}

/** What each block is to hold; null: there is nothing yet, it stays as it is. */
const blocks = {
  bench: () => {
    const json = textOf('bench/results/latest.json')
    return json && benchTable(JSON.parse(json))
  },
  session: () => {
    const text = textOf('docs/captured/session.txt')
    return text && fenced('console', text)
  },
  demo: () => {
    const text = textOf('docs/captured/demo.txt')
    return text && fenced('console', text)
  },
  slower: () => {
    const text = textOf('docs/captured/slower.txt')
    return text && fenced('console', text)
  },
  hello: () => fenced('ts', textOf('examples/hello.ts').replace("'../src/index.js'", "'pageferry'")),
  region: () => fenced('ts', textOf('examples/region.ts').replace("'../src/index.js'", "'pageferry'")),
}

/** The text with every block filled. */
export function filled(readme) {
  let text = readme
  for (const [name, content] of Object.entries(blocks)) {
    const [begin, end] = [`<!-- ${name}:begin -->`, `<!-- ${name}:end -->`]
    const [from, to] = [text.indexOf(begin), text.indexOf(end)]
    if (from < 0 || to < from) throw new Error(`README.md has no block ${begin} ... ${end}`)
    const wanted = content()
    if (wanted !== null) text = `${text.slice(0, from + begin.length)}\n${wanted}\n${text.slice(to)}`
  }
  return text
}

/** Commands as they are typed; what they print is kept. Directories of the run are shown as those that a reader would have. */
const sessions = {
  session: [
    'pageferry mount --daemon /srv/photos /mnt/photos',
    'ls /mnt/photos',
    'cksum /mnt/photos/2024/lake.jpg',
    'echo "by the lake" > /mnt/photos/2024/notes.txt',
    'pageferry sync /mnt/photos',
    'cat /srv/photos/2024/notes.txt',
    'pageferry status /mnt/photos',
    'pageferry umount /mnt/photos',
  ],
  // The remote is as fast as the cache's disk, which is the same one: every byte goes there twice.
  slower: [
    'head -c 512M /dev/urandom > ~/film',
    'time (cp ~/film /srv/photos/film && sync /srv/photos/film)',
    'pageferry mount --daemon --log-level error /srv/photos /mnt/photos > ~/log',
    'time (cp ~/film /mnt/photos/film2 && pageferry sync /mnt/photos 2> ~/log)',
    'pageferry umount /mnt/photos',
  ],
}

function play(commands) {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-session-'))
  const [remote, mountpoint] = [join(folder, 'photos'), join(folder, 'mnt', 'photos')]
  for (const path of [join(remote, '2023'), join(remote, '2024'), mountpoint]) mkdirSync(path, { recursive: true })
  writeFileSync(join(remote, '2024', 'lake.jpg'), Buffer.alloc(300_000, 1))
  const real = text => text.replaceAll('/mnt/photos', mountpoint).replaceAll('/srv/photos', remote)
  const shown = text =>
    text
      .replaceAll(mountpoint, '/mnt/photos')
      .replaceAll(remote, '/srv/photos')
      .replaceAll(folder, '~')
      .replaceAll(`${hostname()}:`, 'laptop:')
      .replace(/((?:pid|daemon) |laptop:)\d+/g, '$14711')
  const env = {
    ...{ ...process.env, HOME: folder, TIMEFORMAT: '%R s', XDG_CACHE_HOME: join(folder, '.cache') },
    ...{ XDG_RUNTIME_DIR: folder, XDG_STATE_HOME: folder },
  }
  const script = `exec 2>&1; pageferry() { '${process.execPath}' '${resolve(root, dist, 'cli.js')}' "$@"; }\n`
  try {
    return commands
      .map(command => {
        const { stdout, status } = spawnSync('bash', ['-c', script + real(command)], { env, encoding: 'utf8' })
        if (status !== 0) throw new Error(`${command}: ${stdout}`)
        return `$ ${command}\n${shown(stdout)}`
      })
      .join('')
  } finally {
    spawnSync('umount', ['-l', mountpoint], { stdio: 'ignore' })
    rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
  }
}

function capture(names) {
  const wanted = name => names.length === 0 || names.includes(name)
  mkdirSync(at('docs/captured'), { recursive: true })
  for (const [name, commands] of Object.entries(sessions))
    if (wanted(name)) writeFileSync(at(`docs/captured/${name}.txt`), play(commands))
  if (!wanted('demo')) return
  const demo = spawnSync('npm', ['run', '--silent', 'demo'], { cwd: root, encoding: 'utf8' })
  if (demo.status !== 0) throw new Error(`npm run demo: ${demo.stderr}`)
  // What setup says while it installs goes to stderr.
  writeFileSync(at('docs/captured/demo.txt'), `$ npm run demo\n${demo.stdout}`)
}

function main(how, names) {
  if (how === '--capture') capture(names)
  const before = textOf('README.md')
  const after = filled(before)
  if (after === before) return
  if (how === '--check') {
    process.stderr.write('README.md is not what scripts/readme.mjs would write: node scripts/readme.mjs\n')
    process.exitCode = 1
  } else writeFileSync(at('README.md'), after)
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href)
  main(process.argv[2], process.argv.slice(3))
