// Regions as block devices of others: what the library and the command line call to serve NBD.
import type { TLSSocketOptions } from 'node:tls'
import { FerryError } from './base/errors.js'
import { listenNbd, type NamedRegion, type NbdServer } from './nbd/server.js'
import type { Region } from './open-region.js'
import type { Address } from './option-kinds.js'
import { type ServerOptions, type ServerSettings, serverSettings } from './options.js'
import { readOption as read } from './read-option.js'
import { DEFAULT_PORT } from './wire/nbd.js'

/** What one region is called, if there is only one; and what a server takes. */
export type ServeNbdOptions = ServerOptions & Pick<NamedRegion, 'name' | 'description' | 'readOnly' | 'blockSize'>

/**
 * Serves regions by NBD (fixed newstyle) until it is closed; they stay open. `listen` is 'unix:/run/disk.sock', a port of this machine, or
 * 'HOST:PORT'; beyond this machine only with TLS, or `insecure`. The first region is also the one without a name.
 * @throws FerryError USAGE: an option is wrong, a file cannot be read, or nobody can listen there
 */
export async function serveNbd(regions: Region | NamedRegion[], options: ServeNbdOptions): Promise<NbdServer> {
  const { name, description, readOnly, blockSize, ...server } = options
  const named = Array.isArray(regions) ? regions : [{ region: regions, name, description, readOnly, blockSize }]
  return serveNbdWith(named, serverSettings(server))
}

/** The same with options that are checked. */
export function serveNbdWith(regions: NamedRegion[], settings: ServerSettings): Promise<NbdServer> {
  const { listen, insecure, maxConnections: connectionsMax, resizable } = settings
  const options = tlsOptions(settings)
  const mode = options === null ? 'none' : insecure ? 'offered' : 'required'
  return listenNbd(regions, { listen, tls: { mode, options: options ?? {} }, connectionsMax, resizable })
}

/** As clients write it. */
export function uriOf(address: Address, { tlsCert, pskFile }: Pick<ServerSettings, 'tlsCert' | 'pskFile'>): string {
  const scheme = tlsCert === undefined && pskFile === undefined ? 'nbd' : 'nbds'
  if ('path' in address) return `${scheme}+unix:///?socket=${encodeURI(address.path)}`
  const { host, port } = address
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}${port === DEFAULT_PORT ? '' : `:${port}`}`
}

/** null: no TLS. */
export function tlsOptions({ tlsCert, tlsKey, tlsCa, pskFile }: ServerSettings): TLSSocketOptions | null {
  if (tlsCert === undefined && pskFile === undefined) return null
  const keys = pskFile === undefined ? null : keysOf(pskFile)
  return {
    ...(tlsCert !== undefined && { cert: read('--tls-cert', tlsCert), key: read('--tls-key', tlsKey!) }),
    ...(tlsCa !== undefined && { ca: read('--tls-ca', tlsCa), requestCert: true, rejectUnauthorized: true }),
    ...(keys && {
      pskCallback: (_socket: unknown, identity: string) => keys.get(identity) ?? null,
      // Keys that both sides have, in TLS 1.2, and what there is otherwise.
      ciphers: `PSK:${tlsCert === undefined ? '' : 'HIGH:'}!aNULL`,
    }),
  } as TLSSocketOptions
}

/** NAME:HEX a line, as psktool(1) writes them. */
function keysOf(path: string): Map<string, Buffer> {
  const lines = read('--psk-file', path).toString().split('\n')
  const keys = new Map<string, Buffer>()
  for (const [n, line] of lines.entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    const [, name, hex] = /^([^:]+):((?:[0-9a-fA-F]{2})+)$/.exec(line.trim()) ?? []
    if (!name) throw new FerryError('USAGE', { detail: `--psk-file: line ${n + 1} of ${path} is not NAME:HEX` })
    keys.set(name, Buffer.from(hex, 'hex'))
  }
  return keys
}
