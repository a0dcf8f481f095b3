// Remotes for other hosts, by gRPC: what the library and the command line call to serve them.
import { FerryError } from './base/errors.js'
import type { Address } from './linux/listen.js'
import { type GrpcServerOptions, type GrpcServerSettings, grpcServerSettings } from './options.js'
import { readOption } from './read-option.js'
import type { Blob } from './remote/blob.js'
import type { Store } from './remote/store.js'
import type { Tree } from './remote/tree.js'
import type { RemoteServer } from './serve/server.js'

/** `store`: beside a blob, for what commits to it; nothing else is in it. Without one its clients need a commitStore of their own. */
export type ServeOptions = GrpcServerOptions & { store?: Store }

/**
 * Serves a tree or a blob by gRPC until it is closed; the remote stays open. A blob is there for programs of r3map as well. `listen` is
 * 'unix:/run/photos.sock', a port of this machine, or 'HOST:PORT'; beyond this machine only with TLS, or `insecure`.
 * @throws FerryError USAGE: an option is wrong, a file cannot be read, or nobody can listen there
 */
export async function serve(remote: Tree | Blob, { store, ...options }: ServeOptions): Promise<RemoteServer> {
  return serveWith(remote, store ?? null, grpcServerSettings(options))
}

/** The same with options that are checked. */
export async function serveWith(
  remote: Tree | Blob,
  store: Store | null,
  { listen, tlsCert, tlsKey, tlsCa, tokenFile, readOnly, maxConnections }: GrpcServerSettings,
): Promise<RemoteServer> {
  const tls =
    tlsCert === undefined
      ? null
      : {
          cert: readOption('--tls-cert', tlsCert),
          key: readOption('--tls-key', tlsKey!),
          ...(tlsCa !== undefined && { ca: readOption('--tls-ca', tlsCa) }),
        }
  const token = tokenFile === undefined ? undefined : tokenIn(tokenFile)
  const { listenGrpc } = await import('./serve/server.js')
  return listenGrpc({ remote, store }, { listen, tls, token, readOnly, connectionsMax: maxConnections })
}

function tokenIn(path: string): string {
  const [line] = readOption('--token-file', path).toString().split('\n')
  if (!/^[\x21-\x7e]{16,1024}$/.test(line))
    throw new FerryError('USAGE', {
      detail: `--token-file: the first line of ${path} is to be 16 to 1,024 letters, digits or signs, without spaces`,
    })
  return line
}

/** As clients write it. */
export function grpcUrlOf(address: Address, { tlsCert }: Pick<GrpcServerSettings, 'tlsCert'>): string {
  const scheme = tlsCert === undefined ? 'grpc' : 'grpcs'
  if ('path' in address) return `${scheme}+unix:///?socket=${encodeURI(address.path)}`
  const { host, port } = address
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${port}/`
}
