// A connection to the kernel that outlives the process which serves it, as that process sees it.

/** Who keeps the connection: should this process end without having unmounted, another one goes on with it. */
export interface HeldConnection {
  /** Tells its requests from those of others: random, and above 0. */
  readonly connection: number
  /** It is gone: the mount ends with this process after all. */
  readonly isLost: boolean
  /** What an earlier process has left; null: nothing is mounted yet. */
  readonly resumed: ResumedConnection | null
  /** It is mounted: the descriptor is kept from now on. */
  keep(fd: number, mountpoint: string): void
  /** What the kernel has begun with, before it is answered; null: no other process can go on (Linux before 6.9). */
  began(init: Uint8Array | null): void
}

export const NOBODY_HOLDS = 'nobody holds the mount any more: it ends with this daemon'

export interface ResumedConnection {
  /** Of /dev/fuse: whoever resumes closes it. */
  fd: number
  mountpoint: string
  /** The kernel's first request; null: it was not answered, and comes again. */
  init: Uint8Array | null
}
