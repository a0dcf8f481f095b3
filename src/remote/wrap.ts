// How a behaviour is put around a remote: one function sees every call, whatever the shape, and decides what becomes of it.
//
//   const logged = wrap(remote, async (call, next) => { console.log(call.method); return next() })
//
// Retry, deadlines, latency, faults and counters are each one such function. Calls to a tree's hidden store pass through the
// same one. What the table below does not name (`url`, `capabilities`, `close`, `snapshot`...) is the remote's own.
import type { Blob } from './blob.js'
import type { ObjectCondition, Objects } from './objects.js'
import type { PutCondition, Store } from './store.js'
import type { Tree } from './tree.js'

/** The four interfaces by the name of their shape. */
export interface Shapes {
  blob: Blob
  store: Store
  objects: Objects
  tree: Tree
}
export type Shape = keyof Shapes
export type Remote = Shapes[Shape]

/** What wrappers need to know about a method. */
export interface Method {
  /** Where `signal` stands among the arguments. */
  signalAt: number
  /** It changes the remote. */
  changes: boolean
  /** To do it twice is the same as to do it once, so it may be asked again when nobody knows whether it was done. */
  idempotent: (args: readonly unknown[]) => boolean
  /** Where bytes stand among the arguments, of which a prefix alone can be written. */
  bytesAt?: number
  /** One call that stands for many requests, and which the engine itself tries again: neither `retry` nor `deadline` is for it. */
  compound?: boolean
}

const always = () => true
const never = () => false
const reads = (signalAt: number): Method => ({ signalAt, changes: false, idempotent: always })
const sets = (signalAt: number, bytesAt?: number): Method => ({ signalAt, changes: true, idempotent: always, bytesAt })
const changes = (signalAt: number, idempotent: Method['idempotent']): Method => ({
  signalAt,
  changes: true,
  idempotent,
})

/** Of commits.ts: there may be these in any shape. */
const commits: Record<string, Method> = {
  claim: { ...sets(1), compound: true },
  renew: { ...sets(0), compound: true },
  release: { ...sets(0), compound: true },
  holder: { ...reads(0), compound: true },
  stage: { ...sets(4, 3), compound: true },
  stageCopy: { ...sets(4), compound: true },
  stageAhead: { ...changes(3, never), bytesAt: 2, compound: true },
  dropAhead: { ...sets(1), compound: true },
  commit: { ...sets(1), compound: true },
  settle: { ...sets(0), compound: true },
}

/** Every method that reaches out to the remote. `flush` and `sync` change nothing that can be seen. */
export const methods: Record<Shape, Record<string, Method>> = {
  blob: {
    read: reads(2),
    write: sets(2, 1),
    flush: reads(0),
    trim: sets(2),
    resize: sets(1),
    version: reads(0),
    ...commits,
  },
  store: {
    get: reads(2),
    head: reads(1),
    // A conditional put that was done finds itself in the way the second time.
    put: changes(3, ([, , condition]) => !isConditional(condition as PutCondition | undefined)),
    remove: sets(2),
    removeAll: sets(1),
    list: reads(2),
    ...commits,
  },
  objects: {
    head: reads(1),
    list: reads(1),
    get: reads(2),
    put: changes(3, ([, , condition]) => !isConditional(condition as ObjectCondition | undefined)),
    copy: changes(3, ([, , condition]) => !isConditional(condition as ObjectCondition | undefined)),
    remove: sets(2),
    removeAll: sets(1),
    // If the answer is lost, an upload stays behind that nobody names: it is swept as such.
    beginUpload: sets(2),
    uploadPart: sets(4),
    copyPart: sets(4),
    completeUpload: changes(4, ([, , , condition]) => !isConditional(condition as ObjectCondition | undefined)),
    abortUpload: sets(2),
    uploads: reads(1),
  },
  tree: {
    stat: reads(1),
    list: reads(2),
    read: reads(2),
    complete: reads(2),
    xattrs: reads(1),
    usage: reads(0),
    write: sets(3, 2),
    copy: sets(3),
    truncate: sets(2),
    punch: sets(3),
    make: changes(2, never),
    link: changes(2, never),
    rename: changes(2, never),
    remove: changes(1, never),
    setAttributes: sets(2),
    setXattrs: sets(2),
    sync: reads(1),
    ...commits,
  },
}

const isConditional = (condition: (PutCondition & ObjectCondition) | undefined) =>
  Boolean(condition?.ifAbsent) || condition?.ifVersion !== undefined || condition?.ifMatch !== undefined

/** One call on its way to a remote. */
export interface Call {
  readonly method: string
  /** Without `signal`. */
  readonly args: readonly unknown[]
  readonly signal: AbortSignal | undefined
  readonly changes: boolean
  readonly idempotent: boolean
  readonly bytesAt: number | undefined
  readonly compound: boolean
}

/** Makes the call, with other arguments or another signal if these are given. */
export type Next = (instead?: { args?: readonly unknown[]; signal?: AbortSignal }) => Promise<unknown>

/** What a wrapper does with a call. */
export type Around = (call: Call, next: Next) => Promise<unknown>

type Function = (...args: unknown[]) => unknown

/** The same remote with `around` around every call. `extra`: properties that the result has besides. */
export function wrap<R extends Remote, Extra extends object = object>(
  remote: R,
  around: Around,
  extra?: Extra,
): R & Extra {
  const table = methods[remote.shape]
  const made = new Map<PropertyKey, unknown>()

  const make = (target: R, key: PropertyKey): unknown => {
    if (extra && Object.hasOwn(extra, key)) return undefined
    const value: unknown = Reflect.get(target, key, target)
    if (key === 'hidden' && target.shape === 'tree') return wrap(target.hidden, around)
    if (typeof value !== 'function') return undefined
    const method = typeof key === 'string' && Object.hasOwn(table, key) ? table[key] : undefined
    const bound = value.bind(target) as Function
    return method ? wrapMethod(String(key), method, bound, around) : bound
  }

  return new Proxy(remote, {
    get(target, key) {
      const known = made.get(key)
      if (known !== undefined) return known
      const fresh = make(target, key)
      if (fresh === undefined) return Reflect.get(extra && Object.hasOwn(extra, key) ? extra : target, key)
      made.set(key, fresh)
      return fresh
    },
    has: (target, key) => Boolean(extra && Object.hasOwn(extra, key)) || Reflect.has(target, key),
  }) as R & Extra
}

function wrapMethod(name: string, method: Method, invoke: Function, around: Around): Function {
  const { signalAt, changes, idempotent, bytesAt, compound = false } = method
  return async (...all) => {
    const args = all.slice(0, signalAt)
    const signal = all[signalAt] as AbortSignal | undefined
    const call: Call = { method: name, args, signal, changes, idempotent: idempotent(args), bytesAt, compound }
    return around(call, async instead => {
      const passed = [...(instead?.args ?? args)]
      passed.length = signalAt
      return invoke(...passed, instead?.signal ?? signal)
    })
  }
}

/** Bytes in arguments or results, however deep; `counts`: only of those views. */
export function countBytes(value: unknown, counts?: (view: ArrayBufferView) => boolean): number {
  if (typeof value !== 'object' || value === null) return 0
  if (ArrayBuffer.isView(value)) return !counts || counts(value) ? value.byteLength : 0
  let sum = 0
  for (const one of isMap(value) ? value.values() : Object.values(value)) sum += countBytes(one, counts)
  return sum
}

/** Also one from another thread or context, which `instanceof` would not know. */
export const isMap = (value: object): value is Map<unknown, unknown> =>
  Object.prototype.toString.call(value) === '[object Map]'
