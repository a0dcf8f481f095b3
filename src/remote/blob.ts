// One run of bytes: the simplest shape a remote can have.

export interface BlobCapabilities {
  write: boolean
  /** `trim` gives space back and trimmed bytes read as zeros. */
  trim: boolean
  /** Reads and writes should start and end on multiples of this many bytes. */
  alignment: number
  /** The largest single request, in bytes. */
  requestBytesMax: number
}

/**
 * One run of bytes. Arguments can be cloned to another thread, but for `signal`. Bytes are owned as tree.ts
 * says. Methods reject with a FerryError: INVALID beyond the end, TOO_LARGE for a request beyond `requestBytesMax`.
 */
export interface Blob {
  readonly shape: 'blob'
  readonly url: string
  /** In bytes: as it was agreed when the blob was opened, and as this opener has changed it since. */
  readonly size: number
  readonly capabilities: BlobCapabilities
  /** `length` bytes from `at`. Exactly that many, or it rejects (SHORT_READ): a blob has no end to run into. */
  read(at: number, length: number, signal?: AbortSignal): Promise<Uint8Array>
  write(at: number, from: Uint8Array, signal?: AbortSignal): Promise<void>
  /** Resolves when every earlier write survives a crash of the remote. */
  flush(signal?: AbortSignal): Promise<void>
  /** These bytes are no longer needed and read as zeros from now on. */
  trim?(at: number, length: number, signal?: AbortSignal): Promise<void>
  /** Cut, or extended with zeros, to so many bytes. Absent: it has one size. NO_SPACE, TOO_LARGE, READ_ONLY. */
  resize?(size: number, signal?: AbortSignal): Promise<void>
  /** Opaque; equal versions mean equal bytes, also for another opener. Absent: nobody can tell. */
  version?(signal?: AbortSignal): Promise<string>
  close(): Promise<void>
}

/** The net change to a blob in one batch; extents of one batch do not overlap. `resize` comes first, whatever its place. */
export type BlobChange =
  | { do: 'write'; at: number; bytes: Uint8Array }
  | { do: 'write'; at: number; length: number; staged: string }
  | { do: 'trim'; at: number; length: number }
  | { do: 'resize'; size: number }
