// Waiting programs: those that are killed let go at once, the others never see EINTR; and a daemon that is killed takes nobody with it.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { open, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, expect } from '@jest/globals'
import { mountMemory, run, settled, type TestMount } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root', 'python3')

let mount: TestMount
const at = (name: string) => join(mount.path, name)

const ended = (child: ChildProcess) =>
  new Promise<string>(resolve => child.on('exit', (code, signal) => resolve(`${signal ?? code}`)))

/** Resolves when so many requests wait for the file system. */
const waitingFor = async (count: number) => {
  const { waiting } = await settled(
    () => mount.status(),
    status => status.waiting === count,
  )
  expect(waiting).toBe(count)
}

describe('requests that wait', () => {
  beforeEach(async () => {
    mount = await mountMemory({ delays: {} })
    await writeFile(at('f'), Buffer.alloc(100_000, 'f'))
    await run('sh', ['-c', 'echo 3 > /proc/sys/vm/drop_caches'])
  })
  afterEach(async () => {
    await mount.call({ do: 'delay', delays: {} })
    await mount.end()
  })

  const readDirectly = `
import mmap, os, sys
fd = os.open(sys.argv[1] + '/f', os.O_RDONLY | os.O_DIRECT)
b = mmap.mmap(-1, 65536)
n = os.preadv(fd, [b], 0)
print(n, b[:1])
`

  test.each([
    ['a direct read', ['python3', '-c', readDirectly], 'read'],
    ['a buffered read', ['cat', 'f'], 'read'],
    ['a lookup', ['ls', 'unknown'], 'lookup'],
    ['a listing', ['ls', '.'], 'entries'],
  ] as const)('%s ends when its program is killed', async (_name, [program, ...args], method) => {
    await mount.call({ do: 'delay', delays: { [method]: null } })
    const child = spawn(program, [...args, mount.path], { cwd: mount.path, stdio: 'ignore' })
    const over = ended(child)
    await waitingFor(1)
    child.kill('SIGKILL')
    expect(await Promise.race([over, sleep(3000, 'still there')])).toBe('SIGKILL')
    await mount.call({ do: 'delay', delays: {} })
    expect((await readFile(at('f'))).length).toBe(100_000)
  })

  test('a program that is terminated, and does not catch it, lets go as well', async () => {
    await mount.call({ do: 'delay', delays: { read: null } })
    const child = spawn('python3', ['-c', readDirectly, mount.path], { stdio: 'ignore' })
    const over = ended(child)
    await waitingFor(1)
    child.kill('SIGTERM')
    expect(await Promise.race([over, sleep(3000, 'still there')])).toBe('SIGTERM')
  })

  test('a signal that is caught is no error: the read goes on and is right; a later deadly one still ends it', async () => {
    const program = `
import signal
caught = []
signal.signal(signal.SIGALRM, lambda *a: caught.append(1))
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
${readDirectly}signal.setitimer(signal.ITIMER_REAL, 0)
`
    await mount.call({ do: 'delay', delays: { read: 600 } })
    expect(await run('python3', ['-c', program, mount.path])).toBe("65536 b'f'\n")
    await mount.call({ do: 'delay', delays: { read: null } })
    const child = spawn('python3', ['-c', program, mount.path], { stdio: 'ignore' })
    const over = ended(child)
    await waitingFor(1)
    await sleep(300)
    child.kill('SIGKILL')
    expect(await Promise.race([over, sleep(3000, 'still there')])).toBe('SIGKILL')
  })

  test('what changes something is never given up half way', async () => {
    await mount.call({ do: 'delay', delays: { make: 500 } })
    const child = spawn('mkdir', [at('made')], { stdio: 'ignore' })
    await waitingFor(1)
    child.kill('SIGKILL')
    await ended(child)
    expect((await stat(at('made'))).isDirectory()).toBe(true)
  })

  test('one slow read holds nobody else up', async () => {
    await mount.call({ do: 'delay', delays: { read: 1000 } })
    const slow = readFile(at('f'))
    await waitingFor(1)
    const begunMs = performance.now()
    for (let i = 0; i < 20; i++) {
      await writeFile(at(`g${i}`), 'x')
      await stat(at(`g${i}`))
    }
    expect(performance.now() - begunMs).toBeLessThan(700)
    expect((await slow).length).toBe(100_000)
  })
})

describe('a daemon that is killed', () => {
  const state = (pid: number) => {
    try {
      return /^State:\s*(\w)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))![1]
    } catch {
      return 'gone'
    }
  }

  test.each([
    ['while it flushes the kernel, with writes that it will never answer', 'flush'],
    ['while names and inodes are invalidated under a lookup that waits', 'invalidate'],
    ['while a program seeks a hole in what it has just written', 'seek'],
  ] as const)('is gone, %s, and programs get an error', async (_name, what) => {
    mount = await mountMemory({ delays: {} })
    const file = await open(at('f'), 'w+')
    await file.write(Buffer.alloc(3_000_000, 'x'))
    const stuck: Promise<unknown>[] = []
    if (what === 'flush') {
      await mount.call({ do: 'delay', delays: { write: null } })
      void mount.call({ do: 'flushKernel' }).catch(() => {})
    }
    if (what === 'seek') {
      // Not while a dirty file is open here: a child would close its copy of it, and write.
      await file.close()
      await mount.call({ do: 'delay', delays: { write: null } })
      const hole = `
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, b'x' * 100000)
os.lseek(fd, 0, os.SEEK_HOLE)`
      stuck.push(new Promise(resolve => execFile('python3', ['-c', hole, at('s')], error => resolve(error?.code))))
      await waitingFor(2)
    }
    if (what === 'invalidate') {
      await mount.call({ do: 'delay', delays: { lookup: null, read: null } })
      stuck.push(stat(at('nothing')).catch(error => error.code))
      await waitingFor(1)
      for (const name of ['nothing', 'f']) await mount.call({ do: 'invalidateEntry', parent: 1, name })
      const { ino } = await file.stat()
      for (const each of [1, ino]) await mount.call({ do: 'invalidateInode', ino: each })
    }
    await sleep(600)
    process.kill(mount.pid, 'SIGKILL')
    const left = await settled(
      async () => state(mount.pid),
      found => found === 'gone',
    )
    expect(left).toBe('gone')
    await Promise.all(stuck)
    if (what !== 'seek')
      await expect(file.sync()).rejects.toMatchObject({ code: expect.stringMatching(/ENOTCONN|EIO|ECONNABORTED/) })
    await expect(stat(at('f'))).rejects.toMatchObject({ code: 'ENOTCONN' })
    await file.close().catch(() => {})
    await mount.end()
  })
})
