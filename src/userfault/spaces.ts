// Which addresses of a process are which bytes of a region, and what is there of them.
import { PageSet } from './page-set.js'
import { Readers } from './reader.js'

/** Memory of a process whose bytes are a region's. */
export interface Mapping {
  /** In bytes, multiples of `pageBytes`. */
  address: number
  length: number
  /** Where in the region. */
  at: number
  pageBytes: number
}

/** Runs of pages of one mapping. */
export interface KnownPages {
  what: 'taken' | 'removed'
  runs: [from: number, to: number][]
}

const RUNS_AT_ONCE = 1_000

export interface Space extends Mapping {
  readers: Readers
  /** Pages that are there, or on their way. */
  taken: PageSet
  /** Of those, the ones that end whoever touches them. */
  poisoned: PageSet
  /** Pages that the program has given back: zeros from then on. */
  removed: PageSet
}

/** Of one process. */
export class Spaces {
  #spaces: Space[]

  constructor(mappings: readonly Mapping[], known: readonly KnownPages[][] = []) {
    this.#spaces = mappings.map(spaceOf)
    for (const [n, pages] of known.entries()) for (const each of pages) this.know(n, each)
  }

  /** Of one of the mappings, by their order. */
  know(mapping: number, { what, runs }: KnownPages): void {
    for (const [from, to] of runs) this.#spaces[mapping][what].add(from, to)
  }

  /** What is known of the pages of each mapping, in pieces. */
  known(): KnownPages[][] {
    return this.#spaces.map(({ taken, removed }) => [...pieces('taken', taken), ...pieces('removed', removed)])
  }

  get all(): readonly Space[] {
    return this.#spaces
  }

  at(address: number): Space | undefined {
    return this.#spaces.find(each => address >= each.address && address < each.address + each.length)
  }

  /** As a child of the process has it. */
  copy(): Spaces {
    return new Spaces(this.mappings, this.known())
  }

  get mappings(): Mapping[] {
    return this.#spaces.map(({ address, length, at, pageBytes }) => ({ address, length, at, pageBytes }))
  }

  /** Pages have come to be there. */
  put(start: number, end: number): void {
    this.overlapping(start, end, ({ taken }, from, to) => taken.add(from, to))
  }

  /** The program has given it back: `isZero` says whether it is zeros from now on, or what it was. */
  forget(start: number, end: number, isZero: boolean): void {
    this.overlapping(start, end, ({ taken, poisoned, removed }, from, to) => {
      taken.delete(from, to)
      poisoned.delete(from, to)
      if (isZero) removed.add(from, to)
    })
  }

  /** The parts between two addresses, by pages of each mapping. */
  overlapping(start: number, end: number, each: (space: Space, from: number, to: number) => void): void {
    for (const space of this.#spaces) {
      const from = Math.max(start, space.address)
      const to = Math.min(end, space.address + space.length)
      if (from >= to) continue
      each(space, (from - space.address) / space.pageBytes, (to - space.address) / space.pageBytes)
    }
  }

  /** What lies there is not there any more. */
  unmap(start: number, end: number): void {
    this.#cut(start, end)
  }

  move(from: number, to: number, length: number): void {
    const moved = this.#cut(from, from + length)
    this.#spaces.push(...moved.map(space => ({ ...space, address: space.address - from + to })))
  }

  /** What lies between two addresses, which is not in it from then on. */
  #cut(start: number, end: number): Space[] {
    const inside: Space[] = []
    const outside: Space[] = []
    for (const space of this.#spaces) {
      const last = space.address + space.length
      const part = (from: number, to: number, into: Space[]) => {
        if (from < to) into.push(from === space.address && to === last ? space : partOf(space, from, to))
      }
      part(space.address, Math.min(start, last), outside)
      part(Math.max(space.address, start), Math.min(last, end), inside)
      part(Math.max(space.address, end), last, outside)
    }
    this.#spaces = outside
    return inside
  }
}

function partOf(space: Space, from: number, to: number): Space {
  const { address, at, pageBytes } = space
  const part = spaceOf({ ...space, address: from, length: to - from, at: at + from - address })
  const [first, last] = [(from - address) / pageBytes, (to - address) / pageBytes]
  for (const what of ['taken', 'poisoned', 'removed'] as const)
    for (const [start, end] of space[what].runs())
      if (start < last && first < end) part[what].add(Math.max(start, first) - first, Math.min(end, last) - first)
  return part
}

function* pieces(what: KnownPages['what'], pages: PageSet): Iterable<KnownPages> {
  const runs = pages.runs()
  for (let n = 0; n < runs.length; n += RUNS_AT_ONCE) yield { what, runs: runs.slice(n, n + RUNS_AT_ONCE) }
}

const spaceOf = ({ address, length, at, pageBytes }: Mapping): Space => ({
  ...{ address, length, at, pageBytes },
  readers: new Readers(),
  taken: new PageSet(),
  poisoned: new PageSet(),
  removed: new PageSet(),
})
