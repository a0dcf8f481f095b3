// The services of ../../proto as gRPC calls them, and what no message of theirs may exceed.
import { fileURLToPath } from 'node:url'
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'

/** Of one message, either way: whoever sends a longer one is refused (RESOURCE_EXHAUSTED). */
export const MESSAGE_BYTES_MAX = 8 * 1024 * 1024
/** Of one read or write. */
export const REQUEST_BYTES_MAX = 4 * 1024 * 1024
/** Of one message of a stream: smaller ones cost more each, larger ones come later. */
export const PART_BYTES = 256 * 1024
/** Of one object of a store. */
export const OBJECT_BYTES_MAX = 64 * 1024 * 1024
/** Names in one request. */
export const NAMES_MAX = 1_000
/** What HTTP/2 lets be on its way before it is acknowledged, of one stream and of one connection: 64 KiB a round trip are not enough. */
export const WINDOW_BYTES = 16 * 1024 * 1024

/** Of our own protocol. */
export const PROTOCOL_VERSION = 1

/** What goes beside a message, and what it means: see proto/pageferry.proto. */
export const Header = {
  CODE: 'pageferry-code',
  LASTING: 'pageferry-lasting',
  SESSION: 'pageferry-session',
  EPOCH: 'pageferry-epoch',
  EXPORT: 'pageferry-export',
  RUN: 'pageferry-run',
  AUTHORIZATION: 'authorization',
} as const

/** Messages are plain objects here: camelCase, whole numbers as numbers, what is absent left out or null. */
// biome-ignore lint/suspicious/noExplicitAny: what is in it, the table of calls says.
export type Message = any

/** One procedure: its path, and how its messages are read and written. */
export type Procedure = MethodDefinition<Message, Message>
export type Service = ServiceDefinition

const folder = new URL(import.meta.url.includes('/dist/src/') ? '../../../proto/' : '../../proto/', import.meta.url)

const definitions = loadSync(['pageferry.proto', 'r3map.proto'], {
  includeDirs: [fileURLToPath(folder)],
  ...{ longs: Number, defaults: true, arrays: true },
})

export type ServiceName = 'Export' | 'Blob' | 'Tree' | 'Store'

export const service = (name: ServiceName): Service => definitions[`pageferry.v1.${name}`] as Service

export const r3mapBackend = definitions['com.pojtinger.felicitas.r3map.mount.v1.Backend'] as Service

export const procedure = (of: Service, name: string): Procedure => of[name] as Procedure
