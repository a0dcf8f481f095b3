// A remote and all its layers in a thread of their own, so that what a batch costs to send (10,000 small files: 20 s of computing) is
// not taken from those who use the mount; and that thread gives way to them.
import type { CommittingTree } from './cache/tree-cache.js'
import type { RemoteStatus } from './mounted-tree.js'
import type { MountSettings } from './options.js'
import { inWorker } from './remote/in-worker.js'
import { METER_BYTES, sharedMeter } from './remote/metered.js'

export interface StackSettings
  extends Pick<MountSettings, 'deadline' | 'uploadLimit' | 'downloadLimit' | 'simulate' | 'readOnly'> {
  /** Of a region that has nothing beside it: the URL of a store. */
  commitStore?: string
}

/** Which layers: of a directory, or of one run of bytes as a tree of one file. */
export type StackKind = 'tree' | 'region'

/** @throws FerryError USAGE, NOT_FOUND, NOT_DIRECTORY and what else `openRemote` throws */
export async function openStack(
  url: string,
  { simulate, deadline, uploadLimit, downloadLimit, readOnly, commitStore }: StackSettings,
  kind: StackKind = 'tree',
): Promise<{ tree: CommittingTree; status: () => RemoteStatus }> {
  const memory = new SharedArrayBuffer(METER_BYTES)
  const meter = sharedMeter(memory)
  const settings: StackSettings = { simulate, deadline, uploadLimit, downloadLimit, readOnly, commitStore }
  // What lies in this process's memory is known by its name in this thread only, and costs nothing to reach.
  const tree = url.startsWith('mem:')
    ? await (await import('./remote-layers.js')).openLayers(kind, url, settings, memory)
    : await inWorker('tree', {
        module: import.meta.url.replace(/remote-stack(\.[jt]s)$/, 'remote-layers$1'),
        name: 'openLayers',
        args: [kind, url, settings, memory],
        givesBack: true,
      })
  const status = (): RemoteStatus => {
    const { requests, bytesRead, bytesWritten, errors, reachable } = meter
    return { url: tree.url, requests, bytesRead, bytesWritten, errors, reachable }
  }
  return { tree: tree as CommittingTree, status }
}
