// What a server of memory and the process that keeps its descriptors say to each other: lines of JSON, with descriptors beside them.
import { closeSync } from 'node:fs'
import { FerryError } from '../base/errors.js'
import { receive, sendDescriptors } from '../linux/descriptors.js'
import { errno, errnoOf } from '../linux/libc.js'
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

const MESSAGE_BYTES_MAX = 64 * 1024
const DESCRIPTORS_MAX = 8
const LINE_BYTES_MAX = 1024 * 1024
/** For a message that the other side does not take. */
const SEND_TRIES_MAX = 1_000
const SEND_TRY_MS = 1
const tick = new Int32Array(new SharedArrayBuffer(4))

/** @throws errno EAGAIN (IO): the other side takes nothing; EPIPE (IO): it is gone */
export function sendMessage(socket: number, message: KeeperMessage, descriptors: number[] = []): void {
  const bytes = Buffer.from(`${JSON.stringify(message)}\n`)
  let [sent, given] = [0, descriptors]
  for (let tries = 0; sent < bytes.length; )
    try {
      sent += sendDescriptors(socket, bytes.subarray(sent), given)
      // They went with the first byte.
      given = []
    } catch (error) {
      if (errnoOf(error) !== errno.EAGAIN || ++tries > SEND_TRIES_MAX) throw error
      Atomics.wait(tick, 0, 0, SEND_TRY_MS)
    }
}

/** What comes over one socket, cut into messages. */
export class KeeperIntake {
  #rest = ''
  readonly #descriptors: number[] = []

  /** Whatever there is. False: the other side is gone. @throws PROTOCOL: it says something else */
  read(socket: number, each: (message: KeeperMessage, descriptors: number[]) => void): boolean {
    for (;;) {
      let received: ReturnType<typeof receive>
      try {
        received = receive(socket, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX)
      } catch (error) {
        if (errnoOf(error) === errno.EAGAIN) return true
        if (errnoOf(error) === errno.ECONNRESET) return false
        throw error
      }
      if (received.bytes.length === 0) return false
      this.#descriptors.push(...received.descriptors)
      const lines = (this.#rest + Buffer.from(received.bytes).toString('latin1')).split('\n')
      this.#rest = lines.pop()!
      if (this.#rest.length > LINE_BYTES_MAX) throw new FerryError('PROTOCOL', { detail: 'a line without an end' })
      for (const line of lines) {
        const message = JSON.parse(line) as KeeperMessage
        each(message, this.#descriptors.splice(0, message.descriptors))
      }
    }
  }

  /** Closes what nobody was told of. */
  close(): void {
    for (const each of this.#descriptors.splice(0)) closeSync(each)
  }
}
