// The remote as the engine gets it, every layer in its order: made worse on request, counted, in time, tried again, not too fast,
// able to commit.
import { isMainThread } from 'node:worker_threads'
import { FerryError, isFerryError } from './base/errors.js'
import type { CommittingTree } from './cache/tree-cache.js'
import { giveWay } from './linux/priority.js'
import { setIoFlusher } from './linux/process.js'
import { attributesOfUrl, chunksOfUrl, objectOfUrl, openBeside, openRemote, redact, shapeOfMount } from './open.js'
import { blobTree } from './remote/blob-tree.js'
import { ChunkStore } from './remote/chunk-store.js'
import { deadline } from './remote/deadline.js'
import { memStore } from './remote/mem-store.js'
import { metered, sharedMeter } from './remote/metered.js'
import { oneObject } from './remote/one-object.js'
import { retry } from './remote/retry.js'
import { rollforward } from './remote/rollforward.js'
import { rollforwardChunks } from './remote/rollforward-chunks.js'
import { simulate } from './remote/simulate.js'
import type { Store } from './remote/store.js'
import { throttle } from './remote/throttle.js'
import type { Remote } from './remote/wrap.js'
import type { StackKind, StackSettings } from './remote-stack.js'

/** What one attempt may take of the deadline of its call: a remote that went silent is asked once more. */
const ATTEMPT_SHARE = 0.45

/** In the thread that calls it, which should be one of its own. `counters`: the memory of a `sharedMeter`. */
export async function openLayers(
  kind: StackKind,
  url: string,
  { simulate: simulation, deadline: ms, uploadLimit, downloadLimit, readOnly, commitStore }: StackSettings,
  counters: SharedArrayBuffer,
): Promise<CommittingTree> {
  if (!isMainThread) {
    giveWay()
    setIoFlusher()
  }
  const around = <R extends Remote>(remote: R): R => {
    const counted = metered(simulation ? simulate(remote, simulation) : remote, { meter: sharedMeter(counters) })
    const timely = inTime(counted, ms)
    // Outside of the deadline: to wait for one's turn on a narrow line is not to hang.
    const limited = uploadLimit || downloadLimit
    return limited ? throttle(timely, { upPerSecond: uploadLimit, downPerSecond: downloadLimit }) : timely
  }
  if (kind === 'region') return openRegionLayers(url, { around, readOnly, commitStore })
  // A server that may be out of reach is not waited for: the mount is to be usable at once.
  return shapeOfMount(url) === 'objects'
    ? rollforward(around(await openRemote(url, { shape: 'objects', probe: readOnly ? 'change' : 'begin' })), {
        attributes: attributesOfUrl(url),
      })
    : rollforward(around(await openRemote(url, { shape: 'tree' })))
}

/** One run of bytes: where it can be changed in place, or whole, each with what commits to it beside it. */
async function openRegionLayers(
  url: string,
  {
    around,
    readOnly,
    commitStore,
  }: { around: <R extends Remote>(remote: R) => R; readOnly: boolean; commitStore: string | undefined },
): Promise<CommittingTree> {
  const chunks = chunksOfUrl(url)
  if (chunks) {
    const store = around(await openRemote(chunks.store, { shape: 'store' }))
    const kept = await ChunkStore.open(store, chunks).catch(async error => {
      await store.close()
      if (!isFerryError(error, 'NOT_FOUND', 'INVALID')) throw error
      const detail = isFerryError(error, 'INVALID')
        ? error.message
        : `${redact(url)}: none is kept there; "size=1G" makes one`
      throw new FerryError('USAGE', { cause: error, detail })
    })
    return blobTree(rollforwardChunks(kept))
  }
  const object = objectOfUrl(url)
  if (object) {
    const objects = await openRemote(object.directory, { shape: 'objects', probe: readOnly ? 'change' : 'begin' })
    return rollforward(around(oneObject(objects, object.key)))
  }
  const blob = around(await openRemote(url, { shape: 'blob' }))
  const closing = async (error: unknown): Promise<never> => {
    await blob.close()
    throw error
  }
  const own = await openBeside(url).catch(closing)
  if (own && commitStore) {
    await own.close()
    const detail = `${redact(url)}: what commits to it is kept beside it; --commit-store is for what has no such place (nbd:)`
    return closing(new FerryError('USAGE', { detail }))
  }
  const beside = commitStore ? await openRemote(commitStore, { shape: 'store' }).catch(closing) : own
  if (commitStore && beside && !readOnly)
    await dedicate(beside, blob.url).catch(async error => {
      await beside.close()
      return closing(error)
    })
  const kept = around(beside ?? memStore())
  return blobTree(rollforward(blob, { commitStore: kept }), beside ? 'remote' : 'local')
}

/** In a store for commits: the URL of the region that it is for. */
const OWNER = 'owner'

/** What commits to one region would be taken for what commits to another. @throws USAGE: it is another one's */
async function dedicate(store: Store, url: string): Promise<void> {
  try {
    await store.put(OWNER, Buffer.from(url), { ifAbsent: true })
  } catch (error) {
    if (!isFerryError(error, 'CONFLICT')) throw error
    const owner = Buffer.from(await store.get(OWNER)).toString()
    if (owner === url) return
    const detail = `--commit-store: ${store.url} is for ${owner}; of ${url} it has to be another (the same by another name: remove "${OWNER}" there)`
    throw new FerryError('USAGE', { cause: error, detail })
  }
}

/** Tried again, but every call ends within `ms`. The last attempt begins early enough to end by itself: what is said then is what was wrong. */
export function inTime<R extends Remote>(remote: R, ms: number): R {
  const onceMs = ms * ATTEMPT_SHARE
  return deadline(retry(deadline(remote, { ms: onceMs }), { withinMs: ms - onceMs }), { ms })
}
