// How much to fill at a fault: a page or so for whoever jumps about, megabytes for whoever goes on, and those before they are touched.

/** Around a fault that nothing led to. */
const FIRST_BYTES = 16 * 1024
const UNIT_BYTES_MAX = 1024 * 1024
const GROWTH = 8
/** Filled ahead of a reader that goes on. */
const AHEAD_BYTES = 64 * 1024 * 1024
/** Of what is filled ahead every so much is left out: the fault there tells how far the reader has come. */
export const WIRE_BYTES = 4 * 1024 * 1024
/** Readers that are told apart. */
const READERS_MAX = 16

export interface Plan {
  /** Filled at once: from there to there. */
  from: number
  to: number
  /** Filled next, but for the page at each multiple of WIRE_BYTES. */
  ahead?: { from: number; to: number }
}

interface Reader {
  /** What has been planned for it: from there, */
  start: number
  /** to there. */
  end: number
  /** Where its next fault tells that it goes on. */
  next: number
  unit: number
}

/** Positions in bytes. */
export class Readers {
  /** The latest one last. */
  readonly #readers: Reader[] = []

  /** What a fault at `at` asks for, in a range that ends at `length`. */
  plan(at: number, length: number): Plan {
    // Whoever copies a piece from its end (as memmove does where addresses make that faster) goes on a piece further.
    const goesOn = this.#readers.findIndex(({ next, end, unit }) => at >= next && at <= end + unit)
    if (goesOn !== -1) return this.#forward(this.#taken(goesOn), at, length)
    const goesBack = this.#readers.findIndex(({ start, unit }) => at < start && at >= start - unit)
    if (goesBack !== -1) return this.#backward(this.#taken(goesBack), at)
    const from = at - (at % FIRST_BYTES)
    const to = Math.min(length, from + FIRST_BYTES)
    this.#keep({ start: from, end: to, next: to, unit: FIRST_BYTES })
    return { from, to }
  }

  #taken(known: number): Reader {
    const [reader] = this.#readers.splice(known, 1)
    this.#keep(reader)
    reader.unit = Math.min(UNIT_BYTES_MAX, reader.unit * GROWTH)
    return reader
  }

  #forward(reader: Reader, at: number, length: number): Plan {
    const { end, unit } = reader
    const from = Math.min(at, end)
    const wire = (Math.floor(at / WIRE_BYTES) + 1) * WIRE_BYTES
    const to = Math.min(length, wire, at + unit)
    reader.end = Math.max(end, to)
    reader.next = reader.end
    if (unit < UNIT_BYTES_MAX) return { from, to }
    reader.end = Math.min(length, Math.max(end, at + AHEAD_BYTES))
    reader.next = wire
    return { from, to, ahead: { from: Math.max(end, to), to: reader.end } }
  }

  #backward(reader: Reader, at: number): Plan {
    const { start, unit } = reader
    reader.start = Math.max(0, Math.min(at, start - unit))
    return { from: reader.start, to: start }
  }

  #keep(reader: Reader): void {
    this.#readers.push(reader)
    if (this.#readers.length > READERS_MAX) this.#readers.shift()
  }
}
