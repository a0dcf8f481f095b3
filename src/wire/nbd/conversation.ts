// A protocol as a generator: it says what it wants next, and gets it. Who feeds it knows of sockets; it does not.

/**
 * What is wanted next: so many bytes (at least 1; given as a view that is valid until the next one is asked for), a buffer to be filled (given back), or that
 * nothing is read until `resume`.
 */
export type Wanted = number | Uint8Array | typeof STOP
export const STOP = Symbol('stop')

export type Conversation<T = void> = Generator<Wanted, T, Uint8Array>

const NOTHING = new Uint8Array(0)

/** Cuts a stream into what a conversation wants. What the conversation throws, `feed` and `resume` throw. */
export class Intake<T> {
  readonly #conversation: Conversation<T>
  #wanted: Wanted = 0
  /** What there is of it, if it came in pieces. */
  #gathered = NOTHING
  #have = 0
  /** Came while nothing was to be read, or behind it. */
  #rest: Uint8Array = NOTHING
  #result: { value: T } | null = null

  constructor(conversation: Conversation<T>) {
    this.#conversation = conversation
    this.#step(NOTHING)
  }

  /** Set once the conversation is over. */
  get result(): { value: T } | null {
    return this.#result
  }

  get isStopped(): boolean {
    return this.#wanted === STOP && !this.#result
  }

  /** Bytes that came and were not wanted yet. */
  get restBytes(): number {
    return this.#rest.length
  }

  /** The view need only be valid until this returns. */
  feed(bytes: Uint8Array): void {
    const all = this.#rest.length > 0 ? Buffer.concat([this.#rest, bytes]) : bytes
    this.#rest = NOTHING
    const left = this.#take(all)
    if (left.length > 0) this.#rest = Uint8Array.from(left)
  }

  /** The rest of the buffer that is being filled: what comes next may be put there, and `filled` told of it. */
  get place(): Uint8Array | null {
    return this.#wanted instanceof Uint8Array && !this.#result ? this.#wanted.subarray(this.#have) : null
  }

  filled(count: number): void {
    const wanted = this.#wanted as Uint8Array
    this.#have += count
    if (this.#have === wanted.length) this.#step(wanted)
  }

  /** Goes on after a STOP. */
  resume(): void {
    if (!this.isStopped) return
    this.#step(NOTHING)
    this.feed(NOTHING)
  }

  /** @returns what is left */
  #take(bytes: Uint8Array): Uint8Array {
    let at = 0
    while (at < bytes.length && !this.#result && this.#wanted !== STOP) {
      const wanted = this.#wanted
      if (typeof wanted === 'number') {
        if (this.#have === 0 && bytes.length - at >= wanted) {
          const view = bytes.subarray(at, at + wanted)
          at += wanted
          this.#step(view)
          continue
        }
        if (this.#gathered.length < wanted) this.#gathered = new Uint8Array(wanted)
      }
      const [into, length] = typeof wanted === 'number' ? [this.#gathered, wanted] : [wanted, wanted.length]
      const count = Math.min(length - this.#have, bytes.length - at)
      into.set(bytes.subarray(at, at + count), this.#have)
      this.#have += count
      at += count
      if (this.#have === length) this.#step(into.subarray(0, length))
    }
    return bytes.subarray(at)
  }

  #step(given: Uint8Array): void {
    this.#have = 0
    let { value, done } = this.#conversation.next(given)
    // An empty buffer is full.
    while (!done && value instanceof Uint8Array && value.length === 0)
      ({ value, done } = this.#conversation.next(value))
    if (done) this.#result = { value: value as T }
    else this.#wanted = value as Wanted
  }
}
