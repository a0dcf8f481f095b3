// Pages, chunks, and the 32-bit masks that say which pages of a chunk are valid or dirty. Pure arithmetic.

export const PAGE_BYTES = 4096
export const CHUNK_PAGES = 32
export const CHUNK_BYTES = 131_072

const PAGE_SHIFT = 12
export const FULL_MASK = 0xffff_ffff

/** Which 128 KiB of a blob: its offset divided by CHUNK_BYTES. */
export type ChunkIndex = number & { readonly chunk: unique symbol }

/** The chunk that holds the byte at `offset`. */
export const chunkAt = (offset: number) => Math.floor(offset / CHUNK_BYTES) as ChunkIndex

/** Byte offset at which `chunk` starts. */
export const chunkStart = (chunk: ChunkIndex) => chunk * CHUNK_BYTES

/** How many chunks `bytes` bytes touch, the last perhaps in part. */
export const chunkCount = (bytes: number) => Math.ceil(bytes / CHUNK_BYTES)

/** Byte offset within its chunk. (Not `%`: beyond 2^31 that is an fmod, and this is exact.) */
export const offsetInChunk = (offset: number) => offset - Math.floor(offset / CHUNK_BYTES) * CHUNK_BYTES

/** 0..31: which page of its chunk holds the byte at `offset`. */
export const pageInChunk = (offset: number) => offsetInChunk(offset) >>> PAGE_SHIFT

/** `countPages` pages from `firstPage` on, as an unsigned 32-bit mask. 32 pages are 0xffffffff. */
export const maskOf = (firstPage: number, countPages: number) =>
  countPages >= CHUNK_PAGES ? FULL_MASK : (((1 << countPages) - 1) << firstPage) >>> 0

/** Pages touched by the bytes [fromByte, toByte) of a chunk. */
export function maskCovering(fromByte: number, toByte: number) {
  if (fromByte >= toByte) return 0
  const first = fromByte >>> PAGE_SHIFT
  return maskOf(first, ((toByte + PAGE_BYTES - 1) >>> PAGE_SHIFT) - first)
}

/** Pages that lie wholly inside the bytes [fromByte, toByte) of a chunk. */
export function maskWithin(fromByte: number, toByte: number) {
  const first = (fromByte + PAGE_BYTES - 1) >>> PAGE_SHIFT
  const end = toByte >>> PAGE_SHIFT
  return first >= end ? 0 : maskOf(first, end - first)
}

/** How many pages the mask holds. */
export function popcount(mask: number) {
  let bits = mask - ((mask >>> 1) & 0x5555_5555)
  bits = (bits & 0x3333_3333) + ((bits >>> 2) & 0x3333_3333)
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24
}

const trailingZeros = (mask: number) => 31 - Math.clz32(mask & -mask)

/**
 * The first run of set pages at or after page `from`, packed into one small integer so that walking a mask allocates nothing;
 * -1 when there is none:
 *
 *     for (let run = firstRun(mask, 0); run >= 0; run = firstRun(mask, runEnd(run))) use(runStart(run), runLength(run))
 */
export function firstRun(mask: number, from: number) {
  if (from >= CHUNK_PAGES) return -1
  const rest = mask & (-1 << from)
  if (rest === 0) return -1
  const start = trailingZeros(rest)
  const clear = ~(rest >>> start)
  return start * 64 + (clear === 0 ? CHUNK_PAGES : trailingZeros(clear))
}
export const runStart = (run: number) => run >>> 6
export const runLength = (run: number) => run & 63
export const runEnd = (run: number) => (run >>> 6) + (run & 63)

/** Calls `visit` for each run of set pages, lowest first. */
export function runs(mask: number, visit: (firstPage: number, countPages: number) => void) {
  for (let run = firstRun(mask, 0); run >= 0; run = firstRun(mask, runEnd(run))) visit(runStart(run), runLength(run))
}
