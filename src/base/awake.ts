// Whoever waits for each answer before it asks again asks again at once: to wake an idle CPU for that costs more than most requests.
import { availableParallelism } from 'node:os'

/** For how long after a request the loop does not sleep. */
const AWAKE_MS = 0.1
/** How many such moments may pass in vain, halving each time, before we stop trying. */
const CREDIT_MAX = 8

/** Keeps node's loop turning for a moment after each request, while requests do come that soon. */
export class Awake {
  #activeMs = 0
  #credit = 0
  #isTurning = false
  // On a single CPU it would keep the very program from running whose request we wait for.
  readonly #awakeMs = availableParallelism() > 1 ? AWAKE_MS : 0

  /** A request came. */
  stir(): void {
    const nowMs = performance.now()
    if (nowMs - this.#activeMs < this.#awakeMs && this.#credit < CREDIT_MAX) this.#credit++
    this.#activeMs = nowMs
    if (this.#isTurning || this.#credit === 0) return
    this.#isTurning = true
    setImmediate(this.#turn)
  }

  readonly #turn = () => {
    if (performance.now() - this.#activeMs < this.#awakeMs) {
      setImmediate(this.#turn)
      return
    }
    this.#credit >>= 1
    this.#isTurning = false
  }
}
