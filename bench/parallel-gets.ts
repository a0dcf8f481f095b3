// How fast an object can be had by plain ranged GETs, so many at once: what a mount is held against.
//
//   node parallel-gets.js BUCKET KEY AT_ONCE      prints seconds
import { Agent } from 'node:http'
import { S3 } from '@aws-sdk/client-s3'
import { NodeHttpHandler } from '@smithy/node-http-handler'

const RANGE_BYTES = 4 * 1024 * 1024
const [Bucket, Key, atOnce] = process.argv.slice(2)
const s3 = new S3({
  forcePathStyle: true,
  responseChecksumValidation: 'WHEN_REQUIRED',
  requestHandler: new NodeHttpHandler({ httpAgent: new Agent({ keepAlive: true, maxSockets: Number(atOnce) }) }),
})
const { ContentLength: size = 0 } = await s3.headObject({ Bucket, Key })
const started = performance.now()
let next = 0
async function work(): Promise<void> {
  while (next < size) {
    const from = next
    next += RANGE_BYTES
    const range = `bytes=${from}-${Math.min(size, next) - 1}`
    const { Body } = await s3.getObject({ Bucket, Key, Range: range })
    for await (const _ of Body as AsyncIterable<Uint8Array>);
  }
}
await Promise.all(Array.from({ length: Number(atOnce) }, work))
console.log((performance.now() - started) / 1000)
