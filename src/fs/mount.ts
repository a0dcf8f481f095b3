// A file system at a mount point: the connection, the session on it, and what the kernel is told about caching.

import { readFile } from 'node:fs/promises'
import { deferred } from '../base/async.js'
import { isFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { type FileSystem, ROOT } from '../cache/filesystem.js'
import { tuneBdi } from '../linux/bdi.js'
import { type Device, deviceNumber } from '../linux/files.js'
import { closeBacking, openBacking } from '../linux/fuse-backing.js'
import { mountFuse, unmountFuse } from '../linux/mount.js'
import { mountAt } from '../linux/mountinfo.js'
import { notify } from '../wire/fuse.js'
import { PAYLOAD_BYTES_MAX } from './answer.js'
import { FuseChannel } from './channel.js'
import { Flusher } from './flusher.js'
import type { HeldConnection } from './held.js'
import { prepareMountPoint } from './mountpoint.js'
import { REQUEST_BYTES_MAX, Session, type SessionOptions } from './session.js'

const log = logger('fs')

export interface MountOptions extends SessionOptions {
  /** First column of /proc/mounts. Default `pageferry`. */
  source?: string
  /** Other users than ours may enter. */
  allowOther?: boolean
  suid?: boolean
  dev?: boolean
  /** Mount over files that are there already. */
  nonEmpty?: boolean
  /** How long to look for the next request before sleeping. */
  pollUs?: number
  /** Programs that come before this resolves wait for it; the mount is there at once. When it rejects, it ends. Default: now. */
  begins?: Promise<void>
  /** Somebody keeps the connection, should this process end. Default: nobody, and the mount ends with it. */
  held?: HeldConnection
  bdi?: {
    /** How far the kernel reads ahead, and its largest buffered READ. Default 4096. */
    readAheadKb?: number
    /** Dirty bytes it may hold back from us. Default 256 MiB. */
    bytesMax?: number
  }
}

/** What a driver gives for a mount. */
export interface Mounted {
  /** Absolute and without symlinks. */
  readonly mountpoint: string
  /** Resolves when the kernel has let go: unmounted by us or somebody else. Rejects if the connection broke. */
  readonly closed: Promise<void>
  /** Requests answered so far, and those that wait for the file system now. */
  readonly requests: number
  readonly waiting: number
  /** The kernel's dirty pages have come to the file system when this resolves. */
  flushKernel(): Promise<void>
  /** Bytes that the kernel holds back, as far as it tells. */
  kernelBytes(): Promise<number>
  /** Answers nothing more: the mount is left to whoever holds the connection. Undefined: nobody does. */
  leave?(): Promise<void>
  /** BUSY if somebody is in it; `lazy` takes it out of sight at once and lets them finish. */
  unmount(options?: { lazy?: boolean }): Promise<void>
  /** Unmounts, lazily if somebody is in it. Twice is fine. */
  [Symbol.asyncDispose](): Promise<void>
}

const BDI_BYTES_MAX = 256 << 20
const READ_AHEAD_KB = 512

/**
 * Mounts `fs` and answers for it until it is unmounted. The mount is ready for use when this resolves.
 * @throws NOT_FOUND, NOT_DIRECTORY, NOT_EMPTY, BUSY (the mount point), NOT_PERMITTED, UNSUPPORTED (no FUSE here)
 */
export async function mountFileSystem(
  fs: FileSystem,
  mountpoint: string,
  options: MountOptions = {},
): Promise<Mounted> {
  const { source = 'pageferry', allowOther, suid, dev, nonEmpty, held } = options
  if (held?.resumed) return serve(fs, held.resumed.mountpoint, held.resumed.fd, options)
  const point = await prepareMountPoint(mountpoint, { nonEmpty, note: line => log.info(line) })
  const { fd } = await mountFuse({
    target: point,
    source,
    readOnly: fs.readOnly,
    allowOther,
    suid,
    dev,
    readBytesMax: PAYLOAD_BYTES_MAX,
  })
  try {
    held?.keep(fd, point)
    return await serve(fs, point, fd, options)
  } catch (error) {
    // Programs may be waiting in it already: they get an error, and the place is free again.
    await unmountFuse(point, { lazy: true }).catch(() => {})
    throw error
  }
}

async function serve(fs: FileSystem, point: string, fd: number, options: MountOptions): Promise<Mounted> {
  const closed = deferred()
  closed.promise.catch(() => {}) // whoever wants to know asks for it
  const { begins = Promise.resolve(), held } = options
  const resumed = held?.resumed ?? null
  let hasBegun = options.begins === undefined
  const channel = new FuseChannel({
    fd,
    pollUs: options.pollUs,
    requestBytesMax: REQUEST_BYTES_MAX,
    onRequest: message => {
      if (hasBegun) return session.receive(message)
      // The kernel sends INIT, and nothing else before it is answered.
      const init = message.slice()
      void begins.then(
        () => session.receive(init),
        () => {},
      )
    },
    onClosed: error => {
      void stop()
      if (error) closed.reject(error)
      else closed.resolve()
    },
  })
  const device = mountAt(point)
  const flusher = device && new Flusher(point, Number(deviceNumber(device)))
  const session = new Session(
    fs,
    {
      flusher,
      reply: (bytes, length) => channel.reply(bytes, length),
      notify: message => channel.notify(message),
      exchange: fresh => channel.exchange(fresh),
      began: init => held?.began(init),
      backings: { open: file => openBacking(fd, file), close: id => closeBacking(fd, id) },
    },
    options,
  )
  const stop = () => {
    session.close()
    flusher?.close()
    return channel.close()
  }
  if (resumed?.init) session.resume(resumed.init)
  else channel.start()
  const begin = async () => {
    await begins
    hasBegun = true
    if (resumed) {
      // Before any is read: what was read, and is not answered yet, would be delivered to us twice.
      await channel.notify(notify.resend())
      channel.start()
    }
    await Promise.race([session.ready, closed.promise]) // INIT sets the readahead anew
    if (device) await tune(device, options.bdi)
  }
  const begun = begin().catch(async error => {
    if (!options.begins) throw error
    const now = mountAt(point)
    // By now something else may be there.
    if (now && now.major === device?.major && now.minor === device?.minor)
      await unmountFuse(point, { lazy: true }).catch(() => {})
    await stop()
    closed.reject(error)
  })
  if (!options.begins) await begun

  const unmount = async ({ lazy = false } = {}) => {
    await begun
    await unmountFuse(point, { lazy })
    if (!lazy) await closed.promise
  }
  return {
    mountpoint: point,
    closed: closed.promise,
    get requests() {
      return session.requests
    },
    get waiting() {
      return session.waiting
    },
    flushKernel: async () => {
      await begun
      // What an earlier process has opened is not known here.
      if (resumed) await flusher?.run('all', ROOT)
      await session.flushKernel()
    },
    // Nobody can write: close(2) has sent everything.
    kernelBytes: async () => (device && (resumed || session.handles.writable().length > 0) ? bytesHeldBack(device) : 0),
    leave:
      held &&
      (async () => {
        channel.pause()
        await stop()
      }),
    unmount,
    async [Symbol.asyncDispose]() {
      try {
        await unmount()
      } catch (error) {
        if (isFerryError(error, 'INVALID', 'NOT_FOUND')) return // nothing there any more
        if (!isFerryError(error, 'BUSY')) throw error
        await unmount({ lazy: true })
      }
    },
  }
}

async function tune(
  device: Device,
  { readAheadKb = READ_AHEAD_KB, bytesMax = BDI_BYTES_MAX }: MountOptions['bdi'] = {},
) {
  const refused = await tuneBdi(device, { readAheadKb, maxBytes: bytesMax, strictLimit: true })
  if (refused.length > 0) log.warn('the kernel keeps its own limits for this mount', { refused })
}

/**
 * Dirty and under writeback. Only debugfs tells it of one mount, which is root's and not mounted everywhere; otherwise what all file
 * systems together have (proc(5), /proc/meminfo): it is not more.
 */
async function bytesHeldBack({ major, minor }: Device): Promise<number> {
  const bytes = (of: string, name: string) =>
    Number(new RegExp(`^${name}:\\s*(\\d+) kB`, 'm').exec(of)?.[1] ?? 0) * 1024
  const stats = await readFile(`/sys/kernel/debug/bdi/${major}:${minor}/stats`, 'latin1').catch(() => '')
  if (stats) return bytes(stats, 'BdiWriteback') + bytes(stats, 'BdiReclaimable')
  const all = await readFile('/proc/meminfo', 'latin1')
  return bytes(all, 'Dirty') + bytes(all, 'Writeback')
}
