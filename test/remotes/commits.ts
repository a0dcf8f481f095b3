// ONE suite for whatever can commit: lose the host at any instant, and see exactly one batch.
import { describe, expect, test } from '@jest/globals'
import { type FerryError, isFerryError } from '../../src/base/errors.js'
import { freshSeed, type Random, random as randomOf } from '../../src/base/random.js'
import type { Claim, Commits } from '../../src/remote/commits.js'
import type { Tree, TreeChange } from '../../src/remote/tree.js'
import { Crashed, faults } from './commits-faults.js'
import { diff, look, Model, mutate, type NetChange, type Picture, pictureOf } from './commits-model.js'
import { committing, loose, without } from './commits-objects.js'
import type { Powered } from './commits-power.js'

export const SEED = Number(process.env.SEED ?? freshSeed())

/** An empty tree to test. */
export interface TreeFixture {
  tree: Tree
  /** Goes back to this moment, any number of times. Without it, all is done anew. */
  keep?(): () => void
  dispose(): Promise<void>
}

export interface TreeSuiteOptions {
  open: () => Promise<TreeFixture>
  batches: number
  /** The tree, with a switch for its power. */
  power?: (tree: Tree) => Powered
  /** Of the steps at which a crash could come, this share is tried. */
  share: number
  /** Attributes of directories, but for the root, are set through the stage. */
  fencedDirectories: boolean
  /** Operations per batch. */
  operations: number
}

export const claimOf = (writer: string, more: Partial<Claim> = {}): Claim => ({
  ...{ writer, host: 'here', bootId: 'boot', pid: 1, startTime: 1, leaseMs: 30_000, takeOver: false },
  ...more,
})

type Committing = Tree & Commits<TreeChange>

/** A process that opens the tree; all before it are dead. */
const opener = (tree: Tree, now = () => 0): Committing => committing(tree, { now, alive: () => false, refreshMs: 0 })

async function send(remote: Committing, writer: string, number: number, { changes, staged }: NetChange): Promise<void> {
  for (const { id, at, bytes } of staged) await remote.stage(number, id, at, bytes)
  await remote.commit({ writer, number, cutAtMs: 1_700_000_000_000 + number, changes })
}

/** Versions by inode, from those by path. */
const versionsOf = (model: Model, byPath: Map<string, string>) =>
  new Map(
    [...model.walk()].flatMap(([path, { ino }]) =>
      byPath.has(path) ? [[ino, byPath.get(path)!] as [number, string]] : [],
    ),
  )

/** What no batch has ever told: the times of the root before the first one. */
const withoutRoot = (picture: Picture) => picture.filter(line => !line.startsWith('[""'))

/** null: between two calls the batch was done, and what has a version has its own now. */
const lookOrMiss = (remote: Tree): Promise<Picture | null> =>
  look(remote).then(
    ({ picture }) => picture,
    error => {
      if (isFerryError(error, 'STALE') || /is listed as/.test(error.message)) return null
      throw error
    },
  )

/** What is one file has an id of its own until it really is. */
const withoutGroups = (picture: Picture) => picture.filter(line => line.startsWith('['))

async function tidy(tree: Tree): Promise<string[]> {
  const left: string[] = []
  for (const { name } of (await tree.list('.pageferry/stage')).entries)
    for (const entry of (await tree.list(`.pageferry/stage/${name}`)).entries)
      if (entry.name !== 'root') left.push(`${name}/${entry.name}`)
  if (await tree.stat('.pageferry/lost')) left.push('lost')
  return left
}

interface Scene {
  fixture: TreeFixture
  before: Model
  after: Model
  net: NetChange
  number: number
  random: Random
  /** Back to the beginning. */
  restore(): Promise<void>
}

/** A random state that was committed, and a random batch that comes next. */
async function* scenes({ open, batches, operations }: TreeSuiteOptions, seed: number): AsyncGenerator<Scene> {
  for (let round = 0; round < batches; round++) {
    let fixture = await open()
    const build = async () => {
      const random = randomOf(seed * 1_000 + round)
      const before = new Model()
      mutate(before, random, 12, fixture.tree.capabilities)
      const first = opener(fixture.tree)
      await first.claim(claimOf('w', { pid: DEAD }))
      await send(first, 'w', 1, diff(new Model(), before, { random, versions: new Map() }))
      expect(await first.settle()).toMatchObject({ conflicts: [], refused: [] })
      const { picture, versions } = await look(first)
      expect(withoutRoot(picture)).toEqual(withoutRoot(pictureOf(before)))
      const after = before.clone()
      mutate(after, random, operations, fixture.tree.capabilities)
      after.root.mtimeNs = after.tick()
      return {
        fixture,
        before,
        after,
        net: diff(before.clone(), after, { random, versions: versionsOf(before, versions) }),
        random,
      }
    }
    try {
      const built = await build()
      const back = fixture.keep?.()
      const scene: Scene = {
        ...built,
        number: 2,
        restore: async () => {
          if (back) return back()
          await fixture.dispose()
          fixture = await open()
          const { random } = scene
          Object.assign(scene, await build(), { random })
        },
      }
      yield scene
    } finally {
      await fixture.dispose()
    }
  }
}

/** A test whose failure names the seed. */
export const seeded = (name: string, body: (seed: number) => Promise<void>) =>
  test(name, async () => {
    try {
      await body(SEED)
    } catch (error) {
      if (error instanceof Error) error.message = `SEED=${SEED}\n${error.message}`
      throw error
    }
  })

const where = (scene: Scene, text: string) =>
  `${text}; the batch: ${JSON.stringify(scene.net.changes, (_, one) => (typeof one === 'bigint' ? `${one}` : one instanceof Map ? [...one] : one instanceof Uint8Array ? `${one.length} bytes` : one))}`

/** Runs the check, and adds where we were to what it says. */
async function at(scene: Scene, text: string, check: () => Promise<void>): Promise<void> {
  try {
    await check()
  } catch (error) {
    if (error instanceof Error) error.message = `${where(scene, text)}\n${error.message}`
    throw error
  }
}

export function treeSuite(name: string, options: TreeSuiteOptions): void {
  describe(`${name}: a tree that takes whole batches`, () => {
    seeded('a batch is applied as it is, and whoever opens next sees it', async seed => {
      for await (const { fixture, after, net, number } of scenes(options, seed)) {
        const writer = opener(fixture.tree)
        expect(await writer.claim(claimOf('w'))).toMatchObject({ epoch: 2, batch: 1 })
        await send(writer, 'w', number, net)
        // Committed is visible, before anything is applied.
        expect((await look(writer)).picture).toEqual(pictureOf(after))
        expect((await look(opener(fixture.tree))).picture).toEqual(pictureOf(after))
        const outcome = await writer.settle()
        expect(outcome).toMatchObject({ conflicts: [], refused: [] })
        const { picture, versions } = await look(writer)
        expect(picture).toEqual(pictureOf(after))
        for (const [path, version] of outcome.versions) expect([path, versions.get(path)]).toEqual([path, version])
        expect(await tidy(fixture.tree)).toEqual([])
      }
    })

    seeded('a crash after any step leaves one batch or the other, for readers and for writers', async seed => {
      let crashes = 0
      for await (const scene of scenes(options, seed)) {
        const { before, after, number, random } = scene
        const pictures = { before: withoutRoot(pictureOf(before)), after: withoutRoot(pictureOf(after)) }
        for (let survived = 0; ; survived++) {
          if (!random.chance(options.share)) {
            // Skipped; but the run that needs no crash ends it.
            if (survived < 400) continue
          }
          await scene.restore()
          const { fault, steps } = faults.crashing(survived)
          let committed = false
          let settled = false
          try {
            const writer = opener(fault(scene.fixture.tree))
            await writer.claim(claimOf('w'))
            await send(writer, 'w', number, scene.net)
            committed = true
            await writer.settle()
            settled = true
          } catch (error) {
            if (!(error instanceof Crashed)) throw error
          }
          crashes++
          const text = `crash after ${survived} steps, the last being ${steps.log[survived - 1]}, then ${steps.log[survived]}`
          await at(scene, text, () => recovered(scene, { committed, pictures, twice: random.below(40) }))
          if (settled && steps.count <= survived) break
        }
      }
      expect(crashes).toBeGreaterThan(0)
    })

    seeded('two who apply the same batch at once do not come into conflict, and a reader sees it whole', async seed => {
      for await (const scene of scenes({ ...options, batches: options.batches * 3 }, seed + 600)) {
        const { fixture, after, net, number, random } = scene
        const { fault } = faults.slow(random)
        let clock = 0
        const writer = committing(fault(fixture.tree), { now: () => clock, alive })
        await writer.claim(claimOf('w'))
        await send(writer, 'w', number, net)
        const reader = opener(faults.slow(random).fault(fixture.tree))
        await reader.stat('')
        const settling = writer.settle().catch((error: unknown) => error)
        for (let turns = random.below(150); turns > 0; turns--) await new Promise(resolve => setImmediate(resolve))
        const heir = committing(faults.slow(random).fault(fixture.tree), {
          ...{ now: () => clock, alive },
          sleep: async () => {
            clock += 11_000
            await settling
          },
        })
        let claimed = false
        const claiming = heir.claim(claimOf('heir', { pid: 2, takeOver: true })).finally(() => {
          claimed = true
        })
        await at(scene, 'while two apply it', async () => {
          while (!claimed) {
            const seen = await lookOrMiss(reader)
            if (seen) expect(withoutGroups(seen)).toEqual(withoutGroups(pictureOf(after)))
          }
          await claiming
          const error = await settling
          if (error instanceof Error) expect(error).toMatchObject({ code: 'LEASE_LOST' })
          expect((await look(heir)).picture).toEqual(pictureOf(after))
        })
      }
    })

    seeded('a reader sees the batch whole while it is applied', async seed => {
      for await (const scene of scenes({ ...options, batches: options.batches * 3 }, seed + 400)) {
        const { fixture, after, net, number, random } = scene
        const { fault } = faults.slow(random)
        const writer = opener(fault(fixture.tree))
        await writer.claim(claimOf('w'))
        await send(writer, 'w', number, net)
        const { fault: alsoSlow } = faults.slow(random)
        const reader = opener(alsoSlow(fixture.tree))
        let settled = false
        const settling = writer.settle().finally(() => {
          settled = true
        })
        await at(scene, 'while it is applied', async () => {
          for (let more = true; more; ) {
            more = !settled
            for (const remote of [reader, writer]) {
              const seen = await lookOrMiss(remote)
              if (seen) expect(withoutGroups(seen)).toEqual(withoutGroups(pictureOf(after)))
            }
          }
        })
        await settling
      }
    })

    seeded('a step that fails, or whose answer is lost, is done again', async seed => {
      for await (const scene of scenes({ ...options, batches: 2 }, seed + 300)) {
        for (let step = 1; ; step++) {
          if (!scene.random.chance(options.share) && step < 400) continue
          await scene.restore()
          const { fault, steps } = faults.flaky(step, scene.random.chance(0.5))
          const writer = opener(fault(scene.fixture.tree))
          await at(scene, `step ${step} fails`, async () => {
            await insist(() => writer.claim(claimOf('w')))
            for (const { id, at: from, bytes } of scene.net.staged)
              await insist(() => writer.stage(scene.number, id, from, bytes))
            const { changes } = scene.net
            await insist(() =>
              writer.commit({ writer: 'w', number: scene.number, cutAtMs: 1_700_000_000_000, changes }),
            )
            const outcome = await insist(() => writer.settle())
            expect(outcome).toMatchObject({ conflicts: [], refused: [] })
            const { picture, versions } = await look(writer)
            expect(picture).toEqual(pictureOf(scene.after))
            for (const [path, version] of outcome.versions) expect([path, versions.get(path)]).toEqual([path, version])
            await insist(() => writer.release())
            const next = opener(scene.fixture.tree)
            await next.claim(claimOf('x'))
            await next.settle()
            expect(await tidy(scene.fixture.tree)).toEqual([])
          })
          if (steps.count < step) break
        }
      }
    })

    if (options.power)
      seeded('power that fails after any step leaves one batch or the other', async seed => {
        for await (const scene of scenes(options, seed + 200)) {
          const { before, after, number, random } = scene
          const pictures = { before: withoutRoot(pictureOf(before)), after: withoutRoot(pictureOf(after)) }
          for (let survived = 0; ; survived++) {
            await scene.restore()
            const { tree, cut } = options.power!(scene.fixture.tree)
            const { fault, steps } = faults.crashing(survived)
            let committed = false
            let settled = false
            try {
              const writer = opener(fault(tree))
              await writer.claim(claimOf('w'))
              await send(writer, 'w', number, scene.net)
              committed = true
              await writer.settle()
              settled = true
            } catch (error) {
              if (!(error instanceof Crashed)) throw error
            }
            await cut(random)
            const text = `power cut after ${survived} steps, the last being ${steps.log[survived - 1]}`
            await at(scene, text, () => recovered(scene, { committed, pictures, twice: random.below(40) }))
            if (settled && steps.count <= survived) break
          }
        }
      })

    seeded('a writer that was overtaken changes nothing any more, wherever it wakes up, and is told', async seed => {
      for await (const scene of scenes(options, seed + 500)) {
        for (let step = 1; ; step++) {
          if (!scene.random.chance(options.share) && step < 400) continue
          await scene.restore()
          let more = true
          await at(scene, `asleep before step ${step}`, async () => {
            more = await overtaken(scene, step, options.fencedDirectories)
          })
          if (!more) break
        }
      }
    })
  })
}

const withoutAttributes = (line: string): string => {
  if (!line.startsWith('[')) return line
  const [path, , , , , content] = JSON.parse(line)
  return JSON.stringify([path, content])
}

/** As the engine does: until it works. */
async function insist<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await work()
    } catch (error) {
      if (tries === 3 || !isFerryError(error, 'UNREACHABLE', 'NOT_FOUND', 'EXISTS')) throw error
    }
  }
}

/** The process that made the state from which all begin. */
const DEAD = 99
const alive = ({ pid }: Claim) => pid !== DEAD

/** Steps that a former holder may have begun before it was overtaken and that nothing can stop: attributes of directories, or only of the root. */
const unfenced = (step: string, fencedDirectories: boolean) =>
  fencedDirectories ? /^set(Attributes|Xattrs) $/.test(step) : /^set(Attributes|Xattrs) (?!\.pageferry\/)/.test(step)
/** Without hard links, files are changed in place by their names. */
const unfencedBytes = (step: string) => /^(write|truncate|punch|copy \S+) (?!\.pageferry\/)/.test(step)

async function overtaken(scene: Scene, sleepAt: number, fencedDirectories: boolean): Promise<boolean> {
  const { fixture, before, after, net, number, random } = scene
  const { tree } = fixture
  let clock = 0
  const { fault, steps, wake, fellAsleep } = faults.sleeping(sleepAt)
  const old = committing(fault(tree), { now: () => clock, alive, sleep: async () => {} })
  let committed = false
  const run = (async () => {
    await old.claim(claimOf('w'))
    await send(old, 'w', number, net)
    committed = true
    await old.settle()
    return null
  })().catch((error: unknown) => error)
  const finished = await Promise.race([fellAsleep.then(() => false), run.then(() => true)])
  if (finished) {
    expect(await run).toBeNull()
    return false
  }
  const heir = committing(tree, { now: () => clock, alive, sleep: async () => {} })
  const { epoch, batch } = await heir.claim(claimOf('heir', { pid: 2, takeOver: true }))
  expect(batch).toBeNull()
  const found = await look(heir)
  const asAfter = JSON.stringify(withoutRoot(found.picture)) === JSON.stringify(withoutRoot(pictureOf(after)))
  expect(withoutRoot(found.picture)).toEqual(withoutRoot(pictureOf(asAfter ? after : before)))
  if (committed) expect(asAfter).toBe(true)
  // The heir goes on, so that whatever the old one still does would show.
  const from = asAfter ? after : before
  const next = from.clone()
  mutate(next, random, 6, tree.capabilities)
  for (const [, node] of next.walk()) {
    if (node.link === undefined) node.mode ^= 0o001
    if (node.bytes.length) next.write(node, 0, random.bytes(node.bytes.length))
    node.mtimeNs = next.tick()
  }
  await send(heir, 'heir', 1, diff(from.clone(), next, { random, versions: versionsOf(from, found.versions) }))
  expect(await heir.settle()).toMatchObject({ conflicts: [], refused: [] })
  const seen = (await look(heir)).picture
  expect(seen).toEqual(pictureOf(next))
  clock += 20_000
  const begun = steps.log.slice(sleepAt - 1)
  const count = steps.count
  wake()
  const error = await run
  if (error) expect((error as FerryError).code).toMatch(/^LEASE_(LOST|HELD)$/)
  else expect(committed).toBe(true)
  const exempt = begun.some(step => unfenced(step, fencedDirectories))
  if (!tree.capabilities.hardLinks && begun.some(unfencedBytes)) return true
  const late = loose(begun, seen)
  const rest = (picture: Picture) => without(exempt ? picture.map(withoutAttributes) : picture, late)
  await at(scene, `it had begun ${begun}; then came ${steps.log.slice(count)}`, async () => {
    expect(rest((await look(tree)).picture)).toEqual(rest(seen))
  })
  await heir.renew()
  await expect(old.renew()).rejects.toMatchObject({ code: 'LEASE_LOST' })
  expect((await heir.holder())?.epoch).toBe(epoch)
  return true
}

async function recovered(
  { fixture, number, before, after, random }: Scene,
  { committed, pictures, twice }: { committed: boolean; pictures: { before: Picture; after: Picture }; twice: number },
): Promise<void> {
  const { tree } = fixture
  const { fault, steps } = faults.watched()
  const seen = withoutRoot((await look(opener(fault(tree)))).picture)
  expect(steps.log).toEqual([])
  // Another crash, in the middle of recovering.
  await opener(faults.crashing(twice).fault(tree))
    .claim(claimOf('x', { pid: 2 }))
    .catch(error => {
      if (!(error instanceof Crashed)) throw error
    })
  if (random.chance(0.2)) expect(withoutRoot((await look(opener(tree))).picture)).toEqual(seen)
  const writer = opener(tree)
  const { batch } = await writer.claim(claimOf('w'))
  if (committed) expect(batch).toBe(number)
  const expected = batch === number ? pictures.after : pictures.before
  expect(seen).toEqual(expected)
  const { picture, versions } = await look(writer)
  expect(withoutRoot(picture)).toEqual(expected)
  await writer.settle()
  expect(await tidy(tree)).toEqual([])
  // And it goes on from there.
  if (!random.chance(0.2)) return
  const from = batch === number ? after : before
  const next = from.clone()
  mutate(next, random, 3, tree.capabilities)
  next.root.mtimeNs = next.tick()
  await send(writer, 'w', batch! + 1, diff(from.clone(), next, { random, versions: versionsOf(from, versions) }))
  expect(await writer.settle()).toMatchObject({ conflicts: [], refused: [] })
  expect((await look(writer)).picture).toEqual(pictureOf(next))
}
