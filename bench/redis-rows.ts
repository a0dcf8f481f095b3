// Redis on this host: what is measured, beside what.
import path from 'node:path'
import { redisBlob } from '../src/remote/redis-blob.js'
import { startRedis } from '../test/fixtures/redis.js'
import { pairs, root, run } from './harness.js'
import type { Result } from './rows.js'

const MiB = 1024 * 1024
const BYTES = 256 * MiB
const PAIRS = 7

export const redisRows: Record<string, () => Promise<Result[]>> = {
  'redis-sequential': async () => {
    const server = await startRedis()
    try {
      const blob = await redisBlob({ host: '127.0.0.1', port: server.port }, { size: BYTES })
      for (let at = 0; at < BYTES; at += MiB) await blob.write(at, Buffer.alloc(MiB, at / MiB))
      await blob.close()
      const program = path.join(root, 'dist/bench/redis-reads.js')
      const rate = (who: string) =>
        BYTES / MiB / Number(run(process.execPath, [program, who, String(server.port), String(BYTES)]))
      const { ours, theirs, ratio, ratios } = pairs(
        PAIRS,
        () => rate('blob'),
        () => rate('bare'),
      )
      return [
        {
          work: `sequential read of ${BYTES / MiB} MiB of a blob in Redis on this host, 1 MiB at a time`,
          beside: 'pipelined GETs of the same keys by ioredis alone',
          ours: `${Math.round(ours).toLocaleString('en')} MiB/s`,
          theirs: `${Math.round(theirs).toLocaleString('en')} MiB/s`,
          figure: ratio,
          target: 0.8,
          moreIsBetter: true,
          unit: 'ratio',
          spread: ratios,
        },
      ]
    } finally {
      await server.end()
    }
  },
}
