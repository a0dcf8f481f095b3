// A region with the methods that people know from node's FileHandle.
import { Readable, Writable } from 'node:stream'
import { FerryError } from './base/errors.js'
import type { RegionDoor } from './cache/door.js'

/** A stream asks for so much at once. */
const STREAM_BYTES = 256 * 1024
const MODE = { writable: 0o100600, readOnly: 0o100400 }

/** What `read` takes instead of arguments in a row. */
export interface ReadOptions {
  /** Default: a new one of 16 KiB. */
  buffer?: Uint8Array
  /** Where in the buffer to begin. Default 0. */
  offset?: number
  /** Default: to the end of the buffer. */
  length?: number
  /** Where in the region. null (the default): where the last read or write without one has ended. */
  position?: number | null
}

/** Which bytes a stream has. */
export interface StreamOptions {
  /** Default 0. */
  start?: number
  /** The last byte, itself included. Default: the end of the region. */
  end?: number
  /** Default 256 KiB. */
  highWaterMark?: number
}

/** What is known of a region as of a file. */
export interface RegionStats {
  size: number
  /** S_IFREG and permissions of the owner. */
  mode: number
  blksize: number
  /** Of 512 bytes. */
  blocks: number
  isFile(): true
  isDirectory(): false
}

/**
 * Reads and writes as node's FileHandle does. Writes that reach beyond the end are refused (NO_SPACE), reads are short there; only `truncate`
 * changes the size. Closing it closes nothing but the file.
 */
export class RegionFile implements AsyncDisposable {
  readonly #region: RegionDoor
  #position = 0
  #isClosed = false

  constructor(region: RegionDoor) {
    this.#region = region
  }

  /** @returns how many bytes: 0 at the end of the region */
  async read<Into extends Uint8Array = Uint8Array>(
    buffer: Into,
    offset?: number,
    length?: number,
    position?: number | null,
  ): Promise<{ bytesRead: number; buffer: Into }>
  async read(options?: ReadOptions): Promise<{ bytesRead: number; buffer: Uint8Array }>
  async read(given: Uint8Array | ReadOptions = {}, ...rest: [number?, number?, (number | null)?]) {
    const [offset, length, position] = rest
    const options = given instanceof Uint8Array ? { buffer: given, offset, length, position } : given
    const buffer = options.buffer ?? new Uint8Array(16 * 1024)
    const into = this.#part(buffer, options.offset, options.length)
    const at = this.#at(options.position)
    const bytesRead = Math.max(0, Math.min(into.length, this.#region.size - at))
    await this.#region.read(Math.min(at, this.#region.size), into.subarray(0, bytesRead))
    this.#moved(options.position, at + bytesRead)
    return { bytesRead, buffer }
  }

  /** All of it, or NO_SPACE: it reaches beyond the end. Text is UTF-8. */
  async write(
    data: Uint8Array | string,
    offset?: number | null,
    length?: number | null,
    position?: number | null,
  ): Promise<{ bytesWritten: number; buffer: Uint8Array | string }> {
    // Of text, node takes the position where of bytes the offset is.
    const isText = typeof data === 'string'
    const from = isText ? Buffer.from(data) : this.#part(data, offset ?? undefined, length ?? undefined)
    const where = isText ? offset : position
    const at = this.#at(where)
    if (at + from.length > this.#region.size)
      throw new FerryError('NO_SPACE', { detail: `${from.length} bytes at ${at} of ${this.#region.size}` })
    await this.#region.write(at, from)
    this.#moved(where, at + from.length)
    return { bytesWritten: from.length, buffer: data }
  }

  async stat(): Promise<RegionStats> {
    this.#check()
    const { size, readOnly } = this.#region
    return {
      ...{ size, mode: readOnly ? MODE.readOnly : MODE.writable, blksize: 4096, blocks: Math.ceil(size / 512) },
      isFile: () => true,
      isDirectory: () => false,
    }
  }

  /** Of the region itself: see Region.resize. @throws UNSUPPORTED: it has one size */
  async truncate(length = 0): Promise<void> {
    this.#check()
    if (!this.#region.resize) throw new FerryError('UNSUPPORTED', { detail: 'a region of one size' })
    await this.#region.resize(length)
  }

  /** Every earlier write is durable, as the region's `fsync` says. */
  async sync(): Promise<void> {
    this.#check()
    await this.#region.flush()
  }

  /** The same. */
  datasync(): Promise<void> {
    return this.sync()
  }

  /** All of it: only as large as memory is. */
  async readFile(): Promise<Buffer> {
    this.#check()
    const all = Buffer.alloc(this.#region.size)
    await this.#region.read(0, all)
    return all
  }

  createReadStream({ start = 0, end = Number.POSITIVE_INFINITY, highWaterMark }: StreamOptions = {}): Readable {
    let at = start
    const until = Math.min(this.#region.size, end + 1)
    const next = async (stream: Readable) => {
      const length = Math.min(stream.readableHighWaterMark, until - at)
      const bytes = length > 0 ? await this.read({ buffer: new Uint8Array(length), position: at }) : null
      at += length
      stream.push(bytes?.buffer ?? null)
    }
    return new Readable({
      highWaterMark: highWaterMark ?? STREAM_BYTES,
      read() {
        next(this).catch(error => this.destroy(error))
      },
    })
  }

  /** Ends when all of it is acknowledged; call `sync` for more. */
  createWriteStream({ start = 0, highWaterMark }: Pick<StreamOptions, 'start' | 'highWaterMark'> = {}): Writable {
    let at = start
    return new Writable({
      highWaterMark: highWaterMark ?? STREAM_BYTES,
      decodeStrings: true,
      write: (bytes: Buffer, _encoding, done) => {
        const here = at
        at += bytes.length
        this.write(bytes, 0, bytes.length, here).then(() => done(), done)
      },
    })
  }

  /** Closing twice is fine. */
  async close(): Promise<void> {
    this.#isClosed = true
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #check() {
    if (this.#isClosed) throw new FerryError('CLOSED', { detail: 'this file of a region' })
  }

  #part(buffer: Uint8Array, offset = 0, length = buffer.length - offset): Uint8Array {
    const isWithin = offset >= 0 && length >= 0 && offset + length <= buffer.length
    if (!isWithin)
      throw new FerryError('INVALID', { detail: `${length} bytes at ${offset} of a buffer of ${buffer.length}` })
    return buffer.subarray(offset, offset + length)
  }

  #at(position: number | null | undefined): number {
    this.#check()
    const at = position ?? this.#position
    if (!Number.isSafeInteger(at) || at < 0) throw new FerryError('INVALID', { detail: `position ${at}` })
    return at
  }

  #moved(position: number | null | undefined, to: number) {
    if (position === null || position === undefined) this.#position = to
  }
}
