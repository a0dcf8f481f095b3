// How much should be on the way: what the estimate makes of lines whose bandwidth and distance are known.
import { describe, expect, test } from '@jest/globals'
import { Link } from '../../src/cache/link.js'

const KiB = 1024
const MiB = 1024 * KiB
const REQUEST_MAX = 4 * MiB

/** A line of this width, at whose end each answer waits for `rttMs`: one request after the other gets the whole of it. */
class Line {
  nowMs = 0
  #freeMs = 0

  constructor(
    readonly bytesPerMs: number,
    readonly rttMs: number,
  ) {}

  /** When the answer to a request of now is all there. */
  arrivesMs(bytes: number): number {
    this.#freeMs = Math.max(this.nowMs + this.rttMs, this.#freeMs) + bytes / this.bytesPerMs
    return this.#freeMs
  }
}

/** Someone who always has as much on the way as the link says, or as he reads. @returns what was on the way at the end */
function stream(link: Link, line: Line, seconds: number, readsPerMs = Number.POSITIVE_INFINITY) {
  const under: { begun: ReturnType<Link['begin']>; atMs: number; bytes: number }[] = []
  let asked = 0
  const endMs = line.nowMs + seconds * 1_000
  for (; line.nowMs < endMs; line.nowMs++) {
    while (under.length > 0 && under[0].atMs <= line.nowMs) {
      const { begun, bytes } = under.shift()!
      link.end(begun, bytes)
    }
    const inFlight = () => under.reduce((sum, { bytes }) => sum + bytes, 0)
    while (inFlight() < link.windowBytes && asked < readsPerMs * (line.nowMs + 1)) {
      const bytes = link.requestBytes
      asked += bytes
      under.push({ begun: link.begin(), atMs: line.arrivesMs(bytes), bytes })
    }
  }
  return { window: link.windowBytes, request: link.requestBytes, asked }
}

const linkOn = (line: Line) => new Link(REQUEST_MAX, () => line.nowMs)

describe('the link', () => {
  test.each([
    ['50 Mbit/s at 40 ms', 6_250, 40],
    ['1 Gbit/s at 20 ms', 125_000, 20],
    ['100 Mbit/s at 150 ms', 12_500, 150],
  ])('fills a line of %s, and not much more', (_, bytesPerMs, rttMs) => {
    const line = new Line(bytesPerMs, rttMs)
    const { window, request, asked } = stream(linkOn(line), line, 5)
    const holds = bytesPerMs * rttMs
    expect(window).toBeGreaterThanOrEqual(Math.min(holds, 32 * MiB))
    expect(window).toBeLessThanOrEqual(Math.max(MiB, 4 * holds + 4 * request))
    // Of all that the line could bring, nearly all.
    expect(asked).toBeGreaterThan(bytesPerMs * 5_000 * 0.8)
  })

  test('has requests that take about as long everywhere, within their bounds', () => {
    const of = (bytesPerMs: number) => {
      const line = new Line(bytesPerMs, 20)
      return stream(linkOn(line), line, 3).request
    }
    expect([of(500), of(6_250), of(25_000), of(1_000_000)]).toEqual([128 * KiB, 256 * KiB, MiB, REQUEST_MAX])
  })

  test('follows a line that becomes narrow, and one that becomes wide again', () => {
    const line = new Line(100_000, 20)
    const link = linkOn(line)
    const wide = stream(link, line, 3)
    const narrow = new Line(2_000, 20)
    narrow.nowMs = line.nowMs
    const slow = linkOnClock(link, line, narrow)
    const after = stream(slow, narrow, 15)
    expect(after.window).toBeLessThan(wide.window / 4)
  })

  test('of somebody who reads slowly is what he reads', () => {
    const line = new Line(100_000, 20)
    const { window } = stream(linkOn(line), line, 20, 1_000)
    expect(window).toBeLessThanOrEqual(4 * MiB)
  })

  test('knows nothing at first, and nothing any more after a while', () => {
    const line = new Line(100_000, 20)
    const link = linkOn(line)
    const [window, request] = [link.windowBytes, link.requestBytes]
    stream(link, line, 2)
    expect(link.windowBytes).toBeGreaterThan(window)
    line.nowMs += 60_000
    expect([link.windowBytes, link.requestBytes]).toEqual([window, request])
  })
})

/** The same link goes on, on another line. */
function linkOnClock(link: Link, from: Line, to: Line): Link {
  Object.defineProperty(from, 'nowMs', { get: () => to.nowMs })
  return link
}
