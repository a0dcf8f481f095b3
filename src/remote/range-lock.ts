// Ranges of bytes in which one works at a time.

interface Held {
  from: number
  to: number
  done: Promise<unknown>
}

/** Work on ranges that overlap is done in the order in which it was given, other work at once. */
export class RangeLock {
  readonly #held = new Set<Held>()

  async run<T>({ from, to }: { from: number; to: number }, work: () => Promise<T>): Promise<T> {
    const before = [...this.#held].filter(held => held.from < to && from < held.to).map(held => held.done)
    const mine = Promise.all(before).then(work)
    const held = { from, to, done: mine.catch(() => {}) }
    this.#held.add(held)
    try {
      return await mine
    } finally {
      this.#held.delete(held)
    }
  }
}
