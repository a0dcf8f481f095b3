// pageferry memory: regions as the memory of other processes.
import { memoryServerSettings } from '../options.js'
import { listenMemory } from '../userfault/server.js'
import { absoluteRemote, type Ready, startDaemon } from './daemonize.js'
import type { ExitStatus } from './report.js'
import { type Opened, serveRegions } from './serve-regions.js'
import { serving } from './serving.js'

/** `ready`: this is the daemon, and who started it waits. */
export async function memoryServeCommand(
  given: string,
  { config, ...flags }: { config?: string } & Record<string, unknown>,
  ready: Ready | undefined,
): Promise<ExitStatus> {
  const { env } = process
  const settings = memoryServerSettings({ flags, env, config: config ?? env.PAGEFERRY_CONFIG })
  if (settings.daemon && !ready) return startDaemon()
  const open = async ([{ region }]: Opened[]) => {
    const door = await listenMemory(region, settings.memory)
    return { door, address: settings.memory.socket }
  }
  return serving(settings, ready, life =>
    serveRegions([{ name: '', remote: absoluteRemote(given) }], settings, ready, life, open),
  )
}
