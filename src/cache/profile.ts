// A pull profile: the order in which a real run first touched its bytes, to be had ahead of the next run.
import fs from 'node:fs'
import { FerryError } from '../base/errors.js'
import type { Ino } from './filesystem.js'

const HEADER = 'pageferry profile 1'
const UNIT_BYTES = 128 * 1024
/** Touches kept at most; a run that touches more has touched what matters. */
const TOUCHES_MAX = 1_000_000

export interface Touch {
  path: string
  at: number
  length: number
}

/** Collects first touches in units of 128 KiB; one line each: offset, length, path (URI-encoded bytes). */
export class Profile {
  readonly #seen = new Set<string>()
  readonly #lines: string[] = []

  constructor(readonly file: string) {}

  touch(path: () => string | null, ino: Ino, at: number, length: number): void {
    const first = Math.floor(at / UNIT_BYTES)
    const last = Math.floor((at + Math.max(1, length) - 1) / UNIT_BYTES)
    for (let unit = first; unit <= last; unit++) {
      const key = `${ino}:${unit}`
      if (this.#seen.has(key) || this.#seen.size >= TOUCHES_MAX) continue
      this.#seen.add(key)
      const name = path()
      if (name !== null) this.#lines.push(`${unit * UNIT_BYTES} ${UNIT_BYTES} ${encode(name)}`)
    }
  }

  save(): void {
    fs.writeFileSync(this.file, [HEADER, ...this.#lines, ''].join('\n'))
  }

  static load(file: string): Touch[] {
    const [header, ...lines] = fs.readFileSync(file, 'utf8').split('\n')
    if (header !== HEADER) throw new FerryError('BAD_FORMAT', { detail: `${file} is not a pull profile` })
    return lines.filter(Boolean).map(line => {
      const [at, length, name] = line.split(' ')
      return { path: decode(name), at: Number(at), length: Number(length) }
    })
  }
}

const encode = (name: string) =>
  name.replace(/[^!-$&-~]/g, char => `%${char.charCodeAt(0).toString(16).padStart(2, '0')}`)
const decode = (text: string) =>
  text.replace(/%([0-9a-f]{2})/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)))
