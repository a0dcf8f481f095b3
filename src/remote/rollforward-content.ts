// Bytes of a change into a file: whole, or in place.
import { readExactly } from '../base/read-exactly.js'
import type { Content, Path, Tree, TreeChange } from './tree.js'

/** Bytes copied at once. */
export const PIECE_BYTES = 1024 * 1024

/** Copied at once by a tree that can do that by itself. */
export const COPY_BYTES = 16 * 1024 * 1024

/** Does one step that changes something, if it may still be done. */
export type Step = (work: () => Promise<void>) => Promise<void>

export interface Extent {
  at: number
  length: number
}

export const extentsOf = (content: Content): Extent[] =>
  'inline' in content ? content.inline.map(({ at, bytes }) => ({ at, length: bytes.byteLength })) : content.extents

/** The bytes of `content`, to where they belong; `staged` is the file that has them if they are not inline. */
export async function writeContent(
  tree: Tree,
  target: Path,
  content: Content,
  staged: Path,
  step: Step,
  signal?: AbortSignal,
): Promise<void> {
  if ('inline' in content) {
    for (const { at, bytes } of content.inline) await step(() => tree.write(target, at, bytes, signal))
    return
  }
  for (const { at, length } of content.extents) await copyBytes(tree, staged, target, { at, length }, step, signal)
}

/** Bytes that the file has. SHORT_READ if it has not. */
export const readWhole = (tree: Tree, path: Path, { at, length }: Extent, signal?: AbortSignal): Promise<Uint8Array> =>
  readExactly({ at, length, what: path }, (from, count) => tree.read(path, { at: from, length: count }, signal))

/** The same bytes at the same place in another file. */
async function copyBytes(
  tree: Tree,
  source: Path,
  target: Path,
  { at, length }: Extent,
  step: Step,
  signal?: AbortSignal,
): Promise<void> {
  if (tree.copy) {
    for (let from = at; from < at + length; from += COPY_BYTES) {
      const range = { at: from, to: from, length: Math.min(COPY_BYTES, at + length - from) }
      await step(() => tree.copy!(source, range, target, signal))
    }
    return
  }
  for (let from = at; from < at + length; from += PIECE_BYTES) {
    const bytes = await readWhole(tree, source, { at: from, length: Math.min(PIECE_BYTES, at + length - from) }, signal)
    await step(() => tree.write(target, from, bytes, signal))
  }
}

const ZEROS = new Uint8Array(PIECE_BYTES)

/** The first `size` bytes of a file into a fresh one; where there are only zeros, a hole. */
export async function copyFile(
  tree: Tree,
  source: Path,
  target: Path,
  size: number,
  step: Step,
  signal?: AbortSignal,
): Promise<void> {
  for (let at = 0; at < size; at += PIECE_BYTES) {
    const bytes = await readWhole(tree, source, { at, length: Math.min(PIECE_BYTES, size - at) }, signal)
    if (Buffer.compare(bytes, ZEROS.subarray(0, bytes.byteLength)) !== 0)
      await step(() => tree.write(target, at, bytes, signal))
  }
  await step(() => tree.truncate(target, size, signal))
}

/** Changes a file in place, of whatever state an earlier attempt has left it in. */
export async function patchFile(
  tree: Tree,
  target: Path,
  change: Extract<TreeChange, { do: 'patch' }>,
  sizeNow: number,
  staged: Path,
  step: Step,
  signal?: AbortSignal,
): Promise<void> {
  let size = sizeNow
  if (change.floor < size) {
    size = change.floor
    await step(() => tree.truncate(target, size, signal))
  }
  await writeContent(tree, target, change.content, staged, step, signal)
  for (const { at, length } of extentsOf(change.content)) size = Math.max(size, at + length)
  if (size !== change.size) await step(() => tree.truncate(target, change.size, signal))
  for (const { at, length } of change.zeros ?? []) await step(() => tree.punch(target, at, length, signal))
}
