// Generic netlink without a socket: messages as the kernel's headers have them, and nothing is read beyond its end.
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { isFerryError } from '../../src/base/errors.js'
import * as netlink from '../../src/wire/genetlink.js'

const bytes = (hex: string) => Buffer.from(hex.replaceAll(/\s/g, ''), 'hex')
const { NbdAttribute, NbdCommand, ControlAttribute, ControlCommand, MessageType } = netlink

describe('requests are those of linux/netlink.h, on a little-endian machine', () => {
  test.each<[name: string, request: Parameters<typeof netlink.genericMessage>[0], golden: string]>([
    [
      'which number the family has',
      {
        ...{ type: MessageType.CONTROL, sequence: 1, command: ControlCommand.GETFAMILY },
        attributes: [netlink.stringAttribute(ControlAttribute.FAMILY_NAME, netlink.NBD_FAMILY)],
      },
      '1c000000 1000 0500 01000000 00000000 03010000 0800 0200 6e626400',
    ],
    [
      'a device, of this size, on these sockets',
      {
        ...{ type: 0x1d, sequence: 7, command: NbdCommand.CONNECT },
        attributes: [
          netlink.u32Attribute(NbdAttribute.INDEX, 2),
          netlink.u64Attribute(NbdAttribute.SIZE_BYTES, 0x100000000),
          netlink.stringAttribute(NbdAttribute.BACKEND_IDENTIFIER, 'ours'),
          netlink.socketsAttribute([5, 6]),
        ],
      },
      `50000000 1d00 0500 07000000 00000000 01010000
       0800 0100 02000000
       0c00 0200 0000000001000000
       0900 0a00 6f75727300000000
       1c00 0700 0c00 0100 0800 0100 05000000 0c00 0100 0800 0100 06000000`,
    ],
  ])('%s', (_, request, golden) => {
    expect(Buffer.from(netlink.genericMessage(request)).toString('hex')).toBe(bytes(golden).toString('hex'))
  })
})

describe('what comes', () => {
  test('is answers and outcomes, several to a datagram', () => {
    const answer = '1c000000 1d00 0000 07000000 00000000 01000000 0800 0100 03000000'
    const done = '24000000 0200 0000 07000000 00000000 00000000 1c000000 1d000500 07000000 00000000'
    const refused = '24000000 0200 0000 08000000 00000000 f0ffffff 1c000000 1d000500 08000000 00000000'
    const received = netlink.readMessages(bytes(answer + done + refused))
    expect(received).toEqual([
      { sequence: 7, command: 1, attributes: new Map([[1, bytes('03000000')]]) },
      { sequence: 7, outcome: 0 },
      { sequence: 8, outcome: 16 },
    ])
    expect(netlink.numberIn((received[0] as { attributes: Map<number, Uint8Array> }).attributes, 1)).toBe(3)
    expect(() => netlink.numberIn(new Map(), 1)).toThrow(/no number in attribute 1/)
  })

  test('is an event of a device, or of nobody', () => {
    const event = Buffer.from('change@/devices/virtual/block/nbd0\0ACTION=change\0')
    expect(netlink.ueventIn(event)).toEqual({ action: 'change', path: '/devices/virtual/block/nbd0' })
    expect(netlink.ueventIn(Buffer.from('libudev\0\xfe\xed'))).toBeNull()
    expect(netlink.ueventIn(Buffer.alloc(0))).toBeNull()
  })

  test('is refused if it is cut or lies, and never read beyond its end', () => {
    const whole = netlink.genericMessage({
      ...{ type: 20, sequence: 1, command: 1 },
      attributes: [netlink.u32Attribute(1, 5), netlink.stringAttribute(10, 'name')],
    })
    const changed = fc.tuple(fc.nat(whole.length - 1), fc.nat(255), fc.nat(whole.length)).map(([at, byte, length]) => {
      const copy = Uint8Array.from(whole)
      copy[at] = byte
      return copy.subarray(0, length)
    })
    fc.assert(
      fc.property(fc.oneof(changed, fc.uint8Array({ maxLength: 200 })), datagram => {
        try {
          netlink.readMessages(datagram)
        } catch (error) {
          expect(isFerryError(error, 'PROTOCOL')).toBe(true)
        }
      }),
      { numRuns: 2000 },
    )
  })
})
