// The process that makes the kernel write its dirty pages: an ordinary program that uses the mount. See flusher.ts for why.
//
//   node flusher-main.js MOUNTPOINT DEVICE
//
// Lines in: `ID VERB NODEID`; lines out: `ID ok` or `ID CODE`. Ends with its input.
import { closeSync, constants, fstatSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs'
import { FerryError, toFerryError } from '../base/errors.js'
import { openInode, syncFileSystem, writePages } from '../linux/file-handle.js'

const [mountpoint, device] = process.argv.slice(2)

const verbs: Record<string, (fd: number) => void> = {
  /** Dirty pages and times. Takes the inode's lock. */
  fsync: fsyncSync,
  /** Dirty pages only, and no lock. */
  write: writePages,
  /** Opening was all: it makes the kernel drop what is out of date. */
  open: () => {},
  /** Dirty pages and times of every inode: that of the root stands for the mount. */
  all: syncFileSystem,
}

/** The mount is held only as long as one command takes, so that it can be unmounted. */
function perform(verb: string, nodeid: number) {
  const mount = openSync(mountpoint, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    if (fstatSync(mount).dev !== Number(device)) throw new FerryError('NOT_FOUND', { detail: 'the mount is elsewhere' })
    const fd = openInode(mount, nodeid, constants.O_RDONLY | constants.O_NONBLOCK)
    try {
      verbs[verb](fd)
    } finally {
      closeSync(fd)
    }
  } finally {
    closeSync(mount)
  }
}

const input = Buffer.alloc(65_536)
let rest = ''
for (;;) {
  const count = readSync(0, input)
  if (count === 0) break
  const lines = (rest + input.toString('latin1', 0, count)).split('\n')
  rest = lines.pop()!
  for (const line of lines) {
    const [id, verb, nodeid] = line.split(' ')
    let answer = 'ok'
    try {
      perform(verb, Number(nodeid))
    } catch (error) {
      answer = toFerryError(error).code
    }
    try {
      writeSync(1, `${id} ${answer}\n`)
    } catch {
      process.exit() // nobody wants to know any more
    }
  }
}
