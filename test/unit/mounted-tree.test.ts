// How a mounted tree ends: drained or not, never silently.
import { describe, expect, test } from '@jest/globals'
import { deferred } from '../../src/base/async.js'
import { FerryError } from '../../src/base/errors.js'
import { busy, FakeParts } from '../fixtures/mount-parts.js'

const unsentLag = { bytes: 10, operations: 2, ageMs: 5, kernelBytes: 0 }

describe('the status', () => {
  test('has the fields of the contract', async () => {
    const { tree } = new FakeParts()
    await tree.measure()
    expect(tree.status()).toMatchObject({
      mountpoint: '/nowhere/mnt',
      pid: process.pid,
      readOnly: false,
      contract: 'remote',
      lag: { bytes: 0, operations: 0, ageMs: 0, kernelBytes: 8 },
      cache: { bytes: 1, bytesMax: 2 },
      memory: { bytes: 3, bytesMax: 4 },
      reads: { hits: 9, misses: 1 },
      remote: { url: 'mem:', requests: 5, bytesRead: 6, bytesWritten: 7, errors: 0, reachable: true },
      lease: { holder: 'here:1', epoch: 7 },
      conflicts: [],
      quarantine: [],
    })
    expect(() => JSON.stringify(tree.status())).not.toThrow()
  })

  test('says when it only goes on sending', async () => {
    const parts = new FakeParts()
    expect(parts.tree.status().state).toBe('mounted')
    parts.kernelLetsGo()
    await parts.tree.ended
    expect(parts.tree.status().state).toBe('draining')
    await parts.tree.measure()
    expect(parts.tree.status().lag.kernelBytes).toBe(0)
  })
})

describe('sync', () => {
  test('has the kernel hand over its pages first, while there is one', async () => {
    const parts = new FakeParts()
    await parts.tree.sync()
    parts.kernelLetsGo()
    await parts.tree.ended
    await parts.tree.sync()
    expect(parts.calls).toEqual(['sync', 'flush kernel', 'sync'])
  })

  test('can be given up though the engine does not hear of it', async () => {
    const parts = new FakeParts()
    parts.syncing = () => deferred().promise
    const stop = new AbortController()
    setTimeout(() => stop.abort(), 20)
    await expect(parts.tree.sync({ signal: stop.signal })).rejects.toMatchObject({ code: 'ABORTED' })
  })
})

describe('unmount', () => {
  test('drains, unmounts, sends what the kernel still had, and closes', async () => {
    const parts = new FakeParts()
    expect(await parts.tree.unmount()).toBeNull()
    expect(parts.calls).toEqual(['sync', 'flush kernel', 'flush kernel', 'unmount', 'sync', 'cache closed', 'release'])
  })

  test('without progress unmounts anyway, keeps the journal, and lists what is left', async () => {
    const parts = new FakeParts()
    parts.status.lag = unsentLag
    parts.unsentPaths = ['a', 'b']
    parts.syncing = () => deferred().promise
    const unsent = await parts.tree.unmount({ stalledMsMax: 50 })
    expect(unsent).toMatchObject({
      bytes: 10,
      operations: 2,
      paths: ['a', 'b'],
      reason: expect.stringContaining('nothing got through'),
    })
    expect(parts.calls).toEqual(['sync', 'flush kernel', 'flush kernel', 'unmount', 'cache closed', 'release'])
    expect(parts.left).toEqual(unsentLag)
  })

  test('of a mount that is in use is refused, and it stays as it is', async () => {
    const parts = new FakeParts()
    parts.onUnmount = async () => {
      throw busy()
    }
    await expect(parts.tree.unmount()).rejects.toMatchObject({ code: 'BUSY' })
    expect(parts.calls).not.toContain('cache closed')
    expect(parts.tree.mounted).toBe(true)
    expect(parts.lettingIn).toBe(false)
    parts.onUnmount = async () => {}
    expect(await parts.tree.unmount()).toBeNull()
    expect(parts.lettingIn).toBe(true)
  })

  test('waits for what uses it and is nobody that could be named', async () => {
    const parts = new FakeParts()
    let times = 0
    parts.onUnmount = async () => {
      if (times++ < 3) throw busy()
    }
    expect(await parts.tree.unmount({ evenIfBusy: true })).toBeNull()
    expect(parts.calls.filter(call => call.startsWith('unmount'))).toEqual(Array(4).fill('unmount'))
  })

  test('of a mount that is in use, by force: hidden, with what the kernel had', async () => {
    const parts = new FakeParts()
    parts.onUnmount = async lazy => {
      if (!lazy) throw busy()
    }
    expect(await parts.tree.unmount({ evenIfBusy: true, stalledMsMax: 0 })).toBeNull()
    expect([...new Set(parts.calls)]).toEqual(['flush kernel', 'unmount', 'unmount lazily', 'cache closed', 'release'])
  })

  test('can be given up until it is unmounted', async () => {
    const parts = new FakeParts()
    parts.syncing = () => deferred().promise
    const stop = new AbortController()
    setTimeout(() => stop.abort(), 20)
    await expect(parts.tree.unmount({ signal: stop.signal })).rejects.toMatchObject({ code: 'ABORTED' })
    expect(parts.calls).toEqual(['sync', 'flush kernel'])
    expect(parts.tree.mounted).toBe(true)
  })

  test('of what somebody else unmounted meanwhile is fine', async () => {
    const parts = new FakeParts()
    parts.onUnmount = async () => {
      parts.kernelLetsGo()
      throw new FerryError('INVALID', { detail: 'umount2' })
    }
    expect(await parts.tree.unmount()).toBeNull()
  })

  test('that fails though it is still there is not waited for', async () => {
    const parts = new FakeParts()
    parts.onUnmount = async () => {
      throw new FerryError('NOT_FOUND', { detail: 'fusermount3: failed to open /etc/mtab' })
    }
    await expect(parts.tree.unmount()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(parts.tree.mounted).toBe(true)
  })
})

describe('close', () => {
  test('does not drain; twice is fine', async () => {
    const parts = new FakeParts()
    await Promise.all([parts.tree.close(), parts.tree.close()])
    await parts.tree.close()
    expect(parts.calls).toEqual(['flush kernel', 'unmount', 'cache closed', 'release'])
  })

  test('is what `await using` does', async () => {
    const parts = new FakeParts()
    await parts.tree[Symbol.asyncDispose]()
    expect(parts.calls).toContain('release')
  })

  test('that was refused can be tried again', async () => {
    const parts = new FakeParts()
    parts.onUnmount = async () => {
      throw busy()
    }
    await expect(parts.tree.close()).rejects.toMatchObject({ code: 'BUSY' })
    parts.onUnmount = async () => {}
    await parts.tree.close()
    expect(parts.calls.at(-1)).toBe('release')
  })
})
