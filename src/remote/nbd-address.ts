// What a URL of NBD says, and what the environment adds for TLS.
import { isIP } from 'node:net'
import type { ConnectionOptions } from 'node:tls'
import { DEFAULT_PORT } from '../wire/nbd.js'
import { certificates, type Environment, fileOf, invalid, type ParsedUrl } from './environment.js'
import type { NbdAddress } from './nbd-connection.js'

const CONNECTIONS_DEFAULT = 4
const CONNECTIONS_MAX = 16

/** nbd://HOST[:PORT]/EXPORT, or nbd+unix:///EXPORT?socket=PATH; nbds for TLS. INVALID, in one line, for what is not so. */
export function nbdAddress({ shown, scheme, path, query }: ParsedUrl, env: Environment): NbdAddress {
  const [, host, port, name = ''] = /^\/\/(\[[^\]]+\]|[^/:@]*)(?::(\d{1,5}))?(?:\/(.*))?$/s.exec(path) ?? []
  const isUnix = scheme.endsWith('+unix')
  const isSecure = scheme.startsWith('nbds')
  const socket = query.get('socket')
  const hostname = query.get('tls-hostname')
  if (host === undefined || isUnix !== (host === '') || isUnix !== (socket !== null) || socket === '')
    throw invalid('a URL of NBD is like nbd://host:10809/export, or nbd+unix:///export?socket=/path')
  if (Number(port) > 65_535 || Number(port) === 0) throw invalid(`${port} is no port`)
  if (hostname !== null && !isSecure) throw invalid('tls-hostname belongs to nbds:// and nbds+unix://')
  const connections = Number(query.get('connections') ?? CONNECTIONS_DEFAULT)
  if (!(Number.isInteger(connections) && connections >= 1 && connections <= CONNECTIONS_MAX))
    throw invalid(`connections is a number from 1 to ${CONNECTIONS_MAX}`)
  const bare = host.replace(/^\[|\]$/g, '')
  return {
    to: socket === null ? { host: bare, port: Number(port ?? DEFAULT_PORT) } : { path: socket },
    tls: isSecure ? tlsOptions(hostname ?? bare, env) : null,
    ...{ name, connections, shown },
  }
}

/** Without a name (a Unix socket) any that the authority vouches for will do. */
function tlsOptions(name: string, env: Environment): ConnectionOptions {
  if (env.NBD_PSK_FILE) return keyOptions(env.NBD_PSK_FILE, env)
  return {
    ...{ host: name, servername: isIP(name) ? '' : name },
    ...(name === '' && { checkServerIdentity: () => undefined }),
    ...certificates('NBD_TLS', env),
  }
}

/** A key that both sides have, in TLS 1.2: who has it is whom we mean. */
function keyOptions(path: string, env: Environment): ConnectionOptions {
  const lines = fileOf('NBD_PSK_FILE', env)!.toString().split('\n')
  const keys = lines.flatMap(line => {
    const [, identity, hex] = /^([^#:][^:]*):((?:[0-9a-f]{2})+)$/i.exec(line.trim()) ?? []
    return identity ? [{ identity, psk: Buffer.from(hex, 'hex') }] : []
  })
  const wanted = env.NBD_PSK_USERNAME
  const key = wanted ? keys.find(({ identity }) => identity === wanted) : keys.length === 1 ? keys[0] : undefined
  if (!key)
    throw invalid(
      wanted
        ? `no line ${wanted}:HEX in ${path} (NBD_PSK_FILE)`
        : `NBD_PSK_USERNAME says which NAME:HEX of ${path} it is`,
    )
  return {
    pskCallback: () => key,
    checkServerIdentity: () => undefined,
    ...{ ciphers: 'PSK:!aNULL', maxVersion: 'TLSv1.2' },
  }
}
