// A to-do list whose state is memory: edited on one host, continued on another. The memory is a region that lies somewhere else.
//
//   todo.js REGION [add TEXT...]     REGION: /path/todo.img, s3://bucket/todo.img, grpcs://host:4711/: 1 MiB, say
import { mapRegion, openRegion } from '../src/index.js'

const [url, command, ...words] = process.argv.slice(2)
const ENTRY_BYTES = 256

await using region = await openRegion(url)
await using memory = await mapRegion(region, { writeBack: command === 'add' })
/** The first word of the memory: how many there are. Behind it the entries, 256 bytes each. */
const state = Buffer.from(memory.bytes.buffer)
const entry = (n: number) => state.subarray((n + 1) * ENTRY_BYTES, (n + 2) * ENTRY_BYTES)

let count = state.readUInt32LE(0)
if (command === 'add') {
  entry(count).fill(0)
  entry(count).write(words.join(' '))
  state.writeUInt32LE(++count, 0)
  await memory.sync() // the remote has it: another host may go on
}
for (let n = 0; n < count; n++) console.log(`${n + 1}. ${entry(n).toString().replace(/\0.*$/s, '')}`)
