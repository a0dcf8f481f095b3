// Fewer bytes than were asked for are no end: one that answers short is asked for the rest.
import { FerryError } from './errors.js'

/** `length` bytes from `at`, by as many calls of `read` as it takes. SHORT_READ when one of them brings nothing. */
export async function readExactly(
  { at, length, what }: { at: number; length: number; what: string },
  read: (at: number, length: number) => Promise<Uint8Array>,
): Promise<Uint8Array> {
  const first = await read(at, length)
  if (first.byteLength === length) return first
  const whole = new Uint8Array(length)
  whole.set(first)
  for (let done = first.byteLength, got = done; done < length; done += got) {
    const more = got > 0 ? await read(at + done, length - done) : first
    got = more.byteLength
    if (got === 0) throw new FerryError('SHORT_READ', { detail: `${what}: ${done} of ${length} bytes at ${at}` })
    whole.set(more, done)
  }
  return whole
}
