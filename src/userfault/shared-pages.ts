// The pages of a region once, for all processes that map them: a memfd that is filled by ordinary writes.
import { closeSync, fstatSync, writeSync } from 'node:fs'
import { giveBack, takeBytes } from '../base/buffers.js'
import type { RegionDoor } from '../cache/door.js'
import type { Maybe } from '../cache/filesystem.js'
import { punchHole, seekData, seekHole } from '../linux/files.js'
import { errno } from '../linux/libc.js'
import { openMemfd } from '../linux/memory.js'
import { PageSet } from './page-set.js'
import { type Fetched, type Pages, readPages } from './pages.js'
import { Resident } from './resident.js'
import type { Answered, Userfaultfd } from './userfaultfd.js'

const PAGE_BYTES = 4096
const ZEROS = new Uint8Array(PAGE_BYTES)
/** What fstat(2) counts in. */
const BLOCK_BYTES = 512

/** Of the region, in bytes. */
interface Run {
  from: number
  to: number
}

interface Fetching extends Run {
  done: Promise<void>
}

/** It owns the memfd. Nothing of it is written by anybody else. */
export class SharedPages implements Pages {
  readonly isOwn = false
  readonly fd: number
  /** Whole pages. */
  readonly length: number
  readonly #door: RegionDoor
  readonly #residentMax: number
  readonly #present = new PageSet()
  readonly #resident = new Resident()
  readonly #fetching = new Set<Fetching>()
  /** Fetched, and not in all the mappings yet for which they were. */
  readonly #pinned = new Set<Run>()
  readonly #listeners = new Set<(from: number, to: number) => void>()

  /** `memory`: a memfd of an earlier process. `resident`: bytes that are there at once, at most; those that have been there longest give way. */
  constructor(door: RegionDoor, { resident, memory }: { resident: number; memory?: number }) {
    this.#door = door
    this.#residentMax = resident
    this.length = Math.max(1, Math.ceil(door.size / PAGE_BYTES)) * PAGE_BYTES
    this.fd = memory ?? openMemfd('pageferry', this.length)
    if (memory !== undefined) this.#find()
  }

  /** What an earlier process has filled: a page that is there is whole. */
  #find(): void {
    for (let at = seekData(this.fd, 0); at !== undefined; ) {
      const to = seekHole(this.fd, at) ?? this.length
      this.#present.add(at / PAGE_BYTES, to / PAGE_BYTES)
      this.#resident.came(at, to)
      at = to < this.length ? seekData(this.fd, to) : undefined
    }
  }

  /** What it takes of this machine's memory, in bytes, as the kernel counts it. */
  get residentBytes(): number {
    return fstatSync(this.fd).blocks * BLOCK_BYTES
  }

  onGone(listener: (from: number, to: number) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  fetch(at: number, length: number): Maybe<Fetched> {
    const run = { from: at, to: at + length }
    const fetched: Fetched = {
      put: (uffd, address, from, count) => this.#put(uffd, address, at + from, count),
      release: () => this.#pinned.delete(run),
    }
    const failed = (error: unknown) => {
      fetched.release()
      throw error
    }
    this.#pinned.add(run)
    try {
      const waiting = [...this.#fetching].filter(each => overlap(each, run)).map(({ done }) => done)
      for (const absent of this.#absent(run)) {
        const reading = this.#read(absent)
        if (reading) waiting.push(reading)
      }
      return waiting.length === 0 ? fetched : Promise.all(waiting).then(() => fetched, failed)
    } catch (error) {
      return failed(error)
    }
  }

  /** Runs of it that are neither there nor on their way. */
  #absent({ from, to }: Run): Run[] {
    const runs: Run[] = []
    const isKnown = (at: number) =>
      this.#present.has(at / PAGE_BYTES) || [...this.#fetching].some(each => at >= each.from && at < each.to)
    for (let at = from; at < to; at += PAGE_BYTES) {
      if (isKnown(at)) continue
      const last = runs.at(-1)
      if (last?.to === at) last.to += PAGE_BYTES
      else runs.push({ from: at, to: at + PAGE_BYTES })
    }
    return runs
  }

  #read(run: Run): Maybe<void> {
    const bytes = takeBytes(run.to - run.from)
    const reading = readPages(this.#door, run.from, bytes)
    const arrived = () => {
      this.#fill(run.from, bytes)
      giveBack(bytes)
    }
    if (!reading) return arrived()
    const fetching: Fetching = {
      ...run,
      done: reading.then(arrived).finally(() => this.#fetching.delete(fetching)),
    }
    this.#fetching.add(fetching)
    return fetching.done
  }

  /** A page is whole, for whoever may map it, as soon as it is there. */
  #fill(at: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) done += writeSync(this.fd, bytes, done, bytes.length - done, at + done)
    this.#present.add(at / PAGE_BYTES, (at + bytes.length) / PAGE_BYTES)
    this.#resident.came(at, at + bytes.length)
    this.#makeRoom()
  }

  #put(uffd: Userfaultfd, address: number, at: number, length: number): Answered {
    const answer = uffd.continue(address, length)
    if (answer.errno !== errno.EFAULT || answer.bytes > 0) return answer
    // The process has taken the page from everybody (MADV_REMOVE), as it may with its own memory: zeros.
    writeSync(this.fd, ZEROS, 0, PAGE_BYTES, at)
    return uffd.continue(address, PAGE_BYTES)
  }

  /** Until an eighth is free, or nothing can go. */
  #makeRoom(): void {
    if (this.#resident.bytes <= this.#residentMax) return
    for (let { runs } = this.#resident; runs > 0 && this.#resident.bytes > this.#residentMax * (7 / 8); runs--) {
      const [from, to] = this.#resident.oldest()!
      if ([...this.#pinned].some(run => overlap(run, { from, to }))) {
        this.#resident.came(from, to)
        continue
      }
      // Whoever touches it from now on asks for it.
      punchHole(this.fd, { at: from, length: to - from })
      this.#present.delete(from / PAGE_BYTES, to / PAGE_BYTES)
      for (const listener of this.#listeners) listener(from, to)
    }
  }

  close(): void {
    closeSync(this.fd)
  }
}

const overlap = (one: Run, other: Run): boolean => one.from < other.to && other.from < one.to
