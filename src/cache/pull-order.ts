// In which order everything is pulled that nobody has asked for yet.
import { CHUNK_BYTES } from '../chunk/geometry.js'

/**
 * From the front, from the back, every so many bytes (and then what is between, the same way), or what is wanted most first: a number for each
 * chunk of 128 KiB, asked once, before anything is pulled.
 */
export type PullOrder = 'ascending' | 'descending' | { strideBytes: number } | ((chunk: number) => number)

/** A user's function is asked for so many chunks before others have their turn. */
const CHUNKS_PER_TURN = 4_096

/** Where each block of `blockBytes` begins, each once. A block is wanted as much as the chunk in it that is wanted most. */
export async function* inOrder(order: PullOrder, size: number, blockBytes: number): AsyncGenerator<number> {
  const count = Math.ceil(size / blockBytes)
  if (typeof order === 'function') {
    const wanted = await priorities(order, size, blockBytes)
    const blocks = Uint32Array.from({ length: count }, (_, block) => block).sort(
      (a, b) => wanted[b] - wanted[a] || a - b,
    )
    for (const block of blocks) yield block * blockBytes
  } else if (order === 'ascending') for (let block = 0; block < count; block++) yield block * blockBytes
  else if (order === 'descending') for (let block = count - 1; block >= 0; block--) yield block * blockBytes
  else {
    const step = Math.max(1, Math.round(order.strideBytes / blockBytes))
    for (let first = 0; first < Math.min(step, count); first++)
      for (let block = first; block < count; block += step) yield block * blockBytes
  }
}

async function priorities(order: (chunk: number) => number, size: number, blockBytes: number): Promise<Float64Array> {
  const wanted = new Float64Array(Math.ceil(size / blockBytes)).fill(Number.NEGATIVE_INFINITY)
  const chunks = Math.ceil(size / CHUNK_BYTES)
  for (let chunk = 0; chunk < chunks; chunk++) {
    const block = Math.floor((chunk * CHUNK_BYTES) / blockBytes)
    wanted[block] = Math.max(wanted[block], order(chunk))
    if (chunk % CHUNKS_PER_TURN === CHUNKS_PER_TURN - 1) await new Promise(setImmediate)
  }
  return wanted
}
