// The opcode table: one row says everything about an operation. The parser, the types, logs and tests all read the same rows.

import { malformed, type Reader } from '../reader.js'
import type { Fields, Struct, Value } from '../struct.js'
import { NAME_BYTES_MAX, XATTR_NAME_BYTES_MAX } from './flags.js'
import * as s from './structs.js'

/** Reads one thing that trails the fixed input; `fixed` is that input, decoded (counts and sizes are there). Throws FerryError PROTOCOL. */
export type Trailer<T> = (reader: Reader, fixed: Readonly<Record<string, unknown>>) => T

/** One path component. Names above NAME_MAX do arrive (the kernel leaves that limit to us) and are no protocol error. */
const component: Trailer<string> = reader => {
  const name = reader.cstring(NAME_BYTES_MAX)
  if (name === '' || name.includes('/')) throw malformed(name === '' ? 'an empty name' : 'a name with a slash')
  return name
}
const text =
  (lengthMax: number): Trailer<string> =>
  reader => {
    const name = reader.cstring(lengthMax)
    if (name === '') throw malformed('an empty name')
    return name
  }
const path = text(NAME_BYTES_MAX)
const xattr = text(XATTR_NAME_BYTES_MAX)

/** As many bytes as the field `count` says: a view into the message, no copy. */
const counted =
  (count: string): Trailer<Uint8Array> =>
  (reader, fixed) =>
    reader.bytes(fixed[count] as number)

/** As many structs as `count` says; the length is checked before anything is allocated. */
const listOf =
  <F extends Fields>(type: Struct<F>): Trailer<Value<Struct<F>>[]> =>
  (reader, { count }) => {
    if (reader.remaining !== (count as number) * type.size)
      throw malformed(`${count} items of ${type.size} bytes in ${reader.remaining} bytes`)
    return Array.from({ length: count as number }, () => reader.struct(type))
  }

/** What an answer carries after its header: these structs in this order, `data` (bytes), or `silent`: there is no answer at all. */
export type Reply = readonly Struct[] | 'data' | 'silent'
type Trail = Readonly<Record<string, Trailer<unknown>>>
type Row = readonly [code: number, input: Struct, trail: Trail, reply: Reply]

// biome-ignore format: a table
const rows = {
  //                    code fixed input           what trails it                             answer
  LOOKUP:               [ 1, s.none,               { name: component },                       [s.EntryOut]],
  FORGET:               [ 2, s.ForgetIn,           {},                                        'silent'],
  GETATTR:              [ 3, s.GetattrIn,          {},                                        [s.AttrOut]],
  SETATTR:              [ 4, s.SetattrIn,          {},                                        [s.AttrOut]],
  READLINK:             [ 5, s.none,               {},                                        'data'],
  SYMLINK:              [ 6, s.none,               { name: component, target: path },         [s.EntryOut]],
  MKNOD:                [ 8, s.MknodIn,            { name: component },                       [s.EntryOut]],
  MKDIR:                [ 9, s.MkdirIn,            { name: component },                       [s.EntryOut]],
  UNLINK:               [10, s.none,               { name: component },                       []],
  RMDIR:                [11, s.none,               { name: component },                       []],
  RENAME:               [12, s.RenameIn,           { name: component, newName: component },   []],
  LINK:                 [13, s.LinkIn,             { name: component },                       [s.EntryOut]],
  OPEN:                 [14, s.OpenIn,             {},                                        [s.OpenOut]],
  READ:                 [15, s.ReadIn,             {},                                        'data'],
  WRITE:                [16, s.WriteIn,            { data: counted('size') },                 [s.WriteOut]],
  STATFS:               [17, s.none,               {},                                        [s.StatfsOut]],
  RELEASE:              [18, s.ReleaseIn,          {},                                        []],
  FSYNC:                [20, s.FsyncIn,            {},                                        []],
  SETXATTR:             [21, s.SetxattrIn,         { name: xattr, value: counted('size') },   []],
  GETXATTR:             [22, s.GetxattrIn,         { name: xattr },                           'data'], // GetxattrOut if size is 0
  LISTXATTR:            [23, s.GetxattrIn,         {},                                        'data'], // GetxattrOut if size is 0
  REMOVEXATTR:          [24, s.none,               { name: xattr },                           []],
  FLUSH:                [25, s.FlushIn,            {},                                        []],
  INIT:                 [26, s.InitIn,             {},                                        [s.InitOut]],
  OPENDIR:              [27, s.OpenIn,             {},                                        [s.OpenOut]],
  READDIR:              [28, s.ReadIn,             {},                                        'data'],
  RELEASEDIR:           [29, s.ReleaseIn,          {},                                        []],
  FSYNCDIR:             [30, s.FsyncIn,            {},                                        []],
  GETLK:                [31, s.LkIn,               {},                                        [s.LkOut]],
  SETLK:                [32, s.LkIn,               {},                                        []],
  SETLKW:               [33, s.LkIn,               {},                                        []],
  ACCESS:               [34, s.AccessIn,           {},                                        []],
  CREATE:               [35, s.CreateIn,           { name: component },                       [s.EntryOut, s.OpenOut]],
  INTERRUPT:            [36, s.InterruptIn,        {},                                        'silent'], // an answer of EAGAIN asks for it again
  BMAP:                 [37, s.BmapIn,             {},                                        [s.BmapOut]],
  DESTROY:              [38, s.none,               {},                                        []],
  IOCTL:                [39, s.IoctlIn,            { data: counted('inSize') },               [s.IoctlOut]], // outSize bytes may follow
  POLL:                 [40, s.PollIn,             {},                                        [s.PollOut]],
  NOTIFY_REPLY:         [41, s.NotifyRetrieveIn,   { data: counted('size') },                 'silent'],
  BATCH_FORGET:         [42, s.BatchForgetIn,      { forgets: listOf(s.ForgetOne) },          'silent'],
  FALLOCATE:            [43, s.FallocateIn,        {},                                        []],
  READDIRPLUS:          [44, s.ReadIn,             {},                                        'data'],
  RENAME2:              [45, s.Rename2In,          { name: component, newName: component },   []],
  LSEEK:                [46, s.LseekIn,            {},                                        [s.LseekOut]],
  COPY_FILE_RANGE:      [47, s.CopyFileRangeIn,    {},                                        [s.WriteOut]],
  SETUPMAPPING:         [48, s.SetupmappingIn,     {},                                        []], // virtiofs only, as the next
  REMOVEMAPPING:        [49, s.RemovemappingIn,    { mappings: listOf(s.RemovemappingOne) },  []],
  SYNCFS:               [50, s.SyncfsIn,           {},                                        []],
  TMPFILE:              [51, s.CreateIn,           { name: path },                            [s.EntryOut, s.OpenOut]], // name is '/'
  STATX:                [52, s.StatxIn,            {},                                        [s.StatxOut]],
  COPY_FILE_RANGE_64:   [53, s.CopyFileRangeIn,    {},                                        [s.CopyFileRangeOut]],
} as const satisfies Record<string, Row>

type Rows = typeof rows
export type OpName = keyof Rows

type Trailing<T extends Trail> = { [K in keyof T]: T[K] extends Trailer<infer V> ? V : never }
type Flat<T> = { [K in keyof T]: T[K] }
/** The arguments of one operation: its fixed input and what trails it, in one object. */
export type Args<N extends OpName> = Flat<Value<Rows[N][1]> & Trailing<Rows[N][2]>>

export interface Operation<N extends OpName = OpName> {
  readonly name: N
  readonly code: Rows[N][0]
  readonly input: Struct
  readonly trail: Trail
  readonly reply: Reply
}

/** Every operation by name. */
export const ops = Object.fromEntries(
  Object.entries<Row>(rows).map(([name, [code, input, trail, reply]]) => [name, { name, code, input, trail, reply }]),
) as unknown as { readonly [N in OpName]: Operation<N> }

/** Every operation by its code; holes are codes that Linux does not use. */
export const opsByCode: readonly (Operation | undefined)[] = Object.values<Operation>(ops).reduce<Operation[]>(
  (byCode, op) => {
    byCode[op.code] = op
    return byCode
  },
  [],
)

/** Opcodes as a family of constants. */
export const Opcode = Object.fromEntries(Object.values<Operation>(ops).map(op => [op.name, op.code])) as {
  readonly [N in OpName]: Rows[N][0]
}
