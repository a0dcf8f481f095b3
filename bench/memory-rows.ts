// Regions as memory: what is measured, beside what.
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { directory, median, root, run } from './harness.js'
import type { Result } from './rows.js'

const MiB = 2 ** 20
const GiB = 2 ** 30
const TiB = 2 ** 40
const TOUCHES = 3_000

/** A remote in memory: a file on tmpfs. */
function inMemory<T>(bytes: number, use: (file: string) => T): T {
  const folder = fs.mkdtempSync('/dev/shm/pageferry-bench-')
  try {
    const file = path.join(folder, 'region')
    const fd = fs.openSync(file, 'w')
    if (bytes > GiB) fs.ftruncateSync(fd, bytes)
    else for (let at = 0, piece = randomBytes(16 * MiB); at < bytes; at += piece.length) fs.writeSync(fd, piece)
    fs.closeSync(fd)
    return use(file)
  } finally {
    fs.rmSync(folder, { recursive: true })
  }
}

const work = (what: string, bytes: number) =>
  inMemory(bytes, file =>
    JSON.parse(
      run(process.execPath, [path.join(root, 'dist/bench/memory-work.js'), what, file, directory(`memory.${what}`)]),
    ),
  )

const rounded = (value: number) => Math.round(value).toLocaleString('en')

/** Of milliseconds for a GiB. */
const rate = (ms: number[]) => `${rounded(GiB / 1e3 / median(ms))} MB/s`

/** Of milliseconds: how many times faster ours is. */
function faster(title: string, beside: string, target: number, { ours, theirs }: { ours: number[]; theirs: number[] }) {
  const spread = ours.map((each, n) => theirs[n] / each)
  return { work: title, beside, figure: median(spread), target, moreIsBetter: true, unit: 'ratio', spread }
}

export const memoryRows: Record<string, () => Result[]> = {
  'memory-sequential': () => {
    const took = work('sequential', GiB)
    return [
      {
        ...faster('sequential first touch of 1 GiB of a region', 'a copy into new memory', 0.5, took),
        ...{ ours: rate(took.ours), theirs: rate(took.theirs) },
      },
    ]
  },

  'memory-random': () => {
    const binary = path.join(directory('memory.handler'), 'uffd-handler')
    run('gcc', ['-O2', '-pthread', '-o', binary, path.join(root, 'bench/uffd-handler.c')])
    const [theirs, theirs99] = JSON.parse(run(binary, [String(GiB), String(TOUCHES)]))
    const [ours, ours99] = work('random', GiB)
    return [
      {
        work: 'random first touch of a page of 1 GiB, median (and 99th percentile)',
        beside: 'a handler in C that copies single pages from its memory',
        ours: `${rounded(ours)} us (${rounded(ours99)})`,
        theirs: `${rounded(theirs)} us (${rounded(theirs99)})`,
        figure: ours / theirs,
        target: 1.5,
        moreIsBetter: false,
        unit: 'ratio',
      },
    ]
  },

  'memory-written': () => {
    const took = work('written', GiB)
    const ms = (all: number[]) => `${median(all).toFixed(1)} ms`
    return [
      {
        ...faster('finding 1,000 written pages in 1 GiB', 'hashing all of it (XXH64)', 30, took),
        ...{ ours: ms(took.ours), theirs: ms(took.theirs) },
      },
    ]
  },

  'memory-filling': () => {
    const took = work('filling', GiB)
    return [
      {
        ...faster('filling 1 GiB of memory by copying', 'writing it to a memfd and mapping its pages', 1, took),
        ...{ ours: rate(took.ours), theirs: rate(took.theirs) },
      },
    ]
  },

  'memory-links': () => {
    const bytes = GiB
    const took: Record<string, number> = work('links', bytes)
    return Object.entries(took).map(([rtt, ms]) => ({
      work: `sequential first touch of 1 GiB, ${rtt} ms away`,
      beside: 'a line of 1 Gbit/s',
      ours: `${rounded(bytes / 1e3 / ms)} MB/s`,
      theirs: '125 MB/s',
      ...{ figure: bytes / 1e3 / ms / 125, target: 0.9, moreIsBetter: true, unit: 'ratio' },
    }))
  },

  'memory-tracking': () => {
    const took = work('tracking', GiB)
    const ms = (all: number[]) => `${rounded(median(all))} ms`
    const title = '4 million random writes of 8 bytes over 1 GiB that is tracked'
    return [
      {
        ...faster(`${title}, again and again`, 'the same, untracked', 0.8, took),
        ...{ ours: ms(took.ours), theirs: ms(took.theirs) },
      },
      {
        ...{ work: 'the same, the first time after a push', beside: 'the same, untracked', ours: '', theirs: '' },
        ...{ figure: took.noted, target: 1 / 0.8, moreIsBetter: false, unit: 'ratio' },
      },
    ]
  },

  'memory-mapping': () => {
    const { moved, first, another, touches } = work('mapping', TiB)
    const row = (title: string, ms: number, target: number) => ({
      ...{ work: title, beside: '', ours: `${ms.toFixed(1)} ms`, theirs: '' },
      ...{ figure: ms, target, moreIsBetter: false, unit: 'ms' },
    })
    return [
      row('mapRegion of 1 TiB that has its thread', first, 50),
      row('another mapping of it', another, 50),
      row('its first touch', touches[0], 1),
      row('its third touch', touches[2], 1),
      row('mapRegion of 1 TiB that moves to a thread', moved, 50),
    ]
  },
}
