// A blob as a tree of one file, so that one engine keeps both: the same journal, budgets, batches and restart.
import { randomUUID } from 'node:crypto'
import { takeBytes } from '../base/buffers.js'
import { FerryError } from '../base/errors.js'
import { Intervals } from '../chunk/intervals.js'
import type { Blob, BlobChange } from './blob.js'
import type { Batch, Claim, Claimed, Commits, Outcome } from './commits.js'
import { readOnlyTree } from './read-only.js'
import type { Entry, Path, Tree, TreeCapabilities, TreeChange, Version } from './tree.js'

/** The name of the file. */
export const BLOB_FILE = 'blob'

const MODE = { directory: 0o40700, file: 0o100600 }

/** Its file is BLOB_FILE. It takes changes of that file's bytes, and of nothing else; it closes what it stands on. */
export function blobTree(
  blob: Blob & Commits<BlobChange>,
  contract: TreeCapabilities['contract'] = 'remote',
): Tree & Commits<TreeChange> {
  const owner = { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 }
  const times = { atimeNs: 0n, mtimeNs: 0n, ctimeNs: 0n }
  /** What is read is of this version, as far as anybody knows. */
  const opener = randomUUID()
  let commits = 0
  let version: Version = `${opener}/0`
  const capabilities: TreeCapabilities = {
    contract,
    write: blob.capabilities.write,
    hardLinks: false,
    symlinks: false,
    specialFiles: false,
    owners: false,
    xattrBytesMax: 0,
    nameBytesMax: BLOB_FILE.length,
    pathBytesMax: BLOB_FILE.length,
    fileBytesMax: blob.resize ? Number.MAX_SAFE_INTEGER : blob.size,
    patch: true,
    fixedSize: blob.resize === undefined,
    unversioned: blob.version === undefined,
  }

  /** Of one that a former opener saw, nobody can tell where there are no versions: what it left to be sent is sent. */
  const isOld = (known: Version | null | undefined) =>
    known !== undefined && known !== version && (blob.version !== undefined || known?.startsWith(opener) !== false)

  /** Where nobody can tell, what this opener sees is one version, and the next opener sees another. */
  const look = async (signal?: AbortSignal) => {
    if (blob.version) version = await blob.version(signal)
    return version
  }

  const entry = async (signal?: AbortSignal): Promise<Entry> => {
    const version = await look(signal)
    // As it is by then.
    const { size } = blob
    return {
      ...{ name: BLOB_FILE, mode: MODE.file, ...owner, ...times, size, allocated: size, rdev: 0, nlink: 1, version },
    }
  }

  const root: Entry = {
    ...{ name: '', mode: MODE.directory, ...owner, ...times, size: 0, allocated: 0, rdev: 0, nlink: 2, version: '' },
  }

  const isThere = (path: Path) => {
    if (path !== BLOB_FILE) throw new FerryError(path === '' ? 'IS_DIRECTORY' : 'NOT_FOUND', { detail: path })
  }

  const reading = readOnlyTree({
    url: blob.url,
    async stat(path, signal) {
      if (path === '') return root
      return path === BLOB_FILE ? entry(signal) : null
    },
    async list(path, _, signal) {
      if (path !== '') throw new FerryError(path === BLOB_FILE ? 'NOT_DIRECTORY' : 'NOT_FOUND', { detail: path })
      return { entries: [await entry(signal)] }
    },
    async read(path, { at, length, version: wanted }, signal) {
      isThere(path)
      if (isOld(wanted)) throw new FerryError('STALE', { detail: blob.url })
      return readOf(blob, at, Math.min(length, Math.max(0, blob.size - at)), signal)
    },
    close: () => blob.close(),
  })

  const told = async (outcome: Outcome, signal?: AbortSignal): Promise<Outcome> => {
    // What is still being read is of the version before this batch.
    if (!blob.version) version = `${opener}/${++commits}`
    return {
      versions: [[BLOB_FILE, await look(signal)]],
      conflicts: [],
      refused: outcome.refused.map(one => ({ ...one, path: BLOB_FILE })),
    }
  }

  return {
    ...reading,
    capabilities,
    async claim(claim: Claim, signal?: AbortSignal): Promise<Claimed> {
      const claimed = await blob.claim(claim, signal)
      await look(signal)
      return claimed.outcome ? { ...claimed, outcome: await told(claimed.outcome, signal) } : claimed
    },
    renew: signal => blob.renew(signal),
    release: signal => blob.release(signal),
    holder: signal => blob.holder(signal),
    stage: (batch, id, at, from, signal) => blob.stage(batch, id, at, from, signal),
    async commit(batch: Batch<TreeChange>, signal?: AbortSignal): Promise<void> {
      for (const change of batch.changes) {
        if (!('expect' in change) || !isOld(change.expect)) continue
        // Half of the one and half of the other is nothing that ever was.
        const detail = `${blob.url} was changed by somebody else; what was not sent stays in the journal`
        throw new FerryError('STALE', { detail })
      }
      await blob.commit({ ...batch, changes: batch.changes.flatMap(change => changesOf(change, blob)) }, signal)
    },
    settle: async signal => told(await blob.settle(signal), signal),
  }
}

/** Of any length: in as many requests as the blob needs for it, at once. */
async function readOf(blob: Blob, at: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
  const { requestBytesMax } = blob.capabilities
  if (length <= requestBytesMax) return blob.read(at, length, signal)
  const whole = takeBytes(length)
  const parts: Promise<void>[] = []
  for (let from = 0; from < length; from += requestBytesMax) {
    const part = blob.read(at + from, Math.min(requestBytesMax, length - from), signal)
    parts.push(part.then(bytes => whole.set(bytes, from)))
  }
  await Promise.all(parts)
  return whole
}

/** Of the file's bytes: everything else is the engine's own. UNSUPPORTED for what a file alone has not. */
export function changesOf(change: TreeChange, { size: sizeNow, resize }: Pick<Blob, 'size' | 'resize'>): BlobChange[] {
  if (change.do === 'attributes') return []
  if ((change.do !== 'put' && change.do !== 'patch') || change.path !== BLOB_FILE)
    throw new FerryError('UNSUPPORTED', { detail: `${change.do} in what is one run of bytes` })
  const { content, size } = change
  if (size !== sizeNow && !resize)
    throw new FerryError('UNSUPPORTED', { detail: `${size} bytes for what has ${sizeNow}` })
  const written = new Intervals()
  const changes: BlobChange[] = size === sizeNow ? [] : [{ do: 'resize', size }]
  for (const extent of 'inline' in content ? content.inline : content.extents) {
    const length = 'bytes' in extent ? extent.bytes.byteLength : extent.length
    if (length === 0) continue
    written.add(extent.at, extent.at + length)
    if ('bytes' in extent) changes.push({ do: 'write', at: extent.at, bytes: extent.bytes })
    else if ('staged' in content) changes.push({ do: 'write', at: extent.at, length, staged: content.staged })
  }
  const zeros = new Intervals()
  // What it is extended by are zeros already.
  const end = Math.min(size, sizeNow)
  if (change.do === 'put') zeros.add(0, end)
  else {
    zeros.add(change.floor, end)
    for (const { at, length } of change.zeros ?? []) zeros.add(at, at + length)
  }
  for (const [from, to] of zeros)
    for (const [at, end] of written.gaps(from, to)) changes.push({ do: 'trim', at, length: end - at })
  return changes
}
