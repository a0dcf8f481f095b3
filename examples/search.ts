// Searches sorted records that lie somewhere else, as if they were memory: of 10 GiB a search touches a few pages.
//
//   search.js REGION NUMBER...     the region: 64-bit numbers (little-endian), ascending
import { mapRegion, openRegion } from '../src/index.js'

const [url, ...wanted] = process.argv.slice(2)
await using region = await openRegion(url, { readOnly: true })
await using memory = await mapRegion(region)
const numberAt = (n: number) => new DataView(memory.window(n * 8, 8).buffer).getBigUint64(0, true)

for (const text of wanted) {
  let [from, to] = [0, region.size / 8]
  while (from < to) {
    const middle = Math.floor((from + to) / 2)
    if (numberAt(middle) < BigInt(text)) from = middle + 1
    else to = middle
  }
  const isThere = from < region.size / 8 && numberAt(from) === BigInt(text)
  console.log(isThere ? `${text} is number ${from}` : `${text} is not there`)
}
console.log(`${((100 * memory.status().bytes) / region.size).toFixed(3)}% of it came`)
