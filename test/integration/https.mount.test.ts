// A mount of a directory that a web server lists, through the kernel, with python's own server.
import { spawn } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect } from '@jest/globals'
import { makePlace, type Place, run } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'

const { describe, test } = requires('fuse', 'built', 'python3')

/** Says on which port it listens. */
const server = `
import http.server, os, sys
os.chdir(sys.argv[1])
with http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler) as it:
    print(it.server_port, flush=True)
    it.serve_forever()
`

let place: Place
let url: string
let stop: () => Promise<void>
beforeEach(async () => {
  place = await makePlace()
  mkdirSync(join(place.remote, 'a b'))
  writeFileSync(join(place.remote, 'a b', 'é & <x>'), 'far away\n')
  writeFileSync(join(place.remote, 'large'), Buffer.alloc(3_000_000, '0123456789'))
  const child = spawn('python3', ['-c', server, place.remote], { stdio: ['ignore', 'pipe', 'ignore'], env: place.env })
  const ended = new Promise<void>(done => child.on('close', () => done()))
  stop = async () => {
    child.kill()
    await ended
  }
  const port = await new Promise<string>(heard => child.stdout.once('data', data => heard(String(data).trim())))
  url = `http://127.0.0.1:${port}`
})
afterEach(async () => {
  await stop()
  expect(await place.end()).toEqual([])
}, 60_000)

const mount = (what: string) =>
  place.pageferry('mount', '--daemon', what, place.mountpoint, '--cache-dir', place.cacheDir)
const sh = (script: string) => run('sh', ['-c', script], { cwd: '/', env: { ...place.env, M: place.mountpoint } })

describe('a web server', () => {
  test('that lists a directory: what is in it is read, and cannot be changed', async () => {
    expect(await mount(`${url}/`)).toMatchObject({ status: 0, stderr: '' })
    expect(await sh('cd $M; ls; cat "a b"/*; tail -c 5 large; wc -c < large')).toBe(
      'a b\nlarge\nfar away\n567893000000\n',
    )
    await expect(sh('echo x > $M/x')).rejects.toThrow(/Read-only/)
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
  })

  test('that has one file: a directory with that file', async () => {
    expect(await mount(`${url}/a%20b/%C3%A9%20%26%20%3Cx%3E`)).toMatchObject({ status: 0, stderr: '' })
    expect(await sh('cd $M; ls; cat *')).toBe('é & <x>\nfar away\n')
    expect((await place.pageferry('umount', place.mountpoint)).status).toBe(0)
  })

  test('that has it not, and one that is not there: said in one line', async () => {
    expect(await mount(`${url}/none`)).toMatchObject({
      status: 2,
      stderr: `pageferry: ${url}/none: no such directory\n`,
    })
    await stop()
    const refused = await mount(`${url}/`)
    expect(refused).toMatchObject({ status: 1, stderr: expect.stringMatching(/^pageferry: [^\n]*127.0.0.1[^\n]*\n$/) })
  })
})
