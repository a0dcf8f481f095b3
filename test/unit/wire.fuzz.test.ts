// Whatever arrives, parsing returns a request or throws FerryError PROTOCOL; what was composed is what is parsed. fast-check prints the seed of a failure.

import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { isFerryError } from '../../src/base/errors.js'
import * as fuse from '../../src/wire/fuse.js'
import { type Operation, ops, parseRequest } from '../../src/wire/fuse.js'
import { viewOf } from '../../src/wire/reader.js'
import { type Field, len64, pos64, type Struct, s32, s64, sec64, u8, u16, u32, u64 } from '../../src/wire/struct.js'
import { compose, relabel } from '../fixtures/fuse.frames.js'

const INPUTS_MIN = 100_000
let inputs = 0
let accepted = 0
fc.configureGlobal({ baseSize: 'xlarge' }) // arrays up to the length that is said, not up to some ten
const stackTraceLimit = Error.stackTraceLimit
beforeAll(() => {
  Error.stackTraceLimit = 0 // most of a hundred thousand refusals would be spent on their stacks
})
afterAll(() => {
  Error.stackTraceLimit = stackTraceLimit
})

/** The request, or undefined if it was refused; anything else that is thrown falls through. */
function parse(bytes: Uint8Array, dialect?: fuse.Dialect) {
  inputs++
  try {
    const request = parseRequest(bytes, bytes.length, dialect)
    accepted++
    return request
  } catch (error) {
    if (isFerryError(error, 'PROTOCOL')) return undefined
    throw error
  }
}

const safe = fc.oneof(fc.maxSafeNat(), fc.constantFrom(0, 1, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER))
const numbers = new Map<unknown, fc.Arbitrary<unknown>>([
  [u8, fc.nat(0xff)],
  [u16, fc.nat(0xffff)],
  [u32, fc.nat(0xffffffff)],
  [s32, fc.integer()],
  [u64, fc.bigInt(0n, 2n ** 64n - 1n)],
  [s64, fc.bigInt(-(2n ** 63n), 2n ** 63n - 1n)],
  [len64, safe],
  [pos64, safe],
  [sec64, fc.oneof(fc.integer(), fc.maxSafeInteger())],
])
const isStruct = (field: object): field is Struct => 'fields' in field
/** Any value of a struct; padding has none. */
function anyOf(type: Struct): fc.Arbitrary<Record<string, unknown>> {
  const entries = Object.entries<Field<unknown>>(type.fields).map(
    ([name, field]) => [name, isStruct(field) ? anyOf(field) : numbers.get(field)] as const,
  )
  return fc.record(
    Object.fromEntries(entries.filter(([, arbitrary]) => arbitrary !== undefined)) as Record<
      string,
      fc.Arbitrary<unknown>
    >,
  )
}

const byte = fc.integer({ min: 1, max: 255 })
const named = (lengthMax: number, except: string) =>
  fc
    .array(byte, { minLength: 1, maxLength: lengthMax })
    .map(codes => String.fromCharCode(...codes).replaceAll(except, '_'))
const component = named(40, '/')
const data = fc.uint8Array({ maxLength: 200 })

/** The arguments of an operation: what its row says, with the counts made true. */
function argsOf({ input, trail, name }: Operation): fc.Arbitrary<Record<string, unknown>> {
  const tails = Object.keys(trail).map(tail => {
    if (tail === 'data' || tail === 'value') return [tail, data] as const
    if (tail === 'forgets')
      return [tail, fc.array(anyOf(fuse.ForgetOne as unknown as Struct), { maxLength: 8 })] as const
    if (tail === 'mappings')
      return [tail, fc.array(anyOf(fuse.RemovemappingOne as unknown as Struct), { maxLength: 8 })] as const
    return [tail, tail === 'target' || name.includes('XATTR') ? named(60, '\0') : component] as const
  })
  return fc
    .tuple(anyOf(input), fc.record(Object.fromEntries(tails) as Record<string, fc.Arbitrary<unknown>>))
    .map(([fixed, trailing]) => {
      const args = { ...fixed, ...trailing } as Record<string, unknown>
      const counted = Object.values(trailing).find(tail => typeof tail !== 'string') as { length: number } | undefined
      const count = name === 'IOCTL' ? 'inSize' : 'count' in args ? 'count' : 'size'
      if (counted) args[count] = counted.length
      if (name === 'INIT') args.major = fuse.KERNEL_VERSION
      return args
    })
}

const header = fc.record({
  uniqueLow: fc.nat(0xffffffff),
  uniqueHigh: fc.nat(0xffffffff),
  nodeid: safe,
  uid: fc.nat(0xffffffff),
  gid: fc.nat(0xffffffff),
  pid: fc.nat(0xffffffff),
})
const extensions = fc.oneof(
  { weight: 4, arbitrary: fc.constant(new Uint8Array()) },
  {
    weight: 1,
    arbitrary: fc.array(fc.tuple(fc.nat(40), fc.nat(3)), { minLength: 1, maxLength: 3 }).map(list => {
      const parts = list.map(([type, words]) =>
        Buffer.concat([fuse.ExtHeader.toBytes({ size: 8 + words * 8, type }), new Uint8Array(words * 8)]),
      )
      return new Uint8Array(Buffer.concat(parts))
    }),
  },
)
const message = fc
  .constantFrom(...Object.values<Operation>(ops))
  .chain(operation => fc.record({ operation: fc.constant(operation), args: argsOf(operation), header, extensions }))

/** Where a shorter message is a message too: INIT of before 7.36. */
const INIT_SHORT = 56

describe('the parser', () => {
  test('returns what was composed, and refuses it when it is cut anywhere or continued', () => {
    fc.assert(
      fc.property(
        message,
        fc.uint8Array({ minLength: 1, maxLength: 9 }),
        ({ operation, args, header, extensions }, more) => {
          const bytes = compose(operation, args, header, extensions)
          const request = parse(bytes)
          expect(request).toEqual({
            op: operation.name,
            opcode: operation.code,
            ...header,
            args,
            extensions: expect.anything(),
          })
          expect(request?.extensions.reduce((sum, extension) => sum + 8 + extension.data.length, 0)).toBe(
            extensions.length,
          )
          for (let length = 0; length < bytes.length; length++) {
            if (parse(bytes.slice(0, length)) !== undefined)
              throw new Error(`cut at ${length}, with its old length, it was accepted`)
            const cut = parse(relabel(bytes.slice(0, length)))
            const legal = operation.name === 'INIT' && length === INIT_SHORT && extensions.length === 0
            if ((cut !== undefined) !== legal)
              throw new Error(`cut at ${length} it was ${cut ? 'accepted' : 'refused'}`)
          }
          const longer = Uint8Array.from([...bytes, ...more])
          if (parse(longer) || parse(relabel(longer))) throw new Error('continued, it was accepted')
        },
      ),
      { numRuns: 2000 },
    )
  })

  test('survives valid messages with some bytes changed', () => {
    const change = fc.record({ at: fc.nat(), to: fc.nat(255) })
    fc.assert(
      fc.property(
        message,
        fc.array(fc.array(change, { minLength: 1, maxLength: 6 }), { minLength: 30, maxLength: 30 }),
        fc.boolean(),
        (m, mutants, setxattrExt) => {
          const original = compose(m.operation, m.args, m.header, m.extensions)
          for (const changes of mutants) {
            const bytes = original.slice()
            for (const { at, to } of changes) bytes[at % bytes.length] = to
            parse(bytes, { setxattrExt })
            parse(relabel(bytes), { setxattrExt })
          }
        },
      ),
      { numRuns: 1000 },
    )
  })

  test('survives bytes of no origin behind a header that looks right', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(60), fc.nat(3), (bytes, opcode, extensionWords) => {
        parse(bytes)
        if (bytes.length < fuse.InHeader.size) return
        for (let code = opcode; code < opcode + 8; code++) {
          const view = viewOf(bytes)
          view.setUint32(fuse.InHeader.offsets.opcode, code, true)
          view.setUint32(fuse.InHeader.offsets.nodeid + 4, 0, true)
          view.setUint16(fuse.InHeader.offsets.totalExtlen, extensionWords, true)
          const request = parse(relabel(bytes))
          if (request === undefined) continue
          expect(request.opcode).toBe(code)
        }
      }),
      { numRuns: 4000 },
    )
  })

  test(`was given at least ${INPUTS_MIN} inputs`, () => {
    expect(inputs).toBeGreaterThanOrEqual(INPUTS_MIN)
    expect(accepted).toBeGreaterThan(INPUTS_MIN / 20) // or it was all noise
    expect(inputs - accepted).toBeGreaterThan(INPUTS_MIN / 2)
  })
})

test('every struct returns what was written', () => {
  const structs = Object.values(fuse).filter(
    type => typeof type === 'object' && 'cursor' in type,
  ) as unknown as Struct[]
  for (const type of structs) {
    fc.assert(
      fc.property(anyOf(type), fc.nat(9), (value, at) => {
        const view = new DataView(new ArrayBuffer(at + type.size))
        type.encode(view, at, value as never)
        expect(type.decode(view, at)).toEqual(value)
      }),
      { numRuns: 50 },
    )
  }
})
