import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Slots } from '../../src/cache/slots.js'
import { CHUNK_BYTES } from '../../src/chunk/geometry.js'
import { LossyDisk } from '../fixtures/lossy-storage.js'

const filled = (byte: number, bytes = 4096) => Buffer.alloc(bytes, byte)

type Step =
  | { kind: 'take' }
  | { kind: 'free' | 'freeNow'; pick: number }
  | { kind: 'begin' }
  | { kind: 'finish' }
  | { kind: 'turn' }

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.constant({ kind: 'take' as const }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constantFrom('free' as const, 'freeNow' as const), pick: fc.nat() }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom({ kind: 'begin' as const }, { kind: 'finish' as const }, { kind: 'turn' as const }),
  },
)

describe('slots', () => {
  test('are lowest first, and come back only after the checkpoint that lets go of them', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 200 }), async steps => {
        const disk = new LossyDisk()
        const slots = Slots.open(disk.storage)
        const used = new Set<number>()
        const pending: number[] = []
        /** Punched in turns: free at the latest after `turn`. */
        let due = new Set<number>()
        let checkpoint: { token: number; count: number } | undefined
        for (const step of steps) {
          if (step.kind === 'take') {
            const slot = slots.take()
            const isFree = (slot: number) => !used.has(slot) && !pending.includes(slot)
            expect(isFree(slot)).toBe(true)
            for (let lower = 1; lower < slot; lower++) expect(isFree(lower) && !due.has(lower)).toBe(false)
            due.delete(slot)
            used.add(slot)
            slots.writeSync(slot, 0, filled(1))
          } else if (step.kind === 'free' || step.kind === 'freeNow') {
            const slot = [...used][step.pick % used.size]
            if (slot === undefined) continue
            slots[step.kind](slot)
            used.delete(slot)
            if (step.kind === 'free') pending.push(slot)
          } else if (step.kind === 'begin') checkpoint = { token: slots.beginCheckpoint(), count: pending.length }
          else if (step.kind === 'finish' && checkpoint) {
            void slots.finishCheckpoint(checkpoint.token)
            due = new Set([...due, ...pending.splice(0, checkpoint.count)])
            checkpoint = undefined
          } else if (step.kind === 'turn') {
            await slots.finishCheckpoint(0)
            due = new Set()
          }
          expect(slots.usedSlots).toBeLessThanOrEqual(used.size + pending.length + due.size)
          expect(slots.usedSlots).toBeGreaterThanOrEqual(used.size + pending.length)
          expect(slots.pendingSlots).toBeGreaterThanOrEqual(pending.length)
        }
        await slots.finishCheckpoint(slots.beginCheckpoint())
        expect(slots.usedSlots).toBe(used.size)
        expect(slots.pendingSlots).toBe(0)
        const data = disk.contents('data')
        for (let slot = 1; slot <= slots.slotsMax; slot++) expect(data[slot * CHUNK_BYTES]).toBe(used.has(slot) ? 1 : 0)
      }),
      { numRuns: 60 },
    )
  })

  test('a checkpoint that failed is covered by the next one', async () => {
    const slots = Slots.open(new LossyDisk().storage)
    const [a, b, c] = [slots.take(), slots.take(), slots.take()]
    slots.free(b)
    slots.beginCheckpoint()
    slots.free(a)
    const token = slots.beginCheckpoint()
    slots.free(c)
    await slots.finishCheckpoint(token)
    expect([slots.take(), slots.take(), slots.take()]).toEqual([a, b, 4])
  })

  test('an older token after a newer one changes nothing', async () => {
    const slots = Slots.open(new LossyDisk().storage)
    const slot = slots.take()
    const older = slots.beginCheckpoint()
    slots.free(slot)
    await slots.finishCheckpoint(slots.beginCheckpoint())
    await slots.finishCheckpoint(older)
    expect(slots.take()).toBe(slot)
    expect(slots.pendingSlots).toBe(0)
  })

  test('as many bytes as may stay warm have no hole, until they are used again or the disk wants them', async () => {
    let punches = 0
    const disk = new LossyDisk({ before: operation => void (operation === 'punch' && punches++) })
    const slots = Slots.open(disk.storage, { warmBytesMax: 3 * 4096 })
    const taken = [slots.take(), slots.take(), slots.take(), slots.take()]
    slots.free(taken[0], 2)
    slots.free(taken[2], 2)
    slots.free(taken[3], 1)
    await slots.finishCheckpoint(slots.beginCheckpoint())
    expect(punches).toBe(1)
    expect(slots.usedSlots).toBe(1)
    expect(slots.pendingSlots).toBe(0)
    // Warm or not, the lowest is taken; what is warm no more makes room for others.
    expect(slots.take()).toBe(taken[0])
    slots.free(taken[0], 2)
    await slots.finishCheckpoint(slots.beginCheckpoint())
    expect(punches).toBe(1)
    await slots.trim()
    expect(punches).toBe(3)
    expect(slots.usedSlots).toBe(1)
    await slots.trim()
    expect(punches).toBe(3)
  })

  test('by the hundred thousand, neighbours are one hole of up to 32, and others have their turn', async () => {
    let punches = 0
    const disk = new LossyDisk({ before: operation => void (operation === 'punch' && punches++) })
    const slots = Slots.open(disk.storage)
    for (let i = 0; i < 100_000; i++) slots.take()
    for (let slot = 100_000; slot > 0; slot--) if (slot % 1000 !== 0) slots.free(slot)
    expect(slots.pendingSlots).toBe(99_900)
    let turns = 0
    const count = () => {
      turns++
      counting = setImmediate(count)
    }
    let counting = setImmediate(count)
    await slots.finishCheckpoint(slots.beginCheckpoint())
    clearImmediate(counting)
    expect(punches).toBeLessThan(100_000 / 32 + 2 * 100)
    expect(turns).toBeGreaterThanOrEqual(100_000 / 32 - 100)
    expect(slots.usedSlots).toBe(100)
    expect(slots.take()).toBe(1)
  })

  test('those of the database are not taken; the rest of them are', () => {
    const disk = new LossyDisk()
    const slots = Slots.open(disk.storage)
    for (const slot of [1, 2, 3, 5, 5, 4000]) slots.markUsed(slot)
    expect([slots.take(), slots.take()]).toEqual([4, 6])
    expect(slots.usedSlots).toBe(7)
    expect(slots.slotsMax).toBe(4000)
    for (const slot of [0, -1, 1.5, 2 ** 40])
      expect(() => slots.markUsed(slot)).toThrow(expect.objectContaining({ code: 'BAD_FORMAT' }))
  })

  test('what a crash left in free ones is given back at the start', async () => {
    const disk = new LossyDisk()
    const before = Slots.open(disk.storage)
    for (let i = 1; i <= 100; i++) before.writeSync(before.take(), 4096, filled(i))
    disk.restart()
    const slots = Slots.open(disk.storage)
    for (const slot of [2, 3, 40, 64, 65]) slots.markUsed(slot)
    const reclaimed = slots.reclaim()
    expect(slots.take()).toBe(66)
    await reclaimed
    expect(slots.usedSlots).toBe(6)
    expect(slots.take()).toBe(1)
    const data = disk.contents('data')
    for (let slot = 1; slot <= 100; slot++)
      expect(data[slot * CHUNK_BYTES + 4096]).toBe([2, 3, 40, 64, 65].includes(slot) ? slot : 0)
  })

  test('have a limit', () => {
    const slots = Slots.open(new LossyDisk().storage, { bytesMax: 4 * CHUNK_BYTES })
    expect([slots.take(), slots.take(), slots.take()]).toEqual([1, 2, 3])
    expect(() => slots.take()).toThrow(expect.objectContaining({ code: 'NO_SPACE' }))
    slots.freeNow(2)
    expect(slots.take()).toBe(2)
  })
})

describe('the data file', () => {
  test('keeps what is written into a slot apart from its neighbours', async () => {
    const disk = new LossyDisk()
    const slots = Slots.open(disk.storage)
    const [a, b] = [slots.take(), slots.take()]
    slots.writeSync(a, 0, filled(1, CHUNK_BYTES))
    await slots.write(b, 4096, filled(2))
    slots.punch(a, 8192, 4096)
    await slots.sync()
    disk.crash()
    const again = Slots.open(disk.storage)
    const into = Buffer.alloc(CHUNK_BYTES)
    await again.read(a, 0, into)
    expect(into.equals(Buffer.concat([filled(1, 8192), filled(0), filled(1, CHUNK_BYTES - 12288)]))).toBe(true)
    again.readSync(b, 4096, into.subarray(0, 4096))
    expect(into.subarray(0, 4096).equals(filled(2))).toBe(true)
    expect(again.readNow(b, 8192, into.subarray(0, 4096))).toBe(4096)
    expect(into[0]).toBe(0)
    expect(() => again.writeSync(a, CHUNK_BYTES - 1, filled(1, 2))).toThrow('within a slot')
    expect(() => again.readSync(0, 0, into)).toThrow('within a slot')
  })

  test('is synced only when something was written', async () => {
    const disk = new LossyDisk()
    const slots = Slots.open(disk.storage)
    await slots.sync()
    const before = disk.syncs
    await slots.sync()
    slots.syncSync()
    expect(disk.syncs).toBe(before)
    expect(slots.dirtySinceSync).toBe(false)
    slots.writeSync(slots.take(), 0, filled(1))
    expect(slots.dirtySinceSync).toBe(true)
    const syncs = Promise.all([slots.sync(), slots.sync(), slots.sync()])
    slots.writeSync(slots.take(), 0, filled(2))
    const later = slots.sync()
    await syncs
    await later
    expect(disk.syncs).toBe(before + 2)
    disk.crash()
    expect(disk.contents('data')[2 * CHUNK_BYTES]).toBe(2)
  })

  test('whoever asks while a sync of the same data runs waits for it', async () => {
    const disk = new LossyDisk()
    const slots = Slots.open(disk.storage)
    slots.writeSync(slots.take(), 0, filled(1))
    let first = false
    void slots.sync().then(() => {
      first = true
    })
    await slots.sync()
    expect(first).toBe(true)
  })

  test('after a failed sync nothing is durable any more, ever', async () => {
    let fail = false
    const before = (operation: string) => {
      if (fail && operation === 'sync') throw Object.assign(new Error('EIO'), { code: 'EIO' })
    }
    const slots = Slots.open(new LossyDisk({ before }).storage)
    fail = true
    await expect(slots.sync()).rejects.toMatchObject({ code: 'IO' })
    fail = false
    await expect(slots.sync()).rejects.toMatchObject({ code: 'IO' })
    expect(() => slots.syncSync()).toThrow(expect.objectContaining({ code: 'IO' }))
  })

  test('of another format is refused', async () => {
    const disk = new LossyDisk()
    await Slots.open(disk.storage).sync()
    const refusal = (change: (data: Buffer) => void) => {
      const other = disk.clone()
      change(other.contents('data'))
      return expect(() => Slots.open(other.storage))
    }
    refusal(() => {}).not.toThrow()
    refusal(data => data.writeUInt16LE(2, 8)).toThrow(expect.objectContaining({ code: 'TOO_NEW' }))
    refusal(data => data.writeUInt32LE(1, 12)).toThrow(expect.objectContaining({ code: 'TOO_NEW' }))
    refusal(data => data.write('something')).toThrow(expect.objectContaining({ code: 'BAD_FORMAT' }))
    refusal(data => data.writeUInt32LE(65536, 16)).toThrow(expect.objectContaining({ code: 'BAD_FORMAT' }))
  })
})
