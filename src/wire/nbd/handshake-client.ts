// What a client and a server agree on before the first request: the client's side of fixed newstyle. No I/O.

import { type Code, FerryError } from '../../base/errors.js'
import { malformed, putLatin1, viewOf } from '../reader.js'
import {
  HandshakeFlag,
  Info,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  OptionReply,
  PAYLOAD_BYTES_MAX,
  SERVER_MAGIC,
} from './constants.js'
import { type Conversation, STOP } from './conversation.js'
import { type BlockSize, type ExportDetails, infoRequest, option, takeInfo } from './options.js'
import { ClientFlags, ExportReply, Greeting, OptionReplyHeader } from './structs.js'

/** Of what a server may say in reply to one option, and of how often. */
const REPLY_BYTES_MAX = 64 * 1024
const REPLIES_MAX = 1024
const ZEROES_BYTES = 124
const OLD_STYLE_MAGIC = 0x00420281861253n
const isError = (type: number) => type >= 0x80000000
/** Where the server does not say. */
const BLOCK_SIZE: BlockSize = { minimum: 1, preferred: 4096, maximum: PAYLOAD_BYTES_MAX }

export interface HandshakeClient {
  /** Of the export, in bytes. */
  name: string
  /** Nothing but STARTTLS is said before it. */
  tls: boolean
  send(bytes: Uint8Array): void
  /** After the STOP that follows: the handshake of TLS. */
  startTls(): void
}

/** What was agreed. */
export interface Opened {
  details: Pick<ExportDetails, 'size' | 'flags' | 'blockSize'>
  style: 'simple' | 'structured'
}

/**
 * The client's side, from the greeting on. Rejects with what the server says: NOT_FOUND (no such export), FORBIDDEN, UNREACHABLE (it is
 * going down); PROTOCOL: it does not speak NBD, or not as we do.
 */
export function* askHandshake(client: HandshakeClient): Conversation<Opened> {
  const { magic, optionMagic, flags } = Greeting.decode(viewOf(yield Greeting.size))
  if (magic !== SERVER_MAGIC) throw malformed('no server of NBD')
  if (optionMagic === OLD_STYLE_MAGIC)
    throw malformed('a server of NBD from before 2013, which nobody can negotiate with')
  if (optionMagic !== OPTION_MAGIC) throw malformed('no server of NBD')
  client.send(ClientFlags.toBytes({ flags: flags & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES) }))
  if (!(flags & HandshakeFlag.FIXED_NEWSTYLE)) {
    // It understands one option, and breaks at any other.
    if (client.tls) throw new FerryError('FORBIDDEN', { detail: 'the server is too old for TLS', lasting: true })
    return { details: yield* exportName(client, flags), style: 'simple' }
  }
  if (client.tls) {
    client.send(option(Option.STARTTLS))
    const { type, data } = yield* replyTo(Option.STARTTLS)
    if (type === OptionReply.ERR_UNSUP || type === OptionReply.ERR_POLICY)
      throw new FerryError('FORBIDDEN', { detail: 'the server has no TLS (nbd:// is without)', lasting: true })
    if (type !== OptionReply.ACK) throw refusal(type, data)
    client.startTls()
    yield STOP
  }
  client.send(option(Option.STRUCTURED_REPLY))
  const structured = yield* replyTo(Option.STRUCTURED_REPLY)
  // Whatever else it says to that: without it, it goes as well.
  if (structured.type === OptionReply.ERR_TLS_REQD) throw refusal(structured.type, structured.data)
  const style = structured.type === OptionReply.ACK ? 'structured' : 'simple'

  client.send(option(Option.GO, infoRequest(client.name, [Info.BLOCK_SIZE])))
  const details: Partial<ExportDetails> = {}
  for (let replies = 0; replies < REPLIES_MAX; replies++) {
    const { type, data } = yield* replyTo(Option.GO)
    if (type === OptionReply.INFO) takeInfo(data, details)
    else if (type === OptionReply.ACK) return { details: complete(details), style }
    else if (type === OptionReply.ERR_UNSUP) return { details: yield* exportName(client, flags), style }
    else throw refusal(type, data)
  }
  throw malformed(`more than ${REPLIES_MAX} replies to one option`)
}

/** The old way, in which there is no word for what is wrong: the server just leaves. */
function* exportName({ name, send }: HandshakeClient, flags: number): Conversation<Opened['details']> {
  const bytes = new Uint8Array(name.length)
  putLatin1(bytes, 0, name)
  send(option(Option.EXPORT_NAME, bytes))
  const reply = ExportReply.decode(viewOf(yield ExportReply.size))
  if (!(flags & HandshakeFlag.NO_ZEROES)) yield ZEROES_BYTES
  return complete(reply)
}

function complete({ size, flags, blockSize = BLOCK_SIZE }: Partial<ExportDetails>): Opened['details'] {
  if (size === undefined || flags === undefined) throw malformed('an export without its size')
  const { minimum, maximum } = blockSize
  const isSound = minimum > 0 && (minimum & (minimum - 1)) === 0 && minimum <= 65_536 && maximum >= minimum
  if (!isSound) throw malformed(`blocks of ${minimum} to ${maximum} bytes`)
  return { size, flags, blockSize: { ...blockSize, maximum: Math.min(maximum, PAYLOAD_BYTES_MAX) } }
}

function* replyTo(asked: number): Conversation<{ type: number; data: Uint8Array }> {
  const { magic, option, type, length } = OptionReplyHeader.decode(viewOf(yield OptionReplyHeader.size))
  if (magic !== OPTION_REPLY_MAGIC || option !== asked) throw malformed('no reply to what was asked')
  if (length > REPLY_BYTES_MAX) throw malformed(`a reply of ${length} bytes`)
  const data = length > 0 ? Uint8Array.from(yield length) : new Uint8Array(0)
  return { type, data }
}

const codes: Record<number, Code> = {
  [OptionReply.ERR_UNKNOWN]: 'NOT_FOUND',
  [OptionReply.ERR_POLICY]: 'FORBIDDEN',
  [OptionReply.ERR_SHUTDOWN]: 'UNREACHABLE',
}

function refusal(type: number, data: Uint8Array): FerryError {
  if (!isError(type)) return malformed(`reply ${type} where none of that kind belongs`)
  const said = Buffer.from(data).toString()
  if (type === OptionReply.ERR_TLS_REQD)
    return new FerryError('FORBIDDEN', { detail: 'the server wants TLS (nbds://)', lasting: true })
  const code = codes[type] ?? 'PROTOCOL'
  // One that goes down may soon be up again.
  const lasting = type !== OptionReply.ERR_SHUTDOWN
  return new FerryError(code, { detail: said || `the server refuses (${type - 0x80000000})`, lasting })
}
