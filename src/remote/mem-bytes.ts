// Sparse bytes in memory, with snapshots that cost nothing until one side writes.

/** What is allocated at once; a hole is a chunk that is not there. */
const CHUNK_BYTES = 64 * 1024

export class MemBytes {
  #chunks = new Map<number, Uint8Array>()
  /** Chunks that no snapshot shares: these may be changed in place. */
  #owned = new Set<number>()
  #size: number

  constructor(size = 0) {
    this.#size = size
  }

  get size(): number {
    return this.#size
  }

  /** Bytes of memory held. */
  get allocated(): number {
    return this.#chunks.size * CHUNK_BYTES
  }

  /** A copy; the chunks are shared until either is written to. */
  clone(): MemBytes {
    const copy = new MemBytes(this.#size)
    copy.#chunks = new Map(this.#chunks)
    this.#owned.clear()
    return copy
  }

  /** Always a copy; fewer bytes at the end. */
  read(at: number, length: number): Uint8Array {
    const end = Math.min(at + length, this.#size)
    const into = new Uint8Array(Math.max(0, end - at))
    this.#each(at, end, (index, from, to, position) => {
      const chunk = this.#chunks.get(index)
      if (chunk) into.set(chunk.subarray(from, to), position)
    })
    return into
  }

  /** Grows if need be. */
  write(at: number, from: Uint8Array): void {
    const end = at + from.byteLength
    if (from.byteLength > 0) this.#size = Math.max(this.#size, end)
    this.#each(at, end, (index, start, to, position) => {
      this.#own(index).set(from.subarray(position, position + to - start), start)
    })
  }

  truncate(size: number): void {
    if (size < this.#size) {
      this.punch(size, this.#size - size)
      for (const index of this.#chunks.keys()) if (index * CHUNK_BYTES >= size) this.#drop(index)
    }
    this.#size = size
  }

  punch(at: number, length: number): void {
    const end = Math.min(at + length, this.#size)
    // A hole may be much longer than what there is to drop: look at the chunks, not at the range.
    const inside = (index: number) => index * CHUNK_BYTES >= at && (index + 1) * CHUNK_BYTES <= end
    for (const index of this.#chunks.keys()) if (inside(index)) this.#drop(index)
    const firstEnd = Math.min(end, (Math.floor(at / CHUNK_BYTES) + 1) * CHUNK_BYTES)
    const lastStart = Math.max(firstEnd, Math.floor(end / CHUNK_BYTES) * CHUNK_BYTES)
    for (const [from, to] of [
      [at, firstEnd],
      [lastStart, end],
    ])
      this.#each(from, to, (index, start, stop) => {
        if (this.#chunks.has(index)) this.#own(index).fill(0, start, stop)
      })
  }

  /** Each chunk that [at, end) touches: its number, the part of it, and where that part is in the range. */
  #each(at: number, end: number, visit: (index: number, from: number, to: number, position: number) => void): void {
    for (let start = at; start < end; ) {
      const index = Math.floor(start / CHUNK_BYTES)
      const from = start - index * CHUNK_BYTES
      const to = Math.min(CHUNK_BYTES, from + end - start)
      visit(index, from, to, start - at)
      start += to - from
    }
  }

  #own(index: number): Uint8Array {
    const shared = this.#chunks.get(index)
    if (shared && this.#owned.has(index)) return shared
    const mine = shared ? shared.slice() : new Uint8Array(CHUNK_BYTES)
    this.#chunks.set(index, mine)
    this.#owned.add(index)
    return mine
  }

  #drop(index: number): void {
    this.#chunks.delete(index)
    this.#owned.delete(index)
  }
}
