// What is common to the commands that serve regions: opening them, being found, progress, and the end.
import { formatBytes } from '../base/units.js'
import { type ControlServer, serveControl } from '../control.js'
import { openRegion, type Region } from '../open-region.js'
import type { RegionsSettings } from '../options.js'
import { showProgress } from '../progress.js'
import { Registry } from '../registry.js'
import { type ServedOptions, ServedRegions } from '../served-regions.js'
import type { Ready } from './daemonize.js'
import { EXIT, say } from './report.js'
import type { Serving } from './serving.js'
import { describeUnsent } from './show.js'

/** What is to be opened. */
export interface Named {
  name: string
  remote: string
}

/** A region that is open, and what clients call it. */
export interface Opened {
  name: string
  region: Region
}

/** Opens regions and what they are reached by, and serves until a signal, or somebody who asks for it, ends it. */
export async function serveRegions(
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
