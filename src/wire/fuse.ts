// The FUSE protocol (kernel ABI 7.x, as <linux/fuse.h> up to 7.45): bytes <-> values, no I/O.

export * from './fuse/flags.js'
export * from './fuse/ops.js'
export * from './fuse/reply.js'
export * from './fuse/request.js'
export * from './fuse/structs.js'
