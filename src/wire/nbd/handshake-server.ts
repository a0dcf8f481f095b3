// What a server and a client agree on before the first request: the server's side of fixed newstyle. No I/O.

import { malformed, viewOf } from '../reader.js'
import {
  BASE_ALLOCATION,
  HandshakeFlag,
  OPTION_MAGIC,
  Option,
  OptionReply,
  SERVER_MAGIC,
  STRING_BYTES_MAX,
  TransmissionFlag,
} from './constants.js'
import { type Conversation, STOP } from './conversation.js'
import {
  type ExportDetails,
  infos,
  metaContext,
  optionError,
  optionReply,
  parseContextRequest,
  parseInfoRequest,
  serverEntry,
} from './options.js'
import type { ReplyStyle } from './replies.js'
import { ClientFlags, ExportReply, Greeting, OptionHeader } from './structs.js'

/** Of one option's data: a name and some queries. */
const OPTION_BYTES_MAX = 64 * 1024
/** Options before the first request. */
const OPTIONS_MAX = 256
const ZEROES = new Uint8Array(124)
const NO_DATA = new Uint8Array(0)
const CONTEXT_ID = 1

export interface HandshakeServer {
  exports: readonly ExportDetails[]
  /** `required`: nothing but STARTTLS before it. */
  tls: 'none' | 'offered' | 'required'
  send(bytes: Uint8Array): void
  /** After the STOP that follows: the handshake of TLS. */
  startTls(): void
}

/** What was agreed: how replies look, and of which export. */
export interface Agreed {
  details: ExportDetails
  style: ReplyStyle
  /** The id of base:allocation, if the client has asked for it. */
  contextId: number | null
}

class Handshake {
  readonly #server: HandshakeServer
  #isSecure = false
  #hasZeroes = true
  #isStructured = false
  #isExtended = false
  /** The export whose contexts were asked for, and whether base:allocation was one. */
  #contexts: { name: string; hasAllocation: boolean } | null = null

  constructor(server: HandshakeServer) {
    this.#server = server
  }

  *run(): Conversation<Agreed | null> {
    const flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    this.#server.send(Greeting.toBytes({ magic: SERVER_MAGIC, optionMagic: OPTION_MAGIC, flags }))
    const client = ClientFlags.decode(viewOf(yield ClientFlags.size)).flags
    if (client & ~flags) throw malformed(`client flags ${client}`)
    this.#hasZeroes = (client & HandshakeFlag.NO_ZEROES) === 0
    for (let count = 0; count < OPTIONS_MAX; count++) {
      const { magic, option, length } = OptionHeader.decode(viewOf(yield OptionHeader.size))
      if (magic !== OPTION_MAGIC) throw malformed('no option where one belongs')
      if (length > OPTION_BYTES_MAX) throw malformed(`option ${option} with ${length} bytes`)
      const data = length > 0 ? yield length : NO_DATA
      if (option === Option.ABORT) {
        this.#reply(option)
        return null
      }
      if (option === Option.STARTTLS) {
        if (this.#startTls(data)) {
          yield STOP
          this.#isSecure = true
        }
        continue
      }
      const isRefused = this.#server.tls === 'required' && !this.#isSecure
      if (option === Option.EXPORT_NAME) {
        const agreed = isRefused || this.#isExtended ? null : this.#exportName(data)
        // There is no way to say what is wrong.
        if (!agreed) throw malformed('an export that is not here, or not for this client')
        return agreed
      }
      if (isRefused) this.#refuse(option, OptionReply.ERR_TLS_REQD, 'this server needs TLS first')
      else {
        const agreed = this.#option(option, data)
        if (agreed) return agreed
      }
    }
    throw malformed(`more than ${OPTIONS_MAX} options`)
  }

  #option(option: number, data: Uint8Array): Agreed | null {
    const { exports } = this.#server
    try {
      switch (option) {
        case Option.LIST:
          if (data.length > 0) throw malformed('a list has no argument')
          for (const one of exports) this.#reply(option, OptionReply.SERVER, serverEntry(one))
          this.#reply(option)
          return null
        case Option.INFO:
        case Option.GO:
          return this.#info(option, data)
        case Option.STRUCTURED_REPLY:
          if (data.length > 0) throw malformed('structured replies have no argument')
          if (this.#isExtended) this.#refuse(option, OptionReply.ERR_EXT_HEADER_REQD, 'extended headers were agreed')
          else {
            this.#isStructured = true
            this.#reply(option)
          }
          return null
        case Option.EXTENDED_HEADERS:
          if (data.length > 0) throw malformed('extended headers have no argument')
          this.#isExtended = true
          this.#reply(option)
          return null
        case Option.LIST_META_CONTEXT:
        case Option.SET_META_CONTEXT:
          this.#metaContext(option, data)
          return null
        default:
          this.#refuse(option, OptionReply.ERR_UNSUP, 'not known here')
          return null
      }
    } catch (error) {
      this.#refuse(option, OptionReply.ERR_INVALID, (error as Error).message)
      return null
    }
  }

  #startTls(data: Uint8Array): boolean {
    const option = Option.STARTTLS
    if (data.length > 0) this.#refuse(option, OptionReply.ERR_INVALID, 'TLS has no argument')
    else if (this.#server.tls === 'none') this.#refuse(option, OptionReply.ERR_POLICY, 'no TLS here')
    else if (this.#isSecure) this.#refuse(option, OptionReply.ERR_INVALID, 'TLS was started already')
    else {
      this.#reply(option)
      // Whoever stood between may have said it.
      this.#isStructured = this.#isExtended = false
      this.#contexts = null
      this.#server.startTls()
      return true
    }
    return false
  }

  #exportName(data: Uint8Array): Agreed | null {
    const details = this.#find(Buffer.from(data).toString('latin1'))
    if (!details) return null
    const agreed = this.#agreed(details)
    const { size, flags } = agreed.details
    this.#server.send(ExportReply.toBytes({ size, flags }))
    if (this.#hasZeroes) this.#server.send(ZEROES)
    return agreed
  }

  #info(option: number, data: Uint8Array): Agreed | null {
    const { name, wanted } = parseInfoRequest(data)
    const found = this.#find(name)
    if (!found) {
      this.#refuse(option, OptionReply.ERR_UNKNOWN, `no export "${Buffer.from(name, 'latin1')}"`)
      return null
    }
    const agreed = this.#agreed(found)
    for (const info of infos(agreed.details, wanted)) this.#reply(option, OptionReply.INFO, info)
    this.#reply(option)
    return option === Option.GO ? agreed : null
  }

  #metaContext(option: number, data: Uint8Array): void {
    const { name, queries } = parseContextRequest(data)
    const isSet = option === Option.SET_META_CONTEXT
    if (isSet) this.#contexts = null
    if (!this.#isStructured && !this.#isExtended) throw malformed('structured replies come first')
    if (!this.#find(name)) {
      this.#refuse(option, OptionReply.ERR_UNKNOWN, 'no such export')
      return
    }
    const isAsked = (query: string) => query === BASE_ALLOCATION || (!isSet && query === 'base:')
    const hasAllocation = (!isSet && queries.length === 0) || queries.some(isAsked)
    if (isSet) this.#contexts = { name, hasAllocation }
    // In a list the id says nothing.
    const id = isSet ? CONTEXT_ID : 0
    if (hasAllocation) this.#reply(option, OptionReply.META_CONTEXT, metaContext(id, BASE_ALLOCATION))
    this.#reply(option)
  }

  /** The export without a name is the first one. */
  #find(name: string): ExportDetails | undefined {
    const { exports } = this.#server
    return exports.find(one => one.name === name) ?? (name === '' ? exports[0] : undefined)
  }

  #agreed(found: ExportDetails): Agreed {
    const style = this.#isExtended ? 'extended' : this.#isStructured ? 'structured' : 'simple'
    const flags = style === 'simple' ? found.flags : found.flags | TransmissionFlag.SEND_DF
    const contexts = this.#contexts
    const isTheirs = contexts !== null && this.#find(contexts.name) === found
    const contextId = isTheirs && contexts.hasAllocation ? CONTEXT_ID : null
    return { details: { ...found, flags }, style, contextId }
  }

  #reply(option: number, type: Parameters<typeof optionReply>[1] = OptionReply.ACK, data?: Uint8Array): void {
    this.#server.send(optionReply(option, type, data))
  }

  #refuse(option: number, type: Parameters<typeof optionReply>[1], message: string): void {
    this.#server.send(optionError(option, type, message.slice(0, STRING_BYTES_MAX)))
  }
}

/**
 * The server's side, from the greeting on. null: the client has given up. PROTOCOL: it does not speak NBD, or asks, in a way that has no
 * answer, for what is not here; the connection is to be closed then.
 */
export const serveHandshake = (server: HandshakeServer): Conversation<Agreed | null> => new Handshake(server).run()
