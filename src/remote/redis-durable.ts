// Until a Redis server has its log on its disk: WAITAOF, where the server can (https://redis.io/commands/waitaof).
import { orAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { GroupSync } from '../base/group-sync.js'
import { RedisConnection, type RedisOptions } from './redis-client.js'

/** With `appendfsync everysec` the log is on the disk after two seconds at most. */
const WAIT_MS = 10_000

export class RedisDurable {
  /** Of its own: whatever is asked on a connection after WAITAOF has to wait as well. */
  readonly #connection: RedisConnection
  readonly #waits = new GroupSync(() => this.#wait())

  constructor(options: RedisOptions) {
    this.#connection = new RedisConnection(options)
  }

  /**
   * Resolves when every change that this run of the server has acknowledged before is on its disk. UNREACHABLE if it is another run now,
   * which may know nothing of them.
   */
  async wait(runId: string, signal?: AbortSignal): Promise<void> {
    await orAborted(this.#waits.request(), signal)
    if (this.#connection.facts.runId !== runId)
      throw new FerryError('UNREACHABLE', { detail: `${this.#connection.server}: it was started again meanwhile` })
  }

  close(): Promise<void> {
    return this.#connection.close()
  }

  async #wait(): Promise<void> {
    const [, reply] = await this.#connection.ask([
      // It waits for the last change of its own connection, and with it for all that came before.
      ['set', this.#connection.key('/synced'), ''],
      ['waitaof', 1, 0, WAIT_MS],
    ])
    const [local] = reply as number[]
    if (local < 1)
      throw new FerryError('DEADLINE', { detail: `${this.#connection.server}: its log is not on its disk` })
  }
}
