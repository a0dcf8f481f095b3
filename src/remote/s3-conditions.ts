// Which conditions a server looks at: asked of the server itself, with small objects under the hidden prefix.
import { getFips, randomBytes } from 'node:crypto'
import type { S3 } from '@aws-sdk/client-s3'
import type { ObjectsCapabilities } from './objects.js'
import { md5 } from './s3-body.js'
import { refusalOf } from './s3-errors.js'
import { HIDDEN } from './tree.js'

/** A probe that is older was left behind by a crash. */
const LEFTOVER_MS = 3_600_000
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

export const tagHeader = (etag: string, { quoted }: { quoted: boolean }): string => (quoted ? `"${etag}"` : etag)

/** Some 25 requests, about nine round trips. `write: false` where we may not write. Rejects with the SDK's errors. */
export async function probeConditions(s3: S3, bucket: string, prefix: string): Promise<Conditions> {
  const probes = `${prefix}${HIDDEN}/probe-`
  const own = `${probes}${randomBytes(8).toString('hex')}`
  const at = (name: string) => ({ Bucket: bucket, Key: `${own}-${name}` })
  const put = async (name: string) => (await s3.putObject({ ...at(name), Body: BODY })).ETag?.replaceAll('"', '') ?? ''

  async function puts() {
    const create = () => outcomeOf(s3.putObject({ ...at('put'), Body: BODY, IfNoneMatch: '*' }))
    const putIfAbsent = (await create()) === 'done' && (await create()) === 'refused'
    const etag = await put('put')
    const replace = (tag: string) => outcomeOf(s3.putObject({ ...at('put'), Body: BODY, IfMatch: tag }))
    const quoted = (await replace(tagHeader(etag, { quoted: true }))) === 'done'
    const some = quoted || (await replace(tagHeader(etag, { quoted: false }))) === 'done'
    const putIfMatch = some && (await replace(tagHeader(WRONG, { quoted }))) === 'refused'
    return { putIfAbsent, putIfMatch, quoted: quoted || !putIfMatch }
  }

  async function copies(quoting: Promise<{ quoted: boolean }>) {
    const etag = await put('copy')
    const source = { CopySource: `${bucket}/${encodeURI(at('copy').Key)}`, MetadataDirective: 'REPLACE' as const }
    const copy = (condition: Condition) => outcomeOf(s3.copyObject({ ...at('copy'), ...source, ...condition }))
    const sourceIf = (await copy({ CopySourceIfMatch: `"${WRONG}"` })) === 'refused'
    return { sourceIf, copyIf: await looksAtBoth(copy, etag, quoting) }
  }

  async function completions(quoting: Promise<{ quoted: boolean }>) {
    const etag = await put('complete')
    const { UploadId } = await s3.createMultipartUpload(at('complete'))
    const upload = { ...at('complete'), UploadId }
    try {
      const { ETag } = await s3.uploadPart({ ...upload, PartNumber: 1, Body: BODY })
      const complete = { ...upload, MultipartUpload: { Parts: [{ PartNumber: 1, ETag }] } }
      const completes = (condition: Condition) => outcomeOf(s3.completeMultipartUpload({ ...complete, ...condition }))
      return await looksAtBoth(completes, etag, quoting)
    } finally {
      await s3.abortMultipartUpload(upload).catch(() => {})
    }
  }

  async function removals() {
    const etag = await put('remove')
    const remove = (tag: string) => outcomeOf(s3.deleteObject({ ...at('remove'), IfMatch: `"${tag}"` }))
    return (await remove(WRONG)) === 'refused' && (await remove(etag)) === 'done'
  }

  /** Probes of ours that were left behind, and this one's. */
  async function sweep() {
    const { Contents = [] } = await s3.listObjectsV2({ Bucket: bucket, Prefix: probes })
    const old = Contents.filter(
      ({ Key, LastModified }) => Key?.startsWith(own) || Date.now() - Number(LastModified) > LEFTOVER_MS,
    )
    await Promise.all(old.map(({ Key }) => s3.deleteObject({ Bucket: bucket, Key })))
  }

  let digests: boolean
  try {
    // A system that is set up for FIPS does not have MD5.
    digests = (await put('write')) === (getFips() ? '' : md5(BODY))
  } catch (error) {
    if (refusalOf(error)?.code === 'AccessDenied') return readOnly
    throw error
  }
  const putting = puts()
  const all = [putting, copies(putting), completions(putting), removals()] as const
  try {
    const [put, copy, completeIf, removeIfMatch] = await Promise.all(all)
    return { write: true, digests, ...put, ...copy, completeIf, removeIfMatch }
  } finally {
    await Promise.allSettled(all)
    await sweep().catch(() => {})
  }
}

type Condition = { IfNoneMatch?: string; IfMatch?: string; CopySourceIfMatch?: string }

/** Whether an operation on an object that is there, with this tag, is refused by the wrong conditions and only by these. */
async function looksAtBoth(
  attempt: (condition: Condition) => Promise<Outcome>,
  etag: string,
  quoting: Promise<{ quoted: boolean }>,
): Promise<boolean> {
  if ((await attempt({ IfNoneMatch: '*' })) !== 'refused') return false
  const how = await quoting
  const wrong = await attempt({ IfMatch: tagHeader(WRONG, how) })
  return wrong === 'refused' && (await attempt({ IfMatch: tagHeader(etag, how) })) === 'done'
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
