// Which hash finds what has changed in memory, and in chunks of what size: `node dist/bench/hashes.js` writes bench/results/hashes.json and
// the tables of docs/MEMORY.md. Memory of 256 MiB; medians of five.
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { crc32c } from '@node-rs/crc32'
import { xxh3, xxh64 } from '@node-rs/xxhash'
import { createBLAKE3 } from 'hash-wasm'
import { machine, median, root } from './harness.js'

const MiB = 2 ** 20
const PAGE = 4096
const BYTES = 256 * MiB
const PASSES = 5
/** What a line of 1 Gbit/s takes, bytes per ms. */
const LINE_BYTES_MS = 125_000
const CHUNKS = [4096, 16 * 1024, 64 * 1024, 256 * 1024, MiB]
const RATES = [0.0001, 0.001, 0.01, 0.1]

type Hash = (bytes: Uint8Array) => unknown

async function hashes(): Promise<Record<string, Hash>> {
  const blake3 = await createBLAKE3()
  return {
    xxh3: bytes => xxh3.xxh64(bytes),
    xxh64: bytes => xxh64(bytes),
    crc32c: bytes => crc32c(bytes as Buffer),
    sha256: bytes => createHash('sha256').update(bytes).digest(),
    blake3: bytes => blake3.init().update(bytes).digest('binary'),
  }
}

const memory = new Uint8Array(BYTES)
for (let at = 0; at < BYTES; at += 4) memory[at] = Math.floor(Math.random() * 256)

function lookThrough(hash: Hash, chunk: number): number {
  const started = performance.now()
  for (let at = 0; at < BYTES; at += chunk) hash(memory.subarray(at, at + chunk))
  return performance.now() - started
}

const medianOf = (work: () => number) => median(Array.from({ length: PASSES }, work))

/** Bytes of the chunks in which pages changed that are anywhere. */
function changedBytes(chunk: number, rate: number): number {
  const chunks = new Set<number>()
  for (let n = 0; n < (BYTES / PAGE) * rate; n++) chunks.add(Math.floor((Math.random() * BYTES) / chunk))
  return chunks.size * chunk
}

const all = await hashes()
const speeds: Record<string, Record<number, number>> = {}
for (const [name, hash] of Object.entries(all)) {
  speeds[name] = {}
  for (const chunk of CHUNKS) {
    const ms = medianOf(() => lookThrough(hash, chunk))
    speeds[name][chunk] = Math.round(BYTES / 1e3 / ms)
  }
}
const picked = Object.entries(speeds).sort(([, a], [, b]) => b[64 * 1024] - a[64 * 1024])[0][0]
const costs: Record<number, Record<number, { sent: number; ms: number }>> = {}
for (const chunk of CHUNKS) {
  costs[chunk] = {}
  const lookMs = BYTES / 1e3 / speeds.xxh64[chunk]
  for (const rate of RATES) {
    const sent = medianOf(() => changedBytes(chunk, rate))
    costs[chunk][rate] = { sent, ms: Math.round(lookMs + sent / LINE_BYTES_MS) }
  }
}
const results = { machine: machine(), bytes: BYTES, picked, speeds, costs }
fs.writeFileSync(path.join(root, 'bench/results/hashes.json'), `${JSON.stringify(results, null, 2)}\n`)

const size = (bytes: number) => (bytes < MiB ? `${bytes / 1024} KiB` : `${bytes / MiB} MiB`)
const row = (cells: (string | number)[]) => `| ${cells.join(' | ')} |`
const number = (value: number) => value.toLocaleString('en')
const table = (head: string[], rows: (string | number)[][]) =>
  [row(head), `|${'---|'.repeat(head.length)}`, ...rows.map(row)].join('\n')
const speedTable = table(
  ['MB/s in chunks of', ...CHUNKS.map(size)],
  Object.entries(speeds).map(([name, by]) => [name, ...CHUNKS.map(chunk => number(by[chunk]))]),
)
const costTable = table(
  ['pages that changed', ...CHUNKS.map(size)],
  RATES.map(rate => [
    `${rate * 100}%`,
    ...CHUNKS.map(chunk => `${number(costs[chunk][rate].ms)} ms (${(costs[chunk][rate].sent / 1e6).toFixed(1)} MB)`),
  ]),
)
const document = path.join(root, 'docs/MEMORY.md')
const text = fs.readFileSync(document, 'utf8')
const [begin, end] = ['<!-- hashes: bench/hashes.ts -->\n', '<!-- /hashes -->']
const [before, rest] = text.split(begin)
fs.writeFileSync(document, `${before}${begin}${speedTable}\n\n${costTable}\n${end}${rest.split(end)[1]}`)
console.log(`${speedTable}\n\n${costTable}`)
