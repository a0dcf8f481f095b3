// Memory of other processes, from three kinds of handlers: bytes that are made when they are wanted, a file, an object of a bucket.
//
//   handlers.js SOCKET bytes|PATH|s3://BUCKET/KEY     and then  memory.py SOCKET
import { once } from 'node:events'
import { openRegion, type RegionDoor, serveMemory } from '../src/index.js'

const [socket, what] = process.argv.slice(2)
const LETTERS = Buffer.from('abcdefghijklmnopqrstuvwxyz')

/** What a handler is: its size, and how a run of its bytes is read (at once, or with a promise). Nothing else is asked for. */
const alphabet = (size: number): RegionDoor => ({
  size,
  readOnly: true,
  read(at, into) {
    for (let n = 0; n < into.length; n++) into[n] = LETTERS[(at + n) % LETTERS.length]
  },
  write() {},
  trim() {},
  flush() {},
  prefetch() {},
  extents: (_, length) => [{ length, zeros: false }],
})

const region = what === 'bytes' ? null : await openRegion(what, { readOnly: true })
await using server = await serveMemory(region ?? alphabet(2 ** 24), { socket, share: true })
console.log('ready at', server.address)
await once(process, 'SIGTERM')
console.log('faults:', server.counts.faults)
await server.close()
await region?.close()
