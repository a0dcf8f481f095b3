// What can be asked of a bucket without changing it.
import type { Readable } from 'node:stream'
import type { GetObjectCommandOutput, HeadObjectCommandOutput, ObjectStorageClass } from '@aws-sdk/client-s3'
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import type { Key, ListOptions, ListPage, ObjectEntry, ObjectHead } from './objects.js'
import { checkRange, printable } from './path.js'
import { checkDigest, readBody } from './s3-body.js'
import { mustHave, notFound, PAGE_MAX, type S3Bucket, stale, tagOf } from './s3-bucket.js'
import { tagHeader } from './s3-conditions.js'
import { refusalOf, toS3Error } from './s3-errors.js'
import { fromUrlEncoding, prefixToWire } from './s3-keys.js'

/** It may come between a HEAD and the GET that asks why: so often it is looked at again. */
const HEADS_MAX = 3

export async function head(bucket: S3Bucket, key: Key, signal?: AbortSignal): Promise<ObjectHead | null> {
  throwIfAborted(signal)
  const wire = bucket.wireOf(key)
  if (wire === null) return null
  const doing = `head ${printable(key)}`
  for (let heads = 1; ; heads++) {
    try {
      // The mark of a directory is most often not there, and has no bytes where it is: a GET tells at once what a HEAD leaves open.
      if (heads === 1 && wire.endsWith('/')) return await look(bucket, key, wire, signal)
      return headOf(key, await bucket.s3.headObject({ Bucket: bucket.name, Key: wire }, { abortSignal: signal }))
    } catch (error) {
      const refusal = refusalOf(error)
      if (!refusal || refusal.status >= 500 || signal?.aborted) throw toS3Error(error, doing, { signal })
      if (refusal.code === 'NoSuchKey') return null
      if (await isMissing(bucket, wire, doing, signal)) return null
      if (heads === HEADS_MAX) throw new FerryError('IO', { detail: `${doing}: refused, but it can be read` })
    }
  }
}

async function look(bucket: S3Bucket, key: Key, wire: string, signal?: AbortSignal): Promise<ObjectHead> {
  const found = await bucket.s3.getObject({ Bucket: bucket.name, Key: wire }, { abortSignal: signal })
  const body = found.Body as (Readable & { transformToByteArray(): Promise<Uint8Array> }) | undefined
  if (found.ContentLength === 0) await body?.transformToByteArray()
  else body?.destroy()
  return headOf(key, found)
}

function headOf(key: Key, found: HeadObjectCommandOutput | GetObjectCommandOutput): ObjectHead {
  const { ContentLength, ETag, LastModified, StorageClass, Restore, Metadata = {}, ContentType = '' } = found
  const isRestored = /ongoing-request="false"/.test(Restore ?? '')
  const archived =
    (isArchive(StorageClass) || ('ArchiveStatus' in found && found.ArchiveStatus !== undefined)) && !isRestored
  const entry = entryOf(key, ContentLength, ETag, LastModified)
  return { ...entry, archived, metadata: Metadata, contentType: ContentType }
}

/** The answer to a HEAD has no body: it does not say what is not there, or why it was refused. A GET does: true if it is the key. */
async function isMissing(bucket: S3Bucket, wire: string, doing: string, signal?: AbortSignal): Promise<boolean> {
  const request = { Bucket: bucket.name, Key: wire, Range: 'bytes=0-0' }
  try {
    const { Body } = await bucket.s3.getObject(request, { abortSignal: signal })
    await Body?.transformToByteArray().catch(() => {})
    return false
  } catch (error) {
    const refusal = refusalOf(error)
    if (refusal?.code === 'NoSuchKey') return true
    // An empty object has no first byte.
    if (refusal?.status === 416) return false
    throw toS3Error(error, doing, { signal })
  }
}

export async function list(
  bucket: S3Bucket,
  { prefix, delimiter, cursor, after }: ListOptions,
  signal?: AbortSignal,
): Promise<ListPage> {
  throwIfAborted(signal)
  const wire = prefixToWire(bucket.root + prefix)
  if (wire === null) return { objects: [], prefixes: [] }
  const doing = `list ${printable(prefix)}`
  const found = await bucket.ask(doing, { signal }, sent =>
    bucket.s3.listObjectsV2(
      {
        ...{ Bucket: bucket.name, Prefix: wire, Delimiter: delimiter, MaxKeys: PAGE_MAX, ContinuationToken: cursor },
        ...(after !== undefined && { StartAfter: prefixToWire(bucket.root + after) ?? undefined }),
        // Keys as they are in URLs: XML cannot hold all of them.
        ...{ EncodingType: 'url', OptionalObjectAttributes: ['RestoreStatus'] },
      },
      sent,
    ),
  )
  // The SDK makes an empty listing of anything: a page of a proxy, or nothing at all.
  mustHave(found.Name, doing)
  const keyOf = (name = '') => bucket.keyOf(found.EncodingType === 'url' ? fromUrlEncoding(name) : name)
  const wanted = (key: Key) => key !== '' && key.startsWith(prefix) && (after === undefined || key > after)
  return {
    objects: (found.Contents ?? [])
      .map(({ Key, Size, ETag, LastModified, StorageClass, RestoreStatus }) => ({
        ...entryOf(keyOf(Key), Size, ETag, LastModified),
        archived: isArchive(StorageClass) && !RestoreStatus?.RestoreExpiryDate,
      }))
      .filter(({ key }) => wanted(key)),
    prefixes: (found.CommonPrefixes ?? []).map(({ Prefix }) => keyOf(Prefix)).filter(wanted),
    ...(found.IsTruncated && { cursor: found.NextContinuationToken }),
  }
}

export async function get(
  bucket: S3Bucket,
  key: Key,
  range?: { at: number; length: number; etag?: string },
  signal?: AbortSignal,
): Promise<Uint8Array> {
  throwIfAborted(signal)
  if (range) checkRange(range)
  const wire = bucket.wireOf(key)
  if (wire === null) throw notFound(key)
  const doing = `get ${printable(key)}`
  const { etag } = range ?? {}
  // HTTP has no range without bytes.
  if (range?.length === 0) return noBytes(bucket, key, etag, signal)
  const request = {
    ...{ Bucket: bucket.name, Key: wire },
    ...(range && { Range: `bytes=${range.at}-${range.at + range.length - 1}` }),
    ...(etag !== undefined && { IfMatch: tagHeader(etag, { quoted: true }) }),
  }
  try {
    const found = await bucket.s3.getObject(request, { abortSignal: signal })
    const bytes = await readBody(found, range, doing, signal)
    // The page of a proxy has none.
    const tag = tagOf(found.ETag, doing)
    // A server may take no notice of If-Match.
    if (etag !== undefined && tag !== etag) throw stale(key)
    if (bucket.digests()) checkDigest(found, tag, bytes, doing)
    return bytes
  } catch (error) {
    if (range && refusalOf(error)?.status === 416) return noBytes(bucket, key, etag, signal)
    throw toS3Error(error, doing, { signal, precondition: 'STALE' })
  }
}

/** An empty range, or one behind the end: of an object that is there and is the one that was asked for. */
async function noBytes(
  bucket: S3Bucket,
  key: Key,
  etag: string | undefined,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const now = await head(bucket, key, signal)
  if (!now) throw notFound(key)
  if (etag !== undefined && now.etag !== etag) throw stale(key)
  return new Uint8Array()
}

function entryOf(key: Key, size: number | undefined, etag: string | undefined, modified: Date | undefined) {
  const entry: Omit<ObjectEntry, 'archived'> = {
    key,
    size: size ?? 0,
    etag: tagOf(etag, printable(key)),
    // Whole seconds, as the header of a HEAD has it: some servers' listings are finer.
    modifiedMs: Math.floor(Number(modified ?? 0) / 1000) * 1000,
  }
  return entry
}

const isArchive = (storageClass: ObjectStorageClass | string | undefined) =>
  storageClass === 'GLACIER' || storageClass === 'DEEP_ARCHIVE'
