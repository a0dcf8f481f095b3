// The NBD protocol: bytes <-> values and what is agreed before the first request, no I/O.

export * from './nbd/answers.js'
export * from './nbd/constants.js'
export * from './nbd/conversation.js'
export * from './nbd/handshake-client.js'
export * from './nbd/handshake-server.js'
export * from './nbd/options.js'
export * from './nbd/replies.js'
export * from './nbd/structs.js'
