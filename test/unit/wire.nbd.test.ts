// The NBD protocol without a socket: frames as the specification has them, streams cut anywhere, and what a server agrees to.
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { isFerryError } from '../../src/base/errors.js'
import * as nbd from '../../src/wire/nbd.js'
import { viewOf } from '../../src/wire/reader.js'

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const asked = { cookieHigh: 0x01020304, cookieLow: 0x05060708, offsetHigh: 1, offsetLow: 0x1000 }

describe('frames are those of doc/proto.md', () => {
  test.each<[name: string, bytes: () => Uint8Array, golden: string]>([
    [
      'the greeting',
      () => nbd.Greeting.toBytes({ magic: nbd.SERVER_MAGIC, optionMagic: nbd.OPTION_MAGIC, flags: 3 }),
      '4e42444d41474943 49484156454f5054 0003',
    ],
    [
      'GO for "disk", with its block size',
      () => nbd.option(nbd.Option.GO, nbd.infoRequest('disk', [nbd.Info.BLOCK_SIZE])),
      '49484156454f5054 00000007 0000000c 00000004 6469736b 0001 0003',
    ],
    [
      'SET_META_CONTEXT',
      () => nbd.option(nbd.Option.SET_META_CONTEXT, nbd.contextRequest('', ['base:allocation'])),
      `49484156454f5054 0000000a 0000001b 00000000 00000001 0000000f ${hex(Buffer.from('base:allocation'))}`,
    ],
    [
      'a reply to an option',
      () => nbd.optionReply(nbd.Option.GO, nbd.OptionReply.ERR_UNKNOWN, Buffer.from('no')),
      '0003e889045565a9 00000007 80000006 00000002 6e6f',
    ],
    [
      'a simple reply',
      () => nbd.failed('simple', asked, nbd.NbdError.EIO, 'text'),
      '67446698 00000005 0102030405060708',
    ],
    [
      'a structured reply with data',
      () => {
        const { bytes, into } = nbd.data('structured', asked, 0x100001000, 2)
        into.set([0xaa, 0xbb])
        return bytes
      },
      '668e33ef 0001 0001 0102030405060708 0000000a 0000000100001000 aabb',
    ],
    [
      'a structured error',
      () => nbd.failed('structured', asked, nbd.NbdError.ENOSPC, 'full'),
      '668e33ef 0001 8001 0102030405060708 0000000a 0000001c 0004 66756c6c',
    ],
    [
      'a structured block status',
      () => nbd.blockStatus('structured', asked, 1, [{ length: 4096, flags: 3 }]),
      '668e33ef 0001 0005 0102030405060708 0000000c 00000001 00001000 00000003',
    ],
    [
      'an extended reply that says nothing but that it is done',
      () => nbd.done('extended', asked),
      '6e8a278c 0001 0000 0102030405060708 0000000100001000 0000000000000000',
    ],
    [
      'an extended block status',
      () => nbd.blockStatus('extended', asked, 1, [{ length: 2 ** 33, flags: 3 }]),
      '6e8a278c 0001 0006 0102030405060708 0000000100001000 0000000000000018 00000001 00000001 0000000200000000 0000000000000003',
    ],
  ])('%s', (_, bytes, golden) => {
    expect(hex(bytes())).toBe(golden.replaceAll(' ', ''))
  })

  test('an extended request', () => {
    const golden = '21e41c71 0020 0001 0102030405060708 0000000100001000 0000000200000000'.replaceAll(' ', '')
    expect(nbd.ExtendedRequest.decode(viewOf(Buffer.from(golden, 'hex')))).toEqual({
      ...{ magic: nbd.EXTENDED_REQUEST_MAGIC, flags: nbd.CommandFlag.PAYLOAD_LEN, type: nbd.Command.WRITE },
      ...asked,
      length: 2 ** 33,
    })
  })
})

describe('a stream', () => {
  test('may be cut anywhere, and stopped anywhere', () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.uint8Array({ maxLength: 40 })), { maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 40 }),
        fc.infiniteStream(fc.boolean()),
        (wanted, cuts, stops) => {
          const total = wanted.reduce<number>((sum, one) => sum + (typeof one === 'number' ? one : one.length), 0)
          const stream = Uint8Array.from({ length: total }, (_, n) => n % 251)
          const got: number[] = []
          function* talk(): nbd.Conversation {
            for (const one of wanted) {
              if (stops.next().value) yield nbd.STOP
              const given = yield typeof one === 'number' ? one : new Uint8Array(one.length)
              got.push(...given)
            }
          }
          const intake = new nbd.Intake(talk())
          for (let at = 0, n = 0; at < stream.length; n++) {
            if (intake.isStopped && n % 2) intake.resume()
            const { place } = intake
            const next = stream.subarray(at, at + cuts[n % cuts.length])
            if (place && n % 3 === 0) {
              const part = next.subarray(0, place.length)
              place.set(part)
              intake.filled(part.length)
              at += part.length
            } else {
              intake.feed(next)
              at += next.length
            }
          }
          while (intake.isStopped) intake.resume()
          expect(got).toEqual([...stream])
          expect(intake.result).not.toBeNull()
        },
      ),
      { numRuns: 500 },
    )
  })
})

describe('a handshake', () => {
  const details: nbd.ExportDetails[] = ['disk', 'other'].map((name, n) => ({
    name,
    description: `number ${n}`,
    size: 2 ** 40 + n,
    flags: nbd.TransmissionFlag.HAS_FLAGS,
    blockSize: { minimum: 1, preferred: 65536, maximum: 2 ** 25 },
  }))

  function shake(tls: nbd.HandshakeServer['tls'] = 'none') {
    const sent: Buffer[] = []
    let tlsStarts = 0
    const server: nbd.HandshakeServer = {
      ...{ exports: details, tls },
      send: bytes => sent.push(Buffer.from(bytes)),
      startTls: () => tlsStarts++,
    }
    const intake = new nbd.Intake(nbd.serveHandshake(server))
    intake.feed(nbd.ClientFlags.toBytes({ flags: 3 }))
    sent.length = 0
    return {
      intake,
      get tlsStarts() {
        return tlsStarts
      },
      /** @returns the types of the replies to it */
      ask(option: number, data?: Uint8Array): number[] {
        sent.length = 0
        intake.feed(nbd.option(option, data))
        return sent.map(bytes => nbd.OptionReplyHeader.decode(viewOf(bytes)).type)
      },
      sent,
    }
  }
  const { Option, OptionReply: Reply } = nbd
  const go = (name: string, wanted: number[] = []) => nbd.infoRequest(name, wanted)

  test('tells of every export, and of one all that is asked for', () => {
    const client = shake()
    expect(client.ask(Option.LIST)).toEqual([Reply.SERVER, Reply.SERVER, Reply.ACK])
    expect(client.ask(Option.INFO, go('other', [1, 2, 3, 99]))).toEqual([...Array(4).fill(Reply.INFO), Reply.ACK])
    expect(client.ask(Option.INFO, go('nobody'))).toEqual([Reply.ERR_UNKNOWN])
    expect(client.intake.result).toBeNull()
  })

  test('ends with GO, with the style that was agreed; the export without a name is the first one', () => {
    const client = shake()
    expect(client.ask(Option.STRUCTURED_REPLY)).toEqual([Reply.ACK])
    const contexts = nbd.contextRequest('disk', ['qemu:dirty-bitmap:x', 'base:allocation'])
    expect(client.ask(Option.SET_META_CONTEXT, contexts)).toEqual([Reply.META_CONTEXT, Reply.ACK])
    client.ask(Option.GO, go(''))
    expect(client.intake.result?.value).toMatchObject({
      details: { name: 'disk', flags: nbd.TransmissionFlag.HAS_FLAGS | nbd.TransmissionFlag.SEND_DF },
      style: 'structured',
      contextId: 1,
    })
  })

  test('forgets contexts of another export', () => {
    const client = shake()
    client.ask(Option.STRUCTURED_REPLY)
    client.ask(Option.SET_META_CONTEXT, nbd.contextRequest('disk', ['base:allocation']))
    client.ask(Option.GO, go('other'))
    expect(client.intake.result?.value).toMatchObject({ contextId: null })
  })

  test('takes extended headers before structured replies, and then no longer the latter', () => {
    const client = shake()
    expect(client.ask(Option.EXTENDED_HEADERS)).toEqual([Reply.ACK])
    expect(client.ask(Option.STRUCTURED_REPLY)).toEqual([Reply.ERR_EXT_HEADER_REQD])
    client.ask(Option.GO, go('disk'))
    expect(client.intake.result?.value).toMatchObject({ style: 'extended' })
  })

  test('refuses what it does not know or cannot read, and goes on', () => {
    const client = shake()
    expect(client.ask(12345, Buffer.alloc(60_000))).toEqual([Reply.ERR_UNSUP])
    expect(client.ask(Option.GO, Buffer.from([0, 0, 0, 200]))).toEqual([Reply.ERR_INVALID])
    expect(client.ask(Option.LIST, Buffer.alloc(1))).toEqual([Reply.ERR_INVALID])
    expect(client.ask(Option.SET_META_CONTEXT, nbd.contextRequest('disk', ['base:allocation']))).toEqual([
      Reply.ERR_INVALID,
    ])
    expect(client.ask(Option.STARTTLS)).toEqual([Reply.ERR_POLICY])
    expect(client.ask(Option.LIST)).toHaveLength(3)
  })

  test('where TLS is needed, nothing is told before it, and nothing from before it counts', () => {
    const client = shake('required')
    expect(client.ask(Option.LIST)).toEqual([Reply.ERR_TLS_REQD])
    expect(client.ask(Option.STRUCTURED_REPLY)).toEqual([Reply.ERR_TLS_REQD])
    expect(() => shake('required').ask(Option.EXPORT_NAME, Buffer.from('disk'))).toThrow(/not for this client/)
    expect(client.ask(Option.STARTTLS)).toEqual([Reply.ACK])
    expect([client.tlsStarts, client.intake.isStopped]).toEqual([1, true])
    client.intake.resume()
    expect(client.ask(Option.STARTTLS)).toEqual([Reply.ERR_INVALID])
    client.ask(Option.GO, go('disk'))
    expect(client.intake.result?.value).toMatchObject({ style: 'simple' })

    const offered = shake('offered')
    offered.ask(Option.STRUCTURED_REPLY)
    offered.ask(Option.STARTTLS)
    offered.intake.resume()
    offered.ask(Option.GO, go('disk'))
    expect(offered.intake.result?.value).toMatchObject({ style: 'simple' })
  })

  test('EXPORT_NAME is answered with 124 zeros unless both can do without', () => {
    const sent: Buffer[] = []
    const send = (bytes: Uint8Array) => sent.push(Buffer.from(bytes))
    const server = { exports: details, tls: 'none' as const, send, startTls: () => {} }
    for (const [flags, length] of [
      [1, 10 + 124],
      [3, 10],
    ]) {
      const intake = new nbd.Intake(nbd.serveHandshake(server))
      sent.length = 0
      intake.feed(nbd.ClientFlags.toBytes({ flags }))
      intake.feed(nbd.option(Option.EXPORT_NAME, Buffer.from('other')))
      expect(Buffer.concat(sent)).toHaveLength(length)
      expect(intake.result?.value).toMatchObject({ details: { name: 'other' }, style: 'simple' })
    }
  })

  test('whatever comes, it is refused, or the connection is to be closed', () => {
    const { numRuns } = { numRuns: 2_000 }
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(
            fc.record({ option: fc.integer({ min: 0, max: 13 }), data: fc.uint8Array({ maxLength: 80 }) }),
            fc.record({ option: fc.constantFrom(6, 7), data: fc.string({ maxLength: 8 }).map(name => go(name, [3])) }),
            fc.uint8Array({ maxLength: 60 }),
          ),
          { maxLength: 12 },
        ),
        fc.constantFrom('none' as const, 'offered' as const, 'required' as const),
        (inputs, tls) => {
          const client = shake(tls)
          try {
            for (const input of inputs) {
              client.intake.feed(input instanceof Uint8Array ? input : nbd.option(input.option, input.data))
              if (client.intake.isStopped) client.intake.resume()
            }
          } catch (error) {
            if (!isFerryError(error, 'PROTOCOL')) throw error
          }
        },
      ),
      { numRuns },
    )
  })
})
