// One object of a bucket, alone: what lies beside it is not there, and `.pageferry/` is `.pageferry-NAME/` beside it.
import type { Key, ListOptions, ListPage, Objects } from './objects.js'
import { HIDDEN } from './tree.js'

/** `key`: of the object, whose name is what comes behind the last slash. It closes what it stands on. */
export function oneObject(objects: Objects, key: Key): Objects {
  const slash = key.lastIndexOf('/') + 1
  const [directory, name] = [key.slice(0, slash), key.slice(slash)]
  const [inside, outside] = [`${HIDDEN}/`, `${directory}${HIDDEN}-${name}/`]
  const out = (one: Key): Key => (one.startsWith(inside) ? outside + one.slice(inside.length) : directory + one)
  /** undefined: it is none of ours. A copy that a conflict left beside it is an object like any other. */
  const back = (one: Key): Key | undefined => {
    if (one.startsWith(outside)) return inside + one.slice(outside.length)
    return one === key ? name : undefined
  }
  const [base, query] = objects.url.split('?', 2)

  /** Of what is hidden, or the object itself. */
  async function list({ prefix, after, ...rest }: ListOptions, signal?: AbortSignal): Promise<ListPage> {
    const hidden = prefix.startsWith(inside)
    const wanted = { ...rest, prefix: hidden ? out(prefix) : key }
    const page = await objects.list(after === undefined ? wanted : { ...wanted, after: out(after) }, signal)
    return {
      objects: page.objects.flatMap(one => {
        const mine = back(one.key)
        return mine?.startsWith(prefix) ? [{ ...one, key: mine }] : []
      }),
      prefixes: hidden ? page.prefixes.map(one => back(one) ?? one) : [],
      // Behind the object itself there is nothing of ours.
      ...(hidden && page.cursor !== undefined && { cursor: page.cursor }),
    }
  }

  return {
    shape: 'objects',
    url: `${base}/${directory}${name}${query ? `?${query}` : ''}`,
    // It changes when the server was asked what it can.
    get capabilities() {
      return { ...objects.capabilities, keyBytesMax: objects.capabilities.keyBytesMax - outside.length }
    },
    list,
    head: async (one, signal) => {
      const head = await objects.head(out(one), signal)
      return head && { ...head, key: one }
    },
    get: (one, range, signal) => objects.get(out(one), range, signal),
    put: (one, bytes, options, signal) => objects.put(out(one), bytes, options, signal),
    copy: (source, target, options, signal) => objects.copy(out(source), out(target), options, signal),
    remove: (one, condition, signal) => objects.remove(out(one), condition, signal),
    removeAll: (keys, signal) => objects.removeAll(keys.map(out), signal),
    beginUpload: (one, options, signal) => objects.beginUpload(out(one), options, signal),
    uploadPart: (one, upload, number, bytes, signal) => objects.uploadPart(out(one), upload, number, bytes, signal),
    copyPart: (one, upload, number, source, signal) =>
      objects.copyPart(out(one), upload, number, { ...source, key: out(source.key) }, signal),
    completeUpload: (one, upload, parts, condition, signal) =>
      objects.completeUpload(out(one), upload, parts, condition, signal),
    abortUpload: (one, upload, signal) => objects.abortUpload(out(one), upload, signal),
    uploads: async (prefix, signal) =>
      (await objects.uploads(prefix.startsWith(inside) ? out(prefix) : key, signal)).flatMap(one => {
        const mine = back(one.key)
        return mine === undefined ? [] : [{ ...one, key: mine }]
      }),
    close: () => objects.close(),
  }
}
