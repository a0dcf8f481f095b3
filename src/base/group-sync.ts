// Group commit: at most one sync runs and one waits; everybody who asks meanwhile shares the one that waits.

export class GroupSync {
  readonly #sync: () => Promise<void>
  #running: Promise<void> | undefined
  #waiting: Promise<void> | undefined

  /** `sync` makes durable whatever was written before it is called. */
  constructor(sync: () => Promise<void>) {
    this.#sync = sync
  }

  /** The last sync that has begun, if it still runs. */
  get running(): Promise<void> | undefined {
    return this.#running
  }

  /** Resolves when everything written before this call is durable. */
  request(): Promise<void> {
    if (!this.#running) return this.#begin()
    const next = () => {
      this.#waiting = undefined
      return this.#begin()
    }
    return (this.#waiting ??= this.#running.then(next, next))
  }

  /** Resolves when nothing runs and nothing waits. Never rejects. */
  async idle(): Promise<void> {
    while (this.#running) await this.#running.catch(() => {})
  }

  #begin(): Promise<void> {
    const running = this.#sync()
    this.#running = running
    const ended = () => {
      if (this.#running === running) this.#running = undefined
    }
    running.then(ended, ended)
    return running
  }
}
