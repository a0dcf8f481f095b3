// A region that is pulled in the order in which it is read, beside one that is pulled from its beginning.
import fs from 'node:fs'
import path from 'node:path'
import { directory, median, root, run } from './harness.js'
import type { Result } from './rows.js'

const MiB = 1024 * 1024
const BYTES = 256 * MiB
const PAIRS = 3
const readers = [
  { name: 'from its end to its beginning', reader: 'descending', order: 'descending' },
  { name: 'every 8th MiB, then the next of each', reader: `stride:${8 * MiB}`, order: 'stride:8M' },
]

export const pullRows: Record<string, () => Result[]> = {
  'pull-order': () => {
    const file = path.join(directory('pull'), 'disk')
    for (let at = 0; at < BYTES; at += MiB) fs.appendFileSync(file, Buffer.alloc(MiB, at / MiB + 1))
    let count = 0
    const measure = (reader: string, order: string) => {
      const cache = directory(`pull-cache${count++}`)
      const program = path.join(root, 'dist/bench/pull-reads.js')
      const [firstMs, seconds] = run(process.execPath, [program, file, cache, reader, order]).split(' ').map(Number)
      fs.rmSync(cache, { recursive: true, force: true })
      return { firstMs, rate: BYTES / MiB / seconds }
    }
    return readers.flatMap(({ name, reader, order }) => {
      const each = Array.from({ length: PAIRS }, () => [measure(reader, order), measure(reader, 'ascending')])
      const of = (pick: (one: { firstMs: number; rate: number }) => number) => ({
        ours: median(each.map(([right]) => pick(right))),
        theirs: median(each.map(([, wrong]) => pick(wrong))),
        ratios: each.map(([right, wrong]) => pick(right) / pick(wrong)),
      })
      const [rate, first] = [of(one => one.rate), of(one => one.firstMs)]
      const work = `a region at 20 ms that is being pulled, read ${name}`
      const beside = 'pulled in ascending order'
      return [
        {
          ...{ work, beside, ours: `${Math.round(rate.ours)} MiB/s`, theirs: `${Math.round(rate.theirs)} MiB/s` },
          ...{ figure: rate.ours / rate.theirs, target: 1, moreIsBetter: true, unit: 'ratio', spread: rate.ratios },
        },
        {
          ...{ work: `${work}: first byte`, beside },
          ...{ ours: `${Math.round(first.ours)} ms`, theirs: `${Math.round(first.theirs)} ms` },
          ...{
            figure: first.ours / first.theirs,
            target: 1.2,
            moreIsBetter: false,
            unit: 'ratio',
            spread: first.ratios,
          },
        },
      ]
    })
  },
}
