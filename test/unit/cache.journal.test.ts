import { describe, expect, test } from '@jest/globals'
import { isFerryError } from '../../src/base/errors.js'
import { type Random, random } from '../../src/base/random.js'
import { Journal, type ReplayResult } from '../../src/cache/journal.js'
import { Crashed, LossyDisk } from '../fixtures/lossy-storage.js'

const SEGMENT_BYTES = 16 * 1024
const options = { segmentBytes: SEGMENT_BYTES, spare: 2 }
const HEADER_BYTES = 4096
const RECORD_HEADER_BYTES = 24

interface Replayed {
  journal: Journal
  result: ReplayResult
  bodies: Buffer[]
}

function reopen(disk: LossyDisk, afterLsn = 0): Replayed {
  const journal = Journal.open(disk.storage, options)
  const bodies: Buffer[] = []
  const result = journal.replay(afterLsn, (lsn, kind, body) => {
    expect(lsn).toBe(afterLsn + bodies.length + 1)
    expect(kind).toBe(kindOf(lsn))
    bodies.push(Buffer.from(body))
    return true
  })
  expect(result.lastLsn).toBe(afterLsn + bodies.length)
  expect(journal.headLsn).toBe(result.lastLsn)
  return { journal, result, bodies }
}

const kindOf = (lsn: number) => (lsn % 255) + 1
const put = (journal: Journal, body: Uint8Array) =>
  journal.append(kindOf(journal.headLsn + 1), [body.subarray(0, 5), body.subarray(5)], body.length)
const filled = (byte: number, bytes = 100) => Buffer.alloc(bytes, byte)

async function withRecords(count: number, bytes = 100, disk = new LossyDisk()) {
  const { journal } = reopen(disk)
  for (let i = 1; i <= count; i++) put(journal, filled(i, bytes))
  await journal.sync()
  return { disk, journal }
}

const expected = (from: number, to: number, bytes = 100) =>
  Array.from({ length: to - from + 1 }, (_, i) => filled(from + i, bytes))

const segments = (disk: LossyDisk) => disk.list().filter(name => /^journal-\d+$/.test(name))

// --- what may be lost, and what may not --------------------------------------------------------------------------------

/** A journal and what it must hold: a program of random steps, and the checks after each crash. */
class World {
  readonly disk: LossyDisk
  journal!: Journal
  /** bodies[lsn - 1]: of all that was appended and is not known to be lost. */
  bodies: Buffer[] = []
  /** A record whose append was cut short: it may be there. */
  inFlight: Buffer | undefined
  durableLsn = 0
  checkpointLsn = 0

  constructor(
    readonly draw: Random,
    unitBytes: 512 | 4096,
  ) {
    this.disk = new LossyDisk({ unitBytes })
    this.start('kill')
  }

  start(after: 'kill' | 'power' | 'close') {
    const { journal, result, bodies } = reopen(this.disk, this.checkpointLsn)
    expect(result.damaged).toBeUndefined()
    const known = [...this.bodies, ...(this.inFlight ? [this.inFlight] : [])]
    expect(result.lastLsn).toBeLessThanOrEqual(Math.max(known.length, this.checkpointLsn))
    expect(result.lastLsn).toBeGreaterThanOrEqual(after === 'power' ? this.durableLsn : this.bodies.length)
    bodies.forEach((body, i) => {
      if (!body.equals(known[this.checkpointLsn + i])) throw new Error(`record ${this.checkpointLsn + i + 1} differs`)
    })
    this.inFlight = undefined
    this.bodies = known.slice(0, result.lastLsn)
    this.journal = journal
  }

  append() {
    const length = this.draw.pick([0, 1, 7, 8, 30, 200, 1000, 4096, 5000, 9000])
    const body = Buffer.alloc(length, this.draw.below(256))
    if (length >= 8) body.writeDoubleLE(this.draw.next())
    this.inFlight = body
    expect(put(this.journal, body)).toBe(this.bodies.length + 1)
    this.inFlight = undefined
    this.bodies.push(body)
  }

  /** The promise of the sync, and nothing promised before it. */
  async sync() {
    const upto = this.draw.chance(0.2) ? this.draw.below(this.bodies.length + 1) : this.bodies.length
    await this.journal.sync(upto)
    this.durableLsn = Math.max(this.durableLsn, upto)
    expect(this.journal.durableLsn).toBeGreaterThanOrEqual(upto)
  }

  syncSync() {
    this.journal.syncSync()
    this.durableLsn = this.bodies.length
  }

  checkpoint() {
    this.checkpointLsn += this.draw.below(this.bodies.length - this.checkpointLsn + 1)
    this.durableLsn = Math.max(this.durableLsn, this.checkpointLsn)
    this.journal.release(this.checkpointLsn)
  }
}

/** Errors of a process that is gone are what is being tested; others are not. */
function unlessCrashed(error: unknown) {
  const cause = isFerryError(error) ? error.cause : error
  if (!(cause instanceof Crashed)) throw error
}

async function run(seed: number) {
  const draw = random(seed)
  const world = new World(draw, draw.pick([512, 4096]))
  const floating: Promise<void>[] = []
  for (let life = 0; life < 5; life++) {
    if (draw.chance(0.6)) world.disk.killAfter(draw.below(120), draw.pick([0, 0.3, 0.9, 1]))
    const steps = 10 + draw.below(60)
    try {
      for (let step = 0; step < steps; step++) {
        const dice = draw.next()
        if (dice < 0.6) world.append()
        else if (dice < 0.7) await world.sync()
        else if (dice < 0.8) floating.push(world.sync().catch(unlessCrashed))
        else if (dice < 0.85) world.syncSync()
        else if (dice < 0.95) world.checkpoint()
        else await new Promise(setImmediate)
      }
      if (draw.chance(0.3)) {
        await world.journal.close()
        world.durableLsn = world.bodies.length
      }
    } catch (error) {
      unlessCrashed(error)
    }
    const how = draw.pick(['kill', 'power'] as const)
    if (how === 'power') world.disk.crash(draw.below(2 ** 32))
    else world.disk.restart()
    await Promise.all(floating)
    world.start(how)
  }
}

describe('whatever happens, what is replayed is a prefix with everything that was synced', () => {
  const SEEDS = Number(process.env.JOURNAL_SEEDS ?? 60)
  const first = Number(process.env.JOURNAL_SEED ?? 1)
  test(`${SEEDS} random programs with kills and power failures`, async () => {
    for (let seed = first; seed < first + SEEDS; seed++) {
      try {
        await run(seed)
      } catch (error) {
        throw new Error(`JOURNAL_SEED=${seed} JOURNAL_SEEDS=1`, { cause: error })
      }
    }
  })

  /** Fills segments, syncs, checkpoints, recycles. */
  async function script(world: World) {
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 12; i++) world.append()
      await world.sync()
      for (let i = 0; i < 3; i++) world.append()
      world.checkpoint()
    }
  }

  test('killed before each single operation, or in the middle of it', async () => {
    for (let at = 0, died = true; died; at++) {
      for (const partly of [0, 0.5, 1]) {
        const world = new World(random(7), 4096)
        world.disk.killAfter(at, partly)
        await script(world).catch(unlessCrashed)
        died = world.disk.isDead
        world.disk.restart()
        world.start('kill')
      }
    }
  })

  test('power lost at each single operation', async () => {
    for (let at = 0, died = true; died; at++) {
      for (const seed of [undefined, 1, 2]) {
        const world = new World(random(7), 512)
        world.disk.killAfter(at, 0.5)
        await script(world).catch(unlessCrashed)
        died = world.disk.isDead
        world.disk.crash(seed)
        world.start('power')
        world.append()
        await world.sync()
        world.disk.crash(seed)
        world.start('power')
      }
    }
  })
})

describe('records that belong together', () => {
  const PART = 77
  const isPart = (kind: number) => kind === PART
  /** First bytes of what is replayed. */
  function replayed(disk: LossyDisk): number[] {
    const seen: number[] = []
    const journal = Journal.open(disk.storage, options)
    journal.replay(0, (_, __, body) => seen.push(body[0]) > 0, 0, isPart)
    return seen
  }
  /** 1; 2, 3 and 4 together, longer than a segment; 5. */
  async function script(disk: LossyDisk): Promise<void> {
    const journal = Journal.open(disk.storage, options)
    journal.replay(0, () => true, 0, isPart)
    journal.append(1, [filled(1)], 100)
    await journal.sync()
    journal.reserve(3 * 9_000, 3)
    for (const n of [2, 3, 4]) journal.append(n === 4 ? 1 : PART, [filled(n, 9_000)], 9_000)
    await journal.sync()
    journal.append(1, [filled(5)], 100)
    await journal.close()
  }

  test('are all there, or none of them, wherever it ends', async () => {
    const found = new Set<string>()
    for (let at = 0, died = true; died; at++) {
      for (const how of ['kill', 'torn', 1, 2, 3]) {
        const disk = new LossyDisk({ unitBytes: 512 })
        disk.killAfter(at, how === 'torn' ? 0.5 : 0)
        await script(disk).catch(unlessCrashed)
        died = disk.isDead
        if (typeof how === 'number') disk.crash(how)
        else disk.restart()
        found.add(replayed(disk).join())
        // What is appended then is found behind it.
        const journal = Journal.open(disk.storage, options)
        journal.replay(0, () => true, 0, isPart)
        journal.append(1, [filled(9)], 100)
        await journal.close()
        expect(replayed(disk).at(-1)).toBe(9)
      }
    }
    expect([...found].sort()).toEqual(['', '1', '1,2,3,4', '1,2,3,4,5'])
  })

  test('do not go into a segment that they are too large for', async () => {
    const { journal } = await withRecords(1)
    expect(() => journal.reserve(300 * 2 ** 20, 1)).toThrow(expect.objectContaining({ code: 'TOO_LARGE' }))
    expect(put(journal, filled(2))).toBe(2)
  })
})

test('a tail that is torn at any byte is cut off, and the journal goes on there', async () => {
  const { disk } = await withRecords(3)
  const [name] = segments(disk)
  const recordBytes = 128 // 24 + 100, aligned
  const start = HEADER_BYTES + 2 * recordBytes
  for (const garbage of [0, 0xff]) {
    for (let cut = 0; cut < RECORD_HEADER_BYTES + 100; cut++) {
      const torn = disk.clone()
      const bytes = torn.contents(name)
      bytes.fill(garbage, start + cut, start + recordBytes + RECORD_HEADER_BYTES)
      const first = reopen(torn)
      expect(first.bodies).toEqual(expected(1, 2))
      expect(first.result.damaged).toBeUndefined()
      put(first.journal, filled(9))
      expect(reopen(torn).bodies).toEqual([...expected(1, 2), filled(9)])
    }
  }
})

test('a recycled segment never gives back what it held before', async () => {
  const { disk, journal } = await withRecords(0)
  for (let round = 0; round < 40; round++) {
    for (let i = 0; i < 30; i++) put(journal, filled(round * 30 + i + 1, 1000))
    journal.release(journal.headLsn - 5)
    await journal.sync()
  }
  expect(segments(disk).length).toBeLessThanOrEqual(6)
  const { bodies } = reopen(disk.clone(), 1195)
  expect(bodies).toEqual(expected(1196, 1200, 1000))
  // And without the records of the segment in use, only with its header.
  const lastName = segments(disk).sort((a, b) => serialOf(disk, b) - serialOf(disk, a))[0]
  disk.contents(lastName).fill(0, HEADER_BYTES, HEADER_BYTES + 8)
  expect(reopen(disk, 1200).result).toMatchObject({ lastLsn: 1200, records: 0 })
})

const serialOf = (disk: LossyDisk, name: string) => disk.contents(name).readUInt32LE(32)

test('records of a history that did not happen stay away, whatever is checkpointed later', async () => {
  const { disk: before, journal } = await withRecords(3)
  for (const byte of [4, 5, 6]) put(journal, filled(byte))
  const disk = before.clone() // as if the disk had got all of it by itself
  disk.contents(segments(disk)[0])[HEADER_BYTES + 3 * 128 + 50] ^= 1
  const { journal: next, result } = reopen(disk)
  expect(result).toEqual({ lastLsn: 3, records: 3, discarded: 2 })
  put(next, filled(44))
  next.release(4)
  disk.crash()
  expect(reopen(disk, 4).result).toEqual({ lastLsn: 4, records: 0, discarded: 0 })
})

describe('damage to what was durable', () => {
  test('is found in the middle, at whatever byte of a record it is; the rest is set aside', async () => {
    const { disk } = await withRecords(300)
    const names = segments(disk).filter(name => serialOf(disk, name) > 0)
    expect(names.length).toBeGreaterThan(2)
    const at = HEADER_BYTES + 4 * 128
    for (let byte = 0; byte < RECORD_HEADER_BYTES + 100; byte++) {
      const damaged = disk.clone()
      const whole = Buffer.from(damaged.contents(names[0]))
      damaged.contents(names[0])[at + byte] ^= 1
      whole[at + byte] ^= 1
      const { result, bodies, journal } = reopen(damaged)
      expect(bodies).toEqual(expected(1, 4))
      expect(result.damaged).toMatchObject({ segment: names[0], at, lsn: 5, lost: 296 })
      expect(result.damaged?.setAside).toEqual(names.map(name => `${name}.damaged-1`))
      expect(damaged.contents(`${names[0]}.damaged-1`).equals(whole)).toBe(true)
      put(journal, filled(77))
      await journal.sync()
      damaged.crash()
      const again = reopen(damaged)
      expect(again.result.damaged).toBeUndefined()
      expect(again.bodies).toEqual([...expected(1, 4), filled(77)])
    }
  })

  test('is found in the last record too', async () => {
    const { disk } = await withRecords(3)
    disk.contents(segments(disk)[0])[HEADER_BYTES + 2 * 128 + 50] ^= 1
    expect(reopen(disk).result).toMatchObject({ lastLsn: 2, damaged: { lsn: 3, lost: 1 } })
  })

  test('is reported once', async () => {
    const { disk } = await withRecords(10)
    disk.contents(segments(disk)[0])[HEADER_BYTES + 2 * 128 + 50] ^= 1
    expect(reopen(disk).result.damaged).toMatchObject({ lsn: 3, lost: 8 })
    expect(reopen(disk).result).toEqual({ lastLsn: 2, records: 2, discarded: 0 })
  })

  test('does not matter in records that are not needed any more', async () => {
    const { disk } = await withRecords(20)
    disk.contents(segments(disk)[0])[HEADER_BYTES + 2 * 128 + 50] ^= 1
    const { result, bodies } = reopen(disk, 10)
    expect(result.damaged).toBeUndefined()
    expect(bodies).toEqual(expected(11, 20))
  })

  test('one copy of a segment header may be lost', async () => {
    const { disk } = await withRecords(20)
    disk.contents(segments(disk)[0]).fill(0xee, 0, 512)
    expect(reopen(disk).bodies).toEqual(expected(1, 20))
  })

  test('a segment whose header is gone is set aside, with those behind it', async () => {
    const { disk } = await withRecords(300)
    const [first, second, ...others] = segments(disk).filter(name => serialOf(disk, name) > 0)
    disk.contents(second).fill(0xee, 0, HEADER_BYTES)
    const { result, journal } = reopen(disk)
    expect(result.lastLsn).toBeGreaterThan(10)
    expect(result.damaged).toMatchObject({ lsn: result.lastLsn + 1, lost: 300 - result.lastLsn })
    expect(result.damaged?.setAside).toEqual(
      expect.arrayContaining([second, ...others].map(name => `${name}.damaged-1`)),
    )
    await journal.close()
    expect(reopen(disk).result).toMatchObject({ lastLsn: result.lastLsn, records: result.lastLsn })
    expect(first).toBeDefined()
  })

  test('a segment that is missing is noticed', async () => {
    const { disk } = await withRecords(300)
    const [first, second] = segments(disk).filter(name => serialOf(disk, name) > 0)
    disk.storage.remove(second)
    const { result } = reopen(disk)
    expect(result.damaged).toMatchObject({ lsn: result.lastLsn + 1, lost: 300 - result.lastLsn })
    disk.storage.remove(first)
    expect(reopen(disk, 300).result).toEqual({ lastLsn: 300, records: 0, discarded: 0 })
  })

  test('a crash while it is set aside loses nothing of the prefix', async () => {
    const { disk } = await withRecords(300)
    disk.contents(segments(disk)[0])[HEADER_BYTES + 4 * 128 + 50] ^= 1
    for (let at = 0, died = true; died; at++) {
      for (const seed of [undefined, 1, 2]) {
        const copy = disk.clone()
        copy.killAfter(at)
        try {
          reopen(copy)
        } catch (error) {
          unlessCrashed(error)
        }
        died = copy.isDead
        copy.crash(seed)
        expect(reopen(copy).bodies).toEqual(expected(1, 4))
      }
    }
  })
})

describe('a record that names data which is not there', () => {
  test('ends the replay, and does not come back', async () => {
    const { disk, journal } = await withRecords(3)
    put(journal, filled(4))
    put(journal, filled(5))
    disk.restart()
    const refusing = Journal.open(disk.storage, options)
    expect(refusing.replay(0, lsn => lsn < 4)).toMatchObject({ lastLsn: 3, discarded: 2 })
    disk.crash()
    expect(reopen(disk).bodies).toEqual(expected(1, 3))
  })

  test('is damage if it had been durable', async () => {
    const { disk } = await withRecords(5)
    const refusing = Journal.open(disk.storage, options)
    expect(refusing.replay(0, lsn => lsn < 4).damaged).toMatchObject({ lsn: 4, lost: 2 })
    expect(reopen(disk).bodies).toEqual(expected(1, 3))
  })
})

describe('group commit', () => {
  test('many who wait at once share two syncs', async () => {
    const { disk, journal } = await withRecords(1)
    await new Promise(resolve => setTimeout(resolve, 20)) // the spares are ready
    const before = disk.syncs
    await Promise.all(
      Array.from({ length: 50 }, async (_, i) => {
        put(journal, filled(i))
        await journal.sync()
      }),
    )
    expect(disk.syncs - before).toBeLessThanOrEqual(2)
    expect(journal.durableLsn).toBe(51)
  })

  test('what is durable costs nothing', async () => {
    const { disk, journal } = await withRecords(1)
    const before = disk.operations
    await journal.sync()
    journal.syncSync()
    expect(disk.operations).toBe(before)
  })

  test('nobody is told that something is durable which was appended after the sync began', async () => {
    const { disk, journal } = await withRecords(1)
    put(journal, filled(2))
    const first = journal.sync()
    put(journal, filled(3))
    let third = false
    const second = journal.sync().then(() => {
      third = true
    })
    await first
    expect(journal.durableLsn).toBe(2)
    expect(third).toBe(false)
    disk.crash()
    expect(reopen(disk).bodies).toEqual(expected(1, 2))
    await second.catch(unlessCrashed)
  })

  test('durability is not claimed beyond what was asked for', async () => {
    const { journal } = await withRecords(1)
    for (const byte of [2, 3, 4]) put(journal, filled(byte))
    await journal.sync(3)
    expect(journal.durableLsn).toBe(3)
  })

  test('after a failed sync nothing is durable any more, ever', async () => {
    let fail = false
    const disk = new LossyDisk({
      before: operation => {
        if (fail && operation === 'sync') throw Object.assign(new Error('EIO'), { code: 'EIO' })
      },
    })
    const { journal } = await withRecords(1, 100, disk)
    fail = true
    put(journal, filled(2))
    await expect(journal.sync()).rejects.toMatchObject({ code: 'IO' })
    fail = false
    await expect(journal.sync()).rejects.toMatchObject({ code: 'IO' })
    expect(() => put(journal, filled(3))).toThrow('input/output')
    expect(journal.durableLsn).toBe(1)
    await expect(journal.close()).rejects.toMatchObject({ code: 'IO' })
  })
})

describe('space', () => {
  test('an append that does not fit leaves the journal as it was', async () => {
    const disk = new LossyDisk({ bytesMax: 40 * 1024 })
    const { journal } = reopen(disk)
    let appended = 0
    expect(() => {
      for (; ; appended++) put(journal, filled(appended + 1, 1000))
    }).toThrow(expect.objectContaining({ code: 'NO_SPACE' }))
    expect(appended).toBeGreaterThan(10)
    expect(journal.headLsn).toBe(appended)
    journal.release(appended)
    put(journal, filled(200, 1000))
    expect(reopen(disk, appended).bodies).toEqual([filled(200, 1000)])
  })

  test('released segments become spares, and what is more than those goes', async () => {
    const { disk, journal } = await withRecords(1000)
    expect(journal.bytes).toBe(1000 * 128)
    expect(segments(disk).length).toBeGreaterThan(8)
    journal.release(990)
    expect(journal.bytes).toBeLessThan(20 * 128)
    expect(segments(disk).length).toBeLessThanOrEqual(5)
    journal.release(1000)
    expect(journal.bytes).toBe(0)
  })

  test('large records travel without being copied together, and have a segment of their own if need be', async () => {
    const disk = new LossyDisk()
    const { journal } = reopen(disk)
    const large = Buffer.alloc(1024 * 1024, 3)
    put(journal, filled(1))
    put(journal, large)
    put(journal, filled(2))
    await journal.sync()
    disk.crash()
    const { bodies, journal: next } = reopen(disk)
    expect(bodies.map(body => body.length)).toEqual([100, large.length, 100])
    expect(bodies[1].equals(large)).toBe(true)
    expect(() => next.append(1, [large, large], 2 * large.length)).toThrow('at most 1 MiB')
  })
})

describe('opening', () => {
  test('of an empty directory writes nothing', () => {
    const disk = new LossyDisk()
    reopen(disk)
    expect(disk.operations).toBe(0)
  })

  test('after an orderly close reads on where it ended', async () => {
    const { disk, journal } = await withRecords(10)
    await journal.close()
    await journal.close()
    disk.restart()
    const { journal: next, bodies } = reopen(disk)
    expect(bodies).toEqual(expected(1, 10))
    expect(next.durableLsn).toBe(10)
    put(next, filled(11))
    await next.close()
    expect(reopen(disk, 9).bodies).toEqual(expected(10, 11))
  })

  test('a database that is ahead of the journal is believed', async () => {
    const { disk } = await withRecords(3)
    const { journal } = reopen(disk, 500)
    expect(put(journal, filled(1))).toBe(501)
    expect(journal.durableLsn).toBe(500)
    await journal.sync()
    disk.crash()
    expect(reopen(disk, 500).result).toMatchObject({ lastLsn: 501, records: 1 })
  })

  test('a newer format is refused, a newer minor is not', async () => {
    const { disk } = await withRecords(1)
    const [name] = segments(disk)
    const newer = disk.clone()
    for (const at of [0, 2048]) newer.contents(name).writeUInt16LE(2, at + 8)
    expect(() => Journal.open(newer.storage)).toThrow(expect.objectContaining({ code: 'TOO_NEW' }))
    for (const at of [0, 2048]) disk.contents(name).writeUInt16LE(2, at + 8)
    disk.contents(name).writeUInt16LE(1, 8)
    expect(reopen(disk).result.records).toBe(1)
  })

  test('other files of the directory are left alone', async () => {
    const disk = new LossyDisk()
    disk.storage.open('journal-000001.damaged-1', { bytes: 10 })
    disk.storage.open('data', { bytes: 10 })
    const { journal } = reopen(disk)
    put(journal, filled(1))
    await journal.close()
    expect(disk.list()).toEqual(expect.arrayContaining(['journal-000001.damaged-1', 'data']))
  })
})
