// Puts, copies and removals.
import type { MetadataDirective } from '@aws-sdk/client-s3'
import { mapLimit, throwIfAborted } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import type { Key, ObjectOptions } from './objects.js'
import { printable } from './path.js'
import { md5 } from './s3-body.js'
import { mustBeS3, notFound, PAGE_MAX, PIECE_BYTES_MAX, type S3Bucket, stale, tagOf } from './s3-bucket.js'
import { type Conditions, tagHeader } from './s3-conditions.js'
import { ofRefusal, refusalOf, toS3Error } from './s3-errors.js'
import { changeIf, expectSource, type Headers, whenIdle } from './s3-guard.js'
import { fitsXml } from './s3-keys.js'
import { head } from './s3-read.js'
import { copyInParts } from './s3-uploads.js'

const REMOVALS_AT_ONCE = 16

export async function put(
  bucket: S3Bucket,
  key: Key,
  bytes: Uint8Array,
  { ifAbsent, ifMatch, ...options }: ObjectOptions = {},
  signal?: AbortSignal,
): Promise<string> {
  const request = { ...bucket.described(key, options), Body: bytes }
  const doing = `put ${printable(key)}`
  const looks = (known: Conditions) => (ifAbsent ? known.putIfAbsent : known.putIfMatch)
  const change = async (headers: Headers) => {
    try {
      return tagOf((await bucket.s3.putObject({ ...request, ...headers }, { abortSignal: signal })).ETag, doing)
    } catch (error) {
      // Ceph's answer to those who lose a race for If-Match is a 500 that says nothing.
      const { status, code } = refusalOf(error) ?? {}
      if (headers.IfMatch && status === 500 && code === '' && !signal?.aborted) {
        const now = await head(bucket, key, signal)
        if (now?.etag === md5(bytes)) return now.etag
        if (now?.etag !== ifMatch) throw new FerryError('CONFLICT', { detail: doing })
      }
      throw toS3Error(error, doing, { signal, missing: 'CONFLICT' })
    }
  }
  throwIfAborted(signal)
  return changeIf(bucket, key, { ifAbsent, ifMatch }, looks, change, signal)
}

export async function copy(
  bucket: S3Bucket,
  source: Key,
  target: Key,
  options: ObjectOptions & { sourceEtag?: string } = {},
  signal?: AbortSignal,
): Promise<string> {
  const { ifAbsent, ifMatch, sourceEtag, metadata } = options
  const directive: MetadataDirective = metadata ? 'REPLACE' : 'COPY'
  const request = {
    ...(metadata ? bucket.described(target, options) : bucket.target(target)),
    ...{ CopySource: bucket.sourceOf(source), MetadataDirective: directive },
    ...(sourceEtag !== undefined && { CopySourceIfMatch: tagHeader(sourceEtag, { quoted: true }) }),
  }
  const doing = `copy ${printable(source)} to ${printable(target)}`
  const change = async (headers: Headers) => {
    try {
      const done = await bucket.ask(doing, { signal }, sent => bucket.s3.copyObject({ ...request, ...headers }, sent))
      const etag = tagOf(done.CopyObjectResult?.ETag, doing)
      if (etag !== sourceEtag) await expectSource(bucket, source, sourceEtag, signal)
      return etag
    } catch (error) {
      if (!isFerryError(error, 'CONFLICT', 'NOT_FOUND', 'INVALID', 'TOO_LARGE')) throw error
      // It does not say which of the two is meant, nor that one request is not enough.
      const from = await head(bucket, source, signal)
      if (!from) throw notFound(source)
      if (sourceEtag !== undefined && from.etag !== sourceEtag) throw stale(source)
      if (from.size > PIECE_BYTES_MAX && isFerryError(error, 'INVALID', 'TOO_LARGE'))
        return copyInParts(bucket, from, target, options, signal)
      if (isFerryError(error, 'NOT_FOUND')) throw new FerryError('CONFLICT', { detail: `${printable(target)} is gone` })
      throw error
    }
  }
  await expectSource(bucket, source, sourceEtag, signal)
  return changeIf(bucket, target, { ifAbsent, ifMatch }, ({ copyIf }) => copyIf, change, signal)
}

export async function remove(
  bucket: S3Bucket,
  key: Key,
  { ifMatch }: { ifMatch?: string } = {},
  signal?: AbortSignal,
): Promise<void> {
  const wire = bucket.wireOf(key)
  if (wire === null) return
  const looks = ifMatch !== undefined && (await bucket.conditions(signal)).removeIfMatch
  if (ifMatch !== undefined && !looks) {
    const now = await head(bucket, key, signal)
    if (!now) return
    if (now.etag !== ifMatch) throw new FerryError('CONFLICT', { detail: `${printable(key)} is another one` })
  }
  const request = {
    ...{ Bucket: bucket.name, Key: wire },
    ...(looks && { IfMatch: tagHeader(ifMatch, { quoted: true }) }),
  }
  const doing = `remove ${printable(key)}`
  try {
    const ask = () => bucket.ask(doing, { signal }, sent => bucket.s3.deleteObject(request, sent))
    mustBeS3((await whenIdle(ask, signal)).$metadata, doing)
  } catch (error) {
    // That it is gone already may be said in either way.
    const isGone = isFerryError(error, 'CONFLICT') && !(await head(bucket, key, signal))
    if (!isGone && !isFerryError(error, 'NOT_FOUND')) throw error
  }
}

export async function removeAll(bucket: S3Bucket, keys: Key[], signal?: AbortSignal): Promise<void> {
  if (keys.length > PAGE_MAX) throw new FerryError('INVALID', { detail: `${keys.length} keys at once` })
  const known = [...new Set(keys)].map(key => ({ key, wire: bucket.wireOf(key) })).filter(({ wire }) => wire !== null)
  const listed = known.filter(({ wire }) => fitsXml(wire!))
  const doing = `remove ${listed.length} objects`
  const request = { Bucket: bucket.name, Delete: { Objects: listed.map(({ wire }) => ({ Key: wire! })) } }
  const none = { Deleted: [], Errors: [] }
  const [{ Deleted = [], Errors = [] }] = await Promise.all([
    listed.length === 0 ? none : bucket.ask(doing, { signal }, sent => bucket.s3.deleteObjects(request, sent)),
    // The others cannot be named in a list.
    mapLimit(
      known.filter(({ wire }) => !fitsXml(wire!)),
      REMOVALS_AT_ONCE,
      ({ key }) => remove(bucket, key, {}, signal),
    ),
  ])
  const failed = Errors.find(({ Code }) => Code !== 'NoSuchKey')
  if (failed) {
    const refusal = { code: failed.Code ?? '', status: 200, requestId: '' }
    throw ofRefusal(refusal, `remove ${printable(bucket.keyOf(failed.Key ?? ''))}`)
  }
  if (Deleted.length + Errors.length < listed.length)
    throw new FerryError('IO', { detail: `${doing}: an answer for ${Deleted.length} of them` })
}
