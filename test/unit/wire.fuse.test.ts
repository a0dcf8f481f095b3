import { describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import * as fuse from '../../src/wire/fuse.js'
import { ops, parseRequest } from '../../src/wire/fuse.js'
import { viewOf } from '../../src/wire/reader.js'
import { type Struct, struct } from '../../src/wire/struct.js'
import { compose, flatten, readFrames, relabel } from '../fixtures/fuse.frames.js'

const protocol = expect.objectContaining({ name: 'FerryError', code: 'PROTOCOL' })
const requests = readFrames('fuse.requests.hex')
const frameOf = (op: string) => requests.find(({ title }) => title.split(' ')[0] === op)!

describe('golden requests', () => {
  test('there is one of each operation', () => {
    const titles = new Set(requests.map(({ title }) => title.split(' ')[0].replace('+ext', '')))
    expect([...titles].sort()).toEqual([...Object.keys(ops), 'UNKNOWN'].sort())
  })

  test.each(requests.map(frame => [frame.title, frame] as const))('%s', (title, { bytes, fields }) => {
    const padded = new Uint8Array(bytes.length + 100) // as in a read buffer, with the last message behind it
    padded.set(bytes)
    padded.fill(0xee, bytes.length)
    const request = parseRequest(padded, bytes.length)
    const { op, opcode, uniqueLow, uniqueHigh, nodeid, uid, gid, pid, args, extensions } = request
    expect(op).toBe(title.split(' ')[0].replace('+ext', ''))
    const len = bytes.length
    const totalExtlen = extensions.reduce((sum, { data }) => sum + 8 + data.length, 0) / 8
    expect({
      ...flatten({ len, opcode, uniqueLow, uniqueHigh, nodeid, uid, gid, pid, totalExtlen }),
      ...flatten(args),
    }).toEqual(fields)
    expect(title.includes('+ext')).toBe(extensions.length > 0)
  })

  test('an old INIT of 16 bytes has no flags2', () => {
    const old = relabel(frameOf('INIT').bytes.slice(0, 56))
    expect(parseRequest(old).args).toEqual({ ...parseRequest(frameOf('INIT').bytes).args, flags2: 0 })
  })

  test('an INIT of a foreign major version counts for its version only, whatever follows', () => {
    const init = frameOf('INIT').bytes
    for (const length of [56, 60, 104, 200]) {
      const strange = new Uint8Array(length)
      strange.set(init.subarray(0, Math.min(length, init.length)))
      strange[40] = 8
      expect(parseRequest(relabel(strange)).args).toMatchObject({ major: 8, minor: 45 })
    }
  })

  test('SETXATTR without SETXATTR_EXT has 8 bytes before its name', () => {
    const { bytes } = frameOf('SETXATTR')
    const short = relabel(Uint8Array.from([...bytes.subarray(0, 48), ...bytes.subarray(56)]))
    const { args } = parseRequest(short, short.length, { setxattrExt: false })
    expect(args).toEqual({
      size: 5,
      flags: 0,
      setxattrFlags: 0,
      name: 'user.k',
      value: new Uint8Array(Buffer.from('value')),
    })
    expect(() => parseRequest(short)).toThrow(protocol)
  })
})

describe('what is malformed is refused, and only with PROTOCOL', () => {
  const write = () => frameOf('WRITE').bytes.slice()
  const lookup = (name: string) => compose(ops.LOOKUP, { name })

  test.each<[string, () => Uint8Array]>([
    ['nothing', () => new Uint8Array()],
    ['less than a header', () => relabel(write().slice(0, 39))],
    ['a header that says more than arrived', () => write().slice(0, -1)],
    ['a header that says less', () => Uint8Array.from([...write(), 0])],
    ['WRITE with less data than it says', () => relabel(write().slice(0, -1))],
    ['WRITE with more data than it says', () => relabel(Uint8Array.from([...write(), 0]))],
    ['READ with a byte too many', () => relabel(Uint8Array.from([...frameOf('READ').bytes, 0]))],
    ['a name without an end', () => relabel(lookup('name').slice(0, -1))],
    ['an empty name', () => lookup('')],
    ['a name with a slash', () => lookup('a/b')],
    ['a name with a NUL inside', () => lookup('a\0b')],
    ['a name above PATH_MAX', () => lookup('x'.repeat(4096))],
    ['one name where two belong', () => compose(ops.RENAME, { newdir: 1, name: 'a', newName: 'b' }).slice(0, -2)],
    ['an empty symlink', () => compose(ops.SYMLINK, { name: 'a', target: '' })],
    ['an xattr name above 255', () => compose(ops.GETXATTR, { size: 0, name: 'x'.repeat(256) })],
    [
      'BATCH_FORGET of more than there is',
      () => compose(ops.BATCH_FORGET, { count: 2, forgets: [{ nodeid: 2, nlookup: 1 }] }),
    ],
    ['BATCH_FORGET of 2^32 - 1', () => compose(ops.BATCH_FORGET, { count: 2 ** 32 - 1, forgets: [] })],
    [
      'extensions longer than the message',
      () => compose(ops.MKDIR, { mode: 0, umask: 0, name: 'd' }, {}, new Uint8Array(80)),
    ],
    ['an extension of no size', () => compose(ops.MKDIR, { mode: 0, umask: 0, name: 'd' }, {}, new Uint8Array(8))],
  ])('%s', (_, bytes) => {
    expect(() => parseRequest(relabel(bytes()))).toThrow(protocol)
    const raw = bytes()
    if (raw.length > 0) expect(() => parseRequest(raw)).toThrow(protocol)
  })

  test('a node that is none of ours', () => {
    const bytes = frameOf('GETATTR').bytes.slice()
    bytes[23] = 0x80
    expect(() => parseRequest(bytes)).toThrow(protocol)
  })

  test('a header whose length is not that of the read, though the body is right', () => {
    for (const len of [0, 40, 55, 57, 2 ** 31]) {
      const bytes = frameOf('GETATTR').bytes.slice()
      viewOf(bytes).setUint32(0, len, true)
      expect(() => parseRequest(bytes)).toThrow(protocol)
    }
  })

  test('a length beyond the buffer', () => {
    expect(() => parseRequest(write(), 10_000)).toThrow(protocol)
    expect(() => parseRequest(write(), Number.NaN)).toThrow(protocol)
  })

  test('whom to answer is known even then', () => {
    const bytes = relabel(frameOf('WRITE').bytes.slice(0, 41))
    expect(() => parseRequest(bytes)).toThrow(FerryError)
    expect(fuse.uniqueOf(bytes)).toEqual({ uniqueLow: 238, uniqueHigh: 0 })
    expect(fuse.uniqueOf(bytes, 15)).toBeUndefined()
    expect(fuse.uniqueOf(bytes, 4096)).toBeUndefined()
  })
})

describe('what looks odd is legal', () => {
  test('a name longer than NAME_MAX: the answer is NAME_TOO_LONG, not ours to give', () => {
    const request = parseRequest(compose(ops.LOOKUP, { name: 'x'.repeat(4095) }))
    expect(request.op === 'LOOKUP' && request.args.name.length).toBe(4095)
  })
  test('names of any bytes', () => {
    const name = '\x01\xff\x80\n'
    expect(parseRequest(compose(ops.LOOKUP, { name })).args).toEqual({ name })
  })
  test('a position beyond 2^53', () => {
    const bytes = compose(ops.READ, { fh: 1, offset: 0, size: 1, readFlags: 0, lockOwner: 0n, flags: 0 })
    viewOf(bytes).setBigInt64(40 + fuse.ReadIn.offsets.offset, -1n, true)
    const request = parseRequest(bytes)
    expect(request.op === 'READ' && request.args.offset).toBeGreaterThan(2 ** 53)
  })
  test('extensions behind the names', () => {
    const groups = Buffer.from('10000000200000000100000064000000', 'hex')
    const security = Buffer.from('10000000010000000000000000000000', 'hex')
    const args = { mode: 0o755, umask: 0o22, name: 'd' }
    const request = parseRequest(compose(ops.MKDIR, args, {}, new Uint8Array(Buffer.concat([security, groups]))))
    expect(request.args).toEqual(args)
    expect(request.extensions).toEqual([
      { type: 1, data: new Uint8Array(8) },
      { type: fuse.ExtType.GROUPS, data: new Uint8Array(groups.subarray(8)) },
    ])
  })
})

test('the data of a WRITE is a view of the buffer', () => {
  const bytes = frameOf('WRITE').bytes.slice()
  const request = parseRequest(bytes)
  if (request.op !== 'WRITE') throw new Error(request.op)
  expect(request.args.data.buffer).toBe(bytes.buffer)
  bytes[80] = 0x48
  expect(Buffer.from(request.args.data).toString()).toBe('Hello world!')
})

test('the opcode decides the type of the arguments', () => {
  const request = parseRequest(frameOf('RENAME').bytes)
  switch (request.op) {
    case 'RENAME': {
      const { newdir, name, newName }: { newdir: number; name: string; newName: string } = request.args
      expect([newdir, name, newName]).toEqual([1, 'hard', 'hard2'])
      // @ts-expect-error a RENAME has no size
      expect(request.args.size).toBeUndefined()
      break
    }
    default:
      throw new Error(request.op)
  }
  expect(fuse.Opcode.READ).toBe(15)
  expect(fuse.opsByCode[15]).toBe(ops.READ)
  expect(fuse.opsByCode[7]).toBeUndefined()
})

describe('golden answers', () => {
  const replies = Object.fromEntries(readFrames('fuse.replies.hex').map(({ title, bytes }) => [title, bytes]))
  const attr = {
    ino: 3,
    size: 5e12,
    blocks: 9_765_625_000,
    atimeNs: -1n,
    mtimeNs: 1_753_000_000_987_654_321n,
    ctimeNs: -1_500_000_001n,
    mode: 0o100640,
    nlink: 2,
    uid: 1000,
    gid: 100,
    rdev: 0x11110370, // 259, 70000
    blksize: 4096,
  }
  const entry = { nodeid: 2 ** 32 + 3, generation: 7, entryTtlMs: 1500, attrTtlMs: 0.25, attr }
  const written = (size: number, write: (view: DataView, bytes: Uint8Array) => void) => {
    const bytes = new Uint8Array(size).fill(0xee)
    write(viewOf(bytes), bytes)
    return bytes
  }
  const unique = { uniqueLow: 0xfffffffe, uniqueHigh: 0x80000000 }
  const { notify } = fuse

  const made: Record<string, () => Uint8Array> = {
    attr: () => written(88, view => fuse.encodeAttr(view, 0, attr)),
    attr_out: () => written(104, view => fuse.encodeAttrOut(view, 0, attr, Number.POSITIVE_INFINITY)),
    entry: () => written(128, view => fuse.encodeEntry(view, 0, entry)),
    'entry, negative': () => written(128, view => fuse.encodeNegativeEntry(view, 0, 2000)),
    statx: () => written(288, view => fuse.encodeStatxOut(view, 0, { ...attr, btimeNs: 1_500_000_000n }, 1000)),
    out_header: () => written(16, view => fuse.encodeOutHeader(view, 0, unique, { length: 16, errno: 2 })),
    dirent: () =>
      written(32, (_, bytes) => {
        expect(fuse.packDirent(bytes, 0, { ino: 9, next: 3, type: fuse.DirentType.REG, name: '\xff\xfename' })).toBe(32)
      }),
    direntplus: () =>
      written(160, (_, bytes) => {
        expect(fuse.packDirentplus(bytes, 0, { ino: 3, next: 3, type: 8, name: '12345678' }, entry)).toBe(160)
      }),
    invalInode: () => notify.invalInode({ nodeid: 3, offset: 4096, length: 8192 }),
    'invalInode, attributes only': () => notify.invalInode({ nodeid: 3 }),
    invalEntry: () => notify.invalEntry({ parent: 2, name: 'f2' }),
    'invalEntry, expire only': () => notify.invalEntry({ parent: 2, name: 'f3', expireOnly: true }),
    delete: () => notify.delete({ parent: 2, child: 7, name: 'f4' }),
    storeHead: () => notify.storeHead({ nodeid: 4, offset: 4096, size: 5 }),
    retrieve: () => notify.retrieve({ notifyUnique: 77, nodeid: 4, offset: 0, size: 5 }),
    poll: () => notify.poll(12345n),
    incEpoch: () => notify.incEpoch(),
    resend: () => notify.resend(),
    prune: () => notify.prune([3, 4]),
  }

  test('all are made', () => expect(Object.keys(made).sort()).toEqual(Object.keys(replies).sort()))
  test.each(Object.keys(made))('%s', title => {
    expect(Buffer.from(made[title]()).toString('hex')).toBe(Buffer.from(replies[title]).toString('hex'))
  })

  test('nanoseconds are exact over all of time', () => {
    const view = viewOf(new Uint8Array(88))
    const edges = [
      0n,
      1n,
      -1n,
      10n ** 9n,
      -(10n ** 9n),
      10n ** 9n - 1n,
      2n ** 63n - 1n,
      -(2n ** 63n),
      2n ** 63n,
      -(2n ** 70n),
      2n ** 70n,
    ]
    let seed = 88172645463325252n
    const random = () => {
      seed ^= BigInt.asUintN(64, seed << 13n)
      seed ^= seed >> 7n
      return BigInt.asIntN(64, (seed ^= BigInt.asUintN(64, seed << 17n)))
    }
    const times = [
      ...edges,
      ...Array.from({ length: 20_000 }, random),
      ...Array.from({ length: 2000 }, (_, i) => (random() % 2n ** 34n) * 10n ** 9n + BigInt((i % 3) - 1)),
    ]
    for (const timeNs of times) {
      fuse.encodeAttr(view, 0, { ...attr, atimeNs: timeNs })
      const { atime, atimensec } = fuse.Attr.decode(view)
      expect(atimensec >= 0 && atimensec < 1e9).toBe(true)
      if (fuse.timeNs(atime, atimensec) !== timeNs) throw new Error(`${timeNs} became ${atime} s and ${atimensec} ns`)
    }
  })

  test('an entry that does not fit writes nothing', () => {
    const target = new Uint8Array(64)
    expect(fuse.packDirent(target, 40, { ino: 1, next: 1, type: 4, name: 'a' })).toBe(0)
    expect(fuse.packDirentplus(target, 0, { ino: 1, next: 1, type: 4, name: 'a' }, entry)).toBe(0)
    expect(target).toEqual(new Uint8Array(64))
    expect(fuse.packDirent(target, 32, { ino: 1, next: 1, type: 4, name: '12345678' })).toBe(32)
  })

  test('without an entry READDIRPLUS takes no lookup count', () => {
    const target = new Uint8Array(200).fill(0xee)
    const size = fuse.packDirentplus(target, 8, { ino: 1, next: 1, type: 4, name: '..' })
    expect(size).toBe(160)
    const { entryOut, dirent } = fuse.Direntplus.decode(viewOf(target), 8)
    expect([entryOut.nodeid, entryOut.attr.ino, dirent.ino, dirent.namelen]).toEqual([0, 0, 1, 2])
    expect(target[8 + 160]).toBe(0xee)
  })
})

test('every struct decodes alike with and without generated code', () => {
  const structs = Object.entries(fuse).filter((pair): pair is [string, Struct & (typeof pair)[1]] => {
    return typeof pair[1] === 'object' && 'cursor' in pair[1]
  })
  expect(structs.length).toBeGreaterThan(60)
  for (const [name, type] of structs) {
    const image = Uint8Array.from({ length: type.size }, (_, i) => (i % 8 > 5 ? 0 : i * 37))
    const closures = struct(type.fields, { closures: true })
    expect([name, closures.decode(viewOf(image))]).toEqual([name, type.decode(viewOf(image))])
    expect(closures.toBytes(type.decode(viewOf(image)))).toEqual(type.toBytes(type.decode(viewOf(image))))
  }
})
