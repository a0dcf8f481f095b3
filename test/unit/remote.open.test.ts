import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { openBeside, openRemote, redact } from '../../src/open.js'
import type { Shape } from '../../src/remote/wrap.js'
import { compileOnce } from '../remotes/compiled.js'

let directory: string
beforeAll(() => {
  directory = fs.mkdtempSync(join(tmpdir(), 'pageferry-'))
  fs.mkdirSync(join(directory, 'odd ?#%é'))
  fs.writeFileSync(join(directory, 'file'), '12345')
})
afterAll(() => fs.rmSync(directory, { recursive: true, force: true }))

describe('openRemote', () => {
  test('paths and file URLs', async () => {
    const odd = encodeURIComponent('odd ?#%é')
    for (const url of [
      `${directory}/odd ?#%é`,
      `file://${directory}/${odd}`,
      `file://localhost${directory}/${odd}`,
      `file:${directory}/${odd}`,
    ]) {
      await using tree = await openRemote(url, { shape: 'tree' })
      expect(await tree.list('')).toEqual({ entries: [] })
    }
    const byte = Buffer.concat([Buffer.from(`${directory}/`), Buffer.from([0xff])])
    fs.mkdirSync(byte)
    await using store = await openRemote(`file://${directory}/%ff`, { shape: 'store' })
    expect(await store.list('')).toEqual([])
    fs.rmdirSync(byte)
    await using blob = await openRemote(`file://${directory}/file`, { shape: 'blob' })
    expect(blob.size).toBe(5)
    await using fresh = await openRemote(`file://${directory}/new?size=1M`, { shape: 'blob' })
    expect(fresh.size).toBe(1024 ** 2)
  })

  test('memory', async () => {
    await using blob = await openRemote('mem:opened?size=1G', { shape: 'blob' })
    await blob.write(5, new Uint8Array([1]))
    await using same = await openRemote('mem:opened', { shape: 'blob' })
    expect(Array.from(await same.read(4, 2))).toEqual([0, 1])
    await using tree = await openRemote('mem:', { shape: 'tree' })
    expect(tree.url).toBe('mem:')
  })

  test('in a worker', async () => {
    compileOnce()
    await using tree = await openRemote(directory, { shape: 'tree', worker: true })
    expect(await tree.stat('file')).toMatchObject({ size: 5 })
    await expect(openRemote('/no/such', { shape: 'tree', worker: true })).rejects.toThrow(
      'bad usage: /no/such: no such directory',
    )
  })

  test.each<[string, Shape, string]>([
    ['', 'tree', '"" is not a remote: /path, ./path, file:, mem:, https:, http:'],
    ['some/path', 'tree', '"some/path" is not a remote'],
    [
      'ftp://host/path',
      'tree',
      'ftp://host/path: unknown scheme "ftp:"; there are /path, ./path, file:, mem:, https:, http:',
    ],
    ['constructor:x', 'tree', 'unknown scheme'],
    ['/no/such', 'tree', '/no/such: no such directory'],
    ['/no/such', 'blob', '/no/such: no such file'],
    ['/etc/passwd', 'tree', '/etc/passwd is not a directory'],
    ['/etc/passwd', 'store', '/etc/passwd is not a directory'],
    ['/etc/passwd/x', 'tree', '/etc/passwd/x is not a directory'],
    ['/etc', 'blob', '/etc is a directory, not a file'],
    ['/dev/null', 'blob', '/dev/null: "/dev/null" is no file and no block device'],
    ['file://host/path', 'tree', '"host" is another host; a file URL begins with file:///'],
    ['file:path', 'tree', 'a file URL has an absolute path, like file:///path'],
    ['file:///a%2', 'tree', 'a "%" must be written %25'],
    ['file:///a#b', 'tree', 'a "#" must be written %23'],
    ['file:///tmp?size=1G', 'tree', 'unknown "size" in the query of a tree; there is none'],
    ['mem:?foo=1', 'blob', 'unknown "foo" in the query of a blob; there may be size'],
    ['mem:', 'blob', 'a blob in memory needs a size'],
    ['s3:bucket', 'objects', "s3:bucket: a bucket's URL is like s3://bucket/prefix"],
    ['s3://', 'store', "a bucket's URL is like s3://bucket/prefix"],
    ['s3://key@bucket', 'store', "a bucket's URL is like s3://bucket/prefix"],
    ['s3://bucket/', 'blob', 'as a blob it is one object, like s3://bucket/object'],
    ['s3://bucket/%ff', 'store', 'keys are UTF-8, and so must be the prefix'],
    ['s3://bucket?pathStyle=yes', 'objects', 'pathStyle is 0 or 1'],
    ['s3://bucket?attributes=no', 'objects', 'attributes is full or listed'],
    ['s3://bucket?endpoint=host:9000', 'objects', 'the endpoint must be like https://host:port'],
    [
      's3://bucket?profile=x',
      'objects',
      'unknown "profile" in the query of objects; there may be endpoint, region, pathStyle, attributes',
    ],
    [
      's3://bucket?endpoint=http://me:hunter2@host',
      'objects',
      's3://bucket?endpoint=***: the endpoint must be like https://host:port, without credentials',
    ],
    ['s3://me:hunter2@bucket', 'objects', 's3://me:***@bucket: a password does not belong into a URL'],
    ['redis:host', 'store', 'redis:host: a Redis URL is like redis://host:6379/0?prefix=NAME'],
    ['redis:///0', 'store', 'a Redis URL is like redis://host:6379/0?prefix=NAME'],
    ['rediss://host:port/0', 'store', '"port" is no port'],
    ['redis://host:65536', 'store', '"65536" is no port'],
    ['redis://[::1]:6379/first', 'store', '"first" is no database: these have numbers'],
    ['redis://host/1/2', 'store', '"1/2" is no database: these have numbers'],
    ['redis://host?prefix=', 'store', 'redis://host?prefix=: the prefix is empty'],
    ['redis://host', 'tree', 'redis://host cannot be a tree'],
    ['redis://host?size=1G', 'store', 'unknown "size" in the query of a store; there may be prefix'],
    ['redis://host?db=1', 'blob', 'unknown "db" in the query of a blob; there may be prefix, size, layout'],
    ['redis://me:hunter2@host', 'store', 'redis://me:***@host: a password does not belong into a URL'],
    ['redis://:hunter2@host', 'store', 'redis://:***@host: a password does not belong into a URL'],
    ['redis://host?password=hunter2', 'store', '"password" does not belong into a URL'],
    ['mem:?size=big', 'blob', 'size: "big" is not a size'],
    [
      'mem:?secretKey=hunter2',
      'store',
      '"secretKey" does not belong into a URL: credentials come from the environment',
    ],
    ['file://me:hunter2@host/x', 'tree', 'file://me:***@host/x: a password does not belong into a URL'],
  ])('%j as a %s is refused in one line', async (url, shape, message) => {
    const error = await openRemote(url, { shape }).catch(thrown => thrown)
    expect(error).toMatchObject({ code: 'USAGE', message: expect.stringContaining(message) })
    expect(error.message).toMatch(/^bad usage: [^\n]*$/)
    expect(error.message).not.toContain('hunter2')
  })
})

describe('beside', () => {
  test('a file has a place for its intents, memory has none', async () => {
    const store = await openBeside(`file://${directory}/file`)
    expect(store?.url).toBe(`file://${directory}/.pageferry-file`)
    expect(await openBeside('mem:x?size=1')).toBeNull()
  })
})

test.each([
  ['s3://bucket/prefix?region=eu&endpoint=http://h:9000', 's3://bucket/prefix?region=eu&endpoint=http://h:9000'],
  ['redis://user:hunter2@host:6379/0?prefix=p', 'redis://user:***@host:6379/0?prefix=p'],
  ['redis://:hunter2@host', 'redis://:***@host'],
  ['sftp://user:p%40ss:word@host/a:b@c', 'sftp://user:***@host/a:b@c'],
  [
    's3://b?accessKeyId=A&secretAccessKey=hunter2&sessionToken=x#f',
    's3://b?accessKeyId=***&secretAccessKey=***&sessionToken=***#f',
  ],
  ['/a/path?token=x', '/a/path?token=x'],
  ['mem:', 'mem:'],
])('%j is printed as %j', (url, printed) => {
  expect(redact(url)).toBe(printed)
})
