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

  constructor(mappings: (Mapping & { removed?: [from: number, to: number][] })[]) {
    this.#spaces = mappings.map(mapping => {
      const space = spaceOf(mapping)
      for (const [from, to] of mapping.removed ?? []) space.removed.add(from, to)
      return space
    })
  }

  get all(): readonly Space[] {
    return this.#spaces
  }

  at(address: number): Space | undefined {
    return this.#spaces.find(each => address >= each.address && address < each.address + each.length)
  }

  /** What there is to be known of it, but for what the kernel says itself: also of the memory of a child. */
  kept(): (Mapping & { removed: [from: number, to: number][] })[] {
    return this.#spaces.map(({ address, length, at, pageBytes, removed }) => ({
      ...{ address, length, at, pageBytes },
      removed: removed.runs(),
    }))
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

/** Pages that were given back stay so. That others are there the kernel says itself. */
function partOf(space: Space, from: number, to: number): Space {
  const { address, at, pageBytes, removed } = space
  const part = spaceOf({ ...space, address: from, length: to - from, at: at + from - address })
  const first = (from - address) / pageBytes
  for (let page = 0; page < (to - from) / pageBytes; page++)
    if (removed.has(first + page)) part.removed.add(page, page + 1)
  return part
}

const spaceOf = ({ address, length, at, pageBytes }: Mapping): Space => ({
  ...{ address, length, at, pageBytes },
  readers: new Readers(),
  taken: new PageSet(),
  poisoned: new PageSet(),
  removed: new PageSet(),
})
