// Where pages come from, and how they get into memory.
import { giveBack, takeBytes } from '../base/buffers.js'
import type { RegionDoor } from '../cache/door.js'
import type { Maybe } from '../cache/filesystem.js'
import { COPY_WP } from '../wire/userfaultfd.js'
import type { Answered, Userfaultfd } from './userfaultfd.js'

/** Pages that are ready to be put into memory. */
export interface Fetched {
  /** Those from `from` on, in bytes of what was fetched. */
  put(uffd: Userfaultfd, address: number, from: number, length: number): Answered
  /** They are not needed any more. */
  release(): void
}

/** The pages of a region, for whoever maps it. */
export interface Pages {
  /** Whether what a program gives back (MADV_DONTNEED) is zeros from then on; otherwise it is what it was. */
  readonly isOwn: boolean
  /** Whole pages; behind the region's end there are zeros. Rejects with what the region says. */
  fetch(at: number, length: number): Maybe<Fetched>
  /** Calls back when pages are taken from everybody. Absent: they never are. @returns what ends that */
  onGone?(listener: (from: number, to: number) => void): () => void
}

/** Behind the region's end there are zeros: its last page may be short. */
export function readPages(door: RegionDoor, at: number, into: Uint8Array): Maybe<void> {
  const length = Math.max(0, Math.min(into.length, door.size - at))
  into.fill(0, length)
  if (length > 0) return door.read(at, into.subarray(0, length))
}

/** Each mapping has a copy. `isProtected`: its pages arrive protected against writes. */
export function copiedPages(door: RegionDoor, { isProtected }: { isProtected: boolean }): Pages {
  const mode = isProtected ? COPY_WP : 0n
  return {
    isOwn: true,
    fetch(at, length) {
      const bytes = takeBytes(length)
      const fetched: Fetched = {
        put: (uffd, address, from, count) => uffd.copy(address, bytes.subarray(from, from + count), mode),
        release: () => giveBack(bytes),
      }
      const reading = readPages(door, at, bytes)
      return reading ? reading.then(() => fetched) : fetched
    },
  }
}
