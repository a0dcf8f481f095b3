// A directory of this host as a remote. Paths are followed as they are; nothing is kept about them but open descriptors.
import fs, { type BigIntStats } from 'node:fs'
import { mapLimit } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { type Copy, copyFileRange, deviceOf, mknod, punchHole, setTimes, syncFileSystem } from '../linux/files.js'
import { errno, errnoOf, isMissing } from '../linux/libc.js'
import { mounts } from '../linux/mountinfo.js'
import { getxattr, listxattr, removexattr, setxattr } from '../linux/xattr.js'
import { treeCapabilities } from './file-capabilities.js'
import {
  close,
  errnoName,
  FileRoot,
  fsync,
  ftruncate,
  link,
  lstat,
  mkdir,
  OpenFiles,
  open,
  readFile,
  readLink,
  readUpTo,
  rename,
  rmdir,
  syncNearest,
  unlink,
  useVersion,
  versionOf,
  writeAll,
} from './file-io.js'
import { SortedNames } from './file-names.js'
import { fileStoreIn } from './file-store.js'
import { checkRange, fileUrl, isHidden, joinPath, parentPath, printable } from './path.js'
import { type Attributes, type Entry, HIDDEN, isCarried, type Tree } from './tree.js'

const PAGE_MAX = 1000
/** The thread pool has four threads; more in its queue than it can do at once keeps it busy, and no more is needed. */
const LSTATS_AT_ONCE = 32
const FSYNCS_AT_ONCE = 8
/** More paths than these are synced by one syncfs(2): 33,000 small files took minutes one by one. */
const FSYNCS_MAX = 256
const COPY_PIECE_BYTES = 1 << 20
const ZEROS = new Uint8Array(1 << 20)

const { O_RDONLY, O_DIRECTORY, O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK } = fs.constants
const { S_IFMT, S_IFREG, S_IFDIR, S_IFLNK } = fs.constants

/**
 * The tree below a directory, which must exist: NOT_FOUND, NOT_DIRECTORY, FORBIDDEN. Should the directory vanish later, every
 * method says UNREACHABLE. The last part of a path is never followed if it is a symlink; directories on the way are.
 */
export async function fileTree(directory: string | Buffer): Promise<Tree> {
  const root = await FileRoot.open(directory)
  const capabilities = await treeCapabilities(root.at(''))
  const url = fileUrl(root.at(''))
  const hidden = fileStoreIn(root, HIDDEN, `${url}/${HIDDEN}`)
  const readers = new OpenFiles('read')
  const writers = new OpenFiles('write')
  const names = new SortedNames()

  /** null: it is not there, and that is sure (or will be, when the caller has checked the root). */
  async function entryAt(path: Buffer, name: string): Promise<Entry | null> {
    for (let attempt = 0; ; attempt++) {
      try {
        const stats = await lstat(path)
        return entryOf(name, stats, stats.isSymbolicLink() ? await readLink(path) : undefined)
      } catch (error) {
        const errno = errnoName(error)
        if (errno === 'ENOENT' || errno === 'ENOTDIR') return null
        // No symlink any more between the two calls.
        if (errno !== 'EINVAL' || attempt > 2) throw error
      }
    }
  }

  /** `now`: what of it stays, and whether it is a symlink, whose mode cannot be changed. */
  async function setAttributes(path: Buffer, wanted: Partial<Attributes>, now: Now): Promise<void> {
    const { mode, uid, gid, atimeNs, mtimeNs } = wanted
    if (uid !== undefined || gid !== undefined) {
      try {
        await fs.promises.lchown(path, uid ?? Number(now.uid), gid ?? Number(now.gid))
      } catch (error) {
        if (capabilities.owners || errnoName(error) !== 'EPERM') throw error
      }
    }
    // After the owner, whose change takes the set-uid bits away.
    if (mode !== undefined && (Number(now.mode) & S_IFMT) !== S_IFLNK) await fs.promises.chmod(path, mode & 0o7777)
    if (atimeNs !== undefined || mtimeNs !== undefined) setTimes(path, { atimeNs, mtimeNs })
  }

  return {
    shape: 'tree',
    url,
    capabilities,
    hidden,

    async stat(path, signal) {
      return root.try(path, signal, async whole => {
        const entry = isHidden(path) ? null : await entryAt(whole, path.slice(path.lastIndexOf('/') + 1))
        if (!entry || path === '') await root.check()
        return entry
      })
    },

    async list(path, cursor, signal) {
      return root.try(path, signal, async whole => {
        const { names: all, from } = await names.after(whole, path, cursor)
        if (path === '') await root.check()
        const page = all.slice(from, from + PAGE_MAX)
        const more = from + PAGE_MAX < all.length
        if (!more) names.done(path)
        const wanted = page.filter(name => !isHidden(joinPath(path, name)))
        const entries = await mapLimit(wanted, LSTATS_AT_ONCE, name => entryAt(below(whole, name), name))
        const there = entries.filter(entry => entry !== null)
        // All gone at once: rather the disk than the files.
        if (there.length === 0 && wanted.length > 0) await root.check()
        return { entries: there, ...(more && { cursor: page[PAGE_MAX - 1] }) }
      })
    },

    async read(path, range, signal) {
      checkRange(range)
      return root.try(path, signal, whole => readFile(readers, whole, range))
    },

    async xattrs(path, signal) {
      return root.try(path, signal, async whole => {
        if (capabilities.xattrBytesMax === 0) {
          await lstat(whole)
          return new Map()
        }
        return readXattrs(whole)
      })
    },

    async usage(signal) {
      return root.try('', signal, async whole => {
        await root.check()
        const { blocks, bavail, bsize, files, ffree } = await fs.promises.statfs(whole)
        return { bytesTotal: blocks * bsize, bytesFree: bavail * bsize, filesTotal: files, filesFree: ffree }
      })
    },

    async close() {
      readers.clear()
      writers.clear()
      await hidden.close()
    },

    async write(path, at, from, signal) {
      checkRange({ at, length: from.byteLength })
      await root.change(path, signal, whole => writers.use(whole, fd => writeAll(fd, from, at)))
    },

    async copy(source, { at, length, to, version }, target, signal) {
      checkRange({ at, length })
      checkRange({ at: to, length })
      await root.change(source, signal, from =>
        useVersion(readers, from, version, async fd => {
          const copied = await root.reach(target, whole =>
            writers.use(whole, into => copyRange({ source: fd, sourceAt: at, target: into, targetAt: to, length })),
          )
          if (copied < length) throw new FerryError('SHORT_READ', { detail: `${copied} of ${length} bytes` })
        }),
      )
    },

    async truncate(path, size, signal) {
      checkRange({ at: 0, length: size })
      await root.change(path, signal, whole => writers.use(whole, fd => ftruncate(fd, size)))
    },

    async punch(path, at, length, signal) {
      checkRange({ at, length })
      await root.change(path, signal, whole =>
        writers.use(whole, async (fd, { size }) => {
          const end = Math.min(at + length, Number(size))
          if (at >= end) return
          try {
            punchHole(fd, { at, length: end - at })
          } catch (error) {
            if (!isMissing(error)) throw error
            for (let from = at; from < end; from += ZEROS.length)
              await writeAll(fd, ZEROS.subarray(0, Math.min(ZEROS.length, end - from)), from)
          }
        }),
      )
    },

    async make(path, node, signal) {
      await root.change(path, signal, async whole => {
        await makeNode(whole, node.mode, node)
        try {
          await setAttributes(whole, node, node)
        } catch (error) {
          // Not half of it: whoever tries again would find it there.
          await unlink(whole)
            .catch(() => rmdir(whole))
            .catch(() => {})
          throw error
        }
      })
    },

    async link(source, target, signal) {
      await root.change(source, signal, whole => root.reach(target, to => link(whole, to)))
    },

    async rename(source, target, signal) {
      await root.change(source, signal, async whole => {
        const before = await lstat(whole)
        try {
          await root.reach(target, to => rename(whole, to))
        } catch (error) {
          if (errnoName(error) === 'EEXIST')
            throw new FerryError('NOT_EMPTY', { cause: error, detail: printable(target) })
          throw error
        }
        // rename(2) of one name of a file onto another name of it does nothing at all; the source must go all the same.
        if (source === target || before.isDirectory() || before.nlink < 2n) return
        const left = await lstat(whole).catch(() => undefined)
        if (left?.ino === before.ino && left.dev === before.dev) await unlink(whole)
      })
    },

    async remove(path, signal) {
      if (path === '') throw new FerryError('BUSY', { detail: 'the root of a tree' })
      await root.change(path, signal, whole =>
        unlink(whole).catch(error => {
          if (errnoName(error) !== 'EISDIR') throw error
          return rmdir(whole)
        }),
      )
    },

    async setAttributes(path, attributes, signal) {
      await root.change(path, signal, async whole => setAttributes(whole, attributes, await lstat(whole)))
    },

    async setXattrs(path, xattrs, signal) {
      await root.change(path, signal, async whole => {
        checkXattrs(xattrs, capabilities.xattrBytesMax)
        await lstat(whole)
        writeXattrs(whole, xattrs)
      })
    },

    async sync(paths, signal) {
      await root.change('', signal, async () => {
        if (paths.length > FSYNCS_MAX && isOneFileSystem(root.at(''))) {
          writers.throwIfLost()
          const fd = await open(root.at(''), O_RDONLY | O_DIRECTORY)
          await syncFileSystem(fd).finally(() => close(fd))
          return
        }
        const directories = new Set<string>()
        await mapLimit(paths, FSYNCS_AT_ONCE, async path => {
          if (path !== '') directories.add(parentPath(path))
          await root
            .reach(path, async whole => {
              const stats = await lstat(whole)
              if (stats.isDirectory()) directories.add(path)
              else if (stats.isFile()) await syncFile(writers, whole)
            })
            .catch(error => {
              if (errnoName(error) !== 'ENOENT' && errnoName(error) !== 'ENOTDIR') throw error
            })
        })
        writers.throwIfLost()
        await mapLimit([...directories], FSYNCS_AT_ONCE, path => syncNearest(root, path))
      })
    },
  }
}

/** Nothing else is mounted below: then one syncfs covers all of it. */
const isOneFileSystem = (directory: Buffer): boolean => {
  const below = Buffer.concat([directory, Buffer.from('/')])
  return !mounts().some(({ point }) => point.length > below.length && point.subarray(0, below.length).equals(below))
}

const below = (directory: Buffer, name: string): Buffer => Buffer.concat([directory, Buffer.from(`/${name}`, 'latin1')])

type Now = Record<'mode' | 'uid' | 'gid', number | bigint>

/** What lstat(2) said, as an entry. */
function entryOf(name: string, stats: BigIntStats, link: string | undefined): Entry {
  return {
    name,
    mode: Number(stats.mode),
    uid: Number(stats.uid),
    gid: Number(stats.gid),
    atimeNs: stats.atimeNs,
    mtimeNs: stats.mtimeNs,
    ctimeNs: stats.ctimeNs,
    size: link !== undefined ? link.length : stats.isFile() ? Number(stats.size) : 0,
    allocated: Number(stats.blocks) * 512,
    rdev: Number(stats.rdev),
    nlink: Number(stats.nlink),
    version: versionOf(stats),
    ...(stats.birthtimeNs > 0n && { btimeNs: stats.birthtimeNs }),
    ...(stats.nlink > 1n && !stats.isDirectory() && { id: `${stats.dev}-${stats.ino}` }),
    ...(link !== undefined && { link }),
  }
}

/** Where the kernel cannot do it (something else is mounted within the tree), piece by piece. @returns bytes copied */
async function copyRange(copy: Copy): Promise<number> {
  try {
    return await copyFileRange(copy)
  } catch (error) {
    if (!isMissing(error) && errnoOf(error) !== errno.EXDEV) throw error
  }
  const { source, sourceAt, target, targetAt, length } = copy
  let copied = 0
  while (copied < length) {
    const bytes = await readUpTo(source, sourceAt + copied, Math.min(COPY_PIECE_BYTES, length - copied))
    if (bytes.byteLength === 0) break
    await writeAll(target, bytes, targetAt + copied)
    copied += bytes.byteLength
  }
  return copied
}

async function makeNode(path: Buffer, mode: number, { link, rdev }: { link?: string; rdev: number }): Promise<void> {
  switch (mode & S_IFMT) {
    case S_IFREG: {
      const fd = await open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
      return close(fd)
    }
    case S_IFDIR:
      return mkdir(path, 0o700)
    case S_IFLNK:
      if (!link) throw new FerryError('INVALID', { detail: 'a symlink without a target' })
      return fs.promises.symlink(Buffer.from(link, 'latin1'), path)
    default:
      mknod(path, (mode & S_IFMT) | 0o600, deviceOf(rdev))
  }
}

function readXattrs(path: Buffer): Map<string, Uint8Array> {
  const xattrs = new Map<string, Uint8Array>()
  for (const name of listxattr(path)) {
    if (!isCarried(name.toString('latin1'))) continue
    try {
      const value = getxattr(path, name)
      if (value) xattrs.set(name.toString('latin1'), new Uint8Array(value))
    } catch (error) {
      if (errnoName(error) === 'ENOENT') throw error // gone meanwhile; what we may not read is not there for us
    }
  }
  return xattrs
}

function checkXattrs(wanted: Map<string, Uint8Array>, bytesMax: number): void {
  let bytes = 0
  for (const [name, value] of wanted) {
    bytes += name.length + value.byteLength
    if (isCarried(name) && bytesMax > 0) continue
    throw new FerryError('UNSUPPORTED', { detail: `extended attribute ${printable(name)}` })
  }
  if (bytes > bytesMax) throw new FerryError('TOO_LARGE', { detail: `${bytes} bytes of extended attributes` })
}

function writeXattrs(path: Buffer, wanted: Map<string, Uint8Array>): void {
  const before = readXattrs(path)
  for (const name of before.keys()) if (!wanted.has(name)) removexattr(path, Buffer.from(name, 'latin1'))
  for (const [name, value] of wanted) {
    const old = before.get(name)
    if (old && Buffer.compare(old, value) === 0) continue
    try {
      setxattr(path, Buffer.from(name, 'latin1'), value)
    } catch (error) {
      // ext4 says "no space" when its one block for attributes is full: that is for good, not until there is room again.
      if (errnoName(error) === 'ENOSPC' && fs.statfsSync(path).bavail > 0)
        throw new FerryError('TOO_LARGE', { cause: error, detail: `extended attribute ${printable(name)}` })
      throw error
    }
  }
}

/** A writer's descriptor is at hand most of the time; what we may not write we can still sync. */
async function syncFile(writers: OpenFiles, path: Buffer): Promise<void> {
  try {
    await writers.use(path, fd => fsync(fd))
  } catch (error) {
    if (!['EACCES', 'EROFS', 'EPERM', 'ETXTBSY'].includes(errnoName(error) ?? '')) throw error
    const fd = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    await fsync(fd).finally(() => close(fd))
  }
}
