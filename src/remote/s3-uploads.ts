// Objects in parts.
import { createHash } from 'node:crypto'
import { mapLimit } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import type { Key, ObjectCondition, ObjectHead, ObjectOptions, Part } from './objects.js'
import { checkRange, printable } from './path.js'
import { mustBeS3, mustHave, type S3Bucket, tagOf } from './s3-bucket.js'
import { tagHeader } from './s3-conditions.js'
import { changeIf, expectSource, type Headers } from './s3-guard.js'
import { fromUrlEncoding, prefixToWire } from './s3-keys.js'

/** What is too large for one copy is copied in parts of this size (5 TiB: 5,120 of them), so many at once. */
const COPY_PART_BYTES = 2 ** 30
const COPY_PARTS_AT_ONCE = 8

export async function beginUpload(
  bucket: S3Bucket,
  key: Key,
  options: Omit<ObjectOptions, keyof ObjectCondition> = {},
  signal?: AbortSignal,
): Promise<string> {
  const request = bucket.described(key, options)
  const doing = `begin an upload of ${printable(key)}`
  const { UploadId } = await bucket.ask(doing, { signal }, sent => bucket.s3.createMultipartUpload(request, sent))
  return mustHave(UploadId, doing)
}

export async function uploadPart(
  bucket: S3Bucket,
  key: Key,
  upload: string,
  number: number,
  bytes: Uint8Array,
  signal?: AbortSignal,
): Promise<string> {
  const request = { ...bucket.target(key), UploadId: upload, PartNumber: number, Body: bytes }
  const doing = `upload part ${number} of ${printable(key)}`
  return tagOf((await bucket.ask(doing, { signal }, sent => bucket.s3.uploadPart(request, sent))).ETag, doing)
}

export async function copyPart(
  bucket: S3Bucket,
  key: Key,
  upload: string,
  number: number,
  { key: source, at, length, etag }: { key: Key; at: number; length: number; etag?: string },
  signal?: AbortSignal,
): Promise<string> {
  checkRange({ at, length })
  if (length === 0) throw new FerryError('INVALID', { detail: 'a part that is copied has bytes' })
  const request = {
    ...{ ...bucket.target(key), UploadId: upload, PartNumber: number },
    ...{ CopySource: bucket.sourceOf(source), CopySourceRange: `bytes=${at}-${at + length - 1}` },
    ...(etag !== undefined && { CopySourceIfMatch: tagHeader(etag, { quoted: true }) }),
  }
  const doing = `copy part ${number} of ${printable(key)} from ${printable(source)}`
  const meaning = { signal, precondition: 'STALE' as const }
  await expectSource(bucket, source, etag, signal)
  const done = await bucket.ask(doing, meaning, sent => bucket.s3.uploadPartCopy(request, sent))
  await expectSource(bucket, source, etag, signal)
  return tagOf(done.CopyPartResult?.ETag, doing)
}

export async function completeUpload(
  bucket: S3Bucket,
  key: Key,
  upload: string,
  parts: Part[],
  condition: ObjectCondition = {},
  signal?: AbortSignal,
): Promise<string> {
  const Parts = [...parts]
    .sort((a, b) => a.number - b.number)
    .map(({ number, etag }) => ({ PartNumber: number, ETag: tagHeader(etag, { quoted: true }) }))
  const named = { ...bucket.target(key), UploadId: upload }
  const request = { ...named, MultipartUpload: { Parts } }
  const doing = `complete the upload of ${printable(key)}`
  const change = async (headers: Headers) => {
    const meaning = { signal, missing: 'CONFLICT' as const }
    const complete = { ...request, ...headers }
    try {
      const done = await bucket.ask(doing, meaning, sent => bucket.s3.completeMultipartUpload(complete, sent))
      mustHave(done.Key, doing)
      // Ceph leaves it empty.
      return tagOf(done.ETag || tagOfParts(Parts), doing)
    } catch (error) {
      // Ceph says for ever that an upload which is gone is being completed just now. This asks for it, and rejects with NOT_FOUND.
      if (isFerryError(error, 'IO')) await bucket.ask(doing, { signal }, sent => bucket.s3.listParts(named, sent))
      throw error
    }
  }
  return changeIf(bucket, key, condition, ({ completeIf }) => completeIf, change, signal)
}

/** The tag that S3, unless it encrypts, gives to what was made of these parts. */
function tagOfParts(parts: { ETag: string }[]): string {
  const digests = createHash('md5')
  for (const { ETag } of parts) digests.update(Buffer.from(ETag.replaceAll('"', ''), 'hex'))
  return `${digests.digest('hex')}-${parts.length}`
}

export async function abortUpload(bucket: S3Bucket, key: Key, upload: string, signal?: AbortSignal): Promise<void> {
  const request = { ...bucket.target(key), UploadId: upload }
  const doing = `abort the upload of ${printable(key)}`
  try {
    const done = await bucket.ask(doing, { signal }, sent => bucket.s3.abortMultipartUpload(request, sent))
    mustBeS3(done.$metadata, doing)
  } catch (error) {
    if (!isFerryError(error, 'NOT_FOUND')) throw error
  }
}

export async function uploads(
  bucket: S3Bucket,
  prefix: string,
  signal?: AbortSignal,
): Promise<{ key: Key; upload: string; begunMs: number }[]> {
  const wire = prefixToWire(bucket.root + prefix)
  if (wire === null) return []
  const all: { key: Key; upload: string; begunMs: number }[] = []
  const doing = `list the uploads of ${printable(prefix)}`
  const request = { Bucket: bucket.name, Prefix: wire, EncodingType: 'url' as const }
  const next = (markers: { KeyMarker?: string; UploadIdMarker?: string }) =>
    bucket.ask(doing, { signal }, sent => bucket.s3.listMultipartUploads({ ...request, ...markers }, sent))
  for (let page = await next({}); ; ) {
    mustHave(page.Bucket, doing)
    for (const { Key = '', UploadId = '', Initiated } of page.Uploads ?? []) {
      const key = bucket.keyOf(fromUrlEncoding(Key))
      if (key.startsWith(prefix)) all.push({ key, upload: UploadId, begunMs: Number(Initiated) })
    }
    if (!page.IsTruncated) return all
    const { NextKeyMarker: marker = '', NextUploadIdMarker: UploadIdMarker } = page
    // Ceph encodes the keys, does not say so, and does not encode this.
    page = await next({ KeyMarker: page.EncodingType ? fromUrlEncoding(marker) : marker, UploadIdMarker })
  }
}

/** 5 GiB and more: an upload whose parts are all copied. */
export async function copyInParts(
  bucket: S3Bucket,
  source: ObjectHead,
  target: Key,
  { metadata, contentType, ifAbsent, ifMatch }: ObjectOptions,
  signal?: AbortSignal,
): Promise<string> {
  const upload = await beginUpload(bucket, target, metadata ? { metadata, contentType } : source, signal)
  try {
    const starts = Array.from({ length: Math.ceil(source.size / COPY_PART_BYTES) }, (_, n) => n * COPY_PART_BYTES)
    const parts = await mapLimit(starts, COPY_PARTS_AT_ONCE, async (at): Promise<Part> => {
      const number = at / COPY_PART_BYTES + 1
      const piece = { ...source, at, length: Math.min(COPY_PART_BYTES, source.size - at) }
      return { number, etag: await copyPart(bucket, target, upload, number, piece, signal) }
    })
    return await completeUpload(bucket, target, upload, parts, { ifAbsent, ifMatch }, signal)
  } catch (error) {
    await abortUpload(bucket, target, upload).catch(() => {})
    throw error
  }
}
