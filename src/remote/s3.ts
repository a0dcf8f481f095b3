// Objects in a bucket of Amazon S3, or of a server that speaks its protocol.
import { FerryError, toFerryError } from '../base/errors.js'
import type { Objects } from './objects.js'
import { urlPath } from './path.js'
import { KEY_BYTES_MAX, PIECE_BYTES_MAX, S3Bucket } from './s3-bucket.js'
import { copy, put, remove, removeAll } from './s3-change.js'
import { type S3ClientOptions, s3Client } from './s3-client.js'
import { askedOnce, probeConditions, readOnly, unknownYet } from './s3-conditions.js'
import { toS3Error } from './s3-errors.js'
import { toWire } from './s3-keys.js'
import { get, head, list } from './s3-read.js'
import { abortUpload, beginUpload, completeUpload, copyPart, uploadPart, uploads } from './s3-uploads.js'

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
const METADATA_BYTES_MAX = 2048
const OBJECT_BYTES_MAX = 5 * 2 ** 40
const PART_BYTES_MIN = 5 * 2 ** 20
const PARTS_MAX = 10_000

export interface S3Options extends S3ClientOptions {
  bucket: string
  /** Bytes (latin1); keys are what follows it and a slash. Default: the whole bucket. */
  prefix?: string
  /** Default true. */
  write?: boolean
  /**
   * When the server is asked whether we may write, and which conditions it looks at (see s3-conditions.ts). Default 'open'. 'change': by
   * the first change that has a condition, which waits for it; so opening asks nothing. 'begin': at once, but nobody waits for it until
   * that first change. Until then `capabilities` promise no condition.
   */
  probe?: 'open' | 'begin' | 'change'
}

/** Opens what is below `prefix`. Rejects as the methods do: UNREACHABLE for a bucket that is not there. */
export async function s3Objects({
  bucket: name,
  prefix = '',
  write = true,
  probe = 'open',
  ...how
}: S3Options): Promise<Objects> {
  const below = prefix.replace(/^\/+|\/+$/g, '')
  const root = below && `${below}/`
  const url = urlOf(name, below, how)
  const wire = toWire(root)
  if (wire === null) throw new FerryError('INVALID', { detail: `${url}: keys are UTF-8, and so must be the prefix` })
  const s3 = await s3Client(how)
  let known = write ? unknownYet : readOnly
  let cleaned: Promise<unknown> | undefined
  const probed = askedOnce(async () => {
    const onCleanUp = (cleaning: Promise<unknown>) => {
      cleaned = cleaning
    }
    const found = await probeConditions(s3, name, wire, onCleanUp).catch(error => Promise.reject(toS3Error(error, url)))
    if (!found.write) {
      const detail = `${url}: these credentials may not write there; mount it with --read-only`
      throw new FerryError('FORBIDDEN', { detail })
    }
    known = found
    return found
  })
  if (write && probe === 'open') {
    const failure = await probed().then(() => null, toFerryError)
    await cleaned
    if (failure) known = readOnly
    if (failure && failure.code !== 'FORBIDDEN') {
      s3.destroy()
      throw failure
    }
  }
  if (write && probe === 'begin') void probed().catch(() => {}) // who needs it asks again, and hears why
  const bucket = new S3Bucket(s3, name, root, known.write ? probed : async () => readOnly, () => known.digests)

  return {
    shape: 'objects',
    url,
    get capabilities() {
      const { quoted: _, sourceIf: __, digests: ___, ...looks } = known
      return {
        ...looks,
        keyBytesMax: KEY_BYTES_MAX - root.length,
        metadataBytesMax: METADATA_BYTES_MAX,
        objectBytesMax: OBJECT_BYTES_MAX,
        putBytesMax: PIECE_BYTES_MAX,
        copyBytesMax: OBJECT_BYTES_MAX,
        partBytesMin: PART_BYTES_MIN,
        partBytesMax: PIECE_BYTES_MAX,
        partsMax: PARTS_MAX,
      }
    },
    head: (key, signal) => head(bucket, key, signal),
    list: (options, signal) => list(bucket, options, signal),
    get: (key, range, signal) => get(bucket, key, range, signal),
    put: (key, bytes, options, signal) => put(bucket, key, bytes, options, signal),
    copy: (source, target, options, signal) => copy(bucket, source, target, options, signal),
    remove: (key, condition, signal) => remove(bucket, key, condition, signal),
    removeAll: (keys, signal) => removeAll(bucket, keys, signal),
    beginUpload: (key, options, signal) => beginUpload(bucket, key, options, signal),
    uploadPart: (key, upload, number, bytes, signal) => uploadPart(bucket, key, upload, number, bytes, signal),
    copyPart: (key, upload, number, source, signal) => copyPart(bucket, key, upload, number, source, signal),
    completeUpload: (key, upload, parts, condition, signal) =>
      completeUpload(bucket, key, upload, parts, condition, signal),
    abortUpload: (key, upload, signal) => abortUpload(bucket, key, upload, signal),
    uploads: (prefix, signal) => uploads(bucket, prefix, signal),
    close: async () => {
      await cleaned
      s3.destroy()
    },
  }
}

function urlOf(bucket: string, below: string, { endpoint, region, pathStyle }: S3ClientOptions): string {
  const path = urlPath(Buffer.from(below, 'latin1'))
  const query = Object.entries({ endpoint, region, pathStyle: pathStyle && '1' })
    .filter(([, value]) => value)
    .map(([key, value]) => `${key}=${value}`)
  return `s3://${bucket}${path && `/${path}`}${query.length ? `?${query.join('&')}` : ''}`
}
