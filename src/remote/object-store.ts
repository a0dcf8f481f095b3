// Objects as a store: the name is the key.
import { isFerryError } from '../base/errors.js'
import type { Objects } from './objects.js'
import { checkPath } from './path.js'
import type { ObjectInfo, Store } from './store.js'

const infoOf = ({ key, size, etag }: { key: string; size: number; etag: string }): ObjectInfo => ({
  name: key,
  size,
  version: etag,
})

export function objectStore(objects: Objects): Store {
  const { putIfAbsent, putIfMatch, removeIfMatch, keyBytesMax, putBytesMax } = objects.capabilities
  const keyOf = (name: string): string => {
    checkPath(name)
    return name
  }
  return {
    shape: 'store',
    url: objects.url,
    capabilities: {
      conditionalCreate: putIfAbsent,
      conditionalReplace: putIfMatch && removeIfMatch,
      nameBytesMax: keyBytesMax,
      objectBytesMax: putBytesMax,
    },
    get: (name, range, signal) =>
      objects.get(keyOf(name), range && { at: range.at, length: range.length, etag: range.version }, signal),
    async head(name, signal) {
      const head = await objects.head(keyOf(name), signal)
      return head && infoOf(head)
    },
    put: (name, bytes, condition, signal) =>
      objects.put(keyOf(name), bytes, { ifAbsent: condition?.ifAbsent, ifMatch: condition?.ifVersion }, signal),
    async remove(name, condition, signal) {
      try {
        await objects.remove(keyOf(name), { ifMatch: condition?.ifVersion }, signal)
      } catch (error) {
        if (!isFerryError(error, 'NOT_FOUND')) throw error
      }
    },
    async list(prefix, after = '', signal) {
      for (let cursor: string | undefined; ; ) {
        const page = await objects.list({ prefix, cursor }, signal)
        const found = page.objects.filter(({ key }) => key > after).map(infoOf)
        cursor = page.cursor
        if (found.length > 0 || cursor === undefined) return found
      }
    },
    close: () => objects.close(),
  }
}
