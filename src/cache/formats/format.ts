// What a file's format tells of the bytes that its readers will want: the interface, and what formats are written with. No I/O.

/** Bytes [from, to) of a file. */
export interface Range {
  from: number
  to: number
}

/** What a format sees of a file. */
export interface FileView {
  /** Its name, as latin1 bytes. */
  readonly name: string
  readonly size: number
  /** The read that last began at a new place, continuing none of those before it. */
  readonly head: Range
  /** These bytes, if all of them are here and it is not too much for one turn of the event loop; else null. Read by `need`. */
  have(at: number, length: number): Uint8Array | null
}

/** Ranges worth having, the best first, and what to go on after: that they came, or a read at a new place. `never`: that was all. */
export interface Wish {
  ranges: Range[]
  until: 'here' | 'seek' | 'never'
}

/** Wishes, until there are no more. Nothing but the view goes into it: the same bytes give the same wishes. */
export type Plan = Generator<Wish, void, void>
/** A part of a plan, which results in something. */
export type Part<T> = Generator<Wish, T, void>

/**
 * A format: a pure function from bytes to ranges. It may be given anything, and neither throws nor asks for more than its bounds say;
 * how much it looks at in one turn, what is here already, and when there is room are the caller's affair.
 */
export interface Format {
  readonly name: string
  /** Is it that, by the first `FIRST_BYTES` bytes of the file (or all, if it has fewer) and by its name? */
  recognises(first: Uint8Array, name: string): boolean
  plan(file: FileView): Plan
  /** Files of these names may have at their end what is wanted first: so much of it is asked for together with their head. */
  readonly tail?: { names: RegExp; bytes: number }
}

/** What a format is recognised by. */
export const FIRST_BYTES = 64
/** One look at a file, at most. */
export const LOOK_BYTES_MAX = 64 * 1024
/** What lies between two ranges, if it is less than this, is cheaper than a request of its own. */
const NEAR_BYTES = 16 * 1024

/** These bytes, as soon as they are here. What no file can have ends the plan. */
export function* need(file: FileView, at: number, length: number): Part<DataView> {
  while (!(at >= 0 && length >= 0 && length <= LOOK_BYTES_MAX && at + length <= file.size))
    yield { ranges: [], until: 'never' }
  for (;;) {
    const bytes = file.have(at, length)
    if (bytes) return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    yield { ranges: [{ from: at, to: at + length }], until: 'here' }
  }
}

/** Ascending, neighbours as one. */
export function merged(ranges: Range[]): Range[] {
  const result: Range[] = []
  for (const { from, to } of [...ranges].sort((a, b) => a.from - b.from)) {
    const last = result.at(-1)
    if (last && from <= last.to + NEAR_BYTES) last.to = Math.max(last.to, to)
    else result.push({ from, to })
  }
  return result
}
