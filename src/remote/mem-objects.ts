// Objects in memory: the model that those of a bucket are held against.
import { createHash } from 'node:crypto'
import { throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import type {
  Key,
  ListPage,
  Metadata,
  ObjectCondition,
  ObjectEntry,
  ObjectHead,
  ObjectOptions,
  Objects,
  ObjectsCapabilities,
  Part,
} from './objects.js'

const PAGE_MAX = 1_000
const NUMBER_MAX = 10_000

interface Stored extends ObjectHead {
  bytes: Uint8Array
}

interface Upload {
  key: Key
  metadata: Metadata
  contentType: string
  begunMs: number
  parts: Map<number, { bytes: Uint8Array; etag: string }>
}

interface State {
  objects: Map<Key, Stored>
  uploads: Map<string, Upload>
}

/** `snapshot` is a moment, `restore` goes back to it. */
export interface MemObjects extends Objects {
  snapshot(): State
  restore(snapshot: State): void
}

export interface MemObjectsOptions {
  /** To play a bucket that can do less. A condition that it does not look at itself is looked at just before, as a client would. */
  capabilities?: Partial<ObjectsCapabilities>
  nowMs?: () => number
}

const all: ObjectsCapabilities = {
  write: true,
  putIfAbsent: true,
  putIfMatch: true,
  completeIf: true,
  copyIf: true,
  removeIfMatch: true,
  keyBytesMax: 1024,
  metadataBytesMax: 2048,
  objectBytesMax: 5 * 1024 ** 4,
  putBytesMax: 5 * 1024 ** 3,
  copyBytesMax: 5 * 1024 ** 3,
  partBytesMin: 5 * 1024 ** 2,
  partBytesMax: 5 * 1024 ** 3,
  partsMax: NUMBER_MAX,
}

const md5 = (bytes: Uint8Array) => createHash('md5').update(bytes).digest('hex')
const refuse = (code: ConstructorParameters<typeof FerryError>[0], detail: string): never => {
  throw new FerryError(code, { detail })
}

export function memObjects({ capabilities: fewer, nowMs = Date.now }: MemObjectsOptions = {}): MemObjects {
  const capabilities = { ...all, ...fewer }
  let state: State = { objects: new Map(), uploads: new Map() }
  let uploadsBegun = 0

  const need = (key: Key): Stored => state.objects.get(key) ?? refuse('NOT_FOUND', key)

  const store = (key: Key, bytes: Uint8Array, etag: string, metadata: Metadata, contentType: string): string => {
    const size = bytes.byteLength
    const modifiedMs = Math.trunc(nowMs())
    state.objects.set(key, { key, bytes, size, etag, metadata, contentType, modifiedMs, archived: false })
    return etag
  }

  /** CONFLICT unless what is there is what was expected. Not atomic with what follows if the bucket does not do this itself. */
  const check = async (key: Key, { ifAbsent, ifMatch }: ObjectCondition, atomic: boolean): Promise<void> => {
    const there = state.objects.get(key)
    if ((ifAbsent && there) || (ifMatch !== undefined && there?.etag !== ifMatch)) refuse('CONFLICT', key)
    if (!atomic && (ifAbsent || ifMatch !== undefined)) await new Promise(resolve => setImmediate(resolve))
  }

  const begin = (signal: AbortSignal | undefined, key: Key, metadata: Metadata = {}) => {
    throwIfAborted(signal)
    if (!capabilities.write) refuse('READ_ONLY', 'the bucket')
    if (key === '' || key.length > capabilities.keyBytesMax) refuse(key === '' ? 'INVALID' : 'NAME_TOO_LONG', key)
    const bytes = Object.entries(metadata).reduce((sum, [name, value]) => sum + name.length + value.length, 0)
    if (bytes > capabilities.metadataBytesMax) refuse('TOO_LARGE', 'metadata')
  }

  const uploadOf = (key: Key, id: string): Upload => {
    const upload = state.uploads.get(id)
    return upload?.key === key ? upload : refuse('NOT_FOUND', `upload ${id}`)
  }

  const addPart = (key: Key, id: string, number: number, bytes: Uint8Array): string => {
    if (number < 1 || number > NUMBER_MAX) refuse('INVALID', `part ${number}`)
    const etag = md5(bytes)
    uploadOf(key, id).parts.set(number, { bytes, etag })
    return etag
  }

  const info = ({ bytes: _, metadata: __, contentType: ___, ...entry }: Stored): ObjectEntry => entry

  return {
    shape: 'objects',
    url: 'mem:',
    capabilities,

    snapshot: () => ({
      objects: new Map(state.objects),
      uploads: new Map([...state.uploads].map(([id, upload]) => [id, { ...upload, parts: new Map(upload.parts) }])),
    }),
    restore({ objects, uploads }) {
      state = {
        objects: new Map(objects),
        uploads: new Map([...uploads].map(([id, upload]) => [id, { ...upload, parts: new Map(upload.parts) }])),
      }
    },

    async head(key, signal) {
      throwIfAborted(signal)
      const there = state.objects.get(key)
      return there ? { ...info(there), metadata: { ...there.metadata }, contentType: there.contentType } : null
    },

    async list({ prefix, delimiter, after = '', cursor = after }, signal): Promise<ListPage> {
      throwIfAborted(signal)
      const page: ListPage = { objects: [], prefixes: [] }
      let last = ''
      for (const key of [...state.objects.keys()].sort()) {
        if (!key.startsWith(prefix)) continue
        const cut = delimiter ? key.indexOf(delimiter, prefix.length) : -1
        const name = cut < 0 ? key : key.slice(0, cut + delimiter!.length)
        if (name <= cursor || name === last) continue
        if (page.objects.length + page.prefixes.length === PAGE_MAX) return { ...page, cursor: last }
        last = name
        if (cut < 0) page.objects.push(info(state.objects.get(key)!))
        else page.prefixes.push(name)
      }
      return page
    },

    async get(key, range, signal) {
      throwIfAborted(signal)
      const { bytes, etag, archived } = need(key)
      if (archived) refuse('ARCHIVED', key)
      if (range?.etag !== undefined && range.etag !== etag) refuse('STALE', key)
      return range ? bytes.slice(range.at, range.at + range.length) : bytes.slice()
    },

    async put(key, bytes, options: ObjectOptions = {}, signal) {
      begin(signal, key, options.metadata)
      if (bytes.byteLength > capabilities.putBytesMax) refuse('TOO_LARGE', key)
      await check(key, options, options.ifAbsent ? capabilities.putIfAbsent : capabilities.putIfMatch)
      return store(key, bytes.slice(), md5(bytes), { ...options.metadata }, options.contentType ?? '')
    },

    async copy(source, target, options = {}, signal) {
      begin(signal, target, options.metadata)
      await check(target, options, capabilities.copyIf)
      const from = need(source)
      if (options.sourceEtag !== undefined && options.sourceEtag !== from.etag) refuse('STALE', source)
      if (from.size > capabilities.copyBytesMax) refuse('TOO_LARGE', source)
      if (source === target && !options.metadata) refuse('INVALID', source)
      const { metadata, contentType } = options.metadata ? { contentType: '', ...options } : from
      return store(target, from.bytes, md5(from.bytes), { ...metadata }, contentType ?? '')
    },

    async remove(key, condition, signal) {
      begin(signal, key)
      if (!state.objects.has(key)) return
      await check(key, condition ?? {}, capabilities.removeIfMatch)
      state.objects.delete(key)
    },

    async removeAll(keys, signal) {
      for (const key of keys) {
        begin(signal, key)
        state.objects.delete(key)
      }
    },

    async beginUpload(key, options = {}, signal) {
      begin(signal, key, options.metadata)
      const { metadata = {}, contentType = '' } = options
      const id = `upload-${++uploadsBegun}`
      state.uploads.set(id, { key, metadata, contentType, begunMs: nowMs(), parts: new Map() })
      return id
    },

    async uploadPart(key, upload, number, bytes, signal) {
      begin(signal, key)
      if (bytes.byteLength > capabilities.partBytesMax) refuse('TOO_LARGE', `part ${number}`)
      return addPart(key, upload, number, bytes.slice())
    },

    async copyPart(key, upload, number, source, signal) {
      begin(signal, key)
      uploadOf(key, upload)
      const from = need(source.key)
      if (source.etag !== undefined && source.etag !== from.etag) refuse('STALE', source.key)
      if (source.at + source.length > from.size) refuse('INVALID', `bytes beyond the end of ${source.key}`)
      if (source.length > capabilities.partBytesMax) refuse('TOO_LARGE', `part ${number}`)
      return addPart(key, upload, number, from.bytes.slice(source.at, source.at + source.length))
    },

    async completeUpload(key, upload, parts: Part[], condition = {}, signal) {
      begin(signal, key)
      const { metadata, contentType, parts: there } = uploadOf(key, upload)
      const found = parts.map(({ number, etag }, index) => {
        const part = there.get(number)
        if (part?.etag !== etag || (index > 0 && number <= parts[index - 1].number))
          return refuse('INVALID', `part ${number}`)
        if (index < parts.length - 1 && part.bytes.byteLength < capabilities.partBytesMin)
          return refuse('INVALID', `part ${number} is too small`)
        return part
      })
      if (found.length === 0 || found.length > capabilities.partsMax) refuse('INVALID', `${found.length} parts`)
      await check(key, condition, capabilities.completeIf)
      const bytes = Buffer.concat(found.map(part => part.bytes))
      const digests = Buffer.concat(found.map(part => Buffer.from(part.etag, 'hex')))
      state.uploads.delete(upload)
      return store(key, new Uint8Array(bytes), `${md5(digests)}-${found.length}`, metadata, contentType)
    },

    async abortUpload(key, upload, signal) {
      begin(signal, key)
      if (state.uploads.get(upload)?.key === key) state.uploads.delete(upload)
    },

    async uploads(prefix, signal) {
      throwIfAborted(signal)
      return [...state.uploads].flatMap(([upload, { key, begunMs }]) =>
        key.startsWith(prefix) ? [{ key, upload, begunMs }] : [],
      )
    },

    async close() {},
  }
}
