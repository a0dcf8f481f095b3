// How much to fill at a fault: a page or so for whoever jumps about, megabytes for whoever goes on, and those before they are touched.

/** Around a fault that nothing led to. */
const FIRST_BYTES = 16 * 1024
const UNIT_BYTES_MAX = 1024 * 1024
const GROWTH = 4
/** Filled ahead of a reader that goes on. */
const AHEAD_BYTES = 16 * 1024 * 1024
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
  /** Behind what has been planned for it. */
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
    const known = this.#readers.findIndex(({ next, end }) => at >= next && at <= end)
    if (known === -1) {
      const from = at - (at % FIRST_BYTES)
      const to = Math.min(length, from + FIRST_BYTES)
      this.#keep({ end: to, next: to, unit: FIRST_BYTES })
      return { from, to }
    }
    const [reader] = this.#readers.splice(known, 1)
    this.#keep(reader)
    const { end } = reader
    reader.unit = Math.min(UNIT_BYTES_MAX, reader.unit * GROWTH)
    const wire = (Math.floor(at / WIRE_BYTES) + 1) * WIRE_BYTES
    const to = Math.min(length, wire, at + reader.unit)
    reader.end = Math.max(end, to)
    reader.next = reader.end
    if (reader.unit < UNIT_BYTES_MAX) return { from: at, to }
    reader.end = Math.min(length, Math.max(end, at + AHEAD_BYTES))
    reader.next = wire
    return { from: at, to, ahead: { from: Math.max(end, to), to: reader.end } }
  }

  #keep(reader: Reader): void {
    this.#readers.push(reader)
    if (this.#readers.length > READERS_MAX) this.#readers.shift()
  }
}
