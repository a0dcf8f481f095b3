// Binary structs: transcribe a header once; size, offsets, TypeScript type, reader, writer and cursor follow from it.

import assert from 'node:assert/strict'
import { FerryError } from '../base/errors.js'

export type Endian = 'le' | 'be'

/** The byte order of this machine: that of every kernel interface (FUSE, userfaultfd). Network formats name theirs. */
export const host: Endian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1 ? 'le' : 'be'

/**
 * One value of a fixed size. `get` and `put` must be plain functions (no `this`): the compiler calls them unbound, so that V8 inlines them.
 * Both trust the caller about bounds; outside the view they throw RangeError like DataView does.
 */
export interface Field<T> {
  /** bytes */
  readonly size: number
  /** bytes; 1 for whatever may stand anywhere */
  readonly align: number
  get(view: DataView, at: number, little: boolean): T
  put(view: DataView, at: number, value: T, little: boolean): void
}

/** What a field, or a struct, decodes to. */
export type Value<X> = X extends Field<infer T> ? T : never

const field = <T>(size: number, get: Field<T>['get'], put: Field<T>['put'], align = size): Field<T> => ({
  size,
  align,
  get,
  put,
})

export const u8 = field<number>(
  1,
  (view, at) => view.getUint8(at),
  (view, at, value) => view.setUint8(at, value),
)
export const u16 = field<number>(
  2,
  (view, at, little) => view.getUint16(at, little),
  (view, at, value, little) => view.setUint16(at, value, little),
)
export const u32 = field<number>(
  4,
  (view, at, little) => view.getUint32(at, little),
  (view, at, value, little) => view.setUint32(at, value, little),
)
export const s32 = field<number>(
  4,
  (view, at, little) => view.getInt32(at, little),
  (view, at, value, little) => view.setInt32(at, value, little),
)

/** Opaque 64 bits (cookies, lock owners, sentinels): exact, and some 20 ns dearer than a number. */
export const u64 = field<bigint>(
  8,
  (view, at, little) => view.getBigUint64(at, little),
  (view, at, value, little) => view.setBigUint64(at, value, little),
)
export const s64 = field<bigint>(
  8,
  (view, at, little) => view.getBigInt64(at, little),
  (view, at, value, little) => view.setBigInt64(at, value, little),
)

const TWO_32 = 2 ** 32
const low32 = (view: DataView, at: number, little: boolean) => view.getUint32(little ? at : at + 4, little)
const high32 = (view: DataView, at: number, little: boolean) => view.getUint32(little ? at + 4 : at, little)
const put64 = (view: DataView, at: number, value: number, little: boolean) => {
  view.setUint32(little ? at : at + 4, value, little) // modulo 2^32 by definition of ToUint32
  view.setUint32(little ? at + 4 : at, Math.floor(value / TWO_32), little)
}
const tooLarge = (high: number, low: number) =>
  new FerryError('PROTOCOL', { detail: `${high * TWO_32 + low} is above 2^53, and no number of ours is` })

/**
 * A 64-bit number that we or a well-behaved peer chose (sizes, inode numbers, handles), as a double.
 * Reading one above 2^53 - 1 throws FerryError PROTOCOL; writing anything but an integer from 0 to 2^53 - 1 is an assertion failure.
 */
export const len64 = field<number>(
  8,
  (view, at, little) => {
    const high = high32(view, at, little)
    const low = low32(view, at, little)
    if (high > 0x1fffff) throw tooLarge(high, low)
    return high * TWO_32 + low
  },
  (view, at, value, little) => {
    if (!(value >= 0 && value <= Number.MAX_SAFE_INTEGER)) assert.fail(`${value} does not fit in 53 bits`)
    put64(view, at, value, little)
  },
)

/**
 * A file position or length that a program chose: any 64 bits are legal, so reading never throws. Above 2^53 the double is rounded, which is
 * harmless, for every limit on file sizes is lower: such a value is answered with TOO_LARGE, not treated as a malformed message.
 */
export const pos64 = field<number>(
  8,
  (view, at, little) => high32(view, at, little) * TWO_32 + low32(view, at, little),
  len64.put,
)

/** Signed 64 bits as a double: seconds since the epoch. Exact within 2^53 seconds (285 million years), rounded outside; never throws. */
export const sec64 = field<number>(
  8,
  (view, at, little) => (high32(view, at, little) | 0) * TWO_32 + low32(view, at, little),
  put64,
)

/** `size` raw bytes. Decoding gives a view, not a copy: valid as long as the buffer is. Encoding zero-fills a shorter value. */
export const bytes = (size: number): Field<Uint8Array> =>
  field(
    size,
    (view, at) => new Uint8Array(view.buffer, view.byteOffset + at, size),
    (view, at, value) => {
      assert(value.length <= size, `${value.length} bytes do not fit in ${size}`)
      const target = new Uint8Array(view.buffer, view.byteOffset + at, size)
      target.set(value)
      target.fill(0, value.length)
    },
    1,
  )

export const array = <T>(item: Field<T>, count: number): Field<T[]> =>
  field(
    item.size * count,
    (view, at, little) => Array.from({ length: count }, (_, i) => item.get(view, at + i * item.size, little)),
    (view, at, values, little) => {
      assert(values.length === count, `${values.length} items where ${count} belong`)
      for (let i = 0; i < count; i++) item.put(view, at + i * item.size, values[i], little)
    },
    item.align,
  )

/** The value of a field that has none: it is missing from what decodes, and encodes as zeros. */
export interface Padding {
  readonly padding: unique symbol
}

/** `size` reserved bytes: written as zeros, ignored when read. */
export const pad = (size: number): Field<Padding> => {
  const zeros = (view: DataView, at: number) => {
    for (let i = 0; i < size; i++) view.setUint8(at + i, 0)
  }
  const padding = field<Padding>(size, () => undefined as never, zeros, 1)
  paddings.add(padding)
  return padding
}
const paddings = new WeakSet<object>()

export type Fields = Record<string, Field<unknown>>
type Values<F extends Fields> = { [K in keyof F as Value<F[K]> extends Padding ? never : K]: Value<F[K]> }

/** One reusable reader over a struct in place: decodes only what is touched. Do not keep it across an await; copy what you need. */
export type Cursor<F extends Fields> = Readonly<Values<F>> & { bind(view: DataView, at: number): Cursor<F> }

export interface Struct<F extends Fields = Fields> extends Field<Values<F>> {
  readonly fields: F
  /** Bytes from the start of the struct, for each field, padding included. */
  readonly offsets: { readonly [K in keyof F]: number }
  /** A fresh object of constant shape. RangeError outside the view; FerryError PROTOCOL for a len64 above 2^53. */
  decode(view: DataView, at?: number): Values<F>
  encode(view: DataView, at: number, value: Values<F>): void
  /** `value` as `size` bytes of its own. */
  toBytes(value: Values<F>): Uint8Array
  cursor(): Cursor<F>
}

export interface StructOptions {
  /** Default: the host's order. */
  endian?: Endian
  /** Fields follow each other without regard to alignment. Default: as in C, and holes must be spelled with `pad`. */
  packed?: boolean
  /** Read by closures instead of generated code. Default: only where Node forbids to generate code. */
  closures?: boolean
}

interface Member {
  name: string
  field: Field<unknown>
  at: number
  silent: boolean
}
interface Compiled {
  decode(view: DataView, at: number): object
  encode(view: DataView, at: number, value: object): void
  Cursor: new () => object
}

/** Lays `fields` out one after the other and compiles the access to them, once. A struct is itself a field: nesting is free. */
export function struct<const F extends Fields>(fields: F, options: StructOptions = {}): Struct<F> {
  const { endian = host, packed = false, closures = !mayGenerate } = options
  const { members, size, align } = layOut(fields, packed)
  const { decode, encode, Cursor } = (closures ? interpret : generate)(members, endian === 'le') as Compiled
  const self = {
    fields,
    size,
    align,
    offsets: Object.fromEntries(members.map(member => [member.name, member.at])),
    decode: (view: DataView, at = 0) => decode(view, at),
    encode,
    get: decode,
    put: encode,
    toBytes(value: object) {
      const target = new Uint8Array(size)
      encode(new DataView(target.buffer), 0, value)
      return target
    },
    cursor: () => new Cursor(),
  }
  return self as unknown as Struct<F>
}

function layOut(fields: Fields, packed: boolean) {
  const members: Member[] = []
  let at = 0
  let align = 1
  for (const [name, field] of Object.entries(fields)) {
    assert(/^[a-zA-Z]\w*$/.test(name) && !reserved.has(name), `${name} cannot name a field`)
    assert(packed || at % field.align === 0, `${name} is misaligned at ${at}: add explicit padding`)
    members.push({ name, field, at, silent: paddings.has(field) })
    at += field.size
    if (!packed) align = Math.max(align, field.align)
  }
  assert(at % align === 0, `the struct ends at ${at}, off its alignment of ${align}: add explicit padding`)
  return { members, size: at, align }
}
const reserved = new Set(['bind', 'constructor']) // of a cursor

/**
 * The struct as straight-line code. The text consists of field names (checked in layOut), offsets and fixed phrases, and is compiled while modules
 * load: nothing from a wire ever reaches it. Each get and put is a local constant, so that V8 inlines it.
 */
function generate(members: Member[], little: boolean) {
  const read = (i: number, view: string, at: string) => `get${i}(${view}, ${at} + ${members[i].at}, ${little})`
  const loud = [...members.keys()].filter(i => !members[i].silent)
  const text = `
    ${members.map((_, i) => `const get${i} = members[${i}].field.get, put${i} = members[${i}].field.put`).join('\n')}
    return {
      decode: (view, at) => ({ ${loud.map(i => `${members[i].name}: ${read(i, 'view', 'at')}`).join(', ')} }),
      encode: (view, at, value) => {
        ${members.map(({ name, at }, i) => `put${i}(view, at + ${at}, value.${name}, ${little})`).join('\n')}
      },
      Cursor: class {
        #view = undefined
        #at = 0
        bind(view, at) { this.#view = view; this.#at = at; return this }
        ${loud.map(i => `get ${members[i].name}() { return ${read(i, 'this.#view', 'this.#at')} }`).join('\n')}
      },
    }`
  return new Function('members', text)(members)
}

/** The same without generated code, for `node --disallow-code-generation-from-strings`. */
function interpret(members: Member[], little: boolean): Compiled {
  const loud = members.filter(member => !member.silent)
  class Cursor {
    #view!: DataView
    #at = 0
    bind(view: DataView, at: number) {
      this.#view = view
      this.#at = at
      return this
    }
    static {
      for (const { name, field, at } of loud) {
        Object.defineProperty(Cursor.prototype, name, {
          get(this: Cursor) {
            return field.get(this.#view, this.#at + at, little)
          },
        })
      }
    }
  }
  return {
    decode(view, at) {
      const value: Record<string, unknown> = {}
      for (const member of loud) value[member.name] = member.field.get(view, at + member.at, little)
      return value
    },
    encode(view, at, value) {
      for (const { name, field, at: offset } of members)
        field.put(view, at + offset, (value as Record<string, unknown>)[name], little)
    },
    Cursor,
  }
}

const mayGenerate = (() => {
  try {
    return new Function('return true')() as boolean
  } catch {
    return false
  }
})()
