// The way to one Redis server. What is asked is answered, or rejected as soon as the connection breaks; nothing is sent twice, and
// the next call makes a new connection.
import { isAscii } from 'node:buffer'
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { Redis } from 'ioredis'
import { orAborted, throwIfAborted } from '../base/async.js'
import { FerryError } from '../base/errors.js'
import { logger } from '../base/log.js'
import { urlPath } from './path.js'
import { cluster, refusalOf, toRedisError } from './redis-errors.js'

const log = logger('remote')

const CONNECT_MS = 10_000
const REPLY_MS = 30_000
export const PORT_DEFAULT = 6379
export const PREFIX_DEFAULT = 'pageferry:'

/** Of a user without REDIS_PASSWORD the password is ''. */
export interface RedisOptions {
  host: string
  /** Default 6379. */
  port?: number
  /** Default 0. */
  db?: number
  /** The certificate is verified: against the file that REDIS_CA_FILE names, else as Node does. Default false. */
  tls?: boolean
  /** Default: REDIS_USERNAME, else the server's default user. */
  user?: string
  /** What every key begins with: bytes (latin1). Default 'pageferry:'. */
  prefix?: string
  /** A server that is silent for so long while it owes an answer is given up. Default 30,000. */
  replyMs?: number
}

export type RedisArgument = string | number | Buffer
export type RedisKey = string | Buffer
export type RedisCommand = [name: string, ...args: RedisArgument[]]
/** Bytes, unless it is something else by its nature. */
export type RedisReply = Buffer | number | null | RedisReply[]

/** Runs as one at the server. */
export interface RedisScript {
  source: string
  digest: string
}

export const redisScript = (source: string): RedisScript => ({
  source,
  digest: createHash('sha1').update(source).digest('hex'),
})

/** What the server says of itself. */
interface Facts {
  /** It has a log of its changes, and can be asked to wait until it is on its disk (Redis 7.2). */
  waitsForLog: boolean
  /** Another one after each start of the server; '' if we may not know. */
  runId: string
}

export class RedisConnection {
  /** Without user and prefix. */
  readonly server: string
  /** With the prefix, if it is another than the default. */
  readonly url: string
  readonly prefix: string
  readonly #options: RedisOptions
  #client: Redis | undefined
  #opening: Promise<Redis> | undefined
  #facts: Facts = { waitsForLog: false, runId: '' }
  #restarts = 0
  /** Of the newest connection, as the server counts them; 0: it may not be known. */
  #clientId = 0
  #closed = false

  constructor(options: RedisOptions) {
    const { host, port = PORT_DEFAULT, db = 0, tls = false, prefix = PREFIX_DEFAULT } = options
    this.#options = options
    this.prefix = prefix
    this.server = `${tls ? 'rediss' : 'redis'}://${host.includes(':') ? `[${host}]` : host}:${port}/${db}`
    const shown = urlPath(Buffer.from(prefix, 'latin1')).replaceAll('+', '%2b')
    this.url = prefix === PREFIX_DEFAULT ? this.server : `${this.server}?prefix=${shown}`
  }

  /** Of the newest connection. */
  get facts(): Facts {
    return this.#facts
  }

  /** How often another run of the server was found behind a new connection: what the one before had only in its memory is lost. */
  get restarts(): number {
    return this.#restarts
  }

  key(name: string): RedisKey {
    const key = this.prefix + name
    // ioredis sends strings as UTF-8, and in half the time that it takes for bytes.
    return isAscii(Buffer.from(key)) ? key : Buffer.from(key, 'latin1')
  }

  /** Connects, if it is not yet. */
  async open(signal?: AbortSignal): Promise<void> {
    await this.ask([], signal)
  }

  /**
   * One reply each, in one round trip; what others ask may be done in between. `each`: told of every reply as soon as it is here, though
   * a later one may be an error yet.
   */
  async ask(
    commands: RedisCommand[],
    signal?: AbortSignal,
    each: (reply: RedisReply, index: number) => void = () => {},
  ): Promise<RedisReply[]> {
    throwIfAborted(signal)
    const client = await orAborted(this.#ready(), signal)
    const pipeline = client.pipeline(
      commands.map(([name, ...args], index) => {
        const heard = (error: Error | null, reply: RedisReply) => {
          if (!error) each(reply, index)
        }
        return [`${name}Buffer`, ...args, heard]
      }),
    )
    const replies = pipeline.exec() as Promise<[error: Error | null, reply: RedisReply][]>
    return (await orAborted(replies, signal)).map(([error, reply]) => {
      if (error) throw this.#refused(client, error)
      return reply
    })
  }

  async run(script: RedisScript, keys: RedisKey[], args: RedisArgument[], signal?: AbortSignal): Promise<RedisReply> {
    const all = [keys.length, ...keys, ...args]
    try {
      const [reply] = await this.ask([['evalsha', script.digest, ...all]], signal)
      return reply
    } catch (error) {
      if (!(error instanceof UnknownScript)) throw error
      const [reply] = await this.ask([['eval', script.source, ...all]], signal)
      return reply
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#client?.disconnect()
  }

  #refused(client: Redis, error: Error): FerryError {
    const refusal = refusalOf(error)
    if (refusal === 'NOSCRIPT') return new UnknownScript('IO', { detail: `${this.server}: no such script` })
    if (refusal === undefined && this.#closed) return new FerryError('CLOSED')
    // It was the master once: behind its name there may be another one now.
    if (refusal === 'READONLY') {
      if (this.#client === client) this.#client = undefined
      client.disconnect()
    }
    return toRedisError(error, this.server)
  }

  async #ready(): Promise<Redis> {
    if (this.#closed) throw new FerryError('CLOSED')
    if (this.#client?.status === 'ready') return this.#client
    this.#opening ??= this.#connect().finally(() => {
      this.#opening = undefined
    })
    return this.#opening
  }

  async #connect(): Promise<Redis> {
    const { host, port = PORT_DEFAULT, tls, replyMs = REPLY_MS } = this.#options
    const client = new Redis({
      ...{ host, port, connectTimeout: CONNECT_MS, socketTimeout: replyMs },
      ...(tls && { tls: { ca: await trusted() } }),
      // Whoever asks has to hear of a broken connection, and connects anew: no queues, no second attempts.
      ...{ lazyConnect: true, enableOfflineQueue: false, retryStrategy: () => null },
      ...{ autoResendUnfulfilledCommands: false, enableReadyCheck: false, disableClientInfo: true, protocol: 2 },
    })
    let cause: unknown
    client.on('error', error => {
      cause ??= error
    })
    try {
      await client.connect()
      await this.#greet(client)
    } catch (error) {
      client.disconnect()
      throw toRedisError(refusalOf(error) || error instanceof FerryError ? error : (cause ?? error), this.server)
    }
    if (this.#closed) {
      client.disconnect()
      throw new FerryError('CLOSED')
    }
    this.#client = client
    return client
  }

  async #greet(client: Redis): Promise<void> {
    const { db = 0, user = process.env.REDIS_USERNAME || undefined } = this.#options
    const password = process.env.REDIS_PASSWORD || undefined
    if (user !== undefined || password !== undefined)
      await client.call('auth', ...(user === undefined ? [] : [user]), password ?? '').catch(error => {
        if (!/without any password configured/.test(String(error))) throw error
        log.warn(`${this.server}: the server wants no password`)
      })
    if (db !== 0) await client.select(db)
    const [info, id] = await Promise.all([
      client.info().catch(unlessForbidden('')),
      client.call('client', 'id').catch(unlessForbidden(0)),
    ])
    const facts = Object.fromEntries(info.split('\r\n').map(line => line.split(':', 2)))
    const refuse = (why: string) => {
      throw new FerryError('UNREACHABLE', { detail: `${this.server}: ${why}`, lasting: true })
    }
    if (facts.cluster_enabled === '1') refuse(cluster)
    const policy = String(facts.maxmemory_policy)
    if (facts.maxmemory > 0 && policy.startsWith('allkeys'))
      refuse(`when it is full this server drops keys of ours (maxmemory-policy ${policy}); it must be noeviction`)
    const [major, minor] = String(facts.redis_version).split('.').map(Number)
    this.#supersede(client, { runId: facts.run_id ?? '', id: Number(id) })
    this.#facts = {
      waitsForLog: facts.aof_enabled === '1' && (major > 7 || (major === 7 && minor >= 2)),
      runId: facts.run_id ?? '',
    }
  }

  /**
   * What the connection before has sent may still be on its way, and must not be done after what this one asks for: the server drops it
   * together with that connection (https://redis.io/commands/client-kill), before it comes to the next command of this one.
   */
  #supersede(client: Redis, { runId, id }: { runId: string; id: number }): void {
    const before = this.#facts.runId
    if (before !== runId && before !== '') this.#restarts++
    else if (this.#clientId > 0)
      client.call('client', 'kill', 'id', this.#clientId).catch(error => {
        log.debug('the connection before was not ended', { error: toRedisError(error, this.server) })
      })
    this.#clientId = id
  }
}

/** For what a user may not ask: `instead`. */
const unlessForbidden =
  <T>(instead: T) =>
  (error: unknown): T => {
    if (refusalOf(error) !== 'NOPERM') throw error
    return instead
  }

class UnknownScript extends FerryError {}

/** undefined: those that Node trusts. */
async function trusted(): Promise<string[] | undefined> {
  const path = process.env.REDIS_CA_FILE
  if (!path) return undefined
  try {
    return [await readFile(path, 'utf8')]
  } catch (error) {
    throw new FerryError('IO', { cause: error, detail: `the CA file ${path} cannot be read` })
  }
}
