// The tables against the truth: a C program, written from them, prints what the system's headers say.

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import * as structs from '../../src/wire/fuse/structs.js'
import * as fuse from '../../src/wire/fuse.js'
import type { Struct } from '../../src/wire/struct.js'

/**
 * What <linux/fuse.h> of 7.38 (Debian 12) does not have, written down from the header of Linux 6.18 (7.45): size of the struct, offsets of the fields.
 * An entry that the system's header does have is compared with it as well.
 */
const newer: Record<string, { size: number; offsets: Record<string, number> }> = {
  OpenOut: { size: 16, offsets: { backingId: 12 } },
  InitOut: { size: 64, offsets: { maxStackDepth: 36, requestTimeout: 40, unused: 42 } },
  SxTime: { size: 16, offsets: { tvSec: 0, tvNsec: 8, reserved: 12 } },
  Statx: {
    size: 256,
    offsets: {
      ...{ mask: 0, blksize: 4, attributes: 8, nlink: 16, uid: 20, gid: 24, mode: 28, spare0: 30, ino: 32, size: 40 },
      ...{ blocks: 48, attributesMask: 56, atime: 64, btime: 80, ctime: 96, mtime: 112 },
      ...{ rdevMajor: 128, rdevMinor: 132, devMajor: 136, devMinor: 140, spare2: 144 },
    },
  },
  StatxIn: { size: 24, offsets: { getattrFlags: 0, reserved: 4, fh: 8, sxFlags: 16, sxMask: 20 } },
  StatxOut: { size: 288, offsets: { attrValid: 0, attrValidNsec: 8, flags: 12, spare: 16, stat: 32 } },
  CopyFileRangeOut: { size: 8, offsets: { bytesCopied: 0 } },
  NotifyPruneOut: { size: 16, offsets: { count: 0, padding: 4, spare: 8 } },
  BackingMap: { size: 16, offsets: { fd: 0, flags: 4, padding: 8 } },
}
/** Constants that 7.38 does not have, from the same header. */
const newerConstants: Record<string, number> = {
  ...{ FUSE_CREATE_SUPP_GROUP: 1 << 2, FUSE_DIRECT_IO_ALLOW_MMAP: 1 << 4, FUSE_PASSTHROUGH: 1 << 5 },
  ...{ FUSE_NO_EXPORT_SUPPORT: 1 << 6, FUSE_HAS_RESEND: 1 << 7, FUSE_ALLOW_IDMAP: 1 << 8 },
  ...{ FUSE_OVER_IO_URING: 1 << 9, FUSE_REQUEST_TIMEOUT: 1 << 10, FOPEN_PASSTHROUGH: 1 << 7, FUSE_EXT_GROUPS: 32 },
  ...{ FUSE_STATX: 52, FUSE_COPY_FILE_RANGE_64: 53 },
  ...{ FUSE_NOTIFY_RESEND: 7, FUSE_NOTIFY_INC_EPOCH: 8, FUSE_NOTIFY_PRUNE: 9 },
  ...{ FUSE_DEV_IOC_BACKING_OPEN: 0x4010e501, FUSE_DEV_IOC_BACKING_CLOSE: 0x4004e502, FUSE_DEV_IOC_SYNC_INIT: 0xe503 },
}

const snake = (camel: string) => camel.replace(/(?<!^)[A-Z]/g, letter => `_${letter}`).toLowerCase()
const cStruct = (name: string) => `struct fuse_${snake(name)}`
/** Where our name is not the header's: the two halves of `unique`, and what the header hides with underscores. */
const cField = (field: string) => ({ uniqueLow: 'unique', uniqueHigh: 'unique' })[field] ?? snake(field)
const within = (field: string) => (field === 'uniqueHigh' ? 4 : 0)

const tables = Object.entries(structs).filter(([name]) => !['none', 'DevClone'].includes(name)) as unknown as [
  string,
  Struct,
][]

const prefixed = (prefix: string, family: Record<string, number>, skip: string[] = []) =>
  Object.entries(family)
    .filter(([name]) => !skip.includes(name))
    .map(([name, value]) => [prefix + name, value] as const)
const constants: (readonly [name: string, value: number])[] = [
  ['FUSE_KERNEL_VERSION', fuse.KERNEL_VERSION],
  ['FUSE_ROOT_ID', fuse.ROOT_ID],
  ['FUSE_MIN_READ_BUFFER', fuse.READ_BUFFER_BYTES_MIN],
  ['XATTR_NAME_MAX', fuse.XATTR_NAME_BYTES_MAX],
  ['PATH_MAX', fuse.NAME_BYTES_MAX + 1],
  ...prefixed('FUSE_', fuse.Opcode),
  ...prefixed('FUSE_', fuse.InitFlag, ['RESERVED']),
  ['FUSE_INIT_RESERVED', fuse.InitFlag.RESERVED],
  ...prefixed('FUSE_', fuse.InitFlag2),
  ...prefixed('FOPEN_', fuse.OpenOutFlag),
  ...prefixed('FATTR_', fuse.SetattrValid),
  ...prefixed('FUSE_GETATTR_', fuse.GetattrFlag),
  ...prefixed('FUSE_OPEN_', fuse.OpenInFlag),
  ...prefixed('FUSE_READ_', fuse.ReadFlag),
  ...prefixed('FUSE_WRITE_', fuse.WriteFlag),
  ...prefixed('FUSE_RELEASE_', fuse.ReleaseFlag),
  ...prefixed('FUSE_FSYNC_', fuse.FsyncFlag),
  ...prefixed('FUSE_LK_', fuse.LkFlag),
  ...prefixed('FUSE_ATTR_', fuse.AttrFlag),
  ...prefixed('FUSE_SETXATTR_', fuse.SetxattrFlag),
  ...prefixed('FUSE_POLL_', fuse.PollFlag),
  ...prefixed('FUSE_IOCTL_', fuse.IoctlFlag, ['BIT32']),
  ['FUSE_IOCTL_32BIT', fuse.IoctlFlag.BIT32],
  ...prefixed('FUSE_', fuse.InvalEntryFlag),
  ['FUSE_MAX_NR_SECCTX', fuse.ExtType.MAX_NR_SECCTX],
  ['FUSE_EXT_GROUPS', fuse.ExtType.GROUPS],
  ...prefixed('FUSE_NOTIFY_', fuse.NotifyCode),
  ...prefixed('FUSE_DEV_IOC_', fuse.DevIoctl),
  ...prefixed('O_', fuse.OpenFlag, ['EXEC']),
  ...prefixed('RENAME_', fuse.RenameFlag),
  ...prefixed('FALLOC_FL_', fuse.FallocateMode),
  ...prefixed('SEEK_', fuse.Whence),
  ...prefixed('XATTR_', fuse.XattrFlag),
  ...prefixed('', { R_OK: fuse.AccessMask.R, W_OK: fuse.AccessMask.W, X_OK: fuse.AccessMask.X }),
  ...prefixed('F_', fuse.LockType),
  ...prefixed('DT_', fuse.DirentType),
  ...prefixed('STATX_', fuse.StatxMask),
]
const inFlags2 = new Set(Object.keys(fuse.InitFlag2).map(name => `FUSE_${name}`))

const hasCompiler = spawnSync('cc', ['-fsyntax-only', '-xc', '-'], { input: '#include <linux/fuse.h>\n' }).status === 0
if (!hasCompiler && process.env.REQUIRE_ALL) throw new Error('no C compiler with <linux/fuse.h>')
const requiresCc = hasCompiler ? describe : describe.skip

const directory = mkdtempSync(join(tmpdir(), 'wire-offsets-'))
afterAll(() => rmSync(directory, { recursive: true }))

/** Each probe `name` -> C expression, as the compiler evaluates it; those of `uncertain` are left out if they do not compile. Throws if another does not. */
function evaluate(probes: Map<string, string>, uncertain: Set<string>): Map<string, number> {
  const source = (names: Iterable<string>) => `
    #define _GNU_SOURCE
    #include <dirent.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <linux/falloc.h>
    #include <linux/fuse.h>
    #include <linux/limits.h>
    #include <linux/xattr.h>
    #include <stddef.h>
    #include <stdio.h>
    #include <sys/ioctl.h>
    #include <sys/stat.h>
    #include <unistd.h>
    int main(void) {
      ${[...names].map(name => `printf("%s %llu\\n", "${name}", (unsigned long long)(${probes.get(name)}));`).join('\n')}
    }`
  let names = [...probes.keys()]
  const file = join(directory, 'probe.c')
  for (;;) {
    writeFileSync(file, source(names))
    const { status, stderr } = spawnSync('cc', ['-fmax-errors=0', '-o', join(directory, 'probe'), file], {
      encoding: 'utf8',
    })
    if (status === 0) break
    const lines = source(names).split('\n')
    const broken = new Set(
      [...stderr.matchAll(/probe\.c:(\d+):\d+: error/g)].map(
        ([, line]) => /"([^" ]+)", /.exec(lines[Number(line) - 1])?.[1],
      ),
    )
    const unexpected = [...broken].filter(name => name === undefined || !uncertain.has(name))
    if (unexpected.length > 0) throw new Error(`the header does not have ${unexpected.join(', ')}:\n${stderr}`)
    names = names.filter(name => !broken.has(name))
  }
  const output = execFileSync(join(directory, 'probe'), { encoding: 'utf8' })
  return new Map(
    output
      .trim()
      .split('\n')
      .map(line => [line.split(' ')[0], Number(line.split(' ')[1])]),
  )
}

requiresCc('as <linux/fuse.h> has it', () => {
  const probes = new Map<string, string>()
  const ours = new Map<string, number>()
  const uncertain = new Set<string>()
  const probe = (name: string, expression: string, value: number, mayBeMissing: boolean) => {
    probes.set(name, expression)
    ours.set(name, value)
    if (mayBeMissing) uncertain.add(name)
  }
  for (const [name, type] of tables) {
    const golden = newer[name]
    const wholly = golden !== undefined && Object.keys(golden.offsets).length === Object.keys(type.fields).length
    probe(name, `sizeof(${cStruct(name)})`, type.size, wholly)
    for (const field of Object.keys(type.fields)) {
      const member = field.startsWith('spare') && name === 'Statx' ? `__${field}` : cField(field)
      const mayBeMissing = golden?.offsets[field] !== undefined
      probe(
        `${name}.${field}`,
        `offsetof(${cStruct(name)}, ${member}) + ${within(field)}`,
        type.offsets[field],
        mayBeMissing,
      )
      if (member === 'unique' || (name === 'InitOut' && field === 'unused')) continue
      const size = `sizeof(((${cStruct(name)} *)0)->${member})`
      probe(`${name}.${field}:size`, size, type.fields[field].size, mayBeMissing)
    }
  }
  for (const [name, value] of constants) {
    probe(
      name,
      inFlags2.has(name) ? `${name} >> 32` : name.startsWith('FUSE_') ? `(unsigned)${name}` : name,
      value,
      name in newerConstants,
    )
  }
  // In 7.38 the reserved end of init_out begins where max_stack_depth is now.
  probes.delete('InitOut.unused')

  const theirs = evaluate(probes, uncertain)

  test('sizes, offsets and constants', () => {
    expect(Object.fromEntries(theirs)).toEqual(
      Object.fromEntries([...theirs.keys()].map(name => [name, ours.get(name)])),
    )
    expect(theirs.size).toBeGreaterThan(500)
  })
})

describe('what Debian 12 does not have yet, as Linux 6.18 has it', () => {
  const byName = new Map(tables)
  test.each(Object.entries(newer))('%s', (name, { size, offsets }) => {
    const type = byName.get(name)!
    expect({ size: type.size, offsets: { ...type.offsets, ...offsets } }).toEqual({ size, offsets: type.offsets })
  })
  test('constants', () => {
    const known = Object.fromEntries(constants)
    expect(Object.keys(newerConstants).map(name => [name, known[name]])).toEqual(Object.entries(newerConstants))
  })
})
