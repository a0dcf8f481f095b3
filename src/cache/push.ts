// Changes to the remote: cuts, staging, commits, one batch at a time and in order, under the writer's lease; tried again for ever.
import PQueue from 'p-queue'
import { type Deferred, deferred, lasting } from '../base/async.js'
import { giveBack, takeBytes } from '../base/buffers.js'
import { FerryError, isFerryError, isPermanent, toFerryError } from '../base/errors.js'
import type { MemoryBudget } from '../base/memory-budget.js'
import type { Claim, Claimed, CopySource, Outcome } from '../remote/commits.js'
import { Ahead } from './ahead.js'
import { type Plan, type PlanContext, planBatch, type Stage, type StagedRun } from './batch.js'
import type { Ino } from './filesystem.js'
import { Changed } from './inode.js'
import { type CommittedRecord, type CutRecord, Kind } from './records.js'
import { join, type Quarantined, type TreeState, UNKNOWN_VERSION } from './state.js'
import type { CommittingTree, Progress } from './tree-cache.js'

/** Staged in one call at most. */
const STAGE_BYTES_MAX = 4 * 1024 * 1024
/** Made by the remote in one call at most, out of what it has. */
const STAGE_COPY_BYTES_MAX = 256 * 1024 * 1024
const BACKOFF_MS_FIRST = 200
const BACKOFF_MS_MAX = 15_000
/** Who shares the lease looks so often whether it is free, and leaves it to others for longer than that before its next turn. */
const TURN_LOOK_MS = 100
const TURN_PAUSE_MS = 3 * TURN_LOOK_MS

const isPassing = ({ code }: FerryError) => code === 'UNREACHABLE' || code === 'DEADLINE' || code === 'ABORTED'

export interface PushOptions {
  flushIntervalMs: number
  delayMsMax: number
  dirtyBytesMax: number
  dirtyOperationsMax: number
  workers: number
  leaseMs: number
  /** The lease is held for one batch at a time. */
  shared: boolean
}

export interface PushHooks {
  claim: Claim
  plan: PlanContext
  /** The remote is about to be given a batch: `applying` is there until it is settled. */
  applying(): void
  /** The batch is settled: dirty pages became clean, names may have changed by conflicts. */
  settled(conflicts: { parent: Ino; name: string; keptAs: string }[]): void
  /** Everything that the journal was given so far survives power loss: the remote must never be ahead of it. */
  durable(): Promise<void>
  /** The state is that of the journal's end: whether a batch was on its way is known from then on. */
  replayed(): Promise<void>
  random: () => number
}

type Lease =
  | { state: 'none' }
  | { state: 'held'; epoch: number }
  | { state: 'lost'; why: string }
  | { state: 'elsewhere'; why: string }

interface Waiter {
  cut: number
  what: 'committed' | 'settled'
  done: Deferred<void>
}

export class Push {
  lease: Lease = { state: 'none' }
  /** Two hosts that take the lease at the same moment cannot both succeed. */
  exclusive = true
  /** Batches that are settled since this process began. */
  committedCount = 0
  /** Bytes that the remote has made out of what it had. */
  copiedBytes = 0
  lastError: FerryError | null = null
  failures = 0
  /** Grows with each settled batch: who lists the remote meanwhile must look again. */
  serial = 0
  /** The intent is there and not yet applied: names and versions at the remote are in motion. */
  applying: Promise<void> | null = null
  /** Has this writer's own past been cleared up (a batch that a crash left open)? */
  #caughtUp = false
  #cuts = 0
  #committed = 0
  #settled = 0
  #waiters: Waiter[] = []
  #due = false
  /** What the last cut left open: so many operations; and whether files that grow are among it, whose time will come. */
  #held = { operations: -1, growing: false }
  /** The next cut leaves nothing out. */
  #hurried = false
  #timer: NodeJS.Timeout | null = null
  #renewTimer: NodeJS.Timeout | null = null
  #wake: Deferred<void> = deferred()
  #closing = false
  #loop: Promise<void> | null = null
  readonly #abort = lasting()
  readonly #queue: PQueue
  readonly #ahead: Ahead
  /** Files that the last cut left out. */
  #growing = new Set<Ino>()
  /** Unsent when somebody last asked for everything to be sent. */
  #operationsAtStart = 0
  /** When the lease that is shared may be taken again. */
  #turnAtMs = 0
  readonly #opened = deferred()
  #progress = { bytesDone: 0, bytesTotal: 0 }

  constructor(
    readonly remote: CommittingTree,
    readonly state: TreeState,
    readonly options: PushOptions,
    readonly hooks: PushHooks,
    readonly memory: MemoryBudget,
  ) {
    this.#queue = new PQueue({ concurrency: options.workers })
    this.#ahead = new Ahead(remote, state, memory)
  }

  /** Take the lease now, or (shared, until `opened`) see that it may be had. LEASE_HELD and the like are the caller's to deal with. */
  async claim(signal?: AbortSignal): Promise<void> {
    const claimed = await this.#take(signal)
    if (this.options.shared) await this.#leave()
    else void this.#caught(claimed).catch(() => {})
  }

  /** What is shared is taken for each batch from now on. */
  opened(): void {
    this.#opened.resolve()
  }

  async #take(signal?: AbortSignal): Promise<Claimed> {
    const claimed = await this.remote.claim(this.hooks.claim, signal)
    this.lease = { state: 'held', epoch: claimed.epoch }
    this.exclusive = claimed.exclusive ?? true
    this.#renewTimer ??= setInterval(() => void this.#renew(), this.options.leaseMs / 3).unref()
    return claimed
  }

  /** Others have their turn. */
  async #leave(): Promise<void> {
    if (this.lease.state !== 'held') return
    this.lease = { state: 'none' }
    await this.remote.release(AbortSignal.timeout(this.options.leaseMs)).catch(error => this.#failed(error))
    this.#turnAtMs = performance.now() + TURN_PAUSE_MS
  }

  /** Ends when it is done, the engine closes, or the lease is lost: nothing is sent before. */
  async #caught(claimed: Claimed): Promise<void> {
    await this.hooks.replayed()
    await this.#insist(async () => this.#catchUp(claimed))
  }

  /** The batch that was on its way when an earlier process, or an earlier turn, ended: committed, or part of the next one. */
  #catchUp(claimed: Claimed) {
    const { state } = this
    if (this.#caughtUp && !this.options.shared) return
    if (state.flight) {
      if ((claimed.batch ?? 0) >= state.flightBatch)
        this.#finish(withUnknown(state, claimed.outcome ?? NOTHING), flightPaths(state))
      else {
        state.append(Kind.merged, [state.flightBatch])
        state.merged()
        // Somebody may wait for what it had.
        this.#hurried = true
      }
    }
    state.batch = Math.max(state.batch, claimed.batch ?? 0)
    if (!this.#caughtUp && state.quarantine.size) {
      state.append(Kind.allowed, [])
      state.quarantine.clear()
      // What was refused is open without having been counted again.
      state.open.operations ||= state.open.inodes.size + state.open.names.size
    }
    this.#caughtUp = true
    this.poke()
    this.#wake.resolve()
  }

  start(): void {
    this.#loop ??= this.#run()
  }

  /** Something changed: a cut will be due. */
  poke(): void {
    const { state, options } = this
    if (this.#closing || state.open.operations === 0) return
    if (this.#isHeld && !this.#held.growing) return
    if (this.#isMuch) this.#cutNow()
    else this.#timer ??= setTimeout(() => this.#cutNow(), options.flushIntervalMs)
  }

  /** Somebody waits for room: a cut is due now. */
  hurry(): void {
    if (this.#closing || this.state.open.operations === 0 || (this.#isHeld && !this.#held.growing)) return
    this.#hurried = true
    this.#cutNow()
  }

  /** Nothing was changed since the last cut left something open. */
  get #isHeld() {
    return this.state.open.operations === this.#held.operations
  }

  /** More should not wait. */
  get #isMuch() {
    const { state, options } = this
    return state.dirtyBytes >= options.dirtyBytesMax / 2 || state.open.operations >= options.dirtyOperationsMax / 2
  }

  #cutNow() {
    if (this.#timer) clearTimeout(this.#timer)
    this.#timer = null
    this.#due = true
    this.#wake.resolve()
  }

  /** Resolves when the remote has everything up to now: its intent is there, or it is applied. */
  async flush(
    what: 'committed' | 'settled',
    options: { signal?: AbortSignal; onProgress?: (progress: Progress) => void } = {},
  ): Promise<void> {
    if (this.lease.state === 'lost') throw new FerryError('LEASE_LOST', { detail: this.lease.why })
    const { state } = this
    const nothing = state.open.empty || (this.#isHeld && !this.#held.growing)
    const cut = nothing ? this.#cuts : this.#cuts + 1
    if (
      (what === 'committed' ? this.#committed : this.#settled) >= cut &&
      (state.flight === null || what === 'committed')
    )
      return
    const waiter: Waiter = { cut, what, done: deferred() }
    this.#operationsAtStart = state.open.operations + (state.flight?.operations ?? 0)
    this.#waiters.push(waiter)
    this.#cutNow()
    const ticker = options.onProgress && setInterval(() => options.onProgress?.(this.progress()), 100)
    const stop = () => waiter.done.reject(this.lastError ?? new FerryError('ABORTED'))
    options.signal?.addEventListener('abort', stop, { once: true })
    try {
      await waiter.done.promise
    } finally {
      clearInterval(ticker)
      options.signal?.removeEventListener('abort', stop)
      this.#waiters = this.#waiters.filter(each => each !== waiter)
      options.onProgress?.(this.progress())
    }
  }

  progress(): Progress {
    const { state } = this
    const operations = state.open.operations + (state.flight?.operations ?? 0)
    return {
      bytesDone: this.#progress.bytesDone,
      // What is on its way counts as dirty until its batch is settled.
      bytesTotal: Math.max(this.#progress.bytesDone, state.dirtyBytes),
      operationsDone: Math.max(0, this.#operationsAtStart - operations),
      operationsTotal: Math.max(this.#operationsAtStart, operations),
    }
  }

  /** Ends after the step that is under way; nothing is given up but the wait. */
  async close(): Promise<void> {
    if (this.#closing) return
    this.#closing = true
    if (this.#timer) clearTimeout(this.#timer)
    if (this.#renewTimer) clearInterval(this.#renewTimer)
    this.#abort.abort()
    this.#wake.resolve()
    this.#opened.resolve()
    await this.#loop
    for (const waiter of this.#waiters) waiter.done.reject(new FerryError('CLOSED'))
    if (this.lease.state === 'held') await this.#ahead.close(AbortSignal.timeout(this.options.leaseMs))
    await this.#leave()
  }

  async #run(): Promise<void> {
    const { state, options } = this
    if (options.shared) {
      await this.#opened.promise
      // What an earlier process has left is the first turn's.
      this.#due ||= state.flight !== null || state.open.operations + state.quarantine.size > 0
    }
    while (!this.#closing) {
      const isReady = options.shared || (this.lease.state === 'held' && this.#caughtUp)
      if (!this.#due || !isReady) {
        await this.#wake.promise
        this.#wake = deferred()
        continue
      }
      this.#due = false
      try {
        if (options.shared) await this.#inTurn()
        else {
          await this.#batch()
          if (this.#held.growing) await this.#ahead.send(this.#growing, this.#abort.signal)
        }
      } catch (error) {
        this.#failed(error)
        // What one turn did not bring to its end is for the next one.
        this.#due ||= options.shared && state.flight !== null
      }
      this.poke()
    }
  }

  /** One batch under a lease that others have between our batches. */
  async #inTurn(): Promise<void> {
    await this.#sleep(Math.max(0, this.#turnAtMs - performance.now()))
    const claimed = await this.#insist(() => this.#take(this.#abort.signal))
    try {
      this.#catchUp(claimed)
      await this.#batch()
    } finally {
      await this.#leave()
    }
  }

  async #batch(): Promise<void> {
    const { state, hooks } = this
    if (!state.flight) this.#cut()
    const flight = state.flight
    if (!flight) return
    const plan = planBatch(state, flight, hooks.plan)
    if (plan.changes.length === 0) return this.#finish(NOTHING, plan.inodes)
    const refused: Outcome['refused'] = []
    this.#progress = { bytesDone: 0, bytesTotal: plan.bytes }
    await this.#insist(() => hooks.durable())
    await this.#insist(() => this.#stageAll(plan, refused))
    const changes = refused.length
      ? plan.changes.filter(change => !refused.some(({ path }) => 'path' in change && change.path === path))
      : plan.changes
    const batch = { writer: hooks.claim.writer, number: state.flightBatch, cutAtMs: state.now.ms(), changes }
    const applied = deferred()
    try {
      await this.#insist(async () => {
        this.applying = applied.promise
        hooks.applying()
        await this.remote.commit(batch, this.#abort.signal)
      })
      this.#committed = this.#cuts
      this.#answer('committed', this.#committed)
      const outcome = await this.#insist(() => this.remote.settle(this.#abort.signal))
      this.#finish({ ...outcome, refused: [...outcome.refused, ...refused] }, plan.inodes)
    } finally {
      this.applying = null
      applied.resolve()
    }
  }

  #cut() {
    const { state } = this
    const everything = this.#hurried || this.#isMuch || this.#waiters.some(waiter => waiter.cut > this.#cuts)
    this.#hurried = false
    const growing = everything ? new Set<Ino>() : state.growing(this.options.delayMsMax)
    if (growing.size === 0 || !state.isOnly(growing)) {
      const number = state.batch + 1
      this.#cuts++
      const record: CutRecord = growing.size > 0 ? [number, [...growing]] : [number]
      state.append(Kind.cut, record)
      state.cut(number, growing)
    }
    this.#growing = growing
    this.#held = { operations: state.open.operations, growing: growing.size > 0 }
  }

  /** Tries until it works, or the lease is lost, or the engine closes; or others have waited for the lease for as long as it is valid. */
  async #insist<T>(step: () => Promise<T>): Promise<T> {
    const begunMs = performance.now()
    for (let tries = 0; ; tries++) {
      const startedMs = performance.now()
      try {
        const result = await step()
        this.lastError = null
        return result
      } catch (caught) {
        const error = toFerryError(caught)
        if (this.#closing) throw new FerryError('CLOSED', { cause: error })
        const isLong = performance.now() - begunMs > this.options.leaseMs
        // It is somebody else's turn.
        if (error.code === 'LEASE_HELD') {
          if (isLong) this.#failed(error)
          await this.#sleep(TURN_LOOK_MS * (0.5 + this.hooks.random()))
          continue
        }
        this.#failed(error)
        if (error.code === 'LEASE_LOST' || (this.options.shared && this.lease.state === 'held' && isLong)) throw error
        // Of many calls one failed, perhaps: those before it are not made again.
        const gotSomewhere = performance.now() - startedMs > BACKOFF_MS_FIRST / 4
        if (gotSomewhere && isPassing(error)) tries = 0
        const backoff = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_FIRST * 2 ** Math.min(tries, 10))
        await this.#sleep(backoff * (0.5 + this.hooks.random()))
      }
    }
  }

  #sleep(ms: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(done, ms)
      const signal = this.#abort.signal
      function done() {
        clearTimeout(timer)
        signal.removeEventListener('abort', done)
        resolve()
      }
      signal.addEventListener('abort', done)
    })
  }

  #failed(caught: unknown) {
    const error = toFerryError(caught)
    if (error.code === 'CLOSED' || error.code === 'ABORTED') return
    this.lastError = error
    this.failures++
    if (error.code !== 'LEASE_LOST' || this.lease.state === 'lost') return
    if (this.options.shared) {
      this.lease = { state: 'none' }
      return
    }
    this.lease = { state: 'lost', why: error.message }
    for (const waiter of this.#waiters) waiter.done.reject(error)
  }

  async #renew(): Promise<void> {
    if (this.lease.state !== 'held' || this.#closing) return
    try {
      await this.remote.renew(this.#abort.signal)
    } catch (error) {
      this.#failed(error)
    }
  }

  /** Stages are sent in parallel; what was sent is not sent again when a later one fails. */
  async #stageAll(plan: Plan, refused: Outcome['refused']): Promise<void> {
    const left = plan.stages.map(stage => () => this.#stage(plan, stage, refused))
    const results = await Promise.allSettled(left.map(work => this.#queue.add(work)))
    const failed = results.find(result => result.status === 'rejected')
    if (failed) throw (failed as PromiseRejectedResult).reason
    plan.stages = []
  }

  async #stage(plan: Plan, stage: Stage, refused: Outcome['refused']): Promise<void> {
    while (stage.runs.length) {
      const runs = nextRuns(stage.runs)
      const bytes = runs.reduce((sum, { length }) => sum + length, 0)
      try {
        if (!runs[0].copy) await this.#stageBytes(stage.id, runs, bytes)
        else if (!(await this.#stageCopy(stage.id, runs, bytes))) continue
      } catch (error) {
        if (!isPermanent(error)) throw error
        const path = [...plan.inodes].find(([, ino]) => ino === stage.ino)?.[0] ?? ''
        const { code, message } = toFerryError(error)
        refused.push({ path, code, detail: message })
        return
      }
      stage.runs.splice(0, runs.length)
      this.#progress.bytesDone += bytes
    }
  }

  /** false: the remote has not what it had, or it would be no quicker. Then they are sent. */
  async #stageCopy(id: string, runs: StagedRun[], length: number): Promise<boolean> {
    const [{ at, copy }] = runs
    try {
      await this.remote.stageCopy!(this.state.flightBatch, id, at, { ...copy!, length }, this.#abort.signal)
      this.copiedBytes += length
      return true
    } catch (error) {
      if (!isPermanent(error) && !isFerryError(error, 'STALE', 'NOT_FOUND', 'SHORT_READ', 'IS_DIRECTORY')) throw error
      for (const run of runs) run.copy = undefined
      return false
    }
  }

  async #stageBytes(id: string, runs: StagedRun[], length: number): Promise<void> {
    const { state } = this
    await this.memory.take(length, false)
    try {
      const buffer = takeBytes(length)
      let at = 0
      for (const run of runs) {
        await state.slots.read(run.slot, run.offset, buffer.subarray(at, at + run.length))
        at += run.length
      }
      await this.remote.stage(state.flightBatch, id, runs[0].at, buffer, this.#abort.signal)
      giveBack(buffer)
    } finally {
      this.memory.give(length)
    }
  }

  /** The batch is at the remote: write that down, then let go of what it held. */
  #finish(outcome: Outcome, inodes: Map<string, Ino>) {
    const { state } = this
    const ino = (path: string) => inodes.get(path) ?? 0
    const moved = outcome.moved ?? []
    for (const [path] of [...outcome.versions, ...moved]) {
      const inode = inodes.has(path) ? null : state.atFlightPath(path)
      if (!inode) continue
      state.ensureKnown(inode)
      inodes.set(path, inode.ino)
    }
    const atMs = state.now.ms()
    const conflicts: CommittedRecord[2] = []
    // Of two at one path the last is ours: before it, theirs came there with what we had moved.
    for (const [path, keptAs] of new Map(outcome.conflicts.map(({ path, keptAs }) => [path, keptAs]))) {
      const inode = state.find(ino(path))
      if (inode) inodes.set(keptAs, inode.ino)
      if (inode?.flightParent) conflicts.push([inode.ino, inode.flightParent, inode.flightName, keptAs, atMs])
    }
    const record: CommittedRecord = [
      state.flightBatch,
      [...outcome.versions, ...moved.filter(([path, , was]) => state.find(ino(path))?.version === was)].map(
        ([path, version]) => [ino(path), version],
      ),
      conflicts,
      outcome.refused.flatMap(({ path, code, detail }) =>
        code === 'NOT_FOUND' && this.#isTheirs(ino(path)) ? [] : [[ino(path), path, code, detail]],
      ),
    ]
    state.append(Kind.committed, record)
    settle(state, record)
    this.#ahead.settled(this.#abort.signal)
    this.committedCount++
    this.serial++
    this.#committed = this.#settled = this.#cuts
    this.#progress = { bytesDone: 0, bytesTotal: 0 }
    this.hooks.settled(conflicts.map(([, parent, name, keptAs]) => ({ parent, name, keptAs })))
    this.#answer('committed', this.#cuts)
    this.#answer('settled', this.#cuts)
  }

  /** Somebody removed a file that only has another name or other attributes here: it is gone here too, when its directory is listed again. */
  #isTheirs(ino: Ino): boolean {
    const { state } = this
    const inode = state.find(ino)
    if (!inode || inode.isDirectory || inode.flight & (Changed.new | Changed.data)) return false
    const directory = inode.flightParent ? state.find(inode.flightParent) : undefined
    if (directory) directory.listedAtMs = -Infinity
    return true
  }

  #answer(what: Waiter['what'], cut: number) {
    for (const waiter of this.#waiters) if (waiter.what === what && waiter.cut <= cut) waiter.done.resolve()
    if (this.#waiters.some(waiter => waiter.cut > this.#cuts)) this.#cutNow()
  }
}

const NOTHING: Outcome = { versions: [], conflicts: [], refused: [] }

/** Who applied the batch may not have heard which versions its attributes made: they are not compared with what we knew before. */
function withUnknown(state: TreeState, outcome: Outcome): Outcome {
  const told = new Set([...outcome.versions, ...(outcome.moved ?? [])].map(([path]) => path))
  const untold = [...flightPaths(state)].filter(([path, ino]) => {
    const inode = state.inode(ino)
    return inode.isFile && inode.flight & (Changed.attributes | Changed.data) && !told.has(path)
  })
  return {
    ...outcome,
    versions: [...outcome.versions, ...untold.map(([path]) => [path, UNKNOWN_VERSION] as [string, string])],
  }
}

/** Whom the lines of a batch are about that an earlier process cut. */
function flightPaths(state: TreeState): Map<string, Ino> {
  const paths = new Map<string, Ino>()
  for (const ino of state.flight?.inodes ?? []) {
    const inode = state.inode(ino)
    const directory = inode.flightParent > 0 ? state.path(state.inode(inode.flightParent)) : null
    if (directory !== null) paths.set(join(directory, inode.flightName), ino)
  }
  return paths
}

/** Those at the start that go in one call: bytes in a row, or a copy of bytes in a row. */
function nextRuns(runs: StagedRun[]): StagedRun[] {
  const [first] = runs
  const most = first.copy ? STAGE_COPY_BYTES_MAX : STAGE_BYTES_MAX
  let bytes = 0
  let count = 0
  for (const { at, length, copy } of runs) {
    if (at !== first.at + bytes || (bytes > 0 && bytes + length > most) || !goesOn(first.copy, copy, bytes)) break
    bytes += length
    count++
  }
  return runs.slice(0, count)
}

const goesOn = (first: CopySource | undefined, copy: CopySource | undefined, bytes: number): boolean =>
  first?.path === copy?.path && first?.version === copy?.version && (!first || first.at + bytes === copy?.at)

/** What became of the flight, in memory; replay does it again. */
export function settle(state: TreeState, [, versions, conflicts, refused]: CommittedRecord): void {
  const refusedInos = new Map<Ino, Quarantined>(
    refused.map(([ino, path, code, detail]) => [ino, { path, code, detail }]),
  )
  state.committed(new Map(versions), refusedInos)
  for (const [ino, parent, name, keptAs, atMs] of conflicts) {
    const inode = state.find(ino)
    const directory = state.find(parent)
    const keptName = keptAs.slice(keptAs.lastIndexOf('/') + 1)
    state.conflicts.push({ path: keptAs.slice(0, keptAs.lastIndexOf('/') + 1) + name, keptAs, atMs })
    if (!inode || !directory) continue
    inode.remoteParent = parent
    inode.remoteName = keptName
    const dentry = state.children(directory).get(name)
    const changed = state.open.names.get(`${parent}/${name}`)
    if (changed) changed.base = 0
    if (dentry?.ino !== ino) continue
    state.dropDentry(directory, name)
    state.setDentry(directory, keptName, inode)
    inode.parent = parent
    inode.name = keptName
    directory.listedAtMs = -Infinity
    state.persist(inode)
  }
}
