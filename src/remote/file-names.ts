// A directory's names in byte order, page by page.
//
// A cursor is the last name of the page before: it needs no state, a page can be asked for twice (after a lost answer), and a
// name that is there all the while is listed exactly once, whatever else comes and goes. Reading a directory of a million
// names anew for each page would be quadratic, so the sorted names of the last few listings are kept for the pages that
// follow; they are only a shortcut, and a first page never comes from them.
import { LRUCache } from 'lru-cache'
import { readNames } from './file-io.js'
import type { Path } from './tree.js'

/** How many names are kept, all directories together: about 64 MiB at worst. */
const NAMES_MAX = 1_000_000
const KEPT_MS = 30_000

export class SortedNames {
  readonly #kept = new LRUCache<string, string[]>({
    maxSize: NAMES_MAX,
    sizeCalculation: names => names.length + 1,
    ttl: KEPT_MS,
  })

  /**
   * The names after `after` of a directory, which is `path` in its tree: as it is now if that is undefined, else maybe as it was when the
   * listing began.
   */
  async after(directory: Buffer, path: Path, after: string | undefined): Promise<{ names: string[]; from: number }> {
    const kept = after === undefined ? undefined : this.#kept.get(path)
    const names = kept ?? (await readNames(directory)).sort(compareNames)
    if (!kept) this.#kept.set(path, names)
    return { names, from: after === undefined ? 0 : firstAfter(names, after) }
  }

  /** The last page was given out. */
  done(path: Path): void {
    this.#kept.delete(path)
  }
}

// Chars are bytes here, so the order of strings is the order of bytes.
export const compareNames = (one: string, other: string): number => (one < other ? -1 : one > other ? 1 : 0)

function firstAfter(names: string[], after: string): number {
  let [low, high] = [0, names.length]
  while (low < high) {
    const middle = (low + high) >>> 1
    if (names[middle] > after) high = middle
    else low = middle + 1
  }
  return low
}
