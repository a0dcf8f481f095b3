// What a daemon and the process that holds its mount say to each other.

/** Set for a daemon: the descriptor of the socket to who holds its mount. */
export const HOLDER_VARIABLE = 'PAGEFERRY_HOLDER_FD'

/** `connection`: tells the mount's requests from those of others. */
export type HolderMessage =
  | { op: 'begin'; connection: number; descriptors: 0 }
  /** Another daemon ended, for that reason. `init` is the kernel's first request in hexadecimal. Its descriptor: /dev/fuse. */
  | { op: 'resume'; connection: number; mountpoint: string; init: string | null; why: string; descriptors: 1 }

export type DaemonMessage =
  /** It is mounted. The descriptor: /dev/fuse. */
  | { op: 'keep'; mountpoint: string; descriptors: 1 }
  /** Null: no other daemon can go on. */
  | { op: 'began'; init: string | null; descriptors: 0 }
  /** Programs are answered. */
  | { op: 'serving'; descriptors: 0 }
  /** It is about to end, so that another one goes on: this command line. */
  | { op: 'next'; program: string[]; descriptors: 0 }
  /** It is about to end, and the mount has ended. */
  | { op: 'done'; descriptors: 0 }
