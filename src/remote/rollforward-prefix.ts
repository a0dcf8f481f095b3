// The objects whose names begin with a prefix, as a store of their own.
import type { Store } from './store.js'

export const prefixed = (store: Store, prefix: string): Store => ({
  shape: 'store',
  url: `${store.url}/${prefix}`,
  capabilities: { ...store.capabilities, nameBytesMax: store.capabilities.nameBytesMax - prefix.length },
  get: (name, range, signal) => store.get(prefix + name, range, signal),
  head: async (name, signal) => {
    const info = await store.head(prefix + name, signal)
    return info && { ...info, name }
  },
  put: (name, bytes, condition, signal) => store.put(prefix + name, bytes, condition, signal),
  remove: (name, condition, signal) => store.remove(prefix + name, condition, signal),
  list: async (below, after, signal) => {
    const page = await store.list(prefix + below, after ? prefix + after : undefined, signal)
    return page.map(info => ({ ...info, name: info.name.slice(prefix.length) }))
  },
  close: async () => {},
})
