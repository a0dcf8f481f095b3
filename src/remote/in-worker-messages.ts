// What the two threads of a remote in a worker say to each other, and how bytes and errors cross over.
import { isTaken } from '../base/buffers.js'
import { type Code, codes, FerryError, toFerryError } from '../base/errors.js'
import type { LogRecord } from '../base/log.js'
import { countBytes, isMap, methods, type Remote, type Shape } from './wrap.js'

/** How the worker makes its remote: what `name`, exported by `module`, returns or resolves with for these arguments. */
export interface Opener {
  /** A file: URL of compiled JavaScript. */
  module: string
  name: string
  args: unknown[]
  /**
   * Of a tree: whoever reads gives back what he has read (`giveBack`), so large reads may cross over in memory that both threads see.
   * Default false.
   */
  givesBack?: boolean
}

/** What of a remote the other thread has to know. */
export interface Described {
  shape: Shape
  url: string
  capabilities: unknown
  size?: number
  /** Those of the table in wrap.ts that it has. */
  methods: string[]
  hidden?: Described
}

export type Request =
  | { id: number; hidden: boolean; method: string; args: unknown[] }
  | { id: number; cancel: true }
  | { id: number; close: true }
  | { give: SharedArrayBuffer }

export type Reply =
  | { log: LogRecord }
  | { opened: Described }
  | { failed: ErrorMessage }
  | { id: number; result: unknown }
  | { id: number; error: ErrorMessage }

export interface ErrorMessage {
  code: Code
  detail: string
}

export function describe(remote: Remote): Described {
  const has = (name: string) => typeof Reflect.get(remote, name) === 'function'
  return {
    shape: remote.shape,
    url: remote.url,
    capabilities: remote.capabilities,
    methods: Object.keys(methods[remote.shape]).filter(has),
    ...(remote.shape === 'blob' && { size: remote.size }),
    ...(remote.shape === 'tree' && { hidden: describe(remote.hidden) }),
  }
}

/** A record as it crosses over: errors as text. */
export function packLog(record: LogRecord): LogRecord {
  const { error } = record.fields
  return { ...record, fields: error instanceof Error ? { ...record.fields, error: error.message } : record.fields }
}

export function packError(error: unknown): ErrorMessage {
  const { code, message } = toFerryError(error)
  return { code, detail: message.slice(codes[code].length).replace(/^: /, '') }
}

export const unpackError = ({ code, detail }: ErrorMessage): FerryError =>
  new FerryError(code, detail ? { detail } : {})

/**
 * A value to be posted, and the buffers to be transferred with it. `copy`: the bytes stay with the caller, so copies are
 * transferred (and not, as the structured clone would have it, all of the memory that a small view is a part of). Otherwise
 * they are given away if they are all there is in their buffer. Shared memory stays shared.
 */
export function pack(value: unknown, { copy }: { copy: boolean }): { value: unknown; transfer: ArrayBuffer[] } {
  const transfer = new Set<ArrayBuffer>()
  const give = (bytes: Uint8Array): Uint8Array => {
    if (isShared(bytes)) return bytes
    const isWhole = bytes.byteLength === bytes.buffer.byteLength || isTaken(bytes)
    const alone = isWhole && !transfer.has(bytes.buffer as ArrayBuffer)
    // Never a Buffer's own slice(), which would not copy.
    const mine = alone ? bytes : new Uint8Array(bytes)
    transfer.add(mine.buffer as ArrayBuffer)
    return mine
  }
  return { value: mapped(value, copy ? copies(value, transfer) : give), transfer: [...transfer] }
}

const isShared = ({ buffer }: ArrayBufferView) => !(buffer instanceof ArrayBuffer)

/** One buffer for all of them: to transfer 20,000 takes 0.3 s. */
function copies(value: unknown, transfer: Set<ArrayBuffer>): (bytes: Uint8Array) => Uint8Array {
  const all = new Uint8Array(countBytes(value, view => !isShared(view)))
  if (all.byteLength > 0) transfer.add(all.buffer)
  let at = 0
  return bytes => {
    if (isShared(bytes)) return bytes
    const mine = all.subarray(at, at + bytes.byteLength)
    mine.set(bytes)
    at += bytes.byteLength
    return mine
  }
}

/** The value with other bytes in it. */
function mapped(one: unknown, ofBytes: (bytes: Uint8Array) => Uint8Array): unknown {
  if (typeof one !== 'object' || one === null) return one
  if (one instanceof Uint8Array) return ofBytes(one)
  if (Array.isArray(one)) return one.map(inner => mapped(inner, ofBytes))
  if (isMap(one)) return new Map([...one].map(([key, inner]) => [key, mapped(inner, ofBytes)]))
  const other: Record<string, unknown> = {}
  for (const key in one) other[key] = mapped((one as Record<string, unknown>)[key], ofBytes)
  return other
}
