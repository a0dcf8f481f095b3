// What of a remote is asked for by which procedure, and how arguments and results become messages and come back: one table, from which
// both the server and the client are made.
import { FerryError } from '../base/errors.js'
import { latin1, malformed } from '../wire/reader.js'
import type { Blob } from './blob.js'
import { type Message, NAMES_MAX, OBJECT_BYTES_MAX, PART_BYTES, REQUEST_BYTES_MAX } from './grpc-proto.js'
import { checkPath, checkRange } from './path.js'
import type { ObjectInfo, PutCondition, Store } from './store.js'
import type { Attributes, Entry, NewNode, Path, Tree, Usage, Xattrs } from './tree.js'

/** One method of a remote as a procedure. Arguments are those before `signal`. */
export interface GrpcCall<Args extends unknown[] = unknown[], Result = unknown> {
  /** Of the service. */
  name: string
  /** A message of the arguments, and the arguments of a message; PROTOCOL for more than may be asked for. */
  toRequest?(...args: Args): Message
  fromRequest(request: Message): Args
  /** Of a procedure that answers with a stream of bytes: neither. */
  toReply(result: Result): Message
  fromReply(reply: Message, ...args: Args): Result
  /** The result is bytes, and comes in parts: at most so many of them. */
  bytesMax?: (...args: Args) => number
  /** The request comes in parts: instead of `toRequest`. It throws before the first of them, or never. */
  toParts?(...args: Args): Iterable<Message>
}

/** Types are checked row by row; who walks over the table needs them no more. */
const call = <F extends (...args: never[]) => Promise<unknown>>(
  row: Omit<GrpcCall<WithoutSignal<Parameters<F>>, Awaited<ReturnType<F>>>, 'toReply' | 'fromReply'> &
    Partial<Pick<GrpcCall<WithoutSignal<Parameters<F>>, Awaited<ReturnType<F>>>, 'toReply' | 'fromReply'>>,
): GrpcCall => ({ toReply: nothing, fromReply: () => undefined, ...row }) as unknown as GrpcCall

type WithoutSignal<Args extends unknown[]> = Args extends [...infer Rest, signal?: AbortSignal] ? Rest : Args

const nothing = () => ({})

function* partsOf(head: Message, bytes: Uint8Array): Iterable<Message> {
  yield head
  for (let at = 0; at < bytes.length; at += PART_BYTES) yield { bytes: viewOf(bytes.subarray(at, at + PART_BYTES)) }
}

type T = Required<Tree>
type B = Required<Blob>
type S = Required<Store>

const toBytes = (text: string): Buffer => {
  const bytes = Buffer.from(text, 'latin1')
  if (bytes.length !== text.length || latin1(bytes, 0, bytes.length) !== text)
    throw new FerryError('INVALID', { detail: `${JSON.stringify(text)}: each char must be a byte` })
  return bytes
}
const fromBytes = (bytes: Uint8Array): string => latin1(bytes, 0, bytes.length)
const pathTo = (path: Path) => {
  checkPath(path)
  return toBytes(path)
}
const viewOf = ({ buffer, byteOffset, byteLength }: Uint8Array) => Buffer.from(buffer, byteOffset, byteLength)

/** A range that can be said: protobuf would make something else of others. */
function rangeTo(at: number, length: number) {
  checkRange({ at, length })
  return { at, length }
}

const onlyPath = { toRequest: (path: Path) => ({ path: pathTo(path) }) }

const NS = 1_000_000_000n
const toTime = (ns: bigint) => {
  const nanoseconds = ((ns % NS) + NS) % NS
  return { seconds: Number((ns - nanoseconds) / NS), nanoseconds: Number(nanoseconds) }
}
const fromTime = (time: Message): bigint => BigInt(time?.seconds ?? 0) * NS + BigInt(time?.nanoseconds ?? 0)

/** What was left out comes as null, or not at all. */
const given = <T, R>(name: string, value: T | null | undefined, read: (value: T) => R): Record<string, R> =>
  value === null || value === undefined ? {} : { [name]: read(value) }
const same = <T>(value: T) => value

function toEntry({ name, atimeNs, mtimeNs, ctimeNs, link, ...rest }: Entry): Message {
  return {
    ...rest,
    name: toBytes(name),
    ...{ atime: toTime(atimeNs), mtime: toTime(mtimeNs), ctime: toTime(ctimeNs) },
    ...given('link', link, toBytes),
  }
}

function fromEntry(message: Message): Entry {
  const { name, mode, uid, gid, atime, mtime, ctime, size, allocated, rdev, nlink, version, id, link, partial } =
    message
  return {
    name: fromBytes(name),
    ...{ mode, uid, gid, atimeNs: fromTime(atime), mtimeNs: fromTime(mtime), ctimeNs: fromTime(ctime) },
    ...{ size, allocated, rdev, nlink, version },
    ...given('id', id, same),
    ...given('link', link, fromBytes),
    ...(partial && { partial: true as const }),
  }
}

const toStat = (entry: Entry | null): Message => given('entry', entry, toEntry)
const fromStat = ({ entry }: Message): Entry | null => (entry ? fromEntry(entry) : null)

const toXattrs = (xattrs: Xattrs) => [...xattrs].map(([name, value]) => ({ name: toBytes(name), value: viewOf(value) }))
const fromXattrs = (xattrs: Message[]): Xattrs => new Map(xattrs.map(({ name, value }) => [fromBytes(name), value]))

const toObject = ({ name, size, version }: ObjectInfo): Message => ({ name: toBytes(name), size, version })
const fromObject = ({ name, size, version }: Message): ObjectInfo => ({ name: fromBytes(name), size, version })

/** Numbers of a request that say how much is to be kept in memory for it. */
function bounded<T extends { length: number }>(request: T, max = REQUEST_BYTES_MAX): T {
  if (request.length > max) throw malformed(`${request.length} at once, where there may be ${max}`)
  return request
}

export const blobCalls: Record<string, GrpcCall> = {
  read: call<B['read']>({
    name: 'Read',
    toRequest: rangeTo,
    fromRequest: request => [request.at, bounded(request).length],
    bytesMax: (_, length) => length,
  }),
  write: call<B['write']>({
    name: 'Write',
    toRequest: (at, from) => ({ at, bytes: viewOf(from) }),
    fromRequest: ({ at, bytes }) => [at, bounded(bytes)],
  }),
  flush: call<B['flush']>({ name: 'Flush', toRequest: nothing, fromRequest: () => [] }),
  trim: call<B['trim']>({
    name: 'Trim',
    toRequest: rangeTo,
    fromRequest: ({ at, length }) => [at, length],
  }),
  version: call<B['version']>({
    name: 'Version',
    ...{ toRequest: nothing, fromRequest: () => [] },
    toReply: version => ({ version }),
    fromReply: ({ version }) => version,
  }),
}

export const treeCalls: Record<string, GrpcCall> = {
  stat: call<T['stat']>({
    name: 'Stat',
    ...onlyPath,
    fromRequest: ({ path }) => [fromBytes(path)],
    ...{ toReply: toStat, fromReply: fromStat },
  }),
  list: call<T['list']>({
    name: 'List',
    toRequest: (path, cursor) => ({ path: pathTo(path), cursor }),
    fromRequest: ({ path, cursor }) => [fromBytes(path), cursor ?? undefined],
    toReply: ({ entries, cursor }) => ({ entries: entries.map(toEntry), cursor }),
    fromReply: ({ entries, cursor }) => ({ entries: entries.map(fromEntry), ...given('cursor', cursor, same) }),
  }),
  complete: call<T['complete']>({
    name: 'Complete',
    toRequest: (path, names) => ({
      path: pathTo(path),
      names: names.map(({ name, isDirectory }) => ({ name: toBytes(name), isDirectory })),
    }),
    fromRequest: ({ path, names }) => [
      fromBytes(path),
      bounded(names as Message[], NAMES_MAX).map(({ name, isDirectory }) => ({ name: fromBytes(name), isDirectory })),
    ],
    toReply: entries => ({ entries: entries.map(toStat) }),
    fromReply: ({ entries }, _, names) => {
      if (entries.length !== names.length) throw malformed('as many answers as names belong there')
      return entries.map(fromStat)
    },
  }),
  read: call<T['read']>({
    name: 'Read',
    toRequest: (path, { at, length, version }) => ({ path: pathTo(path), ...rangeTo(at, length), version }),
    fromRequest: request => {
      const { path, at, length, version } = bounded(request as { path: Uint8Array } & Message)
      return [fromBytes(path), { at, length, ...given('version', version, same) }]
    },
    bytesMax: (_, { length }) => length,
  }),
  xattrs: call<T['xattrs']>({
    name: 'Xattrs',
    ...onlyPath,
    fromRequest: ({ path }) => [fromBytes(path)],
    toReply: xattrs => ({ xattrs: toXattrs(xattrs) }),
    fromReply: ({ xattrs }) => fromXattrs(xattrs),
  }),
  usage: call<T['usage']>({
    name: 'Usage',
    ...{ toRequest: nothing, fromRequest: () => [] },
    toReply: usage => given('usage', usage, same),
    fromReply: ({ usage }) => (usage as Usage | undefined) ?? null,
  }),
  write: call<T['write']>({
    name: 'Write',
    toRequest: (path, at, from) => ({ path: pathTo(path), at: rangeTo(at, from.length).at, bytes: viewOf(from) }),
    fromRequest: ({ path, at, bytes }) => [fromBytes(path), at, bounded(bytes)],
  }),
  copy: call<T['copy']>({
    name: 'Copy',
    toRequest: (source, { at, length, to, version }, target) => ({
      ...{ source: pathTo(source), target: pathTo(target), ...rangeTo(at, length) },
      ...{ to: rangeTo(to, length).at, version },
    }),
    fromRequest: ({ source, target, at, length, to, version }) => [
      fromBytes(source),
      { at, length, to, ...given('version', version, same) },
      fromBytes(target),
    ],
  }),
  truncate: call<T['truncate']>({
    name: 'Truncate',
    toRequest: (path, size) => ({ path: pathTo(path), size: rangeTo(0, size).length }),
    fromRequest: ({ path, size }) => [fromBytes(path), size],
  }),
  punch: call<T['punch']>({
    name: 'Punch',
    toRequest: (path, at, length) => ({ path: pathTo(path), ...rangeTo(at, length) }),
    fromRequest: ({ path, at, length }) => [fromBytes(path), at, length],
  }),
  make: call<T['make']>({
    name: 'Make',
    toRequest: (path, { mode, uid, gid, atimeNs, mtimeNs, rdev, link }) => ({
      ...{ path: pathTo(path), mode, uid, gid, rdev, atime: toTime(atimeNs), mtime: toTime(mtimeNs) },
      ...given('link', link, toBytes),
    }),
    fromRequest: ({ path, mode, uid, gid, rdev, atime, mtime, link }) => {
      const node: NewNode = { mode, uid, gid, rdev, atimeNs: fromTime(atime), mtimeNs: fromTime(mtime) }
      return [fromBytes(path), { ...node, ...given('link', link as Uint8Array, fromBytes) }]
    },
  }),
  ...Object.fromEntries(
    (['link', 'rename'] as const).map(method => [
      method,
      call<T['link']>({
        name: method === 'link' ? 'Link' : 'Rename',
        toRequest: (source, target) => ({ source: pathTo(source), target: pathTo(target) }),
        fromRequest: ({ source, target }) => [fromBytes(source), fromBytes(target)],
      }),
    ]),
  ),
  remove: call<T['remove']>({ name: 'Remove', ...onlyPath, fromRequest: ({ path }) => [fromBytes(path)] }),
  setAttributes: call<T['setAttributes']>({
    name: 'SetAttributes',
    toRequest: (path, { atimeNs, mtimeNs, ...rest }) => ({
      ...{ path: pathTo(path), ...rest },
      ...given('atime', atimeNs, toTime),
      ...given('mtime', mtimeNs, toTime),
    }),
    fromRequest: ({ path, mode, uid, gid, atime, mtime }) => {
      const attributes: Partial<Attributes> = {
        ...given('mode', mode as number, same),
        ...given('uid', uid as number, same),
        ...given('gid', gid as number, same),
        ...given('atimeNs', atime, fromTime),
        ...given('mtimeNs', mtime, fromTime),
      }
      return [fromBytes(path), attributes]
    },
  }),
  setXattrs: call<T['setXattrs']>({
    name: 'SetXattrs',
    toRequest: (path, xattrs) => ({ path: pathTo(path), xattrs: toXattrs(xattrs) }),
    fromRequest: ({ path, xattrs }) => [fromBytes(path), fromXattrs(xattrs)],
  }),
  sync: call<T['sync']>({
    name: 'Sync',
    toRequest: paths => ({ paths: paths.map(pathTo) }),
    fromRequest: ({ paths }) => [bounded(paths as Uint8Array[], NAMES_MAX).map(fromBytes)],
  }),
}

export const storeCalls: Record<string, GrpcCall> = {
  get: call<S['get']>({
    name: 'Get',
    toRequest: (name, range) => ({
      name: pathTo(name),
      ...given('range', range, ({ at, length }) => rangeTo(at, length)),
      ...given('version', range?.version, same),
    }),
    fromRequest: ({ name, range, version }) => {
      const part = range && bounded(range as { at: number; length: number }, OBJECT_BYTES_MAX)
      return [fromBytes(name), part ? { ...part, ...given('version', version, same) } : undefined]
    },
    bytesMax: (_, range) => range?.length ?? OBJECT_BYTES_MAX,
  }),
  head: call<S['head']>({
    name: 'Head',
    toRequest: name => ({ name: pathTo(name) }),
    fromRequest: ({ name }) => [fromBytes(name)],
    toReply: object => given('object', object, toObject),
    fromReply: ({ object }) => (object ? fromObject(object) : null),
  }),
  put: call<S['put']>({
    name: 'Put',
    // Of all parts, as the server puts them together.
    fromRequest: ({ name, bytes, ifAbsent, ifVersion }) => {
      const condition: PutCondition = { ...(ifAbsent && { ifAbsent }), ...given('ifVersion', ifVersion, same) }
      return [fromBytes(name), bytes, condition]
    },
    toParts: (name, bytes, condition) => partsOf({ name: pathTo(name), ...condition }, bytes),
    toReply: version => ({ version }),
    fromReply: ({ version }) => version,
  }),
  remove: call<S['remove']>({
    name: 'Remove',
    toRequest: (name, condition) => ({ name: pathTo(name), ...condition }),
    fromRequest: ({ name, ifVersion }) => [fromBytes(name), { ...given('ifVersion', ifVersion, same) }],
  }),
  removeAll: call<S['removeAll']>({
    name: 'RemoveAll',
    toRequest: names => ({ names: names.map(pathTo) }),
    fromRequest: ({ names }) => [bounded(names as Uint8Array[], NAMES_MAX).map(fromBytes)],
  }),
  list: call<S['list']>({
    name: 'List',
    toRequest: (prefix, after) => ({ prefix: toBytes(prefix), ...given('after', after, toBytes) }),
    fromRequest: ({ prefix, after }) => [fromBytes(prefix), after ? fromBytes(after) : undefined],
    toReply: objects => ({ objects: objects.map(toObject) }),
    fromReply: ({ objects }) => objects.map(fromObject),
  }),
}
