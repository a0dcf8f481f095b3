// Bytes in and out of one connection.
import type { Socket } from 'node:net'
import { TLSSocket, type TLSSocketOptions } from 'node:tls'
import { giveBack } from '../base/buffers.js'
import { type FerryError, toFerryError } from '../base/errors.js'

export interface TransportEvents {
  /** What came: a view, valid until this returns. */
  onBytes(bytes: Uint8Array): void
  /** Where what comes next may be put at once; null: nowhere. */
  place(): Uint8Array | null
  /** So many bytes were put there. */
  onPlaced(count: number): void
  /** Sent bytes have left: `backlogBytes` is another. */
  onSent(): void
  /** Once. Without an error: the other side is done. */
  onEnded(error?: FerryError): void
}

export interface Transport {
  /** Handed over and not sent yet. */
  readonly backlogBytes: number
  /** Up to so many bytes are copied by `send`, and may change afterwards. */
  readonly gatheredBytesMax: number
  /** They must not change any more; a buffer that was taken for them is given back when they are sent. */
  send(bytes: Uint8Array): void
  /** Stops and goes on reading. */
  pause(): void
  resume(): void
  /** What was sent arrives, then it is closed. */
  end(): void
  destroy(): void
}

/** A socket of node's, or one with TLS on it. */
export class SocketTransport implements Transport {
  readonly gatheredBytesMax = 0
  readonly #socket: Socket
  readonly #unlisten: () => void
  #isCorked = false

  constructor(socket: Socket, { onBytes, onSent, onEnded }: TransportEvents) {
    this.#socket = socket
    let isOver = false
    const over = (error?: Error) => {
      if (isOver) return
      isOver = true
      onEnded(error && toFerryError(error))
    }
    const onEnd = () => over()
    socket.on('data', onBytes).on('drain', onSent).on('end', onEnd).on('error', over).on('close', onEnd)
    this.#unlisten = () =>
      socket.off('data', onBytes).off('drain', onSent).off('end', onEnd).off('error', over).off('close', onEnd)
  }

  get backlogBytes(): number {
    return this.#socket.writableLength
  }

  /** Replies of one turn travel together. */
  send(bytes: Uint8Array): void {
    if (!this.#isCorked) {
      this.#isCorked = true
      this.#socket.cork()
      process.nextTick(() => {
        this.#isCorked = false
        this.#socket.uncork()
      })
    }
    this.#socket.write(bytes, error => {
      if (!error) giveBack(bytes)
    })
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  end(): void {
    this.#socket.end()
  }

  destroy(): void {
    this.#socket.destroy()
  }

  /** From now on TLS is spoken, through the socket that is returned; this object hears nothing more. */
  secure(options: TLSSocketOptions): Socket {
    this.#unlisten()
    return new TLSSocket(this.#socket, { ...options, isServer: true })
  }
}
