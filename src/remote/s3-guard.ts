// Changes on a condition, whether or not the server looks at it.
import { sleep } from '../base/async.js'
import { FerryError, isFerryError } from '../base/errors.js'
import type { Key, ObjectCondition } from './objects.js'
import { printable } from './path.js'
import { notFound, type S3Bucket, stale } from './s3-bucket.js'
import { type Conditions, tagHeader } from './s3-conditions.js'
import { head } from './s3-read.js'

/** How often, and after how long, a request is made again that was turned away because of another one for the same key. */
const BUSY_TRIES = 5
const BUSY_MS = 50

/** Of a conditional request. */
export type Headers = { IfNoneMatch?: string; IfMatch?: string }

/**
 * Makes a change if the condition holds. `looks`: whether the server looks at it; otherwise we do, just before and just after, and what
 * comes between is a race that remains.
 */
export async function changeIf(
  bucket: S3Bucket,
  key: Key,
  { ifAbsent, ifMatch }: ObjectCondition,
  looks: (conditions: Conditions) => boolean,
  change: (headers: Headers) => Promise<string>,
  signal?: AbortSignal,
): Promise<string> {
  if (ifAbsent && ifMatch !== undefined)
    throw new FerryError('INVALID', { detail: 'ifAbsent and ifMatch exclude each other' })
  if (!ifAbsent && ifMatch === undefined) return change({})
  const conditions = await bucket.conditions(signal)
  if (looks(conditions))
    return whenIdle(
      () => change(ifAbsent ? { IfNoneMatch: '*' } : { IfMatch: tagHeader(ifMatch!, conditions) }),
      signal,
    )
  const before = await head(bucket, key, signal)
  if (ifAbsent ? before : before?.etag !== ifMatch)
    throw new FerryError('CONFLICT', { detail: `${printable(key)} is ${before ? 'another one' : 'gone'}` })
  const etag = await change({})
  if ((await head(bucket, key, signal))?.etag !== etag)
    throw new FerryError('CONFLICT', { detail: `${printable(key)} was replaced at the same time` })
  return etag
}

/** Again, while the server says that another request is at the same key: this one was not done. */
export async function whenIdle<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work()
    } catch (error) {
      if (!isFerryError(error, 'BUSY') || tries === BUSY_TRIES) throw error
    }
    await sleep(BUSY_MS * tries, signal)
  }
}

/** NOT_FOUND, STALE unless this source is there with this tag: where the server does not look. */
export async function expectSource(
  bucket: S3Bucket,
  key: Key,
  etag: string | undefined,
  signal?: AbortSignal,
): Promise<void> {
  if (etag === undefined || (await bucket.conditions(signal)).sourceIf) return
  const now = await head(bucket, key, signal)
  if (!now) throw notFound(key)
  if (now.etag !== etag) throw stale(key)
}
