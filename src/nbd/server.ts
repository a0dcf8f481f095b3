// NBD for everybody who asks: regions under their names, on a port or a Unix socket.
import { createServer } from 'node:net'
import type { TLSSocketOptions } from 'node:tls'
import { deferred, sleep } from '../base/async.js'
import { Awake } from '../base/awake.js'
import { FerryError, toFerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import type { RegionDoor } from '../cache/door.js'
import { type Address, type Listener, listen as listenAt, listenerOf } from '../linux/listen.js'
import { type BlockSize, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, TransmissionFlag } from '../wire/nbd.js'
import { Connection, type Export } from './connection.js'

const log = logger('nbd')

/** What clients are told to prefer: half of what the engine keeps together, and what they use themselves. */
const PREFERRED_BYTES = 64 * 1024
/** How long closing waits for answers that are on their way. */
const LAST_ANSWERS_MS_MAX = 5000
const KEEPALIVE_MS = 60_000

/** A region and what it is called. */
export interface NamedRegion {
  /** Up to 4,096 bytes of UTF-8; the first region is also the one without a name. Default ''. */
  name?: string
  description?: string
  /** Default: as the region is. */
  readOnly?: boolean
  /** In bytes. Default: 1, 65,536, and 32 MiB. */
  blockSize?: Partial<BlockSize>
  region: RegionDoor
}

export interface NbdOptions {
  listen: Address
  tls: { mode: 'none' | 'offered' | 'required'; options: TLSSocketOptions }
  /** At once; others are not let in. */
  connectionsMax: number
  /** Clients may change the size of a region that is not read-only. */
  resizable: boolean
}

/** A server that listens. */
export type NbdServer = Listener

/** @throws USAGE: nobody can listen there, or the names do not go */
export async function listenNbd(regions: readonly NamedRegion[], options: NbdOptions): Promise<NbdServer> {
  const { listen, tls, connectionsMax, resizable } = options
  const exports = exportsOf(regions, resizable)
  const connections = new Set<Connection>()
  const awake = new Awake()
  const how = { noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS, pauseOnConnect: true }
  const server = createServer(how, socket => {
    if (connections.size >= connectionsMax) {
      log.warn('a connection was not let in: there are as many as there may be', { connectionsMax })
      socket.destroy()
      return
    }
    const connection = new Connection(socket, { exports, tls, awake })
    connections.add(connection)
    connection.ended.then(() => connections.delete(connection))
  })
  server.maxConnections = connectionsMax
  server.on('drop', () =>
    log.warn('a connection was not let in: there are as many as there may be', { connectionsMax }),
  )
  const address = await listenAt(server, listen)
  server.on('error', error => log.error('the server failed', { error: toFerryError(error) }))
  const close = async () => {
    const closed = deferred()
    server.close(() => closed.resolve())
    for (const connection of connections) connection.end()
    const ended = Promise.all([...connections].map(connection => connection.ended))
    await Promise.race([ended, sleep(LAST_ANSWERS_MS_MAX)])
    for (const connection of connections) connection.destroy()
    await closed.promise
  }
  return listenerOf(address, connections, close)
}

function exportsOf(regions: readonly NamedRegion[], resizable: boolean): Export[] {
  const names = new Set<string>()
  return regions.map(({ region, name = '', description, readOnly = region.readOnly, blockSize }) => {
    const bytes = Buffer.from(name)
    const refuse = (detail: string) => {
      throw new FerryError('USAGE', { detail })
    }
    if (bytes.length > STRING_BYTES_MAX) refuse(`an export's name has at most ${STRING_BYTES_MAX} bytes`)
    if (names.has(name)) refuse(`two exports are called "${name}"`)
    names.add(name)
    const { HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_FAST_ZERO } =
      TransmissionFlag
    const { SEND_CACHE, CAN_MULTI_CONN, SEND_RESIZE } = TransmissionFlag
    const resize = resizable && region.resize && !region.fixedSize ? SEND_RESIZE : 0
    const changes = SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO | resize
    const flags = HAS_FLAGS | SEND_FLUSH | SEND_CACHE | CAN_MULTI_CONN | (readOnly ? READ_ONLY : changes)
    const details = {
      name: bytes.toString('latin1'),
      ...(description !== undefined && { description: Buffer.from(description).toString('latin1') }),
      get size() {
        return region.size
      },
      flags,
      blockSize: { minimum: 1, preferred: PREFERRED_BYTES, maximum: PAYLOAD_BYTES_MAX, ...blockSize },
    }
    return { details, region, users: 0 }
  })
}
