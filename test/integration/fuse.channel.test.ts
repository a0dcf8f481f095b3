import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, expect } from '@jest/globals'
import { prepareMountPoint } from '../../src/fs/mountpoint.js'
import { tuneBdi } from '../../src/linux/bdi.js'
import { holdersOf } from '../../src/linux/holders.js'
import { mountFuse, unmountFuse } from '../../src/linux/mount.js'
import { mountAt } from '../../src/linux/mountinfo.js'
import { type Command, content, type DaemonOptions, names, type Status } from '../fixtures/channel-daemon.js'
import { compile } from '../fixtures/compiled.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root')

const folder = mkdtempSync(join(realpathSync(tmpdir()), 'pageferry-channel-'))
const compiled = compile('test/fixtures/channel-daemon.ts')
const daemons: Daemon[] = []
afterAll(async () => {
  for (const daemon of daemons) await daemon.end()
  compiled.remove()
  rmSync(folder, { recursive: true })
})

interface Answer {
  value?: unknown
  code?: string
  message?: string
}

interface Daemon {
  target: string
  process: ChildProcess
  call(command: Command): Promise<unknown>
  status(): Promise<Status>
  end(): Promise<void>
}

/** Mounts; the daemon is another process, since nobody may use a mount that waits for himself. */
async function serve(options: Partial<DaemonOptions> = {}): Promise<Daemon> {
  const target = options.target ?? join(folder, `m${daemons.length}`)
  if (!options.target) mkdirSync(target)
  const daemon = fork(compiled.path, [JSON.stringify({ target, ...options })], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const waiting = new Map<number, (answer: Answer) => void>()
  let last = 0
  const answer = (id: number) =>
    new Promise<unknown>((resolve, reject) => {
      waiting.set(id, ({ value, code, message }) =>
        message === undefined ? resolve(value) : reject(Object.assign(new Error(message), { code })),
      )
    })
  daemon.on('message', (message: Answer & { id: number }) => waiting.get(message.id)?.(message))
  daemon.on('exit', (code, signal) => {
    for (const settle of waiting.values()) settle({ message: `the daemon ended (${code ?? signal})` })
  })
  const self: Daemon = {
    target,
    process: daemon,
    call(command) {
      daemon.send({ id: ++last, command })
      return answer(last)
    },
    status: () => self.call({ call: 'status' }) as Promise<Status>,
    async end() {
      if (daemon.exitCode === null && daemon.signalCode === null) {
        const exit = once(daemon, 'exit')
        if (daemon.connected) daemon.disconnect()
        else daemon.kill('SIGKILL')
        await exit
      }
      while (mountAt(target)) await unmountFuse(target, { lazy: true })
    },
  }
  daemons.push(self)
  await answer(0)
  return self
}

/** Runs a program with a deadline: whatever goes wrong with a mount, it hangs there and not here. */
async function run(command: string, ...args: string[]): Promise<{ status: number | null; out: Buffer; err: string }> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 20_000, killSignal: 'SIGKILL' })
  const out: Buffer[] = []
  let err = ''
  child.stdout.on('data', chunk => out.push(chunk))
  child.stderr.on('data', chunk => {
    err += chunk
  })
  const [status] = await once(child, 'close')
  return { status, out: Buffer.concat(out), err }
}

describe('requests and replies', () => {
  const readable = names.filter(name => !['when-told', 'too-long', 'never-well'].includes(name))
  for (const pollUs of [0, 100]) {
    test(`each way to answer gives the same bytes, polling for ${pollUs} us`, async () => {
      const daemon = await serve({ pollUs })
      const all = await Promise.all(readable.map(name => run('cat', join(daemon.target, name))))
      for (const { status, out, err } of all) {
        expect(err).toBe('')
        expect(status).toBe(0)
        expect(out.equals(content)).toBe(true)
      }
      const { owed, closed, notes } = await daemon.status()
      expect({ owed, closed, notes }).toEqual({ owed: 0, closed: undefined, notes: [] })
      await daemon.end()
    })
  }

  test('a malformed reply fails its request and hangs nobody', async () => {
    const daemon = await serve()
    for (const name of ['too-long', 'never-well']) {
      const { status, err } = await run('dd', `if=${join(daemon.target, name)}`, 'of=/dev/null', 'bs=4k', 'count=1')
      expect(status).toBe(1)
      expect(err).toContain('Input/output error')
    }
    const { notes, owed } = await daemon.status()
    expect(notes).toEqual(['reply returned -22', 'reply returned -22'])
    expect(owed).toBe(0)
    await daemon.end()
  })

  test('a reply that nobody waits for any more is no error', async () => {
    const daemon = await serve()
    const reading = run('dd', `if=${join(daemon.target, 'when-told')}`, 'of=/dev/null', 'bs=4k', 'count=1')
    while ((await daemon.status()).owed === 0) await sleep(5)
    // Each twice: of the second one the kernel says ENOENT, as it does when a request was interrupted.
    expect(await daemon.call({ call: 'answer' })).toEqual([0, 0])
    expect((await reading).status).toBe(0)
    expect((await daemon.status()).owed).toBe(0)
    await daemon.end()
  })
})

describe('the loop', () => {
  test('an idle mount costs nothing', async () => {
    const daemon = await serve()
    await run('cat', join(daemon.target, 'at-once'))
    await sleep(100)
    const { cpuUs: before } = await daemon.status()
    await sleep(1000)
    const { cpuUs: after } = await daemon.status()
    expect(after - before).toBeLessThan(100_000)
    await daemon.end()
  })

  test('timers and promises are not starved by a flood of requests', async () => {
    const daemon = await serve()
    const begunMs = performance.now()
    const flood = ['at-once', 'by-promise'].map(name => {
      const path = join(daemon.target, name)
      return run('sh', '-c', `for i in $(seq 8); do dd if=${path} of=/dev/null bs=4k status=none || exit 1; done`)
    })
    const later = run('cat', join(daemon.target, 'later'))
    for (const { status } of [...(await Promise.all(flood)), await later]) expect(status).toBe(0)
    const { requests, lagMs } = await daemon.status()
    expect(requests).toBeGreaterThan(4000)
    // Far more than a slice, far less than the flood: other programs have the CPU as well.
    expect(lagMs).toBeLessThan(Math.max(250, (performance.now() - begunMs) / 3))
    await daemon.end()
  })
})

describe('notifications', () => {
  const INVAL_INODE = 2
  const INVAL_ENTRY = 3
  /** Inode, offset, length: everything there is. */
  const inode = (ino: number) => [ino, ...new Array(23).fill(0)]

  test('are delivered, or there is nothing to tell', async () => {
    const daemon = await serve()
    await run('cat', join(daemon.target, 'at-once'))
    expect(await daemon.call({ call: 'notify', code: INVAL_INODE, payload: inode(2) })).toBe(true)
    expect(await daemon.call({ call: 'notify', code: INVAL_INODE, payload: inode(99) })).toBe(false)
    await daemon.end()
  })

  test('that are malformed are refused', async () => {
    const daemon = await serve()
    await expect(daemon.call({ call: 'notify', code: INVAL_ENTRY, payload: [1, 2, 3] })).rejects.toMatchObject({
      code: 'INVALID',
    })
    await daemon.end()
  })

  test('wait for reads in flight without keeping the loop from answering them', async () => {
    const daemon = await serve()
    const reading = run('cat', join(daemon.target, 'later'))
    const told = Array.from({ length: 20 }, () => daemon.call({ call: 'notify', code: INVAL_INODE, payload: inode(5) }))
    expect((await Promise.all(told)).every(each => typeof each === 'boolean')).toBe(true)
    expect((await reading).out.equals(content)).toBe(true)
    await daemon.end()
  })
})

describe('mounting', () => {
  test('the mount table shows what it is', async () => {
    const daemon = await serve({ readOnly: true })
    expect(mountAt(daemon.target)).toMatchObject({
      type: 'fuse.pageferry',
      source: 'a source, with "odd" \\ letters',
      options: expect.arrayContaining(['ro', 'nosuid', 'nodev']),
    })
    expect((await run('touch', join(daemon.target, 'x'))).err).toContain('Read-only')
    await daemon.end()
  })

  requires('fuse', 'root', 'fusermount3').test('fusermount3 hands the connection over, too', async () => {
    const daemon = await serve({ by: 'fusermount3' })
    expect(mountAt(daemon.target)).toMatchObject({
      type: 'fuse.pageferry',
      source: 'a source, with "odd" \\ letters',
      options: expect.arrayContaining(['rw', 'nosuid', 'nodev']),
    })
    expect((await run('cat', join(daemon.target, 'at-once'))).out.equals(content)).toBe(true)
    await daemon.call({ call: 'unmount' })
    expect((await daemon.status()).closed).toBe('cleanly')
    await daemon.end()
  })

  test('an unmount ends the channel, and a second one has nothing to do', async () => {
    const daemon = await serve()
    await run('cat', join(daemon.target, 'at-once'))
    await daemon.call({ call: 'unmount' })
    expect((await daemon.status()).closed).toBe('cleanly')
    expect(mountAt(daemon.target)).toBeUndefined()
    await expect(daemon.call({ call: 'unmount' })).rejects.toMatchObject({ code: 'INVALID' })
    await daemon.call({ call: 'close' })
    await daemon.call({ call: 'close' })
    await daemon.end()
  })

  test('a busy mount is refused, and who is in it is found without asking it', async () => {
    const daemon = await serve()
    const inside = spawn('sh', ['-c', `cd '${daemon.target}' && exec 7< at-once && echo in && exec sleep 60`], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    await once(inside.stdout, 'data')
    while (!(await holdersOf(daemon.target)).some(({ command }) => command === 'sleep')) await sleep(5)
    await expect(daemon.call({ call: 'unmount' })).rejects.toMatchObject({ code: 'BUSY' })
    const { requests: before } = await daemon.status()
    expect(await holdersOf(daemon.target)).toEqual([
      { pid: inside.pid, command: 'sleep', what: `working directory: ${daemon.target}` },
      { pid: inside.pid, command: 'sleep', what: `fd 7: ${join(daemon.target, 'at-once')}` },
    ])
    expect((await daemon.status()).requests).toBe(before)
    inside.kill('SIGKILL')
    await once(inside, 'exit')
    expect(await holdersOf(daemon.target)).toEqual([])
    await daemon.call({ call: 'unmount' })
    await daemon.end()
  })

  test('an abort fails what is in flight and ends the channel', async () => {
    const daemon = await serve()
    const reading = run('dd', `if=${join(daemon.target, 'when-told')}`, 'of=/dev/null', 'bs=4k', 'count=1')
    while ((await daemon.status()).owed === 0) await sleep(5)
    await daemon.call({ call: 'abort' })
    expect((await reading).status).toBe(1)
    expect((await daemon.status()).closed).toBe('cleanly')
    await daemon.end()
  })

  test('the bdi takes its settings', async () => {
    const daemon = await serve()
    await run('cat', join(daemon.target, 'at-once')) // the answer to INIT sets the readahead anew
    const device = mountAt(daemon.target)!
    expect(await tuneBdi(device, { readAheadKb: 1024, maxBytes: 64 << 20, strictLimit: true, maxRatio: 50 })).toEqual(
      [],
    )
    const { out } = await run('cat', `/sys/class/bdi/${device.major}:${device.minor}/read_ahead_kb`)
    expect(out.toString().trim()).toBe('1024')
    await daemon.end()
  })

  test('errors name the mount point', async () => {
    const target = join(folder, 'missing')
    await expect(mountFuse({ target, source: 'x', by: 'mount' })).rejects.toMatchObject({
      code: 'NOT_FOUND',
      message: expect.stringContaining(target),
    })
    await expect(mountFuse({ target, source: 'x', by: 'fusermount3' })).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })
})

describe('preparing a mount point', () => {
  test('it must be there, be a directory, and be empty', async () => {
    const path = join(folder, 'place')
    await expect(prepareMountPoint(path)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    writeFileSync(path, '')
    await expect(prepareMountPoint(path)).rejects.toMatchObject({ code: 'NOT_DIRECTORY' })
    rmSync(path)
    mkdirSync(path)
    symlinkSync(path, `${path}-link`)
    expect(await prepareMountPoint(`${path}-link/../place`)).toBe(path)
    expect(await prepareMountPoint(`${path}-link`)).toBe(path)
    writeFileSync(join(path, 'file'), '')
    await expect(prepareMountPoint(path)).rejects.toMatchObject({ code: 'NOT_EMPTY' })
    expect(await prepareMountPoint(path, { nonEmpty: true })).toBe(path)
  })

  test('a live mount of ours is left alone', async () => {
    const daemon = await serve()
    await expect(prepareMountPoint(daemon.target)).rejects.toMatchObject({ code: 'BUSY' })
    await daemon.end()
  })

  test('what dead daemons left is cleared away, also when it is several deep', async () => {
    const target = join(folder, 'stale')
    mkdirSync(target)
    const daemon = await serve({ target })
    daemon.process.kill('SIGKILL')
    await once(daemon.process, 'exit')
    expect((await run('ls', target)).err).toContain('not connected')
    const second = await serve({ target })
    expect((await second.status()).notes).toEqual([expect.stringContaining(`detached ${target}`)])
    second.process.kill('SIGKILL')
    await once(second.process, 'exit')
    const notes: string[] = []
    expect(await prepareMountPoint(target, { note: line => notes.push(line) })).toBe(target)
    expect(notes).toHaveLength(1)
    expect(mountAt(target)).toBeUndefined()
  })

  test('a mount that does not answer is not touched any further', async () => {
    const daemon = await serve()
    daemon.process.kill('SIGSTOP')
    await expect(prepareMountPoint(daemon.target, { answerTimeoutMs: 100 })).rejects.toMatchObject({
      code: 'BUSY',
      message: expect.stringContaining('does not answer'),
    })
    daemon.process.kill('SIGCONT')
    await daemon.end()
  })
})
