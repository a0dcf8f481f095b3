// What each operation of the protocol asks of the file system, and how the answer is written: a row each. A row that gets its value at once
// is answered in the same turn, so nothing here makes a promise, or awaits one, unless the file system did.
import { FerryError } from '../base/errors.js'
import type {
  AttributeChange,
  DirectoryEntry,
  FileSystem,
  Ino,
  InodeAttributes,
  Maybe,
  NewInode,
  Space,
} from '../cache/filesystem.js'
import { ROOT } from '../cache/filesystem.js'
import { isAcl } from '../remote/tree.js'
import {
  AttrOut,
  CopyFileRangeOut,
  EntryOut,
  GetxattrOut,
  LseekOut,
  OpenOut,
  StatfsOut,
  StatxOut,
  WriteOut,
} from '../wire/fuse/structs.js'
import {
  type Args,
  encodeAttrOut,
  encodeEntry,
  encodeNegativeEntry,
  encodeStatxOut,
  FallocateMode,
  FsyncFlag,
  isResent,
  OpenFlag,
  OpenInFlag,
  OpenOutFlag,
  type OpName,
  packDirent,
  packDirentplus,
  RenameFlag,
  type RequestOf,
  requestNumber,
  SetattrValid,
  SetxattrFlag,
  timeNs,
  Whence,
  WriteFlag,
  XattrFlag,
} from '../wire/fuse.js'
import { putLatin1 } from '../wire/reader.js'
import { type Answer, PAYLOAD_AT, PAYLOAD_BYTES_MAX } from './answer.js'
import { E2BIG, EFBIG, ENOSYS, ENOTTY, ENXIO, EOPNOTSUPP, ERANGE } from './errno.js'
import { type Handles, markOf, PASSED, withMark } from './handles.js'
import type { Invalidations } from './invalidate.js'
import type { Passthrough } from './passthrough.js'
import type { Ttls } from './session.js'

/** What a handler may use. */
export interface Door {
  readonly fs: FileSystem
  readonly ttls: Ttls
  readonly handles: Handles
  /** Undefined: the kernel asks for everything. */
  readonly passthrough: Passthrough | undefined
  readonly invalidations: Invalidations
  /** Access control lists are obeyed. */
  readonly acl: boolean
  readonly nowNs: () => bigint
  /** Who wants the kernel's pages only when it calls fsync(2): what is to become of them, whoever sent it decides. */
  readonly flusherPid: number | undefined
  /** Attributes as this mount shows them. */
  readonly present: (attributes: InodeAttributes) => InodeAttributes
  /** Where the answer to the current request will be written. */
  readonly answer: Answer
}

export interface Handler<N extends OpName = OpName, T = unknown> {
  /** The value to answer with. What it throws is the answer as well. */
  ask(door: Door, request: RequestOf<N>): Maybe<T>
  /** Writes the payload behind the header; returns its bytes. Without it the answer is empty. */
  reply?(door: Door, value: T, request: RequestOf<N>, answer: Answer): number
  /** Nobody waits for an answer. */
  silent?: boolean
  /** `ask` writes the payload into `door.answer` itself, and goes on doing so while it waits. */
  fillsAnswer?: boolean
  /** `ask` uses bytes of the request while it waits. */
  holdsRequest?: boolean
  /** Nothing has happened until the answer, so it can be given up when its program dies. */
  abandonable?: boolean
  /** After an answer that was given at once. */
  answered?(fs: FileSystem): void
  /** What it came to is remembered until it is answered. */
  isNoted?: boolean
  /** Where an errno means something else to this operation. */
  errnos?: Readonly<Record<number, number>>
}

type Row = <N extends OpName, T>(
  ask: (door: Door, request: RequestOf<N>) => Maybe<T>,
  reply?: (door: Door, value: T, request: RequestOf<N>, answer: Answer) => number,
  traits?: Omit<Handler, 'ask' | 'reply'>,
) => Handler<N>

const row: Row = (ask, reply, traits) => ({ ask, reply, ...traits }) as Handler<never>

/** Goes on with a value when it is there: at once if it is. */
const then = <T, U>(value: Maybe<T>, next: (value: T) => Maybe<U>): Maybe<U> =>
  value instanceof Promise ? value.then(next) : next(value)

/** A change that must not be done twice: a request that is delivered again is answered with what came of it. `number` is the request's. */
const once = <N extends OpName, T>(
  ask: (door: Door, request: RequestOf<N>, number: number) => Maybe<T>,
  again: (door: Door, ino: Ino, request: RequestOf<N>) => Maybe<T>,
  reply?: (door: Door, value: T, request: RequestOf<N>, answer: Answer) => number,
  traits?: Omit<Handler, 'ask' | 'reply'>,
): Handler<N> =>
  row<N, T>(
    (door, request) => {
      const number = requestNumber(request)
      const ino = isResent(request) ? door.fs.outcome?.(number) : undefined
      return ino === undefined ? ask(door, request, number) : again(door, ino, request)
    },
    reply,
    { ...traits, isNoted: true },
  )

const nothing = () => {}
const attributesOf = ({ fs }: Door, ino: Ino) => fs.attributes(ino)

/** One error for all: programs ask all day for what there is not (isatty(3) of each file that Python opens), and each new one costs 40 us. */
const refuse = (code: ConstructorParameters<typeof FerryError>[0]) => {
  const refusal = new FerryError(code)
  return () => {
    throw refusal
  }
}
/** The kernel remembers for this connection that there is no such operation, and helps itself. */
const absent = { ...row(refuse('UNSUPPORTED')), errnos: { [EOPNOTSUPP]: ENOSYS } }
const abandonable = { abandonable: true }
const silent = { silent: true }

// --- names -------------------------------------------------------------------------------------------------------------

const S_IFMT = 0o170000
const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const S_IFLNK = 0o120000
const S_ISUID = 0o4000
const S_ISGID = 0o2000
const S_IXGRP = 0o010

/** One entry object for all answers: the encoder keeps nothing of it. */
const entry = { nodeid: 0, generation: 0, entryTtlMs: 0, attrTtlMs: 0, attr: undefined as unknown as InodeAttributes }

/** With this answer the kernel holds one reference more. */
function replyEntry(door: Door, attributes: InodeAttributes | null, _request: unknown, { view }: Answer): number {
  if (attributes === null) encodeNegativeEntry(view, PAYLOAD_AT, door.ttls.negativeTtlMs)
  else {
    encodeEntry(view, PAYLOAD_AT, entryOf(door, attributes))
    door.fs.remember(attributes.ino)
  }
  return EntryOut.size
}

/** A directory's times tell the kernel whether the listing that it keeps still holds: they are believed as long as names are. */
const attrTtlMs = (ttls: Ttls, { mode }: InodeAttributes) =>
  (mode & S_IFMT) === S_IFDIR ? Math.min(ttls.attrTtlMs, ttls.entryTtlMs) : ttls.attrTtlMs

function entryOf({ ttls, present }: Door, attributes: InodeAttributes) {
  entry.nodeid = attributes.ino
  entry.entryTtlMs = ttls.entryTtlMs
  entry.attrTtlMs = attrTtlMs(ttls, attributes)
  entry.attr = present(attributes)
  return entry
}

/** What every Linux file system answers, whatever longer name a remote might take: NAME_MAX. */
const NAME_BYTES_MAX = 255

function lookup({ fs }: Door, parent: Ino, name: string): Maybe<InodeAttributes | null> {
  if (name.length > NAME_BYTES_MAX) throw new FerryError('NAME_TOO_LONG')
  if (name === '.') return fs.attributes(parent)
  if (name === '..') return fs.attributes(fs.parentOf(parent))
  return fs.lookup(parent, name)
}

/** What the kernel leaves to us where there may be access control lists: otherwise the mode is without these bits already. */
const masked = ({ acl }: Door, { umask }: { umask: number }) => (acl ? { umask } : undefined)

/** In a directory with the set-group-id bit, what is new belongs to the directory's group. */
function inherit<T>({ fs }: Door, parent: Ino, node: NewInode, make: () => Maybe<T>): Maybe<T> {
  return then(fs.attributes(parent), directory => {
    if (directory.mode & S_ISGID) {
      node.gid = directory.gid
      if ((node.mode & S_IFMT) === S_IFDIR) node.mode |= S_ISGID
    }
    return make()
  })
}

const make = (door: Door, parent: Ino, name: string, node: NewInode, number: number): Maybe<InodeAttributes> =>
  inherit(door, parent, node, () => door.fs.make(parent, name, node, number))

function rename(
  door: Door,
  { nodeid: source, uid, gid }: { nodeid: Ino; uid: number; gid: number },
  { newdir, name, newName, flags }: Args<'RENAME2'>,
  number: number,
): Maybe<void> {
  if (flags & ~(RenameFlag.NOREPLACE | RenameFlag.EXCHANGE | RenameFlag.WHITEOUT)) throw new FerryError('INVALID')
  if (flags & RenameFlag.EXCHANGE && flags !== RenameFlag.EXCHANGE) throw new FerryError('INVALID')
  const how = flags & RenameFlag.EXCHANGE ? 'exchange' : flags & RenameFlag.NOREPLACE ? 'noreplace' : 'replace'
  const whiteout = flags & RenameFlag.WHITEOUT ? { uid, gid } : undefined
  return door.fs.rename({ parent: source, name }, { parent: newdir, name: newName }, how, { whiteout, request: number })
}

// --- attributes --------------------------------------------------------------------------------------------------------

function replyAttributes(door: Door, attributes: InodeAttributes, _request: unknown, { view }: Answer): number {
  encodeAttrOut(view, PAYLOAD_AT, door.present(attributes), attrTtlMs(door.ttls, attributes))
  return AttrOut.size
}

const examined = ({ fs }: Door, { nodeid }: { nodeid: Ino }) => fs.examine?.(nodeid) ?? fs.attributes(nodeid)

/** Asked for where a program wants the time of birth. */
function replyStatx(door: Door, attributes: InodeAttributes, _request: unknown, { view }: Answer): number {
  encodeStatxOut(view, PAYLOAD_AT, door.present(attributes), attrTtlMs(door.ttls, attributes))
  return StatxOut.size
}

const V = SetattrValid

function changeOf({ nowNs }: Door, args: Args<'SETATTR'>): AttributeChange {
  const { valid } = args
  const change: AttributeChange = {}
  if (valid & V.MODE) change.mode = args.mode & ~S_IFMT
  if (valid & V.UID) change.uid = args.uid
  if (valid & V.GID) change.gid = args.gid
  if (valid & V.SIZE) change.size = args.size
  if (valid & V.ATIME_NOW) change.atimeNs = nowNs()
  else if (valid & V.ATIME) change.atimeNs = timeNs(args.atime, args.atimensec)
  if (valid & V.MTIME_NOW) change.mtimeNs = nowNs()
  else if (valid & V.MTIME) change.mtimeNs = timeNs(args.mtime, args.mtimensec)
  if (valid & V.CTIME) change.ctimeNs = timeNs(args.ctime, args.ctimensec)
  return change
}

/** A change of owner, content or size takes the right to run as somebody else away. `apply` is told the mode to set, if it differs. */
function killingPrivileges<T>({ fs }: Door, ino: Ino, apply: (mode?: number) => Maybe<T>): Maybe<T> {
  return then(fs.attributes(ino), ({ mode }) => {
    if ((mode & S_IFMT) === S_IFDIR) return apply()
    const groupToo = (mode & (S_ISGID | S_IXGRP)) === (S_ISGID | S_IXGRP)
    const left = mode & ~S_ISUID & ~(groupToo ? S_ISGID : 0)
    return apply(left === mode ? undefined : left & ~S_IFMT)
  })
}

function setAttributes(door: Door, ino: Ino, args: Args<'SETATTR'>): Maybe<InodeAttributes> {
  const change = changeOf(door, args)
  if (!(args.valid & V.KILL_SUIDGID)) return door.fs.setAttributes(ino, change)
  return killingPrivileges(door, ino, mode => {
    if (mode !== undefined) change.mode ??= mode
    return door.fs.setAttributes(ino, change)
  })
}

// --- open files --------------------------------------------------------------------------------------------------------

const writes = (flags: number) => (flags & OpenFlag.ACCMODE) !== OpenFlag.RDONLY

/** What OPEN with O_TRUNC does to a file. */
function truncateOpened(door: Door, ino: Ino, kill: boolean): Maybe<unknown> {
  const now = door.nowNs()
  const change: AttributeChange = { size: 0, mtimeNs: now, ctimeNs: now }
  if (!kill) return door.fs.setAttributes(ino, change)
  return killingPrivileges(door, ino, mode => {
    if (mode !== undefined) change.mode = mode
    return door.fs.setAttributes(ino, change)
  })
}

function open(door: Door, ino: Ino, { flags, openFlags }: { flags: number; openFlags: number }): Maybe<number> {
  if (writes(flags) && door.fs.readOnly) throw new FerryError('READ_ONLY')
  const handle = door.handles.open(ino, flags)
  if (!(flags & OpenFlag.TRUNC)) return handle
  const closed = (error: unknown): never => {
    door.handles.release(ino, handle)
    throw error
  }
  try {
    const truncated = truncateOpened(door, ino, (openFlags & OpenInFlag.KILL_SUIDGID) !== 0)
    return truncated instanceof Promise ? truncated.then(() => handle, closed) : handle
  } catch (error) {
    return closed(error)
  }
}

/** Pages that the kernel has are good, unless the engine said otherwise since the last open. */
function putOpen({ invalidations, passthrough }: Door, ino: Ino, fh: number, view: DataView, at: number) {
  if (fh === PASSED) {
    // No other flag goes with it.
    OpenOut.encode(view, at, { fh, openFlags: OpenOutFlag.PASSTHROUGH, backingId: passthrough!.idOf(ino) })
    return
  }
  const mark = invalidations.staleMark(ino)
  const openFlags = mark > 0 ? 0 : OpenOutFlag.KEEP_CACHE
  OpenOut.encode(view, at, { fh: withMark(fh, mark), openFlags, backingId: 0 })
}

interface Created {
  attributes: InodeAttributes
  fh: number
}

/** The kernel sends CREATE for a name that it believes to be free; without O_EXCL it opens what is there after all. */
function create(door: Door, { nodeid, uid, gid, args }: RequestOf<'CREATE'>, number: number): Maybe<Created> {
  const { name, mode, flags, openFlags } = args
  const node = { mode: (mode & ~S_IFMT) | S_IFREG, uid, gid, ...masked(door, args) }
  const opened = (attributes: InodeAttributes) => ({ attributes, fh: door.handles.open(attributes.ino, flags) })
  const openOther = () =>
    then(lookup(door, nodeid, name), found => {
      if (!found) throw new FerryError('NOT_FOUND')
      if ((found.mode & S_IFMT) === S_IFDIR) throw new FerryError('IS_DIRECTORY')
      const { ino } = found
      return then(open(door, ino, { flags, openFlags }), fh =>
        then(door.fs.attributes(ino), attributes => ({ attributes, fh })),
      )
    })
  const orOther = (error: unknown) => {
    if (flags & OpenFlag.EXCL || !(error instanceof FerryError && error.code === 'EXISTS')) throw error
    return openOther()
  }
  let made: Maybe<InodeAttributes>
  try {
    made = make(door, nodeid, name, node, number)
  } catch (error) {
    return orOther(error)
  }
  return made instanceof Promise ? made.then(opened, orOther) : opened(made)
}

function replyCreated(door: Door, { attributes, fh }: Created, request: unknown, answer: Answer): number {
  replyEntry(door, attributes, request, answer)
  putOpen(door, attributes.ino, fh, answer.view, PAYLOAD_AT + EntryOut.size)
  return EntryOut.size + OpenOut.size
}

function makeNameless(door: Door, { nodeid, uid, gid, args }: RequestOf<'TMPFILE'>, number: number): Maybe<Created> {
  const { fs, handles } = door
  if (!fs.makeNameless) throw new FerryError('UNSUPPORTED')
  const node = { mode: (args.mode & ~S_IFMT) | S_IFREG, uid, gid, ...masked(door, args) }
  const made = inherit(door, nodeid, node, () => fs.makeNameless!(nodeid, node, number))
  return then(made, attributes => ({ attributes, fh: handles.open(attributes.ino, args.flags) }))
}

const createdAgain = (door: Door, ino: Ino, { args }: RequestOf<'CREATE' | 'TMPFILE'>): Maybe<Created> =>
  then(door.fs.attributes(ino), attributes => ({ attributes, fh: door.handles.open(ino, args.flags) }))

function read({ fs, answer, invalidations }: Door, { nodeid, args }: RequestOf<'READ'>): Maybe<number> {
  if (args.size > PAYLOAD_BYTES_MAX) throw new FerryError('INVALID')
  invalidations.used(nodeid, markOf(args.fh))
  if (!(args.flags & OpenFlag.DIRECT)) invalidations.read(nodeid)
  return fs.read(nodeid, args.offset, answer.payload(args.size))
}

function write(door: Door, request: RequestOf<'WRITE'>): Maybe<void> {
  const { flags, writeFlags } = request.args
  if (writeFlags & WriteFlag.CACHE || !(flags & OpenFlag.DIRECT)) return writeBytes(door, request)
  door.invalidations.directWrite(request.nodeid)
  return then(writeBytes(door, request), () => door.invalidations.directWritten(request.nodeid))
}

function writeBytes(door: Door, { nodeid, args }: RequestOf<'WRITE'>): Maybe<void> {
  const { offset, data, writeFlags } = args
  const stamped = writeFlags & WriteFlag.CACHE ? 'by-kernel' : 'now'
  if (!(writeFlags & WriteFlag.KILL_SUIDGID)) return door.fs.write(nodeid, offset, data, stamped)
  return killingPrivileges(door, nodeid, mode => {
    if (mode === undefined) return door.fs.write(nodeid, offset, data, stamped)
    return then(door.fs.setAttributes(nodeid, { mode }), () =>
      then(door.fs.write(nodeid, offset, data, stamped), () => door.invalidations.dropAttributes(nodeid)),
    )
  })
}

const synced = ({ fsyncFlags }: { fsyncFlags: number }) => (fsyncFlags & FsyncFlag.FDATASYNC ? 'data' : 'all')

function putWritten(view: DataView, size: number): number {
  WriteOut.encode(view, PAYLOAD_AT, { size })
  return WriteOut.size
}

const { KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = FallocateMode
const allocations = new Map<number, { kind: 'allocate' | 'punch' | 'zero'; keepSize: boolean }>([
  [0, { kind: 'allocate', keepSize: false }],
  [KEEP_SIZE, { kind: 'allocate', keepSize: true }],
  [PUNCH_HOLE | KEEP_SIZE, { kind: 'punch', keepSize: true }],
  [ZERO_RANGE, { kind: 'zero', keepSize: false }],
  [ZERO_RANGE | KEEP_SIZE, { kind: 'zero', keepSize: true }],
])

function allocate({ fs }: Door, { nodeid, args }: RequestOf<'FALLOCATE'>): Maybe<void> {
  const how = allocations.get(args.mode)
  if (!how) throw new FerryError('UNSUPPORTED')
  return fs.allocate(nodeid, { at: args.offset, length: args.length }, { ...how, stamped: 'by-kernel' })
}

/**
 * With a writer about, the kernel may have bytes that the engine does not. They can only turn holes into data: a place that the engine calls
 * data is data. Before a hole is believed, the kernel must have written what it has; the seeker holds the inode's lock, which
 * an fsync would wait for, but writing pages does not.
 */
function seek(door: Door, { nodeid, args: { offset, whence } }: RequestOf<'LSEEK'>): Maybe<number> {
  if (whence !== Whence.DATA && whence !== Whence.HOLE) throw new FerryError('INVALID')
  const wanted = whence === Whence.DATA ? 'data' : 'hole'
  if (!door.handles.isWritable(nodeid)) return door.fs.seek(nodeid, offset, wanted)
  return door.invalidations.launder(nodeid, 'write').then(() => door.fs.seek(nodeid, offset, wanted))
}

/** What fits in the answer of COPY_FILE_RANGE, and a whole number of pages. */
const COPY_BYTES_MAX = 0x7ffff000

function copy({ fs }: Door, { nodeid, args }: RequestOf<'COPY_FILE_RANGE' | 'COPY_FILE_RANGE_64'>): Maybe<number> {
  if (args.flags !== 0n) throw new FerryError('INVALID')
  const length = Math.min(args.len, COPY_BYTES_MAX)
  const target = { ino: args.nodeidOut, at: args.offOut }
  return fs.copy({ ino: nodeid, at: args.offIn }, target, length, 'by-kernel')
}

// --- directories -------------------------------------------------------------------------------------------------------

/** Cookies of the two names that every directory has; the engine's begin behind them. */
const DOT = 1
const DOT_DOT = 2
/** Bytes of a typical entry: how many to ask for. One too few costs a part of an answer, one too many some work for nothing. */
const ENTRY_BYTES = 48
const ENTRY_PLUS_BYTES = 176

type Listing = RequestOf<'READDIR' | 'READDIRPLUS'>

const list =
  (entryBytes: number) =>
  (door: Door, { nodeid, args }: Listing) => {
    const countMax = Math.ceil(Math.min(args.size, PAYLOAD_BYTES_MAX) / entryBytes)
    return door.fs.entries(nodeid, args.offset, countMax)
  }

/** Calls `pack` for every entry after `offset`, until one does not fit. Returns the bytes written. */
function packAll(
  { fs }: Door,
  entries: DirectoryEntry[],
  { nodeid, args: { offset } }: Listing,
  pack: (at: number, dirent: { ino: Ino; next: number; type: number; name: string }) => number,
): number {
  let at = 0
  if (offset < DOT) at += pack(at, { ino: nodeid, next: DOT, type: S_IFDIR >> 12, name: '.' })
  if (offset < DOT_DOT) at += pack(at, { ino: fs.parentOf(nodeid), next: DOT_DOT, type: S_IFDIR >> 12, name: '..' })
  for (const { ino, cookie, type, name } of entries) {
    const bytes = pack(at, { ino, next: cookie, type: type >> 12, name })
    if (bytes === 0) break
    at += bytes
  }
  return at
}

function replyEntries(door: Door, entries: DirectoryEntry[], request: Listing, answer: Answer): number {
  const target = answer.payload(Math.min(request.args.size, PAYLOAD_BYTES_MAX))
  return packAll(door, entries, request, (at, dirent) => packDirent(target, at, dirent))
}

function replyEntriesPlus(door: Door, entries: DirectoryEntry[], request: Listing, answer: Answer): number {
  const target = answer.payload(Math.min(request.args.size, PAYLOAD_BYTES_MAX))
  return packAll(door, entries, request, (at, dirent) => {
    const attributes = dirent.next > DOT_DOT ? attributesNow(door, dirent.ino) : undefined
    if (!attributes) return packDirentplus(target, at, dirent)
    const bytes = packDirentplus(target, at, dirent, entryOf(door, attributes))
    if (bytes > 0) door.fs.remember(dirent.ino)
    return bytes
  })
}

/** Attributes if they need not be waited for: a listing does not wait for each of its entries. */
function attributesNow({ fs }: Door, ino: Ino): InodeAttributes | undefined {
  try {
    if (fs.atHand) return fs.atHand(ino) ?? undefined
    const attributes = fs.attributes(ino)
    if (!(attributes instanceof Promise)) return attributes
    attributes.catch(() => {})
  } catch {}
  return undefined
}

// --- extended attributes -----------------------------------------------------------------------------------------------

/**
 * Access control lists and labels would be stored but not obeyed: refused rather than pretended. Programs that ask for them with every
 * file (ls) then stop asking.
 */
function checkName({ acl }: Door, name: string) {
  if (acl && isAcl(name)) return
  if (name.startsWith('system.') || name === 'security.selinux') throw new FerryError('UNSUPPORTED')
}

/** With `size` 0 the program asks how much room it needs. */
function replyBytes(bytes: Uint8Array, size: number, { bytes: target, view }: Answer): number {
  if (size === 0) {
    GetxattrOut.encode(view, PAYLOAD_AT, { size: bytes.length })
    return GetxattrOut.size
  }
  if (bytes.length > size) throw new FerryError('RANGE')
  target.set(bytes, PAYLOAD_AT)
  return bytes.length
}

const setHow = (flags: number) =>
  flags & XattrFlag.CREATE ? 'create' : flags & XattrFlag.REPLACE ? 'replace' : ('set' as const)

function zeroTerminated(names: string[]): Uint8Array {
  const bytes = new Uint8Array(names.reduce((sum, name) => sum + name.length + 1, 0))
  let at = 0
  for (const name of names) {
    putLatin1(bytes, at, name)
    at += name.length + 1
  }
  return bytes
}

// --- the file system as a whole ----------------------------------------------------------------------------------------

function replySpace(_door: Door, space: Space, _request: unknown, { view }: Answer): number {
  const { blockBytes, blocksTotal, blocksFree, filesTotal, filesFree, nameBytesMax } = space
  StatfsOut.encode(view, PAYLOAD_AT, {
    st: {
      blocks: blocksTotal,
      bfree: blocksFree,
      bavail: blocksFree,
      files: filesTotal,
      ffree: filesFree,
      bsize: blockBytes,
      namelen: nameBytesMax,
      frsize: blockBytes,
    },
  })
  return StatfsOut.size
}

/** Every operation but INIT and INTERRUPT, which are the session's own. */
// biome-ignore format: a table
export const handlers: { [N in Exclude<OpName, 'INIT' | 'INTERRUPT'>]: Handler<N> } = {
  LOOKUP: row((door, { nodeid, args }) => lookup(door, nodeid, args.name), replyEntry, abandonable),
  FORGET: row(({ fs }, { nodeid, args }) => fs.forget(nodeid, args.nlookup), undefined, silent),
  BATCH_FORGET: row(({ fs }, { args }) => { for (const { nodeid, nlookup } of args.forgets) fs.forget(nodeid, nlookup) }, undefined, silent),

  GETATTR: row(examined, replyAttributes, abandonable),
  SETATTR: row((door, { nodeid, args }) => setAttributes(door, nodeid, args), replyAttributes),
  STATX: row(examined, replyStatx, abandonable),
  ACCESS: absent, // default_permissions: the kernel checks by the mode

  READLINK: row(({ fs }, { nodeid }) => fs.readLink(nodeid), (_door, target, _request, answer) => {
    putLatin1(answer.bytes, PAYLOAD_AT, target)
    return target.length
  }, abandonable),
  SYMLINK: once((door, { nodeid, uid, gid, args }, number) => make(door, nodeid, args.name, { mode: S_IFLNK | 0o777, uid, gid, link: args.target }, number), attributesOf, replyEntry),
  MKNOD: once((door, { nodeid, uid, gid, args }, number) => make(door, nodeid, args.name, { mode: args.mode, uid, gid, rdev: args.rdev, ...masked(door, args) }, number), attributesOf, replyEntry),
  MKDIR: once((door, { nodeid, uid, gid, args }, number) => make(door, nodeid, args.name, { mode: S_IFDIR | (args.mode & ~S_IFMT), uid, gid, ...masked(door, args) }, number), attributesOf, replyEntry),
  LINK: once(({ fs }, { nodeid, args }, number) => fs.link(args.oldnodeid, nodeid, args.name, number), attributesOf, replyEntry),
  UNLINK: once(({ fs }, { nodeid, args }, number) => fs.unlink(nodeid, args.name, number), nothing),
  RMDIR: once(({ fs }, { nodeid, args }, number) => fs.removeDirectory(nodeid, args.name, number), nothing),
  RENAME: once((door, request, number) => rename(door, request, { ...request.args, flags: 0 }, number), nothing),
  RENAME2: once((door, request, number) => rename(door, request, request.args, number), nothing),

  OPEN: row((door, { nodeid, args }) => open(door, nodeid, args), (door, fh, { nodeid }, { view }) => {
    putOpen(door, nodeid, fh, view, PAYLOAD_AT)
    return OpenOut.size
  }),
  CREATE: once(create, createdAgain, replyCreated),
  RELEASE: row(({ handles, invalidations }, { nodeid, args }) => {
    handles.release(nodeid, args.fh)
    invalidations.released(nodeid, markOf(args.fh))
  }),
  TMPFILE: once(makeNameless, createdAgain, replyCreated, { errnos: { [EOPNOTSUPP]: ENOSYS } }),
  READ: row(read, (_door, bytes) => bytes, { fillsAnswer: true, abandonable: true }),
  WRITE: row(write, (_door, _value, { args }, { view }) => putWritten(view, args.size), { holdsRequest: true, answered: fs => fs.answered?.() }),
  FLUSH: absent, // close(2) writes the dirty pages by itself before it would ask; there is nothing else to do
  FSYNC: row((door, { nodeid, pid, args }) => (pid === door.flusherPid ? undefined : door.fs.fsync(nodeid, synced(args)))),
  FALLOCATE: row(allocate),
  LSEEK: row(seek, (_door, offset, _request, { view }) => {
    LseekOut.encode(view, PAYLOAD_AT, { offset })
    return LseekOut.size
  }, { errnos: { [ERANGE]: ENXIO } }),
  COPY_FILE_RANGE: row(copy, (_door, bytes, _request, { view }) => putWritten(view, bytes)),
  COPY_FILE_RANGE_64: row(copy, (_door, bytesCopied, _request, { view }) => {
    CopyFileRangeOut.encode(view, PAYLOAD_AT, { bytesCopied })
    return CopyFileRangeOut.size
  }),

  OPENDIR: absent, // cookies are positions that need no handle, so neither OPENDIR nor RELEASEDIR is sent again
  RELEASEDIR: row(() => {}),
  READDIR: row(list(ENTRY_BYTES), replyEntries, abandonable),
  READDIRPLUS: row(list(ENTRY_PLUS_BYTES), replyEntriesPlus, abandonable),
  FSYNCDIR: row(({ fs }, { nodeid, args }) => fs.fsync(nodeid, synced(args))),

  GETXATTR: row((door, { nodeid, args }) => { checkName(door, args.name); return door.fs.getXattr(nodeid, args.name) },
    (_door, value, { args }, answer) => replyBytes(value, args.size, answer), abandonable),
  LISTXATTR: row(({ fs }, { nodeid }) => fs.listXattrs(nodeid),
    (_door, names, { args }, answer) => replyBytes(zeroTerminated(names), args.size, answer), abandonable),
  SETXATTR: once((door, { nodeid, args }, number) => { checkName(door, args.name); return door.fs.setXattr(nodeid, args.name, args.value, setHow(args.flags), { request: number, keepsSetGid: !(args.setxattrFlags & SetxattrFlag.ACL_KILL_SGID) }) }, nothing,
    undefined, { holdsRequest: true, errnos: { [EFBIG]: E2BIG } }),
  REMOVEXATTR: once((door, { nodeid, args }, number) => { checkName(door, args.name); return door.fs.removeXattr(nodeid, args.name, number) }, nothing),

  STATFS: row(({ fs }) => fs.space(), replySpace, abandonable),
  SYNCFS: row(({ fs }) => fs.fsync(ROOT)),
  DESTROY: row(() => {}),

  IOCTL: { ...row(refuse('UNSUPPORTED')), errnos: { [EOPNOTSUPP]: ENOTTY } },
  GETLK: absent, // locks were not announced, so the kernel keeps them itself
  SETLK: absent,
  SETLKW: absent,
  POLL: absent, // files are always ready
  BMAP: absent, // for block devices only
  SETUPMAPPING: absent, // virtiofs only, as the next
  REMOVEMAPPING: absent,
  NOTIFY_REPLY: row(() => {}, undefined, silent), // to a RETRIEVE, which we do not send
}
