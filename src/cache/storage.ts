// The local disk as the engine sees it. `linux/storage.ts` implements it; tests put a shim between that forgets what was not synced.

export interface StorageFile {
  /** Bytes that are in memory, without blocking: how many were read, or -1 if it would have to wait for the disk. */
  readNow(into: Uint8Array, at: number): number
  /** Fills `into`; beyond the file's end it reads as zeros. */
  read(into: Uint8Array, at: number): Promise<void>
  /** The same, blocking. */
  readSync(into: Uint8Array, at: number): void
  /** All of it, into the page cache; throws NO_SPACE if it does not fit. */
  writeSync(from: Uint8Array, at: number): void
  write(from: Uint8Array, at: number): Promise<void>
  /** Give the space back; reads as zeros. */
  punch(at: number, length: number): void
  /** Everything written before is durable when it resolves. */
  sync(): Promise<void>
  /** The same, blocking. */
  syncSync(): void
  close(): void
}

export interface Storage {
  /** Opens or creates `name` for reading and writing, at least `bytes` long (zero-written when `allocate`). */
  open(name: string, options?: { bytes?: number; allocate?: boolean }): StorageFile
  list(): string[]
  /** Durable when it returns. */
  rename(source: string, target: string): void
  remove(name: string): void
  /** The first `bytes` of a file have their space on the disk, which makes it no longer; NO_SPACE when there is not so much. */
  reserve(name: string, bytes: number): void
  /** Free bytes of the disk below. */
  freeBytes(): number
}
