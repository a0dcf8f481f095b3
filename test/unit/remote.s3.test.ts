// What a server may answer, right or wrong: a small one of our own says it.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import type { Code, FerryError } from '../../src/base/errors.js'
import type { Objects, Part } from '../../src/remote/objects.js'
import { s3Objects } from '../../src/remote/s3.js'
import { type StrictS3, strictS3 } from '../fixtures/strict-s3.js'
import { bytes, fails, text } from '../remotes/primitives.js'

type Answer = (request: IncomingMessage, response: ServerResponse, body: string) => void

let server: Server
let answers: Answer[] = []
let requests: { line: string; headers: IncomingMessage['headers'] }[] = []
let objects: Objects
const saved = { ...process.env }

const xml = (status: number, code: string, headers: Record<string, string> = {}): Answer => {
  return (request, response) => {
    response.writeHead(status, { 'content-type': 'application/xml', 'x-amz-request-id': 'REQ1', ...headers })
    response.end(
      request.method === 'HEAD' ? '' : `<?xml version="1.0"?><Error><Code>${code}</Code><Message>m</Message></Error>`,
    )
  }
}
const raw = (status: number, headers: Record<string, string | number>, body: string | Buffer = ''): Answer => {
  return (_, response) => {
    response.writeHead(status, headers)
    response.end(body)
  }
}

beforeAll(async () => {
  for (const name of Object.keys(process.env)) if (/^AWS_(?!SDK_JS_)|_proxy$/i.test(name)) delete process.env[name]
  Object.assign(process.env, {
    ...{ AWS_ACCESS_KEY_ID: 'AKIDEXAMPLE', AWS_SECRET_ACCESS_KEY: 'hunter2secret', AWS_SESSION_TOKEN: 'hunter2token' },
    ...{ AWS_CONFIG_FILE: '/dev/null', AWS_SHARED_CREDENTIALS_FILE: '/dev/null' },
  })
  server = createServer(async (request, response) => {
    let body = ''
    for await (const piece of request) body += piece
    requests.push({ line: `${request.method} ${request.url}`, headers: request.headers })
    // The last one is for all that follow.
    const answer = answers.length > 1 ? answers.shift()! : answers[0]
    answer(request, response, body)
  }).listen(0, '127.0.0.1')
  await new Promise(done => server.once('listening', done))
  objects = await s3Objects({ bucket: 'bucket', prefix: 'p', endpoint: urlOf(server), write: false })
})
afterEach(() => {
  answers = []
  requests = []
})
afterAll(async () => {
  await objects.close()
  server.closeAllConnections()
  server.close()
  process.env = saved
})

const urlOf = (of: Server) => `http://127.0.0.1:${(of.address() as AddressInfo).port}`
const errorOf = (call: Promise<unknown>): Promise<FerryError> =>
  call.then(
    () => expect('it worked').toBe('it failed') as never,
    error => error,
  )

describe('a refusal', () => {
  test.each([
    [404, 'NoSuchKey', 'NOT_FOUND', 'get "a" (NoSuchKey, 404, request REQ1)'],
    [404, 'NoSuchBucket', 'UNREACHABLE', 'there is no such bucket'],
    [403, 'AccessDenied', 'FORBIDDEN', 'AccessDenied, 403'],
    [403, 'InvalidObjectState', 'ARCHIVED', 'must be restored before it can be read'],
    [403, 'RequestTimeTooSkewed', 'UNREACHABLE', "this host's clock"],
    [400, 'ExpiredToken', 'UNREACHABLE', 'the credentials have expired'],
    [403, 'InvalidAccessKeyId', 'UNREACHABLE', 'does not know this access key'],
    [403, 'SignatureDoesNotMatch', 'UNREACHABLE', 'the secret key is wrong'],
    [503, 'SlowDown', 'UNREACHABLE', 'asked to slow down'],
    [503, 'ServiceUnavailable', 'UNREACHABLE', '503'],
    [500, 'InternalError', 'IO', 'InternalError, 500'],
    [409, 'OperationAborted', 'BUSY', '409'],
    [412, 'PreconditionFailed', 'STALE', 'get "a"'],
    [501, 'NotImplemented', 'UNSUPPORTED', '501'],
    [418, 'Teapot', 'INVALID', 'Teapot, 418'],
  ])('%i %s is %s', async (status, code, ours, detail) => {
    answers = [xml(status, code)]
    const error = await errorOf(objects.get('a', { at: 0, length: 10, etag: 'e' }))
    expect(error.code).toBe(ours)
    expect(error.message).toContain(detail)
    expect(error.message).not.toContain('\n')
    // It is not tried again here.
    expect(requests).toHaveLength(1)
  })

  test('names the region of a bucket that is elsewhere', async () => {
    answers = [xml(301, 'PermanentRedirect', { 'x-amz-bucket-region': 'eu-central-7' })]
    const error = await errorOf(objects.get('a'))
    expect([error.code, error.message]).toEqual(['UNREACHABLE', expect.stringContaining('(region eu-central-7)')])
  })

  test('is none when nobody says what is not there', async () => {
    // A proxy's page, an empty answer, and garbage.
    for (const answer of [
      raw(404, { 'content-type': 'text/html' }, '<html>404</html>'),
      raw(404, {}),
      raw(404, {}, '<Err'),
    ]) {
      answers = [answer]
      expect(['UNREACHABLE', 'IO']).toContain((await errorOf(objects.get('a'))).code)
      expect(['UNREACHABLE', 'IO']).toContain((await errorOf(objects.head('a'))).code)
      expect(['UNREACHABLE', 'IO']).toContain((await errorOf(objects.list({ prefix: '' }))).code)
    }
  })

  test('of a HEAD is explained by a GET', async () => {
    answers = [xml(404, ''), xml(404, 'NoSuchKey')]
    expect(await objects.head('a')).toBeNull()
    answers = [xml(404, ''), xml(404, 'NoSuchBucket')]
    await fails(objects.head('a'), 'UNREACHABLE')
    answers = [xml(403, ''), xml(403, 'AccessDenied')]
    await fails(objects.head('a'), 'FORBIDDEN')
    answers = [xml(400, ''), xml(400, 'ExpiredToken')]
    await fails(objects.head('a'), 'UNREACHABLE')
    answers = [xml(503, '')]
    await fails(objects.head('a'), 'UNREACHABLE')
    const there = raw(200, { 'content-length': 1, etag: '"x"' }, 'x')
    answers = [xml(404, ''), there, xml(404, ''), there, xml(404, ''), there]
    await fails(objects.head('a'), 'IO')
    // It came between the two.
    answers = [xml(404, ''), there, there]
    expect(await objects.head('a')).toMatchObject({ etag: 'x' })
    expect(requests.map(({ line }) => line.split(' ')[0]).join(' ')).toBe(
      'HEAD GET HEAD GET HEAD GET HEAD GET HEAD HEAD GET HEAD GET HEAD GET HEAD GET HEAD',
    )
  })

  test('holds no secret, whatever the server repeats', async () => {
    answers = [
      raw(
        403,
        { 'x-amz-request-id': 'REQ1' },
        '<Error><Code>SignatureDoesNotMatch</Code><Message>hunter2message</Message><AWSAccessKeyId>AKIDEXAMPLE</AWSAccessKeyId>' +
          '<CanonicalRequest>x-amz-security-token:hunter2token</CanonicalRequest></Error>',
      ),
    ]
    const error = await errorOf(objects.get('a'))
    const { inspect } = await import('node:util')
    expect(inspect(error, { depth: 9 })).not.toMatch(/hunter2|AKID/)
    expect(requests[0].headers['x-amz-security-token']).toBe('hunter2token')
  })

  test('in an answer of 200 is one all the same', async () => {
    answers = [
      raw(200, { 'content-type': 'application/xml' }, '<Error><Code>InternalError</Code><Message>m</Message></Error>'),
    ]
    expect(['IO', 'UNREACHABLE']).toContain((await errorOf(objects.copy('a', 'b'))).code)
  })
})

describe('a body', () => {
  const whole = (body: string, headers: Record<string, string | number> = {}) =>
    raw(200, { 'content-length': body.length, etag: '"e"', ...headers }, body)
  const part = (range: string, body: string) =>
    raw(206, { 'content-length': body.length, 'content-range': range, etag: '"e"' }, body)

  test('that is cut off is SHORT_READ', async () => {
    answers = [
      (_, response) => {
        response.writeHead(200, { 'content-length': 100, etag: '"e"' })
        response.write('0123456789')
        setTimeout(() => response.destroy(), 20)
      },
    ]
    await fails(objects.get('a'), 'SHORT_READ')
  })

  test('of another range is CORRUPT', async () => {
    for (const answer of [
      part('bytes 1-4/10', '1234'),
      part('bytes 0-2/10', '012'),
      part('bytes 0-9/10', '0123456789'),
      part('bytes 0-4/10', '0123'),
      part('rubbish', '0123'),
      whole('0123456789'),
    ]) {
      answers = [answer]
      await fails(objects.get('a', { at: 0, length: 4 }), 'CORRUPT')
    }
    answers = [whole('0123')]
    await fails(objects.get('a', { at: 2, length: 4 }), 'CORRUPT')
    // All of it is what was asked for.
    answers = [whole('012')]
    expect(text(await objects.get('a', { at: 0, length: 4 }))).toBe('012')
    answers = [part('bytes 8-9/10', '89')]
    expect(text(await objects.get('a', { at: 8, length: 4 }))).toBe('89')
  })

  test('with another tag is STALE, even if the server took no notice of If-Match', async () => {
    answers = [part('bytes 0-3/10', '0123')]
    await fails(objects.get('a', { at: 0, length: 4, etag: 'other' }), 'STALE')
    expect(requests[0].headers).toMatchObject({ 'if-match': '"other"', range: 'bytes=0-3' })
    expect(text(await objects.get('a', { at: 0, length: 4, etag: 'e' }))).toBe('0123')
  })

  test('can be aborted in its middle', async () => {
    answers = [
      (_, response) => {
        response.writeHead(200, { 'content-length': 100, etag: '"e"' })
        response.write('0123456789')
      },
    ]
    const controller = new AbortController()
    setTimeout(() => controller.abort(), 50)
    await fails(objects.get('a', undefined, controller.signal), 'ABORTED')
  })

  test('too large for one piece of memory is not read', async () => {
    answers = [(_, response) => void response.writeHead(200, { 'content-length': 2 ** 40, etag: '"e"' }).write('x')]
    await fails(objects.get('a'), 'TOO_LARGE')
  })
})

describe('a listing', () => {
  test('of garbage is an error, not an empty one', async () => {
    for (const body of ['', 'garbage', '<ListBucketResult><Contents><Key>', '<html></html>']) {
      answers = [raw(200, { 'content-type': 'application/xml' }, body)]
      await fails(objects.list({ prefix: '' }), 'IO')
      await fails(objects.uploads(''), 'IO')
      await fails(objects.beginUpload('a'), 'IO')
      await fails(objects.copy('a', 'b'), 'IO')
      await fails(objects.completeUpload('a', 'U', [{ number: 1, etag: 'e' }]), 'IO')
      await fails(objects.removeAll(['a']), 'IO')
    }
  })

  test('shows what is archived, unless it was restored', async () => {
    const entry = (key: string, rest: string) =>
      `<Contents><Key>p%2F${key}</Key><Size>1</Size><ETag>&quot;e&quot;</ETag><LastModified>2026-01-01T00:00:00.789Z</LastModified>${rest}</Contents>`
    const restored = '<RestoreStatus><RestoreExpiryDate>2026-02-01T00:00:00.000Z</RestoreExpiryDate></RestoreStatus>'
    answers = [
      raw(
        200,
        {},
        `<ListBucketResult><Name>bucket</Name><EncodingType>url</EncodingType>${[
          entry('a', '<StorageClass>GLACIER</StorageClass>'),
          entry('b', '<StorageClass>GLACIER_IR</StorageClass>'),
          entry('c', '<StorageClass>DEEP_ARCHIVE</StorageClass>'),
          entry('d', `<StorageClass>GLACIER</StorageClass>${restored}`),
          entry('e+%2B%01', ''),
          entry('', ''),
        ].join('')}</ListBucketResult>`,
      ),
    ]
    const { objects: found, cursor } = await objects.list({ prefix: '' })
    expect(found.map(({ key, archived }) => [key, archived])).toEqual([
      ['a', true],
      ['b', false],
      ['c', true],
      ['d', false],
      ['e +\x01', false],
    ])
    expect(found[0]).toEqual({ key: 'a', size: 1, etag: 'e', modifiedMs: Date.UTC(2026, 0, 1), archived: true })
    expect(cursor).toBeUndefined()
  })
})

describe('a change', () => {
  test('that copies what is too large for one copy is an upload in parts', async () => {
    const gib = 2 ** 30
    const size = 5 * gib + 7
    const head = raw(200, {
      'content-length': size,
      etag: '"s"',
      'x-amz-meta-k': 'v',
      'last-modified': new Date(0).toUTCString(),
    })
    const begun = raw(200, {}, '<InitiateMultipartUploadResult><UploadId>U</UploadId></InitiateMultipartUploadResult>')
    const copied = raw(200, {}, '<CopyPartResult><ETag>"pp"</ETag></CopyPartResult>')
    const done = raw(
      200,
      {},
      '<CompleteMultipartUploadResult><Key>p/b</Key><ETag>"done-6"</ETag></CompleteMultipartUploadResult>',
    )
    const byRequest: Answer = (request, response, body) => {
      const at = request.url!
      if (request.method === 'HEAD') return head(request, response, body)
      if (at.includes('uploads')) return begun(request, response, body)
      if (at.includes('partNumber')) return copied(request, response, body)
      if (at.includes('uploadId')) return done(request, response, body)
      return xml(400, 'InvalidRequest')(request, response, body)
    }
    answers = [byRequest]
    expect(await objects.copy('a', 'b')).toBe('done-6')
    const parts = requests.filter(({ line }) => line.includes('partNumber'))
    expect(parts.map(({ headers }) => headers['x-amz-copy-source-range']).sort()).toEqual(
      [0, 1, 2, 3, 4, 5].map(n => `bytes=${n * gib}-${Math.min((n + 1) * gib, size) - 1}`),
    )
    expect(parts[0].headers).toMatchObject({ 'x-amz-copy-source': 'bucket/p/a', 'x-amz-copy-source-if-match': '"s"' })
    expect(requests.find(({ line }) => line.startsWith('POST /bucket/p/b?uploads'))?.headers).toMatchObject({
      'x-amz-meta-k': 'v',
    })
  })

  test('of many removals is an error if one of them was refused', async () => {
    answers = [raw(200, {}, '<DeleteResult><Error><Key>p/b</Key><Code>AccessDenied</Code></Error></DeleteResult>')]
    const error = await errorOf(objects.removeAll(['a', 'b']))
    expect([error.code, error.message]).toEqual(['FORBIDDEN', expect.stringContaining('remove "b"')])
    answers = [
      raw(
        200,
        {},
        '<DeleteResult><Deleted><Key>p/a</Key></Deleted><Error><Key>p/b</Key><Code>NoSuchKey</Code></Error></DeleteResult>',
      ),
    ]
    await objects.removeAll(['a', 'b'])
    expect(requests[0].headers).toHaveProperty(['x-amz-checksum-crc32'])
  })
})

describe('a server that looks at every condition', () => {
  let strict: StrictS3
  let remote: Objects
  beforeAll(async () => {
    strict = await strictS3()
    remote = await s3Objects({ bucket: 'bucket', endpoint: strict.endpoint })
  })
  afterAll(async () => {
    await remote.close()
    await strict.close()
  })

  test('is known to, and nothing of the probe is left', () => {
    expect(remote.capabilities).toMatchObject({
      ...{ write: true, putIfAbsent: true, putIfMatch: true },
      ...{ completeIf: true, copyIf: true, removeIfMatch: true },
    })
    expect(strict.keys()).toEqual([])
  })

  test('decides: whether the key is taken, free, or another one', async () => {
    const upload = async (): Promise<[string, Part[]]> => {
      const id = await remote.beginUpload('a')
      return [id, [{ number: 1, etag: await remote.uploadPart('a', id, 1, bytes('part')) }]]
    }
    const old = await remote.put('a', bytes('1'), { ifAbsent: true })
    await remote.put('b', bytes('source'))
    await fails(remote.put('a', bytes('x'), { ifAbsent: true }), 'CONFLICT')
    await fails(remote.copy('b', 'a', { ifAbsent: true }), 'CONFLICT')
    await fails(remote.completeUpload('a', ...(await upload()), { ifAbsent: true }), 'CONFLICT')
    const now = await remote.put('a', bytes('2'), { ifMatch: old })
    for (const key of ['a', 'free']) {
      await fails(remote.put(key, bytes('x'), { ifMatch: old }), 'CONFLICT')
      await fails(remote.copy('b', key, { ifMatch: old }), 'CONFLICT')
    }
    await fails(remote.completeUpload('a', ...(await upload()), { ifMatch: old }), 'CONFLICT')
    await fails(remote.remove('a', { ifMatch: old }), 'CONFLICT')
    await fails(remote.copy('b', 'a', { ifMatch: now, sourceEtag: old }), 'STALE')
    await fails(remote.copy('none', 'a', { ifMatch: now }), 'NOT_FOUND')
    expect(text(await remote.get('a'))).toBe('2')
    const copied = await remote.copy('b', 'a', { ifMatch: now })
    const completed = await remote.completeUpload('a', ...(await upload()), { ifMatch: copied })
    await remote.remove('a', { ifMatch: completed })
    await remote.remove('a', { ifMatch: completed })
    expect(strict.keys()).toEqual(['b'])
  })

  test('is asked again when another request is at work, within limits', async () => {
    strict.busy = 3
    const etag = await remote.put('c', bytes('1'), { ifAbsent: true })
    strict.busy = 2
    await remote.remove('c', { ifMatch: etag })
    strict.busy = 1000
    await fails(remote.put('c', bytes('1'), { ifAbsent: true }), 'BUSY')
    strict.busy = 0
    expect(strict.keys()).toEqual(['b'])
  })
})

/** Errors of sockets are of another realm than a test's, and so the SDK wraps them here, but nowhere else: then it is IO. */
const nobodyThere: Code[] = ['UNREACHABLE', 'IO']

describe('the client', () => {
  test('finds nobody there', async () => {
    const nobody = await s3Objects({ bucket: 'bucket', endpoint: 'http://127.0.0.1:1', write: false })
    const error = await errorOf(nobody.get('a'))
    expect(nobodyThere).toContain(error.code)
    await nobody.close()
  })

  test('is not let in: that is a remote without writes', async () => {
    answers = [xml(403, 'AccessDenied')]
    const closed = await s3Objects({ bucket: 'bucket', endpoint: urlOf(server) })
    expect(closed.capabilities).toMatchObject({ write: false, putIfAbsent: false })
    await closed.close()
    answers = [xml(404, 'NoSuchBucket')]
    await fails(s3Objects({ bucket: 'bucket', endpoint: urlOf(server) }), 'UNREACHABLE')
  })

  test('asks nothing before the first change with a condition, and again if that was in vain; or at once', async () => {
    const late = await s3Objects({ bucket: 'bucket', endpoint: urlOf(server), probe: 'change' })
    expect(late.capabilities).toMatchObject({ write: true, putIfAbsent: false })
    answers = [raw(200, { etag: '"e"' })]
    await late.put('a', bytes('no condition'))
    expect(requests).toHaveLength(1)
    answers = [xml(503, 'SlowDown')]
    await fails(late.put('a', bytes('x'), { ifAbsent: true }), 'UNREACHABLE')
    answers = [xml(403, 'AccessDenied')]
    const error = await errorOf(late.put('a', bytes('x'), { ifAbsent: true }))
    expect([error.code, error.message]).toEqual(['FORBIDDEN', expect.stringContaining('--read-only')])
    await late.close()
    const strict = await strictS3()
    const other = await s3Objects({ bucket: 'bucket', endpoint: strict.endpoint, probe: 'change' })
    await Promise.all(['a', 'b'].map(key => other.put(key, bytes(key), { ifAbsent: true })))
    expect(other.capabilities.copyIf).toBe(true)
    await other.close()
    expect(strict.keys()).toEqual(['a', 'b'])
    const early = await s3Objects({ bucket: 'bucket', endpoint: strict.endpoint, probe: 'begin' })
    for (const giveUpMs = Date.now() + 10_000; !early.capabilities.copyIf && Date.now() < giveUpMs; ) await sleep(5)
    expect(early.capabilities.copyIf).toBe(true)
    await early.close()
    await strict.close()
  })

  test('takes the endpoint from the environment, and refuses what is none', async () => {
    process.env.AWS_ENDPOINT_URL_S3 = urlOf(server)
    answers = [raw(200, { 'content-length': 1, etag: '"e"' }, 'x')]
    const from = await s3Objects({ bucket: 'bucket', write: false })
    expect(text(await from.get('a'))).toBe('x')
    expect(requests[0].line).toBe('GET /bucket/a?x-id=GetObject')
    await from.close()
    delete process.env.AWS_ENDPOINT_URL_S3
    for (const endpoint of ['host:9000', 'http://me:hunter2@host', 'ftp://host', 'http://host/?x=1']) {
      const error = await errorOf(s3Objects({ bucket: 'bucket', endpoint, write: false }))
      expect(error.code).toBe('INVALID')
      expect(error.message).not.toContain('hunter2')
    }
  })

  test('goes through a proxy, unless NO_PROXY says otherwise', async () => {
    const targets: string[] = []
    const proxy = createServer().on('connect', (request, socket) => {
      targets.push(request.url!)
      socket.end('HTTP/1.1 503 No\r\n\r\n')
    })
    await new Promise<void>(done => proxy.listen(0, '127.0.0.1', done))
    process.env.HTTPS_PROXY = urlOf(proxy)
    const through = await s3Objects({ bucket: 'bucket', endpoint: 'https://127.0.0.1:9', write: false })
    await fails(through.get('a'), ...nobodyThere)
    expect(targets).toEqual(['127.0.0.1:9'])
    process.env.NO_PROXY = '127.0.0.1'
    await fails(through.get('a'), ...nobodyThere)
    expect(targets).toHaveLength(1)
    delete process.env.HTTPS_PROXY
    delete process.env.NO_PROXY
    await through.close()
    proxy.close()
  })

  test('cannot go on without the CA bundle that it was told to trust', async () => {
    process.env.AWS_CA_BUNDLE = '/no/such/bundle.pem'
    await fails(s3Objects({ bucket: 'bucket', write: false }), 'IO')
    delete process.env.AWS_CA_BUNDLE
  })

  test('has no credentials', async () => {
    const { AWS_ACCESS_KEY_ID: id, ...rest } = process.env
    process.env = { ...rest, AWS_EC2_METADATA_DISABLED: 'true' }
    const anonymous = await s3Objects({ bucket: 'bucket', endpoint: urlOf(server), write: false })
    const error = await errorOf(anonymous.put('a', bytes('x')))
    expect([error.code, error.message]).toEqual(['UNREACHABLE', expect.stringContaining('no credentials')])
    process.env = { ...rest, AWS_ACCESS_KEY_ID: id }
    await anonymous.close()
  })
})
