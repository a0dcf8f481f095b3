// The buffers of fetches and pushes on their way, together below one bound.
import { type Deferred, deferred } from './async.js'

/** Who comes first is served first, but demand before guesses and pushes. One request alone always fits. */
export class MemoryBudget {
  #bytes = 0
  readonly #urgent: { bytes: number; turn: Deferred<void> }[] = []
  readonly #others: { bytes: number; turn: Deferred<void> }[] = []

  constructor(readonly bytesMax: number) {}

  get bytes(): number {
    return this.#bytes
  }

  /** Resolves when the bytes may be held; every take has its `give`. */
  async take(bytes: number, urgent: boolean): Promise<void> {
    if (this.#urgent.length === 0 && (urgent || this.#others.length === 0) && this.#fits(bytes)) {
      this.#bytes += bytes
      return
    }
    const turn = deferred()
    const queue = urgent ? this.#urgent : this.#others
    queue.push({ bytes, turn })
    await turn.promise
  }

  give(bytes: number): void {
    this.#bytes -= bytes
    for (;;) {
      const queue = this.#urgent.length ? this.#urgent : this.#others
      const next = queue[0]
      if (!next || !this.#fits(next.bytes)) return
      queue.shift()
      this.#bytes += next.bytes
      next.turn.resolve()
    }
  }

  #fits(bytes: number): boolean {
    return this.#bytes === 0 || this.#bytes + bytes <= this.bytesMax
  }
}
