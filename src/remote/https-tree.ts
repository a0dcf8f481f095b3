// A file on a web server, or a directory that it lists, to be read: HEAD tells size and version, GET brings ranges of that version.
import { abortReason, mapLimit } from '../base/async.js'
import { FerryError, isFerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { decodeBytes, encodeBytes, type Link, linksIn } from './http-index.js'
import { checkPath, checkRange, isHidden, joinPath, lastName, printable } from './path.js'
import { type ReadingTree, readOnlyTree } from './read-only.js'
import type { Entry, Path, Tree, Version } from './tree.js'

const log = logger('https')

const REDIRECTS_MAX = 5
/** A page that lists a directory. */
const PAGE_BYTES_MAX = 32 * 1024 * 1024
/** Entries of one page of `list`, and how many of them are asked for their size at once. */
const ENTRIES_MAX = 1000
const HEADS_MAX = 16
/** What a listing found out about a file is believed this long, by the next listing only. */
const HEAD_TTL_MS = 60_000
const HEADS_KEPT_MAX = 100_000
/** From a server without byte ranges, what lies before the bytes that are wanted is read and dropped, up to so much. */
const DROPPED_BYTES_MAX = 16 * 1024 * 1024

const FILE_MODE = 0o100444
const DIRECTORY_MODE = 0o040555

export interface HttpsOptions {
  /** Without encryption to hosts other than this one as well. */
  insecure?: boolean
}

/**
 * A URL that ends with '/', or leads to one that does, is a directory: what its page lists is in it. Any other is a directory with
 * that one file. A version is the server's ETag, else its Last-Modified with the size; what changed since is STALE.
 * @throws FerryError NOT_FOUND, NOT_DIRECTORY (no page that lists), INVALID (no size), FORBIDDEN, UNREACHABLE
 */
export async function httpsTree(base: URL, options: HttpsOptions = {}): Promise<Tree> {
  const server = new Server(base.protocol === 'http:', options)
  const asked = base.pathname.endsWith('/') ? null : await server.head(base)
  if (base.pathname.endsWith('/') || asked?.isDirectory) {
    const tree = new IndexedTree(server, base.href.replace(/\/?$/, '/'))
    await tree.list('')
    return readOnlyTree(tree)
  }
  if (!asked) throw new FerryError('NOT_FOUND', { detail: base.href })
  return readOnlyTree(new FileTree(server, base))
}

/** One file, in a directory of its own. */
class FileTree implements ReadingTree {
  readonly url: string
  readonly #name: string

  constructor(
    readonly server: Server,
    readonly file: URL,
  ) {
    this.url = file.href
    this.#name = decodeBytes(lastName(file.pathname))
  }

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    checkPath(path)
    if (path === '') return directory('')
    if (path !== this.#name) return null
    const head = await this.server.head(this.file, signal)
    return head && entryOf(this.#name, head)
  }

  async list(path: Path, _cursor?: string, signal?: AbortSignal): Promise<{ entries: Entry[] }> {
    if (path !== '')
      throw new FerryError(path === this.#name ? 'NOT_DIRECTORY' : 'NOT_FOUND', { detail: printable(path) })
    const entry = await this.stat(this.#name, signal)
    return { entries: entry ? [entry] : [] }
  }

  async read(path: Path, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    checkPath(path)
    if (path === '') throw new FerryError('IS_DIRECTORY', { detail: this.url })
    if (path !== this.#name) throw new FerryError('NOT_FOUND', { detail: printable(path) })
    return this.server.read(this.file, range, signal)
  }

  async close(): Promise<void> {}
}

/** Directories, as the server lists them. */
class IndexedTree implements ReadingTree {
  readonly #heads = new Map<Path, { head: Head; atMs: number }>()

  constructor(
    readonly server: Server,
    readonly url: string,
  ) {}

  async stat(path: Path, signal?: AbortSignal): Promise<Entry | null> {
    checkPath(path)
    if (isHidden(path)) return null
    if (path === '') return directory('')
    const head = await this.#head(path, signal)
    return head && entryOf(lastName(path), head)
  }

  async list(path: Path, cursor = '', signal?: AbortSignal): Promise<{ entries: Entry[]; cursor?: string }> {
    checkPath(path)
    const page = await this.server.page(this.#urlOf(path, '/'), signal)
    const links = linksIn(page.html, page.url)
      .filter(({ name }) => name > cursor && !isHidden(joinPath(path, name)))
      .sort((a, b) => (a.name < b.name ? -1 : 1))
    const some = links.slice(0, ENTRIES_MAX)
    const entries = await mapLimit(some, HEADS_MAX, link => this.#entry(path, link, signal))
    const more = links.length > some.length && { cursor: some[some.length - 1].name }
    return { entries: entries.filter(entry => entry !== null), ...more }
  }

  async read(path: Path, range: Range, signal?: AbortSignal): Promise<Uint8Array> {
    checkPath(path)
    if (path === '') throw new FerryError('IS_DIRECTORY', { detail: this.url })
    return this.server.read(this.#urlOf(path), range, signal)
  }

  async close(): Promise<void> {}

  /** null: it is gone since the page was made, or of no use. */
  async #entry(path: Path, { name, isDirectory }: Link, signal?: AbortSignal): Promise<Entry | null> {
    if (isDirectory) return directory(name)
    const full = joinPath(path, name)
    const known = this.#heads.get(full)
    try {
      const isFresh = known && performance.now() - known.atMs < HEAD_TTL_MS
      const head = isFresh ? known.head : await this.#head(full, signal)
      return head && entryOf(name, head)
    } catch (error) {
      if (!isFerryError(error, 'FORBIDDEN', 'INVALID')) throw error
      log.warn('a file is left out', { url: this.#urlOf(full).href, error })
      return null
    }
  }

  async #head(path: Path, signal?: AbortSignal): Promise<Head | null> {
    const head = await this.server.head(this.#urlOf(path), signal)
    if (this.#heads.size >= HEADS_KEPT_MAX) this.#heads.clear()
    if (head) this.#heads.set(path, { head, atMs: performance.now() })
    else this.#heads.delete(path)
    return head
  }

  #urlOf(path: Path, end = ''): URL {
    return new URL(path === '' ? this.url : this.url + path.split('/').map(encodeBytes).join('/') + end)
  }
}

interface Range {
  at: number
  length: number
  version?: Version
}

/** What a server says of something without sending it. */
interface Head {
  isDirectory: boolean
  size: number
  version: Version
  mtimeNs: bigint
}

const directory = (name: string): Entry => entryOf(name, { isDirectory: true, size: 0, version: '', mtimeNs: 0n })

const entryOf = (name: string, { isDirectory, size, version, mtimeNs }: Head): Entry => ({
  name,
  mode: isDirectory ? DIRECTORY_MODE : FILE_MODE,
  uid: 0,
  gid: 0,
  rdev: 0,
  nlink: isDirectory ? 2 : 1,
  size,
  allocated: size,
  atimeNs: mtimeNs,
  mtimeNs,
  ctimeNs: mtimeNs,
  version,
})

/** Requests, their redirects, and what answers mean. */
class Server {
  constructor(
    /** The user asked for a server without encryption. */
    readonly isPlain: boolean,
    readonly options: HttpsOptions,
  ) {}

  /** null: known not to be there. INVALID: it has no size. */
  async head(url: URL, signal?: AbortSignal): Promise<Head | null> {
    let answer = await this.#ask('HEAD', url, {}, signal)
    // A server that knows GET only: one byte of it.
    if (answer.response.status === 405 || answer.response.status === 501) {
      answer = await this.#ask('GET', url, { range: 'bytes=0-0' }, signal)
      await answer.response.body?.cancel()
    }
    const { response } = answer
    if (isGone(response)) return null
    refuseUnless(response, 200, 206)
    if (answer.url.pathname.endsWith('/')) return { isDirectory: true, size: 0, version: '', mtimeNs: 0n }
    const size = sizeOf(response)
    if (size === null) throw new FerryError('INVALID', { detail: `${url.href}: the server does not say its size` })
    const mtimeMs = Date.parse(response.headers.get('last-modified') ?? '') || 0
    return { isDirectory: false, size, version: versionOf(response, size), mtimeNs: BigInt(mtimeMs) * 1_000_000n }
  }

  /** A page of HTML, and where it was in the end. */
  async page(url: URL, signal?: AbortSignal): Promise<{ html: string; url: URL }> {
    const { response, url: last } = await this.#ask('GET', url, {}, signal)
    try {
      if (isGone(response)) throw new FerryError('NOT_FOUND', { detail: url.href })
      refuseUnless(response, 200)
      const isHtml = /^(text\/html|application\/xhtml)/i.test(response.headers.get('content-type') ?? '')
      if (!isHtml || !last.pathname.endsWith('/'))
        throw new FerryError('NOT_DIRECTORY', { detail: `${url.href}: no page that lists what is there` })
      const bytes = await take(response, { skip: 0, length: PAGE_BYTES_MAX }, signal)
      if (bytes.length === PAGE_BYTES_MAX) throw new FerryError('TOO_LARGE', { detail: `the page ${url.href}` })
      return { html: new TextDecoder().decode(bytes), url: last }
    } finally {
      await response.body?.cancel().catch(() => {})
    }
  }

  async read(url: URL, { at, length, version }: Range, signal?: AbortSignal): Promise<Uint8Array> {
    checkRange({ at, length })
    // Of no bytes one is asked for: whether it is there, and that version, is to be told all the same.
    const range = `bytes=${at}-${at + Math.max(1, length) - 1}`
    const condition = version === undefined ? null : strong(version)
    const { response, url: last } = await this.#ask(
      'GET',
      url,
      { range, ...(condition && { 'if-range': condition }) },
      signal,
    )
    try {
      if (isGone(response)) throw new FerryError('NOT_FOUND', { detail: url.href })
      if (response.status === 416) {
        if (version !== undefined && (await this.head(url, signal))?.version !== version)
          throw new FerryError('STALE', { detail: url.href })
        return new Uint8Array(0)
      }
      refuseUnless(response, 200, 206)
      if (last.pathname.endsWith('/')) throw new FerryError('IS_DIRECTORY', { detail: url.href })
      if (version !== undefined && !isOf(version, response)) throw new FerryError('STALE', { detail: url.href })
      const from =
        response.status === 206 ? Number(/^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '')?.[1]) : 0
      if (response.status === 206 && from !== at)
        throw new FerryError('IO', { detail: `${url.href}: asked for bytes from ${at}, got them from ${from}` })
      if (at - from > DROPPED_BYTES_MAX)
        throw new FerryError('UNSUPPORTED', {
          detail: `${url.href}: the server has no byte ranges, and ${at} bytes would have to be read in vain`,
        })
      return await take(response, { skip: at - from, length }, signal)
    } finally {
      await response.body?.cancel().catch(() => {})
    }
  }

  async #ask(
    method: 'GET' | 'HEAD',
    first: URL,
    headers: Record<string, string>,
    signal?: AbortSignal,
  ): Promise<{ response: Response; url: URL }> {
    let url = first
    for (let redirects = 0; redirects <= REDIRECTS_MAX; redirects++) {
      this.#check(url, first)
      const response = await asFerry(
        fetch(url, { method, headers: { 'accept-encoding': 'identity', ...headers }, redirect: 'manual', signal }),
        url,
        signal,
      )
      const location = response.headers.get('location')
      if (![301, 302, 303, 307, 308].includes(response.status) || location === null) {
        const encoding = response.headers.get('content-encoding') ?? 'identity'
        if (encoding === 'identity') return { response, url }
        await response.body?.cancel()
        throw new FerryError('INVALID', { detail: `${url.href}: the server sends it as ${encoding}, unasked` })
      }
      await response.body?.cancel()
      if (!URL.canParse(location, url.href)) throw new FerryError('IO', { detail: `${url.href} leads to no URL` })
      url = new URL(location, url)
    }
    throw new FerryError('IO', { detail: `${first.href}: more than ${REDIRECTS_MAX} redirects` })
  }

  /** Nobody is led from where it is safe to where it is not. */
  #check(url: URL, first: URL) {
    if (url.protocol === 'https:') return
    if (url.protocol === 'http:' && this.isPlain && (this.options.insecure || isLoopback(url.hostname))) return
    throw new FerryError('FORBIDDEN', {
      detail: `${first.href}: ${url.protocol}//${url.host} is not encrypted; ?insecure=1 allows it where http: was asked for`,
    })
  }
}

const isLoopback = (host: string) => /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/.test(host)

const isGone = ({ status }: Response) => status === 404 || status === 410

/** What else an answer may be than what was asked for. */
function refuseUnless(response: Response, ...wanted: number[]): void {
  const { status, url } = response
  if (wanted.includes(status)) return
  const detail = `${url}: the server says ${status} ${response.statusText}`.trimEnd()
  if (status === 401 || status === 403 || status === 407) throw new FerryError('FORBIDDEN', { detail })
  throw new FerryError(status === 429 || status === 503 ? 'BUSY' : 'IO', { detail })
}

/** Of the whole file. */
function sizeOf({ status, headers }: Response): number | null {
  const text = status === 206 ? headers.get('content-range')?.split('/')[1] : headers.get('content-length')
  return text && /^\d{1,15}$/.test(text) ? Number(text) : null
}

const versionOf = ({ headers }: Response, size: number): Version =>
  headers.get('etag') ?? `${headers.get('last-modified') ?? ''};${size}`

/** Is this answer of that version? One without a size (in chunks, or of a part) has its ETag or its time. */
function isOf(version: Version, response: Response): boolean {
  const size = sizeOf(response)
  if (size !== null || response.headers.has('etag')) return versionOf(response, size ?? 0) === version
  const modified = response.headers.get('last-modified')
  return modified !== null && version.startsWith(`${modified};`)
}

/** What If-Range takes: a strong ETag, or a time. */
function strong(version: Version): string | null {
  if (version.startsWith('"')) return version
  return version.startsWith('W/') ? null : version.slice(0, version.lastIndexOf(';')) || null
}

/** `length` bytes of the body after those that are skipped; fewer at its end. */
async function take(response: Response, { skip, length }: { skip: number; length: number }, signal?: AbortSignal) {
  const parts: Uint8Array[] = []
  let passed = 0
  let got = 0
  const reader = response.body?.getReader()
  while (reader && got < length) {
    const { done, value } = await asFerry(reader.read(), new URL(response.url), signal)
    if (done) break
    const from = Math.min(value.length, Math.max(0, skip - passed))
    const part = value.subarray(from, from + length - got)
    passed += value.length
    got += part.length
    parts.push(part)
  }
  await reader?.cancel().catch(() => {})
  reader?.releaseLock()
  const bytes = new Uint8Array(got)
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  return bytes
}

async function asFerry<T>(work: Promise<T>, url: URL, signal?: AbortSignal): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (signal?.aborted) throw abortReason(signal)
    // What fetch throws says nothing; its cause does.
    const cause = (error as Error).cause ?? error
    const known = toFerryError(cause, `${url.host}: ${(cause as Error).message}`)
    throw known.code === 'IO'
      ? new FerryError('UNREACHABLE', { detail: `${url.host}: ${(cause as Error).message}`, cause })
      : known
  }
}
