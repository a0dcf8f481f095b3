// What a call is about: a path, or a descriptor that is already open.

import { cstring, printable } from './libc.js'

/** A path as bytes (its last component is not followed), or an open descriptor (O_PATH will do). */
export type Target = Uint8Array | number

/**
 * The C string to hand to a call by path. A descriptor goes by its link in /proc, which has to be followed and leads exactly
 * to it, a symlink included; the f-variants of the calls refuse O_PATH.
 */
export const pathOf = (target: Target): { path: Buffer; follow: boolean } =>
  typeof target === 'number'
    ? { path: cstring(`/proc/self/fd/${target}`), follow: true }
    : { path: cstring(target), follow: false }

/** For error messages. */
export const nameOf = (target: Target): string => (typeof target === 'number' ? `fd ${target}` : printable(target))
