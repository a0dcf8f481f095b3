// The chain: records numbered from 1, each put once and only if absent, one after the head. That put is the only fence that
// counts: whoever was overtaken finds its number taken. The heartbeat only tells those who wait that the holder is alive.
import { randomUUID } from 'node:crypto'
import { inParallel } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { Claim, Holder, Outcome } from './commits.js'
import { isDead, runs } from './holder.js'
import {
  type Committed,
  type DoneRecord,
  decode,
  encode,
  type IntentRecord,
  type LeaseRecord,
  type LogRecord,
  type ReleaseRecord,
} from './intent.js'
import type { Store } from './store.js'

const log = logger('lease')

const LOG = 'log/'
const DIGITS = 16
/** Of writers whose newest batch is remembered. */
const WRITERS_MAX = 64
/** Two for each writer that was overtaken without having released. */
const BARRIERS_MAX = 2_000
/** Somebody else's records may be pruned or added between our list and our gets: so often we look again. */
const READS_MAX = 16
const TAKES_MAX = 64
const GETS_MAX = 4
/** Nobody else tries a conditional put again: a remote that fails one call in three would cost too many claims. */
const PUTS_MAX = 4
/** Where many records can go in one request they wait for each other: so many, or with so many bytes. */
const PRUNE_RECORDS = 64
const PRUNE_BYTES = 8 * 1024 ** 2
/** Heartbeats of former epochs. */
const REMOVED_AT_ONCE = 8
/** Of one request. */
const REMOVES_MAX = 1_000
/** Of an outcome that is kept for its writer, versions: without them, they are unknown until they are asked for. */
const VERSIONS_MAX = 5_000

export interface LeaseOptions {
  /** Monotonic, ms. */
  now: () => number
  /** Wall clock, ms. */
  wallMs: () => number
  /** Whether the process that a claim of this host and boot names still runs. */
  alive?: (holder: Claim) => boolean
}

export interface Numbered<R> {
  number: number
  record: R
}

/** The chain as it was at one moment. */
export interface ChainState<Change> {
  head: Numbered<LogRecord<Change>> | null
  /** That of the head's epoch. */
  lease: LeaseRecord | null
  /** The intent that is committed and not known to be applied. */
  pending: Numbered<IntentRecord<Change>> | null
  /** Numbers of all records there are. */
  numbers: number[]
}

interface Held {
  epoch: number
  lease: LeaseRecord
  head: number
  /** When the head was last seen to be ours. */
  checkedAtMs: number
  beats: number
  /** Records before the lease's own that nobody needs. */
  stale: number[]
  lastDone: number | null
}

type New<R> = R extends unknown ? Omit<R, 'epoch' | 'lease'> : never

export class Lease<Change> {
  readonly #store: Store
  readonly #options: LeaseOptions
  readonly #instance = randomUUID()
  #held: Held | null = null
  /** Whom we wait for, and since when it has not moved. */
  #watched: { key: string; sinceMs: number } | null = null
  #renewing: Promise<void> | null = null
  /** While held: who held it before; null if nobody did. */
  previous: Claim | null = null
  /** While held: whether the store really refuses to put what is there already; null: it did not answer when it was tried. */
  exclusive: boolean | null = null
  /** While held: what became of this writer's newest batch, if somebody has noted it. */
  outcome: Outcome | null = null
  /** While held: so long the one before may go on until it looks whether the lease is still its own. */
  graceMs = 0
  /** While held: the committed batch that is not applied yet. */
  pending: Numbered<IntentRecord<Change>> | null = null

  constructor(store: Store, options: LeaseOptions) {
    this.#store = store
    this.#options = options
  }

  get held(): boolean {
    return this.#held !== null
  }

  /** LEASE_LOST if it is not held. */
  get epoch(): number {
    return this.#mine().epoch
  }

  /** Somebody who may still be alive has worked on the pending intent. */
  get haunted(): boolean {
    return this.#mine().lease.haunted
  }

  async read(signal?: AbortSignal): Promise<ChainState<Change>> {
    for (let tries = 0; ; tries++) {
      try {
        return await this.#read(signal)
      } catch (error) {
        // Pruned between the list and the get: the chain has moved on.
        if (!isFerryError(error, 'NOT_FOUND') || tries === READS_MAX) throw error
      }
    }
  }

  /** The same; null if no record came after this number. */
  async readAfter(head: number, signal?: AbortSignal): Promise<ChainState<Change> | null> {
    return (await this.#numbers(head, signal)).length === 0 ? null : this.read(signal)
  }

  /** Whether the intent of this number is still the one that is not applied. */
  async isPending(number: number, signal?: AbortSignal): Promise<boolean> {
    if (this.#held) return this.pending?.number === number
    const [first, ...more] = await this.#numbers(number - 1, signal)
    if (first !== number) return false
    return more.length === 0 || (await this.read(signal)).pending?.number === number
  }

  async #read(signal?: AbortSignal): Promise<ChainState<Change>> {
    const numbers = await this.#numbers(0, signal)
    if (numbers.length === 0) return { head: null, lease: null, pending: null, numbers }
    const number = numbers[numbers.length - 1]
    const record = await this.#get(number, signal)
    const lease = record.kind === 'lease' ? record : ((await this.#get(record.lease, signal)) as LeaseRecord)
    const waiting = record.kind === 'intent' ? number : record.kind === 'done' ? null : record.pending
    if (waiting === null) return { head: { number, record }, lease, pending: null, numbers }
    const intent = waiting === number ? record : await this.#get(waiting, signal)
    return {
      head: { number, record },
      lease,
      pending: { number: waiting, record: intent as IntentRecord<Change> },
      numbers,
    }
  }

  async holder(signal?: AbortSignal): Promise<Holder | null> {
    const { head, lease } = await this.read(signal)
    if (!lease || head?.record.kind === 'release') return null
    const { host, pid, shared = false } = lease.claim
    return { host, pid, epoch: lease.epoch, sinceMs: lease.atMs, shared }
  }

  /**
   * Begin a new epoch. LEASE_HELD while another holder lives, or is not known to be dead.
   * @returns the newest committed batch of this writer
   */
  async take(claim: Claim, signal?: AbortSignal): Promise<number | null> {
    this.#held = null
    for (let tries = 0; tries < TAKES_MAX; tries++) {
      const before = await this.read(signal)
      const dead = await this.#free(before, claim, signal)
      const number = (before.head?.number ?? 0) + 1
      const committed = committedIn(before)
      const released = before.head === null || before.head.record.kind === 'release'
      const barriers = [...(before.lease?.barriers ?? []), ...(dead || released ? [] : [before.head!.number, number])]
      const lease: LeaseRecord = {
        kind: 'lease',
        epoch: (before.head?.record.epoch ?? 0) + 1,
        lease: number,
        claim,
        instance: this.#instance,
        atMs: this.#options.wallMs(),
        pending: before.pending?.number ?? null,
        haunted: before.pending !== null && (!dead || before.lease!.haunted),
        committed,
        barriers: barriers.slice(-BARRIERS_MAX),
      }
      const last = before.head?.record
      // Its writer has ended, and the record goes.
      if (last?.kind === 'done' && last.writer !== claim.writer)
        await this.keep(last.writer, last.batch, last.outcome, signal)
      const checkedAtMs = this.#options.now()
      if (!(await this.#put(number, lease, signal))) {
        const theirs = await this.#get(number, signal).catch(unlessMissing)
        // It may be our own put whose answer got lost.
        if (theirs?.kind !== 'lease' || theirs.instance !== this.#instance || theirs.epoch !== lease.epoch) continue
      }
      // Were we asleep since we read the chain, that number may have been used and pruned: then others follow it.
      if ((await this.#numbers(number, signal)).length > 0) continue
      const kept = new Set([...lease.barriers, lease.pending])
      const stale = before.numbers.filter(one => !kept.has(one))
      this.#held = { epoch: lease.epoch, lease, head: number, checkedAtMs, beats: 0, stale, lastDone: null }
      this.pending = before.pending
      this.graceMs = !dead && claim.takeOver ? before.lease!.claim.leaseMs / 3 : 0
      this.previous = before.lease?.claim ?? null
      this.#watched = null
      log.debug('lease taken', { epoch: lease.epoch, from: before.lease?.claim.host, pending: lease.pending })
      await Promise.all([this.#beat(signal), this.#probe(number, lease, signal)])
      const batch = new Map(committed).get(claim.writer) ?? null
      const isOurs = last?.kind === 'done' && last.writer === claim.writer
      this.outcome = isOurs
        ? (last.outcome ?? null)
        : batch === null
          ? null
          : await this.#kept(claim.writer, batch, signal)
      return batch
    }
    throw new FerryError('LEASE_HELD', { detail: 'it changed hands too often' })
  }

  /** What became of another writer's batch, for when it is back. */
  async keep(writer: string, batch: number, outcome: Outcome | undefined, signal?: AbortSignal): Promise<void> {
    if (outcome) await this.#store.put(outcomeName(writer), encode({ batch, outcome }), undefined, signal)
  }

  async #kept(writer: string, batch: number, signal?: AbortSignal): Promise<Outcome | null> {
    const bytes = await this.#store.get(outcomeName(writer), undefined, signal).catch(unlessMissing)
    if (!bytes) return null
    const kept = decode<{ batch: number; outcome: Outcome }>(bytes, outcomeName(writer))
    return kept.batch === batch ? kept.outcome : null
  }

  /** Our own record once more: who does not look at the condition puts the same bytes again, which does no harm. */
  async #probe(number: number, lease: LeaseRecord, signal?: AbortSignal): Promise<void> {
    this.exclusive = await this.#put(number, lease, signal).then(
      again => !again,
      () => null,
    )
  }

  /** Whether the holder before us is known to write no more; LEASE_HELD if we may not follow it yet. */
  async #free({ head, lease }: ChainState<Change>, claim: Claim, signal?: AbortSignal): Promise<boolean> {
    if (!head || !lease || head.record.kind === 'release') return true
    const { epoch, claim: holder } = lease
    if (lease.instance === this.#instance || isDead(holder, claim, this.#options.alive ?? runs)) return true
    if (claim.takeOver) return false
    const beat = await this.#store.get(heartbeatName(epoch), undefined, signal).catch(unlessMissing)
    const key = `${head.number} ${Buffer.from(beat ?? []).toString('latin1')}`
    const now = this.#options.now()
    if (this.#watched?.key !== key) this.#watched = { key, sinceMs: now }
    else if (now - this.#watched.sinceMs >= holder.leaseMs) return false
    throw new FerryError('LEASE_HELD', {
      detail: `${holder.host}, process ${holder.pid}, since ${new Date(lease.atMs).toISOString()}, epoch ${epoch}`,
    })
  }

  /** LEASE_LOST unless the head of the chain is ours. */
  async check(signal?: AbortSignal): Promise<void> {
    const held = this.#mine()
    const atMs = this.#options.now()
    for (const number of await this.#numbers(held.head, signal)) {
      if (number > held.head) this.#adopt(number, await this.#get(number, signal).catch(unlessMissing))
    }
    held.checkedAtMs = Math.max(held.checkedAtMs, atMs)
  }

  /** {@link check}, and a sign of life. */
  async renew(signal?: AbortSignal): Promise<void> {
    await this.check(signal)
    await this.#beat(signal)
  }

  /** {@link renew} if a third of the lease has passed since the last one: before each step that changes something. */
  async guard(signal?: AbortSignal): Promise<void> {
    const held = this.#mine()
    if (this.#options.now() - held.checkedAtMs <= held.lease.claim.leaseMs / 3) return
    this.#renewing ??= this.renew(signal).finally(() => {
      this.#renewing = null
    })
    await this.#renewing
  }

  /**
   * One record more. LEASE_LOST if somebody else's is there.
   * @returns false if there was another record of ours instead, whose put had seemed to fail: look again at `pending`
   */
  async append(wanted: New<IntentRecord<Change> | DoneRecord | ReleaseRecord>, signal?: AbortSignal): Promise<boolean> {
    const held = this.#mine()
    const number = held.head + 1
    const record = { ...wanted, epoch: held.epoch, lease: held.lease.lease } as LogRecord<Change>
    const atMs = this.#options.now()
    const added = await this.#put(number, record, signal)
    const there = added ? record : await this.#get(number, signal).catch(unlessMissing)
    this.#adopt(number, there)
    held.checkedAtMs = Math.max(held.checkedAtMs, atMs)
    return added || (there!.kind === record.kind && batchOf(there!) === batchOf(record))
  }

  /** Records that nobody needs any more go. Never fails: what is left goes the next time. `now`: they do not wait for others. */
  async prune({ now }: { now: boolean }, signal?: AbortSignal): Promise<void> {
    const { stale } = this.#mine()
    const store = this.#store
    if (store.removeAll && !now && stale.length < PRUNE_RECORDS && this.#putBytes < PRUNE_BYTES) return
    // From the oldest on: whoever finds the one finds those that followed it.
    stale.sort((one, other) => one - other)
    try {
      while (stale.length > 0) {
        const some = stale.slice(0, store.removeAll ? REMOVES_MAX : 1).map(nameOf)
        await (store.removeAll ? store.removeAll(some, signal) : store.remove(some[0], undefined, signal))
        stale.splice(0, some.length)
      }
      this.#putBytes = 0
    } catch (error) {
      log.debug('chain not pruned', { error })
    }
  }

  /** Heartbeats of former epochs go. */
  async sweep(signal?: AbortSignal): Promise<void> {
    const mine = heartbeatName(this.#mine().epoch)
    const former = (await this.#store.list('heartbeat-', undefined, signal)).filter(({ name }) => name !== mine)
    await inParallel(former, REMOVED_AT_ONCE, ({ name }) => this.#store.remove(name, undefined, signal).catch(() => {}))
  }

  /** Not ours any more, by our own will. */
  async release(signal?: AbortSignal): Promise<void> {
    const held = this.#mine()
    for (;;) {
      const { pending } = this
      const committed = withCommitted(held.lease.committed, this.#lastCommitted)
      if (await this.append({ kind: 'release', pending: pending?.number ?? null, committed }, signal)) break
    }
    const { epoch } = held
    await this.prune({ now: true }, signal)
    this.#held = null
    this.pending = null
    this.#lastCommitted = null
    await this.#store.remove(heartbeatName(epoch), undefined, signal).catch(() => {})
  }

  #lastCommitted: Committed | null = null
  /** Of records, since they were last pruned. */
  #putBytes = 0

  #mine(): Held {
    if (!this.#held) throw new FerryError('LEASE_LOST', { detail: 'not held' })
    return this.#held
  }

  /** A record after our head: ours after all, or the end. */
  #adopt(number: number, record: LogRecord<Change> | null): void {
    const held = this.#mine()
    if (record?.epoch !== held.epoch) {
      this.#held = null
      throw new FerryError('LEASE_LOST', {
        detail: record ? `epoch ${record.epoch} follows our ${held.epoch}` : 'the chain was pruned',
      })
    }
    held.head = number
    if (record.kind === 'intent') {
      this.pending = { number, record }
      this.#lastCommitted = [record.writer, record.batch]
      if (held.lastDone) held.stale.push(held.lastDone)
    } else if (record.kind === 'done') {
      if (this.pending) held.stale.push(this.pending.number)
      this.pending = null
      held.lastDone = number
    }
  }

  async #beat(signal?: AbortSignal): Promise<void> {
    const held = this.#mine()
    await this.#store.put(heartbeatName(held.epoch), encode({ beats: ++held.beats }), undefined, signal)
  }

  /** Numbers of records after `after`, ascending. */
  async #numbers(after: number, signal?: AbortSignal): Promise<number[]> {
    const numbers: number[] = []
    for (let last = nameOf(after); ; ) {
      const page = await this.#store.list(LOG, last, signal)
      for (const { name } of page) if (/^log\/\d{16}$/.test(name)) numbers.push(Number(name.slice(LOG.length)))
      if (page.length === 0) return numbers
      last = page[page.length - 1].name
    }
  }

  async #get(number: number, signal?: AbortSignal): Promise<LogRecord<Change>> {
    const name = nameOf(number)
    for (let tries = 1; ; tries++) {
      const bytes = await this.#store.get(name, undefined, signal)
      try {
        return decode<LogRecord<Change>>(bytes, name)
      } catch (error) {
        // It may have been damaged, or cut short, on its way only.
        if (tries === GETS_MAX) throw error
      }
    }
  }

  /** false: there is one of this number. */
  async #put(number: number, record: LogRecord<Change>, signal?: AbortSignal): Promise<boolean> {
    const bytes = encode(record)
    for (let tries = 1; ; tries++) {
      try {
        await this.#store.put(nameOf(number), bytes, { ifAbsent: true }, signal)
        this.#putBytes += bytes.byteLength
        return true
      } catch (error) {
        // Also if it is ours, of a try that seemed to fail: whoever asks looks.
        if (isFerryError(error, 'CONFLICT')) return false
        if (tries === PUTS_MAX || signal?.aborted || !isFerryError(error, 'UNREACHABLE', 'INTERRUPTED', 'IO'))
          throw error
      }
    }
  }
}

const nameOf = (number: number) => LOG + String(number).padStart(DIGITS, '0')
const heartbeatName = (epoch: number) => `heartbeat-${epoch}`
const outcomeName = (writer: string) => `outcome-${writer}`

/** As much of it as is kept. */
export const keptOf = ({ versions, ...rest }: Outcome): Outcome => ({
  ...rest,
  versions: versions.length > VERSIONS_MAX ? [] : versions,
})

const unlessMissing = (error: unknown): null => {
  if (isFerryError(error, 'NOT_FOUND')) return null
  throw error
}

const batchOf = <C>(record: LogRecord<C>) =>
  record.kind === 'intent' || record.kind === 'done' ? `${record.writer} ${record.batch}` : ''

/** The newest batch of each writer as of the head. */
function committedIn<Change>({ head, lease, pending }: ChainState<Change>): Committed[] {
  if (!head || !lease) return []
  const { record } = head
  if (record.kind === 'release') return record.committed
  const last = pending?.record ?? (record.kind === 'done' ? record : null)
  return withCommitted(lease.committed, last && [last.writer, last.batch])
}

const withCommitted = (committed: Committed[], newest: Committed | null): Committed[] =>
  newest ? [...committed.filter(([writer]) => writer !== newest[0]), newest].slice(-WRITERS_MAX) : committed
