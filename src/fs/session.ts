// One connection to the kernel: settles INIT, hands each request to its handler and sends what comes of it. A request that the file
// system answers at once is answered in the same turn, with nothing kept; what has to wait is remembered until then.
import { channel } from 'node:diagnostics_channel'
import { deferred } from '../base/async.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { FileSystem, InodeAttributes } from '../cache/filesystem.js'
import { coarseNowNs } from '../linux/clock.js'
import { isResent, opsByCode, parseRequest, type Request, requestNumber, type Unique, uniqueOf } from '../wire/fuse.js'
import { Answer, PAYLOAD_BYTES_MAX, Pool } from './answer.js'
import { EINTR, EIO, ENOSYS, errnoOf } from './errno.js'
import { Handles } from './handles.js'
import { isDoomed } from './interrupt.js'
import { type FromOutside, Invalidations, type Notify } from './invalidate.js'
import { negotiate } from './negotiate.js'
import { type Door, type Handler, handlers } from './ops.js'
import { type BackingFiles, NOT_HERE, Passthrough } from './passthrough.js'

const log = logger('fs')
const requests = channel('pageferry:fs')

/** What a subscriber of the channel `pageferry:fs` gets for each answered request. */
export interface RequestRecord {
  op: string
  nodeid: number
  args: unknown
  /** Positive; 0 for success. */
  errno: number
  /** Bytes of the answer behind its header. */
  bytes: number
}

/** How long the kernel may believe what we said. It is told about every change, so these bound only what we were not told ourselves. */
export interface Ttls {
  entryTtlMs: number
  attrTtlMs: number
  /** For names that are not there. */
  negativeTtlMs: number
}

export interface SessionOptions extends Partial<Ttls> {
  /** Owner to show instead of the real one. */
  uid?: number
  gid?: number
  /** Permission bits never to show. */
  umask?: number
  /**
   * False: none are kept, so the kernel is told never to ask (default true). It asks for `security.capability` before it writes, each
   * time that it has looked at the attributes anew: three of the twenty requests of a SQLite transaction.
   */
  xattrs?: boolean
  /** Access control lists are obeyed: the kernel asks for that of each file whose owner does not ask (default false). */
  acl?: boolean
  /** The kernel may read by itself what the file system has files for: if it can (default), never, or whoever mounts expects it. */
  mode?: 'auto' | 'writeback' | 'passthrough'
  nowNs?: () => bigint
}

/** What carries our messages. */
export interface Link {
  /** One answer, sent as one write. */
  reply(bytes: Uint8Array, length: number): unknown
  /** A notification, on the thread pool. */
  notify: Notify
  /** The request being handled stays where it is: the next ones go into `fresh`. */
  exchange(fresh: Uint8Array): void
  /** The kernel's first request, before it is answered; null: no other process could go on. */
  began?(init: Uint8Array | null): void
  readonly backings?: BackingFiles
  /** Uses the mount from outside. */
  readonly flusher?: { readonly pid: number | undefined; run: FromOutside }
}

/** A request that waits for the file system. */
interface Waiting {
  request: Request
  handler: Handler
  answer: Answer
  abandoned: boolean
  /** Looks at whether its program still lives, so far. */
  looks: number
}

/** An hour: longer than anything lasts that nobody invalidates, short enough to mend what somebody forgot. */
const TTL_MS = 3_600_000
/** The longest request: a WRITE with its header, and what read(2) on /dev/fuse insists on. */
export const REQUEST_BYTES_MAX = PAYLOAD_BYTES_MAX + 4096
/** Buffers kept for requests that wait, beyond those that do: 8 MiB of each kind. */
const SPARES = 8
/** How often it is looked whether a program that waits is going to die. Most requests are answered before the first look. */
const LOOK_MS = 250

/** They do not wait in one line with the others: fuse_dev_do_read. */
const unordered = new Set<string>(['INTERRUPT', 'FORGET', 'BATCH_FORGET'])
const xattrs = new Set<string>(['GETXATTR', 'LISTXATTR', 'SETXATTR', 'REMOVEXATTR'])

const hour: Ttls = { entryTtlMs: TTL_MS, attrTtlMs: TTL_MS, negativeTtlMs: TTL_MS }

export class Session implements Door {
  readonly fs: FileSystem
  readonly ttls: Ttls
  readonly handles: Handles
  readonly passthrough: Passthrough | undefined
  readonly invalidations: Invalidations
  readonly nowNs: () => bigint
  readonly present: (attributes: InodeAttributes) => InodeAttributes
  answer = new Answer()
  acl = false
  /** Requests so far. */
  requests = 0
  readonly #link: Link
  readonly #ready = deferred()
  readonly #xattrs: boolean
  readonly #isPassthroughWanted: boolean
  readonly #wantsAcl: boolean
  readonly #answers = new Pool(SPARES, () => new Answer())
  readonly #buffers = new Pool<Uint8Array>(SPARES, () => new Uint8Array(REQUEST_BYTES_MAX))
  readonly #waiting = new Map<number, Waiting>()
  #lookout: NodeJS.Timeout | undefined
  #buffer: Uint8Array = new Uint8Array(0)
  /** What an earlier process has read and not answered comes first, again. */
  #isResuming = false
  #dialect = { setxattrExt: false }

  constructor(fs: FileSystem, link: Link, options: SessionOptions = {}) {
    this.fs = fs
    this.#link = link
    const { entryTtlMs, attrTtlMs, negativeTtlMs } = { ...hour, ...withoutUndefined(options) }
    this.ttls = { entryTtlMs, attrTtlMs, negativeTtlMs }
    this.nowNs = options.nowNs ?? coarseNowNs
    this.present = presentation(options)
    this.#xattrs = options.xattrs ?? true
    this.#wantsAcl = options.acl ?? false
    const { mode = 'auto' } = options
    this.#isPassthroughWanted = mode === 'passthrough'
    if (mode !== 'writeback' && link.backings && fs.backing)
      this.passthrough = new Passthrough(fs, fs.backing, link.backings)
    this.handles = new Handles(fs, this.passthrough)
    this.invalidations = new Invalidations(
      fs,
      this.handles,
      message => link.notify(message),
      async (verb, ino) => (await link.flusher?.run(verb, ino)) ?? false,
    )
    fs.kernel = this.invalidations
  }

  /** Resolves when the kernel has been answered what it began with. */
  get ready(): Promise<void> {
    return this.#ready.promise
  }

  get flusherPid() {
    return this.#link.flusher?.pid
  }

  /** Requests that wait for the file system. */
  get waiting() {
    return this.#waiting.size
  }

  /**
   * One message of the kernel: the first bytes of a buffer that the next one will be read into as well. Never throws: whatever
   * goes wrong is the error of that request.
   */
  receive(message: Uint8Array): void {
    this.requests++
    // Views of a buffer are made once and not for each message in it.
    if (message.buffer !== this.#buffer.buffer) this.#buffer = new Uint8Array(message.buffer)
    const bytes = this.#buffer
    const length = message.byteLength
    let request: Request
    try {
      request = parseRequest(bytes, length, this.#dialect)
    } catch (error) {
      log.error('the kernel sent a malformed request', { error })
      const to = uniqueOf(bytes, length)
      if (to) this.#link.reply(this.answer.bytes, this.answer.fail(to, EIO))
      return
    }
    if (this.#isResuming) this.#resumed(request)
    if (request.op === 'UNKNOWN') this.#fail(request, ENOSYS)
    else if (request.op === 'INIT') this.#init(request, bytes.subarray(0, length))
    else if (request.op === 'INTERRUPT') this.#interrupt(request.args)
    else if (!this.#xattrs && xattrs.has(request.op)) this.#fail(request, ENOSYS)
    else this.#handle(request, handlers[request.op] as Handler, bytes)
  }

  #handle(request: Request, handler: Handler, bytes: Uint8Array) {
    const { answer } = this
    try {
      const value = handler.ask(this, request as never)
      if (!(value instanceof Promise)) {
        this.#reply(request, handler, value, answer)
        handler.answered?.(this.fs)
        return
      }
      if (handler.fillsAnswer) this.answer = this.#answers.take()
      if (handler.holdsRequest) this.#link.exchange(this.#buffers.take())
      this.#wait({ request, handler, answer, abandoned: false, looks: 0 }, value, bytes)
    } catch (error) {
      this.#refuse(request, handler, error)
    }
  }

  /** The kernel's dirty pages of every file that somebody has open for writing, or mapped so, have come when this resolves. */
  async flushKernel(): Promise<void> {
    await Promise.all(this.handles.writable().map(ino => this.invalidations.launder(ino, 'fsync')))
  }

  /** No more requests will come: what still waits has nobody to answer to. */
  close() {
    clearInterval(this.#lookout)
    for (const waiting of this.#waiting.values()) waiting.abandoned = true
    this.#waiting.clear()
  }

  async #wait(waiting: Waiting, value: Promise<unknown>, bytes: Uint8Array) {
    const { request, handler, answer } = waiting
    const key = requestNumber(request)
    this.#waiting.set(key, waiting)
    this.#lookout ??= setInterval(() => this.#look(), LOOK_MS).unref()
    try {
      const result = await value
      // Unless it was filled meanwhile, the answer is written and sent at once, so all can share one.
      if (!waiting.abandoned) this.#reply(request, handler, result, handler.fillsAnswer ? answer : this.answer)
    } catch (error) {
      if (!waiting.abandoned) this.#refuse(request, handler, error)
    }
    if (this.#waiting.get(key) === waiting) this.#waiting.delete(key)
    if (handler.fillsAnswer) this.#answers.give(answer)
    if (handler.holdsRequest) this.#buffers.give(bytes)
  }

  #reply(request: Request, handler: Handler, value: unknown, answer: Answer) {
    if (handler.silent) return
    let bytes: number
    try {
      bytes = handler.reply ? handler.reply(this, value, request as never, answer) : 0
    } catch (error) {
      this.#refuse(request, handler, error)
      return
    }
    this.#link.reply(answer.bytes, answer.finish(request, bytes))
    if (handler.isNoted) this.fs.forgetOutcome?.(requestNumber(request))
    if (requests.hasSubscribers) this.#publish(request, 0, bytes)
  }

  #refuse(request: Request, handler: Handler, error: unknown) {
    let errno = errnoOf(error)
    if (errno === undefined) {
      // Not an operating error of the engine but a bug, here or there. One request fails, the mount lives on.
      log.error('a request failed unexpectedly', { op: request.op, nodeid: request.nodeid, error: toFerryError(error) })
      errno = EIO
    }
    if (!handler.silent) this.#fail(request, handler.errnos?.[errno] ?? errno)
    if (handler.isNoted) this.fs.forgetOutcome?.(requestNumber(request))
  }

  #fail(request: Request, errno: number) {
    this.#link.reply(this.answer.bytes, this.answer.fail(request, errno))
    if (requests.hasSubscribers) this.#publish(request, errno, 0)
  }

  #publish({ op, nodeid, args }: Request, errno: number, bytes: number) {
    requests.publish({ op, nodeid, args, errno, bytes } satisfies RequestRecord)
  }

  #init(request: Request & { op: 'INIT' }, bytes: Uint8Array) {
    const { encode, canResume, canPass } = this.#settle(request)
    this.#link.began?.(canResume ? bytes : null)
    const { answer } = this
    this.#link.reply(answer.bytes, answer.finish(request, encode(answer.view)))
    this.#beginPassthrough(canPass)
    this.#ready.resolve()
  }

  /** Goes on with a connection whose first request an earlier process has answered. */
  resume(init: Uint8Array) {
    const request = parseRequest(init, init.length, this.#dialect)
    if (request.op !== 'INIT')
      throw new FerryError('PROTOCOL', { detail: `a connection that began with ${request.op}` })
    this.#beginPassthrough(this.#settle(request).canPass)
    this.#isResuming = true
    this.#ready.resolve()
  }

  /** The kernel has put what it delivers again before whatever else waits, but for these. */
  #resumed(request: Request) {
    if (isResent(request) || unordered.has(request.op)) return
    this.#isResuming = false
    this.fs.keepOutcomes?.(new Set(this.#waiting.keys()))
  }

  /** After the answer to INIT: before, the kernel takes no files. */
  #beginPassthrough(canPass: boolean) {
    if (canPass) this.passthrough?.begin(this.#isPassthroughWanted)
    else if (this.#isPassthroughWanted)
      log.warn(NOT_HERE, { error: new FerryError('UNSUPPORTED', { detail: 'Linux 6.9 can' }) })
  }

  #settle({ args }: Request & { op: 'INIT' }) {
    const { readOnly } = this.fs
    const settled = negotiate(args, { readOnly, passthrough: this.passthrough !== undefined, acl: this.#wantsAcl })
    this.acl = settled.hasAcl
    this.#dialect = settled.dialect
    this.invalidations.kernelMinor = args.minor
    return settled
  }

  /**
   * A signal reached the program that waits. Only if it will die of it is the request given up: other signals have handlers, and hardly any
   * program expects EINTR from a file. A later one, which the kernel does not tell us about, is found by the lookout.
   */
  #interrupt(to: Unique) {
    const waiting = this.#waiting.get(requestNumber(to))
    // 0 is the pid of somebody in a name space that we cannot see into: believe the signal.
    if (waiting && (waiting.request.pid === 0 || isDoomed(waiting.request.pid))) this.#abandon(waiting)
  }

  /** Programs that die while they wait are let go, also from where a signal makes the kernel say nothing (asynchronous direct I/O). */
  #look() {
    for (const waiting of this.#waiting.values()) {
      const { handler, request } = waiting
      if (handler.abandonable && waiting.looks++ > 0 && isDoomed(request.pid)) this.#abandon(waiting)
    }
    if (this.#waiting.size > 0) return
    clearInterval(this.#lookout)
    this.#lookout = undefined
  }

  #abandon(waiting: Waiting) {
    if (!waiting.handler.abandonable) return
    waiting.abandoned = true
    this.#waiting.delete(requestNumber(waiting.request))
    this.#fail(waiting.request, EINTR)
  }
}

const withoutUndefined = <T extends object>(options: T): T =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T

/** How attributes are shown, as the mount's options have it. */
export function presentation({ uid, gid, umask }: SessionOptions): (attributes: InodeAttributes) => InodeAttributes {
  if (uid === undefined && gid === undefined && umask === undefined) return attributes => attributes
  const hidden = umask ?? 0
  // Field by field: what the engine gives may have getters, which a spread would leave out.
  return shown => ({
    ino: shown.ino,
    mode: shown.mode & ~hidden,
    uid: uid ?? shown.uid,
    gid: gid ?? shown.gid,
    rdev: shown.rdev,
    nlink: shown.nlink,
    size: shown.size,
    blocks: shown.blocks,
    blksize: shown.blksize,
    atimeNs: shown.atimeNs,
    mtimeNs: shown.mtimeNs,
    ctimeNs: shown.ctimeNs,
    btimeNs: shown.btimeNs,
  })
}

/** Every operation of the protocol has a handler: checked once, when the module loads. */
for (const operation of opsByCode) {
  if (operation && !(operation.name in handlers) && operation.name !== 'INIT' && operation.name !== 'INTERRUPT')
    throw new Error(`no handler for ${operation.name}`)
}
