// What is still on its way, for the eye: a bar that is drawn again on a terminal, a line now and then elsewhere.
import { formatBytes, formatDuration } from './base/units.js'
import type { Progress } from './cache/tree-cache.js'

/** Where it is drawn; process.stderr is one. */
export interface Screen {
  isTTY?: boolean
  columns?: number
  write(text: string): unknown
}

export interface ProgressOptions {
  screen?: Screen
  /** Goes before everything else, such as 'syncing'. */
  title: string
  nowMs?: () => number
}

/** Often enough to seem to move. */
const DRAW_MS = 100
const LINE_MS = 3000
/** The rate is that of the last while: what happened long ago says little about when it ends. */
const RATE_MS = 10_000
const BAR_CHARS_MAX = 24
/** A shorter bar says nothing. */
const BAR_CHARS_MIN = 8

interface Sample {
  atMs: number
  bytes: number
  operations: number
}

/** How fast it went lately, and how long it takes at that rate; undefined while that cannot be said. */
export class Estimate {
  readonly #samples: Sample[] = []

  add(atMs: number, { bytesDone, operationsDone }: Progress): void {
    const samples = this.#samples
    // What counts may start anew, as when a batch is tried again.
    if (samples.length > 0 && samples[samples.length - 1].bytes > bytesDone) samples.length = 0
    samples.push({ atMs, bytes: bytesDone, operations: operationsDone })
    while (samples.length > 2 && samples[1].atMs <= atMs - RATE_MS) samples.shift()
  }

  bytesPerSecond(): number | undefined {
    return this.#rate(sample => sample.bytes)
  }

  leftMs({ bytesDone, bytesTotal, operationsDone, operationsTotal }: Progress): number | undefined {
    const bytesMs = timeFor(bytesTotal - bytesDone, this.bytesPerSecond())
    const operationsMs = timeFor(
      operationsTotal - operationsDone,
      this.#rate(sample => sample.operations),
    )
    // They are done together: the slower of the two decides, unless changes count as done only when their whole batch is.
    if (bytesMs && operationsMs === undefined) return bytesMs
    return bytesMs === undefined || operationsMs === undefined ? undefined : Math.max(bytesMs, operationsMs)
  }

  #rate(of: (sample: Sample) => number): number | undefined {
    const [first, last] = [this.#samples[0], this.#samples[this.#samples.length - 1]]
    if (!first || last.atMs === first.atMs) return undefined
    return ((of(last) - of(first)) * 1000) / (last.atMs - first.atMs)
  }
}

const timeFor = (amount: number, rate: number | undefined) => {
  if (amount <= 0) return 0
  return rate ? (amount * 1000) / rate : undefined
}

/** `done` of `total` as a fraction; nothing to do is all done. */
const part = (done: number, total: number) => (total > 0 ? Math.min(1, done / total) : 1)

/** As long as there is room for it in so many columns, or nothing. */
const bar = (fraction: number, columns: number) => {
  const chars = Math.min(BAR_CHARS_MAX, columns - 3)
  if (chars < BAR_CHARS_MIN) return ''
  const full = Math.round(fraction * chars)
  return `[${'='.repeat(full)}${' '.repeat(chars - full)}] `
}

/** One line that says how far it is: `syncing 12 MiB of 80 MiB, 3 of 20 changes, 4 MiB/s, 17s left`. */
export function progressLine(progress: Progress, estimate: Estimate): string {
  const { bytesDone, bytesTotal, operationsDone, operationsTotal } = progress
  const rate = estimate.bytesPerSecond()
  const leftMs = estimate.leftMs(progress)
  return [
    `${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}`,
    `${operationsDone} of ${operationsTotal} changes`,
    ...(rate ? [`${formatBytes(rate)}/s`] : []),
    ...(leftMs ? [`${formatDuration(leftMs)} left`] : []),
  ].join(', ')
}

export interface ProgressView {
  update(progress: Progress): void
  /** Clears the bar. Nothing is drawn after it. */
  end(): void
}

/** Shows progress on a screen until `end`. */
export function showProgress({ screen = process.stderr, title, nowMs = Date.now }: ProgressOptions): ProgressView {
  const estimate = new Estimate()
  const everyMs = screen.isTTY ? DRAW_MS : LINE_MS
  const startedMs = nowMs()
  let drawnMs = screen.isTTY ? Number.NEGATIVE_INFINITY : startedMs
  let onScreen = false
  let ended = false
  return {
    update(progress) {
      const atMs = nowMs()
      estimate.add(atMs, progress)
      if (ended || atMs - drawnMs < everyMs) return
      drawnMs = atMs
      const line = progressLine(progress, estimate)
      if (!screen.isTTY) return void screen.write(`${title}: ${line}\n`)
      const fraction = part(
        progress.bytesDone + progress.operationsDone,
        progress.bytesTotal + progress.operationsTotal,
      )
      onScreen = true
      const columns = (screen.columns || 80) - 1
      const drawn = bar(fraction, columns - title.length - 1 - line.length)
      screen.write(`\r\x1b[K${`${title} ${drawn}${line}`.slice(0, columns)}`)
    },
    end() {
      ended = true
      if (onScreen) screen.write('\r\x1b[K')
    },
  }
}
