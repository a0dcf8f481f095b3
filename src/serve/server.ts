// gRPC for other hosts: a directory, or a run of bytes.
import { createHash, randomUUID, timingSafeEqual } from 'node:crypto'
import type { Http2Server } from 'node:http2'
import { createServer, type Socket } from 'node:net'
import { Metadata, Server, ServerCredentials } from '@grpc/grpc-js'
import { sleep } from '../base/async.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { type Address, type Listener, listen as listenAt, listenerOf } from '../linux/listen.js'
import type { Blob } from '../remote/blob.js'
import { blobCalls, storeCalls, treeCalls } from '../remote/grpc-calls.js'
import { toDescription } from '../remote/grpc-describe.js'
import { Header, MESSAGE_BYTES_MAX, r3mapBackend, service, WINDOW_BYTES } from '../remote/grpc-proto.js'
import type { Store } from '../remote/store.js'
import type { Tree } from '../remote/tree.js'
import { CALL_MS_MAX, Services } from './services.js'

const log = logger('serve')

/** Calls of one connection at once. */
const STREAMS_MAX = 64
/** How long closing waits for answers that are on their way. */
const LAST_ANSWERS_MS_MAX = 5_000
const KEEPALIVE_MS = 60_000

export interface Served {
  remote: Blob | Tree
  /** Beside a run of bytes: for what commits to it. A directory has its own. */
  store: Store | null
}

export interface GrpcOptions {
  listen: Address
  /** PEM. `ca`: only who has a certificate of it is let in. null: without TLS. */
  tls: { cert: Buffer; key: Buffer; ca?: Buffer } | null
  /** Who does not show it is not let in. */
  token?: string
  readOnly: boolean
  /** At once; others are not let in. */
  connectionsMax: number
  /** Of one call, in ms. Default 60,000. */
  callMsMax?: number
}

/** A server that listens. */
export type RemoteServer = Listener

/** @throws USAGE: nobody can listen there, or the certificate is none */
export async function listenGrpc(served: Served, options: GrpcOptions): Promise<RemoteServer> {
  const { listen, tls, connectionsMax } = options
  const services = new Services(allowed(served, options))
  const grpc = new Server({
    'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
    'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
    'grpc.max_concurrent_streams': STREAMS_MAX,
  })
  addServices(grpc, served, services, options.readOnly)
  const inlet = grpc.createConnectionInjector(credentialsOf(tls))
  widen(grpc)
  const sockets = new Set<Socket>()
  const how = { noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS }
  const server = createServer(how, socket => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', error => log.debug('a connection broke', { error: toFerryError(error) }))
    inlet.injectConnection(socket)
  })
  server.maxConnections = connectionsMax
  server.on('drop', () =>
    log.warn('a connection was not let in: there are as many as there may be', { connectionsMax }),
  )
  const address = await listenAt(server, listen)
  server.on('error', error => log.error('the server failed', { error: toFerryError(error) }))
  const close = async () => {
    const closed = new Promise<void>(resolve => server.close(() => resolve()))
    inlet.drain(LAST_ANSWERS_MS_MAX)
    await Promise.race([Promise.all([services.idle(), closed]), sleep(LAST_ANSWERS_MS_MAX)])
    grpc.forceShutdown()
    for (const socket of sockets) socket.destroy()
    await closed
    // What has been begun at the remote is not left alone.
    await services.idle()
  }
  return listenerOf(address, sockets, close)
}

function addServices(grpc: Server, { remote, store }: Served, services: Services, readOnly: boolean): void {
  const beside = remote.shape === 'tree' ? remote.hidden : store
  const description = toDescription({ remote, store: beside, id: exportId(remote), readOnly })
  grpc.addService(service('Export'), { Describe: services.unary(async () => description) })
  if (beside) grpc.addService(service('Store'), services.of(beside, storeCalls))
  if (remote.shape === 'tree') {
    grpc.addService(service('Tree'), services.of(remote, treeCalls))
    return
  }
  grpc.addService(service('Blob'), services.of(remote, blobCalls))
  grpc.addService(r3mapBackend, services.backend(remote))
}

function allowed({ remote }: Served, { token, readOnly, callMsMax = CALL_MS_MAX }: GrpcOptions) {
  const run = randomUUID()
  const headers = new Metadata()
  headers.set(Header.RUN, run)
  const wanted = token === undefined ? null : digest(`Bearer ${token}`)
  const exported = exportId(remote).toString('hex')
  const check = (metadata: Metadata) => {
    const [shown] = metadata.get(Header.AUTHORIZATION)
    if (wanted && !timingSafeEqual(digest(String(shown)), wanted))
      throw new FerryError('UNREACHABLE', {
        detail: 'the server wants its token (PAGEFERRY_GRPC_TOKEN)',
        lasting: true,
      })
    const [meant = exported] = metadata.get(Header.EXPORT)
    if (meant !== exported)
      throw new FerryError('UNREACHABLE', { detail: 'something else is served there by now', lasting: true })
  }
  return { check, readOnly, run, headers, callMsMax }
}

/** The same for as long as the same is served. */
function exportId(remote: Blob | Tree): Buffer {
  const size = remote.shape === 'blob' ? remote.size : 0
  return digest(JSON.stringify([remote.shape, remote.url, size])).subarray(0, 16)
}

const digest = (text: string) => createHash('sha256').update(text).digest()

function credentialsOf(tls: GrpcOptions['tls']): ServerCredentials {
  if (!tls) return ServerCredentials.createInsecure()
  try {
    const pair = { cert_chain: tls.cert, private_key: tls.key }
    return ServerCredentials.createSsl(tls.ca ?? null, [pair], tls.ca !== undefined)
  } catch (error) {
    throw new FerryError('USAGE', { cause: error, detail: `the certificate or its key: ${(error as Error).message}` })
  }
}

/** gRPC's server has no option for what may be on its way to it, and 64 KiB a round trip, of all calls together, is little. */
function widen(grpc: Server): void {
  const { http2Servers } = grpc as unknown as { http2Servers?: Map<Http2Server, unknown> }
  for (const server of http2Servers?.keys() ?? [])
    server.on('session', session => {
      session.settings({ initialWindowSize: WINDOW_BYTES })
      session.setLocalWindowSize(WINDOW_BYTES)
    })
}
