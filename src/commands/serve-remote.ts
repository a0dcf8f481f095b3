// pageferry serve: a directory, or a run of bytes, for other hosts.
import { type ControlServer, serveControl } from '../control.js'
import { openBeside, openRemote, shapeToServe } from '../open.js'
import { serveSettings } from '../options.js'
import { Registry } from '../registry.js'
import type { Blob } from '../remote/blob.js'
import type { Store } from '../remote/store.js'
import type { Tree } from '../remote/tree.js'
import { grpcUrlOf, serveWith } from '../serve-remote.js'
import { ServedRemote } from '../served-remote.js'
import { absoluteRemote, type Ready, startDaemon } from './daemonize.js'
import { EXIT, type ExitStatus, say } from './report.js'
import { serving } from './serving.js'

/** `ready`: this is the daemon, and who started it waits. */
export async function serveCommand(
  given: string,
  { config, ...flags }: { config?: string } & Record<string, unknown>,
  ready: Ready | undefined,
): Promise<ExitStatus> {
  const { env } = process
  const settings = serveSettings({ flags, env, config: config ?? env.PAGEFERRY_CONFIG })
  if (settings.daemon && !ready) return startDaemon()
  return serving(settings, ready, async life => {
    const { remote, store } = await open(absoluteRemote(given))
    const server = await serveWith(remote, store, settings.server).catch(async error => {
      await remote.close()
      await store?.close()
      throw error
    })
    const readOnly = settings.server.readOnly || !remote.capabilities.write
    const address = grpcUrlOf(server.address, settings.server)
    const served = new ServedRemote({ address, remote, store, server, readOnly })
    const registry = new Registry()
    let control: ControlServer | undefined
    try {
      const socket = registry.socketPath()
      control = await serveControl(socket, served.handle)
      registry.join({ address, remote: remote.url, cacheDirs: [], readOnly, socket })
      life.onSignal(() => void served.stop())
      process.chdir('/')
      ready?.done(`${remote.url} at ${address} (daemon ${process.pid})`)
      if (!ready) say(`${remote.url} at ${address}; Ctrl-C ends`)
      await served.ending
      return EXIT.ok
    } finally {
      registry.leave()
      await control?.close()
    }
  })
}

/** What is to be served, and what is beside it. */
async function open(url: string): Promise<{ remote: Tree | Blob; store: Store | null }> {
  if ((await shapeToServe(url)) === 'tree') return { remote: await openRemote(url, { shape: 'tree' }), store: null }
  const remote = await openRemote(url, { shape: 'blob' })
  const store = await openBeside(url).catch(async error => {
    await remote.close()
    throw error
  })
  return { remote, store }
}
