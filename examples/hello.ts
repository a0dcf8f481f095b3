// Mounts a directory, uses it like any other, and goes on when the remote has every change.
import { readFile, writeFile } from 'node:fs/promises'
import { mountTree } from '../src/index.js'

const [remote, mountpoint] = process.argv.slice(2)

await using mount = await mountTree(remote, mountpoint, { flushInterval: '10s' })
await writeFile(`${mountpoint}/hello.txt`, 'hello\n') // here, and in the journal; not yet at the remote
console.log('lag:', mount.status().lag.operations > 0)
await mount.sync() // the remote has committed it
console.log('at the remote:', await readFile(`${remote}/hello.txt`, 'utf8'))
