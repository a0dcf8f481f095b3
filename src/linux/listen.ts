// Where a server listens: a port, or a Unix socket, which a server that was killed may have left behind.
import { chmodSync, existsSync, lstatSync, unlinkSync } from 'node:fs'
import { type AddressInfo, createConnection, type Server } from 'node:net'
import { dirname } from 'node:path'
import { deferred } from '../base/async.js'
import { FerryError } from '../base/errors.js'

export type Address = { path: string } | { host: string; port: number }

/** A server that listens. */
export interface Listener extends AsyncDisposable {
  /** Where: with the port that was taken, if 0 was asked for. */
  readonly address: Address
  readonly connections: number
  /** Answers what is being asked, and ends. Closing twice is fine. */
  close(): Promise<void>
}

/** `close` is called once. */
export function listenerOf(address: Address, connections: ReadonlySet<unknown>, close: () => Promise<void>): Listener {
  let closing: Promise<void> | undefined
  const listener: Listener = {
    address,
    get connections() {
      return connections.size
    },
    close() {
      closing ??= close()
      return closing
    },
    [Symbol.asyncDispose]: () => listener.close(),
  }
  return listener
}

/**
 * Resolves with where: with the port that was taken, if 0 was asked for. A Unix socket is its owner's alone.
 * @throws USAGE: nobody can listen there
 */
export async function listen(server: Server, address: Address): Promise<Address> {
  const attempt = () => {
    const begun = deferred()
    const failed = (error: Error) => begun.reject(error)
    server.once('error', failed)
    server.listen(address, () => {
      server.off('error', failed)
      begun.resolve()
    })
    return begun.promise
  }
  const shown = 'path' in address ? `unix:${address.path}` : `${address.host}:${address.port}`
  try {
    await attempt().catch(async error => {
      if (!('path' in address) || !(await isLeftOver(address.path))) throw error
      unlinkSync(address.path)
      await attempt()
    })
    if ('path' in address) chmodSync(address.path, 0o600)
  } catch (error) {
    // libuv says EACCES of a directory that is not there, too.
    const isNowhere = 'path' in address && !existsSync(dirname(address.path))
    const code = isNowhere ? 'ENOENT' : (error as NodeJS.ErrnoException).code
    throw new FerryError('USAGE', { cause: error, detail: `nobody can listen at ${shown} (${code})` })
  }
  return 'path' in address ? address : { host: address.host, port: (server.address() as AddressInfo).port }
}

/** A socket that its server has left behind. */
async function isLeftOver(path: string): Promise<boolean> {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return false
  const answered = deferred<boolean>()
  const socket = createConnection(path)
  socket.on('connect', () => answered.resolve(false))
  socket.on('error', ({ code }: NodeJS.ErrnoException) => answered.resolve(code === 'ECONNREFUSED'))
  const isRefused = await answered.promise
  socket.destroy()
  return isRefused
}
