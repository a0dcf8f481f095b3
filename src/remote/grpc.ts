// What a server of ours has, as a remote: a directory, a run of bytes, or the store beside either.
import { FerryError } from '../base/errors.js'
import type { Blob } from './blob.js'
import type { GrpcAddress } from './grpc-address.js'
import { blobCalls, type GrpcCall, storeCalls, treeCalls } from './grpc-calls.js'
import { GrpcConnection, isUnimplemented } from './grpc-client.js'
import { type Described, fromDescription } from './grpc-describe.js'
import { NAMES_MAX, REQUEST_BYTES_MAX, type ServiceName, service } from './grpc-proto.js'
import { checkRange, checkRequest, checkWithin, printable } from './path.js'
import { r3mapBlob } from './r3map-blob.js'
import type { Store } from './store.js'
import type { Tree } from './tree.js'
import { methods, type Shape } from './wrap.js'

/** How long opening waits for a server. */
const DESCRIBE_MS_MAX = 15_000

interface Opened {
  connection: GrpcConnection
  /** null: the server has r3map's service alone. */
  described: Described | null
}

async function open(address: GrpcAddress): Promise<Opened> {
  const connection = new GrpcConnection(address)
  const over = new AbortController()
  const late = new FerryError('UNREACHABLE', {
    detail: `${address.shown}: no answer within ${DESCRIBE_MS_MAX / 1000} s`,
  })
  const timer = setTimeout(() => over.abort(late), DESCRIBE_MS_MAX)
  try {
    const described = fromDescription(await connection.ask(service('Export'), 'Describe', {}, { signal: over.signal }))
    connection.meanOnly(described.id)
    return { connection, described }
  } catch (error) {
    if (isUnimplemented(error)) return { connection, described: null }
    await connection.close()
    throw over.signal.aborted ? late : error
  } finally {
    clearTimeout(timer)
  }
}

/** One call of a remote's interface for each name. */
function callsOf(
  { connection }: Opened,
  shape: Shape & ('blob' | 'tree' | 'store'),
  of: ServiceName,
  calls: Record<string, GrpcCall>,
): Record<string, (...args: unknown[]) => Promise<unknown>> {
  const made = Object.entries(calls).map(([name, row]) => {
    const { signalAt, changes } = methods[shape][name]
    const syncs = name === 'flush' || name === 'sync'
    return [
      name,
      async (...all: unknown[]) => {
        const signal = all[signalAt] as AbortSignal | undefined
        return connection.call(service(of), row, all.slice(0, signalAt), { changes, syncs, signal })
      },
    ] as const
  })
  return Object.fromEntries(made)
}

/** @throws UNREACHABLE, FORBIDDEN, NOT_DIRECTORY (it is a run of bytes), TOO_NEW, PROTOCOL */
export async function grpcTree(address: GrpcAddress): Promise<Tree> {
  const opened = await open(address)
  const { connection, described } = opened
  const hidden = storeOf(opened)
  if (!described?.tree || !hidden) {
    await connection.close()
    throw new FerryError('NOT_DIRECTORY', { detail: address.shown })
  }
  const { read, write, sync, complete, copy, ...rest } = callsOf(
    opened,
    'tree',
    'Tree',
    treeCalls,
  ) as unknown as Required<Tree>
  return {
    ...rest,
    ...(described.tree.completes && { complete }),
    ...(described.tree.copies && { copy }),
    shape: 'tree',
    url: connection.url,
    capabilities: described.tree.capabilities,
    hidden,

    async read(path, range, signal) {
      checkRange(range)
      if (range.length <= REQUEST_BYTES_MAX) return read(path, range, signal)
      const whole = new Uint8Array(range.length)
      for (let done = 0; done < range.length; ) {
        const length = Math.min(REQUEST_BYTES_MAX, range.length - done)
        const part = await read(path, { ...range, at: range.at + done, length }, signal)
        whole.set(part, done)
        done += part.length
        if (part.length < length) return whole.slice(0, done)
      }
      return whole
    },

    async write(path, at, from, signal) {
      for (let done = 0; done === 0 || done < from.length; done += REQUEST_BYTES_MAX)
        await write(path, at + done, from.subarray(done, done + REQUEST_BYTES_MAX), signal)
    },

    async sync(paths, signal) {
      for (let done = 0; done === 0 || done < paths.length; done += NAMES_MAX)
        await sync(paths.slice(done, done + NAMES_MAX), signal)
    },

    close: () => connection.close(),
  }
}

/**
 * `size`: how many bytes it has, which only r3map's own servers do not tell themselves.
 * @throws UNREACHABLE, FORBIDDEN, IS_DIRECTORY, INVALID (another size, or none where one must be said), TOO_NEW, PROTOCOL
 */
export async function grpcBlob(address: GrpcAddress, { size }: { size?: number } = {}): Promise<Blob> {
  const opened = await open(address)
  const { connection, described } = opened
  const refuse = async (error: FerryError): Promise<never> => {
    await connection.close()
    throw error
  }
  if (!described) {
    await connection.close()
    if (size === undefined)
      throw new FerryError('INVALID', { detail: "the server has r3map's service alone, which tells no size: ?size=1G" })
    return r3mapBlob(address, size)
  }
  if (!described.blob) return refuse(new FerryError('IS_DIRECTORY', { detail: address.shown }))
  const { capabilities, hasVersion, size: bytes } = described.blob
  if (size !== undefined && size !== bytes)
    return refuse(new FerryError('INVALID', { detail: `the region there has ${bytes} bytes, not ${size}` }))
  const calls = callsOf(opened, 'blob', 'Blob', blobCalls) as unknown as Required<Blob>
  return {
    shape: 'blob',
    url: connection.url,
    size: bytes,
    capabilities,

    async read(at, length, signal) {
      checkWithin({ at, length }, bytes, signal)
      checkRequest(length, capabilities.requestBytesMax)
      if (length === 0) return new Uint8Array(0)
      const part = await calls.read(at, length, signal)
      if (part.length < length)
        throw new FerryError('SHORT_READ', { detail: `${part.length} of ${length} bytes at ${at}` })
      return part
    },

    async write(at, from, signal) {
      checkWithin({ at, length: from.length }, bytes, signal)
      checkRequest(from.length, capabilities.requestBytesMax)
      await calls.write(at, from, signal)
    },

    flush: calls.flush,
    ...(capabilities.trim && {
      async trim(at: number, length: number, signal?: AbortSignal) {
        checkWithin({ at, length }, bytes, signal)
        await calls.trim(at, length, signal)
      },
    }),
    ...(hasVersion && { version: calls.version }),
    close: () => connection.close(),
  }
}

/** What is beside a run of bytes, for what commits to it; null: nothing. */
export async function grpcBeside(address: GrpcAddress): Promise<Store | null> {
  const opened = await open(address)
  const store = storeOf(opened)
  if (!store) await opened.connection.close()
  return store
}

/** It owns the connection. */
function storeOf(opened: Opened): Store | null {
  const { connection, described } = opened
  if (!described?.store) return null
  const { capabilities, removesMany } = described.store
  const { removeAll, put, ...rest } = callsOf(opened, 'store', 'Store', storeCalls) as unknown as Required<Store>
  return {
    ...rest,
    ...(removesMany && { removeAll }),
    shape: 'store',
    url: connection.url,
    capabilities,
    async put(name, bytes, condition, signal) {
      if (bytes.length > capabilities.objectBytesMax)
        throw new FerryError('TOO_LARGE', { detail: `${printable(name)}: ${bytes.length} bytes` })
      return put(name, bytes, condition, signal)
    },
    close: () => connection.close(),
  }
}
