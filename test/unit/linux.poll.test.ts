import { spawnSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { afterAll, beforeEach, describe, expect, test } from '@jest/globals'
import { mknod } from '../../src/linux/files.js'
import { POLLIN, pollFd, watchDescriptor } from '../../src/linux/poll.js'
import { readRaw, writeRaw } from '../../src/linux/preadv2.js'
import { compile } from '../fixtures/compiled.js'

const folder = mkdtempSync(join(tmpdir(), 'pageferry-linux-'))
const path = join(folder, 'fifo')
mknod(Buffer.from(path), constants.S_IFIFO | 0o600)
const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
afterAll(() => {
  closeSync(fd)
  rmSync(folder, { recursive: true })
})

const byte = new Uint8Array(1)
const drain = () => {
  let bytes = 0
  while (readRaw(fd, byte) > 0) bytes++
  return bytes
}
beforeEach(() => {
  drain()
})

describe('pollFd', () => {
  test('looks, and waits no longer than it was told', () => {
    expect(pollFd(fd, 0)).toBe(0)
    const begunMs = performance.now()
    expect(pollFd(fd, 30)).toBe(0)
    expect(performance.now() - begunMs).toBeGreaterThan(25)
    writeRaw(fd, byte)
    expect(pollFd(fd, 10_000) & POLLIN).toBe(POLLIN)
  })
})

describe('watchDescriptor', () => {
  test('calls back while there is something to read; promises go on right after it', async () => {
    const order: string[] = []
    const watcher = watchDescriptor(fd, failed => {
      expect(failed).toBe(false)
      drain()
      order.push('callback')
      process.nextTick(() => order.push('tick'))
      Promise.resolve().then(() => order.push('promise'))
    })
    watcher.start()
    watcher.start()
    await turn()
    expect(order).toEqual([])
    writeRaw(fd, byte)
    await sleep(20)
    writeRaw(fd, byte)
    await sleep(20)
    expect(order).toEqual(['callback', 'tick', 'promise', 'callback', 'tick', 'promise'])
    await watcher.close()
  })

  test('stops, starts again, and closes twice', async () => {
    let calls = 0
    const watcher = watchDescriptor(fd, () => {
      calls++
      drain()
    })
    watcher.start()
    watcher.stop()
    writeRaw(fd, byte)
    await sleep(10)
    expect(calls).toBe(0)
    watcher.start()
    await sleep(10)
    expect(calls).toBe(1)
    await Promise.all([watcher.close(), watcher.close()])
    watcher.start()
    watcher.stop()
    watcher.unref()
    writeRaw(fd, byte)
    await sleep(10)
    expect(calls).toBe(1)
  })

  test('may be closed from its own callback', async () => {
    const closed = new Promise<void>(resolve => {
      const watcher = watchDescriptor(fd, () => watcher.close().then(resolve))
      watcher.start()
    })
    writeRaw(fd, byte)
    await closed
  })

  test('leaves nothing behind: more of them, one after the other, than there are callback slots', async () => {
    for (let i = 0; i < 90; i++) {
      const watchers = Array.from({ length: 100 }, () => {
        const copy = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
        return { copy, watcher: watchDescriptor(copy, () => {}) }
      })
      for (const { watcher } of watchers) watcher.start()
      await Promise.all(watchers.map(({ watcher }) => watcher.close()))
      for (const { copy } of watchers) closeSync(copy)
      await turn()
    }
  })

  test('refuses what cannot be polled', () => {
    const file = openSync(folder, 'r')
    expect(() => watchDescriptor(file, () => {})).toThrow(expect.objectContaining({ code: 'NOT_PERMITTED' }))
    closeSync(file)
  })

  test('what the callback throws is an uncaught exception, not lost', () => {
    const { path: module, remove } = compile('src/linux/poll.ts')
    const program = `
      import { watchDescriptor } from '${module}'
      process.on('uncaughtException', error => { console.log(error.message); process.exit(7) })
      watchDescriptor(3, () => { throw new Error('thrown inside') }).start()`
    writeRaw(fd, byte)
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'inherit', fd],
      timeout: 20_000,
    })
    remove()
    expect(child.stdout.toString()).toBe('thrown inside\n')
    expect(child.status).toBe(7)
  })
})
