// The state machine of docs/REGIONS.md, walked by chance: what a region may become by what happens to it, and that its bytes are those
// of a buffer all the while. Its remote is served by gRPC from this process, so that it can be cut off.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from '@jest/globals'
import { type FerryError, isFerryError } from '../../src/base/errors.js'
import { freshSeed, type Random, random as randomOf } from '../../src/base/random.js'
import { openBeside, openRemote } from '../../src/open.js'
import { openRegion, type Region } from '../../src/open-region.js'
import type { RemoteServer } from '../../src/serve/server.js'
import { serve } from '../../src/serve-remote.js'
import { long, requires } from '../fixtures/requires.js'

const MiB = 2 ** 20
const PAGE = 4096
const SIZE = 6 * MiB + PAGE
/** What another program writes, at the beginning. */
const ELSE = Buffer.from('somebody else was here')
/** For a call that its caller has given up. */
const LATE_MS = 200
/** How often, and after how long, a call is tried again when the remote is back. */
const AGAIN_MAX = 50
const AGAIN_MS = 100
/** What is said of a remote that does not answer. */
const AWAY = /cannot be reached|deadline/
const SEED = Number(process.env.SEED ?? freshSeed())
const WALKS = long ? 40 : 3
const STEPS = 40
const WALK_MS = 60_000
/** Long enough for what is sent or pulled in the background. */
const SETTLE_MS = 20_000

type State = 'closed' | 'clean' | 'dirty' | 'sending' | 'stopped'
type Event = 'open' | 'read' | 'write' | 'trim' | 'flush' | 'sync' | 'wait' | 'cut' | 'restore' | 'close' | 'elsewhere'

/** What may be there after an event, if that was there before. Whatever is dirty goes on to be sent by itself, unless it is cut off. */
const onItsWay: State[] = ['dirty', 'sending', 'clean']
const still: Record<State, State[]> = {
  closed: ['closed'],
  clean: ['clean'],
  dirty: onItsWay,
  sending: onItsWay,
  stopped: ['stopped'],
}
const same = { open: [], close: [] }
const changed = { ...same, clean: onItsWay, dirty: onItsWay, sending: onItsWay, stopped: ['stopped'] as State[] }
const edges: Record<Event, Partial<Record<State, State[]>>> = {
  // Dirty or clean, as it was when it was closed; stopped if somebody else has changed it in between.
  open: { closed: ['clean', 'dirty', 'sending', 'stopped'] },
  read: still,
  write: changed,
  trim: changed,
  flush: still,
  sync: { clean: ['clean'], dirty: ['clean'], sending: ['clean'] },
  wait: still,
  cut: still,
  restore: still,
  close: { clean: ['closed'], dirty: ['closed'], sending: ['closed'], stopped: ['closed'] },
  elsewhere: { closed: ['closed'] },
}

/** While it is cut off nothing becomes clean. */
const cutOff = (states: State[], from: State) => (from === 'clean' ? states : states.filter(state => state !== 'clean'))

class Walk {
  readonly #random: Random
  readonly #folder = mkdtempSync(join(tmpdir(), 'pageferry-walk-'))
  readonly #file = join(this.#folder, 'disk')
  readonly #model = Buffer.alloc(SIZE)
  #server: RemoteServer | null = null
  #close: () => Promise<void> = async () => {}
  #region: Region | null = null
  #availability = 0
  /** It was closed with changes that the remote does not have. */
  #leftDirty = false
  #isOvertaken = false
  readonly done: string[] = []

  constructor(seed: number) {
    this.#random = randomOf(seed)
    for (const name of ['run', 'state']) mkdirSync(join(this.#folder, name))
    process.env.XDG_STATE_HOME = join(this.#folder, 'state')
    process.env.XDG_RUNTIME_DIR = join(this.#folder, 'run')
  }

  async walk(): Promise<void> {
    await this.#restore()
    for (let n = 0; n < STEPS; n++) {
      const before = this.#state()
      const event = this.#random.pick(this.#possible(before))
      const isCut = this.#server === null
      this.done.push(`${before} ${isCut ? '(cut off) ' : ''}-> ${event}`)
      await this.#happen(event)
      if (this.#isOvertaken && this.#isMerged()) return
      const after = this.#state()
      const allowed = edges[event][before] ?? []
      const isCutNow = isCut && this.#server === null
      expect(isCutNow && event !== 'open' ? cutOff(allowed, before) : allowed).toContain(after)
      if (event === 'open') expect(after === 'stopped').toBe(this.#isOvertaken)
      this.#checkAvailability()
    }
    await this.#end()
  }

  /**
   * What was on its way when it was closed had been promised to the remote (its intent stood there): it is finished, somebody else's bytes
   * stay where it has none, and nothing is lost of either.
   */
  #isMerged(): boolean {
    if (!this.#region || this.#state() !== 'clean') return false
    const merged = Buffer.from(this.#model)
    merged.set(ELSE)
    return readFileSync(this.#file).equals(merged)
  }

  #state(): State {
    if (!this.#region) return 'closed'
    const { lag, batches, problems } = this.#region.status()
    // While it is cut off, and for a moment longer, that is all it says.
    const isStopped = (problem: string) => /somebody else/.test(problem) || (this.#isOvertaken && AWAY.test(problem))
    if (problems.some(isStopped)) return 'stopped'
    if (lag.bytes === 0 && lag.operations === 0) return 'clean'
    return batches.inFlight !== null ? 'sending' : 'dirty'
  }

  #possible(state: State): Event[] {
    const link: Event = this.#server ? 'cut' : 'restore'
    if (state === 'closed') {
      // To open it, its server has to be there.
      const open: Event[] = this.#server ? ['open', 'open', 'open'] : []
      return this.#leftDirty && !this.#isOvertaken && this.#server ? [link, ...open, 'elsewhere'] : [link, ...open]
    }
    const changes: Event[] = this.#isOvertaken ? [] : ['write', 'write', 'trim']
    const sync: Event[] = this.#server && !this.#isOvertaken ? ['sync'] : []
    return [...changes, ...sync, 'read', 'read', 'flush', 'wait', link, 'close']
  }

  async #happen(event: Event): Promise<void> {
    const random = this.#random
    // Whole pages while it is cut off: of others the rest may have to be fetched.
    const unit = this.#server ? 1 : PAGE
    const at = unit * random.below(SIZE / unit)
    const length = Math.min(SIZE - at, unit * (1 + random.below(Math.ceil(random.pick([100, 5000, 300_000]) / unit))))
    const region = this.#region!
    switch (event) {
      case 'open': {
        const url = `grpc+unix:///?socket=${join(this.#folder, 'socket')}`
        this.#availability = 0
        const options = { cacheDir: join(this.#folder, 'cache'), pull: 'all', takeOver: true, lease: '4s' } as const
        const open = async () => {
          this.#region = await openRegion(url, { ...options, flushInterval: '30ms', deadline: '500ms' })
        }
        expect(await this.#again(open)).toBe(true)
        // What the journal has is told once the remote has been asked.
        if (this.#isOvertaken) await until(() => this.#state() === 'stopped' || this.#isMerged())
        if (this.#leftDirty && !this.#isOvertaken) expect(['dirty', 'sending', 'clean']).toContain(this.#state())
        return
      }
      case 'write': {
        const bytes = random.bytes(length)
        expect(await this.#again(() => region.write(at, bytes))).toBe(true)
        this.#model.set(bytes, at)
        return
      }
      case 'trim':
        expect(await this.#again(() => region.trim(at, length))).toBe(true)
        this.#model.fill(0, at, at + length)
        return
      case 'read': {
        const into = Buffer.alloc(length)
        const outcome = await this.#again(() => region.read(at, into))
        // What is not here cannot be read while it is cut off; it is never something else.
        if (outcome === true) expect(into.equals(this.#model.subarray(at, at + length))).toBe(true)
        else if (!this.#isOvertaken)
          expect([this.#server === null, outcome.code]).toEqual([true, expect.stringMatching(/UNREACHABLE|DEADLINE/)])
        return
      }
      case 'flush':
        await region.flush()
        return
      case 'sync':
        await region.sync()
        expect(readFileSync(this.#file).equals(this.#model)).toBe(true)
        return
      case 'wait':
        await sleep(random.below(200))
        return
      case 'cut':
        await this.#cut()
        return
      case 'restore':
        await this.#restore()
        return
      case 'close': {
        const state = this.#state()
        await region.close()
        this.#leftDirty = state !== 'clean' && !readFileSync(this.#file).equals(this.#model)
        this.#region = null
        return
      }
      default: {
        // What was on its way when it was closed may have got there after all: then nothing is left that could be overtaken.
        await sleep(LATE_MS)
        if (readFileSync(this.#file).equals(this.#model)) {
          this.#leftDirty = false
          return
        }
        // Another program writes to the file itself.
        const blob = await openRemote(`file://${this.#file}`, { shape: 'blob' })
        await blob.write(0, ELSE)
        await blob.close()
        this.#isOvertaken = true
      }
    }
  }

  /**
   * True when it is done, else why not. Once the remote is back it is tried again: a connection is made anew in its own time, which is
   * longer than the deadline here, and the rest of a page that is changed in part has to be fetched.
   */
  async #again(call: () => void | Promise<void>): Promise<true | FerryError> {
    for (let n = 0; ; n++) {
      try {
        await call()
        return true
      } catch (error) {
        if (!isFerryError(error)) throw error
        if (!this.#server || this.#isOvertaken || n === AGAIN_MAX) return error
        expect(error.code).toMatch(/UNREACHABLE|DEADLINE/)
      }
      await sleep(AGAIN_MS)
    }
  }

  async #cut(): Promise<void> {
    await this.#close()
    this.#server = null
  }

  async #restore(): Promise<void> {
    const isNew = !existsSync(this.#file)
    const blob = await openRemote(`file://${this.#file}${isNew ? `?size=${SIZE}` : ''}`, { shape: 'blob' })
    const store = (await openBeside(this.#file))!
    const server = await serve(blob, { listen: `unix:${join(this.#folder, 'socket')}`, store })
    this.#server = server
    this.#close = async () => {
      await server.close()
      await blob.close()
      await store.close()
    }
  }

  /** What is here stays here: nothing of so small a region is given up. */
  #checkAvailability(): void {
    if (!this.#region) return
    const { availability } = this.#region.status()
    expect(availability).toBeGreaterThanOrEqual(this.#availability)
    this.#availability = availability
    const here = this.#region.presence().reduce((sum, [from, to]) => sum + to - from, 0)
    expect(Math.abs(here / SIZE - availability)).toBeLessThan(0.2)
  }

  /** All that was written is there at last, and everything is here; unless somebody else has it now. */
  async #end(): Promise<void> {
    if (!this.#server) await this.#restore()
    if (!this.#region) await this.#happen('open')
    const region = this.#region!
    const into = Buffer.alloc(SIZE)
    if (this.#isOvertaken) {
      await expect(region.sync({ signal: AbortSignal.timeout(500) })).rejects.toThrow()
      expect(readFileSync(this.#file).subarray(0, ELSE.length).equals(ELSE)).toBe(true)
    } else {
      await region.sync()
      expect(readFileSync(this.#file).equals(this.#model)).toBe(true)
      expect(await this.#again(() => region.read(0, into))).toBe(true)
      expect(into.equals(this.#model)).toBe(true)
      await until(() => region.status().availability === 1)
    }
  }

  async dispose(): Promise<void> {
    await this.#region?.close()
    await this.#cut().catch(() => {})
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

async function until(isSo: () => boolean): Promise<void> {
  for (const giveUpMs = Date.now() + SETTLE_MS; !isSo(); await sleep(10))
    if (Date.now() > giveUpMs) throw new Error('waited in vain')
}

const { test } = requires('built')

test(
  `a region becomes what its state machine says, and is what was written (SEED=${SEED})`,
  async () => {
    for (let n = 0; n < WALKS; n++) {
      const walk = new Walk(SEED + n)
      try {
        await walk.walk()
      } catch (error) {
        if (error instanceof Error) error.message = `SEED=${SEED + n}\n${walk.done.join('\n')}\n${error.message}`
        throw error
      } finally {
        await walk.dispose()
      }
    }
  },
  WALKS * WALK_MS,
)
