// The life of a daemon: requests, signals, umount(8), and another daemon that wants its cache directory.
import { describe, expect, test } from '@jest/globals'
import { deferred, sleep } from '../../src/base/async.js'
import { onLog } from '../../src/base/log.js'
import { Daemon } from '../../src/daemon.js'
import { busy, FakeParts } from '../fixtures/mount-parts.js'

const context = () => ({ progress: () => {}, signal: new AbortController().signal })
const done = { unsent: null, handedOver: null }

const start = () => {
  const parts = new FakeParts()
  const daemon = new Daemon(parts.tree)
  daemon.ending.catch(() => {})
  return { parts, daemon }
}

test('a journal that cannot be replayed is how it ends, and nothing passes for sent', async () => {
  const { parts, daemon } = start()
  parts.replayed = Promise.reject(new Error('cannot be read'))
  parts.kernelLetsGo()
  await expect(daemon.ending).rejects.toMatchObject({ code: 'IO', message: expect.stringMatching(/cannot be read/) })
  expect(parts.calls).not.toContain('sync')
})

describe('requests', () => {
  test('are passed on to the mount', async () => {
    const { daemon } = start()
    expect(await daemon.handle({ do: 'status' }, context())).toMatchObject({
      mountpoint: '/nowhere/mnt',
      lag: { kernelBytes: 8 },
    })
    expect(await daemon.handle({ do: 'sync' }, context())).toBeUndefined()
    expect(await daemon.handle({ do: 'pull', path: 'a' }, context())).toEqual({ files: 1, bytes: 2 })
    expect(await daemon.handle({ do: 'evict', path: 'a' }, context())).toEqual({ files: 3, bytes: 4 })
    expect(await daemon.handle({ do: 'refresh', path: '' }, context())).toEqual({ entries: 5, changed: 6 })
    expect(await daemon.handle({ do: 'conflicts' }, context())).toEqual([])
  })

  test('umount ends it', async () => {
    const { daemon } = start()
    expect(await daemon.handle({ do: 'umount', stalledMsMax: 1000 }, context())).toBeNull()
    expect(await daemon.ending).toEqual(done)
  })

  test('two at once: the second umount is told', async () => {
    const { parts, daemon } = start()
    const hold = deferred()
    parts.syncing = () => hold.promise
    const first = daemon.handle({ do: 'umount', stalledMsMax: 1000 }, context())
    await expect(daemon.handle({ do: 'umount', stalledMsMax: 1000 }, context())).rejects.toMatchObject({ code: 'BUSY' })
    hold.resolve()
    expect(await first).toBeNull()
  })

  test('umount whose client went away leaves it serving', async () => {
    const { parts, daemon } = start()
    parts.syncing = () => deferred().promise
    const client = new AbortController()
    const asked = daemon.handle({ do: 'umount', stalledMsMax: 1000 }, { ...context(), signal: client.signal })
    client.abort()
    await expect(asked).rejects.toMatchObject({ code: 'ABORTED' })
    expect(parts.tree.mounted).toBe(true)
    parts.syncing = async () => {}
    expect(await daemon.handle({ do: 'umount', stalledMsMax: 1000 }, context())).toBeNull()
  })
})

describe('signals', () => {
  test('the first drains and unmounts', async () => {
    const { parts, daemon } = start()
    void daemon.signal()
    expect(await daemon.ending).toEqual(done)
    expect(parts.calls).toEqual(['sync', 'flush kernel', 'flush kernel', 'unmount', 'sync', 'cache closed', 'release'])
  })

  test('the second skips the drain', async () => {
    const { parts, daemon } = start()
    parts.status.lag = { bytes: 1, operations: 1, ageMs: 1, kernelBytes: 0 }
    parts.syncing = () => deferred().promise
    void daemon.signal()
    await sleep(10)
    void daemon.signal()
    expect(await daemon.ending).toMatchObject({ unsent: { operations: 1 } })
    expect(parts.calls.at(-1)).toBe('release')
  })

  test('in use: the first is refused, another soon after takes it away', async () => {
    const { parts, daemon } = start()
    parts.onUnmount = async lazy => {
      if (!lazy) throw busy()
    }
    const said: string[] = []
    const stop = onLog(({ message }) => said.push(message))
    await daemon.signal()
    stop()
    expect(said).toEqual([expect.stringMatching(/not unmounted: in use.*once more takes it away/)])
    expect(parts.tree.mounted).toBe(true)
    await daemon.signal()
    expect(await daemon.ending).toEqual(done)
    expect(parts.calls).toContain('unmount lazily')
  })

  test('while somebody else unmounts: it is left to them, and one more skips the drain', async () => {
    const { parts, daemon } = start()
    parts.syncing = () => deferred().promise
    const asked = daemon.handle({ do: 'umount', stalledMsMax: 60_000 }, context())
    await sleep(10)
    void daemon.signal()
    await sleep(10)
    expect(parts.calls).not.toContain('unmount')
    void daemon.signal()
    expect(await asked).toBeNull()
  })
})

describe('after umount(8)', () => {
  test('it goes on sending, then ends', async () => {
    const { parts, daemon } = start()
    const hold = deferred()
    parts.syncing = () => hold.promise
    parts.kernelLetsGo()
    await sleep(10)
    expect(parts.tree.status().state).toBe('draining')
    hold.resolve()
    expect(await daemon.ending).toEqual(done)
    expect(parts.calls).toEqual(['sync', 'cache closed', 'release'])
  })

  test('umount waits for that, with its own patience', async () => {
    const { parts, daemon } = start()
    parts.status.lag = { bytes: 1, operations: 1, ageMs: 1, kernelBytes: 0 }
    parts.syncing = () => deferred().promise
    parts.kernelLetsGo()
    await sleep(10)
    expect(await daemon.handle({ do: 'umount', stalledMsMax: 50 }, context())).toMatchObject({ operations: 1 })
    expect(await daemon.ending).toMatchObject({ unsent: { operations: 1 } })
  })

  test('what cannot be sent at all ends it, with what is left', async () => {
    const { parts, daemon } = start()
    parts.status.lag = { bytes: 1, operations: 1, ageMs: 1, kernelBytes: 0 }
    parts.syncing = () => Promise.reject(new Error('lost'))
    parts.kernelLetsGo()
    expect(await daemon.ending).toMatchObject({ unsent: { operations: 1 } })
  })
})

describe('another daemon', () => {
  test('does not get what is mounted', async () => {
    const { daemon } = start()
    await expect(daemon.handle({ do: 'handover' }, context())).rejects.toMatchObject({
      code: 'BUSY',
      message: expect.stringContaining('is mounted'),
    })
  })

  test('gets at once what is only drained', async () => {
    const { parts, daemon } = start()
    parts.syncing = () => deferred().promise
    parts.kernelLetsGo()
    await sleep(10)
    await daemon.handle({ do: 'handover' }, context())
    expect(await daemon.ending).toEqual({ unsent: null, handedOver: 'journal' })
    expect(parts.calls).toEqual(['sync', 'cache closed', 'release'])
  })

  test('gets it also when umount(8) has just returned', async () => {
    const { parts, daemon } = start()
    // Out of sight, but the end of the connection has not been seen yet.
    Object.defineProperty(parts.tree, 'hidden', { get: () => true })
    const asked = daemon.handle({ do: 'handover' }, context())
    setTimeout(() => parts.kernelLetsGo(), 50)
    await asked
    expect(await daemon.ending).toMatchObject({ unsent: null })
  })

  test('does not get what was detached and is still used', async () => {
    const { parts, daemon } = start()
    Object.defineProperty(parts.tree, 'hidden', { get: () => true })
    await expect(daemon.handle({ do: 'handover' }, context())).rejects.toMatchObject({
      message: expect.stringContaining('still use'),
    })
  }, 10_000)
})
