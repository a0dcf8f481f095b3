// A file that is open and only grows waits for its end: until then the remote has it as the last batch did.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { start } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { eventually, placeForTest, sh } from '../fixtures/trees.js'

const { describe, test } = requires('built', 'fuse', 'python3')
const BATCHES_OFTEN = ['--flush-interval', '100ms']

/** Opens files, and does with them what it is told, a line each; answers each line. What it writes reaches the daemon at once. */
const WRITER = `
import ctypes, os, sys
libc = ctypes.CDLL(None)
files = {}
for line in sys.stdin:
    what, name, *rest = line.split()
    if what == 'open': files[name] = open(name, rest[0], buffering=0)
    elif what == 'write': files[name].write(rest[0].encode())
    elif what == 'overwrite': os.pwrite(files[name].fileno(), rest[0].encode(), 0)
    elif what == 'fsync': os.fsync(files[name].fileno())
    elif what == 'close': files.pop(name).close()
    if name in files: libc.sync_file_range(files[name].fileno(), ctypes.c_long(0), ctypes.c_long(0), 7)
    print('done', flush=True)
`

function writerIn(cwd: string) {
  const { child, out } = start('python3', ['-u', '-c', WRITER], { cwd })
  let told = 0
  return {
    async tell(...lines: string[]) {
      for (const line of lines) child.stdin.write(`${line}\n`)
      told += lines.length
      await eventually(`the writer is done with ${lines}`, () => out.stdout.split('done').length > told)
    },
    end: () => child.stdin.end(),
  }
}

const atRemote = (remote: string, name: string) => {
  const path = join(remote, name)
  return existsSync(path) ? readFileSync(path, 'utf8') : null
}

const appears = (remote: string, name: string, text: string) =>
  eventually(`${name} is at the remote`, () => atRemote(remote, name) === text)

describe('a file that is open and only grows', () => {
  test('is sent when it is closed, synced or overwritten, and not before', async () => {
    const place = await placeForTest()
    const { remote, mountpoint } = place
    const daemon = await place.mount(...BATCHES_OFTEN, '--max-delay', '1h')
    await sh('echo -n old > longer; echo -n old > replaced', { cwd: mountpoint })
    await daemon.sync()
    const writer = writerIn(mountpoint)
    const names = ['closed', 'fsynced', 'overwritten', 'synced']
    for (const name of names) await writer.tell(`open ${name} wb`, `write ${name} grows`)
    await writer.tell('open longer ab', 'write longer er', 'open replaced wb', 'write replaced new')
    // Two batches that leave them out.
    for (const name of ['first', 'second']) {
      await sh(`echo -n ${name} > ${name}`, { cwd: mountpoint })
      await appears(remote, name, name)
    }
    for (const name of names) expect(atRemote(remote, name)).toBe(null)
    expect(atRemote(remote, 'longer')).toBe('old')
    expect(atRemote(remote, 'replaced')).toBe('old')
    expect((await daemon.status()).lag.operations).toBeGreaterThan(0)

    await writer.tell('close closed')
    await appears(remote, 'closed', 'grows')
    await writer.tell('fsync fsynced')
    await appears(remote, 'fsynced', 'grows')
    // Within its last page, what was written before cannot be told from what comes after it.
    await writer.tell('overwrite overwritten GROWS')
    await sh('echo -n more > more', { cwd: mountpoint })
    await appears(remote, 'more', 'more')
    expect(atRemote(remote, 'overwritten')).toBe(null)
    const page = 'x'.repeat(4096)
    await writer.tell(`write overwritten ${page}`, 'overwrite overwritten first')
    await appears(remote, 'overwritten', `first${page}`)
    expect(atRemote(remote, 'synced')).toBe(null)
    expect(atRemote(remote, 'longer')).toBe('old')
    await daemon.sync()
    expect(atRemote(remote, 'synced')).toBe('grows')
    expect(atRemote(remote, 'longer')).toBe('older')
    expect(atRemote(remote, 'replaced')).toBe('new')
    // And after it the same again.
    await writer.tell('write synced -on')
    await sh('echo -n third > third', { cwd: mountpoint })
    await appears(remote, 'third', 'third')
    expect(atRemote(remote, 'synced')).toBe('grows')
    writer.end()
    await appears(remote, 'synced', 'grows-on')
  })

  test('is sent at the latest --max-delay after its first change', async () => {
    const place = await placeForTest()
    await place.mount(...BATCHES_OFTEN, '--max-delay', '700ms')
    const writer = writerIn(place.mountpoint)
    await writer.tell('open log ab', 'write log 1')
    expect(atRemote(place.remote, 'log')).toBe(null)
    await appears(place.remote, 'log', '1')
    await writer.tell('write log 2')
    await appears(place.remote, 'log', '12')
    writer.end()
  })

  test('is whole in the journal, whatever the remote has', async () => {
    const place = await placeForTest()
    const daemon = await place.mount(...BATCHES_OFTEN, '--max-delay', '1h')
    const writer = writerIn(place.mountpoint)
    await writer.tell('open log wb', 'write log grows')
    await sh('echo -n other > other', { cwd: place.mountpoint })
    await appears(place.remote, 'other', 'other')
    expect(atRemote(place.remote, 'log')).toBe(null)
    await daemon.kill()
    writer.end()
    await place.mount(...BATCHES_OFTEN)
    await appears(place.remote, 'log', 'grows')
  })
})
