// The status of a mount, for Prometheus.
import { expect, test } from '@jest/globals'
import { serveMetrics } from '../../src/metrics.js'
import { FakeParts } from '../fixtures/mount-parts.js'

test('every scrape sees the status of its moment', async () => {
  const { tree, status } = new FakeParts()
  const server = await serveMetrics({ host: '127.0.0.1', port: 0 }, () => tree.status())
  try {
    const scrape = async () => (await fetch(`http://127.0.0.1:${server.port}/metrics`)).text()
    const first = await scrape()
    expect(first).toMatch(/^pageferry_read_hits_total 9$/m)
    expect(first).toMatch(/^pageferry_remote_reachable 1$/m)
    expect(first).toMatch(/^# TYPE pageferry_remote_requests_total counter$/m)
    status.lag.bytes = 12_345
    status.reads.hits = 10
    const second = await scrape()
    expect(second).toMatch(/^pageferry_lag_bytes 12345$/m)
    expect(second).toMatch(/^pageferry_read_hits_total 10$/m)
    expect((await fetch(`http://127.0.0.1:${server.port}/other`)).status).toBe(404)
  } finally {
    await server.close()
  }
})

test('a port that is taken is bad usage', async () => {
  const { tree } = new FakeParts()
  const server = await serveMetrics({ host: '127.0.0.1', port: 0 }, () => tree.status())
  const again = serveMetrics({ host: '127.0.0.1', port: server.port }, () => tree.status())
  await expect(again).rejects.toMatchObject({ code: 'USAGE', message: expect.stringContaining('EADDRINUSE') })
  await server.close()
})
