// Shared libraries for addons that do not find theirs.

import koffi from 'koffi'
import { toFerryError } from '../base/errors.js'

/** Loads a shared library for good: whatever is loaded later and needs one of that soname gets this one. dlopen(3) */
export function loadLibrary(path: string): void {
  try {
    koffi.load(path)
  } catch (error) {
    throw toFerryError(error, path)
  }
}
