// How fast a region that is being pulled is read by somebody who does not begin at its beginning.
//
//   node pull-reads.js URL CACHE READER ORDER      READER: descending | stride:BYTES; ORDER: of the pull
//
// Prints milliseconds to the first byte, and seconds for all of it.
import { openRegion } from '../src/open-region.js'

const PIECE_BYTES = 1024 * 1024
const [url, cacheDir, reader, order] = process.argv.slice(2)

await using region = await openRegion(url, {
  ...{ cacheDir, pull: 'all', pullOrder: order, readOnly: true, simulate: 'rtt=20ms,rate=125M' },
})
const count = Math.ceil(region.size / PIECE_BYTES)
const ascending = Array.from({ length: count }, (_, n) => n)
const stride = Number(/^stride:(\d+)$/.exec(reader)?.[1] ?? 0) / PIECE_BYTES
const pieces =
  reader === 'descending' ? ascending.reverse() : ascending.sort((a, b) => (a % stride) - (b % stride) || a - b)

const into = new Uint8Array(PIECE_BYTES)
const began = performance.now()
let firstMs = 0
for (const [n, piece] of pieces.entries()) {
  await region.read(piece * PIECE_BYTES, into.subarray(0, Math.min(PIECE_BYTES, region.size - piece * PIECE_BYTES)))
  if (n === 0) firstMs = performance.now() - began
}
console.log(firstMs, (performance.now() - began) / 1000)
