// Who opens what the kernel reads by itself, and when that ends.
import { beforeEach, expect, test } from '@jest/globals'
import { FerryError } from '../../src/base/errors.js'
import { onLog } from '../../src/base/log.js'
import type { Backing, FileSystem, Ino } from '../../src/cache/filesystem.js'
import { Handles, PASSED } from '../../src/fs/handles.js'
import { Passthrough } from '../../src/fs/passthrough.js'

/** Files 1 to 9 have all bytes. */
class Files implements Backing {
  readonly noted = new Map<Ino, number>()
  readonly held: Ino[] = []
  isRefused = false
  begin(tryOut: (fd: number) => void) {
    tryOut(100)
  }
  hold(ino: Ino) {
    if (ino > 9) return null
    this.held.push(ino)
    return 100 + ino
  }
  release(ino: Ino) {
    this.held.splice(this.held.indexOf(ino), 1)
  }
  note(ino: Ino, id: number | null) {
    if (id === null) this.noted.delete(ino)
    else this.noted.set(ino, id)
  }
}

let backing: Files
let outlived: Set<Ino>
let opens: Map<Ino, number>
let kernel: Map<number, number>
let refusal: FerryError | null
const count = (ino: Ino, difference: number) => opens.set(ino, (opens.get(ino) ?? 0) + difference)

beforeEach(() => {
  backing = new Files()
  outlived = new Set()
  opens = new Map()
  kernel = new Map()
  refusal = null
})

function begin() {
  const fs = {
    isOutlived: (ino: Ino) => outlived.has(ino),
    opened: (ino: Ino) => count(ino, 1),
    released: (ino: Ino) => count(ino, -1),
  } as unknown as FileSystem
  const passthrough = new Passthrough(fs, backing, {
    open(fd) {
      if (refusal) throw refusal
      const id = fd * 10 + kernel.size
      kernel.set(id, fd)
      return id
    },
    close: id => void kernel.delete(id),
  })
  passthrough.begin(false)
  return { passthrough, handles: new Handles(fs, passthrough) }
}

test('every open of a file goes the same way, until nobody has it open', () => {
  const { passthrough, handles } = begin()
  expect([handles.open(1, 0), handles.open(1, 0), handles.open(10, 0)]).toEqual([PASSED, PASSED, 1])
  const id = passthrough.idOf(1)
  expect([kernel.get(id), backing.noted.get(1), backing.held]).toEqual([101, id, [1]])
  handles.release(1, PASSED)
  expect(kernel.size).toBe(1)
  handles.release(1, PASSED)
  expect([kernel.size, backing.noted.size, backing.held, opens.get(1)]).toEqual([0, 0, [], 0])
  // It became complete while somebody had it open.
  backing.hold = () => null
  expect(handles.open(2, 0)).toBe(1)
  delete (backing as Partial<Files>).hold
  expect(handles.open(2, 0)).toBe(1)
  handles.release(2, 1)
  handles.release(2, 1)
  expect(handles.open(2, 0)).toBe(PASSED)
})

test('what an earlier process has opened goes on, and ends when the kernel has forgotten the file', () => {
  backing.noted.set(3, 77)
  kernel.set(77, 103)
  for (const ino of [3, 4]) outlived.add(ino)
  const { passthrough, handles } = begin()
  expect([handles.open(3, 0), passthrough.idOf(3)]).toEqual([PASSED, 77])
  // How that one is open nobody knows.
  expect(handles.open(4, 0)).toBe(1)
  handles.release(3, PASSED)
  handles.release(3, PASSED)
  expect([kernel.has(77), backing.noted.get(3)]).toEqual([true, 77])
  outlived.clear()
  expect(handles.open(3, 0)).toBe(PASSED)
  expect([kernel.has(77), backing.held, passthrough.idOf(3) === backing.noted.get(3)]).toEqual([false, [3], true])
})

test('a kernel that refuses is asked no more, and everything is read through us', () => {
  refusal = new FerryError('NOT_PERMITTED')
  const said: string[] = []
  const end = onLog(({ level, message }) => said.push(`${level} ${message}`))
  const { handles } = begin()
  expect(handles.open(1, 0)).toBe(1)
  end()
  expect(said).toEqual(['info the kernel does not read complete files by itself'])
  // Later on: for one file.
  refusal = null
  const late = begin()
  refusal = new FerryError('NO_MEMORY' as never)
  expect(late.handles.open(5, 0)).toBe(1)
  expect(backing.held).toEqual([])
})
