// What a server of memory and the process that keeps its descriptors say to each other.
import type { KnownPages, Mapping } from './spaces.js'

/** Where the process that keeps listens: beside the server's socket. */
export const keeperPath = (socket: string): string => `${socket}.keeper`

export type KeeperMessage =
  /** `size` of the region. Descriptors: the userfaultfd, and the connection that ends with the process. */
  | { op: 'keep'; id: number; size: number; mappings: Mapping[]; descriptors: 2 }
  /** The memory that all of them map. */
  | { op: 'memory'; descriptors: 1 }
  /** Of one of its mappings, by their order: what is known of its pages, in as many messages as it takes. */
  | ({ op: 'pages'; id: number; mapping: number; descriptors: 0 } & KnownPages)
  | { op: 'put' | 'removed' | 'unmapped'; id: number; start: number; end: number; descriptors: 0 }
  | { op: 'moved'; id: number; from: number; to: number; length: number; descriptors: 0 }
  | { op: 'gone'; id: number; descriptors: 0 }
  /** To the server: everything that was kept has been said. */
  | { op: 'ready'; descriptors: 0 }
