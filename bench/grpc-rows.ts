// gRPC on this host: what is measured, beside what.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { pairs, root, run } from './harness.js'
import type { Result } from './rows.js'

const MiB = 1024 * 1024
const BYTES = 256 * MiB
const PAIRS = 7
const cli = path.join(root, 'dist/cli.js')

export const grpcRows: Record<string, () => Promise<Result[]>> = {
  'grpc-sequential': async () => {
    const folder = fs.mkdtempSync('/dev/shm/pageferry-bench-')
    const [file, socket] = [path.join(folder, 'disk'), path.join(folder, 'socket')]
    for (let at = 0; at < BYTES; at += MiB) fs.appendFileSync(file, Buffer.alloc(MiB, at / MiB))
    run(process.execPath, [cli, 'serve', '--daemon', file, '--listen', `unix:${socket}`, '--log-file', `${folder}/log`])
    try {
      const program = path.join(root, 'dist/bench/grpc-reads.js')
      const rate = (who: string) => BYTES / MiB / Number(run(process.execPath, [program, who, socket, String(BYTES)]))
      const { ours, theirs, ratio, ratios } = pairs(
        PAIRS,
        () => rate('blob'),
        () => rate('bare'),
      )
      return [
        {
          work: `sequential read of ${BYTES / MiB} MiB of a region of a server on this host, by gRPC, 1 MiB at a time`,
          beside: 'the same procedure called by @grpc/grpc-js alone',
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
      spawnSync(process.execPath, [cli, 'umount', `grpc+unix:///?socket=${socket}`])
      fs.rmSync(folder, { recursive: true, force: true })
    }
  },
}
