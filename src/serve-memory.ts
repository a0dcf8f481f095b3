// Regions as the memory of other processes: what the library and the command line call.
import type { RegionDoor } from './cache/door.js'
import { keepSize, Region } from './open-region.js'
import { type MemoryOptions, memorySettings } from './options.js'
import { listenMemory, type MemoryServer } from './userfault/server.js'

/**
 * Serves a region as memory, until it is closed: a process connects to the Unix socket `socket`, passes its userfaultfd (SCM_RIGHTS) and
 * says by JSON which of its addresses are which bytes of the region (docs/MEMORY.md: Firecracker's protocol); its pages come when they
 * are touched. What it writes there stays its own. The region stays open. With `share` a process is first given a memfd, which all of them
 * map privately: what they have not written to is there once.
 * @throws FerryError USAGE: an option is wrong, or nobody can listen there
 */
export async function serveMemory(region: RegionDoor, options: MemoryOptions): Promise<MemoryServer> {
  const settings = memorySettings(options)
  const letSize = region instanceof Region ? keepSize(region) : () => {}
  return listenMemory(region, settings, letSize).catch(error => {
    letSize()
    throw error
  })
}
