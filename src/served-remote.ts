// A remote that a process serves to others: what one can ask of it through its control socket, and how it ends.
import { deferred } from './base/async.js'
import { FerryError } from './base/errors.js'
import type { ControlRequest } from './control.js'
import type { Blob } from './remote/blob.js'
import type { Store } from './remote/store.js'
import type { Tree } from './remote/tree.js'
import type { RemoteServer } from './serve/server.js'

/** What `status --json` prints of it. */
export interface ExportStatus {
  /** Its URL. */
  address: string
  pid: number
  connections: number
  serves: 'tree' | 'blob'
  remote: { url: string }
  readOnly: boolean
}

interface Exported {
  address: string
  remote: Tree | Blob
  store: Store | null
  server: RemoteServer
  readOnly: boolean
}

/** It owns the remote and the server. What it has is at its place already: it never has anything left to send. */
export class ServedRemote {
  readonly #what: Exported
  readonly #end = deferred()
  #stopping: Promise<void> | undefined

  constructor(what: Exported) {
    this.#what = what
  }

  /** Resolves when everything is closed. */
  get ending(): Promise<void> {
    return this.#end.promise
  }

  /** Answers one request of the control socket. */
  readonly handle = async (request: ControlRequest): Promise<unknown> => {
    switch (request.do) {
      case 'status':
        return this.status()
      case 'sync':
        return undefined
      case 'umount':
        await this.stop()
        return null
      default:
        throw new FerryError('UNSUPPORTED', { detail: `${request.do}, of what is served` })
    }
  }

  status(): ExportStatus {
    const { address, remote, server, readOnly } = this.#what
    const { shape: serves, url } = remote
    return { address, pid: process.pid, connections: server.connections, serves, remote: { url }, readOnly }
  }

  stop(): Promise<void> {
    this.#stopping ??= this.#stop().then(this.#end.resolve, error => {
      this.#end.reject(error)
      throw error
    })
    return this.#stopping
  }

  async #stop(): Promise<void> {
    const { server, remote, store } = this.#what
    await server.close()
    await remote.close()
    await store?.close()
  }
}
