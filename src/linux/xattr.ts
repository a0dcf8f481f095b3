// Extended attributes (xattr(7)): names and values are bytes.

import { checked, cstring, errno, lastErrno, printable, self } from './libc.js'
import { nameOf, pathOf, type Target } from './target.js'

type GetCall = (path: Uint8Array, name: Uint8Array, value: Uint8Array | null, bytes: number) => number
type SetCall = (path: Uint8Array, name: Uint8Array, value: Uint8Array, bytes: number, flags: number) => number
type ListCall = (path: Uint8Array, list: Uint8Array | null, bytes: number) => number
type RemoveCall = (path: Uint8Array, name: Uint8Array) => number

const xattrCalls = (prefix: '' | 'l') => ({
  get: self.func(`${prefix}getxattr`, 'int64_t', ['void *', 'void *', 'void *', 'size_t']) as GetCall,
  set: self.func(`${prefix}setxattr`, 'int', ['void *', 'void *', 'void *', 'size_t', 'int']) as SetCall,
  list: self.func(`${prefix}listxattr`, 'int64_t', ['void *', 'void *', 'size_t']) as ListCall,
  remove: self.func(`${prefix}removexattr`, 'int', ['void *', 'void *']) as RemoveCall,
})
const following = xattrCalls('')
const notFollowing = xattrCalls('l')

const XATTR_SIZE_MAX = 65536
const scratch = Buffer.from(new ArrayBuffer(XATTR_SIZE_MAX))

/** The value of an attribute, undefined when there is none (or it lies in a name space that is closed to us). getxattr(2) */
export function getxattr(target: Target, name: Uint8Array): Buffer | undefined {
  const { path, follow } = pathOf(target)
  const { get } = follow ? following : notFollowing
  const bytes = get(path, cstring(name), scratch, scratch.length)
  if (bytes === -1 && lastErrno() === errno.ENODATA) return undefined
  checked(bytes, 'getxattr', `${printable(name)} of ${nameOf(target)}`)
  return Buffer.from(scratch.subarray(0, bytes))
}

/** The names of all attributes that we may see. listxattr(2) */
export function listxattr(target: Target): Buffer[] {
  const { path, follow } = pathOf(target)
  const { list } = follow ? following : notFollowing
  const bytes = checked(list(path, scratch, scratch.length), 'listxattr', nameOf(target))
  const names: Buffer[] = []
  for (let from = 0; from < bytes; ) {
    const end = scratch.indexOf(0, from)
    names.push(Buffer.from(scratch.subarray(from, end)))
    from = end + 1
  }
  return names
}

const XATTR = { either: 0, create: 1, replace: 2 } as const

/** Sets an attribute; `create` refuses an existing one (EXISTS), `replace` a missing one (NO_DATA). setxattr(2) */
export function setxattr(
  target: Target,
  name: Uint8Array,
  value: Uint8Array,
  how: keyof typeof XATTR = 'either',
): void {
  const { path, follow } = pathOf(target)
  const { set } = follow ? following : notFollowing
  const result = set(path, cstring(name), value, value.byteLength, XATTR[how])
  checked(result, 'setxattr', `${printable(name)} of ${nameOf(target)}`)
}

/** Removes an attribute; NO_DATA when there is none. removexattr(2) */
export function removexattr(target: Target, name: Uint8Array): void {
  const { path, follow } = pathOf(target)
  const { remove } = follow ? following : notFollowing
  checked(remove(path, cstring(name)), 'removexattr', `${printable(name)} of ${nameOf(target)}`)
}
