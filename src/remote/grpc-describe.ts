// What a server tells of what it has, as a message.
import { FerryError } from '../base/errors.js'
import { malformed } from '../wire/reader.js'
import type { Blob, BlobCapabilities } from './blob.js'
import { type Message, OBJECT_BYTES_MAX, PROTOCOL_VERSION, REQUEST_BYTES_MAX } from './grpc-proto.js'
import type { Store, StoreCapabilities } from './store.js'
import type { Tree, TreeCapabilities } from './tree.js'

export interface Described {
  url: string
  /** The same for as long as the same is served. */
  id: Buffer
  blob: { size: number; capabilities: BlobCapabilities; hasVersion: boolean } | null
  tree: { capabilities: TreeCapabilities; completes: boolean; copies: boolean } | null
  store: { capabilities: StoreCapabilities; removesMany: boolean } | null
}

export function toDescription({
  remote,
  store,
  id,
  readOnly,
}: {
  remote: Blob | Tree
  store: Store | null
  id: Buffer
  readOnly: boolean
}): Message {
  const { url } = remote
  const write = remote.capabilities.write && !readOnly
  const shape =
    remote.shape === 'tree'
      ? { tree: { ...remote.capabilities, write, completes: has(remote.complete), copies: has(remote.copy) } }
      : { blob: { ...blobOf(remote), write } }
  return {
    ...{ version: PROTOCOL_VERSION, url, id, ...shape },
    ...(store && { store: { ...store.capabilities, removesMany: store.removeAll !== undefined } }),
  }
}

const has = (method: unknown) => method !== undefined

function blobOf({ size, capabilities: { trim, alignment, requestBytesMax }, version }: Blob): Message {
  return { size, blockSize: alignment, requestBytesMax, trim, hasVersion: version !== undefined }
}

/** @throws TOO_NEW, PROTOCOL */
export function fromDescription({ version, url, id, blob, tree, store }: Message): Described {
  if (version > PROTOCOL_VERSION)
    throw new FerryError('TOO_NEW', { detail: `${url} speaks version ${version} of our protocol` })
  if (!blob === !tree) throw malformed('the server describes neither a directory nor a run of bytes')
  return {
    ...{ url, id },
    blob: blob && {
      size: blob.size,
      hasVersion: blob.hasVersion,
      capabilities: {
        ...{ write: blob.write, trim: blob.trim, alignment: Math.max(1, blob.blockSize) },
        requestBytesMax: Math.min(REQUEST_BYTES_MAX, blob.requestBytesMax),
      },
    },
    tree: tree && { capabilities: capabilitiesOf(tree), completes: tree.completes, copies: tree.copies },
    store: store && {
      removesMany: store.removesMany,
      capabilities: {
        ...{ conditionalCreate: store.conditionalCreate, conditionalReplace: store.conditionalReplace },
        ...{ nameBytesMax: store.nameBytesMax, objectBytesMax: Math.min(OBJECT_BYTES_MAX, store.objectBytesMax) },
      },
    },
  }
}

const capabilitiesOf = ({ completes: _, copies: __, ...capabilities }: Message): TreeCapabilities => capabilities
