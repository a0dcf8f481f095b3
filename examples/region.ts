// A disk image somewhere else, used at once: what is read comes when it is read, what is written travels back in the background.
import { openRegion } from '../src/index.js'

const [image] = process.argv.slice(2) // /path/disk.img, s3://bucket/disk.img, s3://bucket/disk?layout=chunks&size=10G

await using disk = await openRegion(image, { cacheSize: '1G' })
const block = new Uint8Array(4096)
await disk.read(disk.size - block.length, block)
block.set(Buffer.from('hello'))
await disk.write(0, block) // here, and in the journal: it survives the end of this process
await disk.flush() // and a loss of power
await disk.sync() // the remote has committed it
console.log('size:', disk.size, 'here:', disk.status().availability, 'lag:', disk.status().lag.bytes)
