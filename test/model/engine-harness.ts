// The engine on a remote in memory and a real disk, without a kernel: for model tests.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { openTreeCache } from '../../src/cache/engine.js'
import type { Ino, Maybe } from '../../src/cache/filesystem.js'
import type { Storage } from '../../src/cache/storage.js'
import type { TreeCache, TreeCacheOptions } from '../../src/cache/tree-cache.js'
import { diskStorage } from '../../src/linux/storage.js'
import type { Objects } from '../../src/remote/objects.js'
import { rollforward } from '../../src/remote/rollforward.js'
import type { Tree } from '../../src/remote/tree.js'

export const engineOptions = (cacheDir: string, changes: Partial<TreeCacheOptions> = {}): TreeCacheOptions => ({
  cacheDir,
  storage: diskStorage(cacheDir),
  identity: { writer: path.basename(cacheDir), host: 'here', bootId: 'boot', pid: process.pid, startTime: 1 },
  readOnly: false,
  isRegion: false,
  takeOver: true,
  shared: false,
  cacheBytesMax: 1024 ** 3,
  cacheBytesFreeMin: 0,
  memoryBytesMax: 64 * 1024 * 1024,
  fetchBytesMax: 1024 * 1024,
  fsync: 'local',
  flushIntervalMs: 3_600_000,
  delayMsMax: 30_000,
  dirtyBytesMax: 512 * 1024 * 1024,
  dirtyOperationsMax: 1_000_000,
  whenFull: 'wait',
  pull: 'on-demand',
  pullOrder: 'ascending',
  pullWorkers: 4,
  pushWorkers: 4,
  prefetch: 'auto',
  record: undefined,
  leaseMs: 30_000,
  deadlineMs: 10_000,
  dirTtlMs: 60_000,
  localOnly: ['*-shm'],
  kernelBytesMax: 1024 * 1024,
  connection: 0,
  outlived: false,
  wholes: false,
  acl: false,
  nowNs: () => BigInt(Date.now()) * 1_000_000n,
  ...changes,
})

export function temporaryDirectory(): string {
  return fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-'))
}

export async function openEngine(
  remote: Tree | Objects,
  cacheDir: string,
  changes: Partial<TreeCacheOptions> = {},
): Promise<TreeCache> {
  const committing = remote.shape === 'objects' ? rollforward(remote) : rollforward(remote)
  return openTreeCache(committing, engineOptions(cacheDir, changes))
}

/** Everything below an inode: path -> what it is. */
export async function snapshot(
  cache: TreeCache,
  ino: Ino = 1,
  at = '',
  into = new Map<string, string>(),
): Promise<Map<string, string>> {
  for (let after = 0; ; ) {
    const entries = await cache.entries(ino, after, 100)
    if (entries.length === 0) return into
    for (const entry of entries) {
      const inode = await cache.lookup(ino, entry.name)
      if (!inode) throw new Error(`${entry.name} of ${at} is listed, and not there`)
      const where = at ? `${at}/${entry.name}` : entry.name
      const type = inode.mode & 0o170000
      if (type === 0o040000) {
        into.set(where, `directory ${(inode.mode & 0o7777).toString(8)}`)
        await snapshot(cache, inode.ino, where, into)
      } else if (type === 0o120000) into.set(where, `-> ${await cache.readLink(inode.ino)}`)
      else {
        const bytes = new Uint8Array(inode.size)
        let done = 0
        while (done < bytes.length) {
          const read = await cache.read(inode.ino, done, bytes.subarray(done, done + 256 * 1024))
          if (read === 0) throw new Error(`${where}: nothing at ${done} of ${inode.size}`)
          done += read
        }
        into.set(where, `${(inode.mode & 0o7777).toString(8)} ${Buffer.from(bytes).toString('latin1')}`)
      }
      after = entry.cookie
    }
  }
}

export const settled = async <T>(value: Maybe<T>): Promise<T> => value

export type { Storage }
