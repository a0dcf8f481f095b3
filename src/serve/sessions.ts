// The order of changes, whatever becomes of connections: what a client gave up is not made after what it asked for since.
import { FerryError } from '../base/errors.js'

/** One that has nothing on its way is forgotten when there are more. */
const SESSIONS_MAX = 10_000

interface Session {
  epoch: number
  /** Changes that are being made. */
  readonly working: Set<Promise<unknown>>
  /** Settles when those of earlier epochs are over. */
  before: Promise<unknown>
}

/** The clients that change something, each with the newest of its attempts. */
export class Sessions {
  readonly #sessions = new Map<string, Session>()

  /**
   * Makes a change that a client asked for in its attempt `epoch`. What is on its way of earlier ones is waited for; a change of an
   * earlier one that comes later is refused.
   * @throws UNREACHABLE: nobody waits for this one any more
   */
  async run<T>(client: string, epoch: number, change: () => Promise<T>): Promise<T> {
    const session = this.#session(client, epoch)
    if (epoch < session.epoch) throw new FerryError('UNREACHABLE', { detail: 'it was given up before it came' })
    if (epoch > session.epoch) {
      session.epoch = epoch
      session.before = Promise.allSettled([...session.working])
    }
    const made = session.before.then(change)
    session.working.add(made)
    try {
      return await made
    } finally {
      session.working.delete(made)
    }
  }

  #session(client: string, epoch: number): Session {
    const known = this.#sessions.get(client)
    if (known) {
      // The one that was used last is forgotten last.
      this.#sessions.delete(client)
      this.#sessions.set(client, known)
      return known
    }
    if (this.#sessions.size >= SESSIONS_MAX)
      for (const [oldest, { working }] of this.#sessions)
        if (working.size === 0) {
          this.#sessions.delete(oldest)
          break
        }
    const fresh: Session = { epoch, working: new Set(), before: Promise.resolve() }
    this.#sessions.set(client, fresh)
    return fresh
  }
}
