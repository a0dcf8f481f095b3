// Room for one answer: the header and up to 1 MiB behind it, written in place and sent as one message.

import { OutHeader } from '../wire/fuse/structs.js'
import { encodeOutHeader, type Unique } from '../wire/fuse.js'

/** The largest READ and WRITE: 256 pages, what fs.fuse.max_pages_limit allows by default. */
export const PAYLOAD_BYTES_MAX = 1 << 20
/** Where the payload of an answer begins. */
export const PAYLOAD_AT = OutHeader.size

export class Answer {
  readonly bytes = new Uint8Array(PAYLOAD_AT + PAYLOAD_BYTES_MAX)
  readonly view = new DataView(this.bytes.buffer)

  /** Behind the header, so long. */
  payload(length: number): Uint8Array {
    return new Uint8Array(this.bytes.buffer, PAYLOAD_AT, length)
  }

  /** Puts the header before `payloadBytes` bytes; what to send is then `bytes[0, returned)`. */
  finish(to: Unique, payloadBytes: number): number {
    const length = PAYLOAD_AT + payloadBytes
    encodeOutHeader(this.view, 0, to, { length })
    return length
  }

  /** An errno (positive) and nothing else. */
  fail(to: Unique, errno: number): number {
    encodeOutHeader(this.view, 0, to, { length: PAYLOAD_AT, errno })
    return PAYLOAD_AT
  }
}

/** Keeps at most `max` things that are not in use, for those who need one. */
export class Pool<T> {
  readonly #free: T[] = []
  constructor(
    readonly max: number,
    readonly create: () => T,
  ) {}

  take(): T {
    return this.#free.pop() ?? this.create()
  }
  give(item: T) {
    if (this.#free.length < this.max) this.#free.push(item)
  }
}
