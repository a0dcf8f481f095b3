import { describe, expect, test } from '@jest/globals'
import { isFerryError } from '../../src/base/errors.js'
import { io, ior, iow, iowr } from '../../src/wire/ioctl.js'
import { flagsOf, nameOf } from '../../src/wire/names.js'
import {
  array,
  bytes,
  type Field,
  len64,
  pad,
  pos64,
  s32,
  s64,
  sec64,
  struct,
  u8,
  u16,
  u32,
  u64,
  type Value,
} from '../../src/wire/struct.js'

const Point = struct({ x: s32, y: s32 })
const fields = {
  kind: u8,
  reserved: pad(1),
  port: u16,
  count: u32,
  cookie: u64,
  offset: len64,
  delta: s64,
  seconds: sec64,
  wanted: pos64,
  at: Point,
  key: bytes(4),
  pair: array(u16, 2),
}
const value = {
  kind: 200,
  port: 65535,
  count: 2 ** 32 - 1,
  cookie: 2n ** 64n - 1n,
  offset: Number.MAX_SAFE_INTEGER,
  delta: -(2n ** 63n),
  seconds: -1,
  wanted: 2 ** 40 + 1,
  at: { x: -1, y: 7 },
  key: Uint8Array.of(1, 2, 3, 4),
  pair: [1, 2],
}

const viewOn = (size: number) => new DataView(new ArrayBuffer(size))
const modes = [
  ['generated code', false],
  ['closures', true],
] as const

describe.each(modes)('a struct of %s', (_, closures) => {
  const Le = struct(fields, { endian: 'le', closures })
  const Be = struct(fields, { endian: 'be', closures })

  test('lays its fields out as C does', () => {
    expect(Le.size).toBe(64)
    expect(Le.align).toBe(8)
    expect(Le.offsets).toEqual({
      kind: 0,
      reserved: 1,
      port: 2,
      count: 4,
      cookie: 8,
      offset: 16,
      delta: 24,
      seconds: 32,
      wanted: 40,
      at: 48,
      key: 56,
      pair: 60,
    })
  })

  test.each([
    ['little', Le],
    ['big', Be],
  ])('returns what was written, %s endian, at any offset', (_name, Type) => {
    const view = viewOn(Type.size + 5)
    Type.encode(view, 5, value)
    expect(Type.decode(view, 5)).toEqual(value)
    expect(new Uint8Array(view.buffer, 0, 5)).toEqual(new Uint8Array(5))
    expect(Type.decode(new DataView(Type.toBytes(value).buffer))).toEqual(value)
  })

  test('reads in place through a cursor', () => {
    const view = viewOn(Be.size + 8)
    Be.encode(view, 8, value)
    const cursor = Be.cursor().bind(view, 8)
    expect({
      ...{ kind: cursor.kind, port: cursor.port, count: cursor.count, cookie: cursor.cookie, offset: cursor.offset },
      ...{ delta: cursor.delta, seconds: cursor.seconds, wanted: cursor.wanted, at: cursor.at, key: cursor.key },
      pair: cursor.pair,
    }).toEqual(value)
    view.setUint8(8, 3)
    expect(cursor.kind).toBe(3)
    expect(cursor.bind(view, 0).kind).toBe(0)
  })

  test('writes the bytes of the wire', () => {
    const Request = struct(
      { magic: u32, flags: u16, cookie: u64, offset: len64 },
      { endian: 'be', packed: true, closures },
    )
    expect(Request.size).toBe(22)
    const wire = Request.toBytes({ magic: 0x25609513, flags: 1, cookie: 0x0102030405060708n, offset: 2 ** 32 + 5 })
    expect(Buffer.from(wire).toString('hex')).toBe('25609513' + '0001' + '0102030405060708' + '0000000100000005')
  })

  test('zeroes what is reserved, and does not show it', () => {
    const Type = struct({ a: u32, hole: pad(4) }, { closures, endian: 'le' })
    const view = viewOn(8)
    view.setUint32(4, 0xffffffff)
    expect(Type.decode(view)).toStrictEqual({ a: 0 })
    Type.encode(view, 0, { a: 1 })
    expect(view.getUint32(4)).toBe(0)
  })

  test('refuses to read a number of ours above 2^53 - 1, with PROTOCOL', () => {
    const Type = struct({ n: len64 }, { closures, endian: 'le' })
    const view = viewOn(8)
    view.setBigUint64(0, 2n ** 53n - 1n, true)
    expect(Type.decode(view).n).toBe(Number.MAX_SAFE_INTEGER)
    for (const n of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
      view.setBigUint64(0, n, true)
      expect(() => Type.decode(view)).toThrow(expect.objectContaining({ code: 'PROTOCOL' }))
      expect(() => Type.cursor().bind(view, 0).n).toThrow(expect.objectContaining({ code: 'PROTOCOL' }))
    }
  })

  test('takes any position a program may choose', () => {
    const Type = struct({ n: pos64, t: sec64 }, { closures, endian: 'be' })
    const view = viewOn(16)
    view.setBigUint64(0, 2n ** 64n - 1n)
    view.setBigInt64(8, -(2n ** 62n))
    expect(Type.decode(view)).toEqual({ n: 2 ** 64, t: -(2 ** 62) })
  })

  test('will not write what is no length', () => {
    const Type = struct({ n: len64, p: pos64 }, { closures })
    for (const n of [-1, Number.NaN, 2 ** 53, Number.POSITIVE_INFINITY]) {
      expect(() => Type.toBytes({ n, p: 0 })).toThrow('does not fit')
      expect(() => Type.toBytes({ n: 0, p: n })).toThrow('does not fit')
    }
  })
})

test('signed seconds survive in both directions', () => {
  const Type = struct({ t: sec64 }, { endian: 'le' })
  for (const t of [0, 1, -1, -(2 ** 31), 2 ** 31, -(2 ** 32), 2 ** 32, -(2 ** 32) - 1, 2 ** 52, -(2 ** 52)]) {
    const wire = Type.toBytes({ t })
    expect(new DataView(wire.buffer).getBigInt64(0, true)).toBe(BigInt(t))
    expect(Type.decode(new DataView(wire.buffer)).t).toBe(t)
  }
})

test('a hole must be spelled, unless the struct is packed', () => {
  expect(() => struct({ a: u32, b: u64 })).toThrow('b is misaligned at 4: add explicit padding')
  expect(() => struct({ a: u64, b: u32 })).toThrow('the struct ends at 12')
  expect(() => struct({ a: u8, at: Point })).toThrow('at is misaligned at 1')
  expect(struct({ a: u32, b: u64 }, { packed: true }).size).toBe(12)
  expect(struct({ a: u32, gap: pad(4), b: u64 }).size).toBe(16)
  expect(() => struct({ a: u32, inner: struct({ b: u64 }) })).toThrow('inner is misaligned at 4')
})

test('a name that is no identifier never becomes code', () => {
  for (const name of ['a b', '1a', 'a;b', '', 'bind', 'constructor', '__proto__x', 'a\n']) {
    expect(() => struct({ [name]: u8 })).toThrow('cannot name a field')
  }
})

test('bytes are a view when read, and zero-filled when written short', () => {
  const Type = struct({ name: bytes(4) })
  const view = viewOn(4)
  const { name } = Type.decode(view)
  view.setUint8(0, 9)
  expect(name[0]).toBe(9)
  view.setUint32(0, 0xffffffff)
  Type.encode(view, 0, { name: Uint8Array.of(1) })
  expect(new Uint8Array(view.buffer)).toEqual(Uint8Array.of(1, 0, 0, 0))
  expect(() => Type.toBytes({ name: new Uint8Array(5) })).toThrow('5 bytes do not fit in 4')
  expect(() => struct({ pair: array(u8, 2) }).toBytes({ pair: [1] })).toThrow('1 items where 2 belong')
})

test('nested structs keep their own byte order', () => {
  const Inner = struct({ n: u16 }, { endian: 'be' })
  const Outer = struct({ a: u16, inner: Inner }, { endian: 'le' })
  expect(Outer.toBytes({ a: 1, inner: { n: 1 } })).toEqual(Uint8Array.of(1, 0, 0, 1))
})

test('the type follows from the declaration', () => {
  type P = Value<typeof Point>
  const point: P = { x: 1, y: 2 }
  const Padded = struct({ a: u32, hole: pad(4) })
  const padded: Value<typeof Padded> = { a: 1 }
  // @ts-expect-error a field is missing
  const missing: P = { x: 1 }
  // @ts-expect-error opaque bits are a bigint
  const number: Value<Field<bigint>> = 1
  // @ts-expect-error there is no such offset
  const offset = Point.offsets.z
  expect([point, padded, missing, number, offset]).toHaveLength(5)
})

test('reading outside the view is a RangeError, as DataView has it', () => {
  expect(() => Point.decode(viewOn(7))).toThrow(RangeError)
})

test('ioctl numbers are those of the C macros', () => {
  expect(iowr(0xaa, 0x03, 40)).toBe(0xc028aa03) // UFFDIO_COPY
  expect(ior(229, 0, 4)).toBe(0x8004e500)
  expect(iow(229, 1, 16)).toBe(0x4010e501)
  expect(io(0xab, 3)).toBe(0xab03) // NBD_DO_IT
})

test('names are derived from the constants', () => {
  const family = { none: 0, read: 1, write: 2, both: 4, high: 2 ** 31 } as const
  expect(nameOf(family, 2)).toBe('write')
  expect(nameOf(family, 77)).toBe('unknown(77)')
  expect(flagsOf(family, 3)).toBe('read|write')
  expect(flagsOf(family, 2 ** 31 + 1 + 64)).toBe('read|high|0x40')
  expect(flagsOf(family, 0)).toBe('0')
  expect(isFerryError(new Error('no'))).toBe(false)
})
