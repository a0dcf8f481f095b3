// The same file system through fuse-native: libfuse 2.9, which knows paths only. The way on macOS, and what the kernel driver is measured
// against. What libfuse 2 cannot do (README of the package, and docs): no fallocate, no SEEK_HOLE, no exchange of names, no word to the kernel about
// what changed, 128 KiB requests, times in ms, names that are not UTF-8 garbled, callers unknown (what is new belongs to the daemon's user).
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { deferred } from '../base/async.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { AttributeChange, FileSystem, Ino, InodeAttributes, Maybe } from '../cache/filesystem.js'
import { ROOT } from '../cache/filesystem.js'
import { loadLibrary } from '../linux/library.js'
import { mountAt } from '../linux/mountinfo.js'
import type { Driver } from './driver.js'
import { EIO, errnoOf } from './errno.js'
import { Handles } from './handles.js'
import type { Mounted, MountOptions } from './mount.js'
import { prepareMountPoint } from './mountpoint.js'
import { presentation } from './session.js'

const log = logger('fs')

/** How often it is looked whether somebody else unmounted: nobody tells us. */
const LOOK_MS = 500
const LIST_MAX = 1000
const S_IFMT = 0o170000
const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const S_IFLNK = 0o120000
const O_RDWR = 2

type Done = (errnoOrBytes: number, ...values: unknown[]) => void
type Operation = (...args: never[]) => void

/** The part of the package that we use. */
interface FuseNative {
  mount(done: (error: Error | null) => void): void
  unmount(done: (error: Error | null) => void): void
}
type FuseNativeClass = new (mountpoint: string, operations: Record<string, Operation>, options: object) => FuseNative

/** @throws UNSUPPORTED in one line, if the package is not there or cannot be loaded */
function load(): FuseNativeClass {
  const require = createRequire(import.meta.url)
  try {
    // It links against libfuse.so.2, which hardly any system has any more, and brings one, which it does not find.
    const folder = join(dirname(require.resolve('fuse-native')), 'prebuilds', `${process.platform}-${process.arch}`)
    const bundled = readdirSync(folder).find(name => name.startsWith('libfuse'))
    if (bundled) loadLibrary(join(folder, bundled))
    return require('fuse-native') as FuseNativeClass
  } catch (error) {
    const detail = 'the driver fuse-native needs the npm package fuse-native, which cannot be loaded here'
    throw new FerryError('UNSUPPORTED', { cause: error, detail })
  }
}

export const fuseNative: Driver = {
  name: 'fuse-native',
  async mount({ fs, mountpoint, options = {} }) {
    const Fuse = load()
    const point = await prepareMountPoint(mountpoint, { nonEmpty: options.nonEmpty, note: line => log.info(line) })
    // libfuse asks at once, and gives up on who does not answer.
    await options.begins
    // Options are joined by commas: this is how those get through that the wrapper does not know.
    const fsname = [
      `${(options.source ?? 'pageferry').replaceAll(',', '_')}`,
      'big_writes',
      fs.readOnly ? 'ro' : 'rw',
    ].join(',')
    let requests = 0
    const { operations, waiting } = operationsOf(fs, options, () => requests++)
    const fuse = new Fuse(point, operations, {
      fsname,
      subtype: 'pageferry',
      allowOther: options.allowOther,
      defaultPermissions: true,
      timeout: false, // its own would answer for us, and then take the buffer away under a late read
    })
    await new Promise<void>((resolve, reject) => fuse.mount(error => (error ? reject(toFerryError(error)) : resolve())))
    return mounted(point, fuse, { requests: () => requests, waiting })
  },
}

function mounted(
  mountpoint: string,
  fuse: FuseNative,
  counts: { requests: () => number; waiting: () => number },
): Mounted {
  const closed = deferred()
  const lookout = setInterval(() => {
    if (mountAt(mountpoint)) return
    clearInterval(lookout)
    closed.resolve()
  }, LOOK_MS)
  let unmounting: Promise<void> | undefined
  /** Always lazily: the package knows no other way. */
  const unmount = () => {
    unmounting ??= new Promise<void>((resolve, reject) =>
      fuse.unmount(error => (error && mountAt(mountpoint) ? reject(toFerryError(error)) : resolve())),
    )
    return unmounting
  }
  return {
    mountpoint,
    closed: closed.promise,
    get requests() {
      return counts.requests()
    },
    get waiting() {
      return counts.waiting()
    },
    flushKernel: async () => {}, // the kernel writes through
    kernelBytes: async () => 0,
    unmount,
    [Symbol.asyncDispose]: unmount,
  }
}

/** libfuse's calls by path, on inodes. */
function operationsOf(fs: FileSystem, options: MountOptions, count: () => void) {
  const handles = new Handles(fs)
  const present = presentation(options)
  const opened = new Map<number, { ino: Ino; handle: number }>()
  let nextFd = 1
  let waiting = 0

  /** Answers with what `work` gives, now or later; what it throws is an errno. `zero` is the success that has no value. */
  const answer = <T>(done: Done, work: () => Maybe<T>, reply: (value: T) => void = () => done(0)) => {
    count()
    const fail = (error: unknown) => {
      const errno = errnoOf(error)
      if (errno === undefined) log.error('a request failed unexpectedly', { error: toFerryError(error) })
      done(-(errno ?? EIO))
    }
    try {
      const value = work()
      if (!(value instanceof Promise)) return reply(value)
      waiting++
      value
        .then(reply)
        .catch(fail)
        .finally(() => waiting--)
    } catch (error) {
      fail(error)
    }
  }

  const resolve = async (path: string): Promise<InodeAttributes> => {
    let attributes = await fs.attributes(ROOT)
    for (const name of partsOf(path)) {
      const found = await fs.lookup(attributes.ino, name)
      if (!found) throw new FerryError('NOT_FOUND')
      attributes = found
    }
    return attributes
  }
  const inoOf = async (path: string) => (await resolve(path)).ino
  /** The directory of a path, and its last part. */
  const place = async (path: string) => {
    const parts = partsOf(path)
    const name = parts.pop()
    if (name === undefined) throw new FerryError('BUSY')
    return { parent: await inoOf(parts.map(textOf).join('/')), name }
  }
  const change = async (path: string, what: AttributeChange) => void (await fs.setAttributes(await inoOf(path), what))
  const make = async (path: string, mode: number, more: { rdev?: number; link?: string } = {}) => {
    const { parent, name } = await place(path)
    return fs.make(parent, name, { mode, uid: process.getuid!(), gid: process.getgid!(), ...more })
  }
  const open = (ino: Ino, flags: number) => {
    const fd = nextFd++
    fs.remember(ino) // so that it stays while it is open
    opened.set(fd, { ino, handle: handles.open(ino, flags) })
    return fd
  }
  const openedAs = (fd: number) => {
    const found = opened.get(fd)
    if (!found) throw new FerryError('INVALID')
    return found
  }
  const list = async (path: string) => {
    const ino = await inoOf(path)
    const names: string[] = []
    for (let after = 0; ; ) {
      const page = await fs.entries(ino, after, LIST_MAX)
      if (page.length === 0) return names
      names.push(...page.map(({ name }) => textOf(name)))
      after = page[page.length - 1].cookie
    }
  }
  const statOf = (attributes: InodeAttributes) => {
    const { ino, mode, uid, gid, rdev, nlink, size, blocks, blksize, ...times } = present(attributes)
    const [atime, mtime, ctime] = [times.atimeNs, times.mtimeNs, times.ctimeNs].map(millisecondsOf)
    return { ino, mode, uid, gid, rdev, nlink, size, blocks, blksize, atime, mtime, ctime }
  }
  /** Its values come with room for 4096 bytes of a name; libfuse asks for the size first. */
  const xattr = async (path: string, name: string) => Buffer.from(await fs.getXattr(await inoOf(path), bytesOf(name)))

  const operations = {
    getattr: (path: string, done: Done) =>
      answer(
        done,
        () => resolve(path),
        found => done(0, statOf(found)),
      ),
    fgetattr: (path: string, _fd: number, done: Done) =>
      answer(
        done,
        () => resolve(path),
        found => done(0, statOf(found)),
      ),
    readdir: (path: string, done: Done) =>
      answer(
        done,
        () => list(path),
        names => done(0, names),
      ),
    readlink: (path: string, done: Done) =>
      answer(
        done,
        async () => fs.readLink(await inoOf(path)),
        link => done(0, textOf(link)),
      ),
    statfs: (_path: string, done: Done) =>
      answer(
        done,
        () => fs.space(),
        space => {
          // 32 bits each: larger blocks for larger disks.
          const factor = Math.max(1, 2 ** Math.ceil(Math.log2((space.blocksTotal + 1) / 2 ** 32)))
          done(0, {
            bsize: space.blockBytes * factor,
            frsize: space.blockBytes * factor,
            blocks: Math.floor(space.blocksTotal / factor),
            bfree: Math.floor(space.blocksFree / factor),
            bavail: Math.floor(space.blocksFree / factor),
            files: Math.min(space.filesTotal, 2 ** 32 - 1),
            ffree: Math.min(space.filesFree, 2 ** 32 - 1),
            favail: Math.min(space.filesFree, 2 ** 32 - 1),
            namemax: space.nameBytesMax,
          })
        },
      ),

    mknod: (path: string, mode: number, rdev: number, done: Done) => answer(done, () => make(path, mode, { rdev })),
    mkdir: (path: string, mode: number, done: Done) => answer(done, () => make(path, S_IFDIR | (mode & ~S_IFMT))),
    symlink: (link: string, path: string, done: Done) =>
      answer(done, () => make(path, S_IFLNK | 0o777, { link: bytesOf(link) })),
    link: (from: string, to: string, done: Done) =>
      answer(done, async () => {
        const { parent, name } = await place(to)
        await fs.link(await inoOf(from), parent, name)
      }),
    unlink: (path: string, done: Done) =>
      answer(done, async () => {
        const { parent, name } = await place(path)
        await fs.unlink(parent, name)
      }),
    rmdir: (path: string, done: Done) =>
      answer(done, async () => {
        const { parent, name } = await place(path)
        await fs.removeDirectory(parent, name)
      }),
    rename: (from: string, to: string, done: Done) =>
      answer(done, async () => fs.rename(await place(from), await place(to), 'replace')),

    chmod: (path: string, mode: number, done: Done) => answer(done, () => change(path, { mode: mode & ~S_IFMT })),
    chown: (path: string, uid: number, gid: number, done: Done) =>
      answer(done, () => change(path, { uid: owner(uid), gid: owner(gid) })),
    utimens: (path: string, atimeMs: number, mtimeMs: number, done: Done) =>
      answer(done, () => change(path, { atimeNs: nanosecondsOf(atimeMs), mtimeNs: nanosecondsOf(mtimeMs) })),
    truncate: (path: string, size: number, done: Done) => answer(done, () => change(path, { size })),
    ftruncate: (_path: string, fd: number, size: number, done: Done) =>
      answer(done, () => fs.setAttributes(openedAs(fd).ino, { size })),

    open: (path: string, flags: number, done: Done) =>
      answer(
        done,
        async () => open(await inoOf(path), flags),
        fd => done(0, fd),
      ),
    create: (path: string, mode: number, done: Done) =>
      answer(
        done,
        async () => open((await make(path, S_IFREG | (mode & ~S_IFMT))).ino, O_RDWR),
        fd => done(0, fd),
      ),
    release: (_path: string, fd: number, done: Done) =>
      answer(done, () => {
        const { ino, handle } = openedAs(fd)
        opened.delete(fd)
        handles.release(ino, handle)
        fs.forget(ino, 1)
      }),
    read: (_path: string, fd: number, into: Buffer, length: number, at: number, done: Done) =>
      answer(done, () => fs.read(openedAs(fd).ino, at, into.subarray(0, length)), done),
    write: (_path: string, fd: number, from: Buffer, length: number, at: number, done: Done) =>
      answer(
        done,
        () => fs.write(openedAs(fd).ino, at, from.subarray(0, length)),
        () => done(length),
      ),
    fsync: (_path: string, _datasync: number, fd: number, done: Done) => answer(done, () => fs.fsync(openedAs(fd).ino)),
    fsyncdir: (path: string, _datasync: number, _fd: number, done: Done) =>
      answer(done, async () => fs.fsync(await inoOf(path))),

    getxattr: (path: string, name: string, _position: number, done: Done) =>
      answer(
        done,
        () => xattr(path, name),
        value => done(0, value),
      ),
    setxattr: (path: string, name: string, value: Buffer, _position: number, flags: number, done: Done) =>
      answer(done, async () => {
        const how = flags === 1 ? 'create' : flags === 2 ? 'replace' : 'set'
        await fs.setXattr(await inoOf(path), bytesOf(name), value, how)
      }),
    listxattr: (path: string, done: Done) =>
      answer(
        done,
        async () => fs.listXattrs(await inoOf(path)),
        names => done(0, names.map(textOf)),
      ),
    removexattr: (path: string, name: string, done: Done) =>
      answer(done, async () => fs.removeXattr(await inoOf(path), bytesOf(name))),
  } satisfies Record<string, Operation>
  return { operations: operations as Record<string, Operation>, waiting: () => waiting }
}

/** fuse-native speaks UTF-8; our names are bytes. */
const bytesOf = (text: string) => Buffer.from(text, 'utf8').toString('latin1')
const textOf = (bytes: string) => Buffer.from(bytes, 'latin1').toString('utf8')
const partsOf = (path: string) =>
  path
    .split('/')
    .filter(part => part !== '')
    .map(bytesOf)
const millisecondsOf = (ns: bigint) => Math.max(0, Number(ns / 1_000_000n))
const nanosecondsOf = (ms: number) => BigInt(Math.round(ms)) * 1_000_000n
/** chown(2) says -1 for what is to stay. */
const owner = (id: number) => (id === 0xffffffff || id === -1 ? undefined : id)
