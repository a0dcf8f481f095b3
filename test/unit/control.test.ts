// The control socket: requests are answered, and nothing that is sent to it breaks it.
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { createConnection } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { deferred, sleep } from '../../src/base/async.js'
import { FerryError } from '../../src/base/errors.js'
import { type ControlHandler, type ControlServer, callControl, serveControl } from '../../src/control.js'

let folder: string
let path: string
let server: ControlServer | undefined
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'control-'))
  path = join(folder, 's')
})
afterEach(async () => {
  await server?.close()
  server = undefined
  rmSync(folder, { recursive: true })
})

const serve = async (handle: ControlHandler) => {
  server = await serveControl(path, handle)
}

/** Sends raw bytes; resolves with all that came back when the other side, or nothing more, ends it. */
const raw = (bytes: string | Uint8Array, { quietMs = 30 } = {}): Promise<string> =>
  new Promise((resolve, reject) => {
    let answer = ''
    const socket = createConnection(path, () => socket.write(bytes))
    socket.setTimeout(quietMs, () => socket.destroy())
    socket.on('data', data => (answer += data)).on('close', () => resolve(answer))
    socket.on('error', error => ((error as NodeJS.ErrnoException).code === 'EPIPE' ? resolve(answer) : reject(error)))
  })

describe('a request', () => {
  test('is answered with what the daemon says', async () => {
    await serve(async request => ({ you: request.do }))
    expect(await callControl(path, { do: 'status' })).toEqual({ you: 'status' })
  })

  test('without a result is answered too', async () => {
    await serve(async () => undefined)
    expect(await callControl(path, { do: 'sync' })).toBeNull()
  })

  test('that fails is answered with the error, code and all', async () => {
    await serve(async () => {
      throw new FerryError('BUSY', { detail: '/mnt is used by bash (pid 12)' })
    })
    const failed = callControl(path, { do: 'umount', stalledMsMax: 1 })
    await expect(failed).rejects.toMatchObject({ code: 'BUSY', message: 'in use: /mnt is used by bash (pid 12)' })
  })

  test('that trips over a bug is answered as well', async () => {
    await serve(async () => {
      throw new TypeError('x is not a function')
    })
    await expect(callControl(path, { do: 'status' })).rejects.toMatchObject({ code: 'IO' })
  })

  test('shows its progress', async () => {
    await serve(async (_, { progress }) => {
      for (let n = 0; n < 5; n++) progress({ n })
      return 'done'
    })
    const seen: unknown[] = []
    expect(await callControl(path, { do: 'sync' }, { onProgress: value => seen.push(value) })).toBe('done')
    expect(seen).toEqual([0, 1, 2, 3, 4].map(n => ({ n })))
  })

  test('is given up when its client goes away', async () => {
    const aborted = deferred()
    await serve(async (_, { signal }) => {
      signal.addEventListener('abort', () => aborted.resolve())
      await aborted.promise
    })
    const client = new AbortController()
    const asked = callControl(path, { do: 'sync' }, { signal: client.signal })
    setTimeout(() => client.abort(), 50)
    await expect(asked).rejects.toMatchObject({ code: 'ABORTED' })
    await aborted.promise
  })

  test('that is being answered when the daemon ends gets its answer', async () => {
    const end = deferred()
    await serve(async () => {
      end.resolve()
      await sleep(50)
      return 'the last word'
    })
    const asked = callControl(path, { do: 'sync' })
    await end.promise
    await server?.close()
    expect(await asked).toBe('the last word')
  })
})

describe('a client', () => {
  test('is told when nobody is there', async () => {
    await expect(callControl(path, { do: 'status' })).rejects.toMatchObject({ code: 'UNREACHABLE' })
  })

  test('does not wait for ever for one who says nothing', async () => {
    await serve(() => deferred<unknown>().promise)
    await expect(callControl(path, { do: 'status' }, { silenceMsMax: 50 })).rejects.toMatchObject({ code: 'DEADLINE' })
  })

  test('notices that the daemon was killed', async () => {
    await serve(() => deferred<unknown>().promise)
    const asked = callControl(path, { do: 'sync' })
    asked.catch(() => {})
    await sleep(50)
    void server?.close()
    await expect(asked).rejects.toMatchObject({ code: 'UNREACHABLE' })
  })
})

describe('whatever is sent', () => {
  const isError = (line: string) => 'error' in JSON.parse(line)

  test('that is not a request is answered with an error', async () => {
    await serve(async () => 'fine')
    const wrong = [
      '',
      '{',
      '[]',
      '1',
      'null',
      '{"do":"format c:"}',
      '{"do":"pull"}',
      '{"do":"umount","stalledMsMax":-1}',
      '{"do":1}',
      '\0\xff',
      '{"__proto__":1}',
    ]
    for (const line of wrong) expect(isError((await raw(`${line}\n`)).split('\n')[0])).toBe(true)
    expect(await callControl(path, { do: 'status' })).toBe('fine')
  })

  test('a line without an end is refused, not remembered', async () => {
    await serve(async () => 'fine')
    const answer = await raw(Buffer.alloc(1024 * 1024, 65))
    expect(isError(answer.split('\n')[0])).toBe(true)
    expect(await callControl(path, { do: 'status' })).toBe('fine')
  })

  test('two requests at once on one connection: one at a time', async () => {
    await serve(async () => {
      await sleep(50)
      return 'fine'
    })
    const [busy, fine] = (await raw('{"do":"status"}\n{"do":"status"}\n', { quietMs: 500 }))
      .trim()
      .split('\n')
      .map(line => JSON.parse(line))
    expect(busy.error.code).toBe('BUSY')
    expect(fine.result).toBe('fine')
  })

  test('a request in pieces is still one', async () => {
    await serve(async () => 'fine')
    const whole = new Promise<string>(resolve => {
      const socket = createConnection(path)
      socket.on('data', data => {
        resolve(String(data))
        socket.destroy()
      })
      const pieces = [...'{"do":"status"}\n']
      const next = () => {
        const piece = pieces.shift()
        if (piece) socket.write(piece, () => setImmediate(next))
      }
      next()
    })
    expect(JSON.parse(await whole)).toEqual({ result: 'fine' })
  })

  test('random bytes, at any length, leave it in order', async () => {
    await serve(async () => 'fine')
    const some = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.json().map(text => Buffer.from(`${text}\n`)),
    )
    await fc.assert(
      fc.asyncProperty(some, async bytes => {
        for (const line of (await raw(Buffer.concat([bytes, Buffer.from('\n')]), { quietMs: 5 }))
          .split('\n')
          .filter(Boolean))
          expect(isError(line)).toBe(true)
      }),
      { numRuns: 100 },
    )
    expect(await callControl(path, { do: 'status' })).toBe('fine')
  }, 30_000)
})

test('it is for this user alone', async () => {
  await serve(async () => null)
  expect(statSync(path).mode & 0o777).toBe(0o600)
})
