// `npm run bench [-- ROW...]`: runs the rows one after the other, prints one table, writes bench/results/latest.json.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { grpcRows } from './grpc-rows.js'
import { cleanUp, machine, root } from './harness.js'
import { memoryRows } from './memory-rows.js'
import { nbdRows } from './nbd-rows.js'
import { passedRows } from './passed-rows.js'
import { pullRows } from './pull-rows.js'
import { redisRows } from './redis-rows.js'
import { rows as mountRows, type Result } from './rows.js'
import { closeWorld, s3Rows } from './s3-rows.js'
import { treeRows } from './tree-rows.js'

const rows = {
  ...mountRows,
  ...grpcRows,
  ...redisRows,
  ...s3Rows,
  ...nbdRows,
  ...pullRows,
  ...memoryRows,
  ...treeRows,
  ...passedRows,
}

const wanted = process.argv.slice(2)
const unknown = wanted.filter(name => !(name in rows))
if (unknown.length) {
  console.error(`bench: no row ${unknown.join(', ')}; there are ${Object.keys(rows).join(', ')}`)
  process.exit(2)
}

const file = path.join(root, 'bench/results/latest.json')
const earlier: { results: Record<string, Result[]> } = fs.existsSync(file)
  ? JSON.parse(fs.readFileSync(file, 'utf8'))
  : { results: {} }
const results: Record<string, Result[]> = wanted.length ? earlier.results : {}
let failed = 0
try {
  for (const [name, row] of Object.entries(rows)) {
    if (wanted.length && !wanted.includes(name)) continue
    process.stderr.write(`${name} ...\n`)
    try {
      results[name] = await row()
      for (const result of results[name]) console.log(line(result))
    } catch (error) {
      failed++
      console.error(`${name} failed: ${error instanceof Error ? error.message : error}`)
    }
  }
} finally {
  await closeWorld()
  cleanUp()
}
fs.mkdirSync(path.dirname(file), { recursive: true })
fs.writeFileSync(file, `${JSON.stringify({ machine: machine(), results }, null, 2)}\n`)
// The README's figures are those of this file.
spawnSync(process.execPath, [path.join(root, 'scripts/readme.mjs')], { cwd: root, stdio: 'inherit' })
process.exitCode = failed ? 1 : 0

function line({ work, beside, ours, theirs, figure, target, moreIsBetter, unit }: Result): string {
  const met = moreIsBetter ? figure >= target : figure <= target
  const value = unit === 'ratio' ? figure.toFixed(2) : `${Math.round(figure)} ${unit}`
  return `${met ? 'met   ' : 'missed'}  ${value.padStart(9)}  (${moreIsBetter ? 'at least' : 'at most'} ${target})  ${work}: ${ours}${theirs ? `, beside ${theirs}` : ''}${beside ? ` (${beside})` : ''}`
}
