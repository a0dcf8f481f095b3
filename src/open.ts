// URLs become remotes here, and only here.
import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { FerryError, isFerryError } from './base/errors.js'
import { parseSize } from './base/units.js'
import { ChunkStore } from './remote/chunk-store.js'
import { fileBlob } from './remote/file-blob.js'
import { fileStore, fileStoreBeside } from './remote/file-store.js'
import { fileTree } from './remote/file-tree.js'
import { encodeBytes } from './remote/http-index.js'
import { httpsTree } from './remote/https-tree.js'
import { inWorker } from './remote/in-worker.js'
import { memBlob } from './remote/mem-blob.js'
import { memStore } from './remote/mem-store.js'
import { memTree } from './remote/mem-tree.js'
import { objectBlob } from './remote/object-blob.js'
import { objectStore } from './remote/object-store.js'
import type { Key, Objects } from './remote/objects.js'
import type { RedisOptions } from './remote/redis-client.js'
import { rollforwardChunks } from './remote/rollforward-chunks.js'
import type { S3Options } from './remote/s3.js'
import type { Store } from './remote/store.js'
import type { Remote, Shape, Shapes } from './remote/wrap.js'

/** How a remote is to be opened. */
export interface OpenOptions<S extends Shape = Shape> {
  /** What the caller wants to see in it: a directory is a tree or a store, a file is a blob. */
  shape: S
  /** In a thread of its own. Default false. */
  worker?: boolean
  /** For `objects`: when the server is asked what it can; see s3.ts. */
  probe?: S3Options['probe']
}

/** A URL, taken apart. */
interface Location {
  /** As given, but without what may be a secret: for messages. */
  shown: string
  scheme: string
  /** Percent-decoded bytes (latin1) of what stands between the scheme and the query. */
  path: string
  query: URLSearchParams
  probe?: S3Options['probe']
}

/** How a scheme opens each shape that it has, and which query keys that takes. */
interface Scheme {
  query: { [S in Shape]?: readonly string[] }
  open: { [S in Shape]?: (location: Location) => Shapes[S] | Promise<Shapes[S]> }
}

const web: Scheme = {
  query: { tree: ['insecure'] },
  open: {
    tree: ({ scheme, path, query }) => httpsTree(webUrl(scheme, path), { insecure: query.get('insecure') === '1' }),
  },
}

const nbd: Scheme = {
  query: { blob: ['socket', 'connections', 'tls-hostname'] },
  open: {
    async blob(location) {
      const { nbdAddress } = await import('./remote/nbd-address.js')
      const address = nbdAddress(location, process.env)
      return (await import('./remote/nbd-blob.js')).nbdBlob(address)
    },
  },
}

/** A shape, in a sentence. */
const named: Record<Shape, string> = { tree: 'a tree', store: 'a store', objects: 'objects', blob: 'a blob' }

const s3Query = ['endpoint', 'region', 'pathStyle']

const redis: Scheme = {
  query: { store: ['prefix'], blob: ['prefix', 'size', 'layout'] },
  open: {
    store: location => openRedisStore(redisOptions(location)),
    blob: async location => {
      const { query } = location
      const options = redisOptions(location)
      if (query.has('layout')) return chunksIn(openRedisStore(options), query)
      return (await import('./remote/redis-blob.js')).redisBlob(options, sizeOf(query))
    },
  },
}

const grpcQuery = ['socket', 'tls-hostname']

const grpc: Scheme = {
  query: { tree: grpcQuery, blob: [...grpcQuery, 'size'] },
  open: {
    async tree(location) {
      const { grpcTree, address } = await grpcAt(location)
      return grpcTree(address)
    },
    async blob(location) {
      const { grpcBlob, address } = await grpcAt(location)
      return grpcBlob(address, sizeOf(location.query))
    },
  },
}

async function grpcAt(location: Location) {
  const { grpcAddress } = await import('./remote/grpc-address.js')
  const address = grpcAddress(location, process.env)
  return { ...(await import('./remote/grpc.js')), address }
}

const schemes: Record<string, Scheme> = {
  file: {
    query: { blob: ['size', 'layout'] },
    open: {
      tree: ({ path }) => fileTree(bytes(path)),
      store: ({ path }) => fileStore(bytes(path)),
      blob: ({ path, query }) =>
        query.has('layout') ? chunksIn(fileStore(bytes(path)), query) : fileBlob(bytes(path), sizeOf(query)),
    },
  },
  mem: {
    query: { blob: ['size', 'layout'] },
    open: {
      tree: ({ path }) => memTree(nameOf(path)),
      store: ({ path }) => memStore(nameOf(path).name),
      blob: ({ path, query }) =>
        query.has('layout')
          ? chunksIn(memStore(nameOf(path).name), query)
          : memBlob({ ...nameOf(path), ...sizeOf(query) }),
    },
  },
  https: web,
  http: web,
  nbd,
  nbds: nbd,
  'nbd+unix': nbd,
  'nbds+unix': nbd,
  redis,
  rediss: redis,
  grpc,
  grpcs: grpc,
  'grpc+unix': grpc,
  'grpcs+unix': grpc,
  s3: {
    query: { objects: [...s3Query, 'attributes'], store: s3Query, blob: [...s3Query, 'size', 'layout'] },
    open: {
      objects: location => {
        attributesAsked(location)
        return openS3(location, { probe: location.probe })
      },
      store: async location => objectStore(await openS3(location)),
      blob: async location => {
        if (location.query.has('layout')) return chunksIn(objectStore(await openS3(location)), location.query)
        const { bucket, key } = objectIn(location)
        return objectBlob(await openS3({ ...location, path: bucket }, { write: false }), key)
      },
    },
  },
}

/** The AWS SDK takes a quarter of a second to load: not for those who mount a directory. */
async function openS3(
  { shown, path, query }: Location,
  how: Pick<S3Options, 'write' | 'probe'> = {},
): Promise<Objects> {
  const [, bucket, prefix] = /^\/\/([\w.-]+)(?:\/(.*))?$/s.exec(path) ?? []
  if (bucket === undefined) throw usage(`${shown}: a bucket's URL is like s3://bucket/prefix`)
  const pathStyle = query.get('pathStyle')
  if (pathStyle !== null && pathStyle !== '0' && pathStyle !== '1') throw usage(`${shown}: pathStyle is 0 or 1`)
  const { s3Objects } = await import('./remote/s3.js')
  return s3Objects({
    ...{ bucket, prefix, ...how },
    ...{ endpoint: query.get('endpoint') ?? undefined, region: query.get('region') ?? undefined },
    ...(pathStyle !== null && { pathStyle: pathStyle === '1' }),
  })
}

async function openRedisStore(options: RedisOptions): Promise<Store> {
  return (await import('./remote/redis-store.js')).redisStore(options)
}

function redisOptions({ shown, scheme, path, query }: Location): RedisOptions {
  const [, user, host, port, db = ''] =
    /^\/\/(?:([^/@]+)@)?(\[[\da-f:.]+\]|[\w.-]+)(?::([^/]*))?(?:\/(.*))?$/is.exec(path) ?? []
  if (host === undefined) throw usage(`${shown}: a Redis URL is like redis://host:6379/0?prefix=NAME`)
  if (port !== undefined && !(/^\d{1,5}$/.test(port) && Number(port) > 0 && Number(port) < 2 ** 16))
    throw usage(`${shown}: "${port}" is no port`)
  if (!/^\d{0,5}$/.test(db)) throw usage(`${shown}: "${db}" is no database: these have numbers`)
  const prefix = query.get('prefix')
  if (prefix === '') throw usage(`${shown}: the prefix is empty`)
  return {
    ...{ host: host.replace(/^\[|\]$/g, ''), tls: scheme === 'rediss', db: Number(db) },
    ...(port !== undefined && { port: Number(port) }),
    ...(user !== undefined && { user: Buffer.from(user, 'latin1').toString() }),
    ...(prefix !== null && { prefix: Buffer.from(prefix).toString('latin1') }),
  }
}

/** What `attributes=` says of the metadata of a bucket's objects; see object-files.ts. Default 'full'. */
export const attributesOfUrl = (url: string): 'full' | 'listed' => attributesAsked(parse(url).location)

function attributesAsked({ shown, query }: Location): 'full' | 'listed' {
  const attributes = query.get('attributes') ?? 'full'
  if (attributes !== 'full' && attributes !== 'listed') throw usage(`${shown}: attributes is full or listed`)
  return attributes
}

const bytes = (path: string) => Buffer.from(path, 'latin1')
const webUrl = (scheme: string, path: string) => {
  const [, host = '', below = ''] = /^\/\/([^/]*)(.*)$/s.exec(path) ?? []
  const escaped = below.split('/').map(encodeBytes).join('/')
  if (host === '' || host.includes('@') || !URL.canParse(`${scheme}://${host}`))
    throw new FerryError('INVALID', { detail: `a URL of the web begins with ${scheme}://HOST/` })
  return new URL(`${scheme}://${host}${escaped || '/'}`)
}
const nameOf = (path: string) => (path === '' ? {} : { name: path })
async function chunksIn(opening: Store | Promise<Store>, query: URLSearchParams) {
  const store = await opening
  try {
    return rollforwardChunks(await ChunkStore.open(store, sizeOf(query)))
  } catch (error) {
    await store.close()
    throw error
  }
}
const sizeOf = (query: URLSearchParams) => (query.has('size') ? { size: parseSize(query.get('size')!, 'size') } : {})

/**
 * Opens `/path`, `./path`, `file:///path` or `mem:NAME` as a tree, a store or a blob, `https://host/path` as a tree,
 * `nbd://host/export` as a blob, `s3://bucket/prefix` as a store, a (read-only) blob, or objects, and `redis://host:port/db?prefix=NAME` (`rediss:` through TLS) as a
 * store or a blob. A blob's URL may say `?size=1G`: the file is made, or a blob in
 * memory gets that size; with `layout=chunks` it is kept chunk by chunk in what the rest of the URL is as a store, and commits whole batches. Close it when done. @throws FerryError USAGE, in one line, for what is not such a URL, for what is not there or is not
 * what `shape` asks for, and for credentials in it: these come from the environment.
 */
export async function openRemote<S extends Shape>(
  url: string,
  { shape, worker = false, probe }: OpenOptions<S>,
): Promise<Shapes[S] & AsyncDisposable> {
  const { scheme, location } = parse(url)
  const open = scheme.open[shape] as ((location: Location) => Promise<Shapes[S]>) | undefined
  if (!open) throw usage(`${location.shown} cannot be ${named[shape]}`)
  const allowed = scheme.query[shape] ?? []
  for (const key of location.query.keys())
    if (!(allowed as readonly string[]).includes(key))
      throw usage(`${location.shown}: unknown "${key}" in the query of ${named[shape]}; there ${known(allowed)}`)
  if (worker) {
    const opener = { module: import.meta.url, name: 'openRemote', args: [url, { shape, probe }] }
    return disposable(await inWorker(shape, opener))
  }
  try {
    return disposable(await open({ ...location, probe }))
  } catch (error) {
    throw mistakeOf(error, location, shape)
  }
}

/** What `pageferry mount` opens a URL as: its scheme has directories, or objects that become some. */
export const shapeOfMount = (url: string): 'tree' | 'objects' => (schemeOf(url) === 's3' ? 'objects' : 'tree')

/** What `pageferry serve` opens a URL as. */
export async function shapeToServe(url: string): Promise<'tree' | 'blob'> {
  const { name, scheme, location } = parse(url)
  if (location.query.has('size') || location.query.has('layout') || !scheme.open.tree) return 'blob'
  if (name !== 'file') return 'tree'
  const there = await stat(bytes(location.path)).catch(() => null)
  return there && !there.isDirectory() ? 'blob' : 'tree'
}

/** Of a URL of one object in a bucket: the bucket, with all that is asked of it, and the object's key. null: of something else. */
export function objectOfUrl(url: string): { directory: string; key: Key } | null {
  const { name, location } = parse(url)
  if (name !== 's3' || location.query.has('layout')) return null
  const { bucket, key } = objectIn(location)
  const query = location.query.toString()
  return { directory: `s3:${bucket}${query ? `?${query}` : ''}`, key }
}

/**
 * Of a URL of a blob that is kept chunk by chunk (`?layout=chunks`): the store that it is kept in, and the size that the URL says. null:
 * of another blob.
 */
export function chunksOfUrl(url: string): { store: string; size?: number } | null {
  const { name, location } = parse(url)
  const { query, shown } = location
  if (!query.has('layout')) return null
  if (query.get('layout') !== 'chunks') throw usage(`${shown}: layout is chunks`)
  const rest = new URLSearchParams([...query].filter(([key]) => key !== 'layout' && key !== 'size'))
  const path = /^[^?]*/.exec(url)![0]
  // As a store it has other keys, and no layout.
  const store = `${schemeOf(path) ? path : `${name}://${encodeURI(location.path)}`}${rest.size ? `?${rest}` : ''}`
  return { store, ...sizeOf(query) }
}

function objectIn({ shown, path }: Location): { bucket: string; key: Key } {
  const [, bucket, key] = /^(\/\/[^/]+)\/(.*[^/])$/s.exec(path) ?? []
  if (key === undefined) throw usage(`${shown}: as a blob it is one object, like s3://bucket/object`)
  return { bucket, key }
}

/**
 * Where the intents and the lease of a blob are kept: beside a file, in the same Redis, or where its server has them. null: there is no such place, it needs a
 * `--commit-store`.
 */
export async function openBeside(url: string): Promise<Store | null> {
  const { name, scheme, location } = parse(url)
  if (name === 'file') return fileStoreBeside(bytes(location.path))
  if (scheme === grpc) {
    const { grpcBeside, address } = await grpcAt(location)
    return grpcBeside(address)
  }
  if (scheme !== redis) return null
  const { PREFIX_DEFAULT } = await import('./remote/redis-client.js')
  const { prefix = PREFIX_DEFAULT, ...rest } = redisOptions(location)
  return openRedisStore({ ...rest, prefix: `${prefix}.pageferry/` })
}

/** A URL as it may be printed: without the password, and without what looks like a secret in the query. */
export function redact(url: string): string {
  if (!schemeOf(url)) return url
  return url
    .replace(/^([a-z][a-z0-9+.-]*:\/\/[^/?#:@]*):[^/?#]*@/i, '$1:***@')
    .replace(/([?&])([^=&#]*)=([^&#]*)/g, (whole, mark, key, value) =>
      isSecret(key) || hasPassword(value) ? `${mark}${key}=***` : whole,
    )
}

const isSecret = (key: string) => /secret|token|passw|pass$|pwd|credential|signature|^sig$|key/i.test(key)

/** A URL within a URL. */
const hasPassword = (value: string) => /(:|%3a)(\/|%2f){2}.*(@|%40)/i.test(value)

const schemeOf = (url: string) => /^([a-z][a-z0-9+.-]*):/i.exec(url)?.[1].toLowerCase()

const usage = (detail: string, cause?: unknown) => new FerryError('USAGE', { detail, cause })

const known = (keys: readonly string[]) => (keys.length ? `may be ${keys.join(', ')}` : 'is none')

function parse(url: string): { name: string; scheme: Scheme; location: Location } {
  const shown = redact(url)
  // An argument that is a path is a path, whatever chars are in it.
  if (/^\.{0,2}\//.test(url) || url === '.' || url === '..') {
    const path = Buffer.from(resolve(url)).toString('latin1')
    return {
      name: 'file',
      scheme: schemes.file,
      location: { shown, scheme: 'file', path, query: new URLSearchParams() },
    }
  }
  const name = schemeOf(url)
  const allowed = `/path, ./path, ${Object.keys(schemes).join(':, ')}:`
  if (!name) throw usage(`${JSON.stringify(shown)} is not a remote: ${allowed}`)
  if (!Object.hasOwn(schemes, name)) throw usage(`${shown}: unknown scheme "${name}:"; there are ${allowed}`)
  const [, rest, query = '', fragment] = /^[^:]*:([^?#]*)(?:\?([^#]*))?(#.*)?$/s.exec(url)!
  if (fragment) throw usage(`${shown}: a "#" must be written %23`)
  const parameters = new URLSearchParams(query)
  const secret = [...parameters.keys()].find(isSecret)
  if (secret) throw usage(`${shown}: "${secret}" does not belong into a URL: credentials come from the environment`)
  if (/^\/\/[^/]*:[^/]*@/.test(rest))
    throw usage(`${shown}: a password does not belong into a URL: credentials come from the environment`)
  const path = name === 'file' ? filePath(rest, shown) : rest
  return {
    name,
    scheme: schemes[name],
    location: { shown, scheme: name, path: unescapeBytes(path, shown), query: parameters },
  }
}

function filePath(rest: string, shown: string): string {
  const [, host, path] = /^(?:\/\/([^/]*))?(\/.*)$/s.exec(rest) ?? []
  if (path === undefined) throw usage(`${shown}: a file URL has an absolute path, like file:///path`)
  if (host && host !== 'localhost') throw usage(`${shown}: "${host}" is another host; a file URL begins with file:///`)
  return path
}

/** Percent escapes are bytes; other chars are their UTF-8. */
function unescapeBytes(path: string, shown: string): string {
  if (/%(?![0-9a-f]{2})/i.test(path)) throw usage(`${shown}: a "%" must be written %25`)
  const utf8 = Buffer.from(path).toString('latin1')
  return utf8.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
}

/** What is wrong with what the user gave is said in their words; everything else stays as it is. */
function mistakeOf(error: unknown, { shown, scheme }: Location, shape: Shape): unknown {
  const what = schemes[scheme] === nbd ? 'export' : shape === 'blob' ? 'file' : 'directory'
  if (isFerryError(error, 'NOT_FOUND')) return usage(`${shown}: no such ${what}`, error)
  if (isFerryError(error, 'NOT_DIRECTORY')) return usage(`${shown} is not a directory`, error)
  if (isFerryError(error, 'IS_DIRECTORY')) return usage(`${shown} is a directory, not a file`, error)
  if (isFerryError(error, 'INVALID')) return usage(`${shown}: ${error.message.replace(/^[^:]*: /, '')}`, error)
  return error
}

const disposable = <R extends Remote>(remote: R): R & AsyncDisposable =>
  Object.assign(remote, { [Symbol.asyncDispose]: () => remote.close() })
