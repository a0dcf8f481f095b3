// pageferry nbd: regions as block devices of others.
import { FerryError } from '../base/errors.js'
import { formatBytes } from '../base/units.js'
import { type ControlServer, serveControl } from '../control.js'
import { attachRegion } from '../join.js'
import { openRegion, type Region } from '../open-region.js'
import { attachSettings, nbdSettings, type RegionsSettings } from '../options.js'
import { showProgress } from '../progress.js'
import { Registry } from '../registry.js'
import { serveNbdWith, uriOf } from '../serve-nbd.js'
import { type ServedOptions, ServedRegions } from '../served-regions.js'
import { absoluteRemote, type Ready, startDaemon } from './daemonize.js'
import { EXIT, type ExitStatus, say } from './report.js'
import { type Serving, serving } from './serving.js'
import { describeUnsent } from './show.js'
import { umountCommand } from './unmount.js'

interface Named {
  name: string
  remote: string
}

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
  return serving(settings, ready, life => serve(named, settings, ready, life, open))
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
    serve([{ name: '', remote: absoluteRemote(given) }], settings, ready, life, open),
  )
}

/** Sends what is left, and takes the device away. */
export async function nbdDetachCommand(device: string, options: { timeout?: string }): Promise<ExitStatus> {
  return umountCommand(device, options)
}

interface Opened {
  name: string
  region: Region
}

async function serve(
  named: Named[],
  { region: options }: Pick<RegionsSettings, 'region'>,
  ready: Ready | undefined,
  life: Serving,
  open: (regions: Opened[]) => Promise<Pick<ServedOptions, 'door' | 'address'>>,
) {
  const regions: Opened[] = []
  let opened: Pick<ServedOptions, 'door' | 'address'>
  try {
    for (const { name, remote } of named) regions.push({ name, region: await openRegion(remote, options, life.signal) })
    life.keptIn(regions[0].region.status().cacheDir)
    opened = await open(regions)
  } catch (error) {
    for (const { region } of regions) await region.close()
    throw error
  }
  const { door, address } = opened
  const view = ready ? undefined : showProgress({ title: 'sending' })
  const served = new ServedRegions({ address, regions, door, onProgress: progress => view?.update(progress) })
  const registry = new Registry()
  let control: ControlServer | undefined
  try {
    const socket = registry.socketPath()
    control = await serveControl(socket, served.handle)
    const statuses = regions.map(({ region }) => region.status())
    registry.join({
      address,
      remote: statuses.map(({ remote }) => remote.url).join(', '),
      cacheDirs: statuses.map(({ cacheDir }) => cacheDir),
      readOnly: statuses.every(({ readOnly }) => readOnly),
      socket,
    })
    life.onSignal(() => served.signal())
    process.chdir('/')
    const hereBytes = statuses.reduce((sum, { size, availability }) => sum + size * availability, 0)
    const message = `${statuses.map(({ remote }) => remote.url).join(', ')} at ${address}`
    // What was pulled before anybody could ask.
    const here = hereBytes > 0 ? `, ${formatBytes(hereBytes)} here already` : ''
    ready?.done(`${message} (daemon ${process.pid}${here})`)
    if (!ready) say(`${message}${here}; Ctrl-C sends what is left and ends`)
    const unsent = await served.ending
    if (!unsent) return EXIT.ok
    if (!ready) say(describeUnsent(unsent, statuses.map(({ cacheDir }) => cacheDir).join(', ')))
    return EXIT.failed
  } finally {
    view?.end()
    registry.leave()
    await control?.close()
  }
}
