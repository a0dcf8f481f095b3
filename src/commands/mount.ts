// pageferry mount: checks what was asked for, then serves it here or in a daemon. What serves it is loaded only where that is.
import { commandSettings } from '../options.js'
import { absoluteRemote, type Ready, startDaemon, THREADS } from './daemonize.js'
import type { ExitStatus } from './report.js'

/** The flags as given, before environment and config file. */
export interface MountFlags extends Record<string, unknown> {
  config?: string
}

/** `ready`: this is the daemon, and who started it waits. */
export async function mountCommand(
  remote: string,
  mountpoint: string,
  { config, ...flags }: MountFlags,
  ready: Ready | undefined,
): Promise<ExitStatus> {
  const { env } = process
  const settings = commandSettings({ flags, env, config: config ?? env.PAGEFERRY_CONFIG })
  if (settings.daemon && !ready) return startDaemon()
  const { Holder } = await import('../holder.js')
  const holder = Holder.join()
  if (!holder && settings.hold && settings.driver === 'kernel') return (await import('./hold.js')).hold(ready)
  if (env.UV_THREADPOOL_SIZE === undefined) {
    // libuv sizes its pool once, before any line of ours runs.
    const { exec } = await import('../linux/exec.js')
    exec(process.execPath, [...process.execArgv, ...process.argv.slice(1)], { ...env, UV_THREADPOOL_SIZE: THREADS })
  }
  const { serve } = await import('./serve.js')
  return serve(absoluteRemote(remote), mountpoint, settings, { ready, holder })
}
