// Making what was acknowledged durable: the data that records name, then the records. Callers share one sync.
import type { Journal } from './journal.js'
import type { Slots } from './slots.js'

/** A sync of the journal that blocks the loop is worth it while it is about this short: waking another thread costs as much. */
const BLOCKING_MS_MAX = 2
/** After a longer one, this many syncs are left to the thread pool. */
const POOL_SYNCS = 8
/** An fsync is expected after a write when it has come after so many of the last ones; each that did not come halves what is remembered. */
const EXPECTED_MIN = 2
const EXPECTED_MAX = 8

export class Durability {
  #extentsUnsynced = false
  #syncing: Promise<void> | null = null
  #poolSyncs = 0
  #expected = 0
  #written = false
  #ranAhead = false

  constructor(
    readonly journal: Journal,
    readonly slots: Slots,
  ) {}

  /** Bytes were written that a record names by their checksum. */
  extentWritten(): void {
    this.#extentsUnsynced = true
  }

  /** The kernel wrote a page back: on its own account, or for an fsync that it sends next. */
  written(): void {
    if (this.#ranAhead) this.#expected >>= 1
    this.#ranAhead = false
    this.#written = true
  }

  /**
   * The answer to a write is on its way. If an fsync comes next, as it did the last times, its program needs a while to wake up and ask:
   * 80 us of the 200 that the disk takes (SQLite in WAL mode, medians of six interleaved runs: 1,615 transactions a second before, 1,998
   * with it and with fewer syncs left to the pool).
   */
  ahead(): void {
    const { journal } = this
    if (!this.#written || this.#ranAhead || this.#expected < EXPECTED_MIN || this.#poolSyncs > 0) return
    if (this.#extentsUnsynced || this.#syncing || journal.durableLsn >= journal.headLsn) return
    this.#ranAhead = true
    try {
      this.#syncHere()
    } catch {
      // The journal remembers that it failed, and tells whoever asks.
    }
  }

  /**
   * undefined: everything up to `lsn` (by default the last record) is durable. Otherwise resolves when what was appended before the
   * call is.
   *
   * The records alone are synced in this turn while that is quick (measured with one client: 6,300 to 7,600 commits/s against
   * 4,300 to 5,300 on the thread pool); a disk that stalls sends the next ones to the pool.
   */
  reach(lsn = this.journal.headLsn): Promise<void> | undefined {
    const { journal } = this
    if (this.#written && this.#expected < EXPECTED_MAX) this.#expected++
    this.#written = this.#ranAhead = false
    if (!this.#extentsUnsynced && !this.#syncing) {
      if (journal.durableLsn >= lsn) return undefined
      if (this.#poolSyncs === 0) {
        this.#syncHere()
        return undefined
      }
      this.#poolSyncs--
      return journal.sync()
    }
    return this.#reach(journal.headLsn)
  }

  #syncHere() {
    const started = performance.now()
    this.journal.syncSync()
    if (performance.now() - started > BLOCKING_MS_MAX) this.#poolSyncs = POOL_SYNCS
  }

  async #reach(lsn: number): Promise<void> {
    // An earlier sync of the data may have begun before the last of it was written: only one that begins now covers all.
    while (this.#syncing) await this.#syncing
    if (this.#extentsUnsynced) {
      this.#extentsUnsynced = false
      this.#syncing = this.slots.sync().then(
        () => {
          this.#syncing = null
        },
        error => {
          this.#extentsUnsynced = true
          this.#syncing = null
          throw error
        },
      )
      await this.#syncing
    }
    await this.journal.sync(lsn)
  }
}
