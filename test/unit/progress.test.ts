// Progress: a bar on a terminal, a line now and then elsewhere, and when it will be done.
import { describe, expect, test } from '@jest/globals'
import type { Progress } from '../../src/cache/tree-cache.js'
import { Estimate, progressLine, showProgress } from '../../src/progress.js'

const MIB = 2 ** 20
const at = (bytesDone: number, operationsDone = 0): Progress => ({
  bytesDone,
  bytesTotal: 100 * MIB,
  operationsDone,
  operationsTotal: 10,
})

const screen = (isTTY: boolean) => {
  const written: string[] = []
  return { isTTY, columns: 120, written, write: (text: string) => written.push(text) }
}

describe('the estimate', () => {
  test('is that of the slower of bytes and operations', () => {
    const estimate = new Estimate()
    expect(estimate.leftMs(at(0))).toBeUndefined()
    estimate.add(0, at(0, 0))
    estimate.add(1000, at(10 * MIB, 5))
    expect(estimate.bytesPerSecond()).toBe(10 * MIB)
    // 9 s for the bytes, 1 s for the operations.
    expect(estimate.leftMs(at(10 * MIB, 5))).toBe(9000)
  })

  test('forgets how fast it was long ago', () => {
    const estimate = new Estimate()
    for (let s = 0; s <= 60; s++) estimate.add(s * 1000, at(s < 30 ? s * MIB : 30 * MIB))
    expect(estimate.bytesPerSecond()).toBe(0)
    expect(estimate.leftMs(at(30 * MIB, 10))).toBeUndefined()
  })

  test('begins anew when a batch does', () => {
    const estimate = new Estimate()
    estimate.add(0, at(50 * MIB))
    estimate.add(1000, at(0))
    expect(estimate.bytesPerSecond()).toBeUndefined()
    estimate.add(2000, at(MIB))
    expect(estimate.bytesPerSecond()).toBe(MIB)
  })

  test('nothing to do takes no time', () => {
    const nothing = { bytesDone: 0, bytesTotal: 0, operationsDone: 0, operationsTotal: 0 }
    expect(new Estimate().leftMs(nothing)).toBe(0)
    expect(progressLine(nothing, new Estimate())).toBe('0 B of 0 B, 0 of 0 changes')
  })
})

describe('what is shown', () => {
  test('a bar with bytes, operations, rate and time left, drawn again in place, on a terminal', () => {
    const tty = screen(true)
    let nowMs = 0
    const view = showProgress({ screen: tty, title: 'syncing', nowMs: () => nowMs })
    view.update(at(0))
    nowMs = 1000
    view.update(at(25 * MIB, 5))
    expect(tty.written[1].slice(0, 4)).toBe('\r\x1b[K')
    expect(tty.written[1].slice(4)).toMatch(/^syncing \[=+ +\] 25 MiB of 100 MiB, 5 of 10 changes, 25 MiB\/s, 3s left$/)
    view.end()
    expect(tty.written[2]).toBe('\r\x1b[K')
    view.update(at(30 * MIB))
    expect(tty.written).toHaveLength(3)
  })

  test('never longer than the terminal is wide', () => {
    const tty = { ...screen(true), columns: 40 }
    showProgress({ screen: tty, title: 'syncing' }).update(at(25 * MIB, 5))
    expect(tty.written[0].replace('\r\x1b[K', '').length).toBeLessThan(40)
  })

  test('not more often than an eye follows', () => {
    const tty = screen(true)
    let nowMs = 0
    const view = showProgress({ screen: tty, title: 'x', nowMs: () => nowMs })
    for (; nowMs < 1000; nowMs++) view.update(at(nowMs))
    expect(tty.written.length).toBeLessThanOrEqual(10)
  })

  test('a line every few seconds elsewhere, and none for what is done at once', () => {
    const file = screen(false)
    let nowMs = 0
    const view = showProgress({ screen: file, title: 'syncing', nowMs: () => nowMs })
    for (; nowMs < 7000; nowMs += 100) view.update(at((nowMs / 100) * MIB))
    view.end()
    expect(file.written).toHaveLength(2)
    for (const line of file.written) expect(line).toMatch(/^syncing: .*\n$/)
    const quick = screen(false)
    showProgress({ screen: quick, title: 'syncing' }).update(at(0))
    expect(quick.written).toEqual([])
  })
})
