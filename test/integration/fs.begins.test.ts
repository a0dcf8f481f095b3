// A mount that is there before it can answer: who comes early waits, and it can be taken away meanwhile.
import { readFileSync } from 'node:fs'
import { expect } from '@jest/globals'
import { mountMemory, run } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'
import { eventually } from '../fixtures/trees.js'

const { describe, test } = requires('fuse', 'root')
const BEGINS_MS = 1_500

const isThere = (path: string) => readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${path} `)
const lives = (pid: number) => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

describe('a mount that begins later', () => {
  test('lets programs wait, and answers them then', async () => {
    const started = performance.now()
    const mount = await mountMemory({ begins: { afterMs: BEGINS_MS } })
    expect(isThere(mount.path)).toBe(true)
    expect((await mount.status()).requests).toBe(0)
    expect(await run('sh', ['-c', `cd '${mount.path}' && echo early > f && cat f`])).toBe('early\n')
    expect(performance.now() - started).toBeGreaterThan(BEGINS_MS)
    await mount.end()
  })

  test('can be unmounted before, and its daemon sees that', async () => {
    const mount = await mountMemory({ begins: 'never' })
    await run('umount', ['-i', '-c', mount.path])
    await eventually('the daemon ends', () => !lives(mount.pid))
    await mount.end()
  })

  test('is gone when it cannot begin, and who waited is told', async () => {
    const mount = await mountMemory({ begins: { afterMs: BEGINS_MS, fails: true } })
    await expect(run('ls', [mount.path])).rejects.toThrow(/Transport endpoint|not connected|aborted/)
    await eventually('the daemon ends', () => !lives(mount.pid))
    expect(isThere(mount.path)).toBe(false)
    await mount.end()
  })
})
