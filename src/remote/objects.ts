// Objects as a bucket has them: keys, metadata that stays with the bytes, copies on the server, uploads in parts. The fourth shape
// a remote can have; `rollforward` makes a tree of it in which one file is one object.

/** A key below the prefix that was opened: any bytes (latin1, one char is one byte), not empty. It need not be a path. */
export type Key = string

/** Metadata of the user's own (`x-amz-meta-*`), names in lower case. Values are strings that HTTP headers can hold. */
export type Metadata = Record<string, string>

export interface ObjectEntry {
  key: Key
  size: number
  /** Opaque; equal tags mean equal bytes of one key. A copy may have another. */
  etag: string
  /** When it was last put, ms since the epoch. */
  modifiedMs: number
  /** Its bytes cannot be read until somebody restores them (Glacier). */
  archived: boolean
}

export interface ObjectHead extends ObjectEntry {
  metadata: Metadata
  /** '' if it has none. */
  contentType: string
}

/** What must be there for a change to be made; otherwise CONFLICT. Only what `capabilities` promise is atomic; see there. */
export interface ObjectCondition {
  /** No object of this key. */
  ifAbsent?: boolean
  /** The object with this tag. */
  ifMatch?: string
}

export interface ObjectOptions extends ObjectCondition {
  /** Default: none. */
  metadata?: Metadata
  contentType?: string
}

export interface Part {
  /** From 1 on; gaps are fine. */
  number: number
  etag: string
}

/**
 * Bounds, and which conditions the server itself looks at. Where one is false the remote looks just before and just after (HEAD),
 * and what comes between is a race that remains.
 */
export interface ObjectsCapabilities {
  write: boolean
  /** `put` with `ifAbsent`; `put` with `ifMatch`. */
  putIfAbsent: boolean
  putIfMatch: boolean
  /** `completeUpload` and `copy` with either condition on the target. */
  completeIf: boolean
  copyIf: boolean
  removeIfMatch: boolean
  keyBytesMax: number
  /** Bytes of all names and values of an object's metadata together. */
  metadataBytesMax: number
  objectBytesMax: number
  /** Of one `put`, and of one `copy`. */
  putBytesMax: number
  copyBytesMax: number
  /** Of a part that is not the last; of any part; how many there may be. */
  partBytesMin: number
  partBytesMax: number
  partsMax: number
}

export interface ListOptions {
  prefix: string
  /** Keys with this behind the prefix are summed up, up to and including it. */
  delimiter?: string
  /** Go on with the `cursor` of the page before. */
  cursor?: string
  /** Only keys behind this one, in byte order; not with a delimiter. */
  after?: Key
}

export interface ListPage {
  /** At most 1,000 with `prefixes`, in byte order. */
  objects: ObjectEntry[]
  prefixes: string[]
  cursor?: string
}

/**
 * Arguments can be cloned to another thread, but for `signal`. Bytes are owned as tree.ts says. Every method rejects with a
 * FerryError. `null` and NOT_FOUND are positive knowledge about that key: a bucket that is not there, or that we may not look at,
 * is UNREACHABLE or FORBIDDEN.
 */
export interface Objects {
  readonly shape: 'objects'
  /** Without credentials: may be printed. */
  readonly url: string
  readonly capabilities: ObjectsCapabilities
  head(key: Key, signal?: AbortSignal): Promise<ObjectHead | null>
  list(options: ListOptions, signal?: AbortSignal): Promise<ListPage>
  /**
   * `length` bytes from `at`, fewer at its end; whole without a range. STALE if `etag` is given and another is there; ARCHIVED if it
   * cannot be read because of that.
   */
  get(key: Key, range?: { at: number; length: number; etag?: string }, signal?: AbortSignal): Promise<Uint8Array>
  /** Durable when it resolves, never half visible. @returns its tag */
  put(key: Key, bytes: Uint8Array, options?: ObjectOptions, signal?: AbortSignal): Promise<string>
  /**
   * On the server. With `metadata` (and `contentType`) the target has these, otherwise the source's. `sourceEtag`: STALE if the
   * source is another now. NOT_FOUND without a source. A source may be its own target, if metadata is given. @returns the target's tag
   */
  copy(
    source: Key,
    target: Key,
    options?: ObjectOptions & { sourceEtag?: string },
    signal?: AbortSignal,
  ): Promise<string>
  /** What is not there is fine, whatever was expected. */
  remove(key: Key, condition?: { ifMatch?: string }, signal?: AbortSignal): Promise<void>
  /** Up to 1,000 keys in one request. */
  removeAll(keys: Key[], signal?: AbortSignal): Promise<void>
  /** @returns the upload's id */
  beginUpload(key: Key, options?: Omit<ObjectOptions, keyof ObjectCondition>, signal?: AbortSignal): Promise<string>
  /** A number that was there is replaced. NOT_FOUND when the upload was aborted or completed. @returns the part's tag */
  uploadPart(key: Key, upload: string, number: number, bytes: Uint8Array, signal?: AbortSignal): Promise<string>
  /** A part out of another object, on the server. STALE if `etag` is given and another is there. */
  copyPart(
    key: Key,
    upload: string,
    number: number,
    source: { key: Key; at: number; length: number; etag?: string },
    signal?: AbortSignal,
  ): Promise<string>
  /**
   * Of all parts that were uploaded: what a server does with those that are left out differs. NOT_FOUND when the upload was aborted.
   * When it was completed before: that, or the tag again. @returns the object's tag
   */
  completeUpload(
    key: Key,
    upload: string,
    parts: Part[],
    condition?: ObjectCondition,
    signal?: AbortSignal,
  ): Promise<string>
  /** One that is not there is fine. */
  abortUpload(key: Key, upload: string, signal?: AbortSignal): Promise<void>
  /** Uploads that are neither completed nor aborted, of keys that begin with `prefix`. */
  uploads(prefix: string, signal?: AbortSignal): Promise<{ key: Key; upload: string; begunMs: number }[]>
  close(): Promise<void>
}
