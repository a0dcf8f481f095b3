// A real S3 server (Ceph's gateway) behind a line of a given distance and width, and those who mount a bucket of it: pageferry, rclone, s3fs.
import { type ChildProcess, fork, spawn, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { S3 } from '@aws-sdk/client-s3'
import { compile } from '../test/fixtures/compiled.js'
import type { FaultProxySettings } from '../test/fixtures/fault-proxy.js'
import type { FaultProxyStatus } from '../test/fixtures/fault-proxy-daemon.js'
import type { Rgw } from '../test/fixtures/rgw-daemon.js'
import { directory, dropCaches, mount, root, run } from './harness.js'

const START_MS = 180_000
/** Memory of the server's, of which what is in it is used. */
const STORE_BYTES = 12 * 2 ** 30
/** A part of the sizes of all rows, to try them out: S3_BENCH_SCALE=0.1. */
export const SCALE = Number(process.env.S3_BENCH_SCALE ?? 1)

export interface World {
  /** Reaches the server without the line. */
  s3: S3
  bucket: string
  line(settings: Partial<FaultProxySettings>): Promise<void>
  counters(): Promise<FaultProxyStatus['counters']>
  close(): void
}

/** Somebody who mounts what is below a prefix, with empty caches. */
export interface Contestant {
  name: 'pageferry' | 'rclone' | 's3fs'
  at: string
  /** Waits until everything is at the server, if there is a way to ask for that. */
  sync?: () => void
  unmount(): void
}

export async function world(): Promise<World> {
  const gateway = await startGateway()
  const proxy = await startProxy(gateway.endpoint)
  for (const name of Object.keys(process.env)) if (/^AWS_|^https?_proxy$/i.test(name)) delete process.env[name]
  Object.assign(process.env, {
    AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true',
    AWS_ACCESS_KEY_ID: gateway.accessKeyId,
    AWS_SECRET_ACCESS_KEY: gateway.secretAccessKey,
    AWS_REGION: 'us-east-1',
    AWS_ENDPOINT_URL_S3: proxy.endpoint,
    AWS_CONFIG_FILE: '/dev/null',
    AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
  })
  const s3 = new S3({
    ...{ endpoint: gateway.endpoint, forcePathStyle: true },
    ...{ requestChecksumCalculation: 'WHEN_REQUIRED', responseChecksumValidation: 'WHEN_REQUIRED' },
  })
  const bucket = `bench-${randomUUID().slice(0, 8)}`
  await s3.createBucket({ Bucket: bucket })
  return {
    s3,
    bucket,
    line: async settings => {
      await proxy.ask({ delayMs: 0, upPerSecond: 1e12, downPerSecond: 1e12, ...settings })
    },
    counters: async () => (await proxy.ask()).counters,
    close() {
      s3.destroy()
      proxy.child.kill()
      gateway.child.kill()
    },
  }
}

/** It ends with this process. */
async function startGateway(): Promise<Rgw & { child: ChildProcess }> {
  const folder = directory('rgw')
  const daemon = compile('test/fixtures/rgw-daemon.ts')
  const env = { ...process.env, PAGEFERRY_RGW_BYTES: String(STORE_BYTES) }
  const child = spawn(process.execPath, [daemon.path, folder, String(process.pid)], { env, stdio: 'ignore' })
  for (const until = Date.now() + START_MS; Date.now() < until; await sleep(50)) {
    const ready = path.join(folder, 'ready.json')
    if (fs.existsSync(ready)) return { ...JSON.parse(fs.readFileSync(ready, 'utf8')), child }
    if (fs.existsSync(path.join(folder, 'failed')))
      throw new Error(fs.readFileSync(path.join(folder, 'failed'), 'utf8'))
  }
  throw new Error(`the gateway was not ready within ${START_MS} ms`)
}

async function startProxy(target: string) {
  const daemon = compile('test/fixtures/fault-proxy-daemon.ts')
  const child = fork(daemon.path, [JSON.stringify({ target })])
  const next = () => new Promise<FaultProxyStatus>(resolve => child.once('message', resolve as (m: unknown) => void))
  const { endpoint } = await next()
  const ask = (set?: Partial<FaultProxySettings>) => {
    const answer = next()
    child.send({ set })
    return answer
  }
  return { child, endpoint, ask }
}

let mounts = 0

export function pageferry({ bucket }: World, prefix: string, options: string[] = []): Contestant {
  const ours = mount(`s3-${mounts++}`, `s3://${bucket}/${prefix}`, options)
  const cli = path.join(root, 'dist/cli.js')
  return {
    name: 'pageferry',
    at: ours.at,
    sync: () => {
      run(process.execPath, [cli, 'sync', ours.at])
    },
    unmount: ours.unmount,
  }
}

export function rclone({ bucket }: World, prefix: string): Contestant {
  const { at, cache } = places('rclone')
  const env = {
    ...process.env,
    ...{ RCLONE_CONFIG: '/dev/null', RCLONE_CONFIG_GW_TYPE: 's3', RCLONE_CONFIG_GW_PROVIDER: 'Ceph' },
    RCLONE_CONFIG_GW_ENV_AUTH: 'true',
    RCLONE_CONFIG_GW_ENDPOINT: process.env.AWS_ENDPOINT_URL_S3,
  }
  const options = ['--vfs-cache-mode', 'full', '--vfs-write-back', '0s', '--cache-dir', cache, '--daemon']
  const done = spawnSync('rclone', ['mount', `gw:${bucket}/${prefix}`, at, ...options], { env, encoding: 'utf8' })
  if (done.status !== 0) throw new Error(`rclone: ${done.stderr}`)
  return { name: 'rclone', at, unmount: () => unmount(at) }
}

export async function s3fs({ s3, bucket }: World, prefix: string): Promise<Contestant> {
  const { at, cache } = places('s3fs')
  // It mounts only what has an object of its own.
  await s3.putObject({ Bucket: bucket, Key: `${prefix}/`, ContentType: 'application/x-directory' })
  const options = [`url=${process.env.AWS_ENDPOINT_URL_S3}`, 'use_path_request_style', `use_cache=${cache}`]
  run('s3fs', [`${bucket}:/${prefix}`, at, '-o', options.join(',')])
  return { name: 's3fs', at, unmount: () => unmount(at) }
}

const places = (name: string) => {
  const number = mounts++
  return { at: directory(`${name}-${number}.mount`), cache: directory(`${name}-${number}.cache`) }
}

function unmount(at: string): void {
  for (let tries = 0; tries < 100; tries++) {
    if (spawnSync('umount', [at]).status === 0) return
    spawnSync('sleep', ['0.1'])
  }
  spawnSync('umount', ['-l', at])
}

/** Runs something on each of them, one after the other, each with empty caches. @returns seconds, or what `work` returns */
export async function each(
  all: World,
  prefix: string,
  work: (contestant: Contestant) => number | Promise<number>,
  who: readonly Contestant['name'][] = ['pageferry', 'rclone', 's3fs'],
): Promise<Record<Contestant['name'], number>> {
  const figures = { pageferry: Number.NaN, rclone: Number.NaN, s3fs: Number.NaN }
  for (const name of who) {
    dropCaches()
    const one = await { pageferry, rclone, s3fs }[name](all, prefix)
    // What a mount does by itself at its beginning is not counted.
    await sleep(1_000)
    try {
      figures[name] = await work(one)
    } finally {
      one.unmount()
    }
  }
  return figures
}

export const seconds = async (work: () => unknown): Promise<number> => {
  const started = performance.now()
  await work()
  return (performance.now() - started) / 1000
}

/** The server gives the memory back within some seconds. */
export async function empty({ s3, bucket }: World): Promise<void> {
  for (;;) {
    const { Contents = [] } = await s3.listObjectsV2({ Bucket: bucket })
    if (Contents.length === 0) return
    const Objects = Contents.map(({ Key }) => ({ Key: Key! }))
    const { Errors = [] } = await s3.deleteObjects({ Bucket: bucket, Delete: { Objects } })
    if (Errors.length > 0) throw new Error(`${Errors[0].Key} stays: ${Errors[0].Code}`)
  }
}

/** An object of random bytes. */
export async function put({ s3, bucket }: World, key: string, bytes: number): Promise<void> {
  const file = path.join(directory('objects'), 'object')
  run('sh', ['-c', `head -c ${bytes} /dev/urandom > '${file}'`])
  await putFile({ s3, bucket }, key, file)
  fs.rmSync(file)
}

export async function putFile({ s3, bucket }: Pick<World, 's3' | 'bucket'>, key: string, file: string): Promise<void> {
  const ContentLength = fs.statSync(file).size
  await s3.putObject({ Bucket: bucket, Key: key, Body: fs.createReadStream(file), ContentLength })
}

/** Ranged GETs of one object, so many at once, through the line. @returns seconds */
export function parallelGets({ bucket }: World, key: string, atOnce: number): number {
  const program = path.join(root, 'dist/bench/parallel-gets.js')
  return Number(run(process.execPath, [program, bucket, key, String(atOnce)]))
}
