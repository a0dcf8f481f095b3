// What the program has written to memory since that was pushed last. Where it writes little, the kernel notes each page at its first write,
// which is a fault of a microsecond. Where it writes to most pages all the time, that is left out: what changed is found by digests.
import { digest } from '../chunk/digest.js'
import { detach, viewOf } from '../linux/memory.js'
import { PageSet } from './page-set.js'
import type { Userfaultfd } from './userfaultfd.js'
import { WrittenPages } from './written.js'

const PAGE_BYTES = 4096
/** What is noted, or not, as a whole. */
const AREA_PAGES = 512
const AREA_BYTES = AREA_PAGES * PAGE_BYTES
/** An area of which so many pages were written between two pushes is looked through from then on; */
const HOT_PAGES = 128
/** if so few had changed, it is noted again. */
const COLD_PAGES = 16

/** Positions in bytes, whole pages. */
export type Run = [from: number, to: number]

/** Pages right before they were taken away. */
export interface SeenPages {
  /** They have been written to. */
  written: PageSet
  /** The others, as they were. */
  bytes: Uint8Array
}

/** Of one mapping. */
export interface Tracking {
  /** What may have been written. It is to be copied now, and `changed` asked about it. */
  take(): Run[]
  /** Which of these bytes, copied after `take`, the region may not have. */
  changed(at: number, bytes: Uint8Array): Run[]
  /** The region has them. */
  pushed(at: number, bytes: Uint8Array): void
  /** It has all that `take` said. */
  allPushed(): void
  /** Pages have come from the region: whatever they were before. */
  arrived(from: number, to: number): void
  /** Right before pages are taken away that are there. `into` is filled with them. */
  see(from: number, into: Uint8Array): SeenPages
  close(): void
}

/** An area that is looked through. */
interface HotArea {
  /** Of what the region has; 0: not known. */
  digests: BigUint64Array
  /** Pages, since all was pushed. */
  changed: number
  /** The next push is the last one that looks through it. */
  isCooling: boolean
}

/** By asynchronous write-protection (Linux 6.7). It owns nothing of the mapping. */
export class Tracker implements Tracking {
  readonly #uffd: Userfaultfd
  readonly #address: number
  readonly #length: number
  readonly #written = new WrittenPages()
  readonly #hot = new Map<number, HotArea>()

  constructor(uffd: Userfaultfd, { address, length }: { address: number; length: number }) {
    this.#uffd = uffd
    this.#address = address
    this.#length = length
  }

  take(): Run[] {
    const hot = [...this.#hot].sort(([one], [other]) => one - other)
    const runs: Run[] = []
    let from = 0
    for (const [area] of [...hot, [this.#length / AREA_BYTES]] as [number][]) {
      const at = area * AREA_BYTES
      if (from < at) runs.push(...this.#protect(from, at))
      from = at + AREA_BYTES
    }
    this.#heat(runs)
    for (const [area, { isCooling }] of hot) {
      const [first, last] = [area * AREA_BYTES, (area + 1) * AREA_BYTES]
      // Of what was written until now the digests tell; from now on it is noted.
      runs.push(...(isCooling ? this.#protect(first, last) : this.#look(first, last)))
    }
    return runs
  }

  /** What was written, which is noted anew from now on. */
  #protect(from: number, to: number): Run[] {
    const runs = this.#written.take(this.#address + from, this.#address + to)
    return runs.map(([first, last]) => [first - this.#address, last - this.#address])
  }

  #look(from: number, to: number): Run[] {
    const runs = this.#written.look(this.#address + from, this.#address + to)
    return runs.flatMap(run => (run.isWritten ? [[run.from - this.#address, run.to - this.#address] as Run] : []))
  }

  /** Areas that are written to all over are looked through from now on. */
  #heat(runs: Run[]): void {
    const pages = new Map<number, number>()
    for (const [area, from, to] of byArea(runs)) pages.set(area, (pages.get(area) ?? 0) + (to - from) / PAGE_BYTES)
    for (const [area, count] of pages) {
      const at = area * AREA_BYTES
      if (count < HOT_PAGES || at + AREA_BYTES > this.#length) continue
      this.#hot.set(area, { digests: new BigUint64Array(AREA_PAGES), changed: 0, isCooling: false })
      this.#uffd.unprotect(this.#address + at, AREA_BYTES)
    }
  }

  changed(at: number, bytes: Uint8Array): Run[] {
    const runs: Run[] = []
    for (const [page, content] of pagesOf(at, bytes)) {
      const hot = this.#hot.get(Math.floor(page / AREA_PAGES))
      if (hot && hot.digests[page % AREA_PAGES] === digest(content)) continue
      const from = page * PAGE_BYTES
      const last = runs.at(-1)
      if (last?.[1] === from) last[1] = from + content.length
      else runs.push([from, from + content.length])
    }
    return runs
  }

  pushed(at: number, bytes: Uint8Array): void {
    for (const [page, content] of pagesOf(at, bytes)) {
      const hot = this.#hot.get(Math.floor(page / AREA_PAGES))
      if (!hot) continue
      hot.digests[page % AREA_PAGES] = digest(content)
      hot.changed++
    }
  }

  allPushed(): void {
    for (const [area, hot] of this.#hot) {
      if (hot.isCooling) this.#hot.delete(area)
      hot.isCooling = hot.changed <= COLD_PAGES
      hot.changed = 0
    }
  }

  arrived(from: number, to: number): void {
    if (this.#hot.size === 0) return
    for (const [area, first, last] of byArea([[from, to]])) {
      const start = area * AREA_PAGES
      this.#hot.get(area)?.digests.fill(0n, first / PAGE_BYTES - start, last / PAGE_BYTES - start)
    }
  }

  see(from: number, into: Uint8Array): SeenPages {
    const start = this.#address + from
    const end = start + into.length
    for (const run of this.#written.look(start, end))
      copyMemory(run.from, into.subarray(run.from - start, run.to - start))
    const written = new PageSet()
    // After the copy: then every write is noted here, or makes a difference to it.
    for (const run of this.#written.look(start, end))
      if (run.isWritten) written.add((run.from - start) / PAGE_BYTES, (run.to - start) / PAGE_BYTES)
    return { written, bytes: into }
  }

  close(): void {
    this.#written.close()
  }
}

/** Of memory that is there. */
export function copyMemory(address: number, into: Uint8Array): void {
  const view = viewOf(address, into.length)
  into.set(view)
  detach(view.buffer)
}

/** Whole pages, but for the last one. */
function* pagesOf(at: number, bytes: Uint8Array): Iterable<[page: number, content: Uint8Array]> {
  for (let from = 0; from < bytes.length; from += PAGE_BYTES)
    yield [(at + from) / PAGE_BYTES, bytes.subarray(from, from + PAGE_BYTES)]
}

function* byArea(runs: Iterable<Run>): Iterable<[area: number, from: number, to: number]> {
  for (const [from, to] of runs)
    for (let at = from; at < to; ) {
      const area = Math.floor(at / AREA_BYTES)
      const end = Math.min(to, (area + 1) * AREA_BYTES)
      yield [area, at, end]
      at = end
    }
}
