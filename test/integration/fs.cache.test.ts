// What the kernel holds back and what it believes: dirty pages that must come when asked for, and changes behind its back.
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { open, readdir, readFile, stat, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { beforeAll, expect } from '@jest/globals'
import { mountMemory, settled, type TestMount } from '../fixtures/fs-mount.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'root', 'python3')

let mount: TestMount
const at = (name: string) => join(mount.path, name)
const stored = async (name: string) => Buffer.from((await mount.call({ do: 'contents', name })) as Uint8Array)

/** A Python program that goes on after it has said so, until its input ends. */
async function holding(program: string, ...args: string[]): Promise<{ child: ChildProcess; end(): Promise<void> }> {
  const text = `import sys, os, mmap\n${program}\nprint('there', flush=True)\nsys.stdin.read()\n`
  const child = spawn('python3', ['-c', text, ...args], { stdio: ['pipe', 'pipe', 'inherit'] })
  const closed = new Promise<void>(resolve => child.on('close', () => resolve()))
  await Promise.race([new Promise(resolve => child.stdout!.once('data', resolve)), closed])
  return {
    child,
    async end() {
      child.stdin!.end()
      await closed
    },
  }
}

describe('the kernel cache', () => {
  beforeAll(async () => {
    mount = await mountMemory()
  })

  test('flushKernel brings what write(2) left in the kernel, though the file stays open and was unlinked', async () => {
    const file = await open(at('dirty'), 'w')
    await file.write(Buffer.alloc(3_000_000, 'd'))
    await mount.call({ do: 'flushKernel' })
    expect((await stored('dirty')).equals(Buffer.alloc(3_000_000, 'd'))).toBe(true)
    await file.write('more')
    expect((await stored('dirty')).length).toBe(3_000_000)
    await unlink(at('dirty'))
    const { ino } = await file.stat()
    await mount.call({ do: 'flushKernel' })
    const { size } = (await mount.call({ do: 'fs', method: 'attributes', args: [ino] })) as { size: number }
    expect(size).toBe(3_000_004)
    await file.close()
  })

  test('flushKernel brings what was written through a shared mapping and never synced, with or without its descriptor', async () => {
    const holder = await holding(
      `
p = sys.argv[1]
with open(p + '/kept', 'wb') as f: f.truncate(1 << 20)
with open(p + '/closed', 'wb') as f: f.truncate(1 << 20)
kept = os.open(p + '/kept', os.O_RDWR); a = mmap.mmap(kept, 1 << 20)
fd = os.open(p + '/closed', os.O_RDWR); b = mmap.mmap(fd, 1 << 20); os.close(fd)
a[100000:100004] = b'mapA'; b[200000:200004] = b'mapB'`,
      mount.path,
    )
    await mount.call({ do: 'flushKernel' })
    expect((await stored('kept')).subarray(100_000, 100_004).toString()).toBe('mapA')
    expect((await stored('closed')).subarray(200_000, 200_004).toString()).toBe('mapB')
    await holder.end()
    for (const name of ['kept', 'closed']) await unlink(at(name))
  })

  test('what the kernel holds back is counted, never too little, and is nothing when nobody can write', async () => {
    const held = () => mount.call({ do: 'kernelBytes' }) as Promise<number>
    expect(await held()).toBe(0)
    const file = await open(at('counted'), 'w')
    await file.write(Buffer.alloc(2_000_000, 'd'))
    expect(await held()).toBeGreaterThanOrEqual(2_000_000 - (await stored('counted')).length)
    await file.close()
    expect(await held()).toBe(0)
    await unlink(at('counted'))
  })

  test('flushKernel returns while programs go on writing, and blocks none of them', async () => {
    const writers = await Promise.all(
      Array.from({ length: 4 }, (_, i) =>
        holding(
          `
import threading, time
m = mmap.mmap(-1, 1 << 16); m.write(os.urandom(1 << 16))
fd = os.open(sys.argv[1] + '/busy${i}', os.O_RDWR | os.O_CREAT)
def work():
    n = 0
    while True: os.pwrite(fd, m, (n % 200) << 16); n += 1
threading.Thread(target=work, daemon=True).start()`,
          mount.path,
        ),
      ),
    )
    for (let i = 0; i < 10; i++) await mount.call({ do: 'flushKernel' })
    for (const writer of writers) await writer.end()
    for (let i = 0; i < 4; i++) await unlink(at(`busy${i}`))
  })

  test('what closes is complete: no flush is needed', async () => {
    const bytes = Buffer.alloc(500_000, 'c')
    await writeFile(at('closed'), bytes)
    expect((await stored('closed')).equals(bytes)).toBe(true)
    await unlink(at('closed'))
  })

  test('a second open reads from the kernel until the engine says that the bytes are others', async () => {
    await writeFile(at('f'), 'before')
    await readFile(at('f'))
    await mount.trace()
    expect(await readFile(at('f'), 'utf8')).toBe('before')
    expect((await mount.trace()).filter(({ op }) => op === 'READ')).toEqual([])
    const { ino } = await stat(at('f'))
    await mount.call({ do: 'fs', method: 'write', args: [ino, 0, Buffer.from('behind')] })
    await mount.call({ do: 'invalidateInode', ino })
    expect(
      await settled(
        () => readFile(at('f'), 'utf8'),
        text => text === 'behind',
      ),
    ).toBe('behind')
    await unlink(at('f'))
  })

  test('a name that changed behind the kernel is looked up again', async () => {
    await writeFile(at('a'), 'A')
    await writeFile(at('b'), 'B')
    await stat(at('a'))
    const move = [{ parent: 1, name: 'a' }, { parent: 1, name: 'c' }, 'replace']
    await mount.call({ do: 'fs', method: 'rename', args: move })
    expect(await readFile(at('a'), 'utf8')).toBe('A') // the kernel does not know yet
    await mount.call({ do: 'invalidateEntry', parent: 1, name: 'a' })
    await mount.call({ do: 'invalidateEntry', parent: 1, name: 'c' })
    await mount.call({ do: 'invalidateEntry', parent: 1, name: 'never seen' })
    await mount.call({ do: 'invalidateInode', ino: 1 })
    await mount.call({ do: 'invalidateInode', ino: 123_456 })
    expect(
      await settled(
        () =>
          stat(at('a')).then(
            () => 'there',
            () => 'gone',
          ),
        seen => seen === 'gone',
      ),
    ).toBe('gone')
    expect(await readFile(at('c'), 'utf8')).toBe('A')
    expect((await readdir(mount.path)).sort()).toEqual(['b', 'c'])
    for (const name of ['b', 'c']) await unlink(at(name))
  })

  test('a listing is kept by the kernel until the directory changes', async () => {
    await Promise.all(Array.from({ length: 30 }, (_, i) => writeFile(at(`n${i}`), '')))
    await readdir(mount.path)
    await mount.trace()
    expect((await readdir(mount.path)).length).toBe(30)
    const asked = (await mount.trace()).filter(({ op }) => op.startsWith('READDIR'))
    await unlink(at('n7'))
    expect((await readdir(mount.path)).length).toBe(29)
    expect(asked).toEqual([])
    await Promise.all((await readdir(mount.path)).map(name => unlink(at(name))))
  })

  test('ten thousand names changed behind the kernel do not stop it', async () => {
    for (let i = 0; i < 12_000; i++) void mount.call({ do: 'invalidateEntry', parent: 1, name: `x${i}` })
    await writeFile(at('alive'), 'yes')
    expect(await readFile(at('alive'), 'utf8')).toBe('yes')
    await unlink(at('alive'))
    expect((await mount.status()).logged).toEqual([])
  })

  test('the kernel may hold back a bounded number of bytes and reads far ahead', async () => {
    const { dev } = await stat(mount.path)
    const folder = `/sys/class/bdi/0:${dev}`
    expect(readdirSync(folder)).toContain('read_ahead_kb')
    expect(Number(await readFile(`${folder}/read_ahead_kb`, 'utf8'))).toBe(512)
    // The kernel keeps a share of its dirty limit, so what comes back is near what was asked for.
    expect(Number(await readFile(`${folder}/max_bytes`, 'utf8'))).toBeLessThan(270 << 20)
    expect(Number(await readFile(`${folder}/strict_limit`, 'utf8'))).toBe(1)
    const file = await open(at('seq'), 'w')
    await file.write(Buffer.alloc(16 << 20))
    await file.close()
    await mount.call({ do: 'invalidateInode', ino: (await stat(at('seq'))).ino })
    await sleep(100)
    await mount.trace()
    await readFile(at('seq'))
    const sizes = (await mount.trace()).filter(({ op }) => op === 'READ').map(({ bytes }) => bytes)
    expect(Math.max(...sizes)).toBe(512 << 10)
    await unlink(at('seq'))
  })
})
