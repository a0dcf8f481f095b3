// Replies to requests as a client reads them: simple or structured, in one chunk or in many, in any order. No I/O.

import { type Code, FerryError } from '../../base/errors.js'
import { latin1, malformed, viewOf } from '../reader.js'
import {
  CHUNK_MAGIC,
  ChunkFlag,
  ChunkType,
  NbdError,
  PAYLOAD_BYTES_MAX,
  SIMPLE_REPLY_MAGIC,
  STRING_BYTES_MAX,
} from './constants.js'
import type { Conversation } from './conversation.js'
import { ChunkHeader, DataOffset, ErrorPayload, Hole, SimpleReply } from './structs.js'

/** Which bytes came: a set of half-open intervals. */
interface Filled {
  add(from: number, to: number): void
  overlaps(from: number, to: number): boolean
  covers(from: number, to: number): boolean
}

/** A request that waits for its answer. */
export interface Waiting {
  /** Of a READ: from where, and what is to be filled. */
  at: number
  into: Uint8Array | null
  /** What came of it so far. */
  filled: Filled
  error: FerryError | null
  resolve(): void
  reject(error: FerryError): void
}

export interface Answers {
  /** What was agreed: `structured` means that data come in chunks. */
  style: 'simple' | 'structured'
  /** Both halves of a cookie; undefined: nobody waits for it. */
  waiting(cookieHigh: number, cookieLow: number): Waiting | undefined
  /** It was answered. */
  settled(cookieHigh: number, cookieLow: number): void
}

const MAGIC_BYTES = 4
/** ERROR_OFFSET with as long a message as there may be. */
const ERROR_BYTES_MAX = ErrorPayload.size + STRING_BYTES_MAX + DataOffset.size
const isError = (type: number) => (type & 0x8000) !== 0

const codes: Record<number, Code> = {
  [NbdError.EPERM]: 'READ_ONLY',
  [NbdError.EINVAL]: 'INVALID',
  [NbdError.ENOSPC]: 'NO_SPACE',
  [NbdError.EOVERFLOW]: 'TOO_LARGE',
  [NbdError.ENOTSUP]: 'UNSUPPORTED',
  [NbdError.ESHUTDOWN]: 'UNREACHABLE',
}

const errorOf = (error: number, said: string) =>
  new FerryError(codes[error] ?? 'IO', { detail: said || `the server says error ${error}` })

/** Never ends by itself. PROTOCOL: what comes is no reply to anything that was asked. */
export function* readAnswers(answers: Answers): Conversation<never> {
  for (;;) {
    const magic = viewOf(yield MAGIC_BYTES).getUint32(0)
    if (magic === SIMPLE_REPLY_MAGIC) yield* simpleReply(answers)
    else if (magic === CHUNK_MAGIC && answers.style === 'structured') yield* chunk(answers)
    else throw malformed('no reply where one belongs')
  }
}

function find(answers: Answers, cookieHigh: number, cookieLow: number): Waiting {
  const waiting = answers.waiting(cookieHigh, cookieLow)
  if (!waiting) throw malformed('a reply to nothing that was asked')
  return waiting
}

function* simpleReply(answers: Answers): Conversation {
  const rest = Uint8Array.from(yield SimpleReply.size - MAGIC_BYTES)
  const { error, cookieHigh, cookieLow } = SimpleReply.decode(viewOf(withMagic(rest)))
  const waiting = find(answers, cookieHigh, cookieLow)
  if (error === 0 && waiting.into) {
    if (answers.style === 'structured') throw malformed('data without a chunk')
    yield waiting.into
    waiting.filled.add(0, waiting.into.length)
  }
  if (error !== 0) waiting.error = errorOf(error, '')
  settle(answers, waiting, cookieHigh, cookieLow)
}

const withMagic = (rest: Uint8Array) => {
  const whole = new Uint8Array(MAGIC_BYTES + rest.length)
  whole.set(rest, MAGIC_BYTES)
  return whole
}

function* chunk(answers: Answers): Conversation {
  const rest = Uint8Array.from(yield ChunkHeader.size - MAGIC_BYTES)
  const { flags, type, cookieHigh, cookieLow, length } = ChunkHeader.decode(viewOf(withMagic(rest)))
  const lengthMax = isError(type) ? ERROR_BYTES_MAX : PAYLOAD_BYTES_MAX + DataOffset.size
  if (length > lengthMax) throw malformed(`a chunk of ${length} bytes`)
  const waiting = find(answers, cookieHigh, cookieLow)
  if (type === ChunkType.OFFSET_DATA) {
    if (length <= DataOffset.size) throw malformed('a chunk of data without data')
    const { offset } = DataOffset.decode(viewOf(yield DataOffset.size))
    yield place(waiting, offset, length - DataOffset.size)
  } else if (type === ChunkType.OFFSET_HOLE) {
    if (length !== Hole.size) throw malformed('a hole without its size')
    const hole = Hole.decode(viewOf(yield Hole.size))
    place(waiting, hole.offset, hole.length).fill(0)
  } else if (isError(type)) {
    if (length < ErrorPayload.size) throw malformed('an error without a number')
    const error = errorIn(yield length)
    waiting.error ??= error
  } else if (type !== ChunkType.NONE || length > 0 || !(flags & ChunkFlag.DONE))
    throw malformed(`a chunk of type ${type} with ${length} bytes`)
  if (flags & ChunkFlag.DONE) settle(answers, waiting, cookieHigh, cookieLow)
}

/** Where these bytes of a READ belong: in it, and nowhere twice. */
function place({ at, into, filled }: Waiting, offset: number, length: number): Uint8Array {
  const from = offset - at
  if (!into || from < 0 || from + length > into.length || filled.overlaps(from, from + length))
    throw malformed(`${length} bytes at ${offset} that nobody asked for`)
  filled.add(from, from + length)
  return into.subarray(from, from + length)
}

function errorIn(payload: Uint8Array): FerryError {
  const { error, messageLength } = ErrorPayload.decode(viewOf(payload))
  const end = ErrorPayload.size + messageLength
  if (error === 0 || end > payload.length) throw malformed('an error that is none')
  return errorOf(error, latin1(payload, ErrorPayload.size, end))
}

function settle(answers: Answers, waiting: Waiting, cookieHigh: number, cookieLow: number): void {
  const { into, filled, error } = waiting
  if (!error && into && !filled.covers(0, into.length)) throw malformed('a reply that ends before its data')
  answers.settled(cookieHigh, cookieLow)
  if (error) waiting.reject(error)
  else waiting.resolve()
}
