// What a URL of gRPC says, and what the environment adds.
import { isLoopback } from '../base/addresses.js'
import { certificates, type Environment, invalid, type ParsedUrl } from './environment.js'

export interface GrpcAddress {
  /** As gRPC writes it: `host:port`, or `unix:/path`. */
  target: string
  /** Certificates as PEM; `name`: whose certificate the server has to show, '' for any that is vouched for. null: without TLS. */
  tls: { ca?: Buffer; cert?: Buffer; key?: Buffer; name: string } | null
  /** Shown to the server with each call. */
  token?: string
  /** For messages. */
  shown: string
}

/** grpc://HOST:PORT/, or grpc+unix:///?socket=PATH; grpcs for TLS. INVALID, in one line, for what is not so. */
export function grpcAddress({ shown, scheme, path, query }: ParsedUrl, env: Environment): GrpcAddress {
  const [, host, port] = /^\/\/(\[[\da-fA-F:.]+\]|[^/:@[\]]*)(?::(\d{1,5}))?\/?$/.exec(path) ?? []
  const isUnix = scheme.endsWith('+unix')
  const isSecure = scheme.startsWith('grpcs')
  const socket = query.get('socket')
  const hostname = query.get('tls-hostname')
  const isComplete = isUnix ? host === '' && port === undefined && socket : host && port && socket === null
  if (!isComplete) throw invalid('a URL of gRPC is like grpcs://host:4711/, or grpc+unix:///?socket=/path')
  if (!isUnix && (Number(port) > 65_535 || Number(port) === 0)) throw invalid(`${port} is no port`)
  if (hostname !== null && !isSecure) throw invalid('tls-hostname belongs to grpcs://')
  const bare = host.replace(/^\[|\]$/g, '')
  const token = env.PAGEFERRY_GRPC_TOKEN || undefined
  if (token !== undefined && !isSecure && !isUnix && !isLoopback(bare))
    throw invalid('PAGEFERRY_GRPC_TOKEN is not sent in the clear to another machine; use grpcs://')
  return {
    target: isUnix ? `unix:${socket}` : `${host}:${port}`,
    tls: isSecure ? { ...certificates('PAGEFERRY_GRPC', env), name: hostname ?? bare } : null,
    ...(token !== undefined && { token }),
    shown,
  }
}
