// The AWS SDK's client, set up as those who use AWS expect it: credentials, profiles, regions, endpoints, proxies, CA bundles.
import { readFile } from 'node:fs/promises'
import { Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import { S3 } from '@aws-sdk/client-s3'
import { loadConfig } from '@smithy/core/config'
import { NodeHttpHandler, type NodeHttpHandlerOptions } from '@smithy/node-http-handler'
import { HttpProxyAgent, HttpsProxyAgent } from 'hpagent'
import { getProxyForUrl } from 'proxy-from-env'
import { FerryError } from '../base/errors.js'
import { logger } from '../base/log.js'

const log = logger('remote')

/** Connections to one host; what comes on top waits for its turn. */
const SOCKETS_MAX = 128
const CONNECT_MS = 10_000
const REGION_DEFAULT = 'us-east-1'

/** What is not given here is looked up where the AWS tools look: the environment, `~/.aws`, the host's role. */
export interface S3ClientOptions {
  /** An http or https URL. */
  endpoint?: string
  region?: string
  /** The bucket is part of the path, not of the host's name. Default: if the endpoint is an IP address or localhost. */
  pathStyle?: boolean
}

/** @throws FerryError INVALID for what is no endpoint, IO for a CA bundle that cannot be read */
export async function s3Client({ endpoint, region, pathStyle }: S3ClientOptions): Promise<S3> {
  if (endpoint !== undefined) checkEndpoint(endpoint)
  const used = endpoint ?? (await setting(['AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL'], 'endpoint_url'))
  return new S3({
    ...(endpoint !== undefined && { endpoint }),
    region: region ?? ((await setting(['AWS_REGION', 'AWS_DEFAULT_REGION'], 'region')) || REGION_DEFAULT),
    // For IP addresses the SDK does so by itself.
    ...((pathStyle ?? isLocalhost(used)) && { forcePathStyle: true }),
    requestHandler: new ProxyingHandler(await caBundle()),
    // Trying again is the business of `retry`, and checksums that older servers do not know are for whoever asks for them.
    maxAttempts: 1,
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    // It would cost a round trip, and a connection that is not kept.
    expectContinueHeader: false,
  })
}

/** Of the environment, else of the profile in use; '' if it is in neither. */
const setting = (variables: string[], key: string): Promise<string> =>
  loadConfig({
    environmentVariableSelector: env => variables.map(name => env[name]).find(Boolean),
    configFileSelector: profile => profile[key],
    default: '',
  })()

function checkEndpoint(endpoint: string): void {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : undefined
  if (url && /^https?:$/.test(url.protocol) && url.hostname && !url.username && !url.password && !url.search) return
  throw new FerryError('INVALID', { detail: 'the endpoint must be like https://host:port, without credentials' })
}

const isLocalhost = (endpoint: string) =>
  URL.canParse(endpoint) && /^(.+\.)?localhost$/.test(new URL(endpoint).hostname)

/** Certificates to be trusted instead of Node's own, as AWS_CA_BUNDLE or `ca_bundle` in a profile names them. */
async function caBundle(): Promise<string[] | undefined> {
  const path = await setting(['AWS_CA_BUNDLE'], 'ca_bundle')
  if (!path) return undefined
  try {
    return [await readFile(path, 'utf8')]
  } catch (error) {
    throw new FerryError('IO', { cause: error, detail: `the CA bundle ${path} cannot be read` })
  }
}

/** Goes through the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for each host. */
class ProxyingHandler extends NodeHttpHandler {
  readonly #ca: string[] | undefined
  readonly #proxied = new Map<string, NodeHttpHandler>()

  constructor(ca: string[] | undefined) {
    const agents = { keepAlive: true, maxSockets: SOCKETS_MAX }
    super(handlerOptions(new HttpAgent(agents), new HttpsAgent({ ...agents, ca })))
    this.#ca = ca
  }

  override handle(...args: Parameters<NodeHttpHandler['handle']>): ReturnType<NodeHttpHandler['handle']> {
    const [{ protocol, hostname, port }] = args
    const proxy = getProxyForUrl(`${protocol}//${hostname}${port ? `:${port}` : ''}`)
    return proxy ? this.#through(proxy).handle(...args) : super.handle(...args)
  }

  #through(proxy: string): NodeHttpHandler {
    let handler = this.#proxied.get(proxy)
    if (!handler) {
      const agents = { keepAlive: true, maxSockets: SOCKETS_MAX, proxy, proxyRequestOptions: { ca: this.#ca } }
      handler = new NodeHttpHandler(
        handlerOptions(new HttpProxyAgent(agents), new HttpsProxyAgent({ ...agents, ca: this.#ca })),
      )
      this.#proxied.set(proxy, handler)
    }
    return handler
  }

  override destroy(): void {
    super.destroy()
    for (const handler of this.#proxied.values()) handler.destroy()
  }
}

const handlerOptions = (httpAgent: HttpAgent, httpsAgent: HttpsAgent): NodeHttpHandlerOptions => ({
  httpAgent,
  httpsAgent,
  connectionTimeout: CONNECT_MS,
  logger: handlerLog,
})

const say = (level: 'debug' | 'warn' | 'error') => (message: unknown) => log[level](String(message))
/** Otherwise it would speak to the console. */
const handlerLog = {
  trace: say('debug'),
  debug: say('debug'),
  info: say('debug'),
  warn: say('warn'),
  error: say('error'),
}
