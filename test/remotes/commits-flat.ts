// The same suite for stores and blobs, whose state is a flat table of objects or one run of bytes.
import { crc32 } from 'node:zlib'
import { describe, expect } from '@jest/globals'
import type { FerryError } from '../../src/base/errors.js'
import { type Random, random as randomOf } from '../../src/base/random.js'
import type { Blob, BlobChange } from '../../src/remote/blob.js'
import type { ChunkGeometry } from '../../src/remote/chunk-runs.js'
import { ChunkStore } from '../../src/remote/chunk-store.js'
import type { Claim, Commits } from '../../src/remote/commits.js'
import { type RollforwardOptions, rollforward } from '../../src/remote/rollforward.js'
import { rollforwardChunks } from '../../src/remote/rollforward-chunks.js'
import type { Store, StoreChange } from '../../src/remote/store.js'
import { claimOf, seeded } from './commits.js'
import { Crashed, type Fault, faults } from './commits-faults.js'

/** What can be seen of it, as lines. */
type Picture = string[]
type State = Map<string, Uint8Array>
interface Staged {
  id: string
  at: number
  bytes: Uint8Array
}
interface Net<Change> {
  changes: Change[]
  staged: Staged[]
}

/** An empty remote, and where its chain is. */
export interface Flat<R> {
  remote: R
  /** Where what is staged must be gone in the end. */
  hidden: Store
  hiddenPrefix: string
  dispose(): Promise<void>
}

interface Kind<R, Change> {
  open(): Promise<Flat<R>>
  commits(flat: Flat<R>, fault: Fault, options: Partial<RollforwardOptions>): R & Commits<Change>
  look(remote: R): Promise<Picture>
  picture(state: State): Picture
  /** Changes the state, and says how. */
  next(state: State, random: Random): Net<Change>
  empty(): State
  /** Steps of a former holder that nothing can stop once they have begun. */
  unfenced(step: string, state: State, remote: R): boolean
}

export const storeKind = (open: () => Promise<Flat<Store>>): Kind<Store, StoreChange> => ({
  open,
  commits: ({ remote }, fault, options) => rollforward(fault(remote), options),
  async look(store) {
    const names: string[] = []
    for (let after: string | undefined; ; ) {
      const page = await store.list('', after)
      if (page.length === 0) break
      names.push(...page.map(({ name }) => name))
      after = names.at(-1)
    }
    expect(names).toEqual([...names].sort())
    return Promise.all(
      names.map(async name => {
        const info = (await store.head(name))!
        const bytes = await store.get(name, { at: 0, length: 1000, version: info.version })
        expect([name, bytes.length]).toEqual([name, info.size])
        expect(Buffer.from(await store.get(name, { at: 3, length: 5 }))).toEqual(Buffer.from(bytes.slice(3, 8)))
        expect(Buffer.from(await store.get(name))).toEqual(Buffer.from(bytes))
        return `${name} ${Buffer.from(bytes).toString('hex')}`
      }),
    )
  },
  picture: state =>
    [...state]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, bytes]) => `${name} ${Buffer.from(bytes).toString('hex')}`),
  empty: () => new Map(),
  // What was not there before, and was made and removed since, is not there as before: no condition can tell.
  unfenced: (step, state, { capabilities }) => {
    const [, name] = /^(?:put|remove) ((?!\.pageferry\/).*)$/.exec(step) ?? []
    if (name === undefined) return false
    return !capabilities.conditionalReplace || (step.startsWith('put ') && !state.has(name))
  },
  next(state, random) {
    const changes = new Map<string, StoreChange>()
    const staged: Staged[] = []
    for (let i = 0; i < 6; i++) {
      const name = random.pick(['a', 'b', 'c/d', 'c/e', 'f'])
      if (random.chance(0.3)) {
        state.delete(name)
        changes.set(name, { do: 'remove', name })
        continue
      }
      const bytes = random.bytes(random.below(100))
      state.set(name, bytes)
      if (random.chance(0.5)) changes.set(name, { do: 'put', name, bytes })
      else {
        const id = `s${i}`
        const half = Math.floor(bytes.length / 2)
        staged.push({ id, at: half, bytes: bytes.slice(half) }, { id, at: 0, bytes: bytes.slice(0, half) })
        changes.set(name, { do: 'put', name, staged: id, size: bytes.length })
      }
    }
    return { changes: [...changes.values()], staged }
  },
})

const BLOB_BYTES = 64 * 1024
const PAGE = 4096

export const blobKind = (open: () => Promise<Flat<Blob>>): Kind<Blob, BlobChange> => ({
  open,
  commits: ({ remote, hidden }, fault, options) =>
    rollforward(fault(remote), { ...options, commitStore: fault(hidden) }),
  async look(blob) {
    const bytes = Buffer.from(await blob.read(0, BLOB_BYTES))
    const part = await blob.read(PAGE - 100, 3 * PAGE)
    expect(Buffer.compare(part, bytes.subarray(PAGE - 100, 4 * PAGE - 100))).toBe(0)
    return pages(bytes)
  },
  picture: state => pages(Buffer.from(state.get('')!)),
  empty: () => new Map([['', new Uint8Array(BLOB_BYTES)]]),
  unfenced: step => /^(write|trim)/.test(step),
  next(state, random) {
    const bytes = state.get('')!.slice()
    state.set('', bytes)
    const changes: BlobChange[] = []
    const staged: Staged[] = []
    for (let page = random.below(3); page < BLOB_BYTES / PAGE; page += 1 + random.below(4)) {
      const at = page * PAGE
      const length = Math.min(PAGE * (1 + random.below(2)), BLOB_BYTES - at)
      const kind = random.below(3)
      const fresh = kind === 2 ? new Uint8Array(length) : random.bytes(length)
      bytes.set(fresh, at)
      if (kind === 0) changes.push({ do: 'write', at, bytes: fresh })
      else if (kind === 2) changes.push({ do: 'trim', at, length })
      else {
        staged.push({ id: 'pages', at, bytes: fresh })
        changes.push({ do: 'write', at, length, staged: 'pages' })
      }
      page += length / PAGE - 1
    }
    return { changes, staged }
  },
})

/** Kept chunk by chunk: `hidden` is the whole store. */
export const chunkKind = (open: () => Promise<Flat<Blob>>, geometry: ChunkGeometry): Kind<Blob, BlobChange> => ({
  ...blobKind(open),
  commits: ({ hidden }, fault, options) =>
    rollforwardChunks(new ChunkStore(fault(hidden), geometry, 2 * geometry.chunkBytes), options),
  // What an overtaken writer puts has names that count for nothing.
  unfenced: () => false,
})

const pages = (bytes: Buffer): Picture =>
  Array.from(
    { length: bytes.length / PAGE },
    (_, page) =>
      bytes.subarray(page * PAGE, page * PAGE + 12).toString('hex') +
      crc32(bytes.subarray(page * PAGE, (page + 1) * PAGE)),
  )

const DEAD = 99
const alive = ({ pid }: Claim) => pid !== DEAD
const sleep = async () => {}

export function flatSuite<R extends Store | Blob, Change>(
  name: string,
  kind: Kind<R, Change>,
  { rounds, share }: { rounds: number; share: number },
): void {
  const opener = (flat: Flat<R>, fault: Fault = faults.none) =>
    kind.commits(flat, fault, { now: () => 0, alive: () => false, refreshMs: 0, sleep })

  async function send(remote: R & Commits<Change>, writer: string, number: number, { changes, staged }: Net<Change>) {
    for (const { id, at, bytes } of staged) await remote.stage(number, id, at, bytes)
    await remote.commit({ writer, number, cutAtMs: number, changes })
  }

  async function tidy({ hidden, hiddenPrefix }: Flat<R>) {
    const left = (await hidden.list(hiddenPrefix)).map(one => one.name.slice(hiddenPrefix.length))
    return left.filter(one => !/^(log\/\d+|heartbeat-\d+|outcome-\w)$/.test(one))
  }

  /** A first batch is committed, a second is to come. */
  async function begin(seed: number) {
    const random = randomOf(seed)
    const flat = await kind.open()
    const state = kind.empty()
    const first = opener(flat)
    await first.claim(claimOf('w', { pid: DEAD }))
    await send(first, 'w', 1, kind.next(state, random))
    await first.settle()
    expect(await kind.look(first)).toEqual(kind.picture(state))
    const before = kind.picture(state)
    const net = kind.next(state, random)
    return { flat, before, after: kind.picture(state), state, net, random }
  }

  describe(`${name}: takes whole batches`, () => {
    seeded('a crash after any step leaves one batch or the other, for readers and for writers', async seed => {
      for (let round = 0; round < rounds; round++) {
        const dice = randomOf(seed + round)
        for (let survived = 0; ; survived++) {
          if (!dice.chance(share) && survived < 100) continue
          const { flat, before, after, state, net, random } = await begin(seed * 1000 + round)
          const { fault, steps } = faults.crashing(survived)
          let committed = false
          let settled = false
          try {
            const writer = opener(flat, fault)
            await writer.claim(claimOf('w'))
            await send(writer, 'w', 2, net)
            committed = true
            expect(await kind.look(writer)).toEqual(after)
            await writer.settle()
            settled = true
          } catch (error) {
            if (!(error instanceof Crashed)) throw error
          }
          const seen = await kind.look(opener(flat))
          await opener(flat, faults.crashing(dice.below(20)).fault)
            .claim(claimOf('x'))
            .catch(error => {
              if (!(error instanceof Crashed)) throw error
            })
          expect(await kind.look(opener(flat))).toEqual(seen)
          const writer = opener(flat)
          const { batch } = await writer.claim(claimOf('w'))
          if (committed) expect(batch).toBe(2)
          expect(seen).toEqual(batch === 2 ? after : before)
          expect(await kind.look(writer)).toEqual(seen)
          await writer.settle()
          expect(await tidy(flat)).toEqual([])
          if (batch === 2) {
            await send(writer, 'w', 3, kind.next(state, random))
            expect(await writer.settle()).toMatchObject({ conflicts: [], refused: [] })
            expect(await kind.look(writer)).toEqual(kind.picture(state))
          }
          await flat.dispose()
          if (settled && steps.count <= survived) break
        }
      }
    })

    seeded('a writer that was overtaken changes nothing any more, wherever it wakes up, and is told', async seed => {
      for (let round = 0; round < rounds; round++) {
        const dice = randomOf(seed + round)
        for (let at = 1; ; at++) {
          if (!dice.chance(share) && at < 100) continue
          const { flat, before, after, state, net, random } = await begin(seed * 1000 + 500 + round)
          let clock = 0
          const options = { now: () => clock, alive, sleep }
          const { fault, steps, wake, fellAsleep } = faults.sleeping(at)
          const old = kind.commits(flat, fault, options)
          const run = (async () => {
            await old.claim(claimOf('w'))
            await send(old, 'w', 2, net)
            await old.settle()
            return null
          })().catch((error: unknown) => error)
          if (await Promise.race([fellAsleep.then(() => false), run.then(() => true)])) {
            expect(await run).toBeNull()
            await flat.dispose()
            break
          }
          const heir = kind.commits(flat, faults.none, options)
          await heir.claim(claimOf('heir', { takeOver: true }))
          const found = await kind.look(heir)
          expect([JSON.stringify(before), JSON.stringify(after)]).toContain(JSON.stringify(found))
          // What comes next is the same, whichever it was.
          await send(heir, 'heir', 1, net)
          await heir.settle()
          expect(await kind.look(heir)).toEqual(after)
          await send(heir, 'heir', 2, kind.next(state, random))
          await heir.settle()
          const seen = await kind.look(heir)
          expect(seen).toEqual(kind.picture(state))
          const begun = steps.log.slice(at - 1)
          const count = steps.count
          clock += 20_000
          wake()
          const error = await run
          if (error) expect((error as FerryError).code).toMatch(/^LEASE_(LOST|HELD)$/)
          // Nothing more is begun that nothing can stop.
          expect(steps.log.slice(count).filter(step => /^(write|trim)/.test(step))).toEqual([])
          if (!begun.some(step => kind.unfenced(step, state, flat.remote))) expect(await kind.look(heir)).toEqual(seen)
          await heir.renew()
          await expect(old.renew()).rejects.toMatchObject({ code: 'LEASE_LOST' })
          await flat.dispose()
        }
      }
    })
  })
}
