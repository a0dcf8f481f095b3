// A small sorted set of half-open byte intervals [from, to). Touching intervals are one.

/** Changes cost O(log n) to find the place and O(n) to make room: meant for tens of intervals, not for millions. */
export class Intervals {
  /** from, to, from, to, …: strictly ascending. */
  readonly #edges: number[]

  /** `edges`: as `edges` gave them. */
  constructor(edges: readonly number[] = []) {
    this.#edges = [...edges]
  }

  /** from, to, from, to, …: what is kept where a record is made of it. */
  get edges(): number[] {
    return [...this.#edges]
  }

  /** Number of separate intervals. */
  get count() {
    return this.#edges.length / 2
  }

  get isEmpty() {
    return this.#edges.length === 0
  }

  /** Bytes in all intervals together. */
  get bytes() {
    let sum = 0
    for (let i = 0; i < this.#edges.length; i += 2) sum += this.#edges[i + 1] - this.#edges[i]
    return sum
  }

  /** Lowest byte, or Infinity. */
  get from() {
    return this.#edges[0] ?? Number.POSITIVE_INFINITY
  }

  /** End of the highest interval, or 0. */
  get to() {
    return this.#edges[this.#edges.length - 1] ?? 0
  }

  add(from: number, to: number) {
    if (from >= to) return
    const edges = this.#edges
    if (edges.length === 0 || from > edges[edges.length - 1]) {
      edges.push(from, to)
      return
    }
    // An even place is outside of every interval, an odd one inside: an edge inside is swallowed.
    const start = this.#edgesBelow(from)
    const end = this.#edgesUpTo(to)
    const low = start % 2 === 0 ? [from] : []
    const high = end % 2 === 0 ? [to] : []
    edges.splice(start, end - start, ...low, ...high)
  }

  remove(from: number, to: number) {
    if (from >= to) return
    const start = this.#edgesBelow(from)
    const end = this.#edgesUpTo(to)
    const low = start % 2 === 1 ? [from] : []
    const high = end % 2 === 1 ? [to] : []
    this.#edges.splice(start, end - start, ...low, ...high)
  }

  clear() {
    this.#edges.length = 0
  }

  /** Whether every byte of [from, to) is in the set. */
  covers(from: number, to: number) {
    if (from >= to) return true
    const at = this.#edgesUpTo(from)
    return at % 2 === 1 && to <= this.#edges[at]
  }

  /** Whether any byte of [from, to) is in the set. */
  overlaps(from: number, to: number) {
    if (from >= to) return false
    const at = this.#edgesUpTo(from)
    return at % 2 === 1 || (at < this.#edges.length && this.#edges[at] < to)
  }

  /** The parts of [from, to) that are not in the set, ascending. */
  *gaps(from: number, to: number): Generator<[from: number, to: number]> {
    const edges = this.#edges
    let at = this.#edgesUpTo(from)
    let next = from
    if (at % 2 === 1) next = edges[at++]
    for (; next < to; at += 2) {
      const end = at < edges.length ? Math.min(edges[at], to) : to
      if (next < end) yield [next, end]
      next = at < edges.length ? edges[at + 1] : to
    }
  }

  /** The parts of [from, to) that are in the set, ascending. */
  *within(from: number, to: number): Generator<[from: number, to: number]> {
    const edges = this.#edges
    for (let at = this.#edgesUpTo(from) & ~1; at < edges.length && edges[at] < to; at += 2) {
      const start = Math.max(edges[at], from)
      const end = Math.min(edges[at + 1], to)
      if (start < end) yield [start, end]
    }
  }

  *[Symbol.iterator](): Generator<[from: number, to: number]> {
    for (let i = 0; i < this.#edges.length; i += 2) yield [this.#edges[i], this.#edges[i + 1]]
  }

  /** How many edges lie below `at`. */
  #edgesBelow(at: number) {
    let low = 0
    let high = this.#edges.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#edges[middle] < at) low = middle + 1
      else high = middle
    }
    return low
  }

  /** How many edges lie at or below `at`. */
  #edgesUpTo(at: number) {
    let low = 0
    let high = this.#edges.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#edges[middle] <= at) low = middle + 1
      else high = middle
    }
    return low
  }
}
