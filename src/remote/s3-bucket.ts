// What all requests to one bucket have in common.
import type { S3, S3ServiceException } from '@aws-sdk/client-s3'
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import type { Key, Metadata } from './objects.js'
import { printable } from './path.js'
import type { Conditions } from './s3-conditions.js'
import { type Meaning, toS3Error } from './s3-errors.js'
import { copySource, fromWire, toWire } from './s3-keys.js'

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
export const KEY_BYTES_MAX = 1024
/** Of one PUT, of one part, and of one copy that is not made in parts. */
export const PIECE_BYTES_MAX = 5 * 2 ** 30
/** Entries of a listing, keys of a removal. */
export const PAGE_MAX = 1000

/** A bucket, from a prefix on: `root` is '' or ends in a slash. */
export class S3Bucket {
  constructor(
    readonly s3: S3,
    readonly name: string,
    readonly root: string,
    /** Which conditions the server looks at. FORBIDDEN if we may not write at all. */
    readonly conditions: (signal?: AbortSignal) => Promise<Conditions>,
    /** Whether the tag of what was put whole is known to be its MD5. */
    readonly digests: () => boolean,
  ) {}

  /** A request; its errors are ours. `doing`: 'get "key"'. */
  async ask<T>(
    doing: string,
    meaning: Meaning,
    request: (sent: { abortSignal?: AbortSignal }) => Promise<T>,
  ): Promise<T> {
    throwIfAborted(meaning.signal)
    try {
      return await request({ abortSignal: meaning.signal })
    } catch (error) {
      throw toS3Error(error, doing, meaning)
    }
  }

  /** null: no object can have this key. */
  wireOf(key: Key): string | null {
    return toWire(this.root + key)
  }

  keyOf(wire: string): Key {
    return fromWire(wire).slice(this.root.length)
  }

  /** Where something of this key is to be made. @throws FerryError INVALID, NAME_TOO_LONG for what cannot be a key */
  target(key: Key): { Bucket: string; Key: string } {
    const wire = key === '' || key.includes('\0') ? null : this.wireOf(key)
    if (wire === null) throw new FerryError('INVALID', { detail: `${printable(key)}: a key is UTF-8, without NUL` })
    if (this.root.length + key.length > KEY_BYTES_MAX) throw new FerryError('NAME_TOO_LONG', { detail: printable(key) })
    return { Bucket: this.name, Key: wire }
  }

  /** The same with what is to be kept beside the bytes. */
  described(key: Key, { metadata, contentType }: { metadata?: Metadata; contentType?: string }) {
    return { ...this.target(key), Metadata: metadata && checkMetadata(metadata), ContentType: contentType }
  }

  /** The value of `x-amz-copy-source`. @throws FerryError NOT_FOUND for what no object can be called */
  sourceOf(key: Key): string {
    const wire = this.wireOf(key)
    if (wire === null) throw notFound(key)
    return copySource(this.name, wire)
  }
}

export const notFound = (key: Key): FerryError => new FerryError('NOT_FOUND', { detail: printable(key) })
export const stale = (key: Key): FerryError => new FerryError('STALE', { detail: printable(key) })

/** Without what every such answer has, it is none. */
export function mustHave<T>(field: T | undefined, doing: string): T {
  if (field === undefined) throw new FerryError('IO', { detail: `${doing}: an answer that is not S3` })
  return field
}

/** The answer to a DELETE has nothing that it must have: the page of a proxy is told by its status, 200, and by having no id. */
export function mustBeS3({ httpStatusCode, requestId }: S3ServiceException['$metadata'], doing: string): void {
  mustHave(httpStatusCode === 204 ? '' : requestId, doing)
}

/** An entity tag without its quotes. */
export function tagOf(etag: string | undefined, doing: string): string {
  const tag = etag?.replace(/^(W\/)?"|"$/g, '')
  if (!tag) throw new FerryError('IO', { detail: `${doing}: an answer without an ETag` })
  return tag
}

/** HTTP headers can hold nothing else, and forget blanks at either end. */
function checkMetadata(metadata: Metadata): Metadata {
  for (const [name, value] of Object.entries(metadata))
    if (!/^[a-z0-9!#$%&'*+.^_`|~-]+$/.test(name) || !/^([!-~]([ -~]*[!-~])?)?$/.test(value))
      throw new FerryError('INVALID', { detail: `the metadata ${JSON.stringify(name)}: printable ASCII only` })
  return metadata
}
