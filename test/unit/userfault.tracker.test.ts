// Which pages were written to: noted by the kernel, or found by digests where a program writes all over. On memory of this process whose
// pages are all there, so that nobody waits for anybody.
import { closeSync } from 'node:fs'
import { afterEach, beforeEach, expect } from '@jest/globals'
import { freshSeed, random } from '../../src/base/random.js'
import { mapAnonymous, unmap, viewOf } from '../../src/linux/memory.js'
import { openUserfaultfd } from '../../src/linux/userfaultfd.js'
import { copyMemory, type Run, Tracker } from '../../src/userfault/tracker.js'
import { Userfaultfd } from '../../src/userfault/userfaultfd.js'
import { COPY_WP, FEATURE_WP_ASYNC, REGISTER_MISSING, REGISTER_WP } from '../../src/wire/userfaultfd.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('userfaultfd')
const PAGE = 4096
const AREA = 512 * PAGE
const LENGTH = 3 * AREA + 5 * PAGE
const SEED = Number(process.env.SEED ?? freshSeed())

let fd = -1
let address = 0
let memory: Uint8Array
let tracker: Tracker
beforeEach(() => {
  fd = openUserfaultfd()
  const uffd = new Userfaultfd(fd)
  uffd.begin(FEATURE_WP_ASYNC)
  address = mapAnonymous(LENGTH)
  uffd.register(address, LENGTH, REGISTER_MISSING | REGISTER_WP)
  for (let at = 0; at < LENGTH; at += PAGE) uffd.copy(address + at, new Uint8Array(PAGE), COPY_WP)
  memory = viewOf(address, LENGTH)
  tracker = new Tracker(uffd, { address, length: LENGTH })
})
afterEach(() => {
  tracker.close()
  unmap(address, LENGTH)
  closeSync(fd)
})

/** What a push does: what the region lacks is copied there. @returns how much was looked at, and how much sent, in pages */
function push(region: Uint8Array): { looked: number; sent: number } {
  let [looked, sent] = [0, 0]
  for (const [from, to] of tracker.take()) {
    const bytes = new Uint8Array(to - from)
    copyMemory(address + from, bytes)
    looked += bytes.length / PAGE
    for (const [first, last] of tracker.changed(from, bytes)) {
      const content = bytes.subarray(first - from, last - from)
      region.set(content, first)
      tracker.pushed(first, content)
      sent += content.length / PAGE
    }
  }
  tracker.allPushed()
  return { looked, sent }
}

const all = (area: number, value: number) => {
  for (let page = 0; page < 512; page++) memory[area * AREA + page * PAGE] = value
}

describe(`a tracker (SEED=${SEED})`, () => {
  test('finds single pages, each once', () => {
    const region = new Uint8Array(LENGTH)
    expect(push(region)).toEqual({ looked: 0, sent: 0 })
    for (const page of [0, 7, 8, 512, 1540]) memory[page * PAGE + 9] = 1
    expect(push(region)).toEqual({ looked: 5, sent: 5 })
    expect(push(region)).toEqual({ looked: 0, sent: 0 })
    expect(Buffer.compare(region, memory)).toBe(0)
  })

  test('looks through an area that is written all over, and notes it again when it is not any more', () => {
    const region = new Uint8Array(LENGTH)
    all(1, 1)
    expect(push(region)).toEqual({ looked: 512, sent: 512 })
    // Looked through: what is as it was is not sent.
    for (let page = 0; page < 100; page++) memory[AREA + page * PAGE] = 2
    expect(push(region)).toEqual({ looked: 512, sent: 100 })
    memory[AREA + 3] = 3
    expect(push(region)).toEqual({ looked: 512, sent: 1 })
    // The last time.
    memory[AREA + 3] = 4
    expect(push(region)).toEqual({ looked: 512, sent: 1 })
    expect(push(region)).toEqual({ looked: 0, sent: 0 })
    memory[AREA + 3] = 5
    expect(push(region)).toEqual({ looked: 1, sent: 1 })
    expect(Buffer.compare(region, memory)).toBe(0)
  })

  test('a page that came anew is sent though it is what was sent before', () => {
    const region = new Uint8Array(LENGTH)
    all(0, 1)
    push(region)
    // Somebody else has changed the region, and the page came from there; the program makes it what it was.
    tracker.arrived(PAGE, 2 * PAGE)
    region.fill(9, PAGE, 2 * PAGE)
    expect(push(region).sent).toBe(1)
    expect(Buffer.compare(region, memory)).toBe(0)
  })

  test('sees which pages are written right before they go', () => {
    const region = new Uint8Array(LENGTH)
    memory[5 * PAGE] = 1
    push(region)
    memory[6 * PAGE] = 1
    const { written, bytes } = tracker.see(4 * PAGE, new Uint8Array(4 * PAGE))
    expect([0, 1, 2, 3].map(page => written.has(page))).toEqual([false, false, true, false])
    expect([bytes[PAGE], bytes[2 * PAGE]]).toEqual([1, 1])
  })

  test('whatever is written, the region has it', () => {
    const region = new Uint8Array(LENGTH)
    const numbers = random(SEED)
    for (let round = 0; round < 60; round++) {
      const writes = numbers.pick([0, 3, 200, 3_000])
      const area = numbers.below(3)
      for (let n = 0; n < writes; n++)
        memory[numbers.chance(0.7) ? area * AREA + numbers.below(AREA) : numbers.below(LENGTH)] = numbers.below(256)
      const runs: Run[] = []
      for (let n = numbers.below(3); n > 0; n--) {
        const page = numbers.below(LENGTH / PAGE)
        runs.push([page * PAGE, Math.min(LENGTH, (page + 1 + numbers.below(20)) * PAGE)])
      }
      push(region)
      expect(Buffer.compare(region, memory)).toBe(0)
      for (const run of runs) tracker.arrived(...run)
    }
  })
})
