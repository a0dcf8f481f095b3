// Objects as files: an object's name is its path below the directory.
//
// What that costs: of 'a' and 'a/b' only one can exist (IS_DIRECTORY, NOT_DIRECTORY). Each object is written to a temporary
// file and synced before it gets its name; a lock file keeps conditional puts atomic between processes, too.
import fs from 'node:fs'
import { KeyedMutex, mapLimit, sleep, throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { crc32 } from '../chunk/digest.js'
import { renameat2 } from '../linux/files.js'
import { tryLock } from '../linux/lock.js'
import {
  close,
  errnoName,
  FileRoot,
  fdatasync,
  fstat,
  link,
  lstat,
  mkdir,
  OpenFiles,
  open,
  readFile,
  readNames,
  rename,
  rmdir,
  syncDirectory,
  syncNearest,
  unlink,
  versionOf,
  writeAll,
} from './file-io.js'
import { compareNames } from './file-names.js'
import { checkPath, checkRange, fileUrl, joinPath, lastName, parentPath, printable } from './path.js'
import type { ObjectInfo, PutCondition, Store } from './store.js'

/** Where unfinished objects and the lock lie, in the store's directory; no object can have such a name. */
const TEMPORARY = '.tmp'
const PAGE_MAX = 1000
/** S3's limit; what a name may be should not depend on where a store happens to lie. A part of it has 255. */
const NAME_BYTES_MAX = 1024
const LSTATS_AT_ONCE = 32
/** Files that are locked, by a name's checksum. */
const LOCKS = 64
/** A temporary file this old was left behind by a crash. */
const LEFTOVER_MS = 3_600_000

const { O_RDWR, O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = fs.constants

/** The objects in a directory, which must exist: NOT_FOUND, NOT_DIRECTORY. */
export async function fileStore(directory: string | Buffer): Promise<Store> {
  const root = await FileRoot.open(directory)
  return fileStoreIn(root, '', fileUrl(root.at('')))
}

/** The objects of a blob that is one file: they lie in `.pageferry-NAME/` beside it, which is made when first needed. */
export async function fileStoreBeside(file: string | Buffer): Promise<Store> {
  const path = Buffer.from(file).toString('latin1')
  const root = await FileRoot.open(Buffer.from(parentPath(path) || (path.startsWith('/') ? '/' : '.'), 'latin1'))
  const below = `.pageferry-${lastName(path)}`
  return fileStoreIn(root, below, fileUrl(root.at(below)))
}

/** The objects in the directory `below` of a root; it is made when first needed. */
export function fileStoreIn(root: FileRoot, below: string, url: string): Store {
  const files = new OpenFiles('read')
  const inProcess = new KeyedMutex()
  let temporaries = 0
  let swept = false

  const pathOf = (name: string) => {
    checkPath(name)
    if (name.length > NAME_BYTES_MAX) throw new FerryError('NAME_TOO_LONG', { detail: printable(name) })
    if (name === '' || name === TEMPORARY || name.startsWith(`${TEMPORARY}/`))
      throw new FerryError('INVALID', { detail: `${printable(name)} cannot be an object's name` })
    return joinPath(below, name)
  }

  /** Makes the directory and those above it, durably. */
  async function makeDirectories(path: string): Promise<void> {
    if (path === '') return
    try {
      await mkdir(root.at(path), 0o700)
    } catch (error) {
      if (errnoName(error) === 'ENOENT') {
        await makeDirectories(parentPath(path))
        return makeDirectories(path)
      }
      // Somebody made it, perhaps only just now: it must be durable for us, too.
      if (errnoName(error) !== 'EEXIST') throw error
    }
    await syncDirectory(root.at(parentPath(path)))
  }

  /** What needs the directory of temporary files; it is made if it is not there. */
  async function orMakeFirst<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      if (errnoName(error) !== 'ENOENT') throw error
      await makeDirectories(joinPath(below, TEMPORARY))
      return work()
    }
  }

  /** A new synced file with these bytes; gone again when `work` is done, unless that gave it a name. */
  async function withTemporary<T>(bytes: Uint8Array, work: (file: Buffer, version: string) => Promise<T>): Promise<T> {
    const directory = joinPath(below, TEMPORARY)
    if (!swept) {
      await makeDirectories(directory)
      await sweep(directory)
      swept = true
    }
    const random = freshName(temporaries++)
    const path = root.at(joinPath(directory, random))
    const fd = await orMakeFirst(() => open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600))
    try {
      let version: string
      try {
        await writeAll(fd, bytes, 0)
        const now = uniqueTime()
        fs.futimesSync(fd, now, now)
        await fdatasync(fd)
        version = versionOf(await fstat(fd))
      } finally {
        await close(fd)
      }
      return await work(path, version)
    } finally {
      await unlink(path).catch(() => {})
    }
  }

  async function sweep(directory: string): Promise<void> {
    for (const name of await readNames(root.at(directory))) {
      const path = root.at(joinPath(directory, name))
      const stats = await lstat(path).catch(() => undefined)
      if (!name.startsWith('lock-') && stats && Date.now() - Number(stats.mtimeMs) > LEFTOVER_MS)
        await unlink(path).catch(() => {})
    }
  }

  /**
   * One at a time of those that may change this object, in this process and in all others that use this directory. Of others hardly ever: a
   * process that is stopped while it has the lock stands in the way of few.
   */
  const exclusively = <T>(name: string, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> => {
    const lock = `lock-${crc32(Buffer.from(name, 'latin1')) % LOCKS}`
    return inProcess.run(lock, async () => {
      const path = root.at(joinPath(below, `${TEMPORARY}/${lock}`))
      const fd = await orMakeFirst(() => open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600))
      try {
        while (!tryLockIfCan(fd)) await sleep(1, signal)
        return await work()
      } finally {
        await close(fd) // and with it the lock goes
      }
    })
  }

  /** Gives the file its name. An empty directory that earlier objects left behind is not in the way. */
  async function place(name: string, how: () => Promise<void>): Promise<void> {
    const path = pathOf(name)
    for (let attempt = 0; ; attempt++) {
      try {
        await how()
        break
      } catch (error) {
        const errno = errnoName(error)
        if (attempt >= 3) throw error
        if (errno === 'ENOENT') await makeDirectories(parentPath(path))
        else if (errno !== 'EISDIR' && errno !== 'EEXIST') throw error
        else if (!(await succeeds(rmdir(root.at(path))))) throw error
      }
    }
  }

  async function info(name: string): Promise<ObjectInfo | null> {
    try {
      const stats = await lstat(root.at(pathOf(name)))
      return stats.isFile() ? { name, size: Number(stats.size), version: versionOf(stats) } : null
    } catch (error) {
      if (errnoName(error) !== 'ENOENT' && errnoName(error) !== 'ENOTDIR') throw error
      await root.check()
      return null
    }
  }

  async function expectVersion(name: string, version: string): Promise<ObjectInfo | null> {
    const now = await info(name)
    if (now?.version !== version)
      throw new FerryError('CONFLICT', { detail: `${printable(name)} is ${now ? 'another version' : 'gone'}` })
    return now
  }

  /** Names of objects in a directory of the store and below, after `after` and with `prefix`, in byte order. */
  async function* names(directory: string, prefix: string, after: string): AsyncGenerator<string> {
    const read = fs.promises.readdir(root.at(joinPath(below, directory)), { encoding: 'latin1', withFileTypes: true })
    const found = await read.catch(error => {
      if (errnoName(error) === 'ENOENT' || errnoName(error) === 'ENOTDIR') return []
      throw error
    })
    const entries = found
      .filter(entry => entry.isFile() || entry.isDirectory())
      // Objects below a directory sort as its name and a slash do.
      .map(entry => joinPath(directory, entry.name) + (entry.isDirectory() ? '/' : ''))
      .sort(compareNames)
    for (const entry of entries) {
      if (entry === `${TEMPORARY}/`) continue
      if (!entry.endsWith('/')) {
        if (entry > after && entry.startsWith(prefix)) yield entry
        continue
      }
      const mayMatch = entry.startsWith(prefix) || prefix.startsWith(entry)
      const mayFollow = entry > after || after.startsWith(entry)
      if (mayMatch && mayFollow) yield* names(entry.slice(0, -1), prefix, after)
    }
  }

  return {
    shape: 'store',
    url,
    capabilities: {
      conditionalCreate: true,
      conditionalReplace: true,
      nameBytesMax: NAME_BYTES_MAX,
      objectBytesMax: 2 ** 31 - 1,
    },

    async get(name, range, signal) {
      if (range) checkRange(range)
      const whole = { at: 0, length: Number.MAX_SAFE_INTEGER }
      return root.try(pathOf(name), signal, async path => {
        try {
          return await readFile(files, path, range ?? whole)
        } catch (error) {
          // A directory that other objects lie in.
          if (error instanceof FerryError && ['IS_DIRECTORY', 'INVALID'].includes(error.code))
            throw new FerryError('NOT_FOUND', { detail: printable(name) })
          throw errnoName(error) === 'ENOTDIR' ? new FerryError('NOT_FOUND', { detail: printable(name) }) : error
        }
      })
    },

    async head(name, signal) {
      return root.try(pathOf(name), signal, () => info(name))
    },

    async put(name, bytes, condition: PutCondition = {}, signal) {
      const { ifAbsent, ifVersion } = condition
      if (ifAbsent && ifVersion !== undefined)
        throw new FerryError('INVALID', { detail: 'ifAbsent and ifVersion exclude each other' })
      return root.change(pathOf(name), signal, target =>
        withTemporary(bytes, async (file, version) => {
          throwIfAborted(signal)
          if (ifAbsent) await place(name, () => linkOrRename(file, target)).catch(error => conflictIfTaken(error, name))
          else
            await exclusively(name, signal, async () => {
              if (ifVersion !== undefined) await expectVersion(name, ifVersion)
              await place(name, () => rename(file, target))
            })
          await syncNearest(root, parentPath(pathOf(name)))
          return version
        }),
      )
    },

    async remove(name, condition = {}, signal) {
      await root.change(pathOf(name), signal, async target => {
        const removed = await exclusively(name, signal, async () => {
          const now = await info(name)
          if (now && condition.ifVersion !== undefined) await expectVersion(name, condition.ifVersion)
          if (now) await unlink(target)
          return now !== null
        })
        if (!removed) return
        let directory = parentPath(pathOf(name))
        await syncNearest(root, directory)
        // Directories that hold nothing any more go too; one that is used again meanwhile stays.
        while (directory !== below && (await succeeds(rmdir(root.at(directory))))) directory = parentPath(directory)
      })
    },

    async list(prefix, after = '', signal) {
      return root.try(below, signal, async () => {
        const page: ObjectInfo[] = []
        const wanted: string[] = []
        const look = async () => {
          const found = await mapLimit(wanted.splice(0), LSTATS_AT_ONCE, info)
          page.push(...found.filter(one => one !== null))
        }
        for await (const name of names('', prefix, after)) {
          throwIfAborted(signal)
          wanted.push(name)
          if (page.length + wanted.length === PAGE_MAX) await look() // shorter again by what vanished meanwhile
          if (page.length === PAGE_MAX) break
        }
        await look()
        if (page.length === 0) await root.check()
        return page
      })
    },

    async close() {
      files.clear()
    },
  }
}

/** Where the file system has no locks, puts are atomic within this process only. */
function tryLockIfCan(fd: number): boolean {
  try {
    return tryLock(fd)
  } catch (error) {
    if (['ENOLCK', 'ENOSYS', 'EOPNOTSUPP', 'ENOTSUP'].includes(errnoName(error) ?? '')) return true
    throw error
  }
}

const succeeds = (work: Promise<unknown>): Promise<boolean> =>
  work.then(
    () => true,
    () => false,
  )

/** Atomic, and refuses a target that exists. Where there are no hard links, renameat2(2) does the same. */
async function linkOrRename(file: Buffer, target: Buffer): Promise<void> {
  try {
    await link(file, target)
  } catch (error) {
    if (!['EPERM', 'EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'EMLINK'].includes(errnoName(error) ?? '')) throw error
    renameat2(file, target, 'noReplace')
  }
}

const conflictIfTaken = (error: unknown, name: string): never => {
  if (errnoName(error) === 'EEXIST')
    throw new FerryError('CONFLICT', { cause: error, detail: `${printable(name)} exists` })
  throw error
}

const freshName = (count: number) => `${process.pid}-${process.hrtime.bigint().toString(36)}-${count}`

let lastMicros = 0
/**
 * Now, in seconds, to the microsecond, and never the same twice here. The kernel's own time of a file moves in steps of up to
 * 10 ms, within which an inode number can be used again: a version would not tell the two files apart.
 */
function uniqueTime(): number {
  lastMicros = Math.max(lastMicros + 1, Math.floor((performance.timeOrigin + performance.now()) * 1000))
  return lastMicros / 1e6
}
