// Which bytes a reader will want next: read heads per file that recognise sequential, reverse and strided reading.

/** An MP4 player reads the head, the index at the tail, and the head again: heads must outlive each other. */
const HEADS_MAX = 8
/** A reader that skips this much ahead is still the same reader. */
const GAP_BYTES_MAX = 1024 * 1024
const WINDOW_BYTES_FIRST = 256 * 1024
const FIRST_BYTES = 64 * 1024

interface Head {
  /** Of the last read. */
  from: number
  to: number
  /** Bytes to have ahead; 0: not yet known to be a reader of a pattern. */
  window: number
  /** Distance between the starts of the last two reads, if they were apart; 0: none. */
  stride: number
  steps: number
  /** What was guessed reaches to here (forward readers). */
  ahead: number
  used: number
}

/** Bytes worth having, in the order in which they will be wanted. */
export interface Guess {
  from: number
  to: number
}

/** The read heads of one file. Windows double while a head stays right, and go at once when it is wrong. */
export class Heads {
  readonly #heads: Head[] = []
  #clock = 0
  /** Heads that began: reads that went on from no other. */
  begun = 0

  /** One read, and what to fetch ahead because of it (the caller skips what is there). */
  observe(at: number, length: number, windowBytesMax: number): Guess[] {
    this.#clock++
    const end = at + length
    const head = this.#heads.find(head => belongs(head, at, end))
    if (!head) {
      this.#remember({ from: at, to: end, window: 0, stride: 0, steps: 0, ahead: end, used: this.#clock })
      // A first read of this much at a file's start is almost always the first of many; a small one (head, file) is not.
      return at === 0 && length >= FIRST_BYTES && this.#heads.length === 1
        ? [{ from: end, to: end + WINDOW_BYTES_FIRST }]
        : []
    }
    head.used = this.#clock
    const step = at - head.from
    const forward = at >= head.from && at <= head.to + GAP_BYTES_MAX && (head.stride === 0 || at <= head.to)
    const reverse = end <= head.from && end > head.from - GAP_BYTES_MAX && head.stride <= 0 && end === head.from
    if (reverse) return this.#advance(head, at, end, windowBytesMax, -1)
    if (forward && at <= head.to) return this.#advance(head, at, Math.max(end, head.to), windowBytesMax, 1)
    head.steps = step === head.stride ? head.steps + 1 : 1
    head.stride = step
    head.from = at
    head.to = end
    head.window = 0
    head.ahead = end
    if (head.steps < 3) return []
    const guesses: Guess[] = []
    for (let n = 1; n <= Math.min(head.steps, 8); n++) {
      const from = at + n * step
      if (from < 0) break
      guesses.push({ from, to: from + length })
    }
    return guesses
  }

  #advance(head: Head, at: number, end: number, windowBytesMax: number, direction: 1 | -1): Guess[] {
    head.from = at
    head.to = end
    head.stride = 0
    head.steps = 0
    head.window = Math.min(windowBytesMax, head.window === 0 ? WINDOW_BYTES_FIRST : head.window * 2)
    if (direction === 1) {
      const from = Math.max(end, Math.min(head.ahead, end + windowBytesMax))
      // Topped up when half of it is used, so that a guess is worth a request.
      if (end + head.window - from < head.window / 2) return []
      head.ahead = end + head.window
      return [{ from, to: head.ahead }]
    }
    return at === 0 ? [] : [{ from: Math.max(0, at - head.window), to: at }]
  }

  #remember(head: Head) {
    this.begun++
    if (this.#heads.length === HEADS_MAX) {
      const oldest = this.#heads.reduce((a, b) => (a.used < b.used ? a : b))
      this.#heads.splice(this.#heads.indexOf(oldest), 1)
    }
    this.#heads.push(head)
  }
}

const belongs = (head: Head, at: number, end: number) =>
  (at >= head.from && at <= head.to + GAP_BYTES_MAX) ||
  end === head.from ||
  (head.stride !== 0 && at - head.from === head.stride)
