// Pages that were written to since one last looked: PAGEMAP_SCAN over memory that is registered for asynchronous write-protection.
import { closeSync, openSync } from 'node:fs'
import { ioctl } from '../linux/libc.js'
import { addressOf } from '../linux/userfaultfd.js'
import { PAGEMAP_SCAN, PageCategory, pageRange, pmScanArg, ScanFlag } from '../wire/userfaultfd.js'

/** Found by one call. */
const RANGES_MAX = 1_024

/** A run of addresses. */
export interface SeenPages {
  from: number
  to: number
  isWritten: boolean
}

/** Of this process. */
export class WrittenPages {
  readonly #fd = openSync('/proc/self/pagemap', 'r')
  readonly #ranges = new Uint8Array(RANGES_MAX * pageRange.size)
  readonly #view = new DataView(this.#ranges.buffer)

  /** Addresses, ascending. They are protected again in the same moment: what is written from then on is found by the next call. */
  take(start: number, end: number): [from: number, to: number][] {
    const flags = ScanFlag.PROTECT | ScanFlag.CHECK_WP_ASYNC
    return this.#scan(start, end, { flags, mask: PageCategory.WRITTEN }).map(({ from, to }) => [from, to])
  }

  /** Pages that are there, and whether they have been written to. Nothing changes. */
  look(start: number, end: number): SeenPages[] {
    return this.#scan(start, end, { flags: ScanFlag.CHECK_WP_ASYNC, mask: 0n })
  }

  #scan(start: number, end: number, { flags, mask }: { flags: bigint; mask: bigint }): SeenPages[] {
    const found: SeenPages[] = []
    for (let at = start; at < end; ) {
      const argument = pmScanArg.toBytes({
        ...{ size: pmScanArg.size, flags, start: at, end, walkEnd: 0 },
        ...{ ranges: addressOf(this.#ranges), rangesMax: RANGES_MAX, pagesMax: 0, inverted: 0n },
        ...{ mask, anyOf: PageCategory.PRESENT | PageCategory.SWAPPED, returned: PageCategory.WRITTEN },
      })
      const count = ioctl(this.#fd, PAGEMAP_SCAN, argument)
      for (let n = 0; n < count; n++) {
        const { start: from, end: to, categories } = pageRange.decode(this.#view, n * pageRange.size)
        found.push({ from, to, isWritten: (categories & PageCategory.WRITTEN) !== 0n })
        at = to
      }
      if (count < RANGES_MAX) break
    }
    return found
  }

  close(): void {
    closeSync(this.#fd)
  }
}
