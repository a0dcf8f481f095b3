// Many objects that go, if they are still what they were: where the server does not look itself, they are looked at as a listing
// shows them, and go in one request.

import { inParallel } from '../base/async.js'
import type { Key, ObjectEntry, Objects } from './objects.js'

/** Fewer are cheaper one by one. */
const TOGETHER_MIN = 4
/** Of one request. */
const REMOVES_MAX = 1_000
/** A page that shows fewer of those that are wanted is worth less than to ask for each. */
const LISTED_MIN = 4

export interface Removal {
  objects: Objects
  /** Before each request that changes something. */
  guard: () => Promise<void>
  parallel: number
  signal: AbortSignal | undefined
}

type Going = Pick<ObjectEntry, 'key' | 'etag'>

/** @returns whether `removeMatching` is better than one removal after the other */
export const isManyTogether = ({ capabilities }: Objects, { length }: readonly Going[]): boolean =>
  !capabilities.removeIfMatch && length >= TOGETHER_MIN

/** What is gone already is fine. @returns those that are another now: they stay */
export async function removeMatching<T extends Going>(removal: Removal, going: readonly T[]): Promise<T[]> {
  const { objects, guard, signal } = removal
  const others: T[] = []
  for (let from = 0; from < going.length; from += REMOVES_MAX) {
    const some = going.slice(from, from + REMOVES_MAX)
    await guard()
    const now = await tagsNow(
      removal,
      some.map(({ key }) => key),
    )
    others.push(...some.filter(({ key, etag }) => now.has(key) && now.get(key) !== etag))
    const same = some.filter(({ key, etag }) => now.get(key) === etag).map(({ key }) => key)
    if (same.length > 0) await objects.removeAll(same, signal)
  }
  return others
}

/** The tags of those that are there. */
async function tagsNow({ objects, parallel, signal }: Removal, keys: Key[]): Promise<Map<Key, string>> {
  const tags = new Map<Key, string>()
  const ask = async (key: Key) => {
    const head = await objects.head(key, signal)
    if (head) tags.set(key, head.etag)
  }
  const left = new Set([...keys].sort())
  while (left.size >= LISTED_MIN) {
    const [first] = left
    const prefix = directoryOf(first)
    const [{ objects: listed }] = await Promise.all([objects.list({ prefix, after: first }, signal), ask(first)])
    left.delete(first)
    const shown = listed.filter(({ key }) => left.has(key))
    for (const { key, etag } of shown) {
      tags.set(key, etag)
      left.delete(key)
    }
    if (shown.length < LISTED_MIN) break
  }
  await inParallel([...left], parallel, ask)
  return tags
}

const directoryOf = (key: Key): Key => key.slice(0, key.lastIndexOf('/') + 1)
