// The status of a mount for Prometheus, on a port of this machine.
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Counter, Gauge, Registry } from 'prom-client'
import { deferred } from './base/async.js'
import { FerryError } from './base/errors.js'
import type { MountStatus } from './mounted-tree.js'
import type { Listen } from './option-kinds.js'

type Row = [name: string, kind: typeof Gauge | typeof Counter, help: string, value: (status: MountStatus) => number]

const rows: Row[] = [
  ['lag_bytes', Gauge, 'Bytes that the remote does not have yet', ({ lag }) => lag.bytes],
  ['lag_operations', Gauge, 'Changes that the remote does not have yet', ({ lag }) => lag.operations],
  ['lag_age_seconds', Gauge, 'Age of the oldest change that the remote does not have', ({ lag }) => lag.ageMs / 1000],
  ['lag_kernel_bytes', Gauge, 'Bytes that the kernel holds back', ({ lag }) => lag.kernelBytes],
  ['cache_bytes', Gauge, 'Bytes on the local disk', ({ cache }) => cache.bytes],
  ['cache_bytes_max', Gauge, 'Bytes on the local disk, at most', ({ cache }) => cache.bytesMax],
  ['cache_corrupt_total', Counter, 'Chunks that did not match their checksum', ({ cache }) => cache.corrupt],
  ['memory_bytes', Gauge, 'Bytes in buffers of fetches and pushes', ({ memory }) => memory.bytes],
  ['memory_bytes_max', Gauge, 'Bytes in such buffers, at most', ({ memory }) => memory.bytesMax],
  ['read_hits_total', Counter, 'Reads answered from the cache', ({ reads }) => reads.hits],
  ['read_misses_total', Counter, 'Reads that waited for the remote', ({ reads }) => reads.misses],
  ['hedged_reads_total', Counter, 'Reads that were asked for a second time', ({ hedged }) => hedged.asked],
  ['remote_requests_total', Counter, 'Requests to the remote', ({ remote }) => remote.requests],
  ['remote_errors_total', Counter, 'Requests to the remote that failed', ({ remote }) => remote.errors],
  ['remote_read_bytes_total', Counter, 'Bytes from the remote', ({ remote }) => remote.bytesRead],
  ['remote_written_bytes_total', Counter, 'Bytes to the remote', ({ remote }) => remote.bytesWritten],
  ['remote_reachable', Gauge, '1 when the remote answers', ({ remote }) => (remote.reachable ? 1 : 0)],
  ['batches_committed_total', Counter, 'Batches that the remote has', ({ batches }) => batches.committed],
  ['conflicts', Gauge, 'Files that somebody else had changed as well', ({ conflicts }) => conflicts.length],
  ['quarantine', Gauge, 'Paths that the remote refuses for good', ({ quarantine }) => quarantine.length],
]

export interface MetricsServer {
  readonly port: number
  close(): Promise<void>
}

/** Serves `/metrics`. Values are those of the moment of each request. USAGE when the port is taken. */
export async function serveMetrics({ host, port }: Listen, status: () => MountStatus): Promise<MetricsServer> {
  const registry = new Registry()
  let now = status()
  for (const [name, Kind, help, value] of rows) {
    new Kind({
      name: `pageferry_${name}`,
      help,
      registers: [registry],
      collect() {
        this.reset()
        this.inc(value(now))
      },
    })
  }
  const server = createServer(async (request, response) => {
    if (request.method !== 'GET' || request.url?.split('?')[0] !== '/metrics') {
      response.writeHead(404).end('try /metrics\n')
      return
    }
    now = status()
    response.writeHead(200, { 'content-type': registry.contentType }).end(await registry.metrics())
  })
  const listening = deferred()
  server.on('error', (error: NodeJS.ErrnoException) =>
    listening.reject(
      new FerryError('USAGE', { cause: error, detail: `--metrics: cannot listen on ${host}:${port} (${error.code})` }),
    ),
  )
  server.listen(port, host, () => listening.resolve())
  await listening.promise
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      const closed = deferred()
      server.close(() => closed.resolve())
      server.closeAllConnections()
      await closed.promise
    },
  }
}
