// Files on a web server: one that knows ranges and versions, one that knows neither, and one that misbehaves.
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, describe, expect, test } from '@jest/globals'
import { openRemote } from '../../src/open.js'
import { linksIn } from '../../src/remote/http-index.js'

interface Served {
  /** Path -> bytes; a path that ends with '/' is a page. */
  files: Map<string, Buffer>
  requests: string[]
  url: string
}

const servers: http.Server[] = []
afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    await new Promise(done => server.close(done))
  }
})

type Change = (request: http.IncomingMessage, response: http.ServerResponse) => boolean

async function serve(
  files: Record<string, string | Buffer>,
  { ranges = true, etags = true, change = () => false }: { ranges?: boolean; etags?: boolean; change?: Change } = {},
): Promise<Served> {
  const served: Served = {
    files: new Map(Object.entries(files).map(([path, bytes]) => [path, Buffer.from(bytes as string)])),
    requests: [],
    url: '',
  }
  const server = http.createServer((request, response) => {
    served.requests.push(`${request.method} ${request.url} ${request.headers.range ?? ''}`.trimEnd())
    if (change(request, response)) return
    const bytes = served.files.get(request.url!)
    if (!bytes) {
      const isDirectory = served.files.has(`${request.url}/`)
      response
        .writeHead(isDirectory ? 301 : 404, isDirectory ? { location: `${request.url}/` } : {})
        .end('nothing here')
      return
    }
    const etag = `"${bytes.length}-${bytes.reduce((sum, byte) => (sum * 31 + byte) % 65_521, 0)}"`
    const modified = 'Wed, 21 Oct 2015 07:28:00 GMT'
    response.setHeader('last-modified', modified)
    if (etags) response.setHeader('etag', etag)
    response.setHeader(
      'content-type',
      request.url!.endsWith('/') ? 'text/html; charset=utf-8' : 'application/octet-stream',
    )
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? []
    const condition = request.headers['if-range']
    const part = ranges && from !== undefined && (!condition || condition === (etags ? etag : modified))
    if (part && Number(from) >= bytes.length)
      response.writeHead(416, { 'content-range': `bytes */${bytes.length}` }).end()
    else if (part) {
      const body = bytes.subarray(Number(from), Number(to) + 1)
      const end = Number(from) + body.length - 1
      response.writeHead(206, {
        'content-range': `bytes ${from}-${end}/${bytes.length}`,
        'content-length': body.length,
      })
      response.end(request.method === 'HEAD' ? undefined : body)
    } else {
      response.writeHead(200, { 'content-length': bytes.length })
      response.end(request.method === 'HEAD' ? undefined : bytes)
    }
  })
  servers.push(server)
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  served.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return served
}

const open = (url: string) => openRemote(url, { shape: 'tree' })
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1')
const page = (...hrefs: string[]) =>
  `<html><body>${hrefs.map(href => `<a href="${href}">${href}</a>`).join('<br>')}</body></html>`

describe('one file', () => {
  test('is a directory with that file in it, read by ranges of one version', async () => {
    const { url, requests, files } = await serve({ '/films/a%20film.mp4': '0123456789' })
    await using tree = await open(`${url}/films/a%20film.mp4`)
    const { entries } = await tree.list('')
    expect(entries).toMatchObject([
      { name: 'a film.mp4', mode: 0o100444, size: 10, mtimeNs: 1_445_412_480_000_000_000n },
    ])
    expect(await tree.stat('')).toMatchObject({ name: '', mode: 0o040555 })
    expect(await tree.stat('other')).toBeNull()
    const [{ version }] = entries
    expect(text(await tree.read('a film.mp4', { at: 3, length: 4, version }))).toBe('3456')
    expect(requests.at(-1)).toBe('GET /films/a%20film.mp4 bytes=3-6')
    expect(text(await tree.read('a film.mp4', { at: 8, length: 100 }))).toBe('89')
    expect(text(await tree.read('a film.mp4', { at: 10, length: 1, version }))).toBe('')
    expect(text(await tree.read('a film.mp4', { at: 2, length: 0, version }))).toBe('')
    await expect(tree.read('other', { at: 0, length: 1 })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(tree.read('', { at: 0, length: 1 })).rejects.toMatchObject({ code: 'IS_DIRECTORY' })
    await expect(tree.read('a film.mp4', { at: -1, length: 1 })).rejects.toMatchObject({ code: 'INVALID' })

    files.set('/films/a%20film.mp4', Buffer.from('9876543210'))
    await expect(tree.read('a film.mp4', { at: 3, length: 4, version })).rejects.toMatchObject({ code: 'STALE' })
    files.set('/films/a%20film.mp4', Buffer.from('9'))
    await expect(tree.read('a film.mp4', { at: 3, length: 4, version })).rejects.toMatchObject({ code: 'STALE' })
    files.delete('/films/a%20film.mp4')
    await expect(tree.read('a film.mp4', { at: 3, length: 4, version })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(await tree.stat('a film.mp4')).toBeNull()
    expect(await tree.list('')).toEqual({ entries: [] })
  })

  test('without an ETag its time and size are its version', async () => {
    const { url, files } = await serve({ '/f': '0123456789' }, { etags: false })
    await using tree = await open(`${url}/f`)
    const { version } = (await tree.stat('f'))!
    expect(text(await tree.read('f', { at: 3, length: 4, version }))).toBe('3456')
    files.set('/f', Buffer.from('01234567890'))
    await expect(tree.read('f', { at: 3, length: 4, version })).rejects.toMatchObject({ code: 'STALE' })
  })

  test.each<[string, http.OutgoingHttpHeaders, boolean]>([
    ['an ETag', { etag: '"v1"' }, true],
    ['another ETag', { etag: '"v2"' }, false],
    ['no ETag', {}, false],
  ])('an answer without a size, with %s', async (_, headers, isIt) => {
    const change: Change = (request, response) => {
      if (request.method === 'HEAD') response.writeHead(200, { etag: '"v1"', 'content-length': 10 }).end()
      else if (request.url === '/chunked') response.writeHead(200, headers).end('0123456789')
      else response.writeHead(206, { 'content-range': 'bytes 3-6/*', ...headers }).end('3456')
      return true
    }
    const { url } = await serve({}, { change })
    for (const name of ['chunked', 'part']) {
      await using tree = await open(`${url}/${name}`)
      const read = tree.read(name, { at: 3, length: 4, version: '"v1"' })
      if (isIt) expect(text(await read)).toBe('3456')
      else await expect(read).rejects.toMatchObject({ code: 'STALE' })
      expect(text(await tree.read(name, { at: 3, length: 4 }))).toBe('3456')
    }
  })

  test.each([
    ['the same time', 'Wed, 21 Oct 2015 07:28:00 GMT', true],
    ['another time', 'Wed, 21 Oct 2015 07:28:01 GMT', false],
    ['no time', undefined, false],
  ])('an answer with neither a size nor an ETag, with %s', async (_, modified, isIt) => {
    const first = 'Wed, 21 Oct 2015 07:28:00 GMT'
    const change: Change = (request, response) => {
      const isHead = request.method === 'HEAD'
      if (isHead) response.writeHead(200, { 'last-modified': first, 'content-length': 10 }).end()
      else response.writeHead(200, modified === undefined ? {} : { 'last-modified': modified }).end('0123456789')
      return true
    }
    const { url } = await serve({}, { change })
    await using tree = await open(`${url}/f`)
    const { version } = (await tree.stat('f'))!
    const read = tree.read('f', { at: 3, length: 4, version })
    if (isIt) expect(text(await read)).toBe('3456')
    else await expect(read).rejects.toMatchObject({ code: 'STALE' })
  })

  test('of a server without ranges is read from its start, up to a bound', async () => {
    const { url } = await serve({ '/f': Buffer.alloc(20 * 1024 * 1024, 'abcd') }, { ranges: false })
    await using tree = await open(`${url}/f`)
    const { version } = (await tree.stat('f'))!
    expect(text(await tree.read('f', { at: 1_000_001, length: 4, version }))).toBe('bcda')
    await expect(tree.read('f', { at: 17 * 1024 * 1024, length: 4, version })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringContaining('no byte ranges'),
    })
  })

  test('cannot be changed', async () => {
    const { url } = await serve({ '/f': 'x' })
    await using tree = await open(`${url}/f`)
    expect(tree.capabilities.write).toBe(false)
    await expect(tree.write('f', 0, new Uint8Array(1))).rejects.toMatchObject({ code: 'READ_ONLY' })
    await expect(tree.hidden.put('x', new Uint8Array(1))).rejects.toMatchObject({ code: 'READ_ONLY' })
    expect(await tree.hidden.list('')).toEqual([])
  })
})

describe('a directory', () => {
  test('has in it what its page lists directly below', async () => {
    const { url } = await serve({
      '/pub/': page(
        '?C=N;O=D',
        '/',
        '../',
        'a.txt',
        'b%20c',
        './d/',
        '/pub/e',
        '/other/x',
        'https://elsewhere/pub/y',
        'd/deep',
        'gone',
      ),
      '/pub/a.txt': 'a',
      '/pub/b%20c': 'bc',
      '/pub/e': 'eee',
      '/pub/d/': page('f'),
      '/pub/d/f': 'ffff',
    })
    await using tree = await open(`${url}/pub`)
    const { entries, cursor } = await tree.list('')
    expect(cursor).toBeUndefined()
    expect(entries.map(({ name, size, mode }) => [name, size, mode])).toEqual([
      ['a.txt', 1, 0o100444],
      ['b c', 2, 0o100444],
      ['d', 0, 0o040555],
      ['e', 3, 0o100444],
    ])
    expect(await tree.list('d')).toMatchObject({ entries: [{ name: 'f', size: 4 }] })
    expect(await tree.stat('d')).toMatchObject({ name: 'd', mode: 0o040555 })
    expect(await tree.stat('b c')).toEqual(entries[1])
    expect(text(await tree.read('d/f', { at: 1, length: 2 }))).toBe('ff')
    await expect(tree.read('d', { at: 0, length: 1 })).rejects.toMatchObject({ code: 'IS_DIRECTORY' })
    await expect(tree.list('e')).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(tree.list('none')).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('of thousands comes in pages, each name once', async () => {
    const names = Array.from({ length: 1200 }, (_, n) => `file-${n}`)
    const { url } = await serve({ '/': page(...names), ...Object.fromEntries(names.map(name => [`/${name}`, name])) })
    await using tree = await open(`${url}/`)
    const found: string[] = []
    for (let cursor: string | undefined; ; ) {
      const some = await tree.list('', cursor)
      expect(some.entries.length).toBeLessThanOrEqual(1000)
      found.push(...some.entries.map(({ name }) => name))
      cursor = some.cursor
      if (cursor === undefined) break
    }
    expect(found.sort()).toEqual(names.sort())
  })

  test('a file that is forbidden is left out, a server that fails is not an empty directory', async () => {
    let fails = false
    const change: Change = (request, response) => {
      const isSecret = request.url === '/secret'
      if (isSecret || fails) response.writeHead(isSecret ? 403 : 500).end()
      return isSecret || fails
    }
    const { url } = await serve({ '/': page('open', 'secret'), '/open': 'x', '/secret': 'y' }, { change })
    await using tree = await open(`${url}/`)
    expect((await tree.list('')).entries.map(({ name }) => name)).toEqual(['open'])
    fails = true
    await expect(tree.list('')).rejects.toMatchObject({ code: 'IO' })
    await expect(tree.stat('open')).rejects.toMatchObject({ code: 'IO' })
  })
})

describe('what is refused', () => {
  const answering = (code: number, headers: http.OutgoingHttpHeaders): Change => {
    return (_request, response) => {
      response.writeHead(code, headers).end()
      return true
    }
  }

  test.each<[string, Change, string]>([
    ['nothing there', answering(404, {}), 'USAGE'],
    ['a login', answering(401, {}), 'FORBIDDEN'],
    ['too busy', answering(503, {}), 'BUSY'],
    ['no size', answering(200, { 'transfer-encoding': 'chunked' }), 'USAGE'],
    ['redirects without end', answering(302, { location: '/f' }), 'IO'],
    ['a redirect to where it is not encrypted', answering(302, { location: 'http://example.com/' }), 'FORBIDDEN'],
    ['a redirect to a file of this machine', answering(302, { location: 'file:///etc/passwd' }), 'FORBIDDEN'],
    ['bytes that were packed', answering(200, { 'content-encoding': 'gzip', 'content-length': 3 }), 'USAGE'],
  ])('%s', async (_, change, code) => {
    const { url } = await serve({}, { change })
    await expect(open(`${url}/f`)).rejects.toMatchObject({ code })
  })

  test('a directory without a list', async () => {
    const { url } = await serve({}, { change: answering(200, { 'content-type': 'application/json' }) })
    await expect(open(`${url}/`)).rejects.toMatchObject({
      code: 'USAGE',
      message: expect.stringContaining('not a directory'),
    })
  })

  test('plain http to another host, unless it is said to be fine', async () => {
    await expect(open('http://192.0.2.1/f')).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await expect(open('http://me@127.0.0.1/f')).rejects.toMatchObject({ code: 'USAGE' })
    await expect(open('https:///f')).rejects.toMatchObject({ code: 'USAGE' })
  })

  test('nobody there: unreachable, and never an empty directory', async () => {
    const { url } = await serve({ '/': page('f'), '/f': 'x' })
    await using tree = await open(`${url}/`)
    const server = servers.pop()!
    server.closeAllConnections()
    await new Promise(done => server.close(done))
    await expect(tree.list('')).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await expect(tree.stat('f')).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await expect(tree.read('f', { at: 0, length: 1 })).rejects.toMatchObject({ code: 'UNREACHABLE' })
  })

  test('a body that is cut off', async () => {
    const change: Change = (request, response) => {
      if (request.method === 'HEAD') return false
      response.writeHead(206, { 'content-range': 'bytes 0-9/10', 'content-length': 10 }).write('01234')
      setTimeout(() => response.destroy(), 20)
      return true
    }
    const { url } = await serve({ '/f': '0123456789' }, { change })
    await using tree = await open(`${url}/f`)
    await expect(tree.read('f', { at: 0, length: 10 })).rejects.toMatchObject({ code: 'UNREACHABLE' })
  })

  test('an aborted read', async () => {
    const { url } = await serve({ '/f': '0123456789' }, { change: request => request.method === 'GET' })
    await using tree = await open(`${url}/f`)
    await expect(tree.read('f', { at: 0, length: 10 }, AbortSignal.timeout(50))).rejects.toMatchObject({
      code: 'ABORTED',
    })
  })
})

describe('links', () => {
  const at = new URL('https://host/pub/')
  const names = (html: string) => linksIn(html, at).map(({ name, isDirectory }) => (isDirectory ? `${name}/` : name))

  test('as servers write them', () => {
    expect(names('<li><a href="a%20b/">a b/</a></li><li><a href="c&amp;d.txt">c&amp;d.txt</a></li>')).toEqual([
      'a b/',
      'c&d.txt',
    ])
    expect(names(`<tr><td><img src="x.gif"></td><td><A class=q HREF='x"y'>..</A></td></tr>`)).toEqual(['x"y'])
    expect(names('<a href=./plain >plain</a> <a href="./sub/"><span>sub</span></a>')).toEqual(['plain', 'sub/'])
    expect(names('<a href="&constructor;&QUOT;&#x41;&#66;">x</a>')).toEqual(['&constructor;"AB'])
    expect(names('<a href="%FF%C3%A9">x</a><a href="é">y</a>')).toEqual(['\xff\xc3\xa9', '\xc3\xa9'])
  })

  test('among other attributes, which may have anything in them', () => {
    expect(names('<a title="a > b" data-href="x" href="y">y</a>')).toEqual(['y'])
    expect(names('<a download href = z.txt hidden>z</a><a\nclass=q\nhref="w">w</a>')).toEqual(['z.txt', 'w'])
    expect(names('<a name="top">top</a><abbr href="x">x</abbr><a>x</a><a href>x</a><a href="v">v</a>')).toEqual(['v'])
    expect(names('<a href="x" href="y">x</a><a href=">')).toEqual(['x', '"'])
  })

  test.each([
    '<a ',
    '<a href',
    '<a href=',
    '<a x="',
    `<a x='"`,
    '<a href=" ',
    '&',
    '&a',
    '&#x',
    '%',
    ' ',
    '<',
    'a=',
    '=',
  ])('a page of 1 MiB of "%s" is read once', part => {
    const hostile = part.repeat(Math.ceil((1024 * 1024) / part.length))
    const started = performance.now()
    for (const page of [hostile, `<a ${hostile}`, `<a href${hostile}`, `<a href="${hostile}"`]) linksIn(page, at)
    expect(performance.now() - started).toBeLessThan(4000)
  })

  test('nothing above, beside or elsewhere, and nothing that is no name', () => {
    const hrefs = [
      '..',
      '../',
      '/',
      '/pub',
      '/public/x',
      './',
      '',
      '?C=M',
      '#x',
      'x?y=1',
      '//host/pub/',
      'javascript:x',
      'mailto:a@b',
    ]
    const odd = [
      'a%2Fb',
      'a%00b',
      '%2e%2e',
      '%2E',
      'x'.repeat(256),
      'http://host/pub/z',
      'https://host:8443/pub/z',
      '\0',
      'http://[',
    ]
    expect(names([...hrefs, ...odd].map(href => `<a href="${href}">x</a>`).join('\n'))).toEqual([])
  })
})
