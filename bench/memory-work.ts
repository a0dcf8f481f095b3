// What is timed of memory, in a program of its own.
//
//   node memory-work.js WHAT FILE CACHE      prints JSON; FILE is in memory, and has whole MiB
import { closeSync, rmSync, statSync, writeSync } from 'node:fs'
import { digest } from '../src/chunk/digest.js'
import { type MappedRegion, mapRegion, openRegion, type Region } from '../src/index.js'
import { mapAnonymous, mapFile, openMemfd, unmap, viewOf } from '../src/linux/memory.js'
import { openUserfaultfd } from '../src/linux/userfaultfd.js'
import { copyMemory, Tracker } from '../src/userfault/tracker.js'
import { Userfaultfd } from '../src/userfault/userfaultfd.js'
import { WrittenPages } from '../src/userfault/written.js'
import {
  COPY_WP,
  FEATURE_MINOR_SHMEM,
  FEATURE_WP_ASYNC,
  REGISTER_MINOR,
  REGISTER_MISSING,
  REGISTER_WP,
} from '../src/wire/userfaultfd.js'

const MiB = 2 ** 20
const PAGE = 4096
const PASSES = 6
const TOUCHES = 3_000
const WRITES = 2 ** 22
const [what, file, cacheDir] = process.argv.slice(2)
const { size } = statSync(file)

const timed = (work: () => void): number => {
  const started = performance.now()
  work()
  return performance.now() - started
}

async function pulled(): Promise<Region> {
  const region = await openRegion(file, { cacheDir, cacheSize: '8G', memory: '512M', readOnly: true })
  await region.pull()
  return region
}

/** Memory of `size` bytes that is all there; protected: each page's first write is noted. */
function populated(isProtected: boolean) {
  const fd = openUserfaultfd()
  const uffd = new Userfaultfd(fd)
  uffd.begin(isProtected ? FEATURE_WP_ASYNC : 0n)
  const address = mapAnonymous(size)
  uffd.register(address, size, isProtected ? REGISTER_MISSING | REGISTER_WP : REGISTER_MISSING)
  const piece = new Uint8Array(MiB).fill(1)
  for (let at = 0; at < size; at += MiB) uffd.copy(address + at, piece, isProtected ? COPY_WP : 0n)
  return { address, uffd }
}

const works: Record<string, () => Promise<unknown>> = {
  /** Seconds of each pass: the first touch of all of it, and a copy into memory that is new. */
  async sequential() {
    const region = await pulled()
    const into = new Uint8Array(MiB).fill(1)
    const [ours, theirs]: [number[], number[]] = [[], []]
    for (let pass = 0; pass < PASSES; pass++) {
      const memory = await mapRegion(region)
      ours.push(
        timed(() => {
          for (let at = 0; at < size; at += MiB) into.set(memory.window(at, MiB))
        }),
      )
      await memory.close()
      const address = mapAnonymous(size)
      theirs.push(
        timed(() => {
          for (let at = 0; at < size; at += MiB) viewOf(address + at, MiB).set(into)
        }),
      )
      unmap(address, size)
    }
    await region.close()
    // The first pass finds pages that the machine itself has not touched.
    return { ours: ours.slice(1), theirs: theirs.slice(1) }
  },

  /** Median and 99th percentile, in microseconds. */
  async random() {
    const region = await pulled()
    const memory = await mapRegion(region)
    let sum = 0
    const took = Array.from({ length: TOUCHES }, () => {
      const page = memory.window(Math.floor(Math.random() * size), 1)
      return 1000 * timed(() => void (sum += page[0]))
    }).sort((a, b) => a - b)
    await memory.close()
    await region.close()
    return [took[TOUCHES / 2], took[Math.floor(TOUCHES * 0.99)]]
  },

  /** Milliseconds: to find 1,000 written pages, and to hash everything. */
  async written() {
    const { address } = populated(true)
    const pages = new WrittenPages()
    const [ours, theirs]: [number[], number[]] = [[], []]
    for (let pass = 0; pass < PASSES; pass++) {
      for (let n = 0; n < 1_000; n++) viewOf(address + Math.floor((n * size) / 1_000 / PAGE) * PAGE, 8)[0] = n
      ours.push(
        timed(() => {
          const found = pages.take(address, address + size).reduce((sum, [from, to]) => sum + (to - from) / PAGE, 0)
          if (found !== 1_000) throw new Error(`${found} pages were found`)
        }),
      )
      theirs.push(
        timed(() => {
          for (let at = 0; at < size; at += MiB) digest(viewOf(address + at, MiB))
        }),
      )
    }
    return { ours, theirs }
  },

  /** Milliseconds: all of it copied into memory, and written to a memfd whose pages are then mapped. */
  async filling() {
    const piece = new Uint8Array(MiB).fill(1)
    const [ours, theirs]: [number[], number[]] = [[], []]
    for (let pass = 0; pass < PASSES; pass++) {
      const [copied, continued] = [openUserfaultfd(), openUserfaultfd()]
      const [uffd, shared] = [new Userfaultfd(copied), new Userfaultfd(continued)]
      uffd.begin(0n)
      shared.begin(FEATURE_MINOR_SHMEM)
      const address = mapAnonymous(size)
      uffd.register(address, size)
      ours.push(
        timed(() => {
          for (let at = 0; at < size; at += MiB) uffd.copy(address + at, piece)
        }),
      )
      unmap(address, size)
      const memfd = openMemfd('bench', size)
      const there = mapFile(memfd, size)
      shared.register(there, size, REGISTER_MISSING | REGISTER_MINOR)
      theirs.push(
        timed(() => {
          for (let at = 0; at < size; at += MiB) {
            writeSync(memfd, piece, 0, MiB, at)
            shared.continue(there + at, MiB)
          }
        }),
      )
      unmap(there, size)
      for (const fd of [memfd, copied, continued]) closeSync(fd)
    }
    return { ours: ours.slice(1), theirs: theirs.slice(1) }
  },

  /** Milliseconds of the first touch of all of it, by how far away the remote is, over 1 Gbit/s. */
  async links() {
    const took: Record<number, number> = {}
    for (const rtt of [6, 20, 40]) {
      const cache = `${cacheDir}-${rtt}`
      const simulate = `rtt=${rtt}ms,rate=125000000`
      const region = await openRegion(file, {
        cacheDir: cache,
        cacheSize: '8G',
        memory: '512M',
        readOnly: true,
        simulate,
      })
      const memory = await mapRegion(region)
      const into = new Uint8Array(MiB)
      took[rtt] = timed(() => {
        for (let at = 0; at < size; at += MiB) into.set(memory.window(at, MiB))
      })
      await memory.close()
      await region.close()
      // The disk would still be writing it when the next one begins.
      rmSync(cache, { recursive: true })
    }
    return took
  },

  /** Milliseconds of random writes: to memory that is tracked, and to memory that is not. */
  async tracking() {
    const [{ address: tracked, uffd }, { address: untracked }] = [populated(true), populated(false)]
    const tracker = new Tracker(uffd, { address: tracked, length: size })
    /** As a push does, but for the region. */
    const push = () => {
      const bytes = new Uint8Array(MiB)
      for (const [from, to] of tracker.take())
        for (let at = from; at < to; at += MiB) {
          const piece = bytes.subarray(0, Math.min(MiB, to - at))
          copyMemory(tracked + at, piece)
          for (const [first, last] of tracker.changed(at, piece))
            tracker.pushed(first, piece.subarray(first - at, last - at))
        }
      tracker.allPushed()
    }
    const writes = (address: number) => {
      const words = new Float64Array(viewOf(address, size).buffer)
      let random = 12345
      return timed(() => {
        for (let n = 0; n < WRITES; n++) {
          random = (Math.imul(random, 1664525) + 1013904223) >>> 0
          words[random % words.length] = n
        }
      })
    }
    const [ours, theirs]: [number[], number[]] = [[], []]
    writes(untracked)
    for (let pass = 0; pass < PASSES; pass++) {
      push()
      ours.push(writes(tracked))
      theirs.push(writes(untracked))
    }
    // In the first pass each page is noted.
    return { ours: ours.slice(1), theirs: theirs.slice(1), noted: ours[0] / theirs[0] }
  },

  /** Milliseconds: a mapping of a region that is in this thread, of one that has its own, another one, and first touches. */
  async mapping() {
    const here = await openRegion(file, { cacheDir })
    const moved = await msOf(() => mapRegion(here, { writeBack: true }))
    await here.close()
    const region = await openRegion(file, { cacheDir, ownThread: true })
    let memory: MappedRegion | undefined
    const first = await msOf(async () => {
      memory = await mapRegion(region, { writeBack: true })
    })
    const touches = [2, 4, 8].map(part => {
      const page = memory!.window(size / part, 1)
      return timed(() => void page[0])
    })
    const another = await msOf(() => mapRegion(region, { writeBack: true }))
    await region.close()
    return { moved, first, another, touches }
  },
}

async function msOf(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return performance.now() - started
}

console.log(JSON.stringify(await works[what]()))
