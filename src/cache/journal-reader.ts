// Reads the records of one segment, front to back, as far as they are good.
import { crc32 } from '../chunk/digest.js'
import {
  aligned,
  RECORD_BODY_BYTES_MAX,
  RECORD_HEADER_BYTES,
  RECORD_MAGIC,
  readU64,
  SEGMENT_HEADER_BYTES,
  viewOf,
} from './journal-format.js'
import type { StorageFile } from './storage.js'

/** A file is read this much at a time: a short journal costs a short read. */
const STEP_BYTES = 1024 * 1024

/** After `look(at)` said true, the fields describe the record there; `body()` is valid until the next `load`. */
export class SegmentReader {
  #bytes = new Uint8Array(0)
  #view = viewOf(this.#bytes)
  #file: StorageFile | undefined
  #id = 0
  #end = 0
  #filled = 0

  at = 0
  kind = 0
  lsn = 0
  /** Of the LSNs before this one, the last that was known to be durable when it was written. */
  durableLsn = 0
  /** The whole record's, header and alignment included. */
  recordBytes = 0
  #bodyBytes = 0

  load(file: StorageFile, { id, bytes }: { id: number; bytes: number }) {
    if (this.#bytes.length < bytes) {
      this.#bytes = new Uint8Array(bytes)
      this.#view = viewOf(this.#bytes)
    }
    this.#file = file
    this.#id = id
    this.#end = bytes
    this.#filled = 0
  }

  /** Whether there is a good record at `at`. */
  look(at: number): boolean {
    const bodyAt = at + RECORD_HEADER_BYTES
    if (bodyAt > this.#end || !this.#fill(bodyAt)) return false
    const view = this.#view
    if (view.getUint16(at + 4, true) !== RECORD_MAGIC) return false
    const length = view.getUint32(at + 8, true)
    if (length > RECORD_BODY_BYTES_MAX || !this.#fill(bodyAt + length)) return false
    if (crc32(this.#bytes.subarray(at + 4, bodyAt + length), this.#id) !== view.getUint32(at, true)) return false
    this.at = at
    this.kind = this.#bytes[at + 6]
    this.lsn = readU64(view, at + 16)
    this.durableLsn = this.lsn - 1 - view.getUint32(at + 12, true)
    this.#bodyBytes = length
    this.recordBytes = aligned(RECORD_HEADER_BYTES + length)
    return true
  }

  body(): Uint8Array {
    const bodyAt = this.at + RECORD_HEADER_BYTES
    return this.#bytes.subarray(bodyAt, bodyAt + this.#bodyBytes)
  }

  /** The next good record at or after `from`, wherever it starts; `look`'s fields describe it. */
  search(from: number): boolean {
    for (let at = Math.max(from, SEGMENT_HEADER_BYTES); at + RECORD_HEADER_BYTES <= this.#end; at += 8) {
      if (!this.#fill(at + RECORD_HEADER_BYTES)) return false
      if (this.#view.getUint16(at + 4, true) === RECORD_MAGIC && this.look(at)) return true
    }
    return false
  }

  /** The whole segment. Valid until the next `load`. */
  all(): Uint8Array {
    this.#fill(this.#end)
    return this.#bytes.subarray(0, this.#end)
  }

  /** Lets the memory go. */
  close() {
    this.#bytes = new Uint8Array(0)
    this.#view = viewOf(this.#bytes)
    this.#file = undefined
    this.#end = 0
  }

  #fill(to: number): boolean {
    if (to <= this.#filled) return true
    if (to > this.#end) return false
    const end = Math.min(this.#end, Math.max(to, this.#filled + STEP_BYTES))
    this.#file?.readSync(this.#bytes.subarray(this.#filled, end), this.#filled)
    this.#filled = end
    return true
  }
}
