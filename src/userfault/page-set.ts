// Which pages of a range: sparse, for a range may be a terabyte of which a few pages are touched.

const BLOCK_PAGES = 512
const BLOCK_WORDS = BLOCK_PAGES / 32

/** Whole numbers from 0 on. 64 bytes for every 512 of them of which one is in it. */
export class PageSet {
  readonly #blocks = new Map<number, Uint32Array>()

  has(page: number): boolean {
    const words = this.#blocks.get(Math.floor(page / BLOCK_PAGES))
    const bit = page % BLOCK_PAGES
    return words !== undefined && (words[bit >>> 5] & (1 << (bit & 31))) !== 0
  }

  add(from: number, to: number): void {
    for (let page = from; page < to; page++) {
      const block = Math.floor(page / BLOCK_PAGES)
      let words = this.#blocks.get(block)
      if (!words) this.#blocks.set(block, (words = new Uint32Array(BLOCK_WORDS)))
      const bit = page % BLOCK_PAGES
      if (bit === 0 && page + BLOCK_PAGES <= to) {
        words.fill(0xffff_ffff)
        page += BLOCK_PAGES - 1
      } else words[bit >>> 5] |= 1 << (bit & 31)
    }
  }

  delete(from: number, to: number): void {
    const first = Math.floor(from / BLOCK_PAGES)
    const last = Math.floor((to - 1) / BLOCK_PAGES)
    // Of a terabyte most blocks are not there.
    const blocks =
      last - first < this.#blocks.size ? range(first, last + 1) : [...this.#blocks.keys()].filter(inside(first, last))
    for (const block of blocks) this.#deleteIn(block, from, to)
  }

  /** The end of the run from `page` on, below `end`, of pages that are in it or are not, as `page` is. */
  runEnd(page: number, end: number): number {
    const wanted = this.has(page)
    let at = page + 1
    while (at < end && this.has(at) === wanted) at++
    return at
  }

  /** Ascending, as wide as they are. */
  runs(): [from: number, to: number][] {
    const runs: [number, number][] = []
    for (const block of [...this.#blocks.keys()].sort((one, other) => one - other))
      for (let page = block * BLOCK_PAGES, end = page + BLOCK_PAGES; page < end; page++) {
        if (!this.has(page)) continue
        const last = runs.at(-1)
        if (last?.[1] === page) last[1] = page + 1
        else runs.push([page, page + 1])
      }
    return runs
  }

  #deleteIn(block: number, from: number, to: number): void {
    const words = this.#blocks.get(block)
    if (!words) return
    const start = block * BLOCK_PAGES
    if (from <= start && start + BLOCK_PAGES <= to) {
      this.#blocks.delete(block)
      return
    }
    for (let page = Math.max(from, start); page < Math.min(to, start + BLOCK_PAGES); page++) {
      const bit = page - start
      words[bit >>> 5] &= ~(1 << (bit & 31))
    }
  }
}

const inside = (first: number, last: number) => (block: number) => block >= first && block <= last

function* range(from: number, to: number): Iterable<number> {
  for (let each = from; each < to; each++) yield each
}
