// pageferry nbd: regions as block devices of others.
import { FerryError } from '../base/errors.js'
import { attachRegion } from '../join.js'
import { attachSettings, nbdSettings } from '../options.js'
import { serveNbdWith, uriOf } from '../serve-nbd.js'
import { absoluteRemote, type Ready, startDaemon } from './daemonize.js'
import type { ExitStatus } from './report.js'
import { type Named, type Opened, serveRegions } from './serve-regions.js'
import { serving } from './serving.js'
import { umountCommand } from './unmount.js'

/** NAME=REGION, or REGION alone. A name has nothing in it that a URL or a path begins with. */
function parseRegion(given: string): Named {
  const [, name, remote] = /^([^=:/?]+)=(.+)$/s.exec(given) ?? [undefined, '', given]
  return { name, remote: absoluteRemote(remote) }
}

/** `ready`: this is the daemon, and who started it waits. */
export async function nbdServeCommand(
  given: string[],
  { config, ...flags }: { config?: string } & Record<string, unknown>,
  ready: Ready | undefined,
): Promise<ExitStatus> {
  const { env } = process
  const settings = nbdSettings({ flags, env, config: config ?? env.PAGEFERRY_CONFIG })
  const named = given.map(parseRegion)
  if (new Set(named.map(({ name }) => name)).size < named.length)
    throw new FerryError('USAGE', { detail: 'of several regions each needs a name of its own: NAME=REGION' })
  if (named.length > 1 && settings.cacheDir !== undefined)
    throw new FerryError('USAGE', { detail: '--cache-dir is for one region; of several each has its own' })
  if (settings.daemon && !ready) return startDaemon()
  const open = async (regions: Opened[]) => {
    const door = await serveNbdWith(regions, settings.server)
    return { door, address: uriOf(door.address, settings.server) }
  }
  return serving(settings, ready, life => serveRegions(named, settings, ready, life, open))
}

/** `ready`: this is the daemon, and who started it waits. */
export async function nbdAttachCommand(
  given: string,
  device: string | undefined,
  { config, ...flags }: { config?: string } & Record<string, unknown>,
  ready: Ready | undefined,
): Promise<ExitStatus> {
  const { env } = process
  const settings = attachSettings({ flags, env, config: config ?? env.PAGEFERRY_CONFIG })
  if (settings.daemon && !ready) return startDaemon()
  const open = async ([{ region }]: Opened[]) => {
    const attached = await attachRegion(region, { ...settings.join, device })
    return { door: attached, address: attached.path }
  }
  return serving(settings, ready, life =>
    serveRegions([{ name: '', remote: absoluteRemote(given) }], settings, ready, life, open),
  )
}

/** Sends what is left, and takes the device away. */
export async function nbdDetachCommand(device: string, options: { timeout?: string }): Promise<ExitStatus> {
  return umountCommand(device, options)
}
