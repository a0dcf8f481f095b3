// Reads what follows a fixed header (names, data, lists) and never past the end.

import assert from 'node:assert/strict'
import { FerryError } from '../base/errors.js'
import type { Fields, Struct, Value } from './struct.js'

export const malformed = (detail: string) => new FerryError('PROTOCOL', { detail })

const views = new WeakMap<Uint8Array, DataView>()
/** A DataView of the same bytes. Buffers are reused for message after message, so each has its view made once. */
export function viewOf(bytes: Uint8Array): DataView {
  let view = views.get(bytes)
  if (view === undefined) {
    view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    views.set(bytes, view)
  }
  return view
}

/**
 * Names and paths are bytes, not text: everywhere in pageferry they are strings with one character (0 to 255) a byte, so any byte survives and a
 * comparison of strings is a comparison of bytes.
 */
export function latin1(bytes: Uint8Array, at: number, end: number): string {
  return latin1Slice.call(bytes, at, end)
}
const latin1Slice = (Buffer.prototype as unknown as { latin1Slice(at: number, end: number): string }).latin1Slice

/** Writes such a string at `at`; the caller has made sure that it fits. A character above 255 is no byte: an assertion failure. */
export function putLatin1(target: Uint8Array, at: number, name: string): void {
  let all = 0
  for (let i = 0; i < name.length; i++) {
    const byte = name.charCodeAt(i)
    all |= byte
    target[at + i] = byte
  }
  if (all > 255) assert.fail(`${JSON.stringify(name)} is text, not bytes`)
}

/** A forward reader over `bytes[at, end)`. Everything that would read past `end` throws FerryError PROTOCOL and moves nothing. */
export class Reader {
  readonly #bytes: Uint8Array
  readonly #end: number
  #at: number

  constructor(bytes: Uint8Array, at = 0, end = bytes.length) {
    assert(at <= end && end <= bytes.length)
    this.#bytes = bytes
    this.#at = at
    this.#end = end
  }

  /** bytes left */
  get remaining(): number {
    return this.#end - this.#at
  }

  struct<F extends Fields>(type: Struct<F>): Value<Struct<F>> {
    const at = this.#take(type.size)
    return type.decode(viewOf(this.#bytes), at) as Value<Struct<F>>
  }

  /** Bytes up to a NUL, which is consumed and not returned, one character a byte. No NUL within `lengthMax` + 1 bytes: PROTOCOL. */
  cstring(lengthMax = Number.POSITIVE_INFINITY): string {
    const bytes = this.#bytes
    const at = this.#at
    const end = Math.min(this.#end, at + lengthMax + 1)
    let nul = at
    while (nul < end && bytes[nul] !== 0) nul++
    if (nul === end) throw malformed(`a name without its end within ${end - at} bytes`)
    this.#at = nul + 1
    return latin1(bytes, at, nul)
  }

  /** The next `length` bytes: a view, valid as long as the buffer is. */
  bytes(length: number): Uint8Array {
    const at = this.#take(length)
    return new Uint8Array(this.#bytes.buffer, this.#bytes.byteOffset + at, length)
  }

  /** All that is left: a view, valid as long as the buffer is. */
  rest(): Uint8Array {
    return this.bytes(this.remaining)
  }

  /** Throws PROTOCOL if anything is left. */
  finish(): void {
    if (this.#at !== this.#end) throw malformed(`${this.remaining} bytes too many`)
  }

  #take(length: number): number {
    const at = this.#at
    if (!(length >= 0 && length <= this.#end - at))
      throw malformed(`${length} bytes expected where ${this.#end - at} are left`)
    this.#at = at + length
    return at
  }
}
