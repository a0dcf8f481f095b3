// The bytes of one answer, with all that can be wrong with them.
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { GetObjectCommandOutput } from '@aws-sdk/client-s3'
import { abortReason } from '../base/async.js'
import { takeBytes } from '../base/buffers.js'
import { FerryError } from '../base/errors.js'

/** The largest object that is read whole, in one piece of memory. */
const WHOLE_BYTES_MAX = 2 ** 31 - 1
/** What is larger was mostly put in parts, and its tag is no digest of the whole. */
const DIGEST_BYTES_MAX = 16 * 2 ** 20

export const md5 = (bytes: Uint8Array): string => createHash('md5').update(bytes).digest('hex')

/**
 * What a GET (of `range`, or of everything) brought. SHORT_READ if it is cut off or more than was announced, CORRUPT if it is
 * another range.
 */
export async function readBody(
  { Body, ContentLength, ContentRange }: GetObjectCommandOutput,
  range: { at: number; length: number } | undefined,
  doing: string,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const stream = Body instanceof Readable ? Body : Readable.from([])
  try {
    const length = expectedLength(ContentLength, ContentRange, range, doing)
    const bytes = takeBytes(length)
    let at = 0
    for await (const piece of stream as AsyncIterable<Uint8Array>) {
      if (at + piece.byteLength > length)
        throw new FerryError('SHORT_READ', { detail: `${doing}: more than announced` })
      bytes.set(piece, at)
      at += piece.byteLength
    }
    if (at < length) throw new FerryError('SHORT_READ', { detail: `${doing}: ${at} of ${length} bytes` })
    return bytes
  } catch (error) {
    if (error instanceof FerryError) throw error
    throw signal?.aborted ? abortReason(signal) : new FerryError('SHORT_READ', { cause: error, detail: doing })
  } finally {
    stream.destroy()
  }
}

/** CORRUPT if `bytes` are all that an object has and not those that its tag is the digest of. Encrypted objects have other tags. */
export function checkDigest(
  { ContentRange, ServerSideEncryption = 'AES256', SSECustomerAlgorithm }: GetObjectCommandOutput,
  tag: string,
  bytes: Uint8Array,
  doing: string,
): void {
  const isWhole = ContentRange === undefined || ContentRange.endsWith(`/${bytes.byteLength}`)
  const isDigest = /^[0-9a-f]{32}$/.test(tag) && ServerSideEncryption === 'AES256' && !SSECustomerAlgorithm
  if (isWhole && isDigest && bytes.byteLength <= DIGEST_BYTES_MAX && md5(bytes) !== tag)
    throw new FerryError('CORRUPT', { detail: `${doing}: not the bytes that the tag is the digest of` })
}

function expectedLength(
  announced: number | undefined,
  contentRange: string | undefined,
  range: { at: number; length: number } | undefined,
  doing: string,
): number {
  const wrong = (what: string) => new FerryError('CORRUPT', { detail: `${doing}: ${what}` })
  if (announced === undefined) throw new FerryError('IO', { detail: `${doing}: an answer without a length` })
  if (announced > (range?.length ?? WHOLE_BYTES_MAX)) {
    if (range) throw wrong(`${announced} bytes`)
    throw new FerryError('TOO_LARGE', { detail: `${doing}: ${announced} bytes at once` })
  }
  // Without a Content-Range it is the whole object.
  if (contentRange === undefined) {
    if (range && range.at > 0) throw wrong('the server took no notice of the range')
    return announced
  }
  const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(contentRange) ?? []
  const end = total === undefined || total === '*' ? Number(last) + 1 : Number(total)
  const wanted = range && Math.min(range.length, end - range.at)
  if (!range || Number(first) !== range.at || Number(last) - range.at + 1 !== announced || announced !== wanted)
    throw wrong(`the range ${JSON.stringify(contentRange)}`)
  return announced
}
