// userfaultfd without a kernel: the structs are those of the header, sets of pages, what is filled at a fault, what a process says of its memory.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { parseMappings } from '../../src/userfault/handshake.js'
import { PageSet } from '../../src/userfault/page-set.js'
import { Readers, WIRE_BYTES } from '../../src/userfault/reader.js'
import * as wire from '../../src/wire/userfaultfd.js'
import { requires } from '../fixtures/requires.js'

const KiB = 1024
const MiB = 1024 * KiB
const GiB = 1024 * MiB

requires('cc').test('numbers and structs are those of the header', () => {
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-uffd-header-'))
  try {
    const names = ['API', 'REGISTER', 'UNREGISTER', 'WAKE', 'COPY', 'ZEROPAGE', 'POISON'].map(name => `UFFDIO_${name}`)
    const ours = wire as unknown as Record<string, number | undefined>
    const known = names.filter(name => ours[name] !== undefined)
    expect(known.length).toBeGreaterThan(5)
    // Headers of Debian 12 do not know POISON.
    writeFileSync(
      join(directory, 'print.c'),
      `#include <sys/ioctl.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <stdio.h>
int main(void) {
${known.map(name => `#ifdef ${name}\n  printf("${name} %lu\\n", (unsigned long)(unsigned)${name});\n#endif`).join('\n')}
  printf("message %zu\\n", sizeof(struct uffd_msg));
  printf("address %zu\\n", offsetof(struct uffd_msg, arg.pagefault.address));
  printf("copied %zu\\n", offsetof(struct uffdio_copy, copy));
}
`,
    )
    execFileSync('cc', ['-o', join(directory, 'print'), join(directory, 'print.c')])
    const lines = execFileSync(join(directory, 'print'), { encoding: 'utf8' }).trim().split('\n')
    const theirs = Object.fromEntries(lines.map(line => line.split(' ')).map(([name, value]) => [name, Number(value)]))
    const { message, address, copied, ...numbers } = theirs
    expect(Object.keys(numbers).length).toBeGreaterThan(4)
    for (const [name, number] of Object.entries(numbers)) expect([name, ours[name]]).toEqual([name, number])
    expect(message).toBe(wire.MESSAGE_BYTES)
    expect(address).toBe(wire.faultMessage.offsets.address)
    expect(copied).toBe(wire.uffdioCopy.offsets.copied)
    // _IOWR('f', 16, struct pm_scan_arg), which most headers do not have yet.
    expect(wire.PAGEMAP_SCAN).toBe(0xc0606610)
  } finally {
    rmSync(directory, { recursive: true })
  }
})

describe('PageSet', () => {
  test('is a set', () => {
    const range = fc.tuple(fc.nat(3_000), fc.nat(1_600)).map(([from, count]) => [from, from + count] as const)
    const change = fc.record({ isAdd: fc.boolean(), range })
    fc.assert(
      fc.property(fc.array(change, { maxLength: 20 }), range, (changes, [from, to]) => {
        const [set, model] = [new PageSet(), new Set<number>()]
        for (const { isAdd, range } of changes) {
          if (isAdd) set.add(...range)
          else set.delete(...range)
          for (let page = range[0]; page < range[1]; page++) {
            if (isAdd) model.add(page)
            else model.delete(page)
          }
        }
        const wrong = Array.from({ length: 4_700 }, (_, page) => page).filter(page => set.has(page) !== model.has(page))
        expect(wrong).toEqual([])
        if (from === to) return
        const end = set.runEnd(from, to)
        for (let page = from; page < end; page++) if (set.has(page) !== set.has(from)) wrong.push(page)
        expect(wrong).toEqual([])
        expect(end === to || set.has(end) !== set.has(from)).toBe(true)
      }),
      { numRuns: 60 },
    )
  })

  test('takes nothing for a terabyte of which nothing is in it', () => {
    const set = new PageSet()
    set.add(2 ** 28 - 1, 2 ** 28)
    set.delete(0, 2 ** 28)
    expect(set.has(2 ** 28 - 1)).toBe(false)
  })
})

describe('Readers', () => {
  test('whoever jumps about gets 16 KiB', () => {
    const readers = new Readers()
    for (const at of [5 * MiB + 4096, 900 * MiB, 12 * KiB])
      expect(readers.plan(at, GiB)).toEqual({ from: at - (at % (16 * KiB)), to: at - (at % (16 * KiB)) + 16 * KiB })
  })

  test('whoever goes on gets more, and then what is ahead', () => {
    const readers = new Readers()
    let at = 0
    const units: number[] = []
    for (let n = 0; n < 2; n++) {
      const { from, to, ahead } = readers.plan(at, GiB)
      units.push(to - from)
      expect(ahead).toBeUndefined()
      at = to
    }
    expect(units).toEqual([16 * KiB, 128 * KiB])
    const plan = readers.plan(at, GiB)
    expect(plan).toEqual({ from: at, to: at + MiB, ahead: { from: at + MiB, to: at + 64 * MiB } })
    // The next fault is at the first page that was left out.
    const next = readers.plan(WIRE_BYTES, GiB)
    expect(next).toEqual({
      ...{ from: WIRE_BYTES, to: WIRE_BYTES + MiB },
      ahead: { from: at + 64 * MiB, to: WIRE_BYTES + 64 * MiB },
    })
  })

  test('whoever goes back gets more, too', () => {
    const readers = new Readers()
    let start = 100 * MiB
    const units = Array.from({ length: 6 }, () => {
      const { from, to } = readers.plan(start - 4096, GiB)
      expect(to).toBe(start)
      start = from
      return to - from
    })
    expect(units).toEqual([16 * KiB, 128 * KiB, MiB, MiB, MiB, MiB])
  })

  test('whoever goes on in pieces that are read from their ends gets what is ahead', () => {
    const readers = new Readers()
    const there = new Set<number>()
    let faults = 0
    for (let piece = 0; piece < 64; piece++)
      for (let page = 255; page >= 0; page--) {
        const at = piece * MiB + page * 4096
        if (there.has(at)) continue
        faults++
        const { from, to, ahead } = readers.plan(at, GiB)
        expect(at >= from && at < to).toBe(true)
        for (let each = from; each < to; each += 4096) there.add(each)
        if (ahead) for (let each = ahead.from; each < ahead.to; each += 4096) if (each % WIRE_BYTES) there.add(each)
      }
    expect(faults).toBeLessThan(24)
  })

  test('two who take turns are told apart, and nothing is planned beyond the end', () => {
    const readers = new Readers()
    const places = [0, 600 * MiB]
    for (let n = 0; n < 6; n++)
      for (const [which, at] of places.entries()) {
        const { from, to, ahead } = readers.plan(at, GiB)
        expect(from).toBe(at)
        expect(ahead !== undefined).toBe(n >= 2)
        places[which] = ahead ? Math.floor(at / WIRE_BYTES + 1) * WIRE_BYTES : to
      }
    const end = GiB - 8 * KiB
    expect(readers.plan(end, GiB)).toEqual({ from: GiB - 16 * KiB, to: GiB })
  })
})

describe('what a process says of its memory', () => {
  const mapping = { base_host_virt_addr: 0x7f00_0000_0000, size: 4096, offset: 0, page_size: 4096 }
  const parse = (...mappings: unknown[]) => parseMappings(JSON.stringify(mappings), 10_000)

  test('is taken as it is', () => {
    const expected = { address: 0x7f00_0000_0000, length: 4096, at: 0, pageBytes: 4096 }
    expect(parse(mapping)).toEqual([expected])
    // What Firecracker called it before, and the short last page.
    const { page_size: _, ...older } = mapping
    expect(parse({ ...older, page_size_kib: 4096, offset: 8192 })).toEqual([{ ...expected, at: 8192 }])
    expect(parse({ ...older, size: 12_288 })).toEqual([{ ...expected, length: 12_288 }])
  })

  test.each<[string, object, RegExp]>([
    ['beyond the region', { size: 16_384 }, /mapping 0: 16384 bytes at 0 of a region of 10000$/],
    ['a negative offset', { offset: -4096 }, /mapping 0: offset is -4096, not a number from 0/],
    ['a fraction', { offset: 0.5 }, /offset is 0\.5/],
    ['text', { size: '4096' }, /size is "4096"/],
    ['nothing', { size: 0 }, /0 bytes at 0x7f0000000000 are no whole pages/],
    ['half a page', { size: 2048 }, /2048 bytes at 0x7f0000000000 are no whole pages of 4096/],
    ['beyond the address space', { base_host_virt_addr: 2 ** 48 }, /base_host_virt_addr is/],
    ['an address in a page', { base_host_virt_addr: 4097 }, /no whole pages/],
    ['pages of another size', { page_size: 5000 }, /pages of 5000 bytes/],
  ])('refuses %s', (_, wrong, message) => {
    expect(() => parse({ ...mapping, ...wrong })).toThrow(message)
  })

  test('refuses mappings over each other, none, too many, and what is no array', () => {
    expect(() => parse({ ...mapping, size: 8192 }, { ...mapping, base_host_virt_addr: 0x7f00_0000_1000 })).toThrow(
      /two mappings lie over each other at 0x7f0000001000/,
    )
    expect(() => parse()).toThrow(/an array of 1 to 1024 mappings/)
    expect(() => parse(...Array.from({ length: 1_025 }, () => mapping))).toThrow(/an array of 1 to 1024/)
    expect(() => parseMappings('{}', 1)).toThrow(/an array/)
    expect(() => parseMappings('nonsense', 1)).toThrow(/not JSON: "nonsense"/)
  })

  test('anything at all is taken, or refused in one line', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), text => {
        try {
          parseMappings(text, 10_000)
        } catch (error) {
          expect((error as { code: string }).code).toBe('PROTOCOL')
          expect((error as Error).message).not.toContain('\n')
        }
      }),
    )
  })
})
