// One directory and several who use it at once: writers who share the lease, or take it from each other; readers; and a program that knows
// nothing of us. Each write of a file is a token, all over the file. No read finds two of them in one file; and none that somebody wrote is gone, unless somebody who had
// it before his eyes has replaced or removed it.
import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, expect, test } from '@jest/globals'
import { FerryError, isFerryError } from '../../src/base/errors.js'
import { freshSeed, type Random, random as randomOf } from '../../src/base/random.js'
import { openTreeCache } from '../../src/cache/engine.js'
import type { Ino } from '../../src/cache/filesystem.js'
import type { TreeCache, TreeCacheOptions } from '../../src/cache/tree-cache.js'
import type { Claim } from '../../src/remote/commits.js'
import { memObjects } from '../../src/remote/mem-objects.js'
import { memTree } from '../../src/remote/mem-tree.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree } from '../../src/remote/tree.js'
import { wrap } from '../../src/remote/wrap.js'
import { long } from '../fixtures/requires.js'
import { engineOptions, settled, temporaryDirectory } from './engine-harness.js'

const SEED = Number(process.env.SEED ?? freshSeed())
const ROUNDS = long ? 60 : 4
const STEPS = 150
const ROUND_MS = 30_000
/** How often one writer is followed by another in one round. */
const HANDS = 10
const ROOT = 1
const FILE = { mode: 0o100644, uid: 0, gid: 0, rdev: 0 }
const DIRECTORY = { mode: 0o40755, uid: 0, gid: 0, rdev: 0 }
const NAMES = ['a', 'b', 'c', 'd', 'e']
const DIRECTORIES = ['x', 'y']
/** In the journal itself, in one chunk, in several. */
const SIZES = [16, 5_000, 70_000, 300_000]

const undone: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of undone.splice(0).reverse()) await undo()
})

const WORD = 16
const wordOf = (token: number) => `${String(token).padStart(WORD - 1, '0')}\n`
const contentOf = (token: number, size: number) =>
  Buffer.from(wordOf(token).repeat(Math.ceil(size / WORD))).subarray(0, size)

/** null: nothing is in it. @throws there is more than one */
function tokenIn(bytes: Buffer, where: string): number | null {
  if (bytes.length === 0) return null
  const token = Number(bytes.toString('latin1', 0, WORD))
  if (bytes.equals(contentOf(token, bytes.length))) return token
  const others = new Set(bytes.toString('latin1').split('\n'))
  throw new Error(`${where}: more than one in ${bytes.length} bytes: ${[...others].slice(0, 5).join(' ')}`)
}

class World {
  readonly #sizes = new Map<number, number>()
  /** Replaced or removed by somebody who saw them. */
  readonly gone = new Set<number>()
  readonly log: string[] = []

  constructor(readonly random: Random) {}

  write(): { token: number; bytes: Buffer } {
    const token = this.#sizes.size + 1
    const size = this.random.pick(SIZES)
    this.#sizes.set(token, size)
    return { token, bytes: contentOf(token, size) }
  }

  /** The same length, other content. */
  rewrite(size: number): { token: number; bytes: Buffer } {
    const token = this.#sizes.size + 1
    this.#sizes.set(token, size)
    return { token, bytes: contentOf(token, size) }
  }

  tell(line: string): void {
    this.log.push(`${Math.round(performance.now())} ${line}`)
  }

  check(bytes: Buffer, where: string): number | null {
    const token = tokenIn(bytes, where)
    if (token !== null) expect([where, token, bytes.length]).toEqual([where, token, this.#sizes.get(token)])
    return token
  }

  get living(): number[] {
    return [...this.#sizes.keys()].filter(token => !this.gone.has(token))
  }
}

/** Processes that live, by their start. */
const living = new Set<number>()
let starts = 0

/** One who has it mounted. */
class Side {
  cache!: TreeCache
  /** Not while one process follows another. */
  isUp = false
  #cacheDir = temporaryDirectory()
  #link = { isCut: false }
  #start = 0

  constructor(
    readonly name: string,
    readonly world: World,
    readonly remote: Tree | Objects,
    readonly options: Partial<TreeCacheOptions>,
  ) {}

  async open(): Promise<this> {
    const [cacheDir, link] = [this.#cacheDir, { isCut: false }]
    undone.push(() => fs.rmSync(cacheDir, { recursive: true, force: true }))
    this.#link = link
    this.#start = ++starts
    living.add(this.#start)
    const remote = wrap(this.remote, async (_, next) => {
      if (link.isCut) throw new FerryError('UNREACHABLE', { detail: 'its process was killed' })
      return next()
    })
    const options = { refreshMs: 0, alive: ({ startTime }: Claim) => living.has(startTime) }
    const committing = remote.shape === 'objects' ? rollforward(remote, options) : rollforward(remote, options)
    const identity = { writer: this.name, host: 'here', bootId: 'boot', pid: process.pid, startTime: this.#start }
    const changes = { identity, takeOver: false, dirTtlMs: 20, ...this.options }
    const cache = await openTreeCache(committing, engineOptions(cacheDir, changes))
    undone.push(() => cache.close())
    this.cache = cache
    this.isUp = true
    return this
  }

  /** What it would not do. */
  get said(): string {
    try {
      const { conflicts, quarantine, problems } = this.cache.status()
      return JSON.stringify({ conflicts, quarantine, problems })
    } catch (error) {
      return String(error)
    }
  }

  /** kill -9: what it had here is there for the next process, and nothing more of it comes to the remote. */
  async die(): Promise<void> {
    this.isUp = false
    this.#link.isCut = true
    living.delete(this.#start)
    const left = temporaryDirectory()
    fs.cpSync(this.#cacheDir, left, { recursive: true })
    const killed = this.cache
    this.#cacheDir = left
    this.world.tell(`${this.name} is killed`)
    await killed.close()
  }

  async kill(): Promise<void> {
    await this.die()
    await this.open()
  }

  /** What it had not sent is for the next process. */
  async close(): Promise<void> {
    this.isUp = false
    this.world.tell(`${this.name} ends`)
    await this.cache.close()
    living.delete(this.#start)
  }

  async path(): Promise<{ parent: Ino; name: string; shown: string } | null> {
    const { random } = this.world
    const name = random.pick(NAMES)
    if (random.chance(0.5)) return { parent: ROOT, name, shown: name }
    const directory = random.pick(DIRECTORIES)
    const found = await this.cache.lookup(ROOT, directory)
    return found && { parent: found.ino, name, shown: `${directory}/${name}` }
  }

  async content(ino: Ino, where: string): Promise<Buffer> {
    const { size } = await settled(this.cache.attributes(ino))
    const bytes = Buffer.alloc(size)
    for (let done = 0; done < size; ) {
      const read = await this.cache.read(ino, done, bytes.subarray(done))
      if (read === 0) return bytes.subarray(0, done)
      done += read
    }
    this.world.check(bytes, `${this.name}: ${where}`)
    return bytes
  }

  /** What has this name, held open, with its token. */
  async held<T>(
    { parent, name, shown }: { parent: Ino; name: string; shown: string },
    work: (there: { ino: Ino; bytes: Buffer; token: number | null } | null) => Promise<T>,
  ): Promise<T | undefined> {
    const { cache } = this
    const found = await cache.lookup(parent, name)
    if (!found) return work(null)
    cache.remember(found.ino)
    cache.opened(found.ino, true)
    try {
      const bytes = await this.content(found.ino, shown)
      // Whatever it is by now, it is not this any more.
      const now = cache.lookup(parent, name)
      if (now instanceof Promise || now?.ino !== found.ino) return
      return await work({ ino: found.ino, bytes, token: tokenIn(bytes, shown) })
    } finally {
      cache.released(found.ino, true)
      cache.forget(found.ino, 1)
    }
  }

  async step(): Promise<void> {
    const { random } = this.world
    const where = await this.path()
    if (!where) return
    try {
      await random
        .pick([this.#read, this.#replace, this.#replace, this.#overwrite, this.#remove, this.#move])
        .call(this, where)
    } catch (error) {
      // Nobody has those pages any more, a name went while it was used, or somebody took the lease.
      if (!isFerryError(error, 'STALE', 'NOT_FOUND', 'READ_ONLY')) throw error
      this.world.tell(`${this.name}: ${(error as FerryError).message}`)
    }
  }

  async #read(where: { parent: Ino; name: string; shown: string }) {
    await this.held(where, async there => this.world.tell(`${this.name} reads ${where.shown}: ${there?.token}`))
  }

  async #replace(where: { parent: Ino; name: string; shown: string }) {
    const { cache, world } = this
    const { token, bytes } = world.write()
    const temporary = `new-${token}`
    // Until something has it.
    world.gone.add(token)
    const { ino } = await settled(cache.make(where.parent, temporary, FILE))
    world.gone.delete(token)
    cache.remember(ino)
    await cache.write(ino, 0, bytes)
    await this.held(where, async there => {
      world.tell(`${this.name} puts ${token} (${bytes.length} bytes) at ${where.shown} over ${there?.token}`)
      if (there?.token) world.gone.add(there.token)
      await cache.rename({ parent: where.parent, name: temporary }, where, 'replace')
    })
    cache.forget(ino, 1)
  }

  async #overwrite(where: { parent: Ino; name: string; shown: string }) {
    await this.held(where, async there => {
      if (!there?.token) return
      const { token, bytes } = this.world.rewrite(there.bytes.length)
      this.world.tell(
        `${this.name} writes ${token} (${there.bytes.length} bytes) into ${where.shown} over ${there.token}`,
      )
      this.world.gone.add(there.token)
      await this.cache.write(there.ino, 0, bytes)
    })
  }

  async #remove(where: { parent: Ino; name: string; shown: string }) {
    await this.held(where, async there => {
      if (!there) return
      this.world.tell(`${this.name} removes ${where.shown}: ${there.token}`)
      if (there.token) this.world.gone.add(there.token)
      await this.cache.unlink(where.parent, where.name)
    })
  }

  async #move(from: { parent: Ino; name: string; shown: string }) {
    const to = await this.path()
    if (!to || to.shown === from.shown) return
    await this.held(from, async source => {
      if (!source) return
      await this.held(to, async there => {
        this.world.tell(`${this.name} moves ${from.shown} to ${to.shown} over ${there?.token}`)
        if (there?.token) this.world.gone.add(there.token)
        await this.cache.rename(from, to, 'replace')
      })
    })
  }

  /** Everything there is. */
  async picture(): Promise<Map<string, number | null>> {
    const { cache } = this
    await cache.refresh('')
    const all = new Map<string, number | null>()
    const below = async (parent: Ino, at: string): Promise<void> => {
      for (let after = 0; ; ) {
        const entries = await cache.entries(parent, after, 100)
        if (entries.length === 0) return
        for (const entry of entries) {
          after = entry.cookie
          const node = await cache.lookup(parent, entry.name)
          if (!node) continue
          const path = `${at}${entry.name}`
          if ((node.mode & 0o170000) === 0o40000) await below(node.ino, `${path}/`)
          else all.set(path, this.world.check(await this.content(node.ino, path), path))
        }
      }
    }
    await below(ROOT, '')
    return new Map([...all].sort(([a], [b]) => (a < b ? -1 : 1)))
  }
}

/** A program that changes the directory itself, and knows nothing of us. Each of its changes is made in one turn: nobody comes between. */
async function plain(world: World, tree: Tree, isIdle: () => boolean): Promise<void> {
  const { random } = world
  for (let n = 0; n < STEPS / 3; n++) {
    await sleep(random.below(30))
    if (!isIdle()) continue
    const path = `${random.pick(['', ...DIRECTORIES.map(name => `${name}/`)])}${random.pick(NAMES)}`
    const before = tree.read(path, { at: 0, length: 2 ** 20 }).catch(() => Buffer.alloc(0))
    const told: string[] = []
    const work: Promise<void>[] = []
    if (random.chance(0.7)) {
      const { token, bytes } = world.write()
      told.push(`puts ${token} (${bytes.length} bytes) at ${path}`)
      work.push(tree.make('plain', { ...FILE, atimeNs: 0n, mtimeNs: BigInt(n) }))
      work.push(tree.write('plain', 0, bytes), tree.rename('plain', path))
    } else {
      told.push(`removes ${path}`)
      work.push(tree.remove(path).catch(() => {}))
    }
    const token = world.check(Buffer.from(await before), `plain: ${path}`)
    if (token !== null) world.gone.add(token)
    world.tell(`plain ${told} over ${token}`)
    await Promise.all(work)
  }
}

async function until(isSo: () => boolean, told: () => string): Promise<void> {
  for (const giveUpMs = Date.now() + 10_000; !isSo(); await sleep(5))
    if (Date.now() > giveUpMs) throw new Error(`waited in vain: ${told()}`)
}

async function reads(reader: Side, count: number): Promise<void> {
  for (let n = 0; n < count; n++) {
    await reader.picture().catch(error => {
      if (!isFerryError(error, 'STALE', 'NOT_FOUND')) throw error
    })
    await sleep(reader.world.random.below(20))
  }
}

/** One writes alone, until it ends, is killed, or is overtaken in the middle of its work; two read. */
async function passedOn(seed: number, remote: Tree | Objects): Promise<void> {
  const world = new World(randomOf(seed))
  const { random } = world
  const writing = { takeOver: true, leaseMs: 60, flushIntervalMs: random.pick([1, 20, 100]) }
  const writers = ['one', 'other'].map(name => new Side(name, world, remote, writing))
  try {
    let [now, next] = writers
    await now.open()
    for (const directory of DIRECTORIES) await settled(now.cache.make(ROOT, directory, DIRECTORY))
    await now.cache.sync()
    const readers: Side[] = []
    for (const name of ['reader', 'another'])
      readers.push(await new Side(name, world, remote, { readOnly: true }).open())
    const isIdle = () => writers.some(({ isUp, cache }) => isUp && cache.status().batches.inFlight === null)
    const pass = async () => {
      for (let n = 0; n < HANDS; n++) {
        let isOver = false
        const work = async () => {
          while (!isOver) {
            await now.step()
            await sleep(random.below(8))
            if (random.chance(0.03)) await now.cache.sync().catch(error => refused(error))
          }
        }
        const working = work()
        await sleep(random.below(300))
        const how = random.pick(['sent', 'ended', 'killed', 'overtaken', 'overtaken'] as const)
        if (how === 'overtaken') {
          world.tell(`${next.name} takes it over`)
          await next.open()
          await sleep(random.below(60))
        }
        isOver = true
        await working
        if (how === 'sent') await now.cache.sync()
        await (how === 'killed' ? now.die() : now.close())
        if (how !== 'overtaken') await next.open()
        ;[now, next] = [next, now]
      }
    }
    const others = remote.shape === 'tree' && random.chance(0.5) ? [plain(world, remote, isIdle)] : []
    await Promise.all([pass(), ...readers.map(reader => reads(reader, STEPS / 4)), ...others])
    const tokens = new Set<number | null>()
    // What one had left comes to the remote when it has its turn again.
    for (let n = 0; n < 3; n++) {
      await now.cache.sync()
      if (now.cache.status().quarantine.length > 0)
        for (const token of (await now.picture()).values()) tokens.add(token)
      await now.close()
      await next.open()
      ;[now, next] = [next, now]
    }
    await now.cache.sync()
    const fresh = await new Side('fresh', world, remote, { readOnly: true }).open()
    const there = await fresh.picture()
    for (const token of there.values()) tokens.add(token)
    for (const side of readers) expect([side.name, await side.picture()]).toEqual([side.name, there])
    expect(world.living.filter(token => !tokens.has(token))).toEqual([])
  } catch (error) {
    throw told(error, { seed, world, writers })
  }
}

function refused(error: unknown) {
  if (!isFerryError(error, 'LEASE_LOST', 'CLOSED')) throw error
}

function told(error: unknown, { seed, world, writers }: { seed: number; world: World; writers: Side[] }): unknown {
  for (const { name, said } of writers) world.tell(`${name}: ${said}`)
  if (error instanceof Error)
    error.message = `SEED=${seed}\n${world.log.slice(process.env.TELL ? 0 : -60).join('\n')}\n${error.message}`
  return error
}

async function round(seed: number, remote: Tree | Objects): Promise<void> {
  const world = new World(randomOf(seed))
  const { random } = world
  const writers: Side[] = []
  try {
    const writing = { shared: true, flushIntervalMs: random.pick([1, 20, 100]) }
    for (const name of ['one', 'other']) writers.push(await new Side(name, world, remote, writing).open())
    const reader = await new Side('reader', world, remote, { readOnly: true }).open()
    for (const directory of DIRECTORIES) await settled(writers[0].cache.make(ROOT, directory, DIRECTORY))
    await writers[0].cache.sync()
    const run = async (side: Side, steps: number) => {
      for (let n = 0; n < steps; n++) {
        await side.step()
        if (random.chance(0.2)) await sleep(random.below(30))
        if (random.chance(0.03)) await side.cache.sync()
        if (random.chance(0.1)) await side.cache.refresh('')
        if (random.chance(0.01)) await side.kill()
      }
    }
    const isIdle = () => writers.every(({ isUp, cache }) => isUp && cache.status().batches.inFlight === null)
    const others = remote.shape === 'tree' && random.chance(0.5) ? [plain(world, remote, isIdle)] : []
    await Promise.all([...writers.map(side => run(side, STEPS)), reads(reader, STEPS / 4), ...others])
    for (let n = 0; n < 2; n++) for (const { cache } of writers) await cache.sync()
    const isRefused = ({ cache }: Side) => cache.status().quarantine.length > 0
    const isAllSent = () => writers.every(side => side.cache.status().lag.operations === 0 || isRefused(side))
    await until(isAllSent, () => JSON.stringify(writers.map(({ cache }) => cache.status())))
    const fresh = await new Side('fresh', world, remote, { readOnly: true }).open()
    const there = await fresh.picture()
    const tokens = new Set(there.values())
    for (const side of [...writers, reader]) {
      const picture = await side.picture()
      if (isRefused(side)) for (const token of picture.values()) tokens.add(token)
      else expect([side.name, picture]).toEqual([side.name, there])
    }
    expect(world.living.filter(token => !tokens.has(token))).toEqual([])
  } catch (error) {
    throw told(error, { seed, world, writers })
  }
}

const directory = () => memTree()
const bucket = () => memObjects({ capabilities: { partBytesMin: 4_096 } })

test.each([
  ['two who write by turns', 'a directory', directory, round],
  ['two who write by turns', 'a bucket', bucket, round],
  ['writers who follow each other, or overtake', 'a directory', directory, passedOn],
  ['writers who follow each other, or overtake', 'a bucket', bucket, passedOn],
] as const)(
  `%s: to %s; nothing is lost, and nothing is mixed (SEED=${SEED})`,
  async (_how, _what, open, walk) => {
    for (let n = 0; n < ROUNDS; n++) {
      await walk(SEED + n, open())
      for (const undo of undone.splice(0).reverse()) await undo()
    }
  },
  ROUNDS * ROUND_MS,
)
