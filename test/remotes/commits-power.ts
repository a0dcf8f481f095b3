// A tree whose power fails: names, sizes and attributes survive up to some moment after the last sync, as with a journaling file
// system; bytes that were not synced survive here and there.
import type { Random } from '../../src/base/random.js'
import type { MemTree } from '../../src/remote/mem-tree.js'
import type { Store } from '../../src/remote/store.js'
import type { CopyRange, Tree } from '../../src/remote/tree.js'

interface Operation {
  method: string
  args: unknown[]
  /** The file that it changes, or makes. */
  ino: string | null
  bytes: boolean
  durable: boolean
  hidden: boolean
}

const NAMES = new Set(['make', 'link', 'rename', 'remove', 'truncate', 'setAttributes', 'setXattrs'])
const BYTES = new Set(['write', 'punch'])

export interface Powered {
  tree: Tree
  /** The power is cut: what is left is in the tree. */
  cut(random: Random): Promise<void>
}

export function powered(base: MemTree): Powered {
  const before = base.snapshot()
  const operations: Operation[] = []
  const inoOf = async (path: string) => (await base.stat(path))?.version.split('-')[0] ?? null
  const commitNames = () => {
    for (const one of operations) if (!one.bytes) one.durable = true
  }
  const record = async (method: string, args: unknown[], work: () => Promise<unknown>) => {
    const path = args[0] as string
    const bytes = BYTES.has(method)
    const known = bytes ? await inoOf(path) : null
    const result = await work()
    const ino = bytes ? known : method === 'make' ? await inoOf(path) : null
    operations.push({ method, args, ino, bytes, durable: false, hidden: false })
    return result
  }
  const hidden = new Proxy(base.hidden, {
    get(store, key) {
      const value = Reflect.get(store, key)
      if (key !== 'put' && key !== 'remove') return value
      return async (...args: unknown[]) => {
        const result = await (value as (...all: unknown[]) => Promise<unknown>).apply(store, args)
        operations.push({ method: String(key), args, ino: null, bytes: false, durable: true, hidden: true })
        commitNames()
        return result
      }
    },
  })
  const tree = new Proxy(base as Tree, {
    get(_, key) {
      const value = Reflect.get(base, key)
      const method = String(key)
      if (key === 'hidden') return hidden
      if (method === 'sync')
        return async (paths: string[]) => {
          const inos = new Set(await Promise.all(paths.map(inoOf)))
          for (const one of operations) if (one.bytes && inos.has(one.ino)) one.durable = true
          commitNames()
        }
      // Bytes as they were then, wherever they came from.
      if (method === 'copy')
        return async (source: string, { at, length, to }: CopyRange, target: string) => {
          const bytes = await base.read(source, { at, length })
          await record('write', [target, to, bytes], () => base.write(target, to, bytes))
        }
      if (!NAMES.has(method) && !BYTES.has(method)) return value
      return (...args: unknown[]) =>
        record(method, args, () => (value as (...all: unknown[]) => Promise<unknown>).apply(base, args))
    },
  })

  return {
    tree,
    async cut(random) {
      const durable = operations.findLastIndex(one => !one.bytes && one.durable) + 1
      const kept = durable + random.below(operations.length - durable + 1)
      const lazy = random.pick([0, 0.5, 1])
      base.restore(before)
      const inos = new Map<string, string | null>()
      for (const [index, { method, args, ino, bytes, durable: synced, hidden: isHidden }] of operations.entries()) {
        const target = isHidden ? base.hidden : base
        const apply = (target as Tree & Store)[method as 'put'] as unknown as (...all: unknown[]) => Promise<unknown>
        if (!bytes) {
          if (index >= kept) continue
          const condition = method === 'put' ? [args[0], args[1]] : args
          await apply.apply(target, condition)
          if (method === 'make' && ino) inos.set(ino, await inoOf(args[0] as string))
          continue
        }
        if (!synced && random.chance(lazy)) continue
        const now = await inoOf(args[0] as string)
        if (now !== null && now === (inos.get(ino!) ?? ino)) await apply.apply(target, args)
      }
    },
  }
}
