import { fileURLToPath } from 'node:url'
import { orAborted, throwIfAborted } from './base/async.js'
import { FerryError } from './base/errors.js'
import { logger } from './base/log.js'
import { claimCacheDir, defaultCacheDir } from './cache-dir.js'
import { checkFiles, engineOptions, keepNoted } from './engine-options.js'
import { driverOf } from './fs/driver.js'
import type { HeldConnection } from './fs/held.js'
import type { MountOptions as DoorOptions, Mounted } from './fs/mount.js'
import { prepareMountPoint } from './fs/mountpoint.js'
import { MountedTree } from './mounted-tree.js'
import { type MountOptions, type MountSettings, mountSettings } from './options.js'
import { Registry } from './registry.js'
import type { Tree } from './remote/tree.js'
import { openStack } from './remote-stack.js'

const log = logger('mount')

/** Bytes that the kernel may hold back, at most. */
const KERNEL_BYTES_MAX = 256 * 1024 * 1024

/**
 * Mounts a remote directory at a local one, which must be empty. The options are those of `pageferry mount`, in camelCase. The
 * mount is ready for use when this resolves, also with its remote out of reach once it was seen before.
 * @throws FerryError USAGE (an option or the URL is wrong), NOT_FOUND, NOT_DIRECTORY, NOT_EMPTY (the mount point), NOT_PERMITTED,
 *   BUSY (the mount point or the cache directory is in use), LEASE_HELD (another writer has the remote), UNREACHABLE, ABORTED
 */
export async function mountTree(
  url: string,
  mountpoint: string,
  options: MountOptions = {},
  signal?: AbortSignal,
): Promise<MountedTree> {
  const mount = await mountWith(url, mountpoint, mountSettings(options), { signal })
  const failure = await mount.failure()
  if (!failure) return mount
  await mount.close()
  throw failure
}

/** The same with options that were checked before, and while the journal is still being replayed (see `failure`). */
export async function mountWith(
  url: string,
  mountpoint: string,
  asked: MountSettings,
  { signal, held }: { signal?: AbortSignal; held?: HeldConnection } = {},
): Promise<MountedTree> {
  /** What was opened, the last one first. */
  const opened: { close(): unknown }[] = []
  const closeOpened = async () => {
    for (const each of opened.splice(0)) await each.close()
  }
  try {
    // The remote's thread begins while the engine is loaded.
    const opening = openStack(url, asked)
    const [{ tree: remote, status }, { beginTreeCache }] = await Promise.all([opening, import('./cache/engine.js')])
    opened.unshift(remote)
    const settings = { ...asked, readOnly: asked.readOnly || !remote.capabilities.write }
    if (settings.acl && remote.capabilities.xattrBytesMax === 0)
      throw new FerryError('USAGE', {
        detail: `--acl: ${remote.url} keeps no extended attributes, and so no such lists`,
      })
    const point = held?.resumed?.mountpoint ?? (await prepareMountPoint(mountpoint, { note: line => log.warn(line) }))
    const path = settings.cacheDir ?? defaultCacheDir(remote.url)
    checkFiles(settings)
    keepApart(remote.url, point, { 'cache directory': path, 'file of --record': settings.record })
    const registry = new Registry()
    const cacheDir = await claimCacheDir(path, { remote: remote.url, registry, signal })
    opened.unshift(cacheDir)

    const cache = await beginTreeCache(
      remote,
      engineOptions(
        {
          ...settings,
          ...{ kernelBytesMax: kernelBytesMax(settings), isRegion: false },
          ...{ connection: held?.connection, outlived: held?.resumed != null },
        },
        cacheDir,
      ),
      signal,
    )
    let door: Mounted | undefined
    try {
      const driver = await driverOf(settings.driver)
      const options = { ...doorOptions(settings, remote), held, begins: orAborted(cache.replayed, signal) }
      door = await driver.mount({ fs: cache, mountpoint: point, options })
      throwIfAborted(signal)
    } catch (error) {
      await door?.[Symbol.asyncDispose]()
      await cache.close()
      throw error
    }
    const journal = { remote: remote.url, cacheDir: path }
    let note: ReturnType<typeof keepNoted> | undefined
    // What half of a journal says is unsent is not worth a note: the last one stands until then.
    const noting = cache.replayed.then(
      () => {
        if (!settings.readOnly) note = keepNoted(registry, journal, () => cache.status().lag)
      },
      () => {},
    )
    return new MountedTree({
      cache,
      door,
      held,
      cacheDir: path,
      remote: status,
      release: async lag => {
        await noting
        await note?.close(lag)
        await closeOpened()
      },
    })
  } catch (error) {
    await closeOpened().catch(error => log.warn('not everything could be closed', { error }))
    throw error
  }
}

const kernelBytesMax = ({ dirtyLimit }: MountSettings) => Math.min(dirtyLimit / 4, KERNEL_BYTES_MAX)

function doorOptions(settings: MountSettings, { url: source, capabilities }: Tree): DoorOptions {
  const { uid, gid, umask, allowOther, suid, dev, dirTtl, mode, acl } = settings
  // A name that the kernel goes on believing is not looked up here, and what others did to it would never be seen.
  const ttls = { entryTtlMs: dirTtl, negativeTtlMs: dirTtl }
  const xattrs = capabilities.xattrBytesMax > 0
  return {
    source,
    uid,
    gid,
    umask,
    allowOther,
    suid,
    dev,
    xattrs,
    mode,
    acl,
    ...ttls,
    bdi: { bytesMax: kernelBytesMax(settings) },
  }
}

const isWithin = (path: string, directory: string) =>
  path === directory || path.startsWith(directory.endsWith('/') ? directory : `${directory}/`)

/** A mount that stands on files behind itself, or that finds itself in its remote, would wait for its own answers. USAGE. */
function keepApart(url: string, point: string, files: Record<string, string | undefined>): void {
  const refuse = (detail: string) => {
    throw new FerryError('USAGE', { detail })
  }
  const directory = url.startsWith('file:') ? fileURLToPath(url) : undefined
  if (directory && isWithin(point, directory)) refuse(`the mount point ${point} lies in the remote ${directory}`)
  if (directory && isWithin(directory, point)) refuse(`the remote ${directory} lies below the mount point ${point}`)
  for (const [what, path] of Object.entries(files)) {
    if (path && isWithin(path, point)) refuse(`the ${what}, ${path}, lies below the mount point ${point}`)
    if (path && directory && isWithin(path, directory)) refuse(`the ${what}, ${path}, lies in the remote ${directory}`)
  }
}
