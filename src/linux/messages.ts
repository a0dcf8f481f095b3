// Messages between processes of ours, over a Unix socket: lines of JSON, with descriptors beside them.
import { closeSync } from 'node:fs'
import { FerryError } from '../base/errors.js'
import { receive, sendDescriptors } from './descriptors.js'
import { errno, errnoOf } from './libc.js'

const MESSAGE_BYTES_MAX = 64 * 1024
const DESCRIPTORS_MAX = 8
const LINE_BYTES_MAX = 1024 * 1024
/** For a message that the other side does not take. */
const SEND_TRIES_MAX = 1_000
const SEND_TRY_MS = 1
const tick = new Int32Array(new SharedArrayBuffer(4))

/** What every message says: how many descriptors come with it. */
export interface WithDescriptors {
  descriptors: number
}

/** @throws errno EAGAIN (IO): the other side takes nothing; EPIPE (IO): it is gone */
export function sendMessage<M extends WithDescriptors>(socket: number, message: M, descriptors: number[] = []): void {
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
export class Intake<M extends WithDescriptors> {
  #rest = ''
  readonly #descriptors: number[] = []

  /** Whatever there is. False: the other side is gone. @throws PROTOCOL: it says something else */
  read(socket: number, each: (message: M, descriptors: number[]) => void): boolean {
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
        const message = JSON.parse(line) as M
        each(message, this.#descriptors.splice(0, message.descriptors))
      }
    }
  }

  /** Closes what nobody was told of. */
  close(): void {
    for (const each of this.#descriptors.splice(0)) closeSync(each)
  }
}
