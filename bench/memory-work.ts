// What is timed of memory, in a program of its own.
//
//   node memory-work.js WHAT FILE CACHE      prints JSON; FILE is in memory, and has whole MiB
import { statSync } from 'node:fs'
import { digest } from '../src/chunk/digest.js'
import { mapRegion, openRegion, type Region } from '../src/index.js'
import { mapAnonymous, unmap, viewOf } from '../src/linux/memory.js'
import { openUserfaultfd } from '../src/linux/userfaultfd.js'
import { Userfaultfd } from '../src/userfault/userfaultfd.js'
import { WrittenPages } from '../src/userfault/written.js'
import { COPY_WP, FEATURE_WP_ASYNC, REGISTER_MISSING, REGISTER_WP } from '../src/wire/userfaultfd.js'

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
  return address
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
    const address = populated(true)
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

  /** Milliseconds of random writes: to memory that is tracked, and to memory that is not. */
  async tracking() {
    const [tracked, untracked] = [populated(true), populated(false)]
    const pages = new WrittenPages()
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
    for (let pass = 0; pass < PASSES; pass++) {
      pages.take(tracked, tracked + size)
      ours.push(writes(tracked))
      theirs.push(writes(untracked))
    }
    return { ours: ours.slice(1), theirs: theirs.slice(1) }
  },

  /** Milliseconds: the first mapping of a region, another one, and a first touch of that. */
  async mapping() {
    const region = await openRegion(file, { cacheDir })
    const started = performance.now()
    await mapRegion(region, { writeBack: true })
    const first = performance.now() - started
    const again = performance.now()
    const memory = await mapRegion(region, { writeBack: true })
    const another = performance.now() - again
    const page = memory.window(size / 2, 1)
    const touch = timed(() => void page[0])
    await region.close()
    return { first, another, touch }
  },
}
console.log(JSON.stringify(await works[what]()))
