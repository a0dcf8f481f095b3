// How fast a region of a server is read from front to end, 1 MiB at a time: through ours, or by the bare client.
//
//   node grpc-reads.js blob|bare SOCKET BYTES      prints seconds
import { Client, credentials } from '@grpc/grpc-js'
import { giveBack } from '../src/base/buffers.js'
import { openRemote } from '../src/open.js'
import { procedure, service } from '../src/remote/grpc-proto.js'

const REQUEST_BYTES = 1024 * 1024
const [who, socket, bytes] = process.argv.slice(2)

interface Reader {
  read(at: number): Promise<unknown>
  close(): unknown
}

async function blob(): Promise<Reader> {
  const opened = await openRemote(`grpc+unix:///?socket=${socket}`, { shape: 'blob' })
  // As the engine does, when it has kept them.
  const read = async (at: number) => giveBack(await opened.read(at, REQUEST_BYTES))
  return { read, close: () => opened.close() }
}

async function bare(): Promise<Reader> {
  const client = new Client(`unix:${socket}`, credentials.createInsecure())
  const { path, requestSerialize, responseDeserialize } = procedure(service('Blob'), 'Read')
  const read = (at: number) =>
    new Promise((resolve, reject) => {
      const request = { at, length: REQUEST_BYTES }
      const stream = client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, request)
      const parts: unknown[] = []
      stream.on('data', part => parts.push(part)).on('error', reject)
      stream.on('end', () => resolve(parts))
    })
  return { read, close: () => client.close() }
}

const reader = await (who === 'blob' ? blob() : bare())
async function pass(): Promise<number> {
  const started = performance.now()
  for (let at = 0; at < Number(bytes); at += REQUEST_BYTES) await reader.read(at)
  return (performance.now() - started) / 1000
}
// The first one is for the compiler.
await pass()
console.log(await pass())
await reader.close()
