// The session with a kernel that is a test: what it answers to noise, to bugs behind it, and how it treats buffers that it does not own.
import { constants } from 'node:fs'
import { beforeEach, describe, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { onLog } from '../../src/base/log.js'
import type { FileSystem } from '../../src/cache/filesystem.js'
import { errnoOf } from '../../src/fs/errno.js'
import { REQUEST_BYTES_MAX, Session, type SessionOptions } from '../../src/fs/session.js'
import { type Args, AttrOut, InitFlag, InitOut, OpenOut, type OpName, OutHeader, ops } from '../../src/wire/fuse.js'
import { viewOf } from '../../src/wire/reader.js'
import { compose, type Header } from '../fixtures/fuse.frames.js'
import { MemoryFileSystem } from '../fixtures/memfs.js'

interface Answered {
  unique: number
  errno: number
  payload: Uint8Array
}

/** A kernel end: one receive buffer that every request goes through, as the channel has it. */
class Kernel {
  readonly answers: Answered[] = []
  readonly notices: Uint8Array[] = []
  readonly session: Session
  buffer: Uint8Array = new Uint8Array(REQUEST_BYTES_MAX)
  exchanged = 0
  #unique = 2

  constructor(fs: FileSystem, options?: SessionOptions) {
    this.session = new Session(
      fs,
      {
        reply: (bytes, length) => {
          const header = OutHeader.decode(viewOf(bytes))
          if (header.len !== length) throw new Error('the length is wrong')
          const payload = Uint8Array.from(bytes.subarray(OutHeader.size, length))
          this.answers.push({ unique: header.uniqueLow, errno: Math.abs(header.error), payload })
        },
        notify: async message => void this.notices.push(message),
        exchange: fresh => {
          this.buffer = fresh
          this.exchanged++
        },
      },
      options,
    )
  }

  raw(message: Uint8Array) {
    this.buffer.fill(0xee)
    this.buffer.set(message)
    this.session.receive(this.buffer.subarray(0, message.length))
  }
  /** Sends a request; returns its unique. */
  send<N extends OpName>(name: N, args: Partial<Args<N>>, header: Header = {}): number {
    const unique = (this.#unique += 2)
    const zeros = Object.fromEntries(Object.keys(ops[name].input.fields).map(field => [field, 0]))
    this.raw(compose(ops[name], fill(zeros, args), { uniqueLow: unique, pid: process.pid, ...header }))
    return unique
  }
  answerTo(unique: number): Answered | undefined {
    return this.answers.find(each => each.unique === unique)
  }
  errno<N extends OpName>(name: N, args: Partial<Args<N>>, header: Header = {}): number | undefined {
    return this.answerTo(this.send(name, args, header))?.errno
  }
}

/** u64 fields are bigints. */
function fill(zeros: object, args: object): object {
  const bigints = ['lockOwner', 'flags', 'kh', 'owner', 'arg', 'moffset', 'len']
  const both: Record<string, unknown> = { ...zeros, ...args }
  for (const name of bigints) if (both[name] === 0 && name === 'lockOwner') both[name] = 0n
  return both
}

const turn = () => new Promise(resolve => setImmediate(resolve))

/** What Linux 6.18 says. */
const init = { major: 7, minor: 45, maxReadahead: 131_072, flags: 0x73fffffb, flags2: 0x5fd }

describe('a session', () => {
  let fs: MemoryFileSystem
  let kernel: Kernel
  beforeEach(() => {
    fs = new MemoryFileSystem()
    kernel = new Kernel(fs)
    kernel.send('INIT', init)
    kernel.answers.length = 0
  })

  const make = (name = 'f') => fs.make(1, name, { mode: 0o100644, uid: 0, gid: 0 }).ino

  test('settles what both sides know, and the writeback cache for writers only', () => {
    const flagsFor = (readOnly: boolean) => {
      const other = new Kernel(new MemoryFileSystem({ readOnly }))
      const { payload } = other.answerTo(other.send('INIT', init))!
      return InitOut.decode(viewOf(payload))
    }
    const { flags, maxWrite, maxPages, minor, timeGran } = flagsFor(false)
    expect({ maxWrite, maxPages, minor, timeGran }).toEqual({
      maxWrite: 1 << 20,
      maxPages: 256,
      minor: 45,
      timeGran: 1,
    })
    expect(flags & InitFlag.WRITEBACK_CACHE).toBeTruthy()
    expect(flags & (InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS | InitFlag.DONT_MASK | InitFlag.AUTO_INVAL_DATA)).toBe(
      0,
    )
    expect(flagsFor(true).flags & InitFlag.WRITEBACK_CACHE).toBe(0)
    const old = kernel.answerTo(kernel.send('INIT', { ...init, minor: 31, flags: InitFlag.ASYNC_READ, flags2: 0 }))!
    const settled = InitOut.decode(viewOf(old.payload))
    expect([settled.minor, settled.flags, settled.flags2]).toEqual([31, InitFlag.ASYNC_READ, 0])
  })

  test('answers noise with an error if it can be answered at all, and lives on', () => {
    kernel.raw(new Uint8Array(3))
    expect(kernel.answers.length).toBe(0)
    const message = compose(ops.LOOKUP, { name: 'x' }, { uniqueLow: 77 })
    kernel.raw(message.subarray(0, 41)) // cut short: the header says more
    expect(kernel.answerTo(77)?.errno).toBe(5)
    const unknown = compose({ ...ops.LOOKUP, code: 4000 } as never, { name: 'x' }, { uniqueLow: 78 })
    kernel.raw(unknown)
    expect(kernel.answerTo(78)?.errno).toBe(38)
    expect(kernel.errno('GETATTR', {})).toBe(0)
  })

  test('says of every operation that is absent that it is, so that the kernel helps itself', () => {
    const absent: OpName[] = ['FLUSH', 'ACCESS', 'OPENDIR', 'TMPFILE', 'POLL', 'BMAP', 'GETLK', 'SETLK', 'SETLKW']
    for (const name of absent) {
      const args = name === 'TMPFILE' ? { name: '/' } : {}
      const given = name.includes('LK') ? { owner: 0n, lk: { start: 0n, end: 0n, type: 0, pid: 0 } } : args
      const more = name === 'POLL' ? { kh: 0n } : given
      expect([name, kernel.errno(name, more as never)]).toEqual([name, 38])
    }
    expect(kernel.errno('IOCTL', { arg: 0n, data: new Uint8Array(0) })).toBe(25)
  })

  test('a bug behind it is one EIO and a line in the log, not the end', async () => {
    const lines: string[] = []
    const stop = onLog(({ message, fields }) => lines.push(`${message} ${fields.op}`))
    fs.attributes = () => {
      throw new TypeError('a bug')
    }
    expect(kernel.errno('GETATTR', {})).toBe(5)
    fs.attributes = (() => Promise.reject(new TypeError('another'))) as never
    const unique = kernel.send('GETATTR', {})
    await turn()
    expect(kernel.answerTo(unique)?.errno).toBe(5)
    stop()
    expect(lines).toEqual(['a request failed unexpectedly GETATTR', 'a request failed unexpectedly GETATTR'])
  })

  test('every code has an errno, and those of xattrs and seeks are their own', () => {
    expect(errnoOf(new FerryError('CORRUPT'))).toBe(5)
    expect(errnoOf(new FerryError('NO_SPACE'))).toBe(28)
    expect(errnoOf(new Error('x'))).toBeUndefined()
    const ino = make()
    fs.setXattr = () => {
      throw new FerryError('TOO_LARGE')
    }
    expect(
      kernel.errno('SETXATTR', { size: 1, name: 'user.a', value: new Uint8Array(1) } as never, { nodeid: ino }),
    ).toBe(7)
    expect(kernel.errno('LSEEK', { offset: 10, whence: 3 }, { nodeid: ino })).toBe(6)
    expect(kernel.errno('LSEEK', { offset: 0, whence: 1 }, { nodeid: ino })).toBe(22)
    expect(kernel.errno('RENAME2', { newdir: 1, flags: 6, name: 'a', newName: 'b' })).toBe(22)
    expect(kernel.errno('FALLOCATE', { mode: 8 }, { nodeid: ino })).toBe(95)
  })

  test('a read that waits keeps its own buffer, whatever is answered meanwhile', async () => {
    const inos = [make('a'), make('b')]
    const waits: (() => void)[] = []
    fs.read = ((ino: number, _at: number, into: Uint8Array) => {
      into.fill(1) // it may begin at once
      return new Promise<number>(resolve =>
        waits.push(() => {
          into.fill(ino)
          resolve(into.length)
        }),
      )
    }) as never
    const uniques = inos.map(nodeid => kernel.send('READ', { offset: 0, size: 100 }, { nodeid }))
    kernel.send('GETATTR', {})
    kernel.send('STATFS', {})
    for (const wait of waits.reverse()) wait()
    await turn()
    for (const [i, unique] of uniques.entries())
      expect(kernel.answerTo(unique)?.payload).toEqual(new Uint8Array(100).fill(inos[i]))
    expect(kernel.session.waiting).toBe(0)
  })

  test('a write that waits keeps the message it came in; others come in another buffer', async () => {
    const ino = make()
    const seen: string[] = []
    const waits: (() => void)[] = []
    fs.write = ((_ino: number, _at: number, from: Uint8Array) =>
      new Promise<void>(resolve =>
        waits.push(() => {
          seen.push(Buffer.from(from).toString())
          resolve()
        }),
      )) as never
    const texts = ['first', 'second', 'third']
    const uniques = texts.map(text =>
      kernel.send('WRITE', { offset: 0, size: text.length, data: Buffer.from(text) }, { nodeid: ino }),
    )
    expect(kernel.exchanged).toBe(3)
    kernel.send('LOOKUP', { name: 'noise in the buffer' })
    for (const wait of waits) wait()
    await turn()
    expect(seen).toEqual(texts)
    expect(uniques.map(unique => kernel.answerTo(unique)?.errno)).toEqual([0, 0, 0])
    kernel.send('WRITE', { offset: 0, size: 1, data: Buffer.from('x') }, { nodeid: ino })
    expect(kernel.exchanged).toBe(4)
  })

  test('a write that is done at once needs no other buffer', () => {
    const ino = make()
    for (let i = 0; i < 10; i++) kernel.send('WRITE', { offset: i, size: 1, data: Buffer.from('x') }, { nodeid: ino })
    expect(kernel.exchanged).toBe(0)
    expect(fs.attributes(ino).size).toBe(10)
  })

  test('nobody is remembered who did not fit into the listing', () => {
    for (let i = 0; i < 50; i++) make(`name${i}`)
    const { payload } = kernel.answerTo(kernel.send('READDIRPLUS', { offset: 0, size: 1000 }))!
    expect(payload.length).toBeLessThanOrEqual(1000)
    const remembered = Array.from({ length: 50 }, (_, i) => fs.references(fs.lookup(1, `name${i}`)!.ino))
    // '.' and '..' take 152 bytes each, without a count.
    expect(remembered.reduce((sum, count) => sum + count)).toBe(Math.floor((1000 - 2 * 160) / 160))
    expect(fs.references(1)).toBe(0)
  })

  test('lookups and forgets balance', () => {
    const ino = make()
    for (let i = 0; i < 3; i++) kernel.send('LOOKUP', { name: 'f' })
    kernel.send('LOOKUP', { name: '.' }, { nodeid: ino })
    expect(fs.references(ino)).toBe(4)
    kernel.send('FORGET', { nlookup: 1 }, { nodeid: ino })
    kernel.send('BATCH_FORGET', { count: 1, forgets: [{ nodeid: ino, nlookup: 3 }] } as never)
    expect(fs.references(ino)).toBe(0)
    expect(kernel.answers.length).toBe(4)
  })

  describe('pages stay with the kernel', () => {
    const open = (ino: number) => {
      const { payload } = kernel.answerTo(kernel.send('OPEN', { flags: 0 }, { nodeid: ino }))!
      const { fh, openFlags } = OpenOut.decode(viewOf(payload))
      return { fh, keeps: (openFlags & 2) !== 0 }
    }
    const close = (ino: number, fh: number) => kernel.send('RELEASE', { fh }, { nodeid: ino })
    const read = (ino: number, fh: number) => kernel.send('READ', { fh, size: 1 }, { nodeid: ino })

    test('but for the opens after the engine said otherwise, until one of them is through', async () => {
      const ino = make()
      expect(open(ino).keeps).toBe(true)
      fs.kernel.invalidateInode(ino)
      const [first, second] = [open(ino), open(ino)]
      expect([first.keeps, second.keeps]).toEqual([false, false])
      read(ino, second.fh)
      expect(open(ino).keeps).toBe(true)
      await turn()
      await turn()
      expect(kernel.notices.length).toBeGreaterThan(0)
    })

    test('one that is through says nothing of what changed after it was opened', () => {
      const ino = make()
      fs.kernel.invalidateInode(ino)
      const before = open(ino)
      fs.kernel.invalidateInode(ino)
      read(ino, before.fh)
      close(ino, before.fh)
      const after = open(ino)
      expect(after.keeps).toBe(false)
      close(ino, after.fh)
      expect(open(ino).keeps).toBe(true)
    })

    test('but for what is written past them', async () => {
      const ino = make()
      const writer = open(ino)
      const data = Buffer.from('x')
      const write = (flags: number, writeFlags = 0) =>
        kernel.send('WRITE', { fh: writer.fh, flags, writeFlags, size: 1, data }, { nodeid: ino })
      write(0)
      write(constants.O_DIRECT, 1)
      expect(open(ino).keeps).toBe(true)
      await turn()
      expect(kernel.notices).toEqual([])
      // Others have it open: they are told, and again when they have read since.
      for (const [reads, told] of [
        [false, true],
        [false, false],
        [true, true],
      ]) {
        if (reads) read(ino, open(ino).fh)
        kernel.notices.length = 0
        write(constants.O_DIRECT)
        expect(open(ino).keeps).toBe(false)
        for (let n = 0; n < 5; n++) await turn()
        expect(kernel.notices.length > 0).toBe(told)
      }
    })
  })

  test('other owners are shown of whatever object the engine keeps', () => {
    class Live {
      readonly ino = 1
      mode = 0o40777
      uid = 0
      gid = 0
      rdev = 0
      nlink = 2
      size = 10
      blksize = 4096
      atimeNs = 0n
      mtimeNs = 0n
      ctimeNs = 0n
      get blocks() {
        return 8
      }
    }
    fs.attributes = () => new Live()
    const shown = new Kernel(fs, { uid: 7, umask: 0o022 })
    const { attr } = AttrOut.decode(viewOf(shown.answerTo(shown.send('GETATTR', {}))!.payload))
    expect([attr.uid, attr.gid, attr.mode, attr.blocks, attr.size]).toEqual([7, 0, 0o40755, 8, 10])
  })

  test('a handle says how it was opened, so that whoever comes later can release it', () => {
    const ino = make()
    const open = (flags: number) =>
      OpenOut.decode(viewOf(kernel.answerTo(kernel.send('OPEN', { flags }, { nodeid: ino }))!.payload)).fh
    const [reader, writer] = [open(0), open(2)]
    expect(fs.opens.get(ino)).toEqual({ readers: 1, writers: 1 })
    expect(open(2)).toBe(writer)
    kernel.send('RELEASE', { fh: writer }, { nodeid: ino })
    kernel.send('RELEASE', { fh: writer }, { nodeid: ino })
    expect(fs.opens.get(ino)).toEqual({ readers: 1, writers: 0 })
    kernel.send('RELEASE', { fh: reader }, { nodeid: ino })
    expect(fs.opens.size).toBe(0)
  })

  test('an answer that comes after the end is nobody’s', async () => {
    let finish!: (value: null) => void
    fs.lookup = (() => new Promise<null>(resolve => (finish = resolve))) as never
    kernel.send('LOOKUP', { name: 'x' })
    kernel.session.close()
    finish(null)
    await turn()
    expect(kernel.answers).toEqual([])
  })

  test('what is delivered again is answered with what came of it; with the first new request nothing is delivered again', async () => {
    const ino = make('made')
    const done = new Map([[100, ino]])
    const kept: number[][] = []
    const forgotten: number[] = []
    let finish!: () => void
    Object.assign(fs, {
      outcome: (request: number) => done.get(request),
      forgetOutcome: (request: number) => forgotten.push(request),
      keepOutcomes: (requests: Set<number>) => kept.push([...requests]),
      removeDirectory: () => new Promise<void>(resolve => (finish = resolve)),
    })
    const next = new Kernel(fs)
    const zeros = Object.fromEntries(Object.keys(ops.INIT.input.fields).map(field => [field, 0]))
    next.session.resume(compose(ops.INIT, { ...zeros, ...init }))
    const again = (uniqueLow: number): Header => ({ uniqueLow, uniqueHigh: 2 ** 31 })
    next.raw(compose(ops.MKDIR, { name: 'made', mode: 0o755, umask: 0 }, again(100)))
    next.raw(compose(ops.MKDIR, { name: 'other', mode: 0o755, umask: 0 }, again(102)))
    next.raw(compose(ops.RMDIR, { name: 'made' }, again(104)))
    next.raw(compose(ops.FORGET, { nlookup: 1 }, { nodeid: ino, uniqueLow: 106 }))
    expect(next.answers.map(({ unique, errno }) => [unique, errno])).toEqual([
      [100, 0],
      [102, 0],
    ])
    expect([forgotten, kept]).toEqual([[100, 102], []])
    next.errno('LOOKUP', { name: 'other' })
    next.errno('LOOKUP', { name: 'other' })
    expect(kept).toEqual([[104]])
    finish()
    await turn()
    expect(forgotten).toEqual([100, 102, 104])
  })
})
