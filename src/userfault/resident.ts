// What is there at once of a mapping, in the order in which it came.

/** Runs in bytes. */
export class Resident {
  #runs: [from: number, to: number][] = []
  #bytes = 0

  get bytes(): number {
    return this.#bytes
  }

  get runs(): number {
    return this.#runs.length
  }

  came(from: number, to: number): void {
    this.#runs.push([from, to])
    this.#bytes += to - from
  }

  /** What has been there longest, which is not in it any more. */
  oldest(): [from: number, to: number] | undefined {
    const run = this.#runs.shift()
    if (run) this.#bytes -= run[1] - run[0]
    return run
  }

  /** What lies between two positions, which is not in it any more. */
  cut(start: number, end: number): [from: number, to: number][] {
    const inside: [number, number][] = []
    this.#runs = this.#runs.flatMap(([from, to]) => {
      if (to <= start || end <= from) return [[from, to] as [number, number]]
      inside.push([Math.max(from, start), Math.min(to, end)])
      const rest: [number, number][] = [
        [from, Math.max(from, start)],
        [Math.min(to, end), to],
      ]
      return rest.filter(([first, last]) => first < last)
    })
    for (const [from, to] of inside) this.#bytes -= to - from
    return inside
  }
}
