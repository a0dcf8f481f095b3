// Which conditions a server looks at: asked of the server itself, with small objects under the hidden prefix.
import { getFips, randomBytes } from 'node:crypto'
import type { S3 } from '@aws-sdk/client-s3'
import { lasting, orAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import type { ObjectsCapabilities } from './objects.js'
import { md5 } from './s3-body.js'
import { refusalOf } from './s3-errors.js'
import { HIDDEN } from './tree.js'

/** A probe that is older was left behind by a crash. */
const LEFTOVER_MS = 3_600_000
/** Who waits for the probe waits so long at most. */
const PROBE_MS_MAX = 20_000
const BODY = new Uint8Array(1)
/** The tag of no object: that of a thousand parts whose digests are all zeros. */
const WRONG = `${'0'.repeat(32)}-1000`

export interface Conditions
  extends Pick<
    ObjectsCapabilities,
    'write' | 'putIfAbsent' | 'putIfMatch' | 'completeIf' | 'copyIf' | 'removeIfMatch'
  > {
  /** Copies look at the tag that their source must have. */
  sourceIf: boolean
  /** If-Match has its tag in quotes, as HTTP has it. Ceph, on a PUT, knows it only without. */
  quoted: boolean
  /** The tag of what is put as a whole is the MD5 of its bytes, and they are checked against it. */
  digests: boolean
}

/** What a remote that nobody writes to needs to know. */
export const readOnly: Conditions = {
  write: false,
  putIfAbsent: false,
  putIfMatch: false,
  completeIf: false,
  copyIf: false,
  removeIfMatch: false,
  sourceIf: false,
  quoted: true,
  digests: false,
}

/** Asked when somebody needs to know, once; a failure is for those who wait, and the next one asks again. */
export function askedOnce(ask: () => Promise<Conditions>): (signal?: AbortSignal) => Promise<Conditions> {
  let asked: Promise<Conditions> | undefined
  return signal => {
    asked ??= ask().catch(error => {
      asked = undefined
      throw error
    })
    return orAborted(asked, signal)
  }
}

export const tagHeader = (etag: string, { quoted }: { quoted: boolean }): string => (quoted ? `"${etag}"` : etag)

/** Until it is known better: what is not looked at by the server is looked at by us. */
export const unknownYet: Conditions = { ...readOnly, write: true }

/**
 * Some 50 requests, in four round trips, and one more in which what was made goes again, for which nobody waits: `onCleanUp` gets its
 * end. `write: false` where we may not write. Rejects with the SDK's errors. Each probe has an object (or an upload) of its own, so
 * that all of them can be on the way at once.
 */
export async function probeConditions(
  s3: S3,
  bucket: string,
  prefix: string,
  onCleanUp: (cleaning: Promise<unknown>) => void,
): Promise<Conditions> {
  const probes = `${prefix}${HIDDEN}/probe-`
  const own = `${probes}${randomBytes(8).toString('hex')}`
  const giveUp = lasting()
  const sent = { abortSignal: giveUp.signal }
  const timer = setTimeout(() => giveUp.abort(), PROBE_MS_MAX)
  const made: string[] = []
  const begun: Upload[] = []

  const fresh = () => {
    const Key = `${own}-${made.length}`
    made.push(Key)
    return { Bucket: bucket, Key }
  }
  const make = async () => {
    const at = fresh()
    return { at, etag: tagIn(await s3.putObject({ ...at, Body: BODY }, sent)) }
  }
  const upload = async () => {
    const { at, etag } = await make()
    const { UploadId } = await s3.createMultipartUpload(at, sent)
    const one = { ...at, UploadId }
    begun.push(one)
    const { ETag } = await s3.uploadPart({ ...one, PartNumber: 1, Body: BODY }, sent)
    return { at: { ...one, MultipartUpload: { Parts: [{ PartNumber: 1, ETag }] } }, etag }
  }

  async function puts(): Promise<Pick<Conditions, 'putIfAbsent' | 'putIfMatch' | 'quoted' | 'digests'>> {
    const put = (one: One, condition: Condition) =>
      outcomeOf(s3.putObject({ ...one.at, ...condition, Body: BODY }, sent))
    const create = put({ at: fresh(), etag: '' }, ANY)
    const [created, many] = await all([create, all(Array.from({ length: 5 }, make))])
    const [again, right, bare, wrong, bareWrong] = await all([
      put(many[0], ANY),
      put(many[1], tagged(many[1].etag, true)),
      put(many[2], tagged(many[2].etag, false)),
      put(many[3], tagged(WRONG, true)),
      put(many[4], tagged(WRONG, false)),
    ])
    const isQuoted = right === 'done' && wrong === 'refused'
    const isBare = right !== 'done' && bare === 'done' && bareWrong === 'refused'
    const putIfAbsent = created === 'done' && again === 'refused'
    // A system that is set up for FIPS does not have MD5.
    const digests = !getFips() && many[0].etag === md5(BODY)
    return { putIfAbsent, putIfMatch: isQuoted || isBare, quoted: !isBare, digests }
  }

  async function copies(putting: Putting) {
    const copy = (one: One, condition: Condition) => {
      const how = { CopySource: `${bucket}/${encodeURI(one.at.Key)}`, MetadataDirective: 'REPLACE' as const }
      return outcomeOf(s3.copyObject({ ...one.at, ...how, ...condition }, sent))
    }
    const [first, ...targets] = await all(Array.from({ length: 4 }, make))
    const [source, copyIf] = await all([
      copy(first, { CopySourceIfMatch: `"${WRONG}"` }),
      looksAtBoth(copy, targets, putting),
    ])
    return { sourceIf: source === 'refused', copyIf }
  }

  async function completions(putting: Putting) {
    const complete = ({ at }: Awaited<ReturnType<typeof upload>>, condition: Condition) =>
      outcomeOf(s3.completeMultipartUpload({ ...at, ...condition }, sent))
    return looksAtBoth(complete, await all([upload(), upload(), upload()]), putting)
  }

  async function removals() {
    const remove = ({ at }: One, tag: string) => outcomeOf(s3.deleteObject({ ...at, IfMatch: `"${tag}"` }, sent))
    const [one, other] = await all([make(), make()])
    const [wrong, right] = await all([remove(one, WRONG), remove(other, other.etag)])
    return wrong === 'refused' && right === 'done'
  }

  /** Probes that were left behind. */
  async function leftovers() {
    const { Contents = [] } = await s3.listObjectsV2({ Bucket: bucket, Prefix: probes }, sent)
    return Contents.filter(
      ({ Key, LastModified }) => !Key?.startsWith(own) && Date.now() - Number(LastModified) > LEFTOVER_MS,
    ).map(({ Key }) => Key!)
  }

  const old = leftovers().catch(() => [])
  try {
    const putting = puts()
    const [put, copy, completeIf, removeIfMatch] = await all([
      putting,
      copies(putting),
      completions(putting),
      removals(),
    ])
    return { write: true, ...put, ...copy, completeIf, removeIfMatch }
  } catch (error) {
    if (refusalOf(error)?.code === 'AccessDenied') return readOnly
    if (giveUp.signal.aborted) throw new FerryError('DEADLINE', { detail: `what ${bucket} can do: no answer` })
    throw error
  } finally {
    onCleanUp(cleanUp())
  }

  async function cleanUp() {
    await Promise.allSettled([
      ...[...made, ...(await old)].map(Key => s3.deleteObject({ Bucket: bucket, Key }, sent)),
      ...begun.map(one => s3.abortMultipartUpload(one, sent)),
    ])
    clearTimeout(timer)
  }
}

type Upload = { Bucket: string; Key: string; UploadId: string | undefined }
type One = { at: { Bucket: string; Key: string }; etag: string }
type Putting = Promise<{ quoted: boolean }>
type Condition = { IfNoneMatch?: string; IfMatch?: string; CopySourceIfMatch?: string }

const ANY: Condition = { IfNoneMatch: '*' }
const tagged = (etag: string, quoted: boolean): Condition => ({ IfMatch: tagHeader(etag, { quoted }) })
const tagIn = ({ ETag }: { ETag?: string }) => ETag?.replaceAll('"', '') ?? ''

/** Rejects with the first error, once nothing is on the way any more. */
async function all<const P extends readonly unknown[]>(work: P): Promise<{ -readonly [N in keyof P]: Awaited<P[N]> }> {
  await Promise.allSettled(work)
  return Promise.all(work)
}

/** Whether an operation on something that is there is refused by the wrong conditions and only by these. Each of the three is used up. */
async function looksAtBoth<O extends One>(
  attempt: (one: O, condition: Condition) => Promise<Outcome>,
  [one, another, third]: O[],
  putting: Putting,
): Promise<boolean> {
  if ((await attempt(one, ANY)) !== 'refused') return false
  const { quoted } = await putting
  const outcomes = await all([attempt(another, tagged(WRONG, quoted)), attempt(third, tagged(third.etag, quoted))])
  return outcomes[0] === 'refused' && outcomes[1] === 'done'
}

/** `unknown`: the server does not have this condition, and says so. */
type Outcome = 'done' | 'refused' | 'unknown'

async function outcomeOf(request: Promise<unknown>): Promise<Outcome> {
  try {
    await request
    return 'done'
  } catch (error) {
    const refusal = refusalOf(error)
    if (refusal?.status === 412) return 'refused'
    if (refusal?.status === 501 || refusal?.code === 'NoSuchUpload') return 'unknown'
    throw error
  }
}
